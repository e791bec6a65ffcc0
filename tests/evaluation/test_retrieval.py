"""Retrieval: pieces of text, both retrievers against formulas, recall of the gold page, and what is on record of real manuals."""

import json
import math
from collections import Counter

import numpy as np
import pytest

from lab.errors import LabError
from lab.evaluation import retrieval
from lab.evaluation.retrieval import Passage, bm25, chunks, embedding, gold_ranks, split_pages
from lab.experiments import recall
from lab.pages import figures
from lab.records.record import load_records
from lab.tasks import manual_qa

TEXTS = [
    "The keeper of the harbor wears a green coat.", "Green tea grows on the hill above the harbor.",
    "A ladder leans on the old mill.", "Nobody has seen the keeper since the storm.", "The storm took the roof of the old mill.",
]  # fmt: skip
PASSAGES = [Passage(text, f"page {i}") for i, text in enumerate(TEXTS)]


def test_pieces_cover_the_text_and_share_the_overlap():
    words = [str(i) for i in range(100)]
    pieces = [piece.split() for piece in chunks(" ".join(words), 30, 10)]
    assert pieces[0] + [word for piece in pieces[1:] for word in piece[10:]] == words
    assert all(len(piece) == 30 for piece in pieces[:-1]) and len(pieces[-1]) > 10  # the last is not all shared
    assert all(a[-10:] == b[:10] for a, b in zip(pieces, pieces[1:], strict=False))
    assert chunks("a b", 30, 10) == ["a b"] and chunks("  ", 30, 10) == []
    with pytest.raises(LabError, match="cannot share 30"):
        chunks("a", 30, 30)


def test_bm25_ranks_as_the_formula():
    """Lucene's form: idf ln(1 + (N - n + 0.5)/(n + 0.5)), term weight tf/(tf + k1 (1 - b + b l/mean l))."""
    stop = {"the", "of", "a", "on"}
    texts = [[w for w in text.lower().rstrip(".").split() if w not in stop] for text in TEXTS]
    mean = np.mean([len(text) for text in texts])

    def score(text, question):
        total = 0.0
        for word in question:
            n = sum(word in other for other in texts)
            tf = Counter(text)[word]
            total += math.log(1 + (len(texts) - n + 0.5) / (n + 0.5)) * tf / (tf + 1.5 * (1 - 0.75 + 0.75 * len(text) / mean))
        return total

    search = bm25(PASSAGES)
    for question in (["green", "keeper"], ["storm", "mill", "roof"], ["harbor", "tea"]):
        scores = [score(text, question) for text in texts]
        found = search([" ".join(question)], 3)[0]
        assert [scores[i] for i in found] == pytest.approx(sorted(scores, reverse=True)[:3])


def test_embeddings_are_cosines_of_whole_meanings(monkeypatch):
    search = embedding(PASSAGES)
    assert search(["Who looks after the port?"], 1) == [[0]]  # no word in common with it but the articles
    model = retrieval._sentence_model()
    vectors = model.encode([*TEXTS, "What happened to the building?"], convert_to_numpy=True)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert search(["What happened to the building?"], 5)[0] == (-vectors[:5] @ vectors[5]).argsort().tolist()
    assert search(["anything"], 9)[0].__len__() == 5  # never more than there are
    monkeypatch.setattr(retrieval, "_PACKAGE", "no_such_package")
    with pytest.raises(LabError, match="not installed; pip install"):
        embedding(PASSAGES)


@pytest.mark.parametrize("method", retrieval.RETRIEVERS)
def test_nothing_to_search_is_said(method):
    with pytest.raises(LabError, match="no passages to search"):
        retrieval.RETRIEVERS[method]([])


def test_the_rank_is_of_the_first_passage_of_the_gold_page():
    passages = split_pages({"a": "one two three four", "b": "five six"}, 2, 0)
    assert [(p.text, p.page) for p in passages] == [("one two", "a"), ("three four", "a"), ("five six", "b")]

    def search(questions, k):
        return [[2, 1, 0][:k]] * len(questions)

    assert gold_ranks(search, passages, ["x", "y", "z"], ["a", "b", "c"], 3) == [2, 1, None]
    assert gold_ranks(search, passages, ["x"], ["a"], 1) == [None]


@pytest.fixture
def small_data(tmp_path):
    """A folder as real data has it: three questions on two pages, and a manual of one paragraph."""
    pages = ["Gnomes brew a sour ale in the cellar of the town hall.", "A river runs past the mill and turns its wheel all day."]
    rows = [("What do gnomes brew?", "Ale.", 0), ("Where is the ale?", "In the cellar.", 0), ("What turns the wheel?", "A river.", 1)]
    (tmp_path / "qabot").mkdir()
    (tmp_path / "srd52").mkdir()
    (tmp_path / "qabot" / manual_qa.GAME).write_text(
        json.dumps([{"instruction": question, "answer": gold, "context": pages[page]} for question, gold, page in rows])
    )
    (tmp_path / "srd52" / "manual.md").write_text("Ale is sold by the barrel and the wheel is not for sale here. " * 2)
    return tmp_path


def test_recall_is_recorded_once_and_without_the_texts(small_data, tmp_path, monkeypatch):
    records = recall.measure_recall(small_data, tmp_path / "out")
    assert [(r.task, r.method, r.n) for r in records] == [("game_questions", name, 3) for name in retrieval.RETRIEVERS]
    assert all(r.scores["recall_at_5"] == 1 and r.parameters["gold_pages"] == 2 for r in records)
    written = "".join(f"{row}" for r in records for row in r.rows()) + "".join(r.path.read_text() for r in records)
    assert "gnomes" not in written.lower() and "river" not in written
    monkeypatch.setitem(recall.RETRIEVERS, "retrieval_bm25", None)  # not needed any more
    assert recall.measure_recall(small_data, tmp_path / "out") == records
    table = recall.recall_table(records)
    assert table["n"].tolist() == [3, 3] and (table["low_5"] < 1).all() and (table["high_5"] == 1).all()
    assert recall.format_recall(table).shape == (2, 5)
    assert "game questions, BM25: " in figures.recall_bars(table).alt and "n = 3" in figures.svg(figures.recall_bars(table))


def test_real_questions_find_their_pages_by_words(data_folder, tmp_path, monkeypatch):
    """The measured recall at 5 is 24 of 25 game and 17 of 20 biology questions; embeddings take minutes here."""
    monkeypatch.setattr(recall, "RETRIEVERS", {"retrieval_bm25": bm25})
    game, biology = recall.measure_recall(data_folder, tmp_path)
    assert (game.n, biology.n) == (25, 20)
    assert (game.scores["recall_at_5"], biology.scores["recall_at_5"]) == (24 / 25, 17 / 20)
    assert load_records(tmp_path, recall.RECALL)[0].scores == game.scores
