"""The open-book baselines of Section 5.2: the answering skill, with passages that a retriever finds before each question."""

import functools
from collections.abc import Sequence
from functools import partial

from lab.evaluation.retrieval import MODEL, OVERLAP, RETRIEVERS, WORDS, Passage, split_pages
from lab.experiments.candidates.baselines import PAPER
from lab.experiments.candidates.registry import candidate
from lab.experiments.context import Entry, RunContext
from lab.tasks import Example, prompts
from lab.tasks.manual import read_manual
from lab.tasks.manual_qa import Question, file_of, read_questions

PASSAGES = 3  # before each question
WORLD_PAGES = 150  # of the generated manual, each a passage: every creature occurs about four times


def open_book(context: RunContext, method: str) -> Entry:
    """The answering skill, with what a retriever finds for a question before it (the paper's RetrievalQA baseline).

    method: of RETRIEVERS. The pages of real questions are searched with the manual.
    """
    text, answering = context.section.skills
    target, preset = context.section.target, context.preset
    skill = context.skill(answering)
    before, _, after = target.template.partition("{text}")

    @functools.cache
    def book() -> tuple:
        if preset.source(text.folder) == "world":
            pages = text.load("world", "train", WORLD_PAGES, 0)
            passages = [Passage(page.completion, page.id) for page in pages]
        else:
            passages = corpus(read_questions(preset.source(target.folder), file_of(target)), preset.source(text.folder))
        return passages, RETRIEVERS[method](passages)

    def found_for(example: Example) -> str:
        passages, search = book()
        (found,) = search([example.prompt.removeprefix(before).removesuffix(after)], PASSAGES)
        return prompts.OPEN_BOOK.format(text=" ".join(passages[place].text for place in reversed(found)))

    key = {"open_book": method, "model": MODEL, "passages": PASSAGES, "pages": WORLD_PAGES, "words": [WORDS, OVERLAP]}
    return Entry({**key, **skill.key}, lambda: (skill.load()[0], {}), before=found_for)


def corpus(questions: Sequence[Question], text: str) -> list[Passage]:
    """What is searched for real questions: the pages that they were asked about, and a manual's prose as distraction.

    text: the manual's folder. The game's questions were made from an older edition than the manual: only these pages are gold.
    """
    pages = {page_name(number): page for number, page in enumerate(pages_of(questions))}
    return split_pages({**pages, "manual": " ".join(read_manual(text))})


def pages_of(questions: Sequence[Question]) -> list[str]:
    """The different pages, in the order of their first questions."""
    return list(dict.fromkeys(question.page for question in questions))


def page_name(number: int) -> str:
    return f"page {number}"


for _retriever, _label in (("bm25", "Retrieval, BM25"), ("embedding", "Retrieval, embeddings")):
    candidate(f"retrieval_{_retriever}", _label, "retrieval", sees="the manual, at the question", source=PAPER, special=True, keeps="nothing")(
        partial(open_book, method=f"retrieval_{_retriever}")
    )
