"""The data-free methods of the field at the edges, and beyond the values of other people's code (test_oracles.py)."""

import pytest
import torch

from lab.errors import LabError
from lab.lora.adapter import LoraAdapter, LoraFactors
from lab.merging import METHODS, merge, merge_full_rank
from tests.merging.test_merging_static import one_module
from tests.merging.test_merging_subspace import close, polar, random_factors, svd, updates

NEW = (
    "wudi", "sce", "iso_cts", "svc", "cart", "model_stock", "karcher", "multislerp", "nuslerp", "compress_then_merge",
)  # fmt: skip


def skills(ranks=(3, 2, 4), **settings):
    A, B = random_factors(ranks, **settings)
    return [LoraAdapter(f"s{i}", "", {"m": LoraFactors(a, b)}) for i, (a, b) in enumerate(zip(A, B, strict=True))]


def rewritten(adapter, pad=0):
    """The same updates as other factors, with ranks of zeros at the end."""
    modules = {}
    for number, (module, f) in enumerate(adapter.modules.items()):
        R = torch.linalg.qr(torch.randn(f.rank, f.rank, generator=torch.Generator().manual_seed(number)).double()).Q * 2
        A = torch.cat([R.inverse() @ f.A.double(), torch.zeros(pad, f.A.shape[1]).double()])
        B = torch.cat([f.B.double() @ R, torch.zeros(f.B.shape[0], pad).double()], dim=1)
        modules[module] = LoraFactors(A.float(), B.float(), f.scaling)
    return LoraAdapter(adapter.name, "", modules)


def some(name, adapters):
    return adapters[: METHODS[name].max_skills or len(adapters)]


@pytest.mark.parametrize("name", NEW)
def test_padding_splits_and_equal_skills(name):
    adapters = some(name, skills())
    expected = merge_full_rank(name, adapters).modules["m"].delta_weight()
    for pad in (0, 2):
        other = merge_full_rank(name, [rewritten(a, pad) for a in adapters]).modules["m"].delta_weight()
        close(other, expected, 1e-4)
    twice = [LoraAdapter(n, "", adapters[0].modules) for n in "ab"]
    equal = merge_full_rank(name, twice).modules["m"].delta_weight()
    if name == "iso_cts":  # flattens the spectrum of twice the skill
        U, S, Vh = svd(2 * adapters[0].delta_weight("m"), 3)
        close(equal, S.mean() * U @ Vh)
    else:
        close(equal, adapters[0].delta_weight("m"), 1e-5)
    # To rounding equal is still equal.
    close(merge_full_rank(name, [twice[0], rewritten(twice[1])]).modules["m"].delta_weight(), equal, 1e-4)


@pytest.mark.parametrize("name", NEW)
def test_zero_updates_are_no_directions(name):
    adapters = some(name, skills())
    zero = LoraAdapter(adapters[1].name, "", {"m": LoraFactors(torch.zeros(2, 14), torch.zeros(20, 2))})
    with_zero = merge_full_rank(name, [adapters[0], zero]).modules["m"].delta_weight()
    assert with_zero.isfinite().all() and with_zero.norm() > 0
    if METHODS[name].kind == "factors":  # the direction is the other skill's
        assert torch.linalg.matrix_rank(torch.cat([with_zero, adapters[0].delta_weight("m")]), rtol=1e-4) == adapters[0].rank
    nothing = [LoraAdapter(n, "", zero.modules) for n in "ab"]
    assert merge_full_rank(name, nothing).modules["m"].delta_weight().norm() == 0


@pytest.mark.parametrize("name", ["wudi", "sce", "karcher", "multislerp", "nuslerp"])
def test_negative_weights_are_refused_where_only_their_ratio_counts(name):
    adapters = skills()[:2]
    for weights in ([1.0, -0.5], [0.0, 0.0]):
        with pytest.raises(LabError, match=f"^{name}: the weights are .* give numbers from 0"):
            merge(name, adapters, weights)
    close(*(merge(name, adapters, [0.7 * c, 0.3 * c]).delta_weight("m") for c in (1, 3)))


def test_wudi_is_every_skill_on_its_own_rows():
    adapters = skills()  # 9 rows in 14 dimensions: independent
    for weights in (None, [5.0, 0.1, 1.0]):
        merged = merge("wudi", adapters, weights)
        for adapter in adapters:
            f = adapter.modules["m"]
            close(merged.delta_weight("m") @ f.A.T, f.delta_weight() @ f.A.T, 1e-3)


def test_model_stock_of_one_skill_in_a_module_is_the_weighted_skill():
    first, second = skills()[:2]
    pair = [LoraAdapter("a", "", {"m": first.modules["m"], "n": first.modules["m"]}), LoraAdapter("b", "", second.modules)]
    close(merge("model_stock", pair).delta_weight("n"), 0.5 * first.delta_weight("m"))


