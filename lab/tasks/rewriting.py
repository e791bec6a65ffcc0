"""Rewriting everyday sentences: a skill is one change, a target several at once, which no skill was trained on.

Two styles of prompt: "common", the same words for every change, so that only the skill says what to do; "named", an instruction
that names the changes. The rows are generated in real English (lab.world.rewriting), so a pretrained model is asked.
"""

import functools
import itertools
import re
from collections.abc import Mapping, Sequence

from lab.errors import LabError
from lab.evaluation.scorers import Verdict
from lab.tasks import Example, Task
from lab.world.rewriting.sentences import CHANGES, Sentence, make_sentences, realise
from lab.world.rewriting.words import TEST

NAMED = {
    "past": "in the past tense", "passive": "in the passive voice", "negation": "in the negative", "question": "as a question",
    "plural": "with its subject in the plural",
}  # fmt: skip
TITLES = {"past": "Past tense", "passive": "Passive voice", "plural": "Plural subject"}  # others: as they are called
STYLES = ("common", "named")
_ASK = "Sentence: {text}\nRewritten:"
PAIRS = tuple(itertools.combinations(CHANGES, 2))
TRIPLES = tuple(itertools.combinations(CHANGES, 3))
NEAR = 0.5  # of the characters, as far as a dropped ending goes: sentences about something else are further from every gold
UNCHANGED = "unchanged"


def template(changes: Sequence[str], style: str) -> str:
    """The prompt with {text} still open. Raises LabError for another style."""
    if style not in STYLES:
        raise LabError(f"There is no style {style!r} of rewriting prompts; choose {' or '.join(STYLES)}.")
    return _ASK if style == "common" else f"Rewrite {_enumerated([NAMED[change] for change in changes])}.\n{_ASK}"


def _enumerated(parts: Sequence[str]) -> str:
    """a; a and b; a, b and c"""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def subsets(changes: Sequence[str]) -> list[tuple[str, ...]]:
    """Every subset, the empty one first and all of them last."""
    return [found for size in range(len(changes) + 1) for found in itertools.combinations(changes, size)]


def name(changes: Sequence[str]) -> str:
    """How a set of changes is called in rows: "past and passive"; "unchanged" for none."""
    return _enumerated(changes) if changes else UNCHANGED


def _load(source: str, split: str, count: int | None, seed: int, *, changes: tuple[str, ...], style: str) -> list[Example]:
    """The same rows for every source: nobody else's exist. A target has a test split only."""
    if len(changes) > 1 and split != "test":
        raise LabError(f"Rewriting by {name(changes)} is never trained on: it has a test split only.")
    sentences = make_sentences(split, seed, count or 1000, changes)
    return [_example(sentence, f"{name(changes)}, {split} {i}", changes, style) for i, sentence in enumerate(sentences)]


def _example(sentence: Sentence, id: str, changes: tuple[str, ...], style: str) -> Example:
    golds = {name(found): realise(sentence, found) for found in subsets(changes)}
    gold, prompt = golds[name(changes)], template(changes, style).format(text=golds[UNCHANGED])
    return Example(id, prompt, f" {gold}", (gold,), metadata={"changes": changes, "golds": golds})


def _demonstrations(source: str, count: int | None = None, *, changes: tuple[str, ...]) -> list[tuple[str, str]]:
    """Sentences in the training vocabulary with all the changes made, two unless told."""
    return [(realise(found), f" {realise(found, changes)}") for found in make_sentences("train", 12345, count or 2, changes)]


def normalise(text: str) -> str:
    """Lower case, single spaces, no final punctuation."""
    return " ".join(text.lower().split()).rstrip(".?! ")


