"""The one way to ask a model: order and batches change nothing, and what is remembered is named by all that decides it."""

import dataclasses
import random
from types import SimpleNamespace

import pytest

from lab.errors import LabError
from lab.evaluation.evaluate import Decoding, Evaluation, evaluate, scored_rows
from lab.evaluation.likelihood import most_likely
from lab.evaluation.scorers import Verdict
from lab.lora.base import load_base
from lab.tasks import Example, Task

WORDS = "Tom has 3 apples and buys 12 more of them . How many are there in the box now ?".split()


def graded(completions, examples):
    """Right when the completion is a target, unscored where there is none."""
    return [
        Verdict("unscored", None, "") if not e.targets else Verdict(*(("right", 1.0) if c in e.targets else ("wrong", 0.0)), c, {"length": len(c)})
        for c, e in zip(completions, examples, strict=True)
    ]  # fmt: skip


TASK = Task("toy", 1, "A toy", "{text}", lambda *_: [], graded, 6)
DECODING = Decoding(batch_size=3)
NO_MODEL = SimpleNamespace(eos_token_id=2)  # a tokenizer of none


def asked(count: int = 9) -> list[Example]:
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(2, 40))) for _ in range(count)]
    return [Example(f"e{i}", text, targets=("x",), question=f"q{i // 2}", group=f"g{i % 2}", metadata={"i": i}) for i, text in enumerate(texts)]


@pytest.fixture(scope="module")
def model(tiny_base):
    model, tokenizer = load_base(str(tiny_base))
    for parameter in model.parameters():
        parameter.data *= 4  # so that prompts differ in their answers
    return model, tokenizer


@pytest.fixture
def spy():
    """A memory that keeps what it was asked under."""

    def remember(kind, asked, make):
        remember.told.append((kind, dict(asked)))
        return make(None)

    remember.told = []
    return remember


def test_order_and_batches_change_no_row(model):
    examples = asked()
    once = evaluate(*model, TASK, examples, DECODING)
    by_id = {row["id"]: row for row in once.rows}
    assert [row["id"] for row in once.rows] == [e.id for e in examples] and len({row["completion"] for row in once.rows}) > 3
    for size in (1, 4, 64):
        turned = random.Random(size).sample(examples, len(examples))
        again = evaluate(*model, TASK, turned, dataclasses.replace(DECODING, batch_size=size))
        assert list(again.rows) == [by_id[e.id] for e in turned]
    alone = [evaluate(*model, TASK, [e], DECODING).rows[0] for e in examples[:3]]
    assert alone == [by_id[e.id] for e in examples[:3]]


def test_a_row_holds_the_facts_of_its_example_as_fields(model):
    example = dataclasses.replace(asked()[3], targets=("x", "y"))
    (row,) = evaluate(*model, TASK, [example], DECODING).rows
    facts = {"id": "e3", "question": "q1", "group": "g1", "prompt": example.prompt, "targets": ["x", "y"], "metadata": {"i": 3}}
    assert row.items() >= facts.items() and row["extras"] == {"length": len(row["completion"])}
    with pytest.raises(LabError, match="2 examples, 1 completions and 2 verdicts"):
        scored_rows([example] * 2, ["x"], graded(["x", "x"], [example] * 2))


def test_what_is_remembered_is_asked_for_once_and_no_model_is_needed():
    examples, calls = asked(4), []

    def remember(kind, asked, make):
        calls.append(kind)
        return ["x", "no", "x", "x"]

    found = evaluate(None, NO_MODEL, TASK, examples, remember=remember)
    assert found.scores == [1, 0, 1, 1] and found.accuracy == 0.75 and calls == ["answers"]
    assert [row["completion"] for row in found.rows] == ["x", "no", "x", "x"]


def test_the_memory_is_told_all_that_decides_the_answers_and_nothing_else(model, spy):
    def key(task=TASK, examples=asked(3), **changes):
        spy.told.clear()
        evaluate(*model, task, examples, dataclasses.replace(DECODING, **changes), remember=spy)
        ((kind, told),) = spy.told
        assert kind == "answers"
        return told

    plain = key()
    sampled = key(temperature=0.5)
    others = [
        key(max_new_tokens=3), sampled, key(top_p=0.5), key(seed=1), key(dataclasses.replace(TASK, stop=("\n",))),
        key(dataclasses.replace(TASK, max_new_tokens=7)), key(examples=asked(4)), key(examples=asked(3)[::-1]),
        key(temperature=0.5, batch_size=2),
    ]  # fmt: skip
    told = [plain, *others]
    assert all(told.count(one) == 1 for one in told)
    settings = model[0].generation_config
    own, settings.eos_token_id = settings.eos_token_id, [5, 2]
    try:
        assert key() != plain and key()["decoding"]["ends"] == [5]
    finally:
        settings.eos_token_id = own
    scorer = dataclasses.replace(TASK, version=2, score=lambda completions, _: graded(completions, asked(3)))
    facts = [dataclasses.replace(e, targets=("z",), metadata={}, id=f"other{i}") for i, e in enumerate(asked(3))]
    # Batches decide nothing of greedy answers, and no scorer decides what a model says.
    assert key(batch_size=1) == key(scorer) == key(examples=facts) == key(max_new_tokens=6) == plain
    assert key(temperature=0.5) == sampled


def test_the_likeliest_choice_is_scored_beside_what_is_written(model, spy):
    examples = [dataclasses.replace(e, choices=("3", "12 more", "x")) for e in asked(6)]
    places = most_likely(*model, [e.prompt for e in examples], [e.choices for e in examples])
    examples = [dataclasses.replace(e, targets=(e.choices[place] if i % 2 else "none",)) for i, (e, place) in enumerate(zip(examples, places))]
    found = evaluate(*model, TASK, examples, DECODING, remember=spy)
    assert [row["extras"]["likelihood"] for row in found.rows] == [0, 1, 0, 1, 0, 1]
    assert [kind for kind, _ in spy.told] == ["answers", "choices"]
    other = [dataclasses.replace(e, choices=("3", "12 more", "y")) for e in examples]
    before = spy.told[1][1]
    evaluate(*model, TASK, other, DECODING, remember=spy)
    assert spy.told[3][1] != before and spy.told[2] == spy.told[0]
    # Rows without choices stand among them, without that score.
    mixed = [dataclasses.replace(e, choices=()) if i == 2 else e for i, e in enumerate(examples)]
    rows = evaluate(*model, TASK, mixed, DECODING).rows
    assert [row["extras"].get("likelihood") for row in rows] == [0, 1, None, 1, 0, 1]
    assert [row["completion"] for row in rows] == [row["completion"] for row in found.rows]


def test_what_is_unscored_is_no_zero():
    def remember(kind, asked, make):
        return [2, 0, 2] if kind == "choices" else ["x"] * 3

    examples = [Example(str(i), "p", targets=targets, choices=("x", "y", "z")) for i, targets in enumerate([("x",), (), ("y",)])]
    found = evaluate(None, NO_MODEL, TASK, examples, remember=remember)
    assert found.scores == [1, None, 0] and found.accuracy == 0.5
    assert [row["extras"]["likelihood"] for row in found.rows] == [0, None, 0]
    assert Evaluation(found.rows[1:2], {}).accuracy is None
