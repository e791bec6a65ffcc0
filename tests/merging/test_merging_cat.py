"""Registry, schema, and the concatenation family against PEFT and against its own properties."""

import copy
import math
from typing import Annotated, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel

from lab import merging
from lab.errors import LabError
from lab.lora.adapter import LoraAdapter, LoraFactors, module_names
from lab.lora.peft_io import load, save, to_peft
from lab.lora.stacked import attach, fold
from lab.merging import (
    METHODS,
    Range,
    Recipe,
    build,
    factor_delta,
    freeze,
    merge,
    merge_method,
    schema,
    truncate,
)
from tests.tiny_models import (
    adapter,
    gpt2,
    llama,
    logits,
    peft_model,
    relative_error,
    three_skills,
    tokens,
    two_skills,
)


@pytest.fixture(scope="module")
def base():
    return llama()


def same_update(a: LoraAdapter, b: LoraAdapter, tolerance=1e-5):
    assert list(a.modules) == list(b.modules)
    for module in a.modules:
        torch.testing.assert_close(
            a.delta_weight(module), b.delta_weight(module), rtol=tolerance, atol=tolerance
        )


def weighted_sum(adapters, weights, module):
    return sum(
        w * a.delta_weight(module) for w, a in zip(weights, adapters, strict=True) if module in a.modules
    )


# Registry


def test_registry_holds_the_family_with_sources_and_formulas():
    assert {"cat", "cat_static", "cat_random", "cat_released", "linear"} <= set(METHODS)
    for method in METHODS.values():
        assert method.paper.startswith("https://") and method.formula and method.summary
    assert METHODS["cat_released"].recipe == Recipe(learning_rate=1e-4, batch_size=6)


def test_signature_is_the_schema(registered):
    @merge_method(label="x", paper="https://example.org", formula="x", weights="one")
    def example(
        deltas,
        weights,
        *,
        density: Annotated[float, Range(0, 1), "fraction kept"] = 0.2,
        k: int | None = None,
        how: Literal["a", "b"] = "a",
        flag: bool = False,
        generator: torch.Generator,
    ):
        return deltas.sum(0)

    by_name = {p.name: p for p in schema("example")}
    assert list(by_name) == ["density", "k", "how", "flag", "seed"]
    density = by_name["density"]
    assert (density.type, density.default, density.low, density.high, density.help) == (
        float,
        0.2,
        0,
        1,
        "fraction kept",
    )
    assert by_name["k"].optional and by_name["k"].type is int
    assert by_name["how"].choices == ("a", "b") and by_name["flag"].type is bool
    assert METHODS["example"].kind == "delta" and METHODS["example"].draws
    adapters = two_skills(llama())
    bad = {
        "density": [1.5, -0.1, math.nan, "x", True, None],
        "k": [1.5],
        "how": ["c"],
        "flag": [1],
        "seed": [-1],
    }
    for name, values in bad.items():
        for value in values:
            with pytest.raises(LabError, match=f"example: {name} is"):
                merge("example", adapters, **{name: value})
    with pytest.raises(LabError, match="no parameter 'densty'; did you mean 'density'"):
        merge("example", adapters, densty=0.5)
    merge("example", adapters, density=1, k=3, how="b", flag=True)

    with pytest.raises(ValueError, match="two merging methods"):
        merge_method(label="x", paper="https://example.org", formula="x")(example)


def test_unusable_signatures_are_errors_for_the_author(registered):
    decorate = merge_method(label="x", paper="https://example.org", formula="x")
    with pytest.raises(ValueError, match="positional"):
        decorate(lambda tensors: tensors)

    def no_default(deltas, weights, *, density: float):
        return deltas

    def odd_type(deltas, weights, *, density: list = ()):
        return deltas

    for function, says in ((no_default, "needs a default"), (odd_type, "a control is")):
        with pytest.raises(ValueError, match=says):
            decorate(function)


def test_unknown_method_lists_the_valid_ones():
    with pytest.raises(LabError, match="'cat_statik'; did you mean 'cat_static'.*linear"):
        merge("cat_statik", [])
    with pytest.raises(LabError, match="Unknown merging method 'zzz'; The methods are"):
        schema("zzz")


