"""Section 5.4 and C.4: counting words by letters, multiple choice in two versions, the base's text, tokens and likelihoods."""

import json
import re
from dataclasses import replace

import pandas as pd
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lab.errors import LabError
from lab.evaluation.likelihood import most_likely
from lab.experiments import comparison, sections
from lab.pages import figures
from lab.tasks import Example, choice, letters
from lab.tasks.choice import Question
from lab.tasks.formats import FORMATS
from lab.training.loop import encode
from lab.world.letters.sentences import containing, make_questions
from lab.world.letters.text import WORLD, documents
from lab.world.letters.tokenizer import PHRASES, letters_tokenizer
from lab.world.recipe import text_batches


def texts(count: int, seed: int = 0) -> list[str]:
    stream = documents(seed)
    return ["".join(next(stream)) for _ in range(count)]


# The world


def test_answers_recount_and_sentences_stay_in_one_split():
    rows = {split: make_questions(split, 0, 400) for split in ("train", "calibration", "test")}
    every = [row for found in rows.values() for row in found]
    assert all(sum(letter in word for word in sentence.split()) == n <= 6 for sentence, letter, n in every)
    sentences = [{sentence for sentence, *_ in found} for found in rows.values()]
    assert sum(map(len, sentences)) == len(set.union(*sentences))
    assert make_questions("test", 0, 100) == rows["test"][:100] != make_questions("test", 1, 100)


def test_base_text_gives_no_prompt_and_no_answer_away():
    found = "\n".join(texts(2000))
    assert not re.search(r"[A-Z]|answer|sentence|letter|contain", found)
    assert not any(phrase in found for phrase in PHRASES)


def test_tallies_of_the_base_text_are_true():
    seen = 0
    for text in texts(500):
        found = re.fullmatch(r"([a-z ]+) \| ((?:[a-z]\d ?)+)", text)
        if found:
            seen += 1
            assert all(len(containing(found[1], c)) == int(n) for c, n in re.findall(r"([a-z])(\d)", found[2]))
    assert seen > 20


def test_what_is_given_is_not_learned():
    tokenizer = letters_tokenizer()
    batch = text_batches(WORLD.recipe, tokenizer, lambda seed: iter([("ab\n", "a1 b1")] * 999))(0)[0]
    written = [tokenizer.decode(row[row >= 0]) for row in batch.labels[:1]]
    assert written[0].startswith("a1 b1</s>a1 b1</s>") and "ab" not in written[0]


def test_every_letter_is_a_token_and_constant_phrases_are_one():
    tokenizer = letters_tokenizer()
    for form in FORMATS.values():
        prompt = form.render("an é in a café", "q")
        ids = tokenizer(prompt)["input_ids"]
        assert tokenizer.decode(ids) == prompt
        assert len(ids) == len(prompt.encode()) - sum(len(phrase) - 1 for phrase in PHRASES if phrase in prompt)


# Counting words in prompt formats


def test_target_asks_each_question_in_each_format():
    rows = letters.TARGET.load("world", "test", 10, 0)
    assert [row.group for row in rows[:5]] == ["format 3", "format 7", "format 8", "format 10", "format 3"]
    asked = [FORMATS[number].parse(row.prompt) for number, row in zip((3, 7, 8, 10, 3), rows, strict=False)]
    assert len(rows) == 10 and len(set(asked[:4])) == 1 and asked[4] != asked[0]
    with pytest.raises(LabError, match="never trained on"):
        letters.TARGET.load("world", "train", 10, 0)


def test_scores_are_told_by_format():
    asked = [Example("a", "", targets=("3",), group="format 7"), Example("b", "", targets=("4",)), Example("c", "", targets=("0",), group="format 10")]
    found = letters.score(["the correct answer is 3", "4.", "a0 b0"], asked)
    assert [v.score for v in found] == [1, 1, 0] and found[2].reason == "no answer"
    assert [v.extras for v in found] == [{"format 7": 1}, {}, {"format 10": 0}]


def test_majority_is_counted_over_the_numbers():
    assert letters.majority([("0",), ("0",), ("2",), ("1",)]) == ("0", 0.5)


