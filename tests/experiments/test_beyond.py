"""Beyond the paper: controls over all sections, more than two skills, and the atlas with its costs."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from lab.errors import LabError
from lab.evaluation import statistics
from lab.experiments import against_controls, all_methods, more_skills
from lab.experiments.candidates import find
from lab.experiments.context import RunContext
from lab.experiments.sections import MATH_CODE, QABOT, READING, SECTIONS, TWO_PROMPTS
from lab.experiments.store import Store
from lab.files import content_hash
from lab.lora.adapter import module_names
from lab.lora.base import load_base
from lab.lora.stacked import attach
from lab.merging import METHODS, build, concatenate, merge
from lab.pages import figures
from lab.records import tables
from lab.tasks import manual, manual_in_terms, manual_qa, second_manual
from lab.world.reading import words
from tests.records.test_results import OWN, saved

# Tasks


def test_a_second_manual_tells_of_other_creatures():
    first, second = ({e.completion for e in task.load("world", "train", 300, 0)} for task in (manual.TASK, second_manual.TASK))
    assert not first & second
    text = " ".join(second)
    assert all(creature in text for creature in words.SECOND_FACTS) and not any(creature in text for creature in words.MANUAL_FACTS)
    tests = second_manual.TASK.load("world", "test", 40, 0)
    assert all(v.score == 1 for v in second_manual.TASK.score([e.completion for e in tests], tests))
    with pytest.raises(LabError, match="not on the Hub"):
        second_manual.TASK.load("hub", "train", 1, 0)


def test_questions_in_terms_need_the_terms_and_the_manual():
    rows = manual_in_terms.TASK.load("world", "test", None, 0)
    plain = {e.prompt for e in manual_qa.TASK.load("world", "test", None, 0)}
    assert len(rows) == 275 and not {e.prompt for e in rows} & plain
    for row in rows[:50]:
        term = row.prompt.split("the ")[1].split()[0]
        creature = row.prompt.rstrip("\nReply:").rstrip("?").split()[-1]
        assert words.MANUAL_FACTS[creature][words.TECHNICAL[term]] == row.targets[0]
    shown = {manual_in_terms.TASK.template.format(text=text) for text, _ in manual_in_terms.demonstrations("world", 20)}
    assert len(shown) == 20 and not shown & {e.prompt for e in rows}
    with pytest.raises(LabError, match='only generated ones; give data="world"'):
        manual_in_terms.TASK.load("hub", "test", 1, 0)
    with pytest.raises(LabError, match="never trained on"):
        manual_in_terms.TASK.load("world", "train", 1, 0)


# More than two skills


def test_sets_grow_and_always_hold_what_the_target_needs():
    found = {more_skills.place(s): s for s in more_skills.sections()}
    needs = {target.name: set(needed) for target, needed in more_skills.NEEDS}
    assert all(needs[target] <= set(section.skills) for (target, _), section in found.items())
    assert [k for target, k in found if target == "manual_qa"] == [2, 3, 4, 5]
    assert [k for target, k in found if target == "technical_reading"] == [2, 4, 5]
    assert [k for target, k in found if target == "manual_in_terms"] == [3, 4, 5]
    assert len({s.name for s in found.values()}) == len(found)
    assert max(len(s.skills) for s in more_skills.sections(4)) == 4
    with pytest.raises(LabError, match="a whole number from 3 to 5"):
        more_skills.sections(6)


def test_one_adapter_for_all_sets_one_merge_for_all_targets(tiny_base, tmp_path):
    model, tokenizer = load_base(str(tiny_base))
    found = {more_skills.place(s): s for s in more_skills.sections()}
    preset = READING.preset("embedded", str(tiny_base), settings={"train_rows": 40})

    def key(section, method):
        context = RunContext(section, preset, 0, Store(tmp_path), model, tokenizer)
        return content_hash(find(method, section).make(context).key)

    for method in ("cat", "cat_static", "moe", "new_lora", "random_loras", "rescale_one", "data_mix"):
        assert key(found["manual_qa", 4], method) == key(found["technical_reading", 4], method) == key(found["manual_in_terms", 4], method)
        sets = [key(found["manual_qa", k], method) for k in (2, 3, 4, 5)] + [key(found["technical_reading", 2], method)]
        assert len(set(sets)) == len(sets)
    assert key(QABOT, "manual") == key(found["manual_qa", 2], "manual") == key(found["technical_reading", 5], "manual")
    assert key(READING, "terms") == key(found["manual_in_terms", 3], "terms")
    assert key(found["manual_qa", 5], "second_manual") == key(found["manual_in_terms", 5], "second_manual")
    assert key(QABOT, "cat") == key(found["manual_qa", 2], "cat")


def test_growth_compares_the_largest_set_with_the_smallest(tmp_path):
    scores = {2: [1.0] * 20, 5: [0.0] * 12 + [1.0] * 8}
    records = {}
    for k, right in scores.items():
        skills = [task.name for task in more_skills.SKILLS[:k]]
        own = dict.fromkeys(skills, 0.5)
        given = {"skills": skills, "modules": ["m", "n"], "values": [[0.1 * i, 0.1 * i + 0.2] for i in range(k)]}
        options = {"section": f"s{k}", "own": own, "seconds": {"make": float(k)}}
        records["manual_qa", k] = [
            saved(tmp_path, "base", 0, [0.0] * 20, **options),
            *(saved(tmp_path, "cat", seed, right, parameters={"rank": 16 * k}, coefficients=given, **options) for seed in (0, 1)),
        ]
    table = more_skills.scores(records)
    last = table.loc["manual_qa", "cat", 5]
    assert last["change_difference"] == pytest.approx(-0.6) and last["change_verdict"] == "worse"
    assert (last["rank"], last["seconds"], last["seeds"]) == (80, 5, 2)
    assert np.isnan(table.loc[("manual_qa", "cat", 2), "change_difference"]) and np.isnan(table.loc[("manual_qa", "base", 5), "rank"])
    shown = more_skills.format_scores(table, "manual_qa")
    assert shown.loc["CAT", "5 minus 2 skills, points"].startswith("−60.0") and shown.loc["Base", "p (Holm)"] == ""
    assert shown.loc["CAT", "5 skills, %"].startswith("40.0 (") and shown.loc["CAT", "n × seeds"] == "20 × 2"
    largest = ("manual_qa", "cat", 5)
    fewer = pd.concat([table.drop(largest), table.loc[[largest]].rename(index={5: 3}, level="k")])  # asked with up to three skills only
    line = more_skills.format_scores(fewer, "manual_qa").loc["CAT"]
    assert line["3 skills, %"].startswith("40.0 (") and line["5 minus 2 skills, points"] == line["p (Holm)"] == ""
    given = more_skills.coefficients(records)
    assert given.loc[("cat", "terms", 5), "value"] == pytest.approx(0.3) and len(given) == 7
    assert more_skills.finding(table, given, "cat") == (
        "CAT, from the skills that a target needs to all: manual qa 100.0 % with 2, 40.0 % with 5 (a clear loss). "
        "Best with all: manual qa CAT (40.0 %). "
        "Of 5 skills it gives least to manual (0.10 of an equal 0.20)."
    )
    chart = figures.lines(more_skills.score_panels(table, ["cat"]), "skills", "right, %", "Growth")
    assert chart.axes[0].lines[0].get_ydata().tolist() == [100, 40] and "CAT: 100 at 2, 40 at 5" in chart.alt
    high = {"low": pd.DataFrame({"value": [1.0]}, index=[2]), "high": pd.DataFrame({"value": [9.0]}, index=[2])}
    shared = figures.lines({name: {name: line} for name, line in high.items()}, "skills", "right, %", "Growth").axes
    assert all(axes.get_ylim()[0] == 0 and axes.get_ylim()[1] > 9 for axes in shared)
    assert list(more_skills.coefficient_panels(given)["CAT"])[-1] == "equal shares"


def test_coefficients_of_ranks_are_means_over_a_skills_ranks():
    names = [f"{task.name}[{j}]" for task in more_skills.SKILLS[:3] for j in (0, 1)]
    given = {"skills": names, "modules": ["m"], "values": [[0.0], [1.0], [0.2], [0.2], [0.4], [-0.4]]}
    record = SimpleNamespace(method="rank_cat", seed=0, coefficients=given)
    noise = SimpleNamespace(method="random_loras", seed=0, coefficients=given)  # not what it gives to skills
    found = more_skills.coefficients({("manual_in_terms", 3): [record, noise], ("manual_qa", 3): [record]})
    assert found["value"].to_dict() == pytest.approx(
        {("rank_cat", "manual", 3): 0.5, ("rank_cat", "instruction", 3): 0.2, ("rank_cat", "terms", 3): 0.0}
    )
    assert more_skills.coefficients({("manual_qa", 2): []}).empty


def test_speeds_are_told_for_every_set(tiny_base, tmp_path):
    preset = READING.preset("embedded", str(tiny_base), settings={"rank": 2, "train_rows": 8})
    two = [s for s in more_skills.sections() if s.name.endswith("manual_qa_2")]
    found = more_skills.speeds(two, preset, 0, tmp_path, rows=2, tokens=3)
    assert list(found.index) == [2] and list(found) == ["folded", "stacked", "router"] and (found > 0).all(axis=None)
    assert len(list(tmp_path.glob("skill-*"))) == 2


# Controls


@pytest.fixture
def controlled(tmp_path):
    """CAT solves 15 of 20 problems: more than noise and base, as many as data-mix, fewer than one skill; CAT per rank all."""
    right = {"cat": 15, "rank_cat": 20, "data_mix": 15, "code": 20, "maths": 3, "random_loras_per_rank": 1}
    names = against_controls.methods(MATH_CODE, ["cat", "rank_cat"])
    return [
        saved(tmp_path, name, seed, [1.0] * right.get(name, 0) + [0.0] * (20 - right.get(name, 0)), own=OWN)
        for name in names for seed in ((0,) if name == "base" else (0, 1))
    ]  # fmt: skip


def test_every_control_of_every_learned_merge(controlled):
    table = against_controls.table({"5.1": controlled}, ["cat", "rank_cat"])
    assert len(table) == 2 * (len(against_controls.CONTROLS) - 1) and against_controls.CONTINUAL not in against_controls.methods(MATH_CODE, ["cat"])
    assert against_controls.CONTINUAL in against_controls.methods(QABOT, ["cat"])
    assert table.loc[("5.1", "cat", against_controls.BEST_SKILL), "method"] == "code"
    assert table.loc[("5.1", "cat", against_controls.NOISE), "method"] == "random_loras"
    noise = table.loc[("5.1", "rank_cat", against_controls.NOISE)]
    assert noise["method"] == "random_loras_per_rank" and noise["difference"] == pytest.approx(0.95) and noise["verdict"] == "better"
    verdicts = table.loc[("5.1", "cat")]["verdict"]
    assert verdicts["Data mix"] == "unclear" and verdicts["Base"] == "better"
    told = against_controls.finding(table)
    assert "CAT per rank is clearly ahead in 7 of 9 comparisons with a control and clearly behind in 0." in told
    assert against_controls.headline(table)["number"] == "7 of 9"
    assert {"code"} < set(against_controls.methods(MATH_CODE, ["cat"])) and "random_loras_per_rank" not in against_controls.methods(MATH_CODE, ["cat"])
    with pytest.raises(LabError, match="one to three"):
        against_controls.methods(MATH_CODE, [])


def test_a_loss_is_told_with_its_control_and_section(tmp_path):
    names = against_controls.methods(MATH_CODE, ["cat"])
    records = [saved(tmp_path, name, 0, [float(name in ("cat_static", "code"))] * 30, own=OWN) for name in names]
    told = against_controls.finding(against_controls.table({"5.1 math code": records}, ["cat"]))
    assert told.endswith("clearly behind in 2 (Best skill alone: 5.1 math code; Static CAT: 5.1 math code).")


def test_differences_agree_with_the_table_of_results(controlled):
    by_method = {name: [r for r in controlled if r.method == name] for name in ("cat", "code", "base")}
    found = tables.differences({("code",): (by_method["code"], by_method["cat"]), ("base",): (by_method["base"], by_method["cat"])})
    table = tables.result_table(controlled, "cat")
    for name in ("code", "base"):
        assert found.loc[(name,), "difference"] == pytest.approx(table.at[name, "difference"])
        assert found.loc[(name,), "low"] == pytest.approx(table.at[name, "difference_low"])
    assert found["p_holm"].tolist() == pytest.approx(list(statistics.holm(dict(enumerate(found["p"]))).values()))
    shorter = [dataclasses.replace(r, path=None) for r in by_method["cat"]]
    with pytest.raises(LabError, match="was not saved"):
        tables.differences({("x",): (by_method["code"], shorter)})


def test_forest_has_a_panel_per_section_and_a_sign_per_merge(controlled):
    table = pd.concat([against_controls.table({name: controlled}, ["cat", "rank_cat"]) for name in ("a", "b", "c")])
    chart = figures.forest(table)
    assert [axes.get_title() for axes in chart.axes] == ["a", "b", "c"]
    signs = [c for c in chart.axes[0].collections if len(c.get_offsets()) == len(against_controls.CONTROLS) - 1]
    assert len(signs) == 2 and signs[0].get_offsets()[0][0] == pytest.approx(75)  # CAT against the base
    assert "CAT per rank and Random LoRAs, c: +95.0, better" in chart.alt


# The atlas


def test_memory_is_that_of_the_merge_or_of_all_skills_with_their_router(tiny_base, tmp_path):
    preset = MATH_CODE.preset("embedded", str(tiny_base), settings={"rank": 3, "lora_alpha": 4, "train_rows": 8})
    model, tokenizer = load_base(str(tiny_base))
    context = RunContext(MATH_CODE, preset, 0, Store(tmp_path), model, tokenizer)

    def told(method, rank):
        parameters = {"preset": dataclasses.asdict(preset), "rank": rank} if rank else {"preset": dataclasses.asdict(preset)}
        return 1e6 * all_methods.memory(SimpleNamespace(method=method, parameters=parameters), MATH_CODE, model)

    def held(adapter):
        return sum(4 * (f.A.numel() + f.B.numel()) for f in adapter.modules.values())

    together = concatenate(context.skills, torch.ones(2, len(module_names(context.skills))), name="x", recipe={})
    assert told("cat", 6) == pytest.approx(held(together)) and told("maths", 3) == pytest.approx(held(context.skills[0]))
    assert told("svd", 3) == pytest.approx(held(merge("svd", context.skills))) and told("base", 0) == 0
    with attach(model, context.skills) as stack:
        routers = {name: build(name, stack) for name in ("moe", "arrow")}
    for name, router in routers.items():
        tensors = router.parameters() if name == "moe" else [b for n, b in router.named_buffers() if n.startswith("prototypes")]
        assert told(name, 6) == pytest.approx(held(together) + sum(4 * t.numel() for t in tensors))


def test_nothing_on_the_front_is_beaten():
    rng = np.random.default_rng(0)
    cost, score = rng.integers(0, 9, 60).astype(float), rng.integers(0, 9, 60).astype(float)
    front = figures._front(cost, score)
    beaten = {
        i for i in range(60)
        if any((cost[j] <= cost[i] and score[j] >= score[i]) and (cost[j], score[j]) != (cost[i], score[i]) for j in range(60))
    }  # fmt: skip
    assert not beaten & set(front)
    assert {(cost[i], score[i]) for i in range(60) if i not in beaten} == {(cost[i], score[i]) for i in front}


def test_what_the_atlas_asks_of_a_section():
    assert all_methods.section_of(MATH_CODE).name == "x3_methods" and all_methods.section_of(READING).name == "x3_methods_s5_3_reading"
    assert set(METHODS) < set(all_methods.methods(MATH_CODE)) and {"maths", "code", "base", "data_mix"} < set(all_methods.methods(MATH_CODE))
    assert "lorahub" in all_methods.methods(READING) and "lorahub" not in all_methods.methods(TWO_PROMPTS)  # it has no worked examples
    for section in SECTIONS.values():
        for name in all_methods.methods(section):
            find(name, section)
    assert MATH_CODE.title == "5.1 math code" and TWO_PROMPTS.title == "5.4 prompt formats two prompts"
