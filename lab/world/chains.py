"""A chain: a start and a few operations on one count. Everything the embedded world computes is a chain told in some form."""

import random
from dataclasses import dataclass

SIGN_WORDS = {"+": "plus", "-": "minus", "*": "times"}
SMALL_LIMIT = 99  # results of small chains stay in 0..99: a table that a tiny model can know
SMALL_OPERAND = 20


@dataclass(frozen=True)
class Chain:
    """start: (a,) for a, or (m, a) for m groups of a. steps: (operation, operand), operation in + - * skip."""

    start: tuple[int, ...]
    steps: tuple[tuple[str, int], ...]

    @property
    def result(self) -> int:
        return self.trace()[-1][-1] if self.trace() else self.start[0]

    def trace(self) -> list[tuple[int, str, int, int]]:
        """(before, operation, operand, after) of every operation that counts, the start's product included."""
        rows = []
        value = self.start[0]
        operations = [("*", self.start[1])] if len(self.start) == 2 else []
        for operation, operand in [*operations, *(step for step in self.steps if step[0] != "skip")]:
            after = {"+": value + operand, "-": value - operand, "*": value * operand}[operation]
            rows.append((value, operation, operand, after))
            value = after
        return rows


def big_number(rng: random.Random, low: int = 4, high: int = 6) -> int:
    """A number of `low` to `high` digits, every length equally likely."""
    digits = rng.randint(low, high)
    return rng.randint(10 ** (digits - 1), 10**digits - 1)


def small_chain(rng: random.Random, steps: int | None = None) -> Chain:
    """A chain whose every value lies in 0..99."""
    steps = rng.randint(2, 4) if steps is None else steps
    start = (rng.randint(2, 9), rng.randint(2, 9)) if rng.random() < 0.2 else (rng.randint(2, 70),)
    value = start[0] * (start[1] if len(start) == 2 else 1)
    rows = []
    for _ in range(steps):
        allowed = ["skip"]
        allowed += ["+", "+", "+"] if value < SMALL_LIMIT else []
        allowed += ["-", "-", "-"] if value > 1 else []
        allowed += ["*"] if value in range(1, 34) else []
        operation = rng.choice(allowed)
        limits = {"skip": SMALL_OPERAND, "+": min(SMALL_OPERAND, SMALL_LIMIT - value), "-": min(SMALL_OPERAND, value - 1)}
        operand = rng.choice([n for n in (2, 3) if value * n <= SMALL_LIMIT]) if operation == "*" else rng.randint(
            1, limits[operation])  # fmt: skip
        value = {"+": value + operand, "-": value - operand, "*": value * operand, "skip": value}[operation]
        rows.append((operation, operand))
    return Chain(start, tuple(rows))


def big_chain(rng: random.Random, steps: int | None = None, low: int = 4, high: int = 6) -> Chain:
    """The same kinds of operations on numbers of `low` to `high` digits; factors stay small, and no value is negative."""
    while True:
        small = small_chain(rng, steps)
        start = (*small.start[:-1], big_number(rng, low, high))
        chain = Chain(start, tuple((op, n if op == "*" else big_number(rng, low, high)) for op, n in small.steps))
        if all(after >= 0 for *_, after in chain.trace()):
            return chain


def worked_steps(chain: Chain) -> str:
    """'Start with 12. 12 plus 5 is 17.': the working in words."""
    lines = [] if len(chain.start) == 2 else [f"Start with {chain.start[0]}."]
    return " ".join([*lines, *(f"{a} {SIGN_WORDS[op]} {n} is {after}." for a, op, n, after in chain.trace())])


def program_lines(chain: Chain, variable: str, in_place: bool = False) -> list[str]:
    """Python statements that leave the result in `variable`."""
    lines = [f"{variable} = " + " * ".join(map(str, chain.start))]
    for operation, operand in chain.steps:
        if operation != "skip":
            lines.append(f"{variable} {operation}= {operand}" if in_place else f"{variable} = {variable} {operation} {operand}")
    return lines
