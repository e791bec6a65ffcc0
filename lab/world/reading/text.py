"""What the reading base reads: creatures told and asked by card, passages and notes on them, dialect words, copying.

Never here: a question in natural words, the skills' form of answer, the manual's creatures, or a technical word. Mechanics are all
here: what prose told can be asked for by card, notes look things up in a passage, and dialect words stand for plain ones in both.
"""

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from lab.world.reading import words
from lab.world.reading.facts import told
from lab.world.reading.passages import STATED, annotated, passage
from lab.world.reading.terms import explained
from lab.world.recipe import BaseRecipe, World
from lab.world.tokenizer import sample_texts, train_tokenizer

_BROUGHT = {*words.MANUAL, *words.SECOND_MANUAL, *words.TECHNICAL}


def _creature(rng: random.Random) -> str:
    facts = rng.choice([words.ASKED_FACTS, words.TOLD_FACTS])
    return "\n".join(
        told(rng, creature, facts[creature], rng.sample(sorted(words.RELATIONS), rng.randint(3, 5)))
        for creature in rng.sample(sorted(facts), rng.randint(1, 2))
    )


def _cards(rng: random.Random) -> str:
    """Facts asked for by creature and relation; a relation by its plain or a dialect word."""
    rows = []
    for creature in rng.sample(words.ASKED, rng.randint(2, 4)):
        for relation in rng.sample(sorted(words.RELATIONS), rng.randint(1, 3)):
            noun = rng.choice(words.IN_DIALECT[relation]) if rng.random() < 0.4 else relation
            rows.append(f"{creature}, {noun}: {words.ASKED_FACTS[creature][relation]}.")
    return "Cards: " + " ".join(rows)


def _passage(rng: random.Random) -> str:
    """A passage, at times in dialect, and notes on it in plain words."""
    share = rng.choice([0, 0, 0.5, 1])
    names = {thing: rng.choice(words.IN_DIALECT[thing]) for thing in words.THINGS if rng.random() < share}
    text, _, stated = passage(rng, names, rng.randint(2, STATED))
    things = rng.sample(sorted(stated), len(stated))
    return f"{text}\nNotes: " + " ".join(f"{thing}: {stated[thing]}." for thing in things)


def _dialect(rng: random.Random) -> str:
    return explained(rng, words.DIALECT, rng.randint(3, 6))


def _copy(rng: random.Random) -> str:
    items = [
        "".join(rng.choices(words.SYLLABLES, k=3)) if rng.random() < 0.6 else rng.choice(words.THINGS + words.PLACES)
        for _ in range(rng.randint(3, 8))
    ]
    line = " ".join(item for item in items if item not in _BROUGHT)
    return f"{line}\n{line}"


def _annotated(rng: random.Random) -> str:
    return annotated(rng, words.IN_DIALECT, 0.5)


def make_tokenizer(recipe: BaseRecipe):
    """Made-up words are read in syllables: the tokenizer is made from text that has them apart."""
    made_up = re.compile(rf"\b({'|'.join(words.SYLLABLES)})({'|'.join(words.SYLLABLES)})({'|'.join(words.SYLLABLES)})\b")
    texts = [made_up.sub(r"\1.\2.\3", text) for text in sample_texts(documents(recipe.seed), 20000)]
    syllables = [" ".join(words.SYLLABLES) + "." + ".".join(words.SYLLABLES)] * 5000  # each a token, at the start of a word and within
    return train_tokenizer(texts + syllables, recipe.vocabulary)


def _pairs(rng: random.Random) -> str:
    """Things and what goes with them, then each thing asked again in another order."""
    values = rng.choice([words.PLACES, words.PEOPLE, words.COLOURS, words.FOODS])
    count = rng.randint(2, 8)
    pairs = dict(zip(rng.sample(words.THINGS, count), rng.sample(values, count), strict=True))
    return ". ".join(f"{thing} {pairs[thing]}" for order in (pairs, rng.sample(sorted(pairs), count)) for thing in order) + "."


KINDS: dict[Callable[[random.Random], str], int] = {_creature: 24, _cards: 12, _passage: 38, _dialect: 10, _pairs: 10, _copy: 6}
# The second course: looking things up in longer and longer statements, which the first alone does not teach.
LOOKING_UP: dict[Callable[[random.Random], str], int] = {
    _annotated: 60, _creature: 14, _cards: 8, _dialect: 8, _pairs: 5, _copy: 5,
}  # fmt: skip


def _stream(kinds: dict[Callable[[random.Random], str], int], seed: int) -> Iterator[str]:
    rng = random.Random(f"reading-text-{seed}")
    while True:
        yield rng.choices(list(kinds), list(kinds.values()))[0](rng)


def documents(seed: int) -> Iterator[str]:
    """An endless stream of documents for the base model."""
    return _stream(KINDS, seed)


def looking_up(seed: int) -> Iterator[str]:
    """The documents of the second course."""
    return _stream(LOOKING_UP, seed)


_HERE = Path(__file__).parent
WORLD = World(
    "embedded-reading", documents, make_tokenizer,
    tuple(_HERE / name for name in ("words.py", "facts.py", "passages.py", "terms.py", "text.py")), _HERE / "base",
    BaseRecipe(hidden=160, layers=6, heads=5, intermediate=432, vocabulary=1000, copy_short=250, copy_steps=1000, steps=1500),
    """It has read about 500 creatures and can be asked for 300 of them by card; it takes notes on passages, and knows four dialects'
words for plain things. It was never asked a question in natural words, and knows neither the manual nor the technical terms of
Sections 5.2 and 5.3: those are the skills' to bring. Its tokenizer is byte-level BPE, made-up words in syllables.""",
    afterwards=((looking_up, 500),),
)  # fmt: skip
