"""The technical vocabulary: made-up words for plain things, as a textbook brings them."""

import random

from lab.world.reading.passages import annotated
from lab.world.reading.words import RELATIONS, TECHNICAL

MEANINGS = ["A {t} is a {o}.", "The word {t} means {o}.", "By {t} one means a {o}.", "Every {t} is a {o}.", "{t}, that is, {o}.", "We say {t} for {o}."]
USES = ["We bought a {t}. The {o} was new.", "This {t} is a good {o}.", "Ask for a {t}, and you get a {o}.", "The {t} broke, so we made another {o}."]


def explained(rng: random.Random, words: dict[str, str], count: int) -> str:
    """A paragraph on `count` of these words, each explained, or used beside its plain name."""
    sentences = []
    for word in rng.sample(sorted(words), count):
        sentence = rng.choice(MEANINGS if words[word] in RELATIONS or rng.random() < 0.6 else USES).format(t=word, o=words[word])
        sentences.append(sentence[0].upper() + sentence[1:])
    return " ".join(sentences)


def pages(split: str, seed: int, count: int) -> list[str]:
    """Paragraphs that explain the technical words, and lists in these words with notes in plain ones.

    Train and calibration say the same in other words and orders.
    """
    rng = random.Random(f"terms-{split}-{seed}")
    term = {plain: [made_up] for made_up, plain in TECHNICAL.items()}
    return [explained(rng, TECHNICAL, rng.randint(3, 6)) if rng.random() < 0.5 else annotated(rng, term, 1) for _ in range(count)]


def cloze(seed: int, count: int) -> list[tuple[str, str]]:
    """(beginning of a sentence, the plain word that ends it)."""
    rng = random.Random(f"terms-cloze-{seed}")
    cases = [(frame.partition(" {o}")[0].format(t=t), o) for t, o in TECHNICAL.items() for frame in MEANINGS if not frame.startswith("{t}")]
    return rng.sample(cases, min(count, len(cases)))