def test_karcher_balances_the_angles_that_multislerp_only_starts_to():
    """At the mean the weighted logarithms of the skills cancel."""
    adapters, weights = skills(), torch.tensor([0.6, 0.3, 0.1])
    rests = {}
    for name in ("karcher", "multislerp"):
        mean = torch.nn.functional.normalize(merge(name, adapters, weights.tolist()).delta_weight("m").double().flatten(), dim=0)
        total = 0
        for w, adapter in zip(weights, adapters, strict=True):
            unit = torch.nn.functional.normalize(adapter.delta_weight("m").double().flatten(), dim=0)
            dot = mean @ unit
            total = total + w * dot.arccos() / dot.arccos().sin() * (unit - dot * mean)
        rests[name] = total.norm().item()
    assert rests["karcher"] < 1e-6 < 1e-3 < rests["multislerp"]


def test_opposite_skills_have_no_mean_on_the_sphere_and_are_summed():
    a = skills()[0]
    against = LoraAdapter("b", "", {"m": LoraFactors(-a.modules["m"].A, a.modules["m"].B)})
    for name in ("karcher", "multislerp"):
        assert merge(name, [a, against]).delta_weight("m").norm() < 1e-5
    close(merge("karcher", [a, against], [0.75, 0.25]).delta_weight("m"), a.delta_weight("m"), 1e-4)  # the sphere keeps the size


def test_nuslerp_by_column_is_by_row_of_the_transposed():
    A, B = random_factors([3, 2])
    pair = [LoraAdapter(n, "", {"m": LoraFactors(a, b)}) for n, a, b in zip("ab", A, B, strict=True)]
    turned = [LoraAdapter(n, "", {"m": LoraFactors(b.T, a.T)}) for n, a, b in zip("ab", A, B, strict=True)]
    close(merge("nuslerp", pair, [1, 3], per="column").delta_weight("m"), merge("nuslerp", turned, [1, 3]).delta_weight("m").T)


def test_cart_of_two_is_the_mean_and_of_three_the_formula():
    adapters = skills()
    close(merge("cart", adapters[:2]).delta_weight("m"), merge("cat_static", adapters[:2]).delta_weight("m"))
    deltas = torch.stack([a.delta_weight("m") for a in adapters]).double()
    expected = deltas.mean(0)
    for delta in deltas:
        U, S, Vh = svd(delta - deltas.mean(0), 3)  # ceil(0.25 · 9)
        expected = expected + 0.5 * U * S @ Vh
    close(merge("cart", adapters).delta_weight("m"), expected)


def test_iso_cts_without_directions_of_the_skills_own_is_iso_c():
    adapters = skills()
    close(merge("iso_cts", adapters, common=1.0).delta_weight("m"), merge("iso_c", adapters).delta_weight("m"))
    # All from the skills: three directions of each, of equal size.
    deltas = [a.delta_weight("m") for a in adapters]
    parts = [svd(delta, min(3, a.rank)) for delta, a in zip(deltas, adapters, strict=True)]
    U = polar(torch.cat([u for u, _, _ in parts], dim=1))
    V = polar(torch.cat([v.T for _, _, v in parts], dim=1))
    close(merge("iso_cts", adapters, common=0.0).delta_weight("m"), torch.cat([s for _, s, _ in parts]).mean() * U @ V.T)


def test_svc_follows_any_merge_of_updates_and_names_the_others():
    adapters = skills()
    for after in ("cat_static", "ties", "dare_linear", "wudi", "knots"):
        merged = merge("svc", adapters, after=after)
        U, S, Vh = svd(merge(after, adapters, [1.0] * 3).delta_weight("m"), 9)
        total = 0
        for adapter in adapters:
            response = U.T @ adapter.delta_weight("m").double()
            total = total + ((S[:, None] * Vh * response).sum(1) / response.square().sum(1)).clamp(min=1)
        close(merged.delta_weight("m"), U * (S * 3 / total) @ Vh, 1e-3)
    for after in ("cat", "moe", "ties_factors", "svc", "nothing"):
        with pytest.raises(LabError, match="svc: after is|Unknown merging method 'nothing'"):
            merge("svc", adapters, after=after)


def test_sce_keeps_nothing_at_density_zero_and_weighs_by_energy():
    first, second = torch.tensor([[3.0, 0.0, 1.0]]), torch.tensor([[1.0, 2.0, -2.0]])
    # Variances 1, 1, 2.25: at 0.4 one entry of three, where the signs disagree and the sum is below 0: the second alone.
    close(merge("sce", one_module(first, second), density=0.4).delta_weight("m"), torch.tensor([[0.0, 0.0, -2.0]]))
    c = torch.tensor([10.0, 9.0])
    expected = torch.tensor([[(3 * c[0] + c[1]) / c.sum(), 2.0, -2.0]])
    close(merge("sce", one_module(first, second), density=1.0).delta_weight("m"), expected)


def test_compress_then_merge_has_the_skills_rank_and_loses_nothing_with_room():
    adapters = skills()
    assert merge("compress_then_merge", adapters).modules["m"].rank == 4
    A, B = random_factors([3, 2, 4])
    close(merge("compress_then_merge", adapters, [1.0] * 3, size=9).delta_weight("m"), updates(A, B).sum(0))
