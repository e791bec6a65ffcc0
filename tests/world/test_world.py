"""The embedded world: chains add up, programs run, splits are apart, and the base's text gives nothing away."""

import random
import re

import pytest

from lab.errors import LabError
from lab.lora.base import EMBEDDED, load_base
from lab.world import lexicon
from lab.world.chains import Chain, big_chain, program_lines, small_chain, worked_steps
from lab.world.orders import make_orders
from lab.world.probe import PROBES, probe
from lab.world.recipe import get_world
from lab.world.stories import SPLITS, bucket, make_stories, solution_in_words
from lab.world.text import documents


def run(program: str):
    names: dict = {}
    exec(program, names)  # the project's own text, not a model's
    return names["solution"]()


@pytest.mark.parametrize("make", [small_chain, big_chain])
def test_chain_result_is_what_its_program_computes(make):
    rng = random.Random(1)
    for _ in range(200):
        chain = make(rng)
        names: dict = {}
        exec("\n".join(program_lines(chain, "x")), names)
        assert names["x"] == chain.result
        assert all(after >= 0 for *_, after in chain.trace())


def test_small_chains_stay_in_the_table():
    rng = random.Random(2)
    for _ in range(300):
        assert all(0 <= after <= 99 for *_, after in small_chain(rng).trace())


def test_worked_steps_are_true_sums():
    rng = random.Random(3)
    for _ in range(100):
        for a, sign, b, c in re.findall(r"(\d+) (plus|minus|times) (\d+) is (\d+)", worked_steps(small_chain(rng))):
            assert {"plus": int(a) + int(b), "minus": int(a) - int(b), "times": int(a) * int(b)}[sign] == int(c)


def test_skipped_operations_do_not_count():
    assert Chain((5,), (("skip", 3), ("+", 2))).result == 7


def test_orders_return_their_value():
    for order in make_orders("train", 5, 300):
        assert run(order.program) == order.value


@pytest.mark.parametrize("make", [make_stories, make_orders])
def test_splits_share_no_text_and_no_skeleton(make):
    rows = {split: make(split, seed, 400) for seed, split in enumerate(SPLITS)}
    for a in SPLITS:
        for b in SPLITS:
            if a != b:
                assert not {r.text for r in rows[a]} & {r.text for r in rows[b]}
                assert not {r.skeleton for r in rows[a]} & {r.skeleton for r in rows[b]}


def test_target_stories_are_test_stories_with_large_numbers():
    for story in make_stories("test", 0, 100, large=True):
        assert bucket(story.skeleton) in SPLITS["test"]
        assert max(story.numbers) >= 1000


def test_same_seed_same_rows_and_another_seed_others():
    assert make_stories("train", 3, 20) == make_stories("train", 3, 20)
    assert make_stories("train", 3, 20) != make_stories("train", 4, 20)


def test_stories_vary():
    stories = make_stories("train", 0, 1000)
    assert len({s.skeleton for s in stories}) > 950
    used = {frame for s in stories for frame in s.skeleton}
    assert all(frame in used for frames in lexicon.EVENTS.values() for frame in frames)


def test_base_text_holds_no_skill():
    """No answer prompt, no `solution`, and never an outcome of a story's events."""
    stream = documents(11)
    frames = [f for frames in lexicon.EVENTS.values() for f in frames]
    verbs = [re.escape(max(re.split(r"\{\w\}", f), key=len).strip(" .")) for f in frames]
    for _ in range(3000):
        text = next(stream)
        assert "solution" not in text and "Question:" not in text and "Answer:" not in text and "Program:" not in text
        if any(re.search(rf"\b{verb}\b", text) for verb in verbs):
            assert not any(mark in text for mark in ("Signs:", "Words:", "Steps:", "Python:")), text


def test_solution_in_words_ends_in_the_answer():
    for story in make_stories("test", 0, 50):
        assert solution_in_words(story).endswith(f"The answer is {story.chain.result}.")


def test_tokenizer_reads_anything_and_groups_digits(tokenizer):
    text = "Tom has 48213 apples.\n    x = x + 5 # é ∑ 你好\tend"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.convert_ids_to_tokens(tokenizer("48213")["input_ids"]) == ["482", "13"]


@pytest.mark.parametrize("name", EMBEDDED)
def test_shipped_bases_have_the_mechanics(name):
    """Each ability is asked in the form that the base has read: a probe in another form would find nothing."""
    assert get_world(name).folder == EMBEDDED[name]
    found = probe(name, *load_base(name), 10)
    assert found.keys() == PROBES[name].keys() and max(found.values()) >= 0.8


def test_probes_tell_right_from_wrong(tiny_base):
    assert set(probe("embedded", *load_base(str(tiny_base)), 5).values()) == {0}


def test_unknown_world():
    with pytest.raises(LabError, match="no embedded world 'moon'; choose embedded, embedded-reading, embedded-letters"):
        get_world("moon")
