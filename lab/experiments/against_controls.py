"""Whether learned merges beat what should do as well if the skills brought nothing (arXiv 2602.12323), over many sections."""

from collections.abc import Mapping, Sequence

import pandas as pd

from lab.errors import LabError
from lab.experiments.candidates import describe
from lab.experiments.section import Section
from lab.records import tables
from lab.records.record import RunRecord, skill_names

# Label of a control -> its method; "" where it is chosen among the records.
BEST_SKILL, NOISE = "Best skill alone", "Random LoRAs"
CONTINUAL = "data_mix_continual"  # not every section has it
CONTROLS = {
    "Base": "base", BEST_SKILL: "", "One skill, rescaled": "rescale_one", "Static CAT": "cat_static", "Random CAT": "cat_random",
    NOISE: "random_loras", "New LoRA, same data": "new_lora", "New LoRA, same compute": "new_lora_compute", "Data mix": "data_mix",
    "Data mix (continual)": CONTINUAL,
}  # fmt: skip


def noise(learned: str) -> str:
    """The control that learns on noise as this merge does, or one coefficient per rank, which can do all that others can."""
    return {"cat": "random_loras", "cat_softmax": "random_loras_softmax"}.get(learned, "random_loras_per_rank")


def methods(section: Section, learned: Sequence[str]) -> list[str]:
    """All that the table needs of a section. Raises LabError unless there are one to three learned merges."""
    if not 1 <= len(learned) <= 3:
        raise LabError(f"There are {len(learned)} learned merges; give one to three.")
    fixed = [method for method in CONTROLS.values() if method not in ("", "random_loras", CONTINUAL) or method in section.candidates]
    return list(dict.fromkeys([*fixed, *(task.name for task in section.skills), *map(noise, learned), *learned]))


def table(records: Mapping[str, Sequence[RunRecord]], learned: Sequence[str]) -> pd.DataFrame:
    """Every learned merge against every control. records: section -> its records, with all of `methods`.

    One row per (section, learned, control), with `tables.differences` of the merge minus the control, Holm over the whole table;
    method: the control's; score and control_score (fractions, mean over seeds). The best skill is the best on the target's test:
    a choice in its favour.
    """
    groups = {name: _by_method(own) for name, own in records.items()}
    pairs, told = {}, {}
    for name, by_method in groups.items():
        skills = [skill for skill in skill_names(records[name]) if skill in by_method]
        best = max(skills, key=lambda skill: _score(by_method[skill]))
        for merge in learned:
            for label, method in CONTROLS.items():
                method = {BEST_SKILL: best, NOISE: noise(merge)}.get(label, method)
                if method == CONTINUAL and method not in by_method:
                    continue
                pairs[name, merge, label] = by_method[merge], by_method[method]
                told[name, merge, label] = {
                    "method": method, "score": _score(by_method[merge]), "control_score": _score(by_method[method])
                }  # fmt: skip
    found = pd.DataFrame.from_dict(told, orient="index").join(tables.differences(pairs))
    found.index = pd.MultiIndex.from_tuples(found.index, names=["section", "learned", "control"])
    return found


def format_table(table: pd.DataFrame) -> pd.DataFrame:
    """As people read it: per cent, differences in points with 95 % intervals, p after Holm. Strings throughout."""
    shown = tables.format_differences(table)
    shown.insert(0, "control, %", [f"{100 * value:.1f}" for value in table["control_score"]])
    shown.insert(0, "merge, %", [f"{100 * value:.1f}" for value in table["score"]])
    return shown.rename(index=lambda name: describe(name).label, level="learned")


def finding(table: pd.DataFrame) -> str:
    """For each learned merge, how often it is clearly ahead, and all controls that it is clearly behind of."""
    told = []
    for merge, own in table.groupby(level="learned", sort=False):
        ahead, behind = (own[own["verdict"] == verdict] for verdict in ("better", "worse"))
        lost: dict[str, list[str]] = {}
        for section, _, control in behind.index:
            lost.setdefault(control, []).append(section)
        named = "; ".join(f"{control}: {', '.join(sections)}" for control, sections in lost.items())
        told.append(
            f"{describe(merge).label} is clearly ahead in {len(ahead)} of {len(own)} comparisons with a control and clearly behind "
            f"in {len(behind)}{f' ({named})' if named else ''}."
        )
    return " ".join(told)


def headline(table: pd.DataFrame) -> dict[str, str]:
    """Number and caption for the page's card, of the last learned merge."""
    merge = table.index.get_level_values("learned")[-1]
    own = table.xs(merge, level="learned")
    sections = own.index.get_level_values("section").nunique()
    return {
        "number": f"{(own['verdict'] == 'better').sum()} of {len(own)}",
        "caption": f"comparisons with a control that {describe(merge).label} clearly wins, over {sections} "
        f"section{'s' if sections > 1 else ''} (paired tests, Holm over {len(table)})",
    }


def _by_method(records: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    found: dict[str, list[RunRecord]] = {}
    for record in records:
        found.setdefault(record.method, []).append(record)
    return found


def _score(records: Sequence[RunRecord]) -> float:
    return sum(r.scores["right"] for r in records) / len(records)
