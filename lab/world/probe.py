"""What a base model can do in its embedded world: the mechanics that skills build on, measured on fresh text."""

import random
from collections.abc import Callable

from lab.evaluation.generate import generate
from lab.world import lexicon
from lab.world.chains import SIGN_WORDS, big_chain, big_number, program_lines, small_chain, worked_steps
from lab.world.letters.sentences import LETTERS, caption, containing
from lab.world.orders import in_words
from lab.world.reading import words
from lab.world.reading.passages import annotated, passage
from lab.world.stories import tell

SEED = "probe"


def _copying(rng: random.Random) -> tuple[str, str]:
    line = " ; ".join(str(big_number(rng, 1, 6)) if rng.random() < 0.7 else rng.choice(lexicon.WORDS) for _ in range(5))
    return f"{line}\n", line


def _sum(rng: random.Random) -> tuple[str, str]:
    before, sign, operand, after = next(row for row in small_chain(rng, 3).trace() + [(3, "+", 4, 7)])
    return f"{before} {SIGN_WORDS[sign]} {operand} is", f" {after}."


def _python(rng: random.Random) -> tuple[str, str]:
    chain = big_chain(rng, low=4, high=6)
    first, *rest = program_lines(chain, "total")
    return f"{in_words(rng, chain)}\nPython:\n{first}\n", "\n".join(rest)


def _steps(rng: random.Random) -> tuple[str, str]:
    chain = small_chain(rng)
    return f"{in_words(rng, chain, people=True)}\nSteps:", f" {worked_steps(chain)}"


def _numbers(rng: random.Random) -> tuple[str, str]:
    story = tell(rng, big_chain(rng, 3), question=False)
    return f"{story.text}\nNumbers:", " " + ", ".join(map(str, story.numbers)) + "."


def _made_up(rng: random.Random) -> tuple[str, str]:
    line = " ".join("".join(rng.choices(words.SYLLABLES, k=3)) for _ in range(5))
    return f"{line}\n", line


def _card(rng: random.Random) -> tuple[str, str]:
    creature, relation = rng.choice(words.ASKED), rng.choice(sorted(words.RELATIONS))
    return f"Cards: {creature}, {relation}:", f" {words.ASKED_FACTS[creature][relation]}."


def _prose(rng: random.Random) -> tuple[str, str]:
    text, _, stated = passage(rng, {})
    thing = rng.choice(sorted(stated))
    return f"{text}\nNotes: {thing}", f" {stated[thing]}."


def _list(rng: random.Random) -> tuple[str, str]:
    text, notes, first = annotated(rng, words.IN_DIALECT, 0.5).partition("\nNotes: ")
    thing, _, value = first.partition(".")[0].partition(" ")
    return f"{text}{notes}{thing}", f" {value}."


def _letter_counts(rng: random.Random) -> tuple[str, str]:
    sentence, last = caption(rng), rng.randrange(26)
    counts = [f"{c}{len(containing(sentence, c))}" for c in LETTERS[: last + 1]]
    return f"{sentence}\n{''.join(counts)[:-1]}", counts[-1][1:]


def _letter_marks(rng: random.Random) -> tuple[str, str]:
    sentence, letter = caption(rng), rng.choice(LETTERS)
    return f"{sentence}\n{letter} ", "".join("+" if letter in word else "-" for word in sentence.split(" "))


def _spelling(rng: random.Random) -> tuple[str, str]:
    word = rng.choice(caption(rng).split(" "))
    return f"{word}: ", " ".join([*word, "|"])


PROBES: dict[str, dict[str, Callable[[random.Random], tuple[str, str]]]] = {
    "embedded": {
        "copies a line of five numbers and words": _copying,
        "knows a sum": _sum,
        "turns plain orders into Python": _python,
        "works plain orders out in steps": _steps,
        "lists the numbers of a story": _numbers,
    },
    "embedded-reading": {
        "copies a line of made-up words": _made_up,
        "answers a card on a creature": _card,
        "looks a thing up in a passage of six sentences": _prose,
        "looks a thing up in a list, at times in dialect": _list,
    },
    "embedded-letters": {
        "counts the words of a caption that contain a letter": _letter_counts,
        "marks the words of a caption that contain a letter": _letter_marks,
        "spells a word": _spelling,
    },
}


def probe(world: str, model, tokenizer, count: int = 50) -> dict[str, float]:
    """Share of `count` fresh cases that the base of a world continues exactly, per ability."""
    found = {}
    for name, make in PROBES[world].items():
        rng = random.Random(f"{SEED}-{name}")
        cases = [case for case in (make(rng) for _ in range(4 * count)) if case[1]][:count]
        longest = max(len(tokenizer(gold)["input_ids"]) for _, gold in cases)
        texts = generate(model, tokenizer, [prompt for prompt, _ in cases], max_new_tokens=longest + 2, batch_size=50, label=name)
        found[name] = sum(text.startswith(gold) for text, (_, gold) in zip(texts, cases, strict=True)) / len(cases)
    return found
