"""What a base model can do in the embedded world: the mechanics that skills build on, measured on fresh text."""

import random
from collections.abc import Callable

from lab.evaluation.generate import generate
from lab.world import lexicon
from lab.world.chains import SIGN_WORDS, big_chain, big_number, program_lines, small_chain, worked_steps
from lab.world.orders import in_words
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


PROBES: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    "copies a line of five numbers and words": _copying,
    "knows a sum": _sum,
    "turns plain orders into Python": _python,
    "works plain orders out in steps": _steps,
    "lists the numbers of a story": _numbers,
}


def probe(model, tokenizer, count: int = 50) -> dict[str, float]:
    """Share of `count` fresh cases that the model continues exactly, per ability."""
    found = {}
    for name, make in PROBES.items():
        rng = random.Random(f"{SEED}-{name}")
        cases = [case for case in (make(rng) for _ in range(4 * count)) if case[1]][:count]
        texts = generate(model, tokenizer, [prompt for prompt, _ in cases], max_new_tokens=90, batch_size=50, label=name)
        found[name] = sum(text.startswith(gold) for text, (_, gold) in zip(texts, cases, strict=True)) / len(cases)
    return found
