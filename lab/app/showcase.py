"""What the app shows on a base that it ships skills for: the tasks to try them on, and what to begin with."""

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lab.experiments import rewriting_skills
from lab.experiments.context import SHIPPED
from lab.experiments.rewriting_skills import CHANGES
from lab.experiments.sections import MATH_CODE
from lab.lora.peft_io import CONFIG
from lab.tasks import Example, Task, rewriting


@dataclass(frozen=True)
class Showcase:
    """tasks: by the names that visitors see; the shipped skills' by the skills' names, last the target that needs all of them.

    shapes: label -> the task (by name) in whose prompt a text is put, the first unless another is chosen. folders: where the
    shipped skills lie, by name. start: file with the recipe of the alphas to begin with (None: all alike). examples: gives a
    task's examples to choose from, by its name (None: any of its test problems). says: what a visitor types. new_tokens: how
    long answers may be.
    """

    base: str
    tasks: Mapping[str, Task]
    shapes: Mapping[str, str]
    folders: Callable[[], dict[str, Path]]
    start: Path | None = None
    examples: Callable[[str], list[Example]] | None = None
    says: str = "Prompt"
    new_tokens: int = 110

    @property
    def target(self) -> str:
        return list(self.tasks)[-1]

    def shape(self, task: str) -> str:
        """The label of a task's prompt."""
        return next(label for label, name in self.shapes.items() if self.tasks[name].template == self.tasks[task].template)

    def recipe(self) -> dict | None:
        """Of the alphas to begin with."""
        return None if self.start is None else json.loads(self.start.read_text())


def _embedded() -> dict[str, Path]:
    """Maths first."""
    found = {
        f.name.removeprefix("skill-").rpartition("-")[0]: f
        for f in SHIPPED.glob("skill-*")
        if json.loads((f / CONFIG).read_text())["base_model_name_or_path"] == "embedded"
    }
    return dict(sorted(found.items(), reverse=True))


WORD_PROBLEMS = Showcase(
    "embedded", {task.name: task for task in (*MATH_CODE.skills, MATH_CODE.target)},
    {"Question → program": MATH_CODE.target.name, "Question → answer in words": "maths"}, _embedded,
)  # fmt: skip


@functools.cache
def _sentences(task: str) -> list[Example]:
    return rewriting.examples_to_try((task,) if task in CHANGES else CHANGES, "named")


_SECTION, _BOTH = rewriting_skills.SECTION, " and ".join(CHANGES)
REWRITING = Showcase(
    rewriting_skills.preset().base,
    {**dict(zip(CHANGES, _SECTION.skills, strict=True)), _BOTH: _SECTION.target},
    {_SECTION.target.title: _BOTH, **{task.title: change for change, task in zip(CHANGES, _SECTION.skills, strict=True)}},
    lambda: {change: rewriting_skills.FOLDER / change for change in CHANGES},
    start=rewriting_skills.RECIPE, examples=_sentences, says="Your sentence", new_tokens=_SECTION.target.max_new_tokens,
)  # fmt: skip

SHOWCASES = {showcase.base: showcase for showcase in (WORD_PROBLEMS, REWRITING)}


def of_base(source: str) -> Showcase:
    """Of a base; for one without shipped skills, the tasks of the embedded one."""
    return SHOWCASES.get(source, WORD_PROBLEMS)
