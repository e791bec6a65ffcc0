"""The manual: creatures that occur nowhere else, told as prose; questions about it, and about other creatures."""

import random

from lab.world.reading.facts import QUESTIONS, TELLINGS, asked, told
from lab.world.reading.words import MANUAL_FACTS, RELATIONS, SECOND_FACTS, TECHNICAL, TOLD_FACTS

VOLUMES = {1: MANUAL_FACTS, 2: SECOND_FACTS}
SHOWN = 5  # creatures of the manual whose questions are shown to methods that see the target, and never asked
OTHERS = {"train": range(0, 150), "calibration": range(150, 165), "test": range(165, 200)}  # of the creatures the base has read about


def pages(split: str, seed: int, count: int, volume: int = 1) -> list[str]:
    """Paragraphs of the manual, one or two creatures each; every fact comes back in several wordings.

    Splits train and calibration tell the same facts in other words and orders: a manual has no facts to spare.
    """
    facts = VOLUMES[volume]
    rng = random.Random(f"manual-{volume}-{split}-{seed}")
    order: list[str] = []
    found = []
    for _ in range(count):
        if len(order) < 2:
            order = rng.sample(sorted(facts), len(facts))
        creatures = [order.pop() for _ in range(rng.choice([1, 2]))]
        found.append(" ".join(told(rng, c, facts[c], rng.sample(sorted(RELATIONS), rng.randint(3, 5))) for c in creatures))
    return found


def cloze(seed: int, count: int, volume: int = 1) -> list[tuple[str, str]]:
    """(beginning of a sentence of the manual, the word that ends it)."""
    rng = random.Random(f"cloze-{volume}-{seed}")
    facts = VOLUMES[volume]
    cases = [(c, r, f) for c in sorted(facts) for r in RELATIONS for f in TELLINGS[r] if f.startswith("{s}") and f.endswith("{v}.")]
    rows = []
    for creature, relation, frame in rng.sample(cases, min(count, len(cases))):
        beginning = frame.format(s=f"The {creature}", v="").removesuffix(" .")
        rows.append((beginning, facts[creature][relation]))
    return rows


def questions(split: str, seed: int, count: int, volume: int = 1) -> list[tuple[str, str, str]]:
    """(question, answer, card) about the manual: test, or shown (other creatures)."""
    facts = VOLUMES[volume]
    creatures = sorted(facts)[:SHOWN] if split == "shown" else sorted(facts)[SHOWN:]
    return _ask(random.Random(f"questions-{volume}-{split}-{seed}"), facts, creatures, count)


def technical_questions(split: str, seed: int, count: int) -> list[tuple[str, str, str]]:
    """(question, answer, card) about the manual that name what is asked for by its technical term."""
    term = {plain: made_up for made_up, plain in TECHNICAL.items()}
    creatures = sorted(MANUAL_FACTS)[:SHOWN] if split == "shown" else sorted(MANUAL_FACTS)[SHOWN:]
    cases = [(c, r) for c in creatures for r in RELATIONS]
    chosen = random.Random(f"technical-questions-{split}-{seed}").sample(cases, min(count, len(cases)))
    return [(f"What is the {term[r]} of the {c}?", MANUAL_FACTS[c][r], card(c, r, MANUAL_FACTS[c][r])) for c, r in chosen]


def others(split: str, seed: int, count: int) -> list[tuple[str, str, str]]:
    """(question, answer, card) about creatures that the base has read about but was never asked about."""
    creatures = [sorted(TOLD_FACTS)[i] for i in OTHERS[split]]
    return _ask(random.Random(f"others-{split}-{seed}"), TOLD_FACTS, creatures, count)


def card(creature: str, relation: str, value: str) -> str:
    """A fact as the base's cards have it: what the answering skill recalls before it answers."""
    return f"{creature}, {relation}: {value}."


def _ask(rng: random.Random, facts: dict, creatures: list[str], count: int) -> list[tuple[str, str, str]]:
    """Different questions: every fact once before any comes back in another wording."""
    cases = [(c, r) for c in creatures for r in RELATIONS]
    found: dict[str, tuple[str, str, str]] = {}
    most = sum(len(QUESTIONS[r]) for _, r in cases)
    while len(found) < min(count, most):
        for creature, relation in rng.sample(cases, len(cases)):
            if len(found) < min(count, most):
                question, value = asked(rng, creature, relation), facts[creature][relation]
                found.setdefault(question, (question, value, card(creature, relation, value)))
    return list(found.values())
