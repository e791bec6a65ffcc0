"""The text skill of Section 5.2: a manual, learned as it stands, without a prompt."""

import dataclasses
import re
from pathlib import Path

from lab.errors import LabError
from lab.evaluation.reading_scores import score_endings
from lab.evaluation.retrieval import chunks
from lab.tasks import Example, Task, by_target, prompts
from lab.tasks.rows import read_text, take
from lab.tasks.splits import shuffled
from lab.tasks.terms import beginning, paragraphs
from lab.world.reading import manual

PIECE = 70  # words of a training row: about 100 tokens, short as the paper found best for minute details (Appendix B.2)
SENTENCE = range(8, 41)  # words of a sentence whose last word is asked for


def load(source: str, split: str, count: int | None, seed: int) -> list[Example]:
    """source: "world", or a folder with the manual as Markdown or text files, in it or below; it is on no Hub.

    Training rows are pieces of text after an empty prompt. The calibration rows hold the same text, cut at other places (the
    world's: in other wordings), since a manual has no facts to spare. Test rows are beginnings of its sentences; the answer is
    the word that ends them.
    """
    if source == "world":
        if split == "test":
            return [_ending(i, *row) for i, row in enumerate(manual.cloze(seed, count or 200))]
        texts = manual.pages(split, seed, count or 1000)
    else:
        found = read_manual(source)
        if split == "test":
            sentences = [s for text in found for s in re.split(r"(?<=[.!?]) ", text) if len(s.split()) in SENTENCE]
            rows = take(shuffled(sentences, seed), count, "manual, test")
            return [_ending(i, *beginning(text)) for i, text in enumerate(rows)]
        words = " ".join(found).split()
        pieces = chunks(" ".join(words[0 if split == "train" else PIECE // 2 :]), PIECE)
        texts = take(shuffled(pieces, seed), count, f"manual, {split}")
    return [Example(f"manual-{split}-{seed}-{i}", prompts.MANUAL, text) for i, text in enumerate(texts)]


def _ending(number: int, start: str, word: str) -> Example:
    return Example(f"manual-test-{number}", start, f" {word}.", (word,))


def read_manual(source: str) -> list[str]:
    """The paragraphs of a manual's files but its licences. Raises LabError when there is no such folder or no text in it."""
    if source == "hub":
        raise LabError(
            'The manual is not on the Hub; give data="FOLDER+hub", where FOLDER has it as Markdown or text files in srd52/ '
            "(biology/ for the chapter) and the questions in qabot/, and the rest comes from the Hub."
        )
    if not Path(source).is_dir():
        raise LabError(f"The folder {source} does not exist; put the manual there, as Markdown or text files.")
    texts = [file for file in sorted(Path(source).rglob("*")) if file.suffix in (".md", ".txt")]
    files = [file for file in texts if not re.search("licen|legal", file.name.lower())]
    found = list(dict.fromkeys(text for file in files for text in paragraphs(read_text(file))))
    if not found:
        raise LabError(f"The manual in {source} is empty: no Markdown or text file there has a paragraph of prose.")
    return found


TASK = Task(
    "manual", 1, "A manual, from its text", prompts.MANUAL, load, by_target(score_endings), 12, stop=("\n",), folder="srd52",
)  # fmt: skip
BIOLOGY = dataclasses.replace(TASK, folder="biology")
