"""The upper bound of Section 5.2's open-book baselines: how often retrieval finds the page that a real question was asked about."""

import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from lab.evaluation.retrieval import MODEL, OVERLAP, RETRIEVERS, WORDS, gold_ranks
from lab.evaluation.statistics import proportion_interval
from lab.experiments.candidates import describe
from lab.experiments.candidates.retrieval import corpus, page_name, pages_of
from lab.files import PROJECT, content_hash
from lab.records.record import RunRecord, find_record, load_records, make_record, save_record
from lab.tasks.manual_qa import CHAPTER, GAME, read_questions

RECALL = "s5_2_qabot_retrieval"  # folder of the records
KS = (1, 3, 5)


def measure_recall(data: str | Path, out: str | Path) -> list[RunRecord]:
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


def recall_records(data: str, out: Path) -> list[RunRecord]:
    """Measured on the folder that a notebook's `data` names; without one, those that the project has on record."""
    if data:
        return measure_recall(data.removesuffix("+hub"), out)
    return load_records(PROJECT / "results" / "records", RECALL)


def _recall(name: str, method: str, file: Path, text: Path, out: Path) -> RunRecord:
    data = content_hash(file, text)
    key = content_hash(RECALL, name, method, MODEL, WORDS, OVERLAP, data)
    past = find_record(out, RECALL, key)
    if past is not None:
        return past
    questions = read_questions(str(file.parent), file.name)
    passages, pages = corpus(questions, str(text)), pages_of(questions)
    started = time.monotonic()
    search = RETRIEVERS[method](passages)
    built = time.monotonic()
    gold = [page_name(pages.index(question.page)) for question in questions]
    ranks = gold_ranks(search, passages, [question.text for question in questions], gold, max(KS))
    rows = [
        {
            "id": f"{name}-{i}", "question": "", "group": "", "prompt": "", "targets": ["1"], "metadata": {}, "extracted": str(rank or ""),
            "completion": f"gold page at {rank}" if rank else f"gold page not among {max(KS)}",
            "score": float(rank == 1), "reason": "right" if rank == 1 else "wrong",
            "extras": {f"recall_at_{k}": float(rank is not None and rank <= k) for k in KS[1:]},
        }
        for i, rank in enumerate(ranks)
    ]  # fmt: skip
    record = make_record(
        rows, section=RECALL, preset="real", method=method, seed=0, task=name, task_version=1, key=key,
        hashes={"data": data}, parameters={"passages": len(passages), "gold_pages": len(pages)},
        seconds={"index": round(built - started, 2), "search": round(time.monotonic() - built, 2)},
    )  # fmt: skip
    return save_record(record, rows, out)


def recall_table(records: Sequence[RunRecord]) -> pd.DataFrame:
    """Recall of the gold page at 1, 3 and 5: a row per set of questions and retriever.

    Columns: questions, retriever, n, passages, and per k `recall_k`, `low_k`, `high_k` (fractions, Wilson's 95 % interval).
    """
    lines = []
    for record in records:
        line = {
            "questions": record.task.replace("_", " "), "n": record.n, "passages": record.parameters["passages"],
            "retriever": describe(record.method).label.removeprefix("Retrieval, "),
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
