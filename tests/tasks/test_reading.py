"""Reading comprehension: SQuAD's measures, the tasks on generated and real rows, and ratings made of records."""

import json
import random
from types import SimpleNamespace

import pytest

from lab.errors import LabError
from lab.evaluation import judge
from lab.evaluation.evaluate import scored_rows
from lab.evaluation.judge import Deterministic
from lab.evaluation.reading_scores import (
    NOT_IN_CONTEXT,
    exact_match,
    normalise,
    score_endings,
    score_reading,
    stated_answer,
    token_f1,
)  # fmt: skip
from lab.evaluation.scorers import Verdict
from lab.experiments import verdicts
from lab.pages import figures
from lab.pages.figures import svg
from lab.records import tables
from lab.records.record import REASONS, make_record, save_record
from lab.tasks import Example, extraction, prompts, technical_reading, terms
from lab.world.reading.words import TECHNICAL


def test_normalisation_is_squads():
    assert normalise("  The Quick, brown\tfox's  an A. ") == "quick brown foxs"
    assert exact_match("The  Normans!", "normans") == 1 and exact_match("Norman", "normans") == 0


def test_f1_counts_words_as_often_as_they_occur():
    assert token_f1("red red fox", "red fox fox") == pytest.approx(2 / 3)
    assert token_f1("cat", "the dog") == 0 and token_f1("", "dog") == 0 and token_f1("the", "a") == 1
    assert token_f1("in context", NOT_IN_CONTEXT) == 0 and token_f1("not in context.", NOT_IN_CONTEXT) == 1


def test_f1_is_the_harmonic_mean_of_precision_and_recall():
    rng = random.Random(0)
    for _ in range(300):
        a, b = (" ".join(rng.choices(["the", "fox", "Fox,", "red", "a", "den", "An"], k=rng.randint(0, 6))) for _ in range(2))
        said, left = normalise(a).split(), normalise(b).split()
        wanted, shared = len(left), 0
        for word in said:
            if word in left:
                left.remove(word)
                shared += 1
        by_hand = 2 / (len(said) / shared + wanted / shared) if shared else float(not said and not wanted)
        assert token_f1(a, b) == pytest.approx(by_hand) == pytest.approx(token_f1(b, a))
        assert exact_match(a, b) <= token_f1(a, b) <= 1


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (" The answer is the harbor.", "the harbor"), (" harbor.\nPassage: x", "harbor"),
        ("\n the correct answer is: U.S.", "U.S"),
        ("", ""), (" \n ", ""), (" Not in context.", "Not in context"),
    ],
)  # fmt: skip
def test_stated_answer(completion, answer):
    assert stated_answer(completion) == answer


def test_verdicts():
    long = "RPKM is a commonly used measure of gene expression"
    said = ["The answer is den.", "The answer is red den.", "hill.", "", "The answer is gene expression measure RPKM.", "RPKM."]
    completions = [f" {text}" for text in said]
    verdicts = score_reading(completions, [("den", "cave"), ("den",), ("den",), ("den",), (long,), (long,)])
    assert [v.reason for v in verdicts] == ["right", "partly right", "wrong", "no answer", "right", "partly right"]
    assert [v.score for v in verdicts] == [1, 0, 0, 0, 1, 0] and verdicts[4].extras["exact_match"] == 0
    assert score_reading([" the cave"], [("den", "cave")])[0].extras == {"exact_match": 1, "f1": 1}  # the best of several wordings
    endings = score_endings([" lamp. A", " rope", ""], ["Lamp", "lamp", "lamp"])
    assert [v.reason for v in endings] == ["right", "wrong", "no answer"]
    with pytest.raises(LabError, match="Question 2 has no gold answer"):
        score_reading(["a", "b"], [("a",), (" ",)])
    with pytest.raises(LabError, match="1 completions but 2 answers"):
        score_reading(["a"], [("a",), ("b",)])


@pytest.mark.parametrize("task", [terms.TASK, extraction.TASK])
def test_generated_rows_score_right_on_their_own_completion(task):
    rows = task.load("world", "test", 40, 0)
    assert all(v.reason == "right" for v in task.score([r.completion for r in rows], rows))
    assert sum(v.score for v in task.score([rows[i - 1].completion for i in range(len(rows))], rows)) < 10