@pytest.mark.parametrize("task", [letters.skill(1), letters.skill(4), choice.PROMPT_1, choice.PROMPT_2], ids=lambda t: t.name)
def test_rows_score_right_on_their_own_completion(task):
    rows = task.load("world", "test", 50, 0)
    assert all(v.score == 1 for v in task.score([r.completion for r in rows], rows))
    assert sum(v.score for v in task.score([rows[i - 1].completion for i in range(50)], rows)) < 35


def test_real_rows_are_those_of_the_files(data_folder):
    source = str(data_folder / "task_161")
    for number in (1, 2, 4):
        rows = json.loads((data_folder / "task_161" / f"train_instructions_task_format{number}.json").read_text())
        given = {row["instruction"]: row["output"] for row in rows}
        train, kept = (letters.skill(number).load(source, split, None, 0) for split in ("train", "calibration"))
        assert all(given[row.prompt] == row.completion for row in [*train, *kept])
        assert len(train) + len(kept) == len(rows) and not {r.id for r in train} & {r.id for r in kept}
    target = letters.TARGET.load(source, "test", None, 0)
    for number in (3, 7):
        rows = json.loads((data_folder / "task_161" / f"test_instructions_format{number}.json").read_text())
        asked = [row for row in target if row.group == f"format {number}"]
        assert [row.prompt for row in asked] == [row["instruction"] for row in rows]
        assert [f"the correct answer is {row.targets[0]}" for row in asked] == [row["output"] for row in rows]
    assert letters.majority([row.targets for row in target])[1] == pytest.approx(0.391, abs=1e-3)


def test_hub_rows_are_parsed(monkeypatch):
    shown = "Sentence: 'old example'. How many words contain the letter 'e' in the sentence.\nOutput: 2\n\n"
    question = "Sentence: 'it's a cat'. How many words contain the letter 'a' in the sentence.\nOutput:"
    text = f"{shown}Now complete the following example -\nInput: {question}"
    monkeypatch.setattr(letters, "hub_rows", lambda *_: [{"input": text, "output": ["2"]}] * 20)
    assert letters.questions("hub", "test", 1, 0) == [("it's a cat", "a", 2)]
    monkeypatch.setattr(letters, "hub_rows", lambda *_: [{"input": "What?", "output": ["2"]}])
    with pytest.raises(LabError, match="asks no question about the letters"):
        letters.questions("hub", "test", 1, 0)


# Multiple choice in two versions


def test_real_choices_keep_their_words(data_folder):
    source = str(data_folder / "commonsense")
    exact = asked = 0
    for name in choice.TEST_SETS:
        rows = json.loads((data_folder / "commonsense" / name / "test.json").read_text())
        for row in rows[:200]:
            question = choice.parse(row["instruction"], row["answer"], name)
            first, written = choice.VERSIONS[1](question)
            assert first == row["instruction"] and written[question.right - 1] == row["output"]
            built, _ = choice.VERSIONS[1](replace(question, first=""))  # as for the Hub's sets, which have no such text
            assert built.split() == row["instruction"].split()
            exact += built == row["instruction"]
            asked += 1
            second, _ = choice.VERSIONS[2](question)
            assert all(text in row["instruction"] for text in (question.text, *question.choices)) and question.text in second
    assert exact / asked > 0.9  # a few rows have stray spaces
    rows = choice.TARGET.load(source, "test", 24, 0)
    assert {row.metadata["set"] for row in rows} == set(choice.TEST_SETS) and {row.group for row in rows} == {"prompt 1", "prompt 2"}
    assert not {r.prompt for r in choice.PROMPT_1.load(source, "train", None, 0)} & {r.prompt for r in rows}


def test_choice_is_what_is_named_first():
    plain = Example("a", "", targets=("2",))
    first, second = (replace(plain, group=f"prompt {n}", metadata={"set": name}) for n, name in ((1, "piqa"), (2, "world")))
    found = choice.score(["the correct answer is answer2", "choice (3)", "2", "solution1 or solution2"], [first, plain, plain, second])
    assert [v.score for v in found] == [1, 0, 0, 0] and found[0].extras == {"prompt 1": 1, "piqa": 1}
    assert found[1].extras == {} and found[3].extras == {"prompt 2": 0}


def test_other_text_is_no_multiple_choice():
    with pytest.raises(LabError, match="row of piqa is no multiple choice question"):
        choice.parse("How are you?", "solution1", "piqa")
    assert Question("x", "?", ("a", "b"), 1, "option").names() == ["option1", "option2"]


