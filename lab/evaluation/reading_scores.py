"""How a written answer is scored against gold answers: SQuAD's exact match and token F1, and the verdict made of them.

Source: the official evaluation script of SQuAD 2.0 (Rajpurkar et al., 2018).
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

from lab.errors import LabError
from lab.evaluation.scorers import Verdict

NOT_IN_CONTEXT = "Not in context"  # the gold answer of a question that its passage does not answer
SHORT_ANSWER = 5  # words
ENOUGH_F1 = 0.5

_LEAD = re.compile(r"\banswer is\b:?\s*", re.IGNORECASE)


def normalise(text: str) -> str:
    """Lower case, without punctuation, the articles a, an, the, and extra spaces."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(prediction: str, gold: str) -> float:
    return float(normalise(prediction) == normalise(gold))


def token_f1(prediction: str, gold: str) -> float:
    """Harmonic mean of precision and recall over the words; "Not in context" is all or nothing, as in SQuAD 2.0."""
    words, wanted = normalise(prediction).split(), normalise(gold).split()
    unanswerable = normalise(NOT_IN_CONTEXT).split()
    if not words or not wanted or unanswerable in (words, wanted):
        return float(words == wanted)
    common = sum((Counter(words) & Counter(wanted)).values())
    return 2 * common / (len(words) + len(wanted))


def stated_answer(completion: str) -> str:
    """A completion's answer: its first line, after "The answer is" where it says so, without the full stop."""
    line = next((line.strip() for line in completion.split("\n") if line.strip()), "")
    found = _LEAD.search(line)
    return (line[found.end() :] if found else line).strip().removesuffix(".").strip()


def score_reading(completions: Sequence[str], targets: Sequence[Sequence[str]]) -> list[Verdict]:
    """One verdict per completion. Its targets are wordings of the gold answer, of which the best counts.

    Extras: exact_match, f1. Right: an exact match, or, where the gold answer has more than SHORT_ANSWER words (a sentence,
    which nobody repeats word for word), an F1 of at least ENOUGH_F1. Reasons: right, partly right (some word is), wrong,
    no answer. Raises LabError when there is no gold answer, or not as many as completions.
    """
    if len(completions) != len(targets):
        raise LabError(f"There are {len(completions)} completions but {len(targets)} answers; give one for each.")
    return [_score(number, *pair) for number, pair in enumerate(zip(completions, targets, strict=True), 1)]


def _score(number: int, completion: str, targets: Sequence[str]) -> Verdict:
    golds = [gold for gold in targets if gold.strip()]
    if not golds:
        raise LabError(f"Question {number} has no gold answer to score against; give one, or leave the question out.")
    said = stated_answer(completion)
    matches, f1 = max(exact_match(said, gold) for gold in golds), max(token_f1(said, gold) for gold in golds)
    right = matches == 1 or any(_long(gold) and token_f1(said, gold) >= ENOUGH_F1 for gold in golds)
    reason = "right" if right else "no answer" if not said else "partly right" if f1 > 0 else "wrong"
    return Verdict(reason, float(right), said, {"exact_match": matches, "f1": f1})


def _long(gold: str) -> bool:
    return len(normalise(gold).split()) > SHORT_ANSWER


def score_endings(completions: Sequence[str], answers: Sequence[str]) -> list[Verdict]:
    """Whether each completion begins with the word (or words) that should end the sentence."""
    verdicts = []
    for completion, answer in zip(completions, answers, strict=True):
        wanted = normalise(answer).split()
        said = normalise(completion).split()[: len(wanted)]
        right = said == wanted
        verdicts.append(Verdict("right" if right else "wrong" if said else "no answer", float(right), " ".join(said)))
    return verdicts
