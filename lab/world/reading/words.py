"""Words of the reading world: plain ones that the base knows, and made-up ones of three syllables."""

import random

SYLLABLES = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]

PLACES = (
    "harbor valley forest island desert village castle tower cellar attic garden kitchen stable barn mill bridge cave beach meadow "
    "swamp hill lake field market school temple palace cabin tent prison library theatre station factory bakery chapel cottage canyon"
).split()
FOODS = (
    "bread cheese honey berries nuts fish rice beans corn apples pears plums grapes figs dates onions carrots cabbage mushrooms soup "
    "butter eggs milk salt sugar pepper oats wheat barley melons cherries olives roots leaves seeds snails worms moss"
).split()
PEOPLE = (
    "Ann Mia Zoe Eva Lily Nora Ruth Ida Emma Rosa Jane Kate Clara Vera Alice Maya Tina Dora Olga Tom Ben Max Leo Sam Jack Paul Omar "
    "Ivan Luke Hugo Finn Karl Theo Adam Noah Yuri Nils Raul"
).split()
THINGS = (
    "lamp rope ladder box cup bowl plate knife hammer needle candle basket bucket brush chair table mirror clock drum bell coin ring "
    "ribbon book map pen card ball kite doll shirt hat sock shoe coat glove belt scarf"
).split()
COLOURS = "red blue green yellow brown black white grey pink purple orange golden silver violet".split()

# What is said of a creature: relation -> (its plain noun, its values).
RELATIONS = {"home": PLACES, "food": FOODS, "keeper": PEOPLE, "tool": THINGS, "colour": COLOURS}


def _made_up(*counts: int) -> list[list[str]]:
    """Lists of made-up words, all different: `counts` of them."""
    rng = random.Random("made-up words")
    found: dict[str, None] = {}
    while len(found) < sum(counts):
        found.setdefault("".join(rng.choices(SYLLABLES, k=3)))
    words, lists = list(found), []
    for count in counts:
        lists.append(words[:count])
        words = words[count:]
    return lists


_NOUNS = [*THINGS, *RELATIONS]  # what a dialect or a technical vocabulary has words for
ASKED, TOLD, MANUAL, SECOND_MANUAL, _DIALECT, _TECHNICAL = _made_up(300, 200, 60, 60, 4 * len(_NOUNS), len(_NOUNS))
# made-up word -> plain one. The base reads four dialects; technical terms are the skill's to bring.
DIALECT = dict(zip(_DIALECT, _NOUNS * 4, strict=True))
IN_DIALECT = {noun: _DIALECT[i :: len(_NOUNS)] for i, noun in enumerate(_NOUNS)}  # plain word -> made-up ones
TECHNICAL = dict(zip(_TECHNICAL, _NOUNS, strict=True))


def _facts(creatures: list[str]) -> dict[str, dict[str, str]]:
    rng = random.Random(f"facts of {creatures[0]}")
    return {creature: {relation: rng.choice(values) for relation, values in RELATIONS.items()} for creature in creatures}


# creature -> relation -> value. The base reads of the first two kinds, and sees cards of the first alone.
ASKED_FACTS, TOLD_FACTS, MANUAL_FACTS, SECOND_FACTS = map(_facts, (ASKED, TOLD, MANUAL, SECOND_MANUAL))
