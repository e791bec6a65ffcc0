"""The text skill of Section 5.3: a domain's vocabulary and what its words mean, learned from text without a prompt."""

import html
import re
from pathlib import Path

from lab.errors import LabError
from lab.evaluation.reading_scores import score_endings
from lab.tasks import Example, Task, by_target, prompts
from lab.tasks.rows import HubSet, hub_rows, read_text, take
from lab.tasks.splits import shuffled, split_rows
from lab.world.reading import terms

# The paper does not name its five biomedical textbooks: five of this set's, on what BioASQ asks about, stand for them.
TEXTBOOKS = HubSet("MedRAG/textbooks", "9c72838920a1323ffa867467d3f7aa7b36b0f994", "train")
TITLES = (
    "Biochemistry_Lippincott", "Cell_Biology_Alberts", "Immunology_Janeway", "Pathology_Robbins", "Pharmacology_Katzung",
)  # fmt: skip
TEST_ROWS = 200  # paragraphs never trained on
LEAST_WORDS = 20  # of a paragraph: shorter ones are headings, captions and lists

# What a textbook's Markdown has beside its prose, in this order: front matter, formulas, tags, pictures, references to
# figures, links, attributes, marks.
_MARKUP = [
    (r"\A---\n.*?\n---\n", ""), (r"<math.*?</math>", ""), (r"<[^>]+>", ""), (r"!\[.*?\]\(\S+(?: \".*?\")?\)", ""),
    (r"\[\\\[link\\\]\]\([^)]*\)", "a figure"), (r"\[([^\]]*)\](?:\([^)]*\)|\[[^\]]*\])", r"\1"), (r"\{:[^}]*\}", ""),
    (r"[*\\]", ""),
]  # fmt: skip


def load(source: str, split: str, count: int | None, seed: int) -> list[Example]:
    """source: "world", "hub" (medical textbooks), or a folder with a textbook's Markdown files, in it or below.

    Training rows are texts after an empty prompt. Test rows are beginnings of sentences; the answer is the word
    that ends them.
    """
    if source == "world":
        if split == "test":
            return [_ending(i, *row) for i, row in enumerate(terms.cloze(seed, count or 200))]
        texts = terms.pages(split, seed, count or 1000)
    else:
        found = shuffled(_hub() if source == "hub" else _folder(Path(source)), 0)
        if split == "test":
            kept = take(found[:TEST_ROWS], count, "terms, test")
            return [_ending(i, *beginning(text)) for i, text in enumerate(kept)]
        texts = take(shuffled(split_rows(found[TEST_ROWS:], split), seed), count, f"terms, {split}")
    return [Example(f"terms-{split}-{seed}-{i}", prompts.TERMS, text) for i, text in enumerate(texts)]


def _ending(number: int, start: str, word: str) -> Example:
    return Example(f"terms-test-{number}", start, f" {word}.", (word,))


def beginning(text: str) -> tuple[str, str]:
    """A text without its last word, and that word."""
    start, _, word = text.rstrip(" .!?\"”)").rpartition(" ")
    return start, word


def _hub() -> list[str]:
    found = hub_rows(TEXTBOOKS, ("title", "content"))
    chosen = dict.fromkeys(row["content"] for row in found if row["title"] in TITLES)
    return [text for text in chosen if " " in text.strip()]  # an ending needs a beginning


def _folder(folder: Path) -> list[str]:
    """The different paragraphs of all Markdown files. Raises LabError when there are none."""
    found = dict.fromkeys(text for file in sorted(folder.rglob("*.md")) for text in paragraphs(read_text(file)))
    if not found:
        raise LabError(f"There is no textbook in {folder}: no Markdown file has a paragraph of {LEAST_WORDS} words.")
    return list(found)


def paragraphs(markdown: str) -> list[str]:
    """The prose of a Markdown text: paragraphs of whole sentences, without markup."""
    for pattern, instead in _MARKUP:
        markdown = re.sub(pattern, instead, markdown, flags=re.DOTALL)
    found = [" ".join(block.split()) for block in re.split(r"\n\s*\n", html.unescape(markdown))]
    return [text for text in found if len(text.split()) >= LEAST_WORDS and text.endswith(".") and text[0].isalpha()]


TASK = Task(
    "terms", 1, "A technical vocabulary, from text", prompts.TERMS, load, by_target(score_endings), 12, stop=("\n",),
    folder="biology", hub=(TEXTBOOKS,),
)  # fmt: skip
