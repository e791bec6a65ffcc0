"""What other people's code computes on small inputs, and how far our methods are from it: the facts behind a test and a page.

The values (`oracle_values/`) are the output of the named function of the named repository at the named commit, in float64 where
that code allows, saved in fp32; no code of theirs is here. A file is a case: input/A0, input/B0, … (scaling 1; input/X tokens),
and values by keys such as "mergekit.ties[density=0.5,weight=1]". MATCHES and DRAWN say which method gives which value, and how;
WITHOUT names the methods for which there is none.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lab.lora.adapter import LoraAdapter, LoraFactors
from lab.lora.stacked import attach
from lab.merging.coefficients import concatenate
from lab.merging.merge import merge, merge_full_rank
from lab.merging.methods.della import magprune
from lab.merging.methods.lora_lego import centroids
from lab.merging.methods.lorahub import weighted
from lab.merging.methods.regmean import least_squares, shrink
from lab.merging.pruning import elect_and_merge, keep_count
from lab.merging.registry import METHODS, complete_parameters, get_method

VALUES = Path(__file__).parent / "oracle_values"
CASES = ("small", "three", "unequal", "correlated")
EQUAL = 2e-6  # of the largest entry: under it, two values are one
DRAWS = 1000  # of a method that draws at random; theirs are 2,000

SOURCES = {  # by the beginning of a value's key: repository and commit
    "cs": ("apanariello4/core-space-merging", "85176fab749578b0b54a027ea89495846e79757d"),
    "ctm": ("ZhengbaoHe/compress-then-merge", "6017d1e5fc293717aacc215d0e42b9f3d75eda86"),
    "derived": ("apanariello4/core-space-merging", "85176fab749578b0b54a027ea89495846e79757d"),
    "fb": ("tanganke/fusion_bench", "54c9e8c9d9621620c720452cd8533332a32d3689"),
    "mergekit": ("arcee-ai/mergekit", "a6e402884ba9bc30da7f23e8304a35f19485de95"),
    "mr": ("apanariello4/merge-and-rebase", "345c5704b846762c892f0026843adb8129c78a40"),
    "nsc": ("wonyoung01/nsc_merging", "412098bda9b1126b0e054e2d6970e9014ef7b90e"),
    "peft": ("huggingface/peft", "v0.21.2"),
    "pico": ("yixuantt/Pico", "1f1db1e00db24ded89e7b7e237bf85cfcb24b8eb"),
    "ram": ("r-three/realistic-adaptive-merging", "cfc70dfd4682ea7772088c6a8f276ab8c0f0f206"),
    "robustmerge": ("AuroraZengfh/RobustMerge", "12128022190516cc93a549cc4931112ce4bdcda3"),
}


@dataclass(frozen=True)
class Case:
    """One file of inputs and values. tensors: by key."""

    name: str
    tensors: Mapping[str, Tensor]

    @cached_property
    def factors(self) -> list[LoraFactors]:
        k = sum(key.startswith("input/A") for key in self.tensors)
        return [LoraFactors(self.tensors[f"input/A{i}"], self.tensors[f"input/B{i}"]) for i in range(k)]

    @cached_property
    def deltas(self) -> Tensor:
        """(skills, out, in)."""
        return torch.stack([f.delta_weight() for f in self.factors])

    @property
    def ranks(self) -> list[int]:
        return [f.rank for f in self.factors]

    @property
    def W(self) -> tuple[float, ...]:  # noqa: N802
        """The unequal weights that keys call W."""
        return (0.7, 0.3) if len(self.factors) == 2 else (0.5, 0.3, 0.2)

    def skills(self, scalings: Sequence[float] | None = None) -> list[LoraAdapter]:
        s = scalings or [1.0] * len(self.factors)
        return [LoraAdapter(f"skill {i}", "", {"m": LoraFactors(f.A, f.B, s[i])}) for i, f in enumerate(self.factors)]

    def distance(self, ours: Tensor, key: str) -> float:
        """Largest difference, relative to the largest entry of the value."""
        theirs = self.tensors[key].double()
        return ((ours.double() - theirs).abs().max() / theirs.abs().max()).item()


@cache
def case(name: str) -> Case:
    return Case(name, load_file(VALUES / f"{name}.safetensors"))


def stored(key: str) -> list[Case]:
    """The cases in which there is a value by this key."""
    return [case(name) for name in CASES if key in case(name).tensors]


Setting = Mapping[str, object] | Callable[[Case], Mapping[str, object]]


@dataclass(frozen=True)
class Match:
    """A method and a value that it gives.

    where: file and function of the source. parameters, weights ("W": the case's), scalings: with which the method gives the
    value; parameters may depend on the case, then `setting` says them in words. difference: what the source defines otherwise
    than our method by itself, "" if nothing; `ours` are then the parameters of the method by itself, for how far apart they are.
    compute: gives the value in place of the method's merge; where it is a step that the method does not offer, `offered` is
    False. cases: where these parameters hold.
    """

    method: str
    value: str
    where: str
    parameters: Setting = field(default_factory=dict)
    weights: Sequence[float] | str | None = None
    scalings: Sequence[float] | None = None
    setting: str = ""
    difference: str = ""
    ours: Setting = field(default_factory=dict)
    compute: Callable[["Match", Case], Tensor] | None = None
    offered: bool = True
    cases: Sequence[str] = CASES

    def found(self) -> list[Case]:
        """The cases that have the value."""
        return [one for one in stored(self.value) if one.name in self.cases]

    def weights_of(self, case: Case) -> Sequence[float] | None:
        return case.W if self.weights == "W" else self.weights

    def error(self, case: Case) -> float:
        """How far what should give the value is from it."""
        found = self.compute(self, case) if self.compute else self.merged(case, self.parameters)
        return case.distance(found, self.value)

    def apart(self, case: Case) -> float:
        """How far the method by itself is from the value, where the definitions differ."""
        return case.distance(self.merged(case, self.ours), self.value)

    def merged(self, case: Case, parameters: Setting, weights: Sequence[float] | None = None) -> Tensor:
        """The method's own merge with these parameters, and weights, unless they are the match's."""
        parameters = dict(parameters(case) if callable(parameters) else parameters)
        skills, weights = case.skills(self.scalings), weights or self.weights_of(case)
        if "rank" in parameters or self.method == "svd":
            return merge(self.method, skills, weights, **parameters).delta_weight("m")
        return merge_full_rank(self.method, skills, weights, **parameters).modules["m"].delta_weight()

    def said(self) -> str:
        """With what the method gives the value, in words."""
        parts = [self.setting] if self.setting else []
        if not callable(self.parameters):
            parts += [f"{name} {value}" for name, value in self.parameters.items()]
        if self.weights:
            unequal = "0.7:0.3 or 0.5:0.3:0.2"
            parts.append(f"weights {unequal if self.weights == 'W' else ':'.join(f'{w:g}' for w in self.weights)}")
        if self.scalings:
            parts.append(f"scalings {':'.join(f'{s:g}' for s in self.scalings)}")
        return ", ".join(parts)


@dataclass(frozen=True)
class Drawn:
    """A method that draws at random, and the mean of a source's draws (`value`.mean, with its standard error `value`.se).

    draw: one draw of ours from a generator, to be compared. setting, difference: in words.
    """

    method: str
    value: str
    where: str
    draw: Callable[[Case, torch.Generator], Tensor]
    setting: str
    difference: str = ""

    def z(self, case: Case) -> tuple[float, float]:
        """Root mean square and largest size, over the entries, of (mean of ours − mean of theirs) / its standard error."""
        generator = torch.Generator().manual_seed(1)  # theirs is 0, and the same stream would not be independent
        draws = torch.stack([self.draw(case, generator) for _ in range(DRAWS)]).double()
        theirs, error = (case.tensors[f"{self.value}.{part}"].double() for part in ("mean", "se"))
        spread = (error.square() + draws.var(0) / DRAWS).sqrt()
        z = ((draws.mean(0) - theirs) / spread)[spread > 0]
        return z.square().mean().sqrt().item(), z.abs().max().item()


# Sizes that depend on the case


def one_more(size: Callable[[Case], int], share: float = 0.2, name: str = "density") -> Callable[[Case], dict]:
    """The density at which int(share·n) + 1 of n entries are kept."""
    return lambda case: {name: (int(share * size(case)) + 1.5) / size(case)}


def entries(case: Case) -> int:
    return case.deltas[0].numel()


def directions(stacked: Tensor) -> int:
    return int(torch.linalg.matrix_rank(stacked.double(), rtol=1e-6))


def aligned(case: Case) -> int:
    """Entries of a block of KnOTS."""
    return directions(torch.cat(list(case.deltas), dim=1)) * case.deltas.shape[2]


def core(case: Case) -> int:
    """Entries of a core."""
    return directions(torch.cat([f.B for f in case.factors], dim=1)) * directions(torch.cat([f.A for f in case.factors]))


def whole_core(case: Case) -> int:
    """The same, null directions counted."""
    out_features, in_features = case.deltas.shape[1:]
    return min(out_features, sum(case.ranks)) * min(in_features, sum(case.ranks))


def compressed(case: Case) -> int:
    """The rank that compress-then-merge was given."""
    return 3 if case.name == "unequal" else max(case.ranks)


# What the merge of given adapters does not cover


def as_coefficients(match: Match, case: Case) -> Tensor:
    """A learned method's concatenation, with the coefficients (or, for recycling, the raw values) that the source was given."""
    method = get_method(match.method)
    found = method.function(case.skills(match.scalings), **complete_parameters(method, {}))
    wanted = torch.tensor(match.weights_of(case))
    raw = {"sigmoid": torch.logit, "softmax": torch.log}.get(found.parametrisation, lambda value: value)(wanted)
    with torch.no_grad():
        for row, skill in enumerate(found.skills):
            found.raw[row] = raw[next(i for i, s in enumerate(case.skills()) if skill.startswith(s.name))]
        return concatenate(found.adapters, found(), name="", recipe={}).delta_weight("m")


def as_lorahub(match: Match, case: Case) -> Tensor:
    found = weighted(case.skills(), torch.tensor(match.weights or [1.0] * len(case.factors)), match.parameters["semantics"])
    return found.delta_weight("m")


def as_arrow(match: Match, case: Case) -> Tensor:
    """The router's output for the tokens input/X over a base layer of zeros."""
    model = nn.ModuleDict({"m": nn.Linear(*case.deltas.shape[:0:-1], bias=False, dtype=torch.double)})
    nn.init.zeros_(model["m"].weight)
    with torch.no_grad(), attach(model, case.skills()) as stack:
        get_method("arrow").function(stack, **match.parameters)
        return model["m"](case.tensors["input/X"].double())


def with_ranks_of_the_first(match: Match, case: Case) -> Tensor:
    """Every update cut to the smallest rank, as the source does where it takes so many singular triples of each."""
    skills = [merge("svd", [skill], [1.0], rank=min(case.ranks)) for skill in case.skills()]
    skills = [LoraAdapter(f"skill {i}", "", skill.modules) for i, skill in enumerate(skills)]
    return merge(match.method, skills, match.weights_of(case)).delta_weight("m")


def as_regmean(match: Match, case: Case) -> Tensor:
    """The solution for given Gram matrices, their entries off the diagonal times 0.6."""
    G = [shrink(case.tensors[f"input/G{i}"].double(), 0.6) for i in range(len(case.factors))]
    return least_squares(case.factors, G, sum(G)).delta_weight()


def as_clusters(**clusters: Sequence[int]) -> Callable[[Match, Case], Tensor]:
    """LoRA-LEGO's centroids over the clusters that a source's k-means ended in, where ours finds cheaper ones.

    clusters: by case, the cluster of each rank of all skills.
    """

    def compute(match: Match, case: Case) -> Tensor:
        units_A, units_B = torch.cat([f.A for f in case.factors]), torch.cat([f.B for f in case.factors], dim=1).T
        if case.name not in clusters:
            return match.merged(case, match.parameters)
        found = torch.tensor(clusters[case.name])
        r = sum(case.ranks) / (1 if match.parameters["root"] == "sum" else len(case.factors))
        K = int(found.max()) + 1
        mean = centroids(torch.cat([units_A, units_B], dim=1), [found == j for j in range(K)], "max")
        a, b = mean.split([units_A.shape[1], units_B.shape[1]], dim=1)
        return (r / K) ** 0.5 * b.T @ a

    return compute


def ties_by(count: Callable[[int], int], vote: str, divide: str) -> Callable[[Match, Case], Tensor]:
    """TIES with other steps than ours. count: of n entries, how many are kept. vote: elect by the sum of "weighted" entries, of
    the "entries", or of their "signs" (+ when it is 0). divide: the sum over who agrees by their "signed" weights, their "count",
    or nothing ("none").
    """

    def compute(match: Match, case: Case) -> Tensor:
        deltas = torch.stack([keep_count(delta, count(delta.numel())) for delta in case.deltas.double()])
        weights = torch.tensor(match.weights_of(case) or [1.0] * len(deltas), dtype=torch.double)[:, None, None]
        voters = {"weighted": weights * deltas, "entries": deltas, "signs": deltas.sign()}[vote]
        agree = voters.sign() == torch.where(voters.sum(0) >= 0, 1.0, -1.0)
        total = (weights * deltas * agree).sum(0)
        shares = {"signed": (weights * agree).sum(0), "count": agree.double().sum(0), "none": torch.ones_like(total)}[divide]
        return total / torch.where(shares == 0, 1.0, shares)

    return compute


GTA = "mergekit/merge_methods/generalized_task_arithmetic.py, GTATask.execute"
PEFT = "tuners/lora/model.py, add_weighted_adapter"
CS = "task_merger.py"
RAM = "peft_extension"
MR = "merge/methods/functional"
MERGEKIT = "mergekit/merge_methods"
HALF, FIFTH = {"density": 0.5}, {"density": 0.2}
MORE = "keeps one entry more"
NOT_LEARNED = "as coefficients, not learned"

MATCHES = (
    Match("task_arithmetic", "mergekit.task_arithmetic[weight=W]", GTA, weights="W"),
    Match("cat_static", "peft.cat[weights=1:-0.5]", PEFT, weights=(1, -0.5)),
    *(
        Match(name, "mergekit.task_arithmetic[weight=W]", GTA, weights="W", setting=NOT_LEARNED, compute=as_coefficients)
        for name in ("cat", "cat_softmax", "cat_free", "cat_released", "cat_random", "rank_cat", "adamerging")
    ),
    Match(
        "recycling", "ram.lorahub_layer[raw=0.7:-0.4:0.2,leaky_relu,scaling=2:0.5:1]",
        f"{RAM}/lorahub/layers.py, LorahubLinear.forward", setting="as raw values, not learned", weights=(0.7, -0.4, 0.2),
        scalings=(2, 0.5, 1), compute=as_coefficients,
    ),
    Match(
        "lorahub", "nsc.Linear[sum]", "src/merge_strategy.py, Linear", {"semantics": "factors"}, compute=as_lorahub,
        setting="weights 1, not searched",
    ),
    Match(
        "lorahub", "peft.cat[weights=1:-0.5]", PEFT, {"semantics": "delta"}, (1, -0.5), compute=as_lorahub,
        setting="not searched",
    ),
    Match("linear", "nsc.Linear[sum]", "src/merge_strategy.py, Linear", weights=(1, 1)),
    Match("slerp", "mergekit.slerp[t=0.3]", "mergekit/merge_methods/slerp.py, slerp", weights=(0.7, 0.3)),
    Match("slerp", "mergekit.nuslerp[weight=W,flatten=1]", "mergekit/merge_methods/nuslerp.py, nuslerp", weights=(0.7, 0.3)),
    Match("svd", "peft.svd[weights=W]", PEFT, weights="W"),
    Match("svd", "peft.svd[weights=W,svd_rank=3]", PEFT, {"rank": 3}, "W"),
    Match("svd", "peft.svd[weights=1:-0.5,lora_alpha=8:2]", PEFT, weights=(1, -0.5), scalings=(2, 0.5)),
    Match("svd", "ctm.full.sum+low_rank[rank=r]", f"{CS}, truncated_svd", {"rank": 3}, (1, 1)),
    Match("linear_factors", "peft.linear[weights=W]", PEFT, weights="W"),
    Match("linear_factors", "peft.linear[weights=1:-0.5,lora_alpha=8:2]", PEFT, weights=(1, -0.5), scalings=(2, 0.5)),
    Match("magnitude_prune_factors", "peft.magnitude_prune[weights=W,density=0.5]", PEFT, HALF, "W"),
    Match("ties_factors", "peft.ties[weights=1,density=0.5,total]", PEFT, HALF),
    Match(
        "ties_factors", "peft.ties[weights=W,density=0.2,frequency]", PEFT, {**FIFTH, "majority_sign_method": "frequency"}, "W",
    ),
    Match("ties_factors", "peft.ties[weights=1:-0.5,density=0.5,lora_alpha=8:2]", PEFT, HALF, (1, -0.5), (2, 0.5)),
    Match("ties", "mergekit.ties[density=0.5,weight=1]", GTA, HALF),
    Match("ties", "mergekit.ties[density=0.2,weight=W]", GTA, FIFTH, "W"),
    Match("ties", "mr.ties_merge[topk=0.5,mean]", "merge/methods/functional/ties_merge.py, ties_merge_impl", HALF),
    Match("ties", "ram.ties_stream[density=0.4,equal_int]", "utils/merge_utils.py, ties_stream", {"density": 0.4}),
    Match(
        "ties", "peft.ties_svd[weights=1,density=0.5]", PEFT, lambda case: {**HALF, "rank": max(case.ranks)},
        setting="density 0.5, rank max r",
    ),
    Match(
        "ties", "cs.vector.ties[topK=20,mean]", f"{CS}, VectorMerger.merge", one_more(entries),
        setting="density (int(n/5) + 1)/n", difference=MORE, ours=FIFTH,
    ),
    Match(
        "ties", "cs.full.ties[topK=50]", f"{CS}, _process_ties", one_more(entries, 0.5), setting="density (int(n/2) + 1)/n",
        difference=MORE, ours=HALF,
    ),
    Match(
        "ties", "mergekit.ties[density=0.5,weight=1:-0.5]", GTA, weights=(1, -0.5), ours=HALF, offered=False,
        difference="divides by the signed sum of the weights, which turns a skill of negative weight positive again",
        compute=ties_by(lambda n: n // 2, "weighted", "signed"),
    ),
    Match(
        "ties", "mergekit.ties[density=0.5,weight=W,normalize=0]", GTA, weights="W", ours=HALF, offered=False,
        difference="does not divide by the weights", compute=ties_by(lambda n: n // 2, "weighted", "none"),
    ),
    Match(
        "ties", "mr.ties_merge[topk=0.5,mean,weights=W]", "merge/methods/functional/ties_merge.py, ties_merge_impl", weights="W",
        ours=HALF, offered=False, difference="elects signs before weighting",
        compute=ties_by(lambda n: n // 2, "entries", "signed"),
    ),
    Match(
        "ties", "mr.ties_merge[topk=0.2,sum]", "merge/methods/functional/ties_merge.py, ties_merge_impl", ours=FIFTH,
        offered=False, difference="sums the agreeing instead of averaging them",
        compute=ties_by(lambda n: n // 5, "entries", "none"),
    ),
    Match(
        "ties", "nsc.Ties[topK=0.2,mean,scale=1]", "src/merge_strategy.py, Ties", ours=FIFTH, offered=False,
        difference="elects by the number of skills, and rounds the number kept",
        compute=ties_by(lambda n: round(0.2 * n), "signs", "signed"),
    ),
    Match(
        "ties", "ram.ties_stream[density=0.4,equal_frac]", "utils/merge_utils.py, ties_stream", ours={"density": 0.4},
        offered=False, difference="a fault: the running sum is divided by k after every skill, so the first counts k^-k",
        weights=(0.25, 0.5), compute=ties_by(lambda n: int(0.4 * n), "entries", "count"),
    ),
    Match("breadcrumbs", "mergekit.breadcrumbs[density=0.9,gamma=0.01,weight=W]", GTA, {"density": 0.9, "gamma": 0.01}, "W"),
    Match("breadcrumbs", "mergekit.breadcrumbs[density=0.5,gamma=0.1,weight=1]", GTA, {"density": 0.5, "gamma": 0.1}, (1, 1)),
    Match("breadcrumbs", "mergekit.breadcrumbs[density=0.95,gamma=0.1,weight=1]", GTA, {"density": 0.95, "gamma": 0.1}, (1, 1)),
    Match(
        "tsv", "mr.tsv_merge[max_rank=r]", "merge/methods/functional/tsv_merge.py, tsv_merge_impl",
        compute=with_ranks_of_the_first,
    ),
    Match("tsv", "mr.tsv_merge[max_rank=r,weights=W]", "merge/methods/functional/tsv_merge.py, tsv_merge_impl", weights="W"),
    Match("tsv", "cs.core.tsv", f"{CS}, get_tsv_delta_w"),
    Match("iso_c", "cs.core.sum+iso", f"{CS}, isotropize_matrix"),
    Match("iso_c", "ctm.full.sum+iso", f"{CS}, isotropize_matrix"),
    Match(
        "knots", "cs.svd.ties[topK=20,mean]", f"{CS}, SVDMerger", one_more(aligned), setting="density (int(n/5) + 1)/n",
        difference=MORE, ours=FIFTH,
    ),
    Match(
        "knots", "mr.knots+ties_merge[topk=0.2,mean]", "merge/subspaces/knots_space.py", {**FIFTH, "blocks": "V"}, ours=FIFTH,
        difference="merges V_i without the singular values",
    ),
    Match(
        "knots", "cs.knots.ties[topK=20]", f"{CS}, get_knots_components", lambda case: {**one_more(aligned)(case), "blocks": "V"},
        ours=FIFTH, setting="blocks V, density (int(n/5) + 1)/n",
        difference=f"merges V_i without the singular values, and {MORE}",
    ),
    Match(
        "core_space", "cs.core.ties[topK=20]", f"{CS}, get_core_matrices",
        lambda case: {"density": (int(whole_core(case) / 5) + 1.5) / core(case)}, setting="density (int(N/5) + 1)/n",
        difference=f"{MORE}, and counts null directions (N with them, n without)", ours=FIFTH,
    ),
    Match(
        "core_space", "mr.core(svd)+ties_merge[topk=0.2,mean]", "merge/subspaces/core_space.py",
        lambda case: {"density": (int(whole_core(case) / 5) + 0.5) / core(case)},
        setting="density int(N/5)/n", difference="counts null directions (N with them, n without)", ours=FIFTH,
    ),
    Match(
        "core_space", "derived.core_space(bases of stacked updates).ties[topK=20]",
        "bases by SVD; merging_functions.py, ties_merging",
        lambda case: {"basis": "updates", "density": (int(whole_core(case) / 5) + 1.5) / core(case)},
        setting="basis updates, density (int(N/5) + 1)/n",
        difference="bases of the stacked updates, which do not depend on the split", ours=FIFTH,
    ),
    Match("pico", "pico.mean[energy_compensation=1]", "pico/pico.py, calibrate_layer, compensate_energy"),
    Match(
        "pico", "pico.mean[energy_compensation=1,A orthonormal]", "pico/pico.py, calibrate_layer, compensate_energy",
        {"basis": "updates"}, difference="the same updates with orthonormal rows of A", ours={},
    ),
    Match(
        "lora_lego", "ctm.lego[lora_rank=r]", f"{CS}, merge_MSUs", {"units": "raw", "root": "sum"},
        ours=lambda case: {"clusters": 4 if case.name == "small" else 3},
        difference="raw units, r summed over the skills; in one case its k-means ended in other clusters, which cost more",
        compute=as_clusters(unequal=[0, 0, 1, 1, 2, 0, 0]),
    ),
    Match(
        "lora_lego", "nsc.LoRA_LEGO[K=r,seed=1]", "src/merge_strategy.py, LoRA_LEGO", {"units": "directions", "root": "mean"},
        difference="clusters directions, averages raw units; 10 Lloyd steps from one start, which is not the least cost",
        compute=as_clusters(small=[0, 1, 2, 2, 3, 0, 1, 1]),
    ),
    Match(
        "arrow", "ram.arrow(X)[top_k=-1,temp=1.0]", f"{RAM}/arrow/layers.py, ArrowLinear.forward",
        {"top_k": 3, "temperature": 1.0}, compute=as_arrow, setting="output for 6 tokens",
    ),
    Match(
        "arrow", "ram.arrow(X)[top_k=2,temp=0.5]", f"{RAM}/arrow/layers.py, ArrowLinear.forward",
        {"top_k": 2, "temperature": 0.5}, compute=as_arrow, setting="output for 6 tokens",
    ),
    Match("wudi", "mr.wudi[closed,ridge=1e-8,float64]", f"{MR}/wudi.py, _closed_form"),
    Match("wudi", "mr.actmerge[ridge=0]", f"{MR}/actmerge.py, actmerge_impl", {"balance": False}),
    Match("model_stock", "mergekit.model_stock[filter_wise=0]", f"{MERGEKIT}/model_stock.py, ModelStockMergeTask.execute"),
    Match(
        "model_stock", "mergekit.model_stock[filter_wise=1]", f"{MERGEKIT}/model_stock.py, ModelStockMergeTask.execute",
        {"per_row": True},
    ),
    Match("karcher", "mergekit.karcher[max_iter=100,tol=1e-9]", f"{MERGEKIT}/karcher.py, karcher_merge_tensors"),
    Match("multislerp", "mergekit.multislerp[weight=1,eps=1e-8]", f"{MERGEKIT}/multislerp.py, multislerp"),
    Match("multislerp", "mergekit.multislerp[weight=W,eps=1e-8]", f"{MERGEKIT}/multislerp.py, multislerp", weights="W"),
    Match("nuslerp", "mergekit.nuslerp[weight=W,flatten=0,row_wise=0]", f"{MERGEKIT}/nuslerp.py, nuslerp", weights="W"),
    Match("nuslerp", "mergekit.nuslerp[weight=W,flatten=1]", f"{MERGEKIT}/nuslerp.py, nuslerp", {"per": "module"}, "W"),
    Match("cart", "mr.cart_merge[rank=0.5,scale=0.5]", f"{MR}/cart_merge.py, cart_merge_impl", {"share": 0.5, "of": "sides"}),
    Match(
        "cart", "mr.cart_merge[rank=0.1,scale=1]", f"{MR}/cart_merge.py, cart_merge_impl",
        {"share": 0.1, "of": "sides", "scale": 1.0},
    ),
    Match("cart", "cs.full.cart[rank=0.25,scale=0.5]", f"{CS}, get_cart_delta_w", {"of": "sides"}),
    Match("cart", "cs.core.cart[rank=0.25,scale=0.5]", f"{CS}, get_cart_delta_w"),
    Match(
        "iso_cts", "ctm.full.iso-cts[lora_rank=2r]", f"{CS}, iso_cts",
        lambda case: {"common": 1 - len(case.ranks) / sum(case.ranks)}, setting="common 1 - k/Σr", cases=("small", "three"),
    ),
    Match(
        "iso_cts", "ctm.full.iso-cts[lora_rank=2r]", f"{CS}, iso_cts", {"common": 4 / 6, "directions": 6},
        cases=("unequal", "correlated"),
    ),
    Match("svc", "fb.svc[base=sum,alpha=1]", "fusion_bench/method/singular_value_calibration/utils.py"),
    Match(
        "svc", "fb.svc[base=0.3*sum,alpha=0.5]", "fusion_bench/method/singular_value_calibration/utils.py", {"alpha": 0.5},
        (0.3, 0.3),
    ),
    Match("sce", "mergekit.sce[select_topk=0.5]", f"{MERGEKIT}/sce.py, sce_merge", HALF),
    Match("sce", "mergekit.sce[select_topk=1]", f"{MERGEKIT}/sce.py, sce_merge", {"density": 1.0}),
    Match(
        "regmean", "fb.regmean[reduce_non_diagonal_ratio=0.6]",
        "fusion_bench/method/regmean/regmean.py, merging_with_regmean_weights", setting="Gram matrices given, ratio 0.6",
        compute=as_regmean,
    ),
    *(
        Match(
            "compress_then_merge", f"ctm.{space}.sum[rank=r,beta={beta:g}]", f"{CS}, get_low_rank_components",
            lambda case, beta=beta: {"norms": beta, "size": compressed(case)}, setting=f"size r, norms {beta:g}, weights 1",
            compute=lambda match, case: match.merged(case, match.parameters, [1.0] * len(case.ranks)),
        )
        for space, beta in (("low_rank_core", 0.0), ("low_rank_core", 1.0), ("low_rank", 0.0))
    ),
    Match(
        "compress_then_merge", "ctm.low_rank_core.ties[rank=r,beta=0.25,topK=25]", f"{CS}, get_low_rank_components_in_core_space",
        lambda case: {"norms": 0.25, "size": compressed(case), **one_more(lambda c: compressed(c) ** 2, 0.25, "trim")(case)},
        setting="size r, norms 0.25, trim (int(r²/4) + 1)/r²", difference=MORE,
        ours=lambda case: {"norms": 0.25, "size": compressed(case), "trim": 0.25},
    ),
)  # fmt: skip


def _dense(name: str, scale: float, weights: str | None, **parameters) -> Callable[[Case, torch.Generator], Tensor]:
    def draw(case: Case, generator: torch.Generator) -> Tensor:
        w = torch.tensor(case.W if weights else [1.0] * len(case.factors))
        return scale * METHODS[name].function(case.deltas, w, generator=generator, **parameters)

    return draw


def _factors(name: str, weights: str | None) -> Callable[[Case, torch.Generator], Tensor]:
    def draw(case: Case, generator: torch.Generator) -> Tensor:
        w = torch.tensor(case.W if weights else [1.0] * len(case.factors))
        A, B = [f.A for f in case.factors], [f.B for f in case.factors]
        a, b = METHODS[name].function(A, B, torch.ones(len(A)), w, density=0.5, generator=generator)
        return b @ a

    return draw


def _della_unscaled(case: Case, generator: torch.Generator) -> Tensor:
    kept = torch.stack([magprune(delta, 0.5, 0.15, generator) != 0 for delta in case.deltas])
    return elect_and_merge(case.deltas * kept, torch.ones(len(case.deltas)), normalize=True)


SPARSIFY = "mergekit/sparsify.py, bernoulli"
UNSCALED = "leaves the kept entries as they are (rescale=0), here too"
DRAWN = (
    Drawn(
        "dare_linear", "mergekit.dare_linear[density=0.5,weight=1,rescale=0]", SPARSIFY,
        _dense("dare_linear", 0.5, None, density=0.5), "density 0.5, times 0.5", UNSCALED,
    ),
    Drawn(
        "dare_ties", "mergekit.dare_ties[density=0.5,weight=W,rescale=0]", SPARSIFY, _dense("dare_ties", 0.5, "W", density=0.5),
        "density 0.5, times 0.5", UNSCALED,
    ),
    Drawn(
        "dare_linear_factors", "peft.dare_linear[weights=W,density=0.5]", "utils/merge_utils.py, dare_linear",
        _factors("dare_linear_factors", "W"), "density 0.5",
    ),
    Drawn(
        "dare_ties_factors", "peft.dare_ties[weights=1,density=0.5]", "utils/merge_utils.py, dare_ties",
        _factors("dare_ties_factors", None), "density 0.5",
    ),
    Drawn(
        "della", "mergekit.della[density=0.5,epsilon=0.15,weight=1,rescale=0]", "mergekit/sparsify.py, della_magprune",
        _della_unscaled, "density 0.5, epsilon 0.15, survivors not divided by their probability", UNSCALED,
    ),
)  # fmt: skip

# mergekit's della_magprune, 48,000 rows of 16, density 0.5, epsilon 0.15: how often an entry stays, from the row's smallest on.
DELLA_KEPT = (0.351, 0.371, 0.392, 0.411, 0.427, 0.449, 0.474, 0.491, 0.509, 0.530, 0.550, 0.568, 0.590, 0.613, 0.629, 0.651)

WITHOUT = {  # why there is no value for a method
    "moe": "routers learn; its shares are compared with mergoo's formula in the tests",
    "xlora": "routers learn; compared with PEFT itself, run in the tests",
    "lora_flow": "routers learn; compared with the paper's formula in the tests",
    "iteris": "reads what the base's modules read; compared with the paper's formula in the tests",
    "nsc": "its coefficients learn; compared with the paper's formula in the tests",
    "pi_tuning": "learns a skill's factors too; compared with the paper's formula in the tests",
    "gen_know_sub": "a router over updates less a general one; compared with Arrow in the tests",
    "prompt_router": "routers learn; its decisions are tested by what they must leave untouched",
    "remix": "routers learn, and no code of its authors was found; compared with the paper's formulas in the tests",
}

# Values that no method here gives, by the part of their keys after the source.
NOT_HERE = {
    "robustmerge": "RobustMerge", "pcb": "PCB-Merging", "dc_merge": "DC-Merge", "geo_core": "Geometric core",
    "wudi[gd": "WUDI by 300 steps of descent", "nearswap": "Nearswap", "arcee_fusion": "Arcee Fusion", "ramplus": "RAM+",
    "breadcrumbs_ties": "Breadcrumbs with elected signs", "ties_merge[topk=0.5,max]": "TIES that takes the largest",
    "cs.svd.ties[topK=50,sum]": "KnOTS that sums",
    "regmean": "RegMean with the Gram matrices as they are, which single precision solves to 2e-5",
}  # fmt: skip


def values() -> list[str]:
    """The keys of all values, of drawn ones without .mean and .se."""
    keys = {key for name in CASES for key in case(name).tensors if not key.startswith("input/")}
    return sorted({key.removesuffix(".mean").removesuffix(".se") for key in keys})


def not_here() -> dict[str, list[str]]:
    """What is computed by others and by no method here: name -> keys."""
    used = {match.value for match in (*MATCHES, *DRAWN)}
    found: dict[str, list[str]] = {}
    for key in values():
        if key not in used:
            name = next((name for part, name in NOT_HERE.items() if part in key), key)
            found.setdefault(name, []).append(key)
    return found
