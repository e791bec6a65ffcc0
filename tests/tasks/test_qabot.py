"""Section 5.2: its tasks on generated and real rows, scoring by key words, the continual data-mix, and the open book."""

import dataclasses
import json

import pytest
import torch

from lab.errors import LabError
from lab.evaluation.retrieval import RETRIEVERS
from lab.experiments import comparison
from lab.experiments.candidates import CANDIDATES, find
from lab.experiments.comparison import compare
from lab.experiments.context import RunContext, applied
from lab.experiments.presets import get_preset
from lab.experiments.sections import MATH_CODE, QABOT, qabot
from lab.experiments.store import Store
from lab.lora import peft_io as adapters_of
from lab.lora.base import load_base
from lab.lora.stacked import folded
from lab.tasks import Example, instruction, manual, manual_qa
from lab.tasks.instruction import key_words, score_answers
from lab.world.reading import manual as world


@pytest.fixture
def preset(tiny_base):
    return QABOT.preset("embedded", str(tiny_base), settings={
        "rank": 2, "lora_alpha": 4, "train_rows": 24, "coefficient_share": 0.5, "coefficient_rates": [1e-2], "own_test": 2,
        "max_new_tokens": 4, "epochs": 2,
    })  # fmt: skip


@pytest.fixture
def context(preset, tmp_path):
    model, tokenizer = load_base(preset.base)
    return RunContext(QABOT, preset, 0, Store(tmp_path / "store"), model, tokenizer)


def test_no_question_about_the_manual_is_ever_shown():
    asked = {e.prompt for e in manual_qa.TASK.load("world", "test", None, 0)}
    others = {e.prompt for split in ("train", "calibration", "test") for e in instruction.TASK.load("world", split, None, 0)}
    shown = {manual_qa.TASK.template.format(text=text) for text, _ in manual_qa.demonstrations("world", 50)}
    assert len(asked) == 500 and not asked & others and not asked & shown
    text = " ".join(e.completion for e in manual.TASK.load("world", "train", 2000, 0))
    assert "?" not in text and "answer" not in text
    with pytest.raises(LabError, match="never trained on"):
        manual_qa.TASK.load("world", "train", 1, 0)


def test_the_text_tells_what_the_questions_ask():
    text = [e.completion for e in manual.TASK.load("world", "train", 600, 0)]
    for question, answer, _ in world.questions("test", 0, 100):
        creature = question.rstrip("?").split("the ")[-1].split()[0]
        assert any(f"the {creature}" in page.lower() and answer in page for page in text), question


@pytest.mark.parametrize("task", [instruction.TASK, manual.TASK])
def test_generated_rows_score_right_on_their_own_completion_only(task):
    rows = task.load("world", "test", 20, 0)
    assert all(v.reason == "right" for v in task.score([e.completion for e in rows], rows))
    assert sum(v.score for v in task.score([rows[i - 1].completion for i in range(20)], rows)) < 5


def test_a_manuals_statement_is_no_answer_in_form():
    (verdict,) = score_answers([" The tepope eats oats. It is red."], [Example("a", "", targets=("oats",))])
    assert verdict.score == 0 and verdict.reason == "partly right"


def test_key_words_are_those_that_the_question_does_not_give():
    found = key_words("What is the spellcasting ability for bard spells?", "The spellcasting ability for bards is Charisma.")
    assert found == ["bards", "charisma"]
    assert key_words("What is an elf's speed [base]?", "Its [base] speed is 30 feet.") == ["30", "feet"]
    assert key_words("Is ale sour?", "Ale is sour.") == ["ale", "sour"]  # nothing new: every word with meaning
    assert key_words("Is it?", "It is.") == ["is", "it"]


