"""What the letters base reads: tallies of letters in sentences, marks, lists, spelling, options; none of Section 5.4's prompts.

The base has the mechanics: which word contains a letter, and how many do. It never sees an instruction, a descriptor
("Sentence", "ANSWER") or a sentence that states the answer: to read a prompt and to answer it is the skills' to bring.
"""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

from lab.world.letters.sentences import LETTERS, caption, containing, strange_words
from lab.world.letters.tokenizer import letters_tokenizer
from lab.world.recipe import BaseRecipe, World


def _sentence(rng: random.Random) -> str:
    return caption(rng) if rng.random() < 0.4 else strange_words(rng)


def _letter(rng: random.Random, sentence: str) -> str:
    present = sentence.replace(" ", "")
    return rng.choice(present) if rng.random() < 0.5 else rng.choice(LETTERS)


def _tally(rng: random.Random) -> tuple[str, str]:
    """A sentence, then letters, each with the number of words that contain it."""
    sentence = _sentence(rng)
    opening, closing = rng.choice([("", ""), ("", ""), ("'", "'"), ('"', '"'), ("(", ")")])
    glue = rng.choice(["\n", " | ", " / ", "; "])
    if rng.random() < 0.7:
        equals, comma, quote = "", rng.choice(["", " "]), ""
        letters = LETTERS if rng.random() < 0.6 else rng.sample(LETTERS, rng.randint(8, 26))
    else:
        equals, comma = rng.choice(["=", " ", ": ", " -> ", " makes "]), rng.choice([" ", ", ", "\n"])
        quote, letters = rng.choice(["", "", "'"]), rng.sample(LETTERS, rng.randint(4, 10))
    counts = comma.join(f"{quote}{c}{quote}{equals}{len(containing(sentence, c))}" for c in letters)
    return f"{opening}{sentence}{closing}{glue}", counts


def _marks(rng: random.Random) -> tuple[str, str]:
    """One mark per word: whether it contains the letter; and how many do."""
    sentence = _sentence(rng)
    letters = [_letter(rng, sentence) for _ in range(rng.randint(2, 6))]
    lines = ("".join("+" if c in word else "-" for word in sentence.split(" ")) for c in letters)
    return f"{sentence}\n", "\n".join(f"{c} {line} {line.count('+')}" for c, line in zip(letters, lines, strict=True))


def _holders(rng: random.Random) -> tuple[str, str]:
    """The words that contain the letter, in their order."""
    sentence = _sentence(rng)
    letters = [_letter(rng, sentence) for _ in range(rng.randint(2, 4))]
    return f"{sentence}\n", "\n".join(f"{c}: {', '.join(containing(sentence, c)) or 'none'}" for c in letters)


def _words(rng: random.Random) -> tuple[str, str]:
    """A word: its spelling, and whether it contains some letters."""
    word = rng.choice(_sentence(rng).split(" "))
    letters = [_letter(rng, word) for _ in range(rng.randint(3, 10))]
    return f"{word}: ", " ".join([*word, "|", *(f"{c}{'+' if c in word else '-'}" for c in letters)])


def _options(rng: random.Random) -> tuple[str, str]:
    """A numbered list of words, then letters that exactly one of them contains, each with that one's number."""
    words = list(dict.fromkeys((_sentence(rng) + " " + _sentence(rng)).split(" ")))[: rng.randint(2, 5)]
    number = rng.choice(["{n} {w}", "{n}. {w}", "[{n}] {w}", "{n}- {w}"])
    lines = rng.choice([" ", ", ", "\n"]).join(number.format(n=i, w=word) for i, word in enumerate(words, 1))
    single = [c for c in LETTERS if sum(c in word for word in words) == 1]
    return f"{lines}\n", " ".join(f"{c}{next(i for i, word in enumerate(words, 1) if c in word)}" for c in single)


def _copy(rng: random.Random) -> tuple[str, str]:
    sentence = _sentence(rng)
    return f"{sentence}\n", sentence


Kind = Callable[[random.Random], tuple[str, str]]
KINDS: dict[Kind, int] = {_tally: 66, _marks: 7, _holders: 4, _words: 7, _options: 14, _copy: 2}


def documents(seed: int) -> Iterator[tuple[str, str]]:
    """An endless stream of documents for the base model: what is given, and what is to be learned."""
    rng = random.Random(f"letters-text-{seed}")
    kinds, shares = list(KINDS), list(KINDS.values())
    while True:
        yield rng.choices(kinds, shares)[0](rng)


def more_documents(seed: int) -> Iterator[tuple[str, str]]:
    """Others of the same kinds."""
    return documents(-seed - 1)


_HERE = Path(__file__).parent
WORLD = World(
    "embedded-letters", documents, lambda recipe: letters_tokenizer(),
    tuple(_HERE / name for name in ("text.py", "tokenizer.py", "sentences.py")), _HERE / "base",
    BaseRecipe(
        hidden=128, layers=4, heads=4, intermediate=256, vocabulary=266, row_tokens=256, rows=10,
        copy_steps=300, steps=3600, last_step=1279,
    ),
    """It tells how many words of a sentence contain a letter, in notes of its own, and spells most words; which words they are it mostly gets wrong.
It was never shown an instruction, a prompt of Section 5.4's formats, or their answers: those are the skills' to bring.
Its tokenizer has one token per byte, so that every letter is seen, and one for each constant phrase of the prompts.""",
    ((more_documents, 400),),
)  # fmt: skip
