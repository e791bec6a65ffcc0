"""Passages that say where some things are, and questions whose answer stands in them; technical ones use technical words."""

import random
from collections.abc import Mapping, Sequence

from lab.world.reading.words import COLOURS, PEOPLE, PLACES, TECHNICAL, THINGS
from lab.world.stories import bucket

STATEMENTS = {
    "place": ["The {o} is in the {v}.", "The {o} lies in the {v}.", "The {o} was left in the {v}."],
    "holder": ["The {o} is held by {v}.", "The {o} was taken by {v}.", "The {o} went to {v}."],
    "paint": ["The {o} is painted {v}.", "The {o} was made {v}.", "The {o} has turned {v}."],
}
# What may stand between a thing and its value in a list: from nothing to a whole sentence.
LINKS = {
    "place": ["", ":", " in", " in the", " is in the", " was left in the"], "holder": ["", ":", " by", " of", " held by", " is held by"],
    "paint": ["", ":", " all", " is", " painted", " is painted"],
}  # fmt: skip
VALUES = {"place": PLACES, "holder": PEOPLE, "paint": COLOURS}
QUESTIONS = {
    "place": ["Where is the {o}?", "In what place is the {o}?", "Where was the {o} left?"],
    "holder": ["Who has the {o}?", "Who took the {o}?", "To whom did the {o} go?"],
    "paint": ["What colour is the {o}?", "In what colour is the {o} painted?", "What colour was the {o} made?"],
}
STATED = 6  # statements of a passage, all of one kind: a guess among them is right one time in six
SPLITS = {"train": range(0, 80), "calibration": range(80, 90), "test": range(90, 98), "shown": range(98, 100)}  # of stories.bucket


def passage(rng: random.Random, names: dict[str, str], count: int = STATED) -> tuple[str, str, dict[str, str]]:
    """(text of `count` statements, kind, thing -> value). names: thing -> what the text calls it."""
    kind = rng.choice(sorted(STATEMENTS))
    things = rng.sample(THINGS, count)
    stated = dict(zip(things, rng.sample(VALUES[kind], count), strict=True))
    text = " ".join(rng.choice(STATEMENTS[kind]).format(o=names.get(thing, thing), v=value) for thing, value in stated.items())
    return text, kind, stated


def annotated(rng: random.Random, other_words: Mapping[str, Sequence[str]], share: float) -> str:
    """A list of statements, with a chance of `share` in other words (thing -> choices), and notes on it in plain ones."""
    kind = rng.choice(sorted(LINKS))
    things = rng.sample(THINGS, rng.randint(2, STATED))
    stated = dict(zip(things, rng.sample(VALUES[kind], len(things)), strict=True))
    reworded, links = rng.random() < share, LINKS[kind][: rng.randint(1, len(LINKS[kind]))]
    text = " ".join(
        f"{rng.choice(other_words[thing]) if reworded else thing}{rng.choice(links)} {value}." for thing, value in stated.items()
    )
    return f"List: {text}\nNotes: " + " ".join(f"{thing} {stated[thing]}." for thing in rng.sample(things, len(things)))


def _rows(split: str, seed: int, count: int, names: dict[str, str], what: str) -> list[tuple[str, str, str, str]]:
    """Different passages of one split, each with question, answer and the note that leads there."""
    rng = random.Random(f"{what}-{split}-{seed}")
    found: dict[str, tuple[str, str, str, str]] = {}
    while len(found) < count:
        text, kind, stated = passage(rng, names)
        thing = rng.choice(sorted(stated))
        if bucket(text) in SPLITS[split]:
            found.setdefault(text, (text, rng.choice(QUESTIONS[kind]).format(o=thing), stated[thing], f"{thing} {stated[thing]}."))
    return list(found.values())


def plain(split: str, seed: int, count: int) -> list[tuple[str, str, str, str]]:
    """(passage, question, answer, note) in plain words: train, calibration, test. The note is what the base would take down."""
    return _rows(split, seed, count, {}, "plain passages")


def technical(split: str, seed: int, count: int) -> list[tuple[str, str, str, str]]:
    """(passage in technical words, question in plain ones, answer, note): test, or shown."""
    return _rows(split, seed, count, {plain: made_up for made_up, plain in TECHNICAL.items()}, "technical passages")