def test_random_methods_draw_per_module_whatever_the_order_of_skills(registered, base):
    @merge_method(label="x", paper="https://example.org", formula="x")
    def noise(deltas, weights, *, generator: torch.Generator):
        return torch.einsum("k,koi->oi", torch.rand(len(deltas), generator=generator), deltas)

    adapters = three_skills(base)
    first = merge("noise", adapters, seed=3)
    assert first.recipe["parameters"] == {"seed": 3}
    assert first.digest() == merge("noise", adapters[::-1], seed=3).digest()
    assert first.digest() != merge("noise", adapters, seed=4).digest()


# Static merging


@pytest.mark.parametrize("skills", [two_skills, three_skills])
def test_cat_static_is_peft_cat(base, skills):
    """Peer defect: PEFT keeps use_rslora of the first adapter in the merged config; here the first has
    none.
    """
    adapters = skills(base)
    weights = [0.7, 0.4, -1.1][: len(adapters)]
    model = to_peft(copy.deepcopy(base), adapters[0], adapters[0].name)
    for skill in adapters[1:]:
        to_peft(model, skill, skill.name)
    model.add_weighted_adapter([a.name for a in adapters], weights, "merged", combination_type="cat")
    model.set_adapter("merged")
    ours = merge("cat_static", adapters, weights)
    assert relative_error(logits(to_peft(copy.deepcopy(base), ours)), logits(model)) < 1e-5


def test_rslora_scaling_is_applied_once_where_peft_applies_its_root_again(base):
    """Peer defect (documented as the pinned PEFT has it): the rsLoRA flag of the first adapter leaks into the
    merged one.
    """
    adapters = [
        adapter(base, "a", 1, use_rslora=True),
        adapter(base, "b", 2),
    ]
    first = peft_model(base, 1, use_rslora=True)
    to_peft(first, adapters[1], "b")
    first.add_weighted_adapter(["default", "b"], [0.5, 0.5], "merged", combination_type="cat")
    ours = merge("cat_static", adapters)
    for module in ours.modules:
        layer = first.get_submodule(f"base_model.model.{module}")
        torch.testing.assert_close(ours.delta_weight(module), weighted_sum(adapters, [0.5, 0.5], module))
        theirs = layer.get_delta_weight("merged").detach()
        torch.testing.assert_close(theirs, math.sqrt(8) * ours.delta_weight(module))


def factors(draw, n_out, n_in):
    r = draw(st.integers(1, 4))
    scaling = draw(st.floats(0.125, 4, width=32))
    return LoraFactors(torch.randn(r, n_in), torch.randn(n_out, r), scaling)


@st.composite
def sets_of_adapters(draw):
    """2 to 4 skills over up to 3 modules of drawn shapes; all share the first module, any other may be
    missing.
    """
    torch.manual_seed(draw(st.integers(0, 99)))
    shapes = draw(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=3))
    adapters = []
    for index in range(draw(st.integers(2, 4))):
        kept = [m for m in range(len(shapes)) if m == 0 or draw(st.booleans())]
        adapters.append(
            LoraAdapter(f"s{index}", "", {f"layers.{m}": factors(draw, *shapes[m]) for m in kept})
        )
    return adapters


@settings(max_examples=25, deadline=None)
@given(adapters=sets_of_adapters(), data=st.data())
def test_cat_static_is_the_weighted_sum_in_any_order(adapters, data):
    weights = data.draw(st.lists(st.floats(-2, 2, width=32), min_size=len(adapters), max_size=len(adapters)))
    merged = merge("cat_static", adapters, weights)
    for module in module_names(adapters):
        expected = weighted_sum(adapters, weights, module)
        torch.testing.assert_close(merged.delta_weight(module), expected, rtol=1e-4, atol=1e-4)
        assert merged.modules[module].rank == sum(
            a.modules[module].rank for a in adapters if module in a.modules
        )
    order = data.draw(st.permutations(range(len(adapters))))
    again = merge("cat_static", [adapters[i] for i in order], [weights[i] for i in order])
    assert again.digest() == merged.digest()