def test_answers_in_sentences_are_right_by_their_key_words():
    gold = "A musical instrument, such as a lute, can be used."
    asked = Example("a", "", targets=(gold,), metadata={"keys": key_words("What can a bard focus with?", gold)})
    said = ["It is a musical instrument like a lute.", "An instrument.", "A bard can focus with a bard.", " "]
    verdicts = score_answers(said, [asked] * 4)
    assert [v.reason for v in verdicts] == ["right", "partly right", "wrong", "no answer"]
    assert verdicts[0].extras["key_recall"] == 0.75 and verdicts[1].extras["key_recall"] == 0.25  # musical, instrument, lute, used
    full = score_answers([gold], [asked])[0]
    assert full.extras == {"exact_match": 1.0, "f1": 1.0, "key_recall": 1.0}
    with pytest.raises(LabError, match="no gold answer"):
        score_answers(["x"], [Example("a", "", targets=("",))])


def test_the_base_is_exactly_itself_after_folding(context):
    before = {name: p.clone() for name, p in context.model.state_dict().items()}
    adapter = context.skills[0]
    with pytest.raises(RuntimeError), folded(context.model, adapter):
        name = "model.layers.0.mlp.up_proj.weight"
        assert not torch.equal(context.model.state_dict()[name], before[name])
        raise RuntimeError
    assert all(torch.equal(p, before[name]) for name, p in context.model.state_dict().items())


def test_continual_mix_is_one_adapter_of_both_steps(context):
    """Text folded in, then answering learned for one epoch: the same logits as the base with the resulting adapter."""
    entry = find("data_mix_continual", QABOT).make(context)
    adapter, facts = entry.load()
    rows = context.rows(instruction.TASK)
    assert adapter.rank == 4 and facts["steps"] == context.preset.change(epochs=1).training.steps(len(rows)) == len(facts["loss"])
    (folder,) = context.store.root.glob("skill-instruction-after-manual-*")
    second = adapters_of.load(folder, name="second")
    ids = torch.tensor([rows[0].ids])
    with torch.no_grad():
        with folded(context.model, context.skills[0]), applied(context.model, second):
            reference = context.model(input_ids=ids).logits
        with applied(context.model, adapter):
            assert torch.allclose(context.model(input_ids=ids).logits, reference, atol=1e-5)
        with applied(context.model, second):
            assert not torch.allclose(context.model(input_ids=ids).logits, reference, atol=1e-5)
    alone, _ = context.skill(instruction.TASK).load()
    module = next(iter(alone.modules))
    learned = [adapter.modules[module].delta_weight() for adapter in (second, alone)]
    assert not torch.allclose(*learned)  # on other weights
    again, _ = find("data_mix_continual", QABOT).make(context).load()
    assert again.digest() == adapter.digest()


def test_open_book_puts_what_is_found_before_the_question(context):
    entry = find("retrieval_bm25", QABOT).make(context)
    adapter, _ = entry.load()
    assert adapter.digest() == context.skills[1].digest()
    found = 0
    for example in manual_qa.TASK.load("world", "test", 30, 0):
        text = entry.before(example)
        assert text.startswith("Passage: ") and text.endswith("\n")
        found += example.targets[0] in text
    assert found >= 25


def test_the_whole_path_on_real_rows(context, data_folder, tmp_path):
    """Manual, instructions and the questions of both kinds, a few steps; the real passages stand before the real questions."""
    for questions, methods in (("game", ["manual", "instruction", "data_mix_continual", "cat"]), ("biology", ["base"])):
        section = qabot(questions)
        preset = dataclasses.replace(context.preset, data=str(data_folder), max_tokens=64, train_rows=16, epochs=1)
        comparison.check(section, preset, methods)
        records = compare(section, preset, methods, [0], 2, out=tmp_path / questions, artifacts=tmp_path / "artifacts")
        assert [r.method for r in records] == methods and all(r.n == 2 for r in records)
        assert {"key_recall", "f1", "exact_match"} <= set(records[0].scores) and records[0].own.keys() == {"manual", "instruction"}
        real = RunContext(section, preset, 0, Store(tmp_path / "artifacts"), context.model, context.tokenizer)
        entry = find("retrieval_bm25", section).make(real)
        assert len(entry.before(section.target.load(str(data_folder / "qabot"), "test", 1, 0)[0]).split()) > 200


