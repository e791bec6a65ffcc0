"""Captions of an own small vocabulary, and words that never were: what letters are counted in."""

import random
import string

from lab.world.stories import SPLITS, bucket

NOUNS = (
    "dog cat horse zebra fox giraffe sheep goose owl frog boy girl man woman child chef clerk skier surfer jockey player "
    "bench table couch desk shelf box jar vase bowl mug plate pizza cake apple orange banana sandwich kiwi "
    "bus train truck taxi bike boat plane kite ball racquet umbrella jacket hat scarf clock phone laptop keyboard lamp mirror "
    "bridge tower church house garage kitchen bathroom street field park beach river lake forest hill snow sky window door fence "
    "quilt"
).split()
ADJECTIVES = (
    "red blue green yellow white black brown purple gray orange big small tall short old young new clean dirty empty full quiet "
    "happy sleepy wooden metal plastic fuzzy shiny broken colorful vintage frozen sunny dark bright huge tiny"
).split()
VERBS = (
    "holding watching chasing carrying painting fixing riding pulling pushing feeding washing juggling crossing "
    "touching photographing passing facing covering examining leaving"
).split()
POSTURES = "sitting standing lying sleeping waiting walking running jumping parked resting playing posing".split()
PREPOSITIONS = (
    "on", "in", "near", "under", "beside", "behind", "next to", "in front of", "on top of", "by", "across from", "with",
)  # fmt: skip
CROWDS = ["people", "men", "kids", "birds", "boxes", "horses", "cars"]
NUMBERS = ["two", "three", "four", "several", "six", "many"]
MOST = 6  # no answer of the real task is larger
LETTERS = string.ascii_lowercase


def _thing(rng: random.Random) -> str:
    adjective = rng.choice(ADJECTIVES) + " " if rng.random() < 0.4 else ""
    phrase = adjective + rng.choice(NOUNS)
    if rng.random() < 0.35:
        return "the " + phrase
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def caption(rng: random.Random) -> str:
    """'a small dog is sitting on the red couch near a window'"""
    if rng.random() < 0.25:
        subject = f"{rng.choice(NUMBERS)} {rng.choice(ADJECTIVES)} {rng.choice(CROWDS)}"
        is_ = rng.choice(["", " are", " that are"])
    else:
        subject, is_ = _thing(rng), rng.choice(["", " is", " that is"])
    action = f"{rng.choice(VERBS)} {_thing(rng)}" if rng.random() < 0.5 else rng.choice(POSTURES)
    places = [f"{rng.choice(PREPOSITIONS)} {_thing(rng)}" for _ in range(rng.choice([0, 1, 1, 2]))]
    return " ".join([subject + is_, action, *places])


def strange_words(rng: random.Random, most: int = 9) -> str:
    """1 to `most` words of random letters, so that letters are read and words are not known by heart."""
    letters = "".join(rng.sample(LETTERS, rng.randint(4, 26)))  # few letters: the same one often
    return " ".join("".join(rng.choices(letters, k=rng.randint(1, 6))) for _ in range(rng.randint(1, most)))


def containing(sentence: str, letter: str) -> list[str]:
    """The words of a sentence that contain the letter: what the task counts."""
    return [word for word in sentence.split(" ") if letter in word]


def make_questions(split: str, seed: int, count: int) -> list[tuple[str, str, int]]:
    """`count` different (sentence, letter, how many words contain it) of one split; no sentence is in two splits."""
    rng = random.Random(f"captions-{split}-{seed}")
    found: dict[tuple[str, str], int] = {}
    while len(found) < count:
        sentence, letter = caption(rng), rng.choice(LETTERS)
        number = len(containing(sentence, letter))
        if number <= MOST and bucket(sentence) in SPLITS[split]:
            found.setdefault((sentence, letter), number)
    return [(sentence, letter, number) for (sentence, letter), number in found.items()]
