"""What a skill is made of: its rows, the size and spectrum of its updates, and the directions that it shares with
another.

An update ΔW = s·B·A is never formed: its singular values and vectors are those of a small core between orthonormal
bases of B's columns and A's rows. Tables about updates have a row per module.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations, product

import pandas as pd
import torch
from torch import Tensor, nn

from lab.errors import LabError
from lab.evaluation import statistics
from lab.experiments.candidates import describe
from lab.experiments.candidates.merges import random_adapters
from lab.experiments.context import RunContext
from lab.lora.adapter import LoraAdapter, LoraFactors
from lab.lora.module_names import grid
from lab.merging.cores import support, to_cores
from lab.records.record import RunRecord, skill_names

SAME_START, OTHER_START = "two skills of one seed", "two skills of two seeds"
SAME_SKILL, RANDOM = "one skill of two seeds", "random factors"


def data_table(context: RunContext) -> pd.DataFrame:
    """What each skill is trained on: rows, steps, tokens of prompts and of completions (median, longest)."""
    lines = {}
    for task in context.section.skills:
        rows = context.rows(task)
        prompts = pd.Series([row.prompt_length for row in rows])
        completions = pd.Series([len(row.ids) - row.prompt_length for row in rows])
        lines[task.name] = {
            "what": task.title,
            "training rows": f"{len(rows):,}",
            "steps": f"{context.preset.training.steps(len(rows)):,}",
            "tokens of a prompt": f"{prompts.median():.0f}, at most {prompts.max()}",
            "tokens of a completion": f"{completions.median():.0f}, at most {completions.max()}",
            "tokens in all": f"{prompts.sum() + completions.sum():,}",
        }
    return pd.DataFrame.from_dict(lines, orient="index")


def own_tests(records: Sequence[RunRecord]) -> pd.DataFrame:
    """Every method's score on each skill's own test, in per cent with 95 % intervals. Strings throughout.

    Several seeds answer the same problems: their interval is Student's over the seeds' means, and speaks of new seeds;
    one seed's, or that of equal ones, is Wilson's over the problems.
    """
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        groups.setdefault(record.method, []).append(record)
    skills = skill_names(records)
    lines = {}
    for method in sorted(groups, key=lambda name: describe(name, skills).position):
        runs, line = groups[method], {}
        for skill in skills:
            means = [run.own[skill] for run in runs if run.own.get(skill) is not None]
            n = runs[0].parameters["preset"]["own_test"]
            line[f"{skill} test, %"] = _interval(means, n) if means else ""
        line["n × seeds"] = f"{n} × {len(runs)}"
        lines[describe(method, skills).label] = line
    return pd.DataFrame.from_dict(lines, orient="index")


def singular_values(factors: LoraFactors) -> Tensor:
    """Of one module's update, descending, in double precision: (min(r, out, in),)."""
    _, cores, _ = to_cores([factors.A], [factors.scaling * factors.B])
    return torch.linalg.svdvals(cores[0])


def effective_rank(values: Tensor) -> float:
    """exp of the entropy of the singular values as shares of their sum (Roy and Vetterli, 2007).

    So many equal values would be spread as widely: from 1 to the rank; 0 for an update of zeros.
    """
    total = values.sum()
    return float(torch.special.entr(values / total).sum().exp()) if total > 0 else 0.0


@torch.no_grad()
def contents(adapter: LoraAdapter, model: nn.Module) -> pd.DataFrame:
    """What an adapter contains, a row per module.

    Columns: rank, norm (‖ΔW‖, Frobenius), relative (‖ΔW‖/‖W‖, W the base's weight), effective_rank, and values (the
    singular values, a list).
    """
    lines = {}
    for module, factors in adapter.modules.items():
        values = singular_values(factors)
        norm = float(values.norm())
        weight = float(model.get_submodule(module).weight.double().norm())
        lines[module] = {
            "rank": factors.rank, "norm": norm, "relative": norm / weight, "effective_rank": effective_rank(values),
            "values": values.tolist(),
        }  # fmt: skip
    return pd.DataFrame.from_dict(lines, orient="index")


