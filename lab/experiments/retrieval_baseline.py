"""The open-book baselines of Section 5.2, its upper bound, and how often retrieval finds the page in real manuals."""

import functools
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from lab.evaluation.retrieval import MODEL, OVERLAP, RETRIEVERS, WORDS, Passage, gold_ranks, split_pages
from lab.evaluation.statistics import proportion_interval
from lab.experiments.comparison import Bench, Entry
from lab.files import PROJECT, content_hash
from lab.records import results
from lab.tasks import Example, prompts
from lab.tasks.manual import read_manual
from lab.tasks.manual_qa import CHAPTER, GAME, Question, read_questions

PASSAGES = 3  # before each question
WORLD_PAGES = 150  # of the generated manual, each a passage: every creature occurs about four times
RECALL = "s5_2_qabot_retrieval"  # folder of the records
KS = (1, 3, 5)


def open_book(bench: Bench, method: str, file: str = GAME) -> Entry:
    """The answering skill, with what a retriever finds for a question before it (the paper's RetrievalQA baseline).

    method: of RETRIEVERS. file: the real questions, whose pages are searched too.
    """
    text, answering = bench.section.skills
    target, preset = bench.section.target, bench.preset
    skill = bench.skill(answering)
    before, _, after = target.template.partition("{text}")

    @functools.cache
    def book() -> tuple:
        if preset.source(text.folder) == "world":
            pages = text.load("world", "train", WORLD_PAGES, 0)
            passages = [Passage(page.completion, page.id) for page in pages]
        else:
            passages = corpus(read_questions(preset.source(target.folder), file), preset.source(text.folder))
        return passages, RETRIEVERS[method](passages)

    def context(example: Example) -> str:
        passages, search = book()
        (found,) = search([example.prompt.removeprefix(before).removesuffix(after)], PASSAGES)
        return prompts.OPEN_BOOK.format(text=" ".join(passages[place].text for place in reversed(found)))

    key = {"open_book": method, "model": MODEL, "passages": PASSAGES, "pages": WORLD_PAGES, "words": [WORDS, OVERLAP]}
    return Entry({**key, **skill.key}, lambda: (skill.load()[0], {}), context=context)


def corpus(questions: Sequence[Question], text: str) -> list[Passage]:
    """What is searched for real questions: the pages that they were asked about, and a manual's prose as distraction.

    text: the manual's folder. The game's questions were made from an older edition than the manual: only these pages are gold.
    """
    pages = {_page_name(number): page for number, page in enumerate(_pages(questions))}
    return split_pages({**pages, "manual": " ".join(read_manual(text))})


def _pages(questions: Sequence[Question]) -> list[str]:
    """The different pages, in the order of their first questions."""
    return list(dict.fromkeys(question.page for question in questions))


def _page_name(number: int) -> str:
    return f"page {number}"


def measure_recall(data: str | Path, out: str | Path) -> list[results.RunRecord]:
    """How often a retriever finds the page that a real question was asked about; a record per set of questions and retriever.

    data: a folder with qabot/, srd52/ and biology/; a set that it lacks is left out. out: folder of the records; what is on
    record is not done again. Right: the first passage is of the gold page; recall_at_3, recall_at_5: one of the first so many
    is. The records hold nothing of the data's text.
    """
    found = []
    for name, file, text in (("game_questions", GAME, "srd52"), ("biology_questions", CHAPTER, "biology")):
        places = Path(data) / "qabot" / file, Path(data) / text
        if all(place.exists() for place in places):
            found += [_recall(name, method, *places, Path(out)) for method in RETRIEVERS]
    return found


def recall_records(data: str, out: Path) -> list[results.RunRecord]:
    """Measured on the folder that a notebook's `data` names; without one, those that the project has on record."""
    if data:
        return measure_recall(data.removesuffix("+hub"), out)
    return results.load_records(PROJECT / "results" / "records", RECALL)


def _recall(name: str, method: str, file: Path, text: Path, out: Path) -> results.RunRecord:
    data = content_hash(file, text)
    key = content_hash(RECALL, name, method, MODEL, WORDS, OVERLAP, data)
    past = results.find_record(out, RECALL, key)
    if past is not None:
        return past
    questions = read_questions(str(file.parent), file.name)
    passages, pages = corpus(questions, str(text)), _pages(questions)
    started = time.time()
    search = RETRIEVERS[method](passages)
    built = time.time()
    gold = [_page_name(pages.index(question.page)) for question in questions]
    ranks = gold_ranks(search, passages, [question.text for question in questions], gold, max(KS))
    rows = [
        {
            "id": f"{name}-{i}", "prompt": "", "answer": "1", "extracted": str(rank or ""),
            "completion": f"gold page at {rank}" if rank else f"gold page not among {max(KS)}",
            "score": float(rank == 1), "reason": "right" if rank == 1 else "wrong",
            "extras": {f"recall_at_{k}": float(rank is not None and rank <= k) for k in KS[1:]},
        }
        for i, rank in enumerate(ranks)
    ]  # fmt: skip
    record = results.make_record(
        rows, section=RECALL, preset="real", method=method, seed=0, task=name, task_version=1, key=key,
        hashes={"data": data}, parameters={"passages": len(passages), "gold_pages": len(pages)},
        seconds={"index": round(built - started, 2), "search": round(time.time() - built, 2)},
    )  # fmt: skip
    return results.save_record(record, rows, out)


def recall_table(records: Sequence[results.RunRecord]) -> pd.DataFrame:
    """Recall of the gold page at 1, 3 and 5: a row per set of questions and retriever.

    Columns: questions, retriever, n, passages, and per k `recall_k`, `low_k`, `high_k` (fractions, Wilson's 95 % interval).
    """
    lines = []
    for record in records:
        line = {
            "questions": record.task.replace("_", " "), "n": record.n, "passages": record.parameters["passages"],
            "retriever": results.describe(record.method).label.removeprefix("Retrieval, "),
        }  # fmt: skip
        for k in KS:
            share = record.scores["right" if k == 1 else f"recall_at_{k}"]
            low, high = proportion_interval(round(share * record.n), record.n)
            line |= {f"recall_{k}": share, f"low_{k}": low, f"high_{k}": high}
        lines.append(line)
    return pd.DataFrame(lines).sort_values(["questions", "retriever"], ascending=[False, True], ignore_index=True)


def format_recall(table: pd.DataFrame) -> pd.DataFrame:
    """A recall table as people read it: per cent with 95 % intervals. Strings throughout."""
    shown = pd.DataFrame({"questions": table["questions"], "retriever": table["retriever"]})
    for k in KS:
        rows = 100 * table[[f"recall_{k}", f"low_{k}", f"high_{k}"]].to_numpy()
        heading = "gold page first, %" if k == 1 else f"among the first {k}, %"
        shown[heading] = [f"{recall:.0f} ({low:.0f}–{high:.0f})" for recall, low, high in rows]
    shown["n"] = table["n"].astype(str)
    shown["passages searched"] = [f"{count:,}" for count in table["passages"]]
    return shown.set_index(["questions", "retriever"]).rename_axis([None, None])
