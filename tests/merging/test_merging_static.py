"""Every static method: the properties all must have, PEFT's combination types, and pruning on the updates."""

import copy
import inspect
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.model import LoraModel
from peft.utils.merge_utils import random_pruning

from lab.errors import LabError
from lab.lora.adapter import LoraAdapter, LoraFactors, module_names
from lab.lora.peft_io import from_peft, to_peft
from lab.merging import METHODS, factor_delta, merge, merge_full_rank, pruning, schema, seeded_generator
from lab.merging.methods.breadcrumbs import breadcrumbs
from lab.merging.methods.dare import dare_linear
from lab.merging.methods.della import della
from lab.merging.methods.factorwise import dare_linear_factors, linear_factors, ties_factors
from lab.merging.methods.ties import ties
from lab.merging.pruning import CHUNK, drop_randomly, elect_and_merge, keep_largest
from lab.merging.truncation import EXACT, is_exact
from tests.merging.test_merging_cat import same_update, sets_of_adapters, weighted_sum
from tests.tiny_models import adapter, llama, peft_model, three_skills, two_skills

STATIC = [name for name, method in METHODS.items() if method.kind not in ("coefficients", "router", "search", "solve")]
FACTORWISE = {
    "linear_factors",
    "ties_factors",
    "dare_linear_factors",
    "dare_ties_factors",
    "magnitude_prune_factors",
}
SPLIT_MATTERS = {name for name in STATIC if METHODS[name].depends_on_split}
# Of them, those that see too how long A is against B: LoRA-LEGO balances its units.
LENGTHS_MATTER = SPLIT_MATTERS - {"lora_lego"}
# Flattens the spectrum of any update, also of a single one.
NOT_THE_SKILL_ITSELF = {"iso_c", "iso_cts"}
REFUSALS = {(name, "3 skills"): "exactly two" for name, method in METHODS.items() if method.max_skills == 2}


@pytest.fixture(scope="module")
def base():
    return llama()


def all_kept(name):
    """Parameters under which a method prunes nothing."""
    return {"density": 1.0} if "density" in {p.name for p in schema(name)} else {}


def one_module(*deltas):
    """Adapters with one module whose updates are the given matrices."""
    return [
        LoraAdapter(f"s{i}", "", {"m": factor_delta(delta, min(delta.shape))[0]})
        for i, delta in enumerate(deltas)
    ]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# All static methods


def test_the_static_methods_are_there():
    assert set(STATIC) >= FACTORWISE | {
        *("cat_static", "linear", "task_arithmetic", "svd", "slerp", "ties", "dare_linear", "dare_ties"),
        *("della", "breadcrumbs", "knots", "core_space", "tsv", "iso_c", "pico", "lora_lego"),
    }