@pytest.mark.parametrize("task", [terms.TASK, extraction.TASK])
def test_generated_splits_share_no_row(task):
    seen = [{r.prompt + r.completion for r in task.load("world", split, 300, 0)} for split in ("train", "calibration", "test")]
    assert sum(map(len, seen)) == len(set.union(*seen)) > 700


def test_the_target_needs_both_skills():
    rows = technical_reading.load("world", "test", 50, 0)
    for row in rows:
        passage, question = row.prompt.rsplit("\nQuestion: ", 1)
        words = passage.lower().replace(".", "").split()
        asked = [plain for plain in TECHNICAL.values() if plain in question.rstrip("?\nAnswer:").split()]
        assert not set(asked) & set(words) and row.targets[0].lower() in words  # the thing by another name, the answer as it stands
    assert not any(word in r.prompt for r in extraction.load("world", "train", 50, 0) for word in TECHNICAL)
    assert {word for word in TECHNICAL} & set(" ".join(r.completion for r in terms.load("world", "train", 50, 0)).split())
    with pytest.raises(LabError, match="never trained on"):
        technical_reading.load("world", "train", 1, 0)


def test_demonstrations_are_answered_and_never_tested():
    tested = {r.prompt for r in technical_reading.load("world", "test", 300, 0)}
    for source in ("world", "somewhere"):
        shown = technical_reading.demonstrations(source)
        assert len(shown) == 5 and len(technical_reading.demonstrations(source, 2)) == 2
        for text, completion in shown:
            assert prompts.READING.format(text=text) not in tested
            assert stated_answer(completion) in text or stated_answer(completion) == NOT_IN_CONTEXT


def test_squad_rows(data_folder):
    source = str(data_folder / "xquad")
    rows = {split: extraction.load(source, split, None, 0) for split in ("train", "calibration", "test")}
    assert sum(map(len, rows.values())) == 1190
    passages = [{r.prompt.rpartition("\nQuestion: ")[0] for r in found} for found in rows.values()]
    assert sum(map(len, passages)) == len(set.union(*passages))  # splits share no passage
    own = extraction.TASK.score([r.completion for r in rows["test"]], rows["test"])
    assert all(v.reason == "right" for v in own)


def test_textbook_rows(data_folder):
    source = str(data_folder / "biology")
    texts = {split: [r.completion for r in terms.load(source, split, 400, 0)] for split in ("train", "calibration")}
    assert len(texts["train"]) == 400 and not set(texts["train"]) & set(texts["calibration"])
    assert not any(mark in text for text in texts["train"] for mark in ("](", "{:", "<", "**", "\\"))
    endings = terms.load(source, "test", 200, 0)
    assert len(endings) == 200 and not any(r.prompt in text for r in endings for text in texts["train"])
    assert all(r.targets[0] and " " not in r.targets[0] for r in endings)


@pytest.mark.parametrize(("folder", "count"), [("bioasq", 100), ("pubmedqa", 500)])
def test_technical_rows(data_folder, folder, count):
    rows = technical_reading.load(str(data_folder / folder), "test", None, 0)
    assert len(rows) == len({r.prompt for r in rows}) == count
    assert all(r.prompt.count("\nQuestion: ") >= 1 and "Context:" not in r.prompt[:20] and r.targets[0] for r in rows)
    assert all(v.extras["f1"] == 1 for v in technical_reading.TASK.score([r.targets[0] for r in rows], rows))


