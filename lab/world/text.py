"""What the base model reads: plain orders in several forms, sums, stories without their outcome, Python, copying.

Two things never occur here, so that the skills have something to bring: what a story's events do to a count, and a
`def solution()` (or any answer to the skills' prompts). Mechanics are all here.
"""

import random
from collections.abc import Callable, Iterator

from lab.world import lexicon
from lab.world.chains import (
    SIGN_WORDS,
    SMALL_LIMIT,
    SMALL_OPERAND,
    big_chain,
    big_number,
    program_lines,
    small_chain,
    worked_steps,
)
from lab.world.orders import in_words
from lab.world.stories import tell


def _order(rng: random.Random) -> str:
    """Orders, then the same chain as signs, words, Python or worked steps: one meaning behind several forms."""
    small = rng.random() < 0.5
    chain = small_chain(rng, rng.randint(1, 4)) if small else big_chain(rng, rng.randint(1, 4), 1, 6)
    people = rng.random() < 0.6
    text = in_words(rng, chain, people)
    if people and rng.random() < 0.5:
        name = rng.choice([n for names in lexicon.NAMES.values() for n in names])
        text += " " + rng.choice(lexicon.QUESTIONS).format(s=name, o=rng.choice(lexicon.OBJECTS))
    operations = [step for step in chain.steps if step[0] != "skip"]
    start = " * ".join(map(str, chain.start))
    forms = {
        "Signs": " " + ", ".join([start, *(f"{op} {n}" for op, n in operations)]) + ".",
        "Words": " " + ", ".join([start.replace("*", "times"), *(f"{SIGN_WORDS[op]} {n}" for op, n in operations)]) + ".",
        "Python": "\n" + "\n".join(program_lines(chain, rng.choice(lexicon.VARIABLES), rng.random() < 0.3)),
    }
    if small:
        forms["Steps"] = f" {worked_steps(chain)}"
    chosen = rng.sample(sorted(forms), rng.choice([1, 1, 2]))
    return "\n".join([text, *(f"{name}:{forms[name]}" for name in chosen)])


def _sums(rng: random.Random) -> str:
    rows = []
    for _ in range(rng.randint(4, 8)):
        operation = rng.choice("++--*")
        if operation == "*":
            a, b = rng.choice([(rng.randint(2, 9), rng.randint(2, 9)), (rng.randint(1, 33), rng.choice([2, 3]))])
            a, b, c = (a, b, a * b)
        elif operation == "+":
            b = rng.randint(1, SMALL_OPERAND)
            a = rng.randint(0, SMALL_LIMIT - b)
            c = a + b
        else:
            b = rng.randint(1, SMALL_OPERAND)
            a = rng.randint(b, SMALL_LIMIT)
            c = a - b
        rows.append(f"{a} {SIGN_WORDS[operation]} {b} is {c}.")
    return " ".join(rows)


def _story(rng: random.Random) -> str:
    """A story and what can be read off it without knowing what its events do."""
    chain = small_chain(rng, rng.randint(1, 5)) if rng.random() < 0.5 else big_chain(rng, rng.randint(1, 4), 1, 6)
    story = tell(rng, chain, question=rng.random() < 0.5)
    facts = {"Numbers": ", ".join(map(str, story.numbers)), "Who": story.name, "Things": story.things}
    chosen = rng.sample(sorted(facts), rng.randint(0, 2))
    return "\n".join([story.text, *(f"{name}: {facts[name]}." for name in chosen)])


def _python(rng: random.Random) -> str:
    """Python as a continuing text: small functions and scripts, none of them called `solution`."""
    numbers = [big_number(rng, 1, 6) for _ in range(rng.randint(2, 6))]
    words = [rng.choice(lexicon.WORDS) for _ in range(rng.randint(2, 4))]
    a, b = rng.sample(lexicon.VARIABLES, 2)
    n = big_number(rng, 1, 4)
    name = rng.choice(["run", "work", "check", "change", "make", "measure", "compute", "helper"])
    value = rng.choice([str(numbers), str(words), f"'{words[0]}'", str(n)])
    pieces = [
        [f"numbers = {numbers}", f"{a} = {rng.choice(['sum', 'max', 'min', 'len', 'sorted'])}(numbers)", f"print({a})"],
        [f"words = {words}", "for word in words:", f"    print(word{rng.choice(['', '.upper()', '[0]', '[::-1]'])})"],
        [f"def {name}({a}):", f"    {b} = {a} {rng.choice('+-*')} {n}", f"    return {b}"],
        [f"def {name}(word):", f"    return word{rng.choice(['[::-1]', '.upper()', '[0]', f' * {n % 10}'])}"],
        [f"def {name}({a}, {b}):", f"    if {a} {rng.choice('<>')} {b}:", f"        return {a}", f"    return {b}"],
        [f"def {name}({a}):", "    kept = []", f"    for n in {a}:", f"        if n {rng.choice('<>')} {n}:",
         "            kept.append(n)", "    return kept"],
        [f"{a} = 0", f"for n in range(1, {n} + 1):", f"    {a} = {a} + n", f"print({a})"],
        [f"words = {words}", f"{a} = '{rng.choice(['-', ' ', ','])}'.join(words)", f"print({a})"],
        [*program_lines(big_chain(rng, rng.randint(1, 4), 1, 6), a), f"print({a})"],
        [f"{a} = {value}", f"{b} = {a}", f"print({b})"],
    ]  # fmt: skip
    return "\n".join("\n".join(piece) for piece in rng.sample(pieces, rng.randint(1, 2)))


def _copy(rng: random.Random) -> str:
    items = [str(big_number(rng, 1, 6)) if rng.random() < 0.7 else rng.choice(lexicon.WORDS) for _ in range(rng.randint(3, 9))]
    line = rng.choice([" ", ", ", " ; "]).join(items)
    return f"{line}\n{line}"


KINDS: dict[Callable[[random.Random], str], int] = {_order: 45, _sums: 12, _story: 20, _python: 15, _copy: 8}


def documents(seed: int) -> Iterator[str]:
    """An endless stream of documents for the base model."""
    rng = random.Random(f"base-text-{seed}")
    kinds, shares = list(KINDS), list(KINDS.values())
    while True:
        yield rng.choices(kinds, shares)[0](rng)
