"""One registry: every method and candidate is described once, and all who show, plan or run them ask there."""

import dataclasses
from typing import get_args

import pytest
import torch
from torch import nn

from lab.experiments.candidates import CANDIDATES, ROLES, candidate, describe, find
from lab.experiments.candidates.registry import Cost
from lab.experiments.comparison import compare
from lab.experiments.context import Entry
from lab.experiments.presets import get_preset
from lab.experiments.sections import MATH_CODE, QABOT, SECTIONS
from lab.lora.adapter import LoraFactors
from lab.merging import METHODS
from lab.merging.coefficients import Coefficients
from lab.merging.registry import Recipe, merge_method
from lab.pages import figures
from lab.records import tables
from lab.runner import plan

NAMES = [*METHODS, *(name for name in CANDIDATES if name not in METHODS)]
FACTS = {"paper": "https://example.org", "formula": "Σ"}


@pytest.fixture
def candidates():
    """Candidates registered in a test are gone after it."""
    before = dict(CANDIDATES)
    yield
    CANDIDATES.clear()
    CANDIDATES.update(before)


@pytest.fixture
def preset(tiny_base):
    return get_preset("embedded", base=str(tiny_base), rank=2, lora_alpha=4, train_rows=8, batch_size=4, coefficient_share=0.5,
                      coefficient_rates=(1e-2,), own_test=1, max_new_tokens=2)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_candidate_is_described_in_full(name):
    found = describe(name)
    assert found.name == name and found.label.strip() and found.make is not None
    assert found.summary.endswith(".") and "partial" not in found.summary
    assert found.role in ROLES and found.role != "other" and found.role in figures.COLOURS
    assert found.cost in get_args(Cost) and (found.role == "base" or found.source.startswith("https://"))


def test_roles_have_colours_and_labels_are_those_of_one_only():
    assert set(figures.COLOURS) == set(ROLES)
    labels = [describe(name).label for name in NAMES]
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize("name", NAMES)
def test_the_plan_knows_what_every_candidate_costs(name):
    """A job more than without it where something is trained, and none where nothing is."""
    section = next(s for s in (MATH_CODE, QABOT, *SECTIONS.values()) if not CANDIDATES.get(name, describe(name)).special or name in s.candidates)
    preset = get_preset("paper")
    without, planned = (plan.plan_section(section, preset, methods, [0], 10, plan.GPU) for methods in (["base"], ["base", name]))
    assert (len(planned.jobs) > len(without.jobs)) == (describe(name).cost != "nothing")
    assert planned.prompts > without.prompts or name == "base"


def test_an_unknown_name_is_other_and_a_choice_of_a_sweep_its_method():
    unknown = describe("of_another_time")
    assert (unknown.role, unknown.label, unknown.make) == ("other", "of another time", None)
    chosen = describe("ties_oracle")
    assert (chosen.role, chosen.label) == ("static", f"{METHODS['ties'].label} (oracle)")
    assert describe("maths").role == "other" and describe("maths", ["maths"]).role == "skill"


def test_a_new_method_has_its_role_from_what_it_is(registered):
    @merge_method(label="Toy router", **FACTS)
    class toy_router(nn.Module):
        def __init__(self, stack):
            super().__init__()

    @merge_method(label="Toy learned router", recipe=Recipe(1e-3, 8), **FACTS)
    class toy_learned_router(nn.Module):
        def __init__(self, stack):
            super().__init__()

    @merge_method(label="Toy learned", recipe=Recipe(1e-3, 8), **FACTS)
    def toy_learned(adapters):
        """Learns."""

    @merge_method(label="Toy search", recipe=Recipe(None, 8, steps=3, data="target", rows=2), **FACTS)
    def toy_search(adapters, loss, steps):
        """Searches."""

    @merge_method(label="Toy", **FACTS)
    def toy(deltas, weights):
        """Sums."""

    @merge_method(label="Toy control", control=True, recipe=Recipe(1e-3, 8), **FACTS)
    def toy_control(adapters):
        """Doubts."""

    expected = {
        "toy_router": ("router", "nothing"), "toy_learned_router": ("router", "coefficients"), "toy_learned": ("learned", "coefficients"),
        "toy_search": ("learned", "search"), "toy": ("static", "nothing"), "toy_control": ("control", "coefficients"),
    }  # fmt: skip
    assert {name: (describe(name).role, describe(name).cost) for name in expected} == expected
    ordered = sorted((describe(name) for name in (*expected, "base", "maths", "data_mix")), key=lambda found: found.position)
    assert [found.role for found in ordered] == sorted((found.role for found in ordered), key=ROLES.index)


def test_a_new_candidate_and_a_new_method_stand_everywhere_at_once(candidates, registered, preset, tmp_path):
    @candidate("halved", "Half a skill", "control", source="https://example.org")
    def halved(context):
        """The first skill, at half its strength."""
        skill = context.skill(context.section.skills[0])

        def load():
            adapter, facts = skill.load()
            modules = {m: LoraFactors(f.A, f.B / 2, f.scaling) for m, f in adapter.modules.items()}
            return dataclasses.replace(adapter, modules=modules), facts

        return Entry({"halved": skill.key}, load)

    @merge_method(label="Toy learned", recipe=Recipe(1e-3, 8), **FACTS)
    def toy_learned(adapters):
        """One coefficient for everything."""
        return Coefficients(adapters, parametrisation="free", granularity="model")

    methods = ["base", "maths", "halved", "toy_learned"]
    records = compare(MATH_CODE, preset, methods, [0], 3, out=tmp_path / "records", artifacts=tmp_path / "store")
    assert [r.method for r in records] == methods
    values = torch.tensor(next(r for r in records if r.method == "toy_learned").coefficients["values"])
    assert (values == values[:, :1]).all() and not (values == 0.5).all()
    table = tables.result_table(records, reference="toy_learned")
    assert table["role"].to_dict() == {"base": "base", "maths": "skill", "halved": "control", "toy_learned": "learned"}
    assert list(table.index) == ["base", "maths", "halved", "toy_learned"]
    assert "Half a skill" in (alt := figures.method_bars(table).alt) and "Toy learned" in alt
    found = plan.plan_section(MATH_CODE, preset, methods, [0], 3, plan.CPU)
    assert [job.name for job in found.jobs] == ["skill maths", "skill code", "toy_learned: coefficients, 1 rate"]
    assert found.prompts == 4 * (3 + 2 * preset.own_test)


def test_a_name_is_taken_once(candidates):
    for taken in ("halved", "base", "ties"):
        register = candidate(taken, "x", "control")
        if taken == "halved":
            register(lambda context: None)
        with pytest.raises(ValueError, match=f"two candidates are called '{taken}'"):
            register(lambda context: None)
    assert find("halved", MATH_CODE).role == "control"