def test_hub_rows(monkeypatch):
    squad = [
        {"title": str(i // 3), "context": f"it is {i}", "question": "what", "answers": {"text": [str(i)] if i % 2 else []}}
        for i in range(60)
    ]
    monkeypatch.setattr(extraction, "hub_rows", lambda *_: squad)
    rows = {split: extraction.load("hub", split, None, 0) for split in ("train", "calibration")}
    assert len(rows["train"]) == 54 and len(rows["calibration"]) == 6
    found = {r.completion for r in rows["calibration"]}
    assert found == {" The answer is 55.", " The answer is 57.", " The answer is 59.", " Not in context."}
    titles = (terms.TITLES[0], "Gynecology_Novak")
    books = [{"title": title, "content": f"A cell {i} has walls."} for title in titles for i in range(300)]
    monkeypatch.setattr(terms, "hub_rows", lambda *_: books)
    assert len(terms.load("hub", "train", None, 0)) == 90
    bioasq = [{"context": "c d", "question": "q", "answers": ["c", "c", "d"]}]
    monkeypatch.setattr(technical_reading, "hub_rows", lambda *_: bioasq)
    assert technical_reading.load("hub", "test", None, 0)[0].targets == ("c", "d")


def squad_file(folder, *questions, context="The den is red.", name=extraction.ONE_FILE) -> str:
    asked = [{"id": "q1", "question": "What colour?", **q} for q in questions]
    article = {"title": "t", "paragraphs": [{"context": context, "qas": asked}]}
    (folder / name).write_text(json.dumps({"data": [article] * 12}))
    return str(folder)


def test_unanswerable_questions_have_an_answer_of_their_own(tmp_path):
    source = squad_file(tmp_path, {"answers": [], "is_impossible": True}, name="dev-v2.0.json")
    row = extraction.load(source, "test", 1, 0)[0]
    assert row.targets == (NOT_IN_CONTEXT,) and row.completion == " Not in context."


@pytest.mark.parametrize(
    ("question", "context", "message"),
    [
        ({"answers": []}, "The den.", "question q1 has no gold answer"),
        ({"answers": [{"text": "  "}]}, "The den.", "question q1 has no gold answer"),
        ({"answers": [{"text": "blue"}]}, "The den is red.", "the answer 'blue' is not in its passage"),
        ({"answers": [{"text": "red"}]}, " ", "question q1: the passage or the question is empty"),
        ({"question": "", "answers": [{"text": "den"}]}, "The den.", "the passage or the question is empty"),
        ({"answers": "red"}, "red", "is not in SQuAD's form"),
        ({}, "red", "is not in SQuAD's form.*'answers'"),
    ],
)  # fmt: skip
def test_bad_squad_rows_are_named(tmp_path, question, context, message):
    source = squad_file(tmp_path, question, context=context)
    with pytest.raises(LabError, match=message):
        extraction.load(source, "test", 1, 0)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (technical_reading.BIOASQ_FILE, [{"instruction": "Context: x\n\nQuestion: y", "answer": " "}], "row 1 has no gold"),
        (technical_reading.BIOASQ_FILE, [{"instruction": "What is y?", "answer": "z"}], "row 1 has no passage"),
        (technical_reading.BIOASQ_FILE, [{"instruction": "Context: x\n\nQuestion: y"}], "the field 'answer' is missing"),
        (technical_reading.PUBMEDQA_FILE, {"7": {"CONTEXTS": ["x"], "QUESTION": " ", "LONG_ANSWER": "z"}}, "7 has no question"),
        (technical_reading.PUBMEDQA_FILE, {"7": {"CONTEXTS": ["x"], "QUESTION": "y"}}, "not in PubMedQA's form.*LONG_ANSWER"),
        (technical_reading.PUBMEDQA_FILE, [1], "not in PubMedQA's form"),
    ],
)  # fmt: skip
def test_bad_technical_rows_are_named(tmp_path, file, content, message):
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(LabError, match=message):
        technical_reading.load(str(tmp_path), "test", 1, 0)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(LabError, match="test_first100.json does not exist"):
        technical_reading.load(str(tmp_path), "test", 1, 0)
    with pytest.raises(LabError, match="train-v2.0.json does not exist"):
        extraction.load(str(tmp_path), "train", 1, 0)
    with pytest.raises(LabError, match="There is no textbook"):
        terms.load(str(tmp_path), "train", 1, 0)
    (tmp_path / "dev-v2.0.json").write_text("{broken")
    with pytest.raises(LabError, match="line 1: not valid JSON"):
        extraction.load(str(tmp_path), "test", 1, 0)
    (tmp_path / "dev-v2.0.json").write_text("[]")
    with pytest.raises(LabError, match="not in SQuAD's form"):
        extraction.load(str(tmp_path), "test", 1, 0)


# Ratings from records

