"""The text of alphas: what it means, that it round-trips, and that every mistake is told with its line."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.cli.main import main
from lab.errors import LabError
from lab.lora.peft_io import save
from lab.merging import merge, merge_full_rank
from lab.merging.alphas import Grid, format_alphas, parse_alphas, settle
from tests.tiny_models import llama, two_skills

KINDS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj")
MODULES = tuple(f"model.layers.{layer}.{kind}" for layer in range(4) for kind in KINDS)
GRID = Grid(("maths", "code"), MODULES, np.ones((2, 12), dtype=bool))


def cell(values, skill, layer, kind, grid=GRID):
    return values[grid.skills.index(skill), grid.places.index((layer, kind))]


def test_rules_change_what_they_name_and_nothing_else():
    values = parse_alphas("layers 0-1,3 q,v: 0.3", GRID, GRID.flat(0.9))
    for skill in GRID.skills:
        for layer in range(4):
            for kind in GRID.kinds:
                named = layer in (0, 1, 3) and kind in ("q_proj", "v_proj")
                assert cell(values, skill, layer, kind) == (0.3 if named else 0.9)


def test_later_rules_go_over_earlier_ones_and_groups_and_lists_work():
    values = parse_alphas("maths: 1 # all\ncode: 0; maths layers 2 mlp: 0.25\nmaths layers 3 v,q: 0.4 -0.5", GRID)
    assert cell(values, "maths", 2, "up_proj") == 0.25 and cell(values, "maths", 2, "q_proj") == 1
    assert cell(values, "maths", 3, "v_proj") == 0.4 and cell(values, "maths", 3, "q_proj") == -0.5
    assert (values[1] == 0).all()


@pytest.mark.parametrize(
    "curve, by_layer",
    [
        ("flat 0.7", [0.7] * 4),
        ("ramp 0 3", [0, 1, 2, 3]),
        ("early 0 1", [1, 1, 0, 0]),
        ("late 0 1", [0, 0, 1, 1]),
        ("ring 0 1", [0, 0.866, 0.866, 0]),
        ("complement maths", [0.8] * 4),
    ],
)
def test_curves(curve, by_layer):
    values = parse_alphas(f"maths: 0.2\ncode: {curve}", GRID)
    assert [cell(values, "code", layer, "q_proj") for layer in range(4)] == pytest.approx(by_layer, abs=1e-4)


def test_a_skill_may_also_stand_before_the_value():
    assert (parse_alphas("layers 0-1 q,v: maths 0.3", GRID) == parse_alphas("maths layers 0-1 q,v: 0.3", GRID)).all()
    assert (parse_alphas("mlp: code late 0.1 1", GRID) == parse_alphas("code mlp: late 0.1 1", GRID)).all()
    with pytest.raises(LabError, match="not a number"):
        parse_alphas("code: maths 0.3", GRID)  # one skill or the other


def test_random_does_not_depend_on_what_else_is_loaded():
    other = Grid(("art", "code", "maths"), MODULES[3:], np.ones((3, 9), dtype=bool))
    here, there = (parse_alphas("layers all: random 0 1 seed 3", grid) for grid in (GRID, other))
    assert (here[0, 3:] == there[2]).all() and (here[1, 3:] == there[1]).all()


def test_random_is_seeded_and_in_range():
    one, same, other = (parse_alphas(f"maths: random 0.2 0.6 seed {seed}", GRID) for seed in (1, 1, 2))
    assert (one == same).all() and (one != other).any()
    assert one[0].min() >= 0.2 and one[0].max() <= 0.6 and len(set(one[0])) > 6


@st.composite
def grids(draw):
    names = draw(st.lists(st.sampled_from(["maths", "code", "my-skill.2", "q"]), min_size=1, max_size=3, unique=True))
    kinds = draw(st.sampled_from([KINDS, ("attn.c_proj", "mlp.c_proj"), ("self_attn.q_proj",)]))
    modules = [f"model.layers.{layer}.{kind}" for layer in range(draw(st.integers(1, 12))) for kind in kinds]
    modules += draw(st.sampled_from([[], ["lm_head"]]))
    present = draw(st.lists(st.booleans(), min_size=len(names) * len(modules), max_size=len(names) * len(modules)))
    present = np.array(present).reshape(len(names), len(modules))
    present[0, 0] = True
    return Grid(tuple(names), tuple(modules), present)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_format_and_parse_are_inverse(data):
    grid = data.draw(grids())
    few = st.sampled_from([0.0, 0.5, 1.0, -0.25])
    number = st.one_of(few, st.floats(-10, 10).map(lambda x: round(x, 4)))
    cells = data.draw(st.lists(number, min_size=grid.present.size, max_size=grid.present.size))
    values = settle(np.array(cells).reshape(grid.present.shape), grid)
    assert (parse_alphas(format_alphas(values, grid), grid) == values).all()


def test_a_flat_setting_is_one_line_per_skill():
    assert format_alphas(GRID.flat(0.8), GRID) == "maths: 0.8\ncode: 0.8"
    values = parse_alphas("maths: 0.8\ncode: 0.8\nmaths layers 1-2 q: 0.1", GRID)
    assert format_alphas(values, GRID) == "maths: 0.8\nmaths layers 1-2 q: 0.1\ncode: 0.8"


@pytest.mark.parametrize(
    "text, said",
    [
        ("maths: 1\nnonsense", "Line 2"),
        ("maths: nan", "not a number"),
        ("maths: 11", "not a number from -10"),
        ("maths: inf", "not a number"),
        ("layers 0-9 q: 1", "no layers 0-9"),
        ("layers q: 1", "no layer"),
        ("foo: 1", "neither a skill"),
        ("maths q v: 1", "too many"),
        ("maths: 1 2", "as many kinds"),
        ("code: complement art", "name of one skill"),
        ("", "no rule"),
        ("maths: ramp 1 2 3", "two numbers"),
        ("maths: random 0 1 seed x", "seed"),
        ("maths:", "value"),
        ("layers 3-1: 1", "no layers"),
    ],
)
def test_mistakes_are_told(text, said):
    with pytest.raises(LabError, match=said):
        parse_alphas(text, GRID)


# In a merge


def test_alphas_of_a_merge_are_its_coefficients():
    """Σ αᵢᵐ ΔWᵢᵐ by hand; modules that no rule names keep the weights; the order of adapters does not matter."""
    adapters = two_skills(llama())
    rules = "layers 0 q: {0} 0.3; {1} layers 1: -0.25".format(*(a.name for a in adapters))
    merged = merge("cat_static", adapters, [0.7, 0.4], alphas=rules)
    grid = Grid.of(adapters)
    alphas = parse_alphas(rules, grid, grid.flat(np.array([[0.7], [0.4]])))
    assert len({*alphas[grid.present]}) == 4
    for column, module in enumerate(grid.modules):
        pairs = [(alphas[row, column], a) for row, a in enumerate(adapters) if module in a.modules]
        assert torch.allclose(merged.delta_weight(module), sum(x * a.delta_weight(module) for x, a in pairs).float(), atol=1e-6)
    assert (parse_alphas(merged.recipe["alphas"], grid) == alphas).all()
    again = merge("cat_static", adapters[::-1], alphas=merged.recipe["alphas"])
    assert again.recipe["alphas"] == merged.recipe["alphas"]
    whole = merge_full_rank("cat_static", adapters, alphas=merged.recipe["alphas"])
    for module in grid.modules:
        assert torch.equal(again.delta_weight(module), merged.delta_weight(module))
        assert torch.allclose(whole.modules[module].delta_weight(), merged.delta_weight(module), atol=1e-6)


def test_flat_alphas_are_weights():
    adapters = two_skills(llama())
    flat = merge("cat_static", adapters, alphas="; ".join(f"{a.name}: {w}" for a, w in zip(adapters, (0.7, 0.3), strict=True)))
    weighted = merge("cat_static", adapters, [0.7, 0.3])
    assert all(torch.allclose(flat.delta_weight(m), weighted.delta_weight(m), atol=1e-6) for m in weighted.modules)


def test_library_and_command_line_tell_the_same_mistakes(tmp_path, capsys):
    adapters = two_skills(llama())
    folders = []
    for adapter in adapters:
        save(tmp_path / adapter.name, adapter)
        folders.append(str(tmp_path / adapter.name))
    for method, rules in (("cat_static", "layers 77: 1"), ("cat_static", ""), ("ties", f"{adapters[0].name}: 1")):
        with pytest.raises(LabError) as told:
            merge(method, adapters, alphas=rules)
        assert main(["merge", *folders, "--method", method, "--alphas", rules, "--out", str(tmp_path / "out")]) == 2
        assert str(told.value) in capsys.readouterr().err and not (tmp_path / "out").exists()