def summary(adapters: Mapping[str, Sequence[LoraAdapter]], model: nn.Module) -> pd.DataFrame:
    """One row per skill: size, and its updates' norms and effective ranks. Strings throughout.

    adapters: skill -> one per seed. Means over modules and seeds, with the smallest and the largest.
    """
    lines = {}
    for skill, several in adapters.items():
        table = pd.concat([contents(adapter, model) for adapter in several])
        first = several[0]
        lines[skill] = {
            "modules": str(len(first.modules)), "rank": str(first.rank), "seeds": str(len(several)),
            "parameters": f"{sum(f.A.numel() + f.B.numel() for f in first.modules.values()):,}",
            "‖ΔW‖/‖W‖": _span(table["relative"]), "effective rank": _span(table["effective_rank"]),
        }  # fmt: skip
    return pd.DataFrame.from_dict(lines, orient="index")


def spectrum_lines(adapters: Sequence[LoraAdapter]) -> dict[str, list[float]]:
    """Kind of module -> singular values, each a mean over layers and over the adapters (the seeds of one skill)."""
    values = {(number, m): singular_values(f) for number, a in enumerate(adapters) for m, f in a.modules.items()}
    lines = {}
    for kind, column in as_grid({m: m for a in adapters for m in a.modules}).items():
        modules = set(column.dropna())
        found = [v for (_, module), v in values.items() if module in modules]
        shortest = min(map(len, found))
        lines[kind] = torch.stack([v[:shortest] for v in found]).mean(0).tolist()
    return lines


def as_grid(values: Mapping[str, object] | pd.Series) -> pd.DataFrame:
    """Values of modules (by name) as layers × projections, for `figures.heatmaps`; missing where a layer has no such module."""
    values = dict(values)  # a Series, too, is one of names to values
    layers, projections, places = grid(values)
    found = {(layers[row], projections[column]): values[module] for module, (row, column) in places.items()}
    return pd.Series(found).unstack().reindex(columns=projections).sort_index()


def overlap(first: LoraAdapter, second: LoraAdapter) -> pd.DataFrame:
    """How far two adapters' updates share directions, a row per module that both change.

    output, input: mean cos² of the principal angles between the column spaces of ΔW (what B spans) and between its row
    spaces (what A spans): 1 for the same space, about max(r)/n for random ones of n dimensions (Hu et al., 2021,
    Section 7.2). output_angle, input_angle: the smallest principal angle, degrees. cosine: ⟨ΔW_1, ΔW_2⟩ / (‖ΔW_1‖
    ‖ΔW_2‖), 0 for random ones.

    Raises LabError when no module is changed by both.
    """
    lines = {}
    for module in first.modules.keys() & second.modules.keys():
        one, two = (_directions(adapter.modules[module]) for adapter in (first, second))
        if not (len(one[1]) and len(two[1])):
            continue  # an update of zeros has no direction
        cosines = [
            torch.linalg.svdvals(a.T @ b).clamp(max=1) for a, b in zip((one[0], one[2]), (two[0], two[2]), strict=True)
        ]
        # ΔW_1 = U S Vᵀ, so ⟨ΔW_1, ΔW_2⟩ = Σ S_i (U₁ᵀU₂)_ij S_j (V₁ᵀV₂)_ij
        inner = one[1] @ ((one[0].T @ two[0]) * (one[2].T @ two[2])) @ two[1]
        lines[module] = {
            "output": float(cosines[0].square().mean()), "input": float(cosines[1].square().mean()),
            "output_angle": float(torch.rad2deg(cosines[0].max().acos())),
            "input_angle": float(torch.rad2deg(cosines[1].max().acos())),
            "cosine": float(inner / (one[1].norm() * two[1].norm())),
        }  # fmt: skip
    if not lines:
        raise LabError(f"{first.name} and {second.name} change no module in common; there is nothing to compare.")
    return pd.DataFrame.from_dict(
        {module: lines[module] for module in first.modules if module in lines}, orient="index"
    )