def test_default_weights_are_one_over_k(base):
    adapters = three_skills(base)
    same_update(merge("cat_static", adapters), merge("cat_static", adapters, [1 / 3] * 3))


@pytest.mark.parametrize("method", ["cat_static", "linear", "cat_random"])
def test_one_skill_at_weight_one_is_that_skill(base, method):
    for skill in three_skills(base):
        same_update(merge(method, [skill]), skill)


def test_linear_is_the_papers_formula_with_the_scaling_once(base):
    a, b = adapter(base, "a", 1), adapter(base, "b", 2)
    merged = merge("linear", [a, b], [0.3, 0.9])
    for module in a.modules:
        fa, fb = a.modules[module], b.modules[module]
        assert fa.scaling == fb.scaling == 2
        expected = 2 * (0.3 * fa.B + 0.9 * fb.B) @ (0.3 * fa.A + 0.9 * fb.A)
        torch.testing.assert_close(merged.delta_weight(module), expected)
    assert merged.rank == 4


def test_linear_pads_lower_ranks_with_zeros(base):
    """Rank j of one skill meets rank j of the other; what the lower one lacks is zero."""
    torch.manual_seed(0)
    fa = LoraFactors(torch.randn(3, 5), torch.randn(4, 3))
    fb = LoraFactors(torch.randn(1, 5), torch.randn(4, 1))
    merged = merge("linear", [LoraAdapter("a", "", {"m": fa}), LoraAdapter("b", "", {"m": fb})], [1, 1])
    A, B = fa.A.clone(), fa.B.clone()
    A[:1] += fb.A
    B[:, :1] += fb.B
    torch.testing.assert_close(merged.delta_weight("m"), B @ A)
    same_update(merge("linear", three_skills(base)), merge("linear", three_skills(base)[::-1]))


def test_linear_cannot_tell_how_a_scaling_is_written(base):
    """rsLoRA or a large alpha are the same thing once resolved: only s·B·A counts, as long as A/B are
    balanced alike.
    """
    skill, other = adapter(base, "a", 1), adapter(base, "b", 2)
    moved = {m: LoraFactors(f.A * 2, f.B * 2, f.scaling / 4) for m, f in skill.modules.items()}
    same_update(merge("linear", [skill, other]), merge("linear", [LoraAdapter("a", "", moved), other]))


def test_qr_core_svd_is_dense_svd():
    torch.manual_seed(0)
    f = LoraFactors(torch.randn(7, 30), torch.randn(20, 7), 1.5)
    cut, lost, energy = truncate(f, 4)
    dense, dense_lost, dense_energy = factor_delta(f.delta_weight(), 4)
    torch.testing.assert_close(cut.delta_weight(), dense.delta_weight(), rtol=1e-4, atol=1e-4)
    assert cut.rank == dense.rank == 4
    assert lost == pytest.approx(dense_lost, rel=1e-4) and energy == pytest.approx(dense_energy, rel=1e-4)
    assert lost == pytest.approx((f.delta_weight() - cut.delta_weight()).square().sum().item(), rel=1e-4)


def test_truncation_records_the_discarded_energy(base):
    adapters = three_skills(base)
    full, cut = merge("cat_static", adapters), merge("cat_static", adapters, rank=5)
    assert "discarded_energy" not in full.recipe and cut.rank == 5 and full.rank == 12
    lost = sum((full.delta_weight(m) - cut.delta_weight(m)).square().sum() for m in full.modules)
    whole = sum(full.delta_weight(m).square().sum() for m in full.modules)
    assert cut.recipe["discarded_energy"]["total"] == pytest.approx((lost / whole).item(), rel=1e-3)


def test_full_rank_results_are_cut_to_the_sum_of_ranks(base, registered):
    @merge_method(label="x", paper="https://example.org", formula="sign")
    def signs(deltas, weights):
        return deltas.sum(0).sign()

    merged = merge("signs", two_skills(base))
    assert merged.rank <= 7 and 0 < merged.recipe["discarded_energy"]["total"] < 1