def edit_distance(first: str, second: str) -> float:
    """Insertions, deletions and substitutions of characters, as a share of the longer text: 0 (equal) to 1. Levenshtein's, by
    the algorithm of Wagner and Fischer (1974), "The String-to-String Correction Problem"."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        last, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (a != b))
    return row[-1] / max(len(first), len(second), 1)


def score_rewritings(completions: Sequence[str], examples: Sequence[Example]) -> list[Verdict]:
    """One verdict per completion, of its first line.

    Right: the gold sentence, but for case, spaces and final punctuation. Reasons: right; no answer; else which changes were made:
    "unchanged", "only past", ..., "inexact" (all of them, but not the gold sentence), "other". They are those of the nearest of
    the gold sentences (one for each subset of the changes) by edit distance; it must be within NEAR, and alone.
    Extras: edit_distance to the gold of all changes; for each change, whether it was made. Raises LabError when there are not
    as many examples as completions.
    """
    if len(completions) != len(examples):
        raise LabError(f"There are {len(completions)} completions but {len(examples)} examples; give one for each.")
    return [_score(completion, example.metadata) for completion, example in zip(completions, examples, strict=True)]


def _score(completion: str, facts: Mapping[str, object]) -> Verdict:
    said = next((line.strip() for line in completion.split("\n") if line.strip()), "")
    golds, wanted = {made: normalise(gold) for made, gold in facts["golds"].items()}, name(facts["changes"])
    text = normalise(said)
    made, right = _made(text, golds), text == golds[wanted]
    if right or not said:
        reason = "right" if right else "no answer"
    else:
        reason = "inexact" if made == wanted else made if made in (UNCHANGED, "other") else f"only {made}"
    done = {change: float(change in re.findall(r"\w+", made)) for change in facts["changes"]}
    return Verdict(reason, float(right), said, {"edit_distance": edit_distance(text, golds[wanted]), **done})


def _made(text: str, golds: Mapping[str, str]) -> str:
    """Which changes a text has: those of the gold sentence that it is, or is nearest to; else "other". All normalised."""
    exact = [made for made, gold in golds.items() if gold == text]
    if exact:
        return exact[0]
    distances = {made: edit_distance(text, gold) for made, gold in golds.items()}
    least = min(distances.values())
    nearest = [made for made, distance in distances.items() if distance == least]
    return nearest[0] if least <= NEAR and len(nearest) == 1 else "other"


def _task(changes: Sequence[str], style: str, title: str) -> Task:
    unknown = [change for change in changes if change not in CHANGES]
    if unknown or len(set(changes)) != len(changes) or not changes:
        raise LabError(f"{', '.join(changes) or 'Nothing'} is no set of changes; choose from {', '.join(CHANGES)}, each once.")
    changes = tuple(change for change in CHANGES if change in changes)
    named = "_named" if style == "named" else ""
    return Task(
        f"rewriting_{'_'.join(changes)}{named}", 1, title, template(changes, style),
        functools.partial(_load, changes=changes, style=style), score_rewritings, 40, stop=("\n",),
        demonstrations=functools.partial(_demonstrations, changes=changes),
    )  # fmt: skip


@functools.cache
def skill(change: str, style: str = "common") -> Task:
    """One change, to be trained on. Raises LabError for a change or style that there is not."""
    return _task((change,), style, TITLES.get(change, change.capitalize()))


@functools.cache
def target(changes: tuple[str, ...], style: str = "common") -> Task:
    """Two changes or more at once, never trained on; their order says nothing. Raises LabError as `skill`, and for fewer."""
    if len(changes) < 2:
        raise LabError("A target of rewriting makes at least two changes; for one take its skill.")
    return _task(changes, style, _enumerated([TITLES.get(change, change).lower() for change in changes]).capitalize())


@functools.cache
def _to_try() -> tuple[Sentence, ...]:
    found: dict[str, Sentence] = {}
    for sentence in make_sentences("test", 0, 400, ("plural",)):
        doer, text = sentence.subject, realise(sentence)
        at_work = sentence.place and doer.determiner in ("the", "a") and doer.head not in TEST.people
        if at_work and len(text.split()) <= 9:
            found.setdefault(sentence.verb.base, sentence)
    return tuple(found.values())[:10]


def example_sentences() -> list[str]:
    """Ten short test sentences with ten verbs, about people at their work, for a person to try every change on."""
    return [realise(sentence) for sentence in _to_try()]


def examples_to_try(changes: tuple[str, ...], style: str = "common") -> list[Example]:
    """The example sentences as examples of a skill's or target's changes."""
    return [_example(sentence, f"{name(changes)}, example {i}", changes, style) for i, sentence in enumerate(_to_try())]