CASES = {
    "2 skills": lambda base: [adapter(base, "a", 1), adapter(base, "b", 2)],
    "3 skills": lambda base: [adapter(base, "a", 1), adapter(base, "b", 2), adapter(base, "c", 3)],
    "unequal rank": lambda base: [
        adapter(base, "a", 1, r=2, rank_pattern={"layers.0.self_attn.q_proj": 5}),
        adapter(base, "b", 2, r=3, lora_alpha=1),
    ],
    "unequal modules": lambda base: [
        adapter(base, "a", 1, target_modules=["q_proj", "down_proj"]),
        adapter(base, "b", 2, target_modules=["q_proj", "up_proj"]),
    ],
    "rsLoRA": lambda base: [adapter(base, "a", 1, use_rslora=True), adapter(base, "b", 2)],
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", STATIC)
def test_passes_or_refuses_by_name(base, name, case, record_property):
    """The table method × kind of input: each cell is a merge or a named refusal."""
    adapters = CASES[case](base)
    if (name, case) in REFUSALS:
        with pytest.raises(LabError, match=f"{name}.*{REFUSALS[name, case]}"):
            merge(name, adapters)
        record_property("outcome", f"refused: {REFUSALS[name, case]}")
        return
    merged = merge(name, adapters)
    assert list(merged.modules) == module_names(adapters)
    for module, factors in merged.modules.items():
        inputs = [a.modules[module] for a in adapters if module in a.modules]
        assert factors.shape == inputs[0].shape and factors.rank <= sum(f.rank for f in inputs)
        assert factors.delta_weight().norm() > 0
    if case == "rsLoRA" and name not in SPLIT_MATTERS:  # the flag is only another way to write a scaling
        flat = {m: LoraFactors(f.A, f.scaling * f.B) for m, f in adapters[0].modules.items()}
        same_update(merge(name, [LoraAdapter("a", "", flat), adapters[1]]), merged, 1e-4)
    record_property("outcome", "passes")


@pytest.mark.parametrize("name", sorted(set(STATIC) - NOT_THE_SKILL_ITSELF))
def test_one_skill_at_weight_one_and_density_one_is_that_skill(base, name):
    for skill in three_skills(base):
        same_update(merge(name, [skill], [1.0], **all_kept(name)), skill, 2e-5)


@pytest.mark.parametrize("name", STATIC)
def test_order_of_skills_is_irrelevant(base, name):
    skills, weights = (two_skills, [0.3, 0.9]) if METHODS[name].max_skills == 2 else (three_skills, [0.3, 0.9, 0.6])
    adapters = skills(base)
    turned = merge(name, adapters[1:] + adapters[:1], weights[1:] + weights[:1])
    assert turned.digest() == merge(name, adapters, weights).digest()


@settings(max_examples=10, deadline=None)
@given(adapters=sets_of_adapters(), gauge=st.sampled_from([0.25, 4.0]), seed=st.integers(0, 9))
def test_scale_gauge_is_irrelevant(adapters, gauge, seed):
    """(A·c, B/c) is the same update; powers of two, so that rounding cannot move an entry across a cut."""
    weights = [0.5, 1.0, 0.25, 0.75][: len(adapters)]
    moved = {m: LoraFactors(f.A * gauge, f.B / gauge, f.scaling) for m, f in adapters[0].modules.items()}
    turned = [LoraAdapter(adapters[0].name, "", moved), *adapters[1:]]
    for name in sorted(set(STATIC) - LENGTHS_MATTER):
        if len(adapters) > (METHODS[name].max_skills or 9):
            continue
        options = {"seed": seed} if METHODS[name].draws else {}
        same_update(merge(name, turned, weights, **options), merge(name, adapters, weights, **options), 1e-3)


def test_where_the_split_into_factors_matters(base):
    a, b = adapter(base, "a", 1), adapter(base, "b", 2)
    moved = LoraAdapter("a", "", {m: LoraFactors(4 * f.A, f.B / 4, f.scaling) for m, f in a.modules.items()})
    for name in LENGTHS_MATTER:
        before, after = merge(name, [a, b]), merge(name, [moved, b])
        assert any((before.delta_weight(m) - after.delta_weight(m)).norm() > 1e-3 for m in before.modules)


@pytest.mark.parametrize("name", [name for name in STATIC if METHODS[name].draws])
def test_same_seed_gives_the_same_result(base, name):
    options = {"prune": "random"} if "prune" in {p.name for p in schema(name)} else {}
    digests = [merge(name, two_skills(base), seed=seed, **options).digest() for seed in (1, 1, 2)]
    assert digests[0] == digests[1]
    if name not in ("lora_lego", "svc"):  # svc draws where the merge before it does; other starts of k-means may well end in the same clusters
        assert digests[0] != digests[2]


@pytest.mark.parametrize("name", STATIC)
def test_values_out_of_range_give_one_clear_error(base, name):
    for parameter in schema(name):
        for bound, beyond in ((parameter.low, -1), (parameter.high, 1)):
            if abs(bound) < float("inf"):
                with pytest.raises(LabError, match=f"^{name}: {parameter.name} is .*; give a number from"):
                    merge(name, two_skills(base), **{parameter.name: parameter.type(bound + beyond)})


def test_density_zero_is_the_zero_update_where_peft_divides_by_zero(base):
    """Peer defect (documented as the pinned PEFT has it): DARE at density 0 gives NaN."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert random_pruning(torch.ones(3), 0.0, rescale=True).isnan().all()
    for name in STATIC:
        if all_kept(name):
            merged = merge(name, two_skills(base), density=0.0)
            assert all(merged.delta_weight(module).norm() == 0 for module in merged.modules), name


# PEFT's combination types


def peft_pair(base, second=None, **first):
    """A PEFT model with two adapters of random factors, unequal scalings and modules; and both as ours."""
    model = peft_model(base, 1, **{"lora_alpha": 2, "target_modules": ["q_proj", "v_proj"]} | first)
    settings = {"r": 4, "lora_alpha": 6, "use_rslora": True, "target_modules": ["q_proj", "up_proj"]}
    torch.manual_seed(2)
    config = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **settings | (second or {}))
    model.add_adapter("b", config)
    return model, [from_peft(model, "default", name="a"), from_peft(model, "b", name="b")]


def add_weighted(model, weights, combination_type, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # at density 1 PEFT says that it prunes nothing
        model.add_weighted_adapter(
            ["default", "b"], weights, "merged", combination_type=combination_type, **options
        )
    return from_peft(model, "merged", name="merged")


@pytest.fixture
def same_draws(monkeypatch):
    """Let PEFT draw each module's masks from the stream that our seed gives to that module."""

    def patch(model, seed):
        names = {layer: name.removeprefix("base_model.model.") for name, layer in model.named_modules()}

        def seeded(original):
            def merge_one_module(self, *args, **options):
                layer = next(arg for arg in args if isinstance(arg, LoraLayer))
                torch.manual_seed(seeded_generator(seed, names[layer]).initial_seed())
                return original(self, *args, **options)

            return merge_one_module

        for form in ("_generalized_task_arithmetic", "_svd_generalized_task_arithmetic"):
            attribute = f"{form}_weighted_adapter"
            monkeypatch.setattr(LoraModel, attribute, seeded(getattr(LoraModel, attribute)))

    return patch


@pytest.mark.parametrize("weights", [[1.0, 1.0], [0.3, 1.7], [1.2, -0.4]])
@pytest.mark.parametrize(
    "name, options",
    [
        ("linear", {}),
        *[("magnitude_prune", {"density": density}) for density in (0.0, 0.3, 1.0)],
        *[("ties", {"density": density}) for density in (0.3, 1.0)],
        ("ties", {"density": 0.6, "majority_sign_method": "frequency"}),
        ("dare_linear", {"density": 0.6}),
        ("dare_ties", {"density": 0.6}),
        ("dare_ties", {"density": 0.6, "majority_sign_method": "frequency"}),
    ],
)
def test_factor_methods_are_pefts(base, same_draws, name, options, weights):
    model, adapters = peft_pair(base)
    same_draws(model, seed=7)
    seed = {"seed": 7} if name.startswith("dare") else {}
    ours = merge(f"{name}_factors", adapters, weights, **options, **seed)
    same_update(ours, add_weighted(model, weights, name, **options))


def test_svd_is_pefts_at_the_largest_rank(base):
    model, adapters = peft_pair(base, second={"r": 3})
    ours = merge("svd", adapters, [0.4, -1.1])
    same_update(ours, add_weighted(model, [0.4, -1.1], "svd"))
    assert ours.rank == 4 and 0 < ours.recipe["discarded_energy"]["total"] < 1
    same_update(merge("svd", adapters, rank=7), merge("cat_static", adapters))


@pytest.mark.parametrize("name, density", [("ties", 0.4), ("dare_linear", 0.6)])
def test_methods_on_updates_are_pefts_svd_forms_at_weights_one(base, same_draws, name, density):
    """At equal weights it does not matter that PEFT elects before weighting and divides by a count."""
    both = {"target_modules": ["q_proj", "v_proj"]}
    model, adapters = peft_pair(base, second=both, **both)
    same_draws(model, seed=3)
    seed = {"seed": 3} if name.startswith("dare") else {}
    ours = merge(name, adapters, [1, 1], density=density, rank=4, **seed)
    same_update(ours, add_weighted(model, [1.0, 1.0], f"{name}_svd", density=density))


def test_peft_refuses_unequal_ranks_where_a_lower_one_counts_as_padded_with_zeros_here(base):
    model, adapters = peft_pair(base, second={"r": 2, "lora_alpha": 3, "use_rslora": False})
    with pytest.raises(ValueError, match="same r"):
        add_weighted(model, [0.5, 0.5], "linear")
    padded = {m: LoraFactors(*pad(f, 4), f.scaling) for m, f in adapters[1].modules.items()}
    same_update(
        merge("linear_factors", [adapters[0], LoraAdapter("b", "", padded)]),
        merge("linear_factors", adapters),
    )


def pad(factors, rank):
    A, B = torch.zeros(rank, factors.shape[1]), torch.zeros(factors.shape[0], rank)
    A[: factors.rank], B[:, : factors.rank] = factors.A, factors.B
    return A, B


def test_peft_silently_keeps_an_existing_adapter_where_a_taken_name_is_refused_here(base):
    """Peer defect (documented as the pinned PEFT has it)."""
    model, adapters = peft_pair(base)
    first = add_weighted(model, [1.0, 1.0], "cat")
    again = add_weighted(model, [0.0, 5.0], "cat")
    assert again.digest() == first.digest()
    live = to_peft(copy.deepcopy(base), adapters[0], "merged")
    with pytest.raises(LabError, match="has an adapter 'merged' already"):
        to_peft(live, adapters[1], "merged")


def test_peft_does_not_prune_a_single_adapter_where_density_counts_for_one_skill_too(base):
    """Peer defect (documented as the pinned PEFT has it): one adapter is always merged linearly."""
    model, adapters = peft_pair(base)
    model.add_weighted_adapter(["default"], [1.0], "merged", combination_type="ties", density=0.2)
    same_update(from_peft(model, "merged", name="merged"), adapters[0])
    ours = merge("ties_factors", adapters[:1], density=0.2)
    assert any((ours.delta_weight(m) - adapters[0].delta_weight(m)).norm() > 0.01 for m in ours.modules)


def test_peft_elects_signs_before_weighting_and_mergekit_after():
    one = torch.ones(1, 1)
    weights = torch.tensor([0.1, 1.0])
    A, B = ties_factors([one, one], [one, -0.6 * one], torch.ones(2), weights, density=1.0)
    assert B.item() == pytest.approx(0.1**0.5)  # 1 − 0.6 > 0: the first wins
    merged = ties(torch.stack([one, -0.6 * one]), weights, density=1.0)
    assert merged.item() == pytest.approx(-0.6)  # 0.1 − 0.6 < 0: the second wins


def test_linear_factors_is_not_the_weighted_sum(base):
    adapters = [adapter(base, "a", 1), adapter(base, "b", 2)]
    merged = merge("linear_factors", adapters, [0.5, 0.5])
    module = next(iter(merged.modules))
    cross = merged.delta_weight(module) - weighted_sum(adapters, [0.5, 0.5], module)
    a, b = (x.modules[module] for x in adapters)
    torch.testing.assert_close(cross, a.B @ b.A + b.B @ a.A)  # √(0.5·2) = 1 each


# Sums and the arc


def test_task_arithmetic_adds_the_updates(base):
    adapters = three_skills(base)
    same_update(merge("task_arithmetic", adapters), merge("cat_static", adapters, [1, 1, 1]))


def test_slerp_keeps_the_norm_and_the_angle():
    torch.manual_seed(0)
    first, second = torch.randn(6, 5), torch.randn(6, 5)
    second *= first.norm() / second.norm()
    adapters = one_module(first, second)
    middle = merge("slerp", adapters).delta_weight("m")
    assert middle.norm().item() == pytest.approx(first.norm().item(), rel=1e-5)
    quarter = merge("slerp", adapters, [3, 1]).delta_weight("m")

    def angle(x, y):
        return torch.acos((x * y).sum() / (x.norm() * y.norm())).item()

    assert angle(first, middle) == pytest.approx(angle(first, second) / 2, rel=1e-4)
    assert angle(first, quarter) == pytest.approx(angle(first, second) / 4, rel=1e-4)
    same_update(merge("slerp", adapters, [1, 0]), adapters[0])
    same_update(merge("slerp", one_module(first, 2 * first), [1, 1]), one_module(1.5 * first)[0])  # colinear
    for weights in ([1, -0.5], [0, 0]):
        with pytest.raises(LabError, match="slerp: the weights are"):
            merge("slerp", adapters, weights)


# Pruning on the updates


@settings(max_examples=25, deadline=None)
@given(density=st.floats(0, 1), n=st.integers(1, 40), seed=st.integers(0, 99))
def test_keep_largest_keeps_an_exact_count_of_the_largest(density, n, seed):
    tensor = torch.randn(1, n, generator=generator(seed))
    kept = keep_largest(tensor, density)
    chosen = kept != 0
    assert chosen.sum() == int(density * n)
    assert torch.equal(kept[chosen], tensor[chosen])
    if 0 < chosen.sum() < n:
        assert tensor[chosen].abs().min() > tensor[~chosen].abs().max()


def test_ties_by_hand():
    deltas = torch.tensor([[[4.0, -3.0, 0.1, 2.0]], [[2.0, 5.0, -0.2, 0.3]]])
    merged = ties(deltas, torch.tensor([0.5, 0.5]), density=0.5)  # keeps 4, −3 and 2, 5
    torch.testing.assert_close(merged, torch.tensor([[3.0, 5.0, 0.0, 0.0]]))
    merged = ties(deltas, torch.tensor([2.0, 1.0]), density=0.5, scale=2.0)
    torch.testing.assert_close(merged, 2 * torch.tensor([[10 / 3, -3.0, 0.0, 0.0]]))


def test_a_negative_weight_subtracts_a_skill():
    deltas = torch.tensor([[[1.0, 0.0]], [[0.0, 3.0]]])
    merged = elect_and_merge(deltas, torch.tensor([1.0, -1.0]), normalize=True)
    assert merged.tolist() == [[1.0, -3.0]]


def mean_of(draw, draws=3000):
    total = sum(draw(generator(seed)) for seed in range(draws))
    return total / draws


def test_dare_and_magprune_are_unbiased_over_draws():
    deltas = torch.randn(2, 3, 5, generator=generator(1))
    weights = torch.tensor([0.4, 1.3])
    expected = torch.einsum("k,koi->oi", weights, deltas)
    mean = mean_of(lambda g: dare_linear(deltas, weights, density=0.4, generator=g))
    torch.testing.assert_close(mean, expected, rtol=0, atol=0.2)
    mean = mean_of(lambda g: della(deltas[:1], weights[:1], density=0.5, epsilon=0.3, generator=g))
    torch.testing.assert_close(mean, deltas[0], rtol=0, atol=0.2)
    # On factors: the masks of A and of B are independent, so the product is unbiased too.
    A, B, scalings = [torch.randn(2, 5, generator=generator(2))] * 2, [torch.randn(3, 2)] * 2, torch.ones(2)
    A_sum, B_sum = linear_factors(A, B, scalings, weights)

    def product(g):
        a, b = dare_linear_factors(A, B, scalings, weights, density=0.7, generator=g)
        return b @ a

    mean = mean_of(product)
    assert ((mean - B_sum @ A_sum).norm() / (B_sum @ A_sum).norm()).item() < 0.1


def test_dare_keeps_the_density_on_average_and_rescales_exactly():
    tensor = torch.randn(200, 200, generator=generator(1))
    kept = drop_randomly(tensor, 0.3, generator(2))
    chosen = kept != 0
    assert chosen.float().mean().item() == pytest.approx(0.3, abs=0.01)
    torch.testing.assert_close(kept[chosen], tensor[chosen] / 0.3)


def test_della_keeps_large_entries_of_a_row_more_often_and_rescales_by_the_probability():
    row = torch.linspace(1, 2, 5)[None]  # probabilities 0.2, 0.35, 0.5, 0.65, 0.8
    kept = torch.stack(
        [
            della(row[None], torch.ones(1), density=0.5, epsilon=0.3, generator=generator(seed))
            for seed in range(2000)
        ]
    )
    expected = torch.tensor([[0.2, 0.35, 0.5, 0.65, 0.8]])
    torch.testing.assert_close((kept != 0).float().mean(0), expected, rtol=0, atol=0.05)
    values = kept.max(0).values
    torch.testing.assert_close(values, row / expected)
    with pytest.raises(LabError, match="choose a smaller epsilon"):
        della(row[None], torch.ones(1), density=0.1, generator=generator())


@pytest.mark.parametrize(
    "density, gamma, kept",
    [(0.5, 0.2, range(2, 7)), (0.9, 0.4, range(1, 10)), (0.4, 0.0, range(4)), (1.0, 0.3, range(10))],
)
def test_breadcrumbs_drops_the_largest_and_the_smallest(density, gamma, kept):
    """At gamma 0 mergekit's slice is empty and the whole update is lost; here only small entries go."""
    delta = torch.tensor([[10.0, -9, 8, -7, 6, -5, 4, -3, 2, -1]])
    merged = breadcrumbs(delta[None], torch.ones(1), density=density, gamma=gamma)
    assert merged.nonzero()[:, 1].tolist() == list(kept)
    assert torch.equal(merged[0, list(kept)], delta[0, list(kept)])


# Large updates: thresholds without sorting, in chunks


LARGE = (600, 500)
assert LARGE[0] * LARGE[1] > 2 * CHUNK


def many_equal(seed):
    """Whole numbers, so that most entries have equals, many at any threshold; the last hundred rows are zeros."""
    delta = torch.randint(-40, 41, LARGE, generator=generator(seed)).float()
    delta[-100:] = 0
    return delta


def misleading():
    """Every entry that a sample of every fifth one may see is tiny."""
    delta = torch.randn(*LARGE, generator=generator(1))
    delta.view(-1)[::5] *= 1e-6
    return delta


@pytest.mark.parametrize("delta", [torch.randn(*LARGE, generator=generator(3)), many_equal(4), misleading(), torch.zeros(LARGE)])
@pytest.mark.parametrize("density", [0.0, 1e-5, 0.2, 0.77, 1.0])
def test_a_large_update_keeps_its_largest_entries_of_equal_ones_the_first(delta, density):
    entries = delta.flatten()
    order = entries.abs().argsort(descending=True, stable=True)
    expected = torch.zeros_like(entries)
    kept = order[: int(density * len(entries))]
    expected[kept] = entries[kept]
    assert torch.equal(keep_largest(delta, density).flatten(), expected)
    outliers = min(int(0.1 * len(entries)), len(entries) - len(kept))
    expected = torch.zeros_like(entries)
    middle = order[outliers : outliers + len(kept)]
    expected[middle] = entries[middle]
    assert torch.equal(breadcrumbs(delta[None], torch.ones(1), density=density, gamma=0.1).flatten(), expected)


@pytest.mark.parametrize("shape", [(3, 4), LARGE])
@pytest.mark.parametrize("normalize", [True, False])
def test_election_takes_per_entry_the_skills_of_the_heavier_sign(shape, normalize):
    deltas = torch.stack([keep_largest(torch.randn(*shape, generator=generator(seed)), 0.6) for seed in range(3)])
    weights = torch.tensor([0.5, -1.0, 0.75])
    weighted = weights[:, None, None] * deltas
    positive, negative = weighted.clamp(min=0).sum(0), weighted.clamp(max=0).sum(0)
    up = weighted.sum(0) >= 0
    expected = torch.where(up, positive, negative)
    if normalize:
        agree = torch.where(up, weighted > 0, weighted < 0)
        expected /= (weights.abs()[:, None, None] * agree).sum(0).clamp(min=1e-9)
    torch.testing.assert_close(elect_and_merge(deltas, weights, normalize=normalize), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_random_drops_are_those_of_bernoulli_in_any_size(dtype):
    """Merges that are on record drew their masks so."""
    deltas = torch.randn(2, *LARGE, generator=generator(1), dtype=dtype)
    mask = torch.bernoulli(torch.full_like(deltas, 0.3), generator=generator(2))
    assert torch.equal(drop_randomly(deltas, 0.3, generator(2)), deltas * mask / 0.3)


@pytest.mark.parametrize("name", ["ties", "dare_linear", "dare_ties", "della", "breadcrumbs"])
@pytest.mark.parametrize("size", [1000, 10**9])
def test_a_large_update_is_pruned_alike_in_chunks_of_any_size(name, size, monkeypatch):
    """On a GPU chunks are larger than on a CPU; merges must not depend on it."""
    deltas = torch.stack([many_equal(1), torch.randn(*LARGE, generator=generator(2))])

    def merged():
        method = METHODS[name]
        return method.function(deltas, torch.tensor([0.5, 0.7]), **({"generator": generator(3)} if method.draws else {}))

    expected = merged()
    for module in (pruning, inspect.getmodule(della)):
        monkeypatch.setattr(module, "at_once", lambda _: size)
    assert torch.equal(merged(), expected)


@pytest.mark.parametrize("delta", [torch.randn(*LARGE, generator=generator(5)), many_equal(6)])
def test_della_of_a_large_update_ranks_within_rows(delta):
    keep = 0.5 - 0.15 + 0.3 * delta.abs().argsort(dim=1, stable=True).argsort(dim=1) / (LARGE[1] - 1)
    expected = delta * torch.bernoulli(keep, generator=generator(7)) / keep
    merged = della(delta[None], torch.ones(1), generator=generator(7))
    torch.testing.assert_close(merged, expected)


# Full-rank results


@pytest.mark.parametrize("shape, rank", [((9, 30), 4), ((30, 9), 4), ((12, 12), 12), ((6, 5), 9)])
def test_factor_delta_is_the_truncated_svd(shape, rank):
    delta = torch.randn(*shape, generator=generator(1))
    factors, lost, whole = factor_delta(delta, rank)
    U, S, Vh = torch.linalg.svd(delta.double(), full_matrices=False)
    best = (U[:, :rank] * S[:rank]) @ Vh[:rank]
    torch.testing.assert_close(factors.delta_weight().double(), best, rtol=1e-5, atol=1e-5)
    assert factors.rank == min(rank, *shape)
    assert whole == pytest.approx(S.square().sum().item())
    assert lost == pytest.approx(S[rank:].square().sum().item(), abs=1e-9)
    torch.testing.assert_close(factors.A.norm(dim=1), factors.B.norm(dim=0))
    assert torch.equal(factors.A, factor_delta(delta, rank)[0].A)


def test_factor_delta_of_low_rank_and_zero_updates_is_exact():
    low = torch.randn(20, 2, generator=generator(1)) @ torch.randn(2, 30, generator=generator(2))
    torch.testing.assert_close(factor_delta(low, 8)[0].delta_weight(), low, rtol=1e-5, atol=1e-5)
    assert factor_delta(torch.zeros(4, 3), 2)[0].delta_weight().norm() == 0


WIDE = (EXACT + 90, EXACT + 250)


def decaying(values):
    """An update with these singular values."""
    U, V = (torch.linalg.qr(torch.randn(n, len(values), generator=generator(n))).Q for n in WIDE)
    return U * values @ V.T


def pruned(method):
    """The merge of two random adapters of rank 8 by a method whose result has full rank, untruncated."""
    made = [
        LoraAdapter(name, "", {"m": LoraFactors(torch.randn(8, WIDE[1], generator=g), torch.randn(WIDE[0], 8, generator=g))})
        for name, g in (("a", generator(1)), ("b", generator(2)))
    ]
    return merge_full_rank(method, made).modules["m"].delta_weight()


SPECTRA = {
    "slow": lambda: decaying(torch.arange(1, 501).float() ** -0.5),
    "power": lambda: decaying(torch.arange(1, 501).float() ** -1.5),
    "exponential": lambda: decaying(0.8 ** torch.arange(500)),
    "step": lambda: decaying(torch.cat([torch.ones(16), torch.full((300,), 0.01)])),
    "noise": lambda: torch.randn(*WIDE, generator=generator(3)),
    **{method: lambda method=method: pruned(method) for method in ("ties", "dare_linear", "dare_ties", "della", "breadcrumbs")},
}


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_a_large_update_loses_hardly_more_than_the_best_factors_would(spectrum, transposed):
    delta = SPECTRA[spectrum]()
    delta = delta.T if transposed else delta
    assert not is_exact(delta.shape)
    factors, lost, whole = factor_delta(delta, 16)
    energies = torch.linalg.svdvals(delta.double()).square()
    best = energies[16:].sum().item()
    real = (delta.double() - factors.delta_weight().double()).square().sum().item()
    assert best * (1 - 1e-6) <= real <= 1.01 * best
    assert lost == pytest.approx(real, rel=1e-2, abs=1e-6 * whole) and whole == pytest.approx(energies.sum().item(), rel=1e-5)
    assert factors.rank == 16
    torch.testing.assert_close(factors.A.norm(dim=1), factors.B.norm(dim=0))
    again = factor_delta(delta, 16)[0]
    assert torch.equal(factors.A, again.A) and torch.equal(factors.B, again.B)


def test_large_updates_of_low_rank_or_none_and_ranks_above_it():
    low = torch.randn(WIDE[1], 3, generator=generator(1)) @ torch.randn(3, WIDE[1], generator=generator(2))
    factors, lost, whole = factor_delta(low, 8)
    torch.testing.assert_close(factors.delta_weight(), low, rtol=1e-4, atol=1e-4)
    assert lost <= 1e-6 * whole
    zero, lost, whole = factor_delta(torch.zeros(WIDE), 2)
    assert zero.delta_weight().norm() == lost == whole == 0


def test_the_recipe_tells_how_dense_updates_were_cut():
    shapes = {"layers.0.small": (6, 5), "layers.0.large": (EXACT + 1, EXACT + 2)}
    made = [
        LoraAdapter(n, "", {m: LoraFactors(torch.randn(2, i, generator=g), torch.randn(o, 2, generator=g)) for m, (o, i) in shapes.items()})
        for n, g in (("a", generator(1)), ("b", generator(2)))
    ]
    assert merge("dare_linear", made).recipe["truncation"] == {"exact": 1, "randomised": 1}
    assert "truncation" not in merge("cat_static", made).recipe