def test_recipe_names_method_parameters_and_inputs(base):
    adapters = two_skills(base)
    recipe = merge("cat_static", adapters, [0.25, 0.75]).recipe
    assert recipe["method"] == "cat_static" and recipe["weights"] == {"code": 0.75, "math": 0.25}
    assert {i["name"]: i["digest"] for i in recipe["inputs"]} == {a.name: a.digest() for a in adapters}


def test_bad_merges_are_refused(base):
    a, b = two_skills(base)
    for weights, says in (
        ([1.0], "1 weights for 2"),
        ([1, math.nan], "NaN"),
        ([math.inf, 1], "infinite"),
        ([[1, 2]], "2 adapters"),
    ):
        with pytest.raises(LabError, match=says):
            merge("cat_static", [a, b], weights)
    for rank in (0, 8, 2.5):
        with pytest.raises(LabError, match="from 1 to 7"):
            merge("cat_static", [a, b], rank=rank)
    with pytest.raises(LabError, match="no adapter"):
        merge("cat_static", [])
    with pytest.raises(LabError, match="learns its coefficients"):
        merge("cat", [a, b])
    with pytest.raises(LabError, match="leave the weights out"):
        merge("cat_random", [a, b], [1, 1])
    with pytest.raises(LabError, match="parametrisation is 'sofmax'; choose one of"):
        with attach(copy.deepcopy(base), [a, b]) as stack:
            build("cat", stack, parametrisation="sofmax")
    with pytest.raises(LabError, match="nothing to learn"):
        build("linear", stack)
    broken = LoraFactors(torch.ones(1, 16), torch.ones(16, 1))
    broken.A[0, 0] = math.nan
    with pytest.raises(LabError, match="NaN"):
        LoraAdapter("c", "", {"model.layers.0.self_attn.q_proj": broken})


# Learned coefficients


@pytest.mark.parametrize("parametrisation, start", [("softmax", 1 / 3), ("sigmoid", 0.5), ("free", 1 / 3)])
@pytest.mark.parametrize("granularity, units", [("module", 14), ("layer", 2), ("model", 1)])
def test_cat_starts_equal_with_one_coefficient_per_unit(parametrisation, start, granularity, units):
    base = llama()
    with attach(base, three_skills(base)) as stack:
        coefficients = build("cat", stack, parametrisation=parametrisation, granularity=granularity)
        assert coefficients.raw.shape == (3, units) == (3, len(coefficients.units))
        assert [p for p, _ in coefficients.named_parameters()] == ["raw"]
        torch.testing.assert_close(coefficients(), torch.full((3, 14), start))
        with torch.no_grad():
            coefficients.raw.normal_()
        columns = coefficients().detach().T
        for module, column in zip(stack.modules, columns, strict=True):
            unit = {"module": module, "layer": ".".join(module.split(".")[:3]), "model": "model"}[granularity]
            raw = coefficients.raw[:, coefficients.units.index(unit)]
            expected = {"softmax": raw.softmax(0), "sigmoid": raw.sigmoid(), "free": raw}[parametrisation]
            torch.testing.assert_close(column, expected.detach())


CASES = {
    "two skills": (llama, two_skills),
    "three skills": (llama, three_skills),
    "conv1d": (
        gpt2,
        lambda base: [
            adapter(base, "a", 1, target_modules=["c_attn", "c_fc"], rank_pattern={"h.0.attn.c_attn": 2}),
            adapter(base, "b", 2, r=2, use_rslora=True, target_modules=["c_attn", "c_proj"]),
        ],
    ),
}


