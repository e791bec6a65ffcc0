"""What a task and one of its rows are."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps

from lab.evaluation.scorers import Verdict
from lab.tasks.rows import HubSet


@dataclass(frozen=True)
class Example:
    """One row. id: its own in its split. prompt: exactly what the model reads. completion: what it should write ("" when only
    tested).

    targets: the right answers, each of which counts; () where nothing can be checked. question: names what is asked, where several
    rows ask the same in other words ("": the row asks something of its own). group: the wording, format or set that it is asked
    in. choices: the completions to choose from, where the task is multiple choice. metadata: further facts that the scorer reads
    (JSON-able).
    """

    id: str
    prompt: str
    completion: str = ""
    targets: tuple[str, ...] = ()
    question: str = ""
    group: str = ""
    choices: tuple[str, ...] = ()
    metadata: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """load(source, split, count, seed) gives examples of a split (train, calibration, test); count None means all there are.

    source: "world" (generated), a folder with the task's files, or "hub". score(completions, examples) gives one
    lab.evaluation.scorers.Verdict per completion. demonstrations(source, count): (text, completion) pairs of the
    target for few-shot prompts and for methods that see a few. folder: the task's own in a folder of real data.
    hub: the sets its rows come from. version is raised when the scorer changes; changed rows are told by themselves.
    """

    name: str
    version: int
    title: str
    template: str
    load: Callable[[str, str, int | None, int], list[Example]]
    score: Callable[[Sequence[str], Sequence[Example]], list[Verdict]]
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    demonstrations: Callable | None = None
    folder: str = ""
    hub: tuple[HubSet, ...] = ()


def by_target(score: Callable[[Sequence[str], Sequence[str]], list[Verdict]]) -> Callable:
    """A scorer of (completions, answers) as a task's, for examples with one right answer each."""

    @wraps(score)
    def scored(completions: Sequence[str], examples: Sequence[Example]) -> list[Verdict]:
        return score(completions, [example.targets[0] for example in examples])

    return scored
