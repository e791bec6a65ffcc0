"""A second manual, learned from its text as the first one: a skill that no target asks for, to see what merges do with it."""

import dataclasses

from lab.tasks import Example, manual
from lab.world.reading import manual as world


def load(source: str, split: str, count: int | None, seed: int) -> list[Example]:
    """As lab.tasks.manual.load; "world" tells of other creatures than the first manual."""
    if source != "world":
        return manual.load(source, split, count, seed)
    if split == "test":
        rows = [(start, f" {word}.", (word,)) for start, word in world.cloze(seed, count or 200, volume=2)]
    else:
        rows = [(manual.TASK.template, text) for text in world.pages(split, seed, count or 1000, volume=2)]
    return [Example(f"second-manual-{split}-{seed}-{i}", *row) for i, row in enumerate(rows)]


TASK = dataclasses.replace(manual.TASK, name="second_manual", title="A second manual, from its text", load=load, folder="biology")