def overlaps(skills: Mapping[int, Sequence[LoraAdapter]]) -> dict[str, pd.DataFrame]:
    """Overlaps of all pairs of skills, pooled by what the pair has in common. skills: seed -> the section's skills.

    Skills of one seed start from the same random A (one seed makes both), those of two seeds from different ones;
    random factors have the skills' shapes and spread.
    """
    pairs: dict[str, list[tuple[LoraAdapter, LoraAdapter]]] = {
        name: [] for name in (SAME_START, OTHER_START, SAME_SKILL, RANDOM)
    }
    for seed, own in skills.items():
        pairs[SAME_START] += combinations(own, 2)
        pairs[RANDOM] += combinations(random_adapters(own, seed), 2)
    for one, two in combinations(skills.values(), 2):
        for (i, a), (j, b) in product(enumerate(one), enumerate(two)):
            pairs[SAME_SKILL if i == j else OTHER_START].append((a, b))
    return {name: pd.concat([overlap(*pair) for pair in found]) for name, found in pairs.items() if found}


def overlap_table(found: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The overlaps as people read them, a column per kind of pair.

    Means over modules and pairs, with the smallest and the largest.
    """
    headings = {
        "output": "shared output directions (B), mean cos²", "input": "shared input directions (A), mean cos²",
        "output_angle": "smallest angle, outputs, °", "input_angle": "smallest angle, inputs, °",
        "cosine": "cosine of the updates",
    }  # fmt: skip
    lines = {}
    for name, table in found.items():
        pairs = int(table.index.value_counts().max())
        shown = {heading: _span(table[column]) for column, heading in headings.items()}
        lines[name] = {"pairs": str(pairs), "modules": str(table.index.nunique()), **shown}
    return pd.DataFrame(lines)


def finding(sections: Mapping[str, tuple[Sequence[RunRecord], Mapping[str, pd.DataFrame]]]) -> str:
    """What the skills can do and how their updates lie to each other, by section: its records, its `overlaps`."""
    told = []
    for name, (records, found) in sections.items():
        skills = skill_names(records)
        own = {(a, b): 100 * _mean_own(records, a, b) for a in skills for b in skills}
        alone = ", ".join(f"{skill} {own[skill, skill]:.0f} %" for skill in skills)
        across = max(score for (a, b), score in own.items() if a != b)
        pair = OTHER_START if OTHER_START in found else SAME_START  # skills of one seed share their random start too
        outputs, inputs = (found[pair][side].mean() / found[RANDOM][side].mean() for side in ("output", "input"))
        cosine = abs(found[SAME_START]["cosine"].mean())
        told.append(
            f"{name}: {alone}, on another's at most {across:.0f} %; {outputs:.1f} and {inputs:.1f} times; cosine {cosine:.2f}."
        )
    return (
        "Each skill on its own test; how many times as many output and input directions as random factors two skills share; "
        f"the cosine of their updates. {' '.join(told)}"
    )


def headline(records: Sequence[RunRecord]) -> dict[str, str]:
    """Number and caption of the section's card: each skill on its own test."""
    skills = skill_names(records)
    n, seeds = records[0].parameters["preset"]["own_test"], len({r.seed for r in records})
    number = " · ".join(f"{100 * _mean_own(records, skill, skill):.0f}\u00a0%" for skill in skills)
    seeds = f"{seeds} {'seed' if seeds == 1 else 'seeds'}"
    return {"number": number, "caption": f"{', '.join(skills)}, each on its own test of {n} problems, {seeds}"}


def _mean_own(records: Sequence[RunRecord], method: str, skill: str) -> float:
    means = [r.own[skill] for r in records if r.method == method and r.own.get(skill) is not None]
    return sum(means) / len(means) if means else float("nan")


def _directions(factors: LoraFactors) -> tuple[Tensor, Tensor, Tensor]:
    """U (out, p), singular values (p,) and V (in, p) of an update, without those that are rounding errors."""
    U, cores, V = to_cores([factors.A], [factors.scaling * factors.B])
    P, S, Qh = torch.linalg.svd(cores[0], full_matrices=False)
    kept = support(S) & (S > 0)
    return U @ P[:, kept], S[kept], V @ Qh[kept].T


def _interval(means: Sequence[float], n: int) -> str:
    if len(set(means)) == 1:
        mean = means[0]
        low, high = statistics.proportion_interval(round(mean * n), n)
    else:
        found = statistics.mean_interval(means)
        mean, low, high = found.mean, found.low, found.high
    return f"{100 * mean:.1f} ({100 * low:.1f}–{100 * high:.1f})"


def _span(values: pd.Series) -> str:
    return f"{values.mean():.2f} ({values.min():.2f} to {values.max():.2f})".replace("-", "−")
