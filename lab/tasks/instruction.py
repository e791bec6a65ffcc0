"""The answering skill of Section 5.2: questions on other matters, answered in a set form."""

import re
from collections.abc import Sequence
from pathlib import Path

from lab.errors import LabError
from lab.evaluation.reading_scores import exact_match, score_reading, token_f1
from lab.evaluation.scorers import Verdict
from lab.tasks import Example, Task, prompts
from lab.tasks.rows import HubSet, hub_rows, read_rows, take
from lab.tasks.splits import shuffled, split_rows
from lab.world.reading import manual

ALPACA = HubSet("tatsu-lab/alpaca", "dce01c9b08f87459cf36a430d809084718273017", "train")
TEST_ROWS = 100  # Alpaca has no test set: the first rows are never trained on
SHORT = 25  # words of an answer at most whose key words a test can ask for
ENOUGH_KEYS = 0.6


def load(source: str, split: str, count: int | None, seed: int) -> list[Example]:
    """source: "world", "hub" (Alpaca), or a folder with json or jsonl files in Alpaca's form.

    The world's answers are single words. Of Alpaca's test rows the long answers are not scored: they have no target.
    """
    if source == "world":
        rows = [(text, completion(answer, card), (answer,), {}) for text, answer, card in manual.others(split, seed, count or 1000)]
    else:
        found = hub_rows(ALPACA, ("instruction", "input", "output")) if source == "hub" else _folder(Path(source))
        # As a dict: a repeated instruction must not be in two splits.
        asked = {f"{row['instruction']}\n{row.get('input') or ''}".strip(): row["output"].strip() for row in found}
        texts = list(asked.items())
        chosen = texts[:TEST_ROWS] if split == "test" else shuffled(split_rows(texts[TEST_ROWS:], split), seed)
        rows = []
        for text, output in take(chosen, count, f"instruction, {split}"):
            short = len(output.split()) <= SHORT
            rows.append((text, f" {output}", (output,) if short else (), {"keys": key_words(text, output)} if short else {}))
    return [
        Example(f"instruction-{split}-{seed}-{i}", prompts.INSTRUCTION.format(text=text), done, targets, metadata=metadata)
        for i, (text, done, targets, metadata) in enumerate(rows)
    ]


def _folder(folder: Path) -> list[dict]:
    """The rows of all files, those left out that are empty or marked as not usable (a status other than "ok")."""
    files = [file for file in sorted(folder.glob("*")) if file.suffix in (".json", ".jsonl")]
    if not files:
        raise LabError(f"There are no instructions in {folder}; put json or jsonl files in Alpaca's form there.")
    rows = [row for file in files for row in read_rows(file, ("instruction", "output"))]
    return [row for row in rows if row["output"].strip() and row.get("status", "ok") == "ok"]


def completion(answer: str, card: str) -> str:
    """The form in which the skill answers the world's questions: what it recalls, then the answer."""
    return f" {card} The answer is {answer}."


def key_words(question: str, answer: str) -> list[str]:
    """The key words of an answer, sorted: those that carry meaning and that the question does not give away.

    Where the question has them all, every word with meaning is one.
    """
    from bm25s.stopwords import STOPWORDS_EN_PLUS

    words = [word for word in _words(answer) if word not in STOPWORDS_EN_PLUS and (len(word) > 1 or word.isdigit())]
    return sorted(set(words) - set(_words(question)) or set(words) or set(_words(answer)))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def score_answers(completions: Sequence[str], examples: Sequence[Example]) -> list[Verdict]:
    """One verdict per completion; extras: exact_match, f1.

    An answer without key words must be given exactly (lab.evaluation.reading_scores). One with them (metadata `keys`, of
    `key_words`), whose wording nobody repeats, is right when at least ENOUGH_KEYS of them are written (extra: key_recall), partly
    right when some are: a rule in place of the paper's judge, GPT-4. It sees neither other words for the same nor a sentence that
    denies it. Raises LabError for a question without gold.
    """
    return [
        _score_keys(said, e.targets[0], set(e.metadata["keys"])) if "keys" in e.metadata else score_reading([said], [e.targets])[0]
        for said, e in zip(completions, examples, strict=True)
    ]


def _score_keys(said: str, gold: str, keys: set[str]) -> Verdict:
    recall = len(keys & set(_words(said))) / len(keys)
    right = recall >= ENOUGH_KEYS
    reason = "right" if right else "no answer" if not said.strip() else "partly right" if recall else "wrong"
    extras = {"exact_match": exact_match(said, gold), "f1": token_f1(said, gold), "key_recall": recall}
    return Verdict(reason, float(right), said.strip(), extras)


TASK = Task(
    "instruction", 1, "Questions on other matters", prompts.INSTRUCTION, load, score_answers, 24, stop=("\nQuestion:",),
    folder="alpaca_like", hub=(ALPACA,),
)  # fmt: skip
