import dataclasses
import re
from types import SimpleNamespace

import pytest
import torch

from lab.errors import LabError
from lab.experiments import skill_analysis
from lab.lora.adapter import LoraAdapter, LoraFactors
from tests import tiny_models


def factors(out=40, width=30, rank=5, seed=0, scaling=1.5):
    torch.manual_seed(seed)
    return LoraFactors(torch.randn(rank, width), torch.randn(out, rank), scaling)


def adapter(name, seed=0, **shape):
    return LoraAdapter(
        name, "", {f"model.layers.{layer}.mlp.up_proj": factors(seed=seed + 10 * layer, **shape) for layer in (0, 1)}
    )


def test_singular_values_are_those_of_the_dense_update():
    f = factors()
    dense = torch.linalg.svdvals(f.delta_weight().double())
    assert skill_analysis.singular_values(f) == pytest.approx(dense[:5], rel=1e-5) and dense[5] < 1e-4


def test_effective_rank_counts_equal_values():
    assert skill_analysis.effective_rank(torch.ones(7)) == pytest.approx(7)
    assert skill_analysis.effective_rank(torch.tensor([3.0, 0, 0])) == pytest.approx(1)
    assert 1 < skill_analysis.effective_rank(torch.tensor([3.0, 1, 0.1])) < 3
    assert skill_analysis.effective_rank(torch.zeros(3)) == 0


def test_contents_against_dense_weights():
    base = tiny_models.llama()
    one = tiny_models.two_skills(base)[1]
    table = skill_analysis.contents(one, base)
    assert list(table.index) == list(one.modules)
    for module, row in table.iterrows():
        delta = one.delta_weight(module)
        assert row["norm"] == pytest.approx(float(delta.norm()), rel=1e-5)
        assert row["relative"] == pytest.approx(
            float(delta.norm() / base.get_submodule(module).weight.detach().norm()), rel=1e-5
        )
        assert len(row["values"]) == row["rank"] and 1 <= row["effective_rank"] <= row["rank"]


def test_an_update_overlaps_itself_however_it_is_split():
    one = adapter("one")
    change = torch.randn(5, 5)
    split = {
        m: LoraFactors(torch.linalg.solve(change, f.A), f.B @ change, -2 * f.scaling) for m, f in one.modules.items()
    }
    table = skill_analysis.overlap(one, dataclasses.replace(one, modules=split))
    assert table["output"].tolist() == pytest.approx([1, 1], abs=1e-4) and table["input"].tolist() == pytest.approx(
        [1, 1], abs=1e-4
    )
    assert table["cosine"].tolist() == pytest.approx([-1, -1], abs=1e-4)
    assert (table["output_angle"] < 0.5).all()


def test_cosine_is_that_of_the_dense_updates_also_with_other_ranks():
    one, two = adapter("one"), adapter("two", seed=1, rank=3)
    for module, row in skill_analysis.overlap(one, two).iterrows():
        a, b = one.delta_weight(module).flatten(), two.delta_weight(module).flatten()
        assert row["cosine"] == pytest.approx(float(torch.cosine_similarity(a, b, dim=0)), abs=1e-5)


def test_orthogonal_updates_share_nothing_and_random_ones_what_chance_gives():
    split = torch.eye(30)
    halves = [
        LoraAdapter(n, "", {"0.up_proj": LoraFactors(part, part.T.clone())})
        for n, part in zip("ab", split.split(15), strict=True)
    ]
    apart = skill_analysis.overlap(*halves).iloc[0]
    assert apart[["output", "input", "cosine"]].abs().max() < 1e-6 and apart["output_angle"] == pytest.approx(90)
    chance = [
        skill_analysis.overlap(adapter("a", seed, rank=6), adapter("b", seed + 100, rank=6)).mean() for seed in range(10)
    ]
    assert sum(c["output"] for c in chance) / 10 == pytest.approx(6 / 40, rel=0.2)
    assert sum(c["input"] for c in chance) / 10 == pytest.approx(6 / 30, rel=0.2)


def test_zeros_and_other_modules_have_no_overlap():
    one = adapter("one")
    nothing = LoraAdapter("two", "", {m: LoraFactors(f.A, 0 * f.B) for m, f in one.modules.items()})
    with pytest.raises(LabError, match="one and two change no module in common"):
        skill_analysis.overlap(one, nothing)


def test_pairs_are_told_apart_by_what_they_share():
    skills = {seed: [adapter("maths", seed), adapter("code", seed + 50)] for seed in range(3)}
    shared_start = {m: LoraFactors(skills[0][0].modules[m].A, f.B) for m, f in skills[0][1].modules.items()}
    skills[0][1] = dataclasses.replace(skills[0][1], modules=shared_start)
    found = skill_analysis.overlaps(skills)
    counts = {name: len(table) // 2 for name, table in found.items()}  # two modules a pair
    assert counts == {skill_analysis.SAME_START: 3, skill_analysis.OTHER_START: 6, skill_analysis.SAME_SKILL: 6, skill_analysis.RANDOM: 3}
    assert (
        found[skill_analysis.SAME_START]["input"].max() == pytest.approx(1) and found[skill_analysis.OTHER_START]["input"].max() < 0.7
    )
    shown = skill_analysis.overlap_table(found)
    assert list(shown.loc["pairs"]) == ["3", "6", "6", "3"] and set(shown.loc["modules"]) == {"2"}
    assert set(skill_analysis.overlaps({0: skills[0]})) == {skill_analysis.SAME_START, skill_analysis.RANDOM}


def test_spectrum_is_a_mean_per_kind():
    several = [adapter("maths", 0), adapter("maths", 7)]
    lines = skill_analysis.spectrum_lines(several)
    values = [skill_analysis.singular_values(f) for a in several for f in a.modules.values()]
    assert lines == {"up_proj": pytest.approx(torch.stack(values).mean(0))}


def record(method, seed, **own):
    return SimpleNamespace(
        method=method, seed=seed, own=own, coefficients=None, parameters={"preset": {"own_test": 50}}
    )


def test_own_tests_and_the_sentence():
    records = [record("maths", s, maths=m, code=0.0) for s, m in enumerate((0.9, 1.0))] + [
        record("code", 0, maths=0.02, code=0.5)
    ]
    shown = skill_analysis.own_tests(records)
    assert (
        shown.loc["maths skill", "maths test, %"].startswith("95.0 (")
        and shown.loc["maths skill", "n × seeds"] == "50 × 2"
    )
    assert shown.loc["maths skill", "code test, %"] == "0.0 (0.0–7.1)" and shown.loc[
        "code skill", "code test, %"
    ].startswith("50.0 (36.")
    found = skill_analysis.overlaps({0: [adapter("maths"), adapter("code", 50)]})
    text = skill_analysis.finding({"5.1": (records, found), "5.2": (records, found)})
    assert text.count("maths 95 %, code 50 %, on another's at most 2 %; ") == 2 and "5.2: maths" in text
    assert re.search(r"; \d\.\d and \d\.\d times; cosine 0\.\d\d\.$", text)
    two = skill_analysis.overlaps({seed: [adapter("maths", seed), adapter("code", 50 + seed)] for seed in range(2)})
    learned = [two[skill_analysis.OTHER_START][side].mean() / two[skill_analysis.RANDOM][side].mean() for side in ("output", "input")]
    assert f"; {learned[0]:.1f} and {learned[1]:.1f} times; cosine" in skill_analysis.finding({"5.1": (records, two)})
    assert skill_analysis.headline(records)["number"] == "95\u00a0% · 50\u00a0%"
