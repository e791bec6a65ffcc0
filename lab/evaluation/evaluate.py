"""The one way to ask a model: examples of a task in, scored rows out. Comparison, ablations, app and command line all use it."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lab.errors import LabError
from lab.evaluation.generate import further_ends, generate
from lab.evaluation.likelihood import most_likely
from lab.evaluation.scorers import Verdict
from lab.files import content_hash
from lab.tasks.prompts import in_chat
from lab.tasks.task import Example, Task

# remember(kind, asked, make): what `make(partial)` gave for this when it was asked before, else what it gives now.
Remember = Callable[[str, Mapping[str, object], Callable[[Path | None], list]], list]


@dataclass(frozen=True)
class Decoding:
    """How completions are generated. max_new_tokens None: as many as the task needs. temperature 0 is greedy. chat: prompts are
    put as a user's turn (lab.tasks.prompts.in_chat)."""

    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    batch_size: int = 64
    seed: int = 0
    chat: bool = False


@dataclass(frozen=True)
class Evaluation:
    """rows: as `scored_rows` makes them, in the order of the examples. seconds: "answer" and "score"."""

    rows: tuple[dict, ...]
    seconds: Mapping[str, float]

    @property
    def scores(self) -> list[float | None]:
        return [row["score"] for row in self.rows]

    @property
    def accuracy(self) -> float | None:
        """Mean over the scored rows; None where none is."""
        scores = [score for score in self.scores if score is not None]
        return sum(scores) / len(scores) if scores else None


def evaluate(
    model, tokenizer, task: Task, examples: Sequence[Example], decoding: Decoding = Decoding(), *, remember: Remember | None = None,
    label: str = "answers",
) -> Evaluation:  # fmt: skip
    """Answer the examples' prompts with the model as it stands (an adapter attached, folded or none) and score the answers.

    Where examples have choices, their rows get one more score, "likelihood": whether the choice that the model finds most likely
    is right. A task of 0 new tokens writes nothing: its answers are these choices. remember: keeps what the model said, under all
    that decided it but the model itself.
    """
    remember = remember or (lambda kind, asked, make: make(None))
    started = time.monotonic()
    if decoding.chat:
        examples = [in_chat(tokenizer, example) for example in examples]
    prompts = [example.prompt for example in examples]

    def write() -> list[str]:
        options = {
            "max_new_tokens": decoding.max_new_tokens or task.max_new_tokens, "stop": task.stop, "temperature": decoding.temperature,
            "top_p": decoding.top_p, "seed": decoding.seed,
        }  # fmt: skip
        sampled = {"batch_size": decoding.batch_size} if decoding.temperature else {}  # each batch draws from its own seed
        ends = {"ends": found} if (found := further_ends(model, tokenizer)) else {}
        return remember(
            "answers", {"prompts": content_hash(prompts), "decoding": options | sampled | ends},
            lambda partial: generate(model, tokenizer, prompts, partial=partial, label=label, batch_size=decoding.batch_size, **options),
        )  # fmt: skip

    def choose(chosen: Sequence[int]) -> list[str]:
        """Of the examples at these places, the most likely choice each."""
        texts, choices = [prompts[i] for i in chosen], [examples[i].choices for i in chosen]
        places = remember(
            "choices", {"prompts": content_hash(texts, choices)},
            lambda _: most_likely(model, tokenizer, texts, choices, batch_size=decoding.batch_size, label=f"{label}, choices"),
        )  # fmt: skip
        return [given[place] for given, place in zip(choices, places, strict=True)]

    completions = write() if task.max_new_tokens else choose(range(len(examples)))
    answered = time.monotonic()
    verdicts = task.score(completions, examples)
    if task.max_new_tokens and (chosen := [i for i, example in enumerate(examples) if example.choices]):
        likely = task.score(choose(chosen), [examples[i] for i in chosen])
        verdicts = list(verdicts)
        for i, by_likelihood in zip(chosen, likely, strict=True):
            verdicts[i] = replace(verdicts[i], extras={**verdicts[i].extras, "likelihood": by_likelihood.score})
    seconds = {"answer": round(answered - started, 2), "score": round(time.monotonic() - answered, 2)}
    return Evaluation(tuple(scored_rows(examples, completions, verdicts)), seconds)


def scored_rows(examples: Sequence[Example], completions: Sequence[str], verdicts: Sequence[Verdict]) -> list[dict]:
    """Examples, their completions and verdicts as rows (JSON-able). Raises LabError when the numbers differ.

    id, question, group, prompt, targets, metadata: the example's. completion; extracted: the answer that was found in it; score
    (None when unscored), reason, extras: the verdict's.
    """
    if not len(examples) == len(completions) == len(verdicts):
        counts = f"{len(examples)} examples, {len(completions)} completions and {len(verdicts)} verdicts"
        raise LabError(f"There are {counts}; each example needs one of both.")
    return [
        {
            "id": example.id, "question": example.question, "group": example.group, "prompt": example.prompt,
            "targets": list(example.targets), "metadata": dict(example.metadata), "completion": completion,
            "extracted": verdict.extracted, "score": verdict.score, "reason": verdict.reason, "extras": dict(verdict.extras),
        }
        for example, completion, verdict in zip(examples, completions, verdicts, strict=True)
    ]  # fmt: skip
