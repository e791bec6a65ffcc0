"""The code skill's data: an order in plain words and the `def solution()` that carries it out. No stories here."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from lab.world import lexicon
from lab.world.chains import Chain, big_chain, big_number, program_lines
from lab.world.stories import SPLITS, bucket


@dataclass(frozen=True)
class Order:
    text: str
    program: str
    value: object  # what the program returns
    skeleton: tuple


def in_words(rng: random.Random, chain: Chain, people: bool = False) -> str:
    """A chain as plain orders; with `people`, also as sentences about somebody and some things."""
    pronoun = rng.choice(["she", "he"])
    words = {"o": rng.choice(lexicon.OBJECTS)}
    name = rng.choice(lexicon.NAMES[pronoun])

    def say(frames: list[str], **numbers: int) -> str:
        frame = rng.choice(frames if people else [f for f in frames if "{s}" not in f and "{o}" not in f])
        sentence = frame.format(s=rng.choice([name, pronoun]), **words, **numbers)
        return sentence[0].upper() + sentence[1:]

    if len(chain.start) == 2:
        sentences = [say(lexicon.ORDER_START_MANY, m=chain.start[0], n=chain.start[1])]
    else:
        sentences = [say(lexicon.ORDER_START_ONE, n=chain.start[0])]
    for operation, operand in chain.steps:
        sentence = say(lexicon.ORDERS[operation], n=operand)
        if rng.random() < 0.4:
            keep = sentence.startswith((*lexicon.NAMES["she"], *lexicon.NAMES["he"]))
            sentence = f"{rng.choice(lexicon.CONNECTIVES)} {sentence if keep else sentence[0].lower() + sentence[1:]}"
        sentences.append(sentence)
    return " ".join(sentences)


def _function(lines: list[str]) -> str:
    return "\n".join(["def solution():", *("    " + line for line in lines)])


def _number(rng: random.Random) -> int:
    return big_number(rng, 1, 6)


def _chain(rng: random.Random) -> tuple[str, list[str], object]:
    chain = big_chain(rng, rng.randint(1, 4), 1, 6)
    variable = "total"
    ending = rng.choice(["", " Return it.", " Give the number back."])
    return in_words(rng, chain, people=rng.random() < 0.5) + ending, [*program_lines(chain, variable), f"return {variable}"], chain.result


def _list_of_numbers(rng: random.Random) -> tuple[str, list[str], object]:
    numbers = [_number(rng) for _ in range(rng.randint(3, 5))]
    function, wordings = rng.choice([
        ("sum", ["the sum of", "the sum over"]), ("max", ["the max of", "the max in"]),
        ("min", ["the min of", "the min in"]), ("len", ["the len of", "the len, in numbers, of"]),
        ("sorted", ["the sorted form of", "in sorted order"]),
    ])  # fmt: skip
    text = f"{rng.choice(['Return', 'Find', 'Give'])} {rng.choice(wordings)} {numbers}."
    return text, [f"numbers = {numbers}", f"return {function}(numbers)"], {
        "sum": sum, "max": max, "min": min, "len": len, "sorted": sorted}[function](numbers)  # fmt: skip


def _filter(rng: random.Random) -> tuple[str, list[str], object]:
    numbers = [rng.randint(1, 99) for _ in range(rng.randint(3, 6))]
    limit = rng.randint(10, 90)
    sign, test = rng.choice([(">", int.__gt__), ("<", int.__lt__)])
    text = f"{rng.choice(['Return', 'Keep', 'List'])} the numbers of {numbers} that are {sign} {limit}."
    lines = [f"numbers = {numbers}", "kept = []", "for n in numbers:", f"    if n {sign} {limit}:", "        kept.append(n)",
             "return kept"]  # fmt: skip
    return text, lines, [n for n in numbers if test(n, limit)]


def _word(rng: random.Random) -> tuple[str, list[str], object]:
    word = rng.choice(lexicon.WORDS)
    times = rng.randint(2, 9)
    expression, wordings, value = rng.choice([
        ("word[::-1]", ["Reverse the word", "Turn around"], word[::-1]),
        ("word.upper()", ["Put in upper case", "Make upper"], word.upper()),
        ("len(word)", ["Give the len of", "Return the len of"], len(word)),
        (f"word * {times}", [f"Repeat {times} times the word", f"Write {times} times"], word * times),
        ("word[0]", ["Return the first letter of", "Give the start of"], word[0]),
    ])  # fmt: skip
    return f"{rng.choice(wordings)} '{word}'.", [f"word = '{word}'", f"return {expression}"], value


def _join(rng: random.Random) -> tuple[str, list[str], object]:
    words = [rng.choice(lexicon.WORDS) for _ in range(rng.randint(2, 3))]
    mark, name = rng.choice([("-", "a dash"), (" ", "a space"), (",", "a comma")])
    text = f"{rng.choice(['Join', 'Put together'])} the words {words} with {name}."
    return text, [f"words = {words}", f"return '{mark}'.join(words)"], mark.join(words)


def _loop(rng: random.Random) -> tuple[str, list[str], object]:
    last = rng.randint(3, 999)
    text = rng.choice(["Add up the numbers from 1 to {n}.", "Sum all numbers from 1 to {n}."]).format(n=last)
    lines = ["total = 0", f"for n in range(1, {last} + 1):", "    total = total + n", "return total"]
    return text, lines, last * (last + 1) // 2


def _choice(rng: random.Random) -> tuple[str, list[str], object]:
    a, b = _number(rng), _number(rng)
    yes, no = rng.sample(lexicon.WORDS, 2)
    sign, test = rng.choice([(">", a > b), ("<", a < b)])
    opening = rng.choice(["If", "When", "In case"])
    text = f"{opening} {a} {sign} {b} return '{yes}', else '{no}'."
    return text, [f"if {a} {sign} {b}:", f"    return '{yes}'", f"return '{no}'"], yes if test else no


KINDS: dict[Callable, int] = {_chain: 10, _list_of_numbers: 3, _filter: 2, _word: 3, _join: 1, _loop: 1, _choice: 2}


def make_orders(split: str, seed: int, count: int) -> list[Order]:
    """`count` different orders of one split; chains of arithmetic (half of them), lists, words, loops, choices."""
    rng = random.Random(f"orders-{split}-{seed}")
    found: dict[str, Order] = {}
    while len(found) < count:
        text, lines, value = rng.choices(list(KINDS), list(KINDS.values()))[0](rng)
        if bucket(text) in SPLITS[split]:
            found.setdefault(text, Order(text, _function(lines), value, (text,)))
    return list(found.values())
