"""Everyday sentences as data, and their exact rewritings: the same structure realised with other features.

A sentence is simple present, active, affirmative, a statement, with its subject in the singular. Changes are a set: their order
says nothing. The rules where English leaves a choice:
- plural: of the doer, the given sentence's subject, which the passive puts after "by"; a boy -> boys, this boy -> these boys.
- negation: "not" in full; with a question "Does she not ...?"
- question: yes or no, by inversion; without an auxiliary, with a form of "do".
- an adverb of frequency stands before the main verb, after "not"; one of manner after the object, or before a participle.
- past: the main verb's and the clause's; no word of time is used that fits one tense alone.
- a clause has a subject of its own and takes no other change.
"""

import random
from collections.abc import Collection
from dataclasses import dataclass

from lab.errors import LabError
from lab.world.rewriting.english import (
    MASS,
    PLURAL_PRONOUNS,
    PRONOUNS,
    Phrase,
    Verb,
    finite,
    form_of_be,
    form_of_do,
    plural,
)  # fmt: skip
from lab.world.rewriting.words import UNOWNED, VOCABULARIES, Theme, Vocabulary
from lab.world.stories import SPLITS, bucket

CHANGES = ("past", "passive", "negation", "question", "plural")
POSSESSIVES = ("my", "our", "his", "her", "their")


@dataclass(frozen=True)
class Sentence:
    """frequency, manner, place, time: adverbials, "" for none. clause: (in the present, in the past)."""

    subject: Phrase
    verb: Verb
    object: Phrase
    frequency: str = ""
    manner: str = ""
    place: str = ""
    time: str = ""
    clause: tuple[str, str] = ("", "")


def realise(sentence: Sentence, changes: Collection[str] = ()) -> str:
    """The sentence in words after these changes, any of CHANGES.

    Raises LabError for another change, and for the plural of a subject that has none (a name).
    """
    unknown = [change for change in changes if change not in CHANGES]
    if unknown:
        raise LabError(f"There is no change {unknown[0]!r}; choose from {', '.join(CHANGES)}.")
    if "plural" in changes and not sentence.subject.has_plural():
        raise LabError(f"The subject {sentence.subject.head!r} has no plural; choose a sentence whose subject is no name.")
    past, passive, negated, asked = (change in changes for change in CHANGES[:4])
    doer = sentence.subject.pluralised() if "plural" in changes else sentence.subject
    subject = sentence.object if passive else doer
    if passive:
        auxiliary, main = form_of_be(subject, past), sentence.verb.participle
        predicate = [sentence.manner, main, "by", doer.text(subject=False)]
    else:
        if negated or asked:
            auxiliary, main = form_of_do(subject, past), sentence.verb.base
        else:
            auxiliary, main = "", finite(sentence.verb, subject, past)
        predicate = [main, sentence.object.text(subject=False), sentence.manner]
    start = [auxiliary, subject.text(subject=True)] if asked else [subject.text(subject=True), auxiliary]
    end = [sentence.place, sentence.time, sentence.clause[past]]
    text = " ".join(word for word in [*start, "not" if negated else "", sentence.frequency, *predicate, *end] if word)
    return text[0].upper() + text[1:] + ("?" if asked else ".")


def _thing(rng: random.Random, words: Vocabulary, noun: str, adjective: str, many: bool) -> Phrase:
    determiners = ["the"] * 4 + ([] if noun in UNOWNED else ["my", "our", f"{rng.choice(words.names)}'s"])
    if noun not in MASS:
        determiners += ["this", "that"] if many else ["this", "that", "a", "a", "a"]
    return _numbered(Phrase(noun, rng.choice(determiners), adjective), many)


def _numbered(phrase: Phrase, many: bool) -> Phrase:
    return phrase.pluralised() if many else phrase


def _person(rng: random.Random, words: Vocabulary, theme: Theme, pronouns: tuple[str, ...], named: float, many: bool) -> Phrase:
    """pronouns: to choose from. named: how often it is a name. many: in the plural, if it is a noun."""
    draw = rng.random()
    if draw < named:
        return Phrase(rng.choice(words.names))
    if draw < named + 0.15:
        head = rng.choice(pronouns)
        return Phrase(head, plural=head in PLURAL_PRONOUNS)
    adjective = rng.choice(words.person_adjectives) if rng.random() < 0.35 else ""
    if draw < named + 0.3:
        return Phrase(rng.choice(words.relatives), rng.choice(POSSESSIVES), adjective, many)
    noun = rng.choice(words.people + theme.people * 2)
    return _numbered(Phrase(noun, rng.choice(("the", "the", "the", "a", "a", "this", "that")), adjective), many)


def _said(phrase: Phrase) -> set[str]:
    """The words of a phrase that no other phrase of its sentence may repeat; "pronoun" for one that points to somebody."""
    words = {phrase.head, plural(phrase.head), phrase.adjective, phrase.determiner.removesuffix("'s")}
    pointing = phrase.head in PRONOUNS or phrase.determiner in POSSESSIVES
    return words - {"", "the", "a"} | ({"pronoun"} if pointing else set())


def draw(rng: random.Random, words: Vocabulary) -> Sentence:
    """A sentence in these words. Nothing stands in it twice, and at most one word in it points to somebody (she, her)."""
    while True:
        theme = rng.choice(words.themes)
        verb, things = rng.choice(theme.verbs)
        subject = _person(rng, words, theme, ("I", "he", "she"), 0.15, False)
        many = rng.random() < 0.3
        if things:
            noun = rng.choice(things)
            adjective = rng.choice(theme.adjectives) if theme.adjectives and rng.random() < 0.3 else ""
            object = _thing(rng, words, noun, adjective, many and noun not in MASS)
        else:
            object = _person(rng, words, theme, ("I", "he", "she", "we", "they", "you"), 0.3, many)
        parts: dict[str, object] = {}
        kinds = {"manner": words.manners, "place": theme.places, "frequency": words.frequencies, "time": words.times}
        if not verb.manner:
            del kinds["manner"]
        if rng.random() < 0.3:
            parts["clause"] = rng.choice(theme.clauses)
            del kinds["time"], kinds["place"]
        for kind in rng.sample(list(kinds), rng.choice((0, 1, 1, 2) if "time" in kinds else (0, 1))):
            parts[kind] = rng.choice(kinds[kind])
        sentence = Sentence(subject, verb, object, **parts)
        others = set(" ".join((sentence.place, sentence.time, *sentence.clause)).split())
        crowded = sentence.frequency and (sentence.manner or sentence.time.startswith(("every", "on")))
        if not _said(subject) & _said(object) and not (_said(subject) | _said(object)) & others and not crowded:
            return sentence


def make_sentences(split: str, seed: int, count: int, changes: Collection[str] = ()) -> list[Sentence]:
    """`count` different sentences of one split that take these changes; no sentence is in two splits.

    Calibration and training share their vocabulary, the test has another. Raises LabError for an unknown split.
    """
    if split not in VOCABULARIES:
        raise LabError(f"There is no split {split!r}; choose from {', '.join(VOCABULARIES)}.")
    rng = random.Random(f"rewriting-{split}-{seed}-{'-'.join(sorted(changes))}")
    found: dict[str, Sentence] = {}
    while len(found) < count:
        sentence = draw(rng, VOCABULARIES[split])
        text = realise(sentence)
        own = split == "test" or bucket(text) in SPLITS[split]
        if own and ("plural" not in changes or sentence.subject.has_plural()):
            found.setdefault(text, sentence)
    return list(found.values())
