"""Tasks: one file each, with its data, prompt and scorer. A task's version is raised when its data or its scorer changes."""

from collections.abc import Callable
from dataclasses import dataclass

from lab.tasks.rows import HubSet


@dataclass(frozen=True)
class Example:
    """One row. prompt: exactly what the model reads. completion: what it should write ("" when only tested).

    choices: the completions to choose from, where the task is multiple choice.
    """

    id: str
    prompt: str
    completion: str
    answer: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """load(source, split, count, seed) gives examples of a split (train, calibration, test); count None means all there are.

    source: "world" (generated), a folder with the task's files, or "hub". score(completions, answers) gives one
    lab.evaluation.scorers.Verdict per completion. demonstrations(source, count): (text, completion) pairs of the
    target for few-shot prompts and for methods that see a few. folder: the task's own in a folder of real data.
    world: files of lab/world that generate its rows; hub: the sets its rows come from; both name its data in keys.
    """

    name: str
    version: int
    title: str
    template: str
    load: Callable
    score: Callable
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    demonstrations: Callable | None = None
    folder: str = ""
    world: tuple[str, ...] = ("lexicon.py", "chains.py", "stories.py", "orders.py")
    hub: tuple[HubSet, ...] = ()
