"""Rewriting tasks: prompts, splits, and what the scorer says of a rewriting that lacks a change."""

from collections import Counter
from dataclasses import replace

import pytest

from lab.errors import LabError
from lab.tasks import Example, prompts, rewriting
from lab.world.rewriting.sentences import CHANGES, make_sentences, realise

PAIR = ("past", "passive")


def test_skills_see_one_change_and_targets_see_a_test_alone():
    for change in CHANGES:
        rows = rewriting.skill(change).load("world", "train", 50, 0)
        assert all(row.metadata["changes"] == (change,) and set(row.metadata["golds"]) == {"unchanged", change} for row in rows)
    for changes in (*rewriting.PAIRS, *rewriting.TRIPLES):
        task = rewriting.target(changes)
        assert len(task.load("world", "test", 5, 0)[0].metadata["golds"]) == 2 ** len(changes)
        with pytest.raises(LabError, match="never trained on"):
            task.load("world", "train", 5, 0)


def test_rows_are_the_same_in_both_styles_and_from_every_source():
    common, named = (rewriting.target(PAIR, style).load("world", "test", 20, 3) for style in rewriting.STYLES)
    assert [row.targets for row in common] == [row.targets for row in named]
    assert rewriting.target(PAIR).load("a folder", "test", 20, 3) == common
    first = "Rewrite in the past tense and in the passive voice.\n"
    assert all(b.prompt == first + a.prompt for a, b in zip(common, named, strict=True))
    assert all(row.prompt.startswith("Sentence: ") and row.prompt.endswith("\nRewritten:") for row in common)
    ask = "Rewrite in the past tense, in the passive voice and with its subject in the plural.\n"
    assert rewriting.target(("plural", "past", "passive"), "named").template.startswith(ask)


def test_no_row_of_a_skill_is_in_two_splits():
    rows = {split: rewriting.skill("past").load("world", split, 300, 0) for split in ("train", "calibration", "test")}
    asked = [row.prompt for found in rows.values() for row in found]
    assert len(set(asked)) == 900


def test_demonstrations_show_the_composed_rewriting_in_training_words():
    task = rewriting.target(PAIR, "named")
    shown = task.demonstrations("world")
    assert len(shown) == 2 and len(task.demonstrations("world", 5)) == 5
    assert all(" by " in gold and gold.startswith(" ") for _, gold in shown)
    text = prompts.demonstrate(task.template, shown)
    assert text.count("Rewrite in the past tense and in the passive voice.\nSentence: ") == 2
    assert not {text for text, _ in task.demonstrations("world", 50)} & {r.prompt for r in task.load("world", "test", 200, 0)}


def test_scorer_says_which_change_is_missing():
    row = rewriting.target(PAIR).load("world", "test", 1, 0)[0]
    golds = row.metadata["golds"]
    both = golds["past and passive"]
    said = {
        both: ("right", 1, 1), f" {both[:-1].upper()} ! \nSentence:": ("right", 1, 1), golds["past"]: ("only past", 1, 0),
        golds["passive"]: ("only passive", 0, 1), golds["unchanged"]: ("unchanged", 0, 0), both[:-1] + " now.": ("inexact", 1, 1),
        golds["past"][:-1] + " now.": ("only past", 1, 0), "Twelve elephants": ("other", 0, 0), " \n ": ("no answer", 0, 0),
    }  # fmt: skip
    verdicts = rewriting.score_rewritings(list(said), [row] * len(said))
    assert [(v.reason, v.extras["past"], v.extras["passive"]) for v in verdicts] == list(said.values())
    assert all((v.score == 1) == (v.extras["edit_distance"] == 0) == (v.reason == "right") for v in verdicts)
    with pytest.raises(LabError, match="2 completions but 1 examples"):
        rewriting.score_rewritings(["a", "b"], [row])


def test_a_dropped_ending_hides_no_change_and_adds_none():
    told = Counter()
    for sentence in make_sentences("test", 0, 60, PAIR):
        golds = {rewriting.name(found): realise(sentence, found) for found in rewriting.subsets(PAIR)}
        row = Example("", "", metadata={"changes": PAIR, "golds": golds})
        shorter = replace(sentence, place="", time="", clause=("", ""))
        for changes, made in zip(rewriting.subsets(PAIR), golds, strict=True):
            (verdict,) = rewriting.score_rewritings([realise(shorter, changes)], [row])
            found = "past and passive" if verdict.reason in ("right", "inexact") else verdict.reason.removeprefix("only ")
            told[found == made, verdict.reason == "other"] += 1
    assert not told[False, False] and told[True, False] > 10 * told[False, True]


@pytest.mark.parametrize("changes", [*rewriting.PAIRS, *rewriting.TRIPLES, CHANGES])
def test_every_gold_is_told_apart_from_every_other(changes):
    for row in rewriting.target(changes).load("world", "test", 8, 0):
        for name, gold in row.metadata["golds"].items():
            (verdict,) = rewriting.score_rewritings([gold], [row])
            wanted = "right" if (gold,) == row.targets else name if name == "unchanged" else f"only {name}"
            assert verdict.reason == wanted
    assert row.targets[0] == row.completion.strip() == row.metadata["golds"][rewriting.name(changes)]


def test_task_scores_its_own_completions_right():
    rows = rewriting.target(PAIR).load("world", "test", 30, 0)
    task = rewriting.target(PAIR)
    assert all(v.score == 1 for v in task.score([r.completion for r in rows], rows))
    wrong = task.score([r.metadata["golds"]["past"] for r in rows], rows)
    assert all(v.score == 0 and 0 < v.extras["edit_distance"] < 1 for v in wrong)


@pytest.mark.parametrize(
    "first, second, distance",
    [("", "", 0), ("kitten", "sitting", 3 / 7), ("", "abc", 1), ("abc", "abc", 0), ("flaw", "lawn", 2 / 4), ("ab", "ba", 1)],
)
def test_edit_distance(first, second, distance):
    assert rewriting.edit_distance(first, second) == rewriting.edit_distance(second, first) == pytest.approx(distance)


def test_tasks_are_named_by_what_they_are_and_nonsense_is_refused():
    assert rewriting.target(("passive", "past")).name == rewriting.target(PAIR).name == "rewriting_past_passive"
    names = {rewriting.skill(change, style).name for change in CHANGES for style in rewriting.STYLES}
    names |= {rewriting.target(c, style).name for c in (*rewriting.PAIRS, *rewriting.TRIPLES) for style in rewriting.STYLES}
    assert len(names) == 2 * (5 + 10 + 10)
    for wrong in (("past", "past"), ("past", "future")):
        with pytest.raises(LabError, match="no set of changes"):
            rewriting.target(wrong)
    with pytest.raises(LabError, match="at least two"):
        rewriting.target(("past",))
    with pytest.raises(LabError, match="no style 'polite'"):
        rewriting.skill("past", "polite")


def test_example_sentences_are_ten_different_test_sentences():
    found = rewriting.example_sentences()
    assert len(found) == len(set(found)) == 10 and all(5 <= len(text.split()) <= 9 for text in found)
