"""The reading world: what the base never sees, what splits never share, and facts that the manual really states."""

import re
from itertools import islice

import pytest

from lab.world.reading import manual, passages, terms, text, words
from lab.world.reading.facts import TELLINGS


@pytest.fixture(scope="module")
def base_text():
    return "\n".join(islice(text.documents(0), 3000))


def test_the_base_never_reads_what_the_skills_bring(base_text):
    seen = set(re.findall(r"\w+", base_text))
    for brought in (words.MANUAL, words.SECOND_MANUAL, words.TECHNICAL):
        assert not seen & set(brought)
    assert "?" not in base_text and "answer" not in base_text  # questions in natural words, and the form of the reply
    assert seen & set(words.ASKED) and seen & set(words.TOLD) and seen & set(words.DIALECT)


def test_only_asked_creatures_have_cards(base_text):
    carded = set(re.findall(r"(\w+), \w+: ", base_text))
    assert carded and carded <= set(words.ASKED)


def test_made_up_words_are_all_different():
    every = [*words.ASKED, *words.TOLD, *words.MANUAL, *words.SECOND_MANUAL, *words.DIALECT, *words.TECHNICAL]
    plain = {*words.PLACES, *words.FOODS, *words.THINGS, *words.COLOURS}
    assert len(set(every)) == len(every) and not plain & set(every)


def test_the_manual_states_every_fact_in_several_wordings():
    told = "\n".join(manual.pages("train", 0, 3000))
    for creature, facts in words.MANUAL_FACTS.items():
        for relation, value in facts.items():
            named = [f.format(s=name, v=value) for f in TELLINGS[relation] for name in (f"The {creature}", f"the {creature}")]
            assert sum(sentence in told for sentence in named) >= 3, (creature, relation)


def test_questions_have_their_answers_in_the_manual_and_shown_ones_are_never_asked():
    asked, shown = manual.questions("test", 0, 2000), manual.questions("shown", 0, 2000)
    for question, answer, card in asked:
        creature = next(c for c in words.MANUAL if c in question)
        assert any(card == manual.card(creature, r, answer) and words.MANUAL_FACTS[creature][r] == answer for r in words.RELATIONS)
    assert len({question for question, *_ in asked}) == len(asked)
    assert {c for c in words.MANUAL for q, *_ in asked if c in q}.isdisjoint({c for c in words.MANUAL for q, *_ in shown if c in q})


def test_other_matters_are_of_other_creatures_in_every_split():
    asked = {split: " ".join(question for question, *_ in manual.others(split, 0, 5000)) for split in manual.OTHERS}
    splits = {split: {creature for creature in words.TOLD if creature in text} for split, text in asked.items()}
    assert all(splits.values())
    assert not splits["train"] & splits["test"] and not splits["train"] & splits["calibration"] and not splits["test"] & splits["calibration"]


@pytest.mark.parametrize("make", [passages.plain, passages.technical])
def test_passages_hold_their_answer_once_and_splits_share_none(make):
    rows = {split: make(split, 0, 150) for split in passages.SPLITS}
    for row in rows.values():
        assert all(len(re.findall(rf"\b{answer}\b", passage)) == 1 for passage, _, answer, _ in row)
    told = [passage for row in rows.values() for passage, *_ in row]
    assert len(set(told)) == len(told)


def test_technical_passages_name_no_thing_by_its_plain_word():
    for passage, question, *_ in passages.technical("test", 0, 100):
        assert not set(re.findall(r"\w+", passage)) & set(words.THINGS)
        assert set(re.findall(r"\w+", question)) & set(words.THINGS)


def test_terms_are_explained_truly():
    for beginning, plain in terms.cloze(0, 1000):
        assert any(words.TECHNICAL.get(word) == plain for word in re.findall(r"\w+", beginning))
    taught = "\n".join(terms.pages("train", 0, 1000))
    assert all(word in taught for word in words.TECHNICAL)


def test_the_same_seed_gives_the_same_rows_and_another_gives_others():
    assert manual.pages("train", 1, 20) == manual.pages("train", 1, 20) != manual.pages("train", 2, 20)
    assert passages.plain("train", 1, 20) == passages.plain("train", 1, 20) != passages.plain("train", 2, 20)
