"""A target that needs three skills, never trained on: questions about the manual that name what they ask for by a technical term.

Who answers must know the manual, the terms' meaning, and how a question is answered.
"""

from lab.errors import LabError
from lab.tasks import Example, Task, prompts
from lab.tasks.instruction import completion, score_answers
from lab.world.reading import manual


def load(source: str, split: str, count: int | None, seed: int) -> list[Example]:
    """source: "world"; there are no such questions about a real manual. Only a test split exists, of at most 275 rows."""
    if split != "test":
        raise LabError("Questions in technical terms are never trained on: they have a test split only.")
    if source != "world":
        raise LabError('There are no questions in technical terms about a real manual, only generated ones; give data="world".')
    rows = [(prompts.MANUAL_QA.format(text=text), answer) for text, answer, _ in manual.technical_questions("test", seed, count or 500)]
    return [Example(f"manual-in-terms-{i}", prompt, targets=(answer,)) for i, (prompt, answer) in enumerate(rows)]


def demonstrations(source: str, count: int | None = None) -> list[tuple[str, str]]:
    """The first `count` (default 5) questions, on creatures that are never asked about, and completions."""
    return [(text, completion(answer, card)) for text, answer, card in manual.technical_questions("shown", 0, count or 5)]


TASK = Task(
    "manual_in_terms", 1, "Questions about a manual in technical terms", prompts.MANUAL_QA, load, score_answers, 24,
    stop=("\nQuestion:",), demonstrations=demonstrations, folder="qabot",
)  # fmt: skip
