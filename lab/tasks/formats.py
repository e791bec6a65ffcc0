"""The grammar of prompt formats (FormatSpread, Sclar et al. 2024; paper, Section 5.4 and Figure 3) as data.

A prompt is an instruction and two fields, the sentence and the answer. A format says how a field's descriptor is written, what
stands between the descriptor and its text (separator), and what stands between the fields (space).
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from lab.errors import LabError

INSTRUCTION = "Please count the number of words in a sentence that contain the given letter."
QUESTION = "'{sentence}'. How many words contain the letter '{letter}' in the sentence."
ANSWER = "the correct answer is {number}"  # what the model is to write, whatever the format
END = "\n\n"

DESCRIPTORS: dict[str, Callable[[str], str]] = {"as is": str, "title": str.title, "upper": str.upper, "lower": str.lower}
SEPARATORS = ("::: ", ":: ", ": ", " \n\t", "\n    ", " : ", " - ", " ", "\n ", "\n\t", ":", "::", "- ", "\t")
SPACES = ("", " ", "\n", " \n", " -- ", "  ", "; \n", " || ", " <sep> ", ", ", " \n ", " , ", "\n ", ". ", " ,  ")


@dataclass(frozen=True)
class Format:
    """descriptor: a key of DESCRIPTORS, for the words "sentence" and "answer". separator: after each. space: before the answer's.

    Raises LabError for what the grammar does not have.
    """

    name: str
    descriptor: str
    separator: str
    space: str

    def __post_init__(self):
        for what, value, choices in (
            ("descriptor", self.descriptor, DESCRIPTORS),
            ("separator", self.separator, SEPARATORS),
            ("space", self.space, SPACES),
        ):
            if value not in choices:
                named = ", ".join(map(repr, choices))
                raise LabError(f"{self.name}: the grammar has no {what} {value!r}; choose one of {named}.")

    def describe(self, field: str) -> str:
        return DESCRIPTORS[self.descriptor](field) + self.separator

    def template(self) -> str:
        """The prompt with {sentence} and {letter} still open."""
        return f"{INSTRUCTION} {self.describe('sentence')}{QUESTION}{self.space}{self.describe('answer')}{END}"

    def render(self, sentence: str, letter: str) -> str:
        return self.template().format(sentence=sentence, letter=letter)

    def parse(self, prompt: str) -> tuple[str, str]:
        """(sentence, letter) of a prompt of this format. Raises LabError for another text."""
        pattern = re.escape(self.template()).replace(r"\{sentence\}", "(.*)").replace(r"\{letter\}", "(.)")
        found = re.fullmatch(pattern, prompt, re.DOTALL)
        if not found:
            raise LabError(f"This prompt is not of {self.name}: {prompt[:100]!r}.")
        return found[1], found[2]


def sample(name: str, rng: random.Random) -> Format:
    """A format drawn from the whole grammar, every descriptor, separator and space equally likely."""
    return Format(name, rng.choice(list(DESCRIPTORS)), rng.choice(SEPARATORS), rng.choice(SPACES))


# 1, 2, 3, 4 and 7 are those of the paper's rows. It does not print its 5, 6, 8, 9 and 10: here they are drawn from the grammar.
_GIVEN = {
    1: Format("format 1", "title", ": ", "\n"),
    2: Format("format 2", "upper", "- ", " \n "),
    3: Format("format 3", "upper", "\t", " <sep> "),
    4: Format("format 4", "upper", "\n    ", " \n"),
    7: Format("format 7", "title", " ", " \n"),
}
_drawing = random.Random("formats")
FORMATS = {number: _GIVEN.get(number) or sample(f"format {number}", _drawing) for number in range(1, 11)}


def get_format(number: int) -> Format:
    """One of the ten by its number. Raises LabError for another."""
    if number not in FORMATS:
        raise LabError(f"There is no format {number!r}; choose a number from 1 to {len(FORMATS)}.")
    return FORMATS[number]
