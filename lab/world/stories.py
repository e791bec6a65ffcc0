"""Story problems: a chain told as events in somebody's day. The maths skill's data, and, with large numbers, the target."""

import hashlib
import random
from dataclasses import dataclass

from lab.world import lexicon
from lab.world.chains import Chain, big_chain, small_chain, worked_steps

SPLITS = {"train": range(0, 80), "calibration": range(80, 90), "test": range(90, 100)}


def bucket(skeleton: object) -> int:
    """0..99, from the content alone: rows in different splits cannot share a skeleton."""
    return int.from_bytes(hashlib.sha256(repr(skeleton).encode()).digest()[:4], "big") % 100


@dataclass(frozen=True)
class Story:
    text: str
    chain: Chain
    skeleton: tuple  # which frames in which order about which things: what must not be shared between splits
    numbers: tuple[int, ...]  # every number of the text, in the order of reading
    name: str
    things: str


def tell(rng: random.Random, chain: Chain, question: bool = True) -> Story:
    """Put a chain into words, with frames whose effect only the maths skill knows."""
    pronoun = rng.choice(["she", "he"])
    name = rng.choice(lexicon.NAMES[pronoun])
    friend = rng.choice([n for names in lexicon.NAMES.values() for n in names if n != name])
    things = rng.choice(lexicon.OBJECTS)
    container = rng.choice(lexicon.CONTAINERS)
    words = {"p": "her" if pronoun == "she" else "him", "f": friend, "o": things, "c": container}
    if len(chain.start) == 2:
        frame = rng.choice(lexicon.START_MANY)
        sentences = [frame.format(s=name, m=chain.start[0], n=chain.start[1], **words)]
    else:
        frame = rng.choice(lexicon.START_ONE)
        sentences = [frame.format(s=name, n=chain.start[0], **words)]
    frames = [frame]
    for operation, operand in chain.steps:
        frame = rng.choice(lexicon.EVENTS[operation])
        frames.append(frame)
        subject = rng.choice([name, pronoun])
        sentence = frame.format(s=subject, n=operand, **words)
        if rng.random() < 0.5:
            keep = sentence.startswith((*lexicon.NAMES["she"], *lexicon.NAMES["he"]))
            sentence = f"{rng.choice(lexicon.CONNECTIVES)} {sentence if keep else sentence[0].lower() + sentence[1:]}"
        sentences.append(sentence[0].upper() + sentence[1:])
    if question:
        asked = rng.choice(lexicon.QUESTIONS).format(s=name, o=things)
        sentences = [asked, *sentences] if rng.random() < 0.2 else [*sentences, asked]
    numbers = (*chain.start, *(operand for _, operand in chain.steps))
    return Story(" ".join(sentences), chain, (*frames, things), numbers, name, things)


def make_stories(split: str, seed: int, count: int, large: bool = False) -> list[Story]:
    """`count` different stories of one split; `large` asks for numbers of 4 to 6 digits (the target)."""
    rng = random.Random(f"stories-{split}-{seed}-{large}")
    found: dict[str, Story] = {}
    while len(found) < count:
        story = tell(rng, big_chain(rng) if large else small_chain(rng))
        if bucket(story.skeleton) in SPLITS[split] and story.chain.trace():
            found.setdefault(story.text, story)
    return list(found.values())


def solution_in_words(story: Story) -> str:
    return f"{worked_steps(story.chain)} The answer is {story.chain.result}."
