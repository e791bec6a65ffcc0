"""The app on the real base: the rewriting skills and their merge, a visitor's own sentence, examples with gold."""

import importlib.util

import pytest
import torch

import app
from lab.app import actions
from lab.app.showcase import REWRITING, WORD_PROBLEMS
from lab.app.sources import shipped_skills
from lab.lora.gguf import PACKED
from lab.tasks import rewriting

torch.set_num_threads(1)
here = importlib.util.find_spec(PACKED[REWRITING.base].package) is not None
needs_the_wheel = pytest.mark.skipif(not here, reason="the real base is not installed: make real-base")


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    return app.build_app(preset="laptop", files=tmp_path_factory.mktemp("app"), device="cpu").context


def last(stream):
    *_, final = stream
    return final


@needs_the_wheel
def test_it_opens_on_the_skills_their_merge_and_examples(context):
    session = context.session()
    assert session.grid.skills == ("past", "passive") and not session.past
    recipe = REWRITING.recipe()
    assert session.alphas.tolist() == [[round(value, 4) for value in row] for row in recipe["coefficients"]]
    assert {a.name: a.digest() for a in session.adapters} == {i["name"]: i["digest"] for i in recipe["inputs"]}
    labels = [component.label for component in context.blocks.blocks.values() if getattr(component, "elem_id", None) == "prompt"]
    assert labels == ["Your sentence"]
    (menu,) = [c for c in context.blocks.blocks.values() if getattr(c, "elem_id", None) == "sentence"]
    assert [text for text, _ in menu.choices] == rewriting.example_sentences() and menu.visible


@needs_the_wheel
def test_only_the_merge_makes_both_changes_and_is_judged_by_the_task(context):
    session = context.session()
    text, shape, gold = actions.example(context, REWRITING.target, 1)
    found = last(actions.ask(context, session, text, template=shape, gold=gold, max_new_tokens=REWRITING.new_tokens))
    assert list(found) == ["base", "past", "passive", "merge"]
    assert {column: answer["verdict"] for column, answer in found.items()} == {
        "base": "only passive", "past": "only past", "passive": "only passive", "merge": "right",
    }  # fmt: skip
    assert found["merge"]["text"].strip() == gold and all("\n" not in answer["text"] for answer in found.values())


@needs_the_wheel
def test_a_sentence_longer_than_the_context_is_refused_in_one_sentence(context):
    with pytest.raises(actions.LabError, match=r"^A prompt of \d+ tokens and 40 new ones exceed the model's 8192; shorten one of them.$"):
        last(actions.ask(context, context.session(), "very " * 9000, max_new_tokens=40))


class Named:
    """As much of a context as finding an example takes."""

    def __init__(self, showcase):
        self.showcase = showcase


def test_the_answer_is_known_of_the_examples_only():
    context = Named(REWRITING)
    for task, shape in (("past", "Past tense"), ("past and passive", "Past tense and passive voice")):
        text, label, gold = actions.example(context, task, 0)
        assert label == shape and actions.known_answer(context, text, shape) == gold == actions.known_answer(context, f" {text} ", shape)
        assert actions.known_answer(context, text.replace("guard", "cook"), shape) == ""
        assert actions.known_answer(context, text, "as typed") == ""
    assert actions.known_answer(Named(WORD_PROBLEMS), text, "Question → program") == ""


def test_every_shape_is_of_a_task_and_every_skill_ships():
    for showcase in (WORD_PROBLEMS, REWRITING):
        assert set(showcase.shapes.values()) <= set(showcase.tasks)
        assert {showcase.shape(name) for name in showcase.tasks} <= set(showcase.shapes)
        assert [a.name for a in shipped_skills(showcase)] == [name for name in showcase.tasks if name != showcase.target]


def test_without_the_wheel_one_sentence_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None)
    assert app.main(["--preset", "laptop", "--port", "1"]) == 2
    said = capsys.readouterr().err
    assert "make real-base" in said and said.count("\n") == 1
