"""Methods in a common subspace: each against its formula on dense updates."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.errors import LabError
from lab.lora.adapter import LoraAdapter, LoraFactors
from lab.merging import merge
from lab.merging.cores import from_core, shared_directions, to_cores
from lab.merging.methods.iso_c import iso_c
from lab.merging.methods.lora_lego import lora_lego
from lab.merging.methods.pico import pico
from lab.merging.methods.tsv import tsv
from lab.merging.pruning import elect_and_merge, keep_largest
from lab.merging.registry import seeded_generator
from tests.merging.test_merging_cat import same_update
from tests.tiny_models import llama, three_skills, two_skills


@pytest.fixture(scope="module")
def base():
    return llama()


def random_factors(ranks, n_out=20, n_in=14, seed=0):
    draw = torch.Generator().manual_seed(seed)
    A = [torch.randn(r, n_in, generator=draw) for r in ranks]
    return A, [torch.randn(n_out, r, generator=draw) for r in ranks]


def updates(A, B):
    return torch.stack([b @ a for a, b in zip(A, B, strict=True)])


def product(factors):
    A, B = factors
    return B @ A


def close(ours, reference, tolerance=1e-4):
    torch.testing.assert_close(ours, reference.float(), rtol=tolerance, atol=tolerance)


def svd(matrix, rank=None):
    U, S, Vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    return U[:, :rank], S[:rank], Vh[:rank]


def polar(matrix):
    U, _, Vh = svd(matrix)
    return U @ Vh


# Cores


@settings(max_examples=20, deadline=None)
@given(
    ranks=st.lists(st.integers(0, 4), min_size=1, max_size=4).filter(any),
    n_out=st.integers(1, 9),
    n_in=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_cores_are_lossless(ranks, n_out, n_in, seed):
    A, B = random_factors(ranks, n_out, n_in, seed)
    U, cores, V = to_cores(A, B)
    assert cores.shape == (len(ranks), min(n_out, sum(ranks)), min(n_in, sum(ranks)))
    torch.testing.assert_close(U.T @ U, torch.eye(U.shape[1], dtype=U.dtype))
    torch.testing.assert_close(V.T @ V, torch.eye(V.shape[1], dtype=V.dtype))
    close((U @ cores @ V.T).float(), updates(A, B), 1e-5)
    close(product(from_core(U, cores.sum(0), V)), updates(A, B).sum(0), 1e-5)


def test_shared_directions_are_the_svd_of_the_stacked_updates():
    A, B = random_factors([3, 2, 4])
    deltas = updates(A, B)
    U, cores, V = to_cores(A, B)
    directions, values = shared_directions(cores)
    left, S, _ = svd(torch.cat(list(deltas), dim=1), 9)
    torch.testing.assert_close(values, S, rtol=1e-5, atol=1e-5)
    close(((U @ directions).T @ left).abs().float(), torch.eye(9), 1e-3)


# Each method against its formula on the dense updates


def test_svd_on_cores_is_the_dense_svd(base):
    adapters = three_skills(base)
    cut = merge("svd", adapters, rank=3)
    for module in cut.modules:
        total = sum(a.delta_weight(module) for a in adapters if module in a.modules) / 3
        U, S, Vh = svd(total, 3)
        close(cut.delta_weight(module), U * S @ Vh)


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.5, 2.0, -1.0]])
def test_tsv_is_the_dense_formula(weights):
    ranks = [3, 2, 4]
    A, B = random_factors(ranks)
    parts = [svd(delta, r) for delta, r in zip(updates(A, B), ranks, strict=True)]
    U = polar(torch.cat([u for u, _, _ in parts], dim=1))
    V = polar(torch.cat([v.T for _, _, v in parts], dim=1))
    S = torch.cat([w * s for w, (_, s, _) in zip(weights, parts, strict=True)])
    close(product(tsv(A, B, torch.tensor(weights))), U * S @ V.T)


def test_tsv_gives_each_skill_its_share_of_the_layers_singular_values():
    A, B = random_factors([5, 5], n_out=8, n_in=7)  # 7 // 2 = 3 of each
    parts = [svd(delta, 3) for delta in updates(A, B)]
    U, V = (
        polar(torch.cat([u for u, _, _ in parts], dim=1)),
        polar(torch.cat([v.T for _, _, v in parts], dim=1)),
    )
    close(product(tsv(A, B, torch.ones(2))), U * torch.cat([s for _, s, _ in parts]) @ V.T)


def test_tsv_of_a_skill_with_itself_is_that_skill():
    """Twice the same direction has no orthogonal basis; inside its span the two halves add up."""
    A, B = random_factors([3])
    close(product(tsv(A * 2, B * 2, torch.ones(2))), updates(A, B)[0])


def test_iso_c_is_the_dense_formula_inside_the_support():
    A, B = random_factors([3, 2])
    weights = torch.tensor([1.0, 0.5])
    U, S, Vh = svd(torch.einsum("k,koi->oi", weights, updates(A, B)), 5)
    merged = product(iso_c(A, B, weights))
    close(merged, S.mean() * U @ Vh)
    _, flat, _ = svd(merged)
    torch.testing.assert_close(flat[:5], S.mean().expand(5), rtol=1e-5, atol=1e-5)
    assert flat[5:].max() < 1e-5 * flat[0]


def orthogonal_factors(ranks, scale_of_B=None, seed=0):
    """Rows of each A orthonormal, columns of each B too: then the paper's stacked factors have our bases."""
    A, B = random_factors(ranks, seed=seed)
    A = [torch.linalg.qr(a.T).Q.T for a in A]
    return A, [torch.linalg.qr(b).Q for b in B] if scale_of_B is None else B