GOLD = ["den", "hill", "lake", "barn"]
ANSWERS = {"base": ["x"] * 4, "extraction": ["den", "x", "x", "x"], "cat": GOLD, "few_shot": ["den", "hill", "x", "x"]}


@pytest.fixture
def records(tmp_path):
    """The base with one seed, the others with two; the second seed answers as the first."""
    found = []
    for method, answers in ANSWERS.items():
        for seed in (0,) if method in ("base", "few_shot") else (0, 1):
            shown = "Passage: Other.\nQuestion: Q?\nAnswer: The answer is no.\n\n" if method == "few_shot" else ""
            asked = [(f"Passage: the {g}.\nQuestion: no. A {g}.", f"Where is {i}?") for i, g in enumerate(GOLD)]
            examples = [
                Example(
                    str(i), shown + extraction.prompt(passage, question), targets=(g, "other wording"),
                    metadata={"passage": passage, "question": question},
                )
                for i, (g, (passage, question)) in enumerate(zip(GOLD, asked, strict=True))
            ]  # fmt: skip
            verdicts = score_reading([f" The answer is {a}." for a in answers], [e.targets for e in examples])
            rows = scored_rows(examples, answers, verdicts)
            record = make_record(
                rows, section="s5_3_reading", preset="embedded", method=method, seed=seed, task="technical_reading",
                task_version=1, key=f"{method}{seed}".ljust(10, "0"),
                own={} if method == "few_shot" else {"terms": 0.0, "extraction": 0.0},
            )  # fmt: skip
            found.append(save_record(record, rows, tmp_path))
    return found


def test_ratings_follow_the_answers(records):
    votes = verdicts.judge_records(records, list(ANSWERS), Deterministic())
    assert len(votes) == 2 * 4 * 6  # seeds, questions, pairs
    table = verdicts.rate(votes, records)
    assert list(table.index) == ["cat", "few_shot", "extraction", "base"]
    assert table.at["cat", "wins"] == 2 * (4 + 3 + 2) and table.at["base", "wins"] == 0
    assert table.at["cat", "role"] == "learned"
    assert (table["elo_low"] <= table["elo"]).all() and table["bt"].is_monotonic_decreasing
    assert verdicts.format_ratings(table).loc["CAT", "wins"] == "18"
    assert verdicts.finding(table).startswith("In pairwise verdicts CAT stands ahead of Few-shot base")
    assert verdicts.finding(table, "moe") == ""
    assert "CAT: Elo" in figures.ratings(table).alt and svg(figures.ratings(table)).startswith("<svg")


def test_the_judge_sees_passage_question_and_gold(records):
    asked = []

    def compare(question, first, second):
        asked.append(question)
        return judge.Judgement("tie")

    verdicts.judge_records(records, ["few_shot", "cat"], SimpleNamespace(identity="spy", compare=compare))
    assert asked[0] == judge.Question("2", "Where is 2?", "Passage: the lake.\nQuestion: no. A lake.", "lake\nother wording")


def test_an_unscored_answer_is_unscored_for_the_judge(records):
    rows = tables.paired_rows(records, ["base", "cat"])
    assert list(rows) == [0, 1] and [r["id"] for r in rows[1]["base"]] == [r["id"] for r in rows[1]["cat"]] == list("0123")
    with pytest.raises(LabError, match="no record of moe"):
        tables.paired_rows(records, ["base", "moe"])
    with pytest.raises(LabError, match="at least two"):
        verdicts.judge_records(records, ["cat"], Deterministic())


def test_paper_and_measured_by_another_score(records):
    table = tables.paper_and_measured({"here": records}, {"cat": 0.028, "moe": None}, score="f1")
    assert table.loc["CAT"].iloc[0].startswith("100.0 (") and table.loc["CAT"].iloc[1] == "2.8" and list(table.loc["MoE router"]) == ["", ""]


def test_verdict_reasons_have_a_place_and_a_colour(records):
    classes = tables.error_classes(records)
    assert list(classes.columns) == ["right", "wrong"]
    assert {"partly right", "no answer"} <= set(REASONS)
    figures.error_bars(classes)
    assert Verdict("no answer", 0.0, "").reason in REASONS
