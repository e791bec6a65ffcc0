"""The forms of English words, as far as words.py needs them: plurals, verb forms, articles, agreement."""

import re
from dataclasses import dataclass

IRREGULAR_PLURALS = {
    "child": "children", "thief": "thieves", "loaf": "loaves", "shelf": "shelves", "scarf": "scarves",
    "tomato": "tomatoes", "potato": "potatoes",
}  # fmt: skip
MASS = ("soup", "juice", "milk", "tea", "rice", "money", "coffee", "wool", "treasure", "corn", "pepper")
# subject form -> (object form, plural)
PRONOUNS = {
    "I": ("me", "we"), "he": ("him", "they"), "she": ("her", "they"), "we": ("us", "we"), "they": ("them", "they"),
    "you": ("you", "you"),
}  # fmt: skip
PLURAL_PRONOUNS = ("we", "they", "you")
PLURAL_DETERMINERS = {"a": "", "this": "these", "that": "those"}  # the others stay


@dataclass(frozen=True)
class Verb:
    """manner: whether an adverb of manner fits it."""

    base: str
    past: str
    participle: str
    manner: bool = True


@dataclass(frozen=True)
class Phrase:
    """Somebody or something. head: a noun in the singular, a name, or a pronoun in its subject form.

    determiner: "" before names and pronouns; "a" stands for a, an and, in the plural, nothing.
    """

    head: str
    determiner: str = ""
    adjective: str = ""
    plural: bool = False

    def pluralised(self) -> "Phrase":
        """The same in the plural: a boy -> boys, this boy -> these boys, I -> we. A name has none."""
        head = PRONOUNS[self.head][1] if self.head in PRONOUNS else self.head
        return Phrase(head, PLURAL_DETERMINERS.get(self.determiner, self.determiner), self.adjective, plural=True)

    def has_plural(self) -> bool:
        """Whether its plural differs from it; a name's is none."""
        return not self.plural and (self.head in PRONOUNS or self.determiner != "")

    def text(self, subject: bool) -> str:
        """subject: in the form of a subject (she), not of an object (her)."""
        if self.head in PRONOUNS:
            return self.head if subject else PRONOUNS[self.head][0]
        noun = plural(self.head) if self.plural else self.head
        words = [word for word in (self.adjective, noun) if word]
        determiner = article(words[0]) if self.determiner == "a" else self.determiner
        return " ".join([determiner, *words] if determiner else words)


def plural(noun: str) -> str:
    """loaf -> loaves, fisherman -> fishermen, city -> cities, box -> boxes, cook -> cooks."""
    if noun in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[noun]
    return noun[:-2] + "en" if noun.endswith("man") else _with_s(noun)


def third_person(base: str) -> str:
    """write -> writes, carry -> carries, wash -> washes, undo -> undoes."""
    return base + "es" if base.endswith("o") else _with_s(base)


def _with_s(word: str) -> str:
    if re.search(r"[^aeiou]y$", word):
        return word[:-1] + "ies"
    return word + ("es" if re.search(r"(s|x|z|ch|sh)$", word) else "s")


def regular_past(base: str) -> str:
    """bake -> baked, carry -> carried, stop -> stopped (words of one syllable alone double their end), open -> opened."""
    if base.endswith("e"):
        return base + "d"
    if re.search(r"[^aeiou]y$", base):
        return base[:-1] + "ied"
    return base + (base[-1] if re.fullmatch(r"[^aeiou]+[aeiou][^aeiouwxy]", base) else "") + "ed"


def article(word: str) -> str:
    """a or an, by the sound that the word begins with."""
    if word.startswith(("honest", "use", "uni")):
        return "an" if word.startswith("honest") else "a"
    return "an" if word[0] in "aeiou" else "a"


def form_of_be(subject: Phrase, past: bool) -> str:
    if subject.plural:
        return "were" if past else "are"
    return "was" if past else "am" if subject.head == "I" else "is"


def form_of_do(subject: Phrase, past: bool) -> str:
    return "did" if past else "does" if _third_singular(subject) else "do"


def finite(verb: Verb, subject: Phrase, past: bool) -> str:
    """The verb without an auxiliary: writes, write, wrote."""
    return verb.past if past else third_person(verb.base) if _third_singular(subject) else verb.base


def _third_singular(subject: Phrase) -> bool:
    return not subject.plural and subject.head != "I"