def test_pico_is_the_papers_formula():
    """Equations as in the paper's released code: SVD of [B_1 … B_k], α, calibrated mean, mean norm."""
    A, B = orthogonal_factors([3, 2, 4], scale_of_B="kept")
    deltas = updates(A, B)
    U, S, _ = svd(torch.cat(B, dim=1))
    alpha = 1 / (1 + 2 * S**2 / (S**2).sum())
    merged = (U * alpha @ U.T @ deltas.double()).mean(0)
    merged *= torch.linalg.matrix_norm(deltas).mean() / merged.norm()
    close(product(pico(A, B, torch.full((3,), 1 / 3))), merged)


def test_pico_weakens_a_shared_direction_and_keeps_the_size():
    shared, own = torch.eye(6)[:1].T, torch.eye(6)[1:3].T  # output directions
    A = [torch.eye(8)[2 * i : 2 * i + 2] for i in range(2)]
    B = [torch.cat([shared, own[:, i : i + 1]], dim=1) for i in range(2)]
    merged = product(pico(A, B, torch.tensor([0.5, 0.5])))
    before = updates(A, B).mean(0)
    assert merged[0].norm() / merged[1].norm() < 0.9 * before[0].norm() / before[1].norm()
    assert merged.norm().item() == pytest.approx(updates(A, B)[0].norm().item(), rel=1e-5)
    close(product(pico(A, B, torch.tensor([1.0, 1.0]))), 2 * merged)  # weights scale the result


@pytest.mark.parametrize("density", [0.3, 1.0])
def test_knots_is_the_dense_formula(density):
    A, B = random_factors([3, 2])
    deltas, weights = updates(A, B), torch.tensor([0.5, 1.0])
    U, _, _ = svd(torch.cat(list(deltas), dim=1), 5)
    blocks = U.T @ deltas.double()
    merged = elect_and_merge(
        torch.stack([keep_largest(block, density) for block in blocks]), weights.double(), normalize=True
    )
    ours = merge("knots", adapters_of(A, B), weights.tolist(), density=density, scale=0.6)
    close(ours.delta_weight("m"), 0.6 * U @ merged)


def test_core_space_is_the_papers_on_orthogonal_factors():
    A, B = orthogonal_factors([3, 2])
    deltas, weights = updates(A, B), torch.tensor([0.5, 1.0])
    U, _, _ = svd(torch.cat(B, dim=1))
    _, _, Vh = svd(torch.cat(A))
    # With orthonormal factors every singular value of a stack comes from one principal angle, so the bases
    # are unique up to signs, which TIES does not see.
    cores = U.T @ deltas.double() @ Vh.T
    merged = elect_and_merge(
        torch.stack([keep_largest(core, 0.4) for core in cores]), weights.double(), normalize=True
    )
    ours = merge("core_space", adapters_of(A, B), weights.tolist(), density=0.4)
    close(ours.delta_weight("m"), U @ merged @ Vh, 1e-3)


def adapters_of(A, B):
    return [
        LoraAdapter(f"s{i}", "", {"m": LoraFactors(a, b)}) for i, (a, b) in enumerate(zip(A, B, strict=True))
    ]