@pytest.mark.parametrize("make, skills", CASES.values(), ids=CASES)
@pytest.mark.parametrize("parametrisation", ["softmax", "sigmoid", "free"])
@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_live_folded_reloaded_and_merged_agree(tmp_path, make, skills, parametrisation):
    """Peer defect: the released code's merge() ignores the coefficients."""
    base = make()
    adapters = skills(base)
    before = {k: v.clone() for k, v in base.state_dict().items()}
    with attach(base, adapters) as stack:
        coefficients = build("cat", stack, parametrisation=parametrisation)
        start = coefficients().detach().clone()
        optimizer = torch.optim.AdamW(coefficients.parameters(), lr=0.5)
        for _ in range(3):
            base(input_ids=tokens(), labels=tokens()).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert (coefficients() - start).abs().max() > 0.05
        live = logits(base)
        learned = freeze(stack, coefficients)
    assert all(torch.equal(v, before[k]) for k, v in base.state_dict().items())
    assert learned.recipe["method"] == "cat"
    torch.testing.assert_close(torch.tensor(learned.recipe["coefficients"]), coefficients().detach())
    save(tmp_path / "out", learned)
    save(tmp_path / "padded", learned, pad_to_rank=16)
    reloaded = PeftModel.from_pretrained(make(), tmp_path / "out").eval()
    assert relative_error(logits(fold(copy.deepcopy(base), learned)), live) < 1e-5
    assert relative_error(logits(reloaded), live) < 1e-5
    assert relative_error(logits(reloaded.merge_and_unload()), live) < 1e-5
    assert relative_error(logits(PeftModel.from_pretrained(make(), tmp_path / "padded").eval()), live) < 1e-5
    with attach(make(), [load(tmp_path / "out")]) as again:
        assert relative_error(logits(again.model), live) < 1e-5


def test_equal_cat_is_cat_static_with_unequal_modules(base):
    """Peer defect: unequal target modules crash the released code. An absent module is a zero update here."""
    model = copy.deepcopy(base)
    with attach(model, three_skills(base)) as stack:
        frozen = freeze(stack, build("cat_softmax", stack))
        halves = freeze(stack, build("cat", stack))
    same_update(frozen, merge("cat_static", three_skills(base)))
    same_update(halves, merge("cat_static", three_skills(base), [0.5] * 3))


@pytest.mark.parametrize("method", ["cat", "cat_released", "cat_random"])
def test_order_of_skills_is_irrelevant(method):
    """Peer defect: in the released code which skill gets which draw depends on the order of insertion."""
    results = []
    for order in ([0, 1, 2], [2, 0, 1]):
        base = llama()
        adapters = three_skills(base)
        with attach(base, [adapters[i] for i in order]) as stack:
            coefficients = build(method, stack)
            base(input_ids=tokens(), labels=tokens()).loss.backward()
            by_skill = dict(zip(coefficients.skills, coefficients.raw.grad, strict=True))
            results.append((freeze(stack, coefficients), by_skill))
    same_update(results[0][0], results[1][0])
    for skill, gradient in results[0][1].items():
        torch.testing.assert_close(gradient, results[1][1][skill], rtol=1e-4, atol=1e-6)


def test_cat_random_is_the_start_of_cat_released(base):
    model = copy.deepcopy(base)
    with attach(model, three_skills(base)) as stack:
        released = build("cat_released", stack, seed=5)
        values = released().detach()
        same_update(freeze(stack, released), merge("cat_random", three_skills(base), seed=5))
    assert released.raw.std() > 0.5 and released.raw.shape == (3, 14)
    torch.testing.assert_close(values.sum(0), torch.ones(14))
    other = merge("cat_random", three_skills(base), seed=6)
    assert other.digest() != merge("cat_random", three_skills(base), seed=5).digest()


def test_freeze_refuses_foreign_or_broken_coefficients(base):
    model = copy.deepcopy(base)
    with attach(model, two_skills(base)) as stack:
        coefficients = build("cat", stack)
    with attach(model, three_skills(base)) as stack:
        with pytest.raises(LabError, match="other skills"):
            freeze(stack, coefficients)
        coefficients = build("cat", stack)
        coefficients.raw.data.fill_(math.nan)
        with pytest.raises(LabError, match="NaN"):
            freeze(stack, coefficients)


def test_every_module_of_the_package_is_imported():
    assert {"cat_static", "linear"} <= set(METHODS) and merging.METHODS is METHODS