# Likelihood


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=266, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, intermediate_size=48,
        max_position_embeddings=128,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.data *= 4  # so that choices differ
    return model, letters_tokenizer()


@torch.no_grad()
def test_likelihood_is_per_token_and_does_not_depend_on_the_batch(tiny):
    model, tokenizer = tiny
    prompts = [f"word {i}: " for i in range(6)]
    choices = [("a", "bb", "cccc cc c"), ("dd", "e")] * 3
    found = most_likely(model, tokenizer, prompts, choices, batch_size=4)
    for prompt, given, place in zip(prompts, choices, found, strict=True):
        means = []
        for text in given:
            row = encode(tokenizer, prompt, text, 99)
            log = model(torch.tensor([row.ids])).logits[0].log_softmax(-1)
            written = range(row.prompt_length, len(row.ids))
            means.append(sum(float(log[i - 1, row.ids[i]]) for i in written) / len(written))
        assert place == max(range(len(given)), key=means.__getitem__)
    assert found == most_likely(model, tokenizer, prompts, choices, batch_size=1) and len(set(found)) > 1


def test_choices_that_cannot_be_compared_are_told(tiny):
    with pytest.raises(LabError, match="has no choices"):
        most_likely(*tiny, ["a"], [()])
    with pytest.raises(LabError, match="the model reads 128"):
        most_likely(*tiny, ["a" * 130], [("b", "c")])


def test_two_prompts_run_on_real_rows(tiny_base, tmp_path, data_folder):
    """C.4 as a whole with rows of the commonsense sets: what is written and what is likely both stand in the record."""
    chosen = sections.TWO_PROMPTS.preset(
        "embedded", str(tiny_base), str(data_folder),
        {"rank": 2, "train_rows": 16, "coefficient_rates": [0.1], "own_test": 2, "max_new_tokens": 3, "max_tokens": 512},
    )  # fmt: skip
    where = {"out": tmp_path, "artifacts": tmp_path / "store"}
    base, merged = comparison.compare(sections.TWO_PROMPTS, chosen, ["base", "cat_static"], [0], 6, **where)
    assert {"likelihood", "prompt 1", "prompt 2", "piqa", "winogrande"} <= base.scores.keys()
    assert all(row["extras"]["likelihood"] in (0, 1) for row in merged.rows()) and merged.own.keys() == {"prompt_1", "prompt_2"}


def test_records_of_rows_that_may_not_be_passed_on_hold_no_prompt(tiny_base, tmp_path, data_folder):
    real = sections.on_real_rows(sections.FORMATS_1_4)
    chosen = real.preset(
        "embedded", str(tiny_base), str(data_folder), {"rank": 2, "train_rows": 8, "own_test": 2, "max_new_tokens": 3}
    )
    (record,) = comparison.compare(real, chosen, ["base"], [0], 8, out=tmp_path, artifacts=tmp_path / "store")
    assert record.section == "s5_4_prompt_formats_real_1_4"
    assert all(row["prompt"] == "" and row["targets"] for row in record.rows()) and record.n == 8


# Figure 10


def test_panels_show_each_pair_with_its_own_skills():
    columns = {"label": ["Base", "a skill"], "role": ["base", "skill"], "format 10": [0.1, 0.9], "format 3": [0.2, 0.8]}
    tables = {name: pd.DataFrame(columns, index=["base", name]) for name in ("a", "b")}
    chart = figures.format_panels(tables, 0.4)
    assert [[label.get_text() for label in panel.get_xticklabels()] for panel in chart.axes] == [["3", "10"]] * 2
    shown = [[text.get_text() for text in panel.texts] for panel in chart.axes]
    assert shown == [["20", "10", "80", "90"]] * 2 and len(chart.axes[0].get_yticks()) == 3
    assert "a: best on average a skill, 85 %" in chart.alt
    alphas = [patch.get_alpha() for patch in chart.axes[0].patches]
    assert alphas[:2] == [0, 0] and alphas[3] > alphas[2] > 0
    with pytest.raises(LabError, match="no scores per format"):
        figures.format_panels({"a": tables["a"][["label", "role"]]}, 0.4)