@pytest.mark.parametrize("name", ["knots", "core_space"])
def test_random_pruning_in_a_subspace_is_dare_ties_there(base, name):
    """On the dense updates' coordinates, with the module's own draws: survivors over density, signs elected among them."""
    A, B = random_factors([3, 2])
    deltas, weights = updates(A, B).double(), torch.tensor([0.5, 1.0])
    U, _, _ = svd(torch.cat(list(deltas), dim=1), 5)
    _, _, Vh = svd(torch.cat(list(deltas)), 5)
    right = torch.eye(14, dtype=torch.double) if name == "knots" else Vh
    blocks = U.T @ deltas @ right.T
    for density in (0.5, 1.0):
        # Of the precision that the method draws in: the same numbers then come up.
        odds = torch.full_like(blocks if name == "core_space" else blocks.float(), density)
        kept = torch.bernoulli(odds, generator=seeded_generator(1, "m"))
        merged = elect_and_merge(blocks * kept / density, weights.double(), normalize=True)
        basis = {} if name == "knots" else {"basis": "updates"}
        ours = merge(name, adapters_of(A, B), weights.tolist(), prune="random", density=density, seed=1, **basis)
        close(ours.delta_weight("m"), U @ merged @ right, 1e-3)
    adapters = two_skills(base)
    same_update(*(merge(name, adapters, prune=prune, density=1.0) for prune in ("random", "magnitude")), 1e-5)
    with pytest.raises(LabError, match="prune is 'largest'; choose one of"):
        merge(name, adapters, prune="largest")


# LoRA-LEGO


def units(A, B):
    """Balanced [a; b] per rank of all skills."""
    rows = []
    for a, b in zip(A, B, strict=True):
        for row, column in zip(a, b.T, strict=True):
            ratio = (column.norm() / row.norm()).sqrt()
            rows.append(torch.cat([row * ratio, column / ratio]))
    return torch.stack(rows)


@pytest.mark.parametrize("norm", ["max", "l2"])
def test_lora_lego_centroids_have_the_mean_norm_of_their_members(norm):
    """Two tight clusters, so that k-means has no choice."""
    draw = torch.Generator().manual_seed(0)
    centers = 5 * torch.randn(2, 14 + 20, generator=draw)
    noisy = centers.repeat(2, 1) + 0.1 * torch.randn(4, 34, generator=draw)
    A = [noisy[:2, :14], 3 * noisy[2:, :14]]
    B = [noisy[:2, 14:].T, noisy[2:, 14:].T / 3]
    merged_A, merged_B = lora_lego(A, B, torch.ones(2), clusters=2, norm=norm, generator=torch.Generator().manual_seed(0))
    size = torch.inf if norm == "max" else 2
    members = units(A, B)
    expected = torch.zeros(20, 14)
    for j in range(2):
        cluster = members[[j, j + 2]]
        centroid = cluster.mean(0) * cluster.norm(size, dim=1).mean() / cluster.mean(0).norm(size)
        expected += torch.outer(centroid[14:], centroid[:14])
    close(merged_B @ merged_A, expected)
    # One cluster: output reweighting √(r/K) = √2.
    merged_A, merged_B = lora_lego(A, B, torch.ones(2), clusters=1, norm=norm, generator=torch.Generator())
    mean = members.mean(0) * members.norm(size, dim=1).mean() / members.mean(0).norm(size)
    close(merged_B @ merged_A, 2**0.5 * torch.outer(mean[14:], mean[:14]))
    assert merged_A.shape == (1, 14)


def test_lora_legos_seed_hardly_matters():
    for ranks in ([4, 4], [3, 3, 3], [2, 5], [8, 8]):
        A, B = random_factors(ranks)
        merged = [product(lora_lego(A, B, torch.ones(len(A)), generator=torch.Generator().manual_seed(seed))) for seed in range(4)]
        assert all((m - merged[0]).norm() <= 1e-5 * merged[0].norm() for m in merged), ranks


def test_lora_lego_with_a_cluster_per_unit_is_the_sum_times_the_output_reweighting(base):
    adapters = two_skills(base)
    merged = merge("lora_lego", adapters, clusters=100)
    summed = merge("task_arithmetic", adapters)
    for module in merged.modules:
        ranks = [a.modules[module].rank for a in adapters if module in a.modules]
        gain = (sum(ranks) / len(ranks) / sum(ranks)) ** 0.5
        close(merged.delta_weight(module), gain * summed.delta_weight(module), 1e-5)


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_lora_lego_default_rank_weights_and_empty_units():
    A, B = random_factors([4, 2])
    options = {"generator": torch.Generator().manual_seed(0)}
    assert lora_lego(A, B, torch.ones(2), **options)[0].shape == (4, 14)
    alone = lora_lego(A, B, torch.tensor([0.0, -2.0]), **options)  # a skill of weight 0 is not there
    close(product(alone), -2 * updates(A, B)[1], 1e-5)
    B[1][:, 0] = 0  # an unused rank
    assert product(lora_lego(A, B, torch.ones(2), clusters=6, **options)).isfinite().all()
    assert product(lora_lego(A, [0 * b for b in B], torch.ones(2), **options)).norm() == 0
    merged_A, _ = lora_lego(A * 2, [*B, *B], torch.ones(4), clusters=8, **options)  # units coincide
    assert merged_A.isfinite().all()