def test_real_rows(data_folder):
    for task, folder, count in ((manual_qa.TASK, "qabot", 25), (manual_qa.BIOLOGY, "qabot", 20)):
        rows = task.load(str(data_folder / folder), "test", None, 0)
        assert len(rows) == count and all(e.metadata["keys"] for e in rows)
        assert all(v.score == 1 for v in task.score([e.targets[0] for e in rows], rows))
        questions = [e.prompt.removeprefix("Question: ").removesuffix("\nReply:") for e in rows]
        assert sum(v.score for v in task.score(questions, rows)) <= 1  # repeating the question is no answer
    texts = manual.TASK.load(str(data_folder / "srd52"), "train", None, 0)
    shifted = manual.TASK.load(str(data_folder / "srd52"), "calibration", None, 0)
    assert len(texts) > 1500 and all(len(e.completion.split()) <= manual.PIECE for e in texts)
    assert not {e.completion for e in texts} & {e.completion for e in shifted}
    source = str(data_folder / "alpaca_like")
    splits = ("train", "calibration", "test")
    prompts = {split: {e.prompt for e in instruction.TASK.load(source, split, None, 0)} for split in splits}
    assert sum(map(len, prompts.values())) == len(set.union(*prompts.values())) > 3000


def test_what_is_missing_or_empty_is_named(tmp_path, tiny_base):
    with pytest.raises(LabError, match="manual is not on the Hub; give data="):
        manual.TASK.load("hub", "train", 1, 0)
    with pytest.raises(LabError, match="not on the Hub; give data="):
        manual_qa.TASK.load("hub", "test", 1, 0)
    with pytest.raises(LabError, match="does not exist; put the manual there"):
        manual.TASK.load(str(tmp_path / "srd52"), "train", 1, 0)
    (tmp_path / "srd52").mkdir()
    (tmp_path / "srd52" / "License.md").write_text("These are words about rights. " * 10)
    with pytest.raises(LabError, match="is empty: no Markdown"):
        manual.TASK.load(str(tmp_path / "srd52"), "train", 1, 0)
    (tmp_path / "srd52" / "a.md").write_text(" \n")
    with pytest.raises(LabError, match="a.md is empty"):
        manual.TASK.load(str(tmp_path / "srd52"), "train", 1, 0)
    with pytest.raises(LabError, match="no instructions in"):
        instruction.TASK.load(str(tmp_path / "none"), "train", 1, 0)
    (tmp_path / "qabot").mkdir()
    with pytest.raises(LabError, match="game_test_first25.json does not exist"):
        manual_qa.TASK.load(str(tmp_path / "qabot"), "test", 1, 0)
    row = {"instruction": "Why?", "answer": " ", "context": "Because."}
    (tmp_path / "qabot" / manual_qa.GAME).write_text(json.dumps([{**row, "answer": "So."}, row]))
    with pytest.raises(LabError, match="row 2 has no gold answer"):
        manual_qa.TASK.load(str(tmp_path / "qabot"), "test", 1, 0)
    with pytest.raises(LabError, match="no questions 'chess'; choose game or biology"):
        qabot("chess")
    preset = QABOT.preset("embedded", str(tiny_base), settings={"train_missing": False})
    with pytest.raises(LabError, match="skill-manual.*training is forbidden"):
        compare(QABOT, preset, ["cat_static"], [0], 1, out=tmp_path / "out", artifacts=tmp_path / "none")


def test_what_a_folder_lacks_may_come_from_the_hub(tmp_path):
    (tmp_path / "srd52").mkdir()
    preset = get_preset("paper", data=f"{tmp_path}+hub")
    assert preset.source("srd52") == str(tmp_path / "srd52") and preset.source("alpaca_like") == "hub"
    assert get_preset("paper", data=str(tmp_path)).source("alpaca_like") == str(tmp_path / "alpaca_like")
    for name in ("small", "paper"):
        with pytest.raises(LabError, match="manual is not on the Hub"):  # in a second, and before anything is fetched
            comparison.check(QABOT, QABOT.preset(name), ["base"])


def test_every_candidate_of_the_section_is_found_there_alone():
    for name in ("manual_few_shot", "data_mix_continual", *RETRIEVERS):
        assert find(name, QABOT) is CANDIDATES[name] and CANDIDATES[name].special
        with pytest.raises(LabError, match=f"no method '{name}'"):
            find(name, MATH_CODE)
