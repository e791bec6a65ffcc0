"""The world of rewritings: its English, checked by tables typed and a parser written apart from the generator."""

import itertools
import random
import re

import pytest

from lab.errors import LabError
from lab.world.rewriting import english
from lab.world.rewriting.english import Phrase, article, plural, regular_past, third_person
from lab.world.rewriting.sentences import CHANGES, Sentence, draw, make_sentences, realise
from lab.world.rewriting.words import TEST, TRAINING, VOCABULARIES, Verb

SUBSETS = [found for size in range(6) for found in itertools.combinations(CHANGES, size)]
# Typed from a grammar book's list, not from words.py: base -> past, participle.
IRREGULAR = {
    "eat": "ate eaten", "drink": "drank drunk", "bring": "brought brought", "write": "wrote written", "choose": "chose chosen",
    "forget": "forgot forgotten", "understand": "understood understood", "rewrite": "rewrote rewritten", "sweep": "swept swept",
    "hang": "hung hung", "sew": "sewed sewn", "break": "broke broken", "grow": "grew grown", "dig": "dug dug", "feed": "fed fed",
    "drive": "drove driven", "ride": "rode ridden", "bend": "bent bent", "see": "saw seen", "sell": "sold sold",
    "build": "built built", "rebuild": "rebuilt rebuilt", "make": "made made", "take": "took taken",
    "overtake": "overtook overtaken", "leave": "left left", "catch": "caught caught", "throw": "threw thrown",
    "win": "won won", "lose": "lost lost", "lead": "led led",
    "sing": "sang sung", "draw": "drew drawn", "ring": "rang rung", "hear": "heard heard", "show": "showed shown",
    "buy": "bought bought", "wear": "wore worn", "pay": "paid paid", "meet": "met met", "wake": "woke woken",
    "forgive": "forgave forgiven", "teach": "taught taught", "spend": "spent spent", "withdraw": "withdrew withdrawn",
    "send": "sent sent", "keep": "kept kept", "find": "found found", "hide": "hid hidden", "bind": "bound bound",
    "weave": "wove woven", "tear": "tore torn", "shake": "shook shaken", "spin": "spun spun", "light": "lit lit",
    "undo": "undid undone", "fly": "flew flown", "sink": "sank sunk", "seek": "sought sought", "swing": "swung swung",
    "shoot": "shot shot", "steal": "stole stolen", "strike": "struck struck", "hold": "held held", "fight": "fought fought",
    "wind": "wound wound", "lay": "laid laid", "grind": "ground ground", "give": "gave given", "overhear": "overheard overheard",
}  # fmt: skip
DOUBLED = "mopped stirred trimmed stopped dropped planned hugged wrapped scanned chopped".split()
FUNCTION_WORDS = set("in on at near behind every the when because is are was were".split())


def verbs(*vocabularies):
    return {verb.base: verb for words in vocabularies for theme in words.themes for verb, _ in theme.verbs}


def drawn(split: str, count: int = 400, seed: int = 0, changes=("plural",)) -> list[Sentence]:
    return make_sentences(split, seed, count, changes)


def content_words(words) -> set[str]:
    """Every word of a vocabulary in every form that a sentence may have it in, without the words of grammar."""
    nouns = {*words.people, *words.relatives}
    said = [*words.names, *words.person_adjectives, *words.manners, *words.frequencies, *words.times]
    for theme in words.themes:
        nouns |= {*theme.people, *(thing for _, things in theme.verbs for thing in things)}
        said += [*theme.adjectives, *theme.places, *itertools.chain(*theme.clauses)]
        said += [form for verb, _ in theme.verbs for form in (verb.base, third_person(verb.base), verb.past, verb.participle)]
    return {word for text in [*said, *nouns, *map(plural, nouns)] for word in text.split()} - FUNCTION_WORDS


# Words


def test_there_are_enough_verbs_and_their_forms_are_the_grammar_books():
    every = verbs(TRAINING, TEST)
    irregular = {base: f"{v.past} {v.participle}" for base, v in every.items() if v.participle != regular_past(base)}
    assert irregular == IRREGULAR and len(irregular) >= 60 <= len(every) - len(irregular)
    doubled = {v.past for base, v in every.items() if v.past == base + base[-1] + "ed"}
    assert doubled == set(DOUBLED)
    assert all(v.past.endswith("ed") and v.past == v.participle for base, v in every.items() if base not in IRREGULAR)
    assert not [base for base, v in every.items() if v.past == base]  # else the past of a plural were its present


@pytest.mark.parametrize(
    "found, wanted",
    [
        (map(plural, ["fisherman", "woman", "loaf", "secretary", "boy", "box", "witness", "tomato", "photo"]),
         "fishermen women loaves secretaries boys boxes witnesses tomatoes photos"),
        (map(third_person, ["carry", "play", "wash", "fix", "undo", "bake"]), "carries plays washes fixes undoes bakes"),
        (map(regular_past, ["carry", "play", "stop", "open", "fix", "bake", "tie", "film", "edit", "load", "mow"]),
         "carried played stopped opened fixed baked tied filmed edited loaded mowed"),
        (map(article, ["apple", "honest", "university", "useful", "unusual", "urgent"]), "an an a a an an"),
    ],
)  # fmt: skip
def test_spelling(found, wanted):
    assert " ".join(found) == wanted


def test_training_and_test_share_no_word_but_those_of_grammar():
    assert not content_words(TRAINING) & content_words(TEST)
    assert VOCABULARIES["calibration"] is TRAINING


# Sentences


@pytest.mark.parametrize(
    "changes, wanted",
    [
        ((), "She often hides a letter calmly in the attic."),
        (("past",), "She often hid a letter calmly in the attic."),
        (("passive",), "A letter is often calmly hidden by her in the attic."),
        (("negation",), "She does not often hide a letter calmly in the attic."),
        (("question",), "Does she often hide a letter calmly in the attic?"),
        (("plural",), "They often hide a letter calmly in the attic."),
        (("past", "passive"), "A letter was often calmly hidden by her in the attic."),
        (("negation", "question"), "Does she not often hide a letter calmly in the attic?"),
        (("past", "negation", "plural"), "They did not often hide a letter calmly in the attic."),
        (CHANGES, "Was a letter not often calmly hidden by them in the attic?"),
    ],
)
def test_realised_as_a_teacher_would(changes, wanted):
    sentence = Sentence(Phrase("she"), Verb("hide", "hid", "hidden"), Phrase("letter", "a"), "often", "calmly", "in the attic")
    assert realise(sentence, changes) == wanted


def test_agreement_case_and_determiners():
    help_ = Verb("help", "helped", "helped")
    clause = ("because the bus is late", "because the bus was late")
    me = Sentence(Phrase("boy", "a", "angry"), help_, Phrase("I"), clause=clause)
    assert realise(me) == "An angry boy helps me because the bus is late."
    assert realise(me, {"plural"}) == "Angry boys help me because the bus is late."
    assert realise(me, {"passive"}) == "I am helped by an angry boy because the bus is late."
    assert realise(me, {"passive", "past", "question"}) == "Was I helped by an angry boy because the bus was late?"
    those = Sentence(Phrase("I"), help_, Phrase("child", "those", plural=True))
    assert realise(those, {"passive", "plural"}) == "Those children are helped by us."
    assert realise(those, {"question"}) == "Do I help those children?"
    assert realise(Sentence(Phrase("boy", "this"), help_, Phrase("Anna")), {"plural"}) == "These boys help Anna."
    assert realise(Sentence(Phrase("Anna"), help_, Phrase("you", plural=True)), {"passive"}) == "You are helped by Anna."


def test_what_cannot_be_changed_is_refused():
    sentence = Sentence(Phrase("Anna"), Verb("help", "helped", "helped"), Phrase("he"))
    with pytest.raises(LabError, match="'Anna' has no plural"):
        realise(sentence, ("plural",))
    with pytest.raises(LabError, match="no change 'future'"):
        realise(sentence, ("past", "future"))
    with pytest.raises(LabError, match="no split 'dev'"):
        make_sentences("dev", 0, 1)


@pytest.mark.parametrize("split", VOCABULARIES)
def test_every_set_of_changes_gives_another_well_formed_sentence(split):
    for sentence in drawn(split):
        golds = [realise(sentence, changes) for changes in SUBSETS]
        assert len({re.sub(r"\W", "", gold.lower()) for gold in golds}) == len(SUBSETS)
        for changes, gold in zip(SUBSETS, golds, strict=True):
            assert re.fullmatch(r"[A-Z][A-Za-z']*( [A-Za-z']+)+[.?]", gold), gold
            assert gold.endswith("?") == ("question" in changes)
            assert gold == realise(sentence, set(changes)) == realise(sentence, changes[::-1])


def test_an_stands_before_vowel_sounds():
    for split in VOCABULARIES:
        for sentence, changes in itertools.product(drawn(split), SUBSETS):
            for found, word in re.findall(r"\b(an?) (\w+)", realise(sentence, changes), re.IGNORECASE):
                vowel = word in ("honest",) or word[0] in "aeiou" and word not in ("useful", "university")
                assert (found.lower() == "an") == vowel, (found, word)


# A second reading: from the words alone, by auxiliaries and forms, it tells which changes were made.

PEOPLE_OF_GRAMMAR = {"I": "me", "he": "him", "she": "her", "we": "us", "they": "them"}
BE, DO = {"is", "are", "am", "was", "were"}, {"does", "do", "did"}


def read(text: str, verb: Verb) -> dict[str, bool]:
    words = text[:-1].split()
    main = re.split(r" (?:because|when) ", text)[0].split()
    lowered = [word.lower().strip(".?") for word in main]
    be, do = [w for w in lowered if w in BE], [w for w in lowered if w in DO]
    assert len(be) + len(do) <= 1, text
    found = {"question": lowered[0] in BE | DO, "negation": "not" in lowered, "passive": bool(be)}
    if be:
        assert verb.participle in lowered and "by" in lowered[lowered.index(verb.participle) :], text
        found["past"] = be[0] in ("was", "were")
        assert be[0] not in ("am",) or "I" in words, text
    elif do:
        assert verb.base in lowered, text
        found["past"] = do[0] == "did"
    else:
        assert {verb.past, verb.base, third_person(verb.base)} & set(lowered), text
        found["past"] = verb.past in lowered
    return found


@pytest.mark.parametrize("split", VOCABULARIES)
def test_a_second_reading_finds_the_changes(split):
    for sentence, changes in itertools.product(drawn(split, 150), SUBSETS):
        text = realise(sentence, changes)
        found = read(text, sentence.verb)
        assert found == {change: change in changes for change in found}, text
        if text.count(" by "):
            agent = text.split(" by ")[1].split()[0].strip(".?")
            assert agent not in PEOPLE_OF_GRAMMAR, text  # the case of an object
        singular = re.search(r"^(He|She|This|That|An?) ", text)
        if singular and not found["past"] and not found["question"]:
            finite = [w for w in text.split() if w in {"is", "does", third_person(sentence.verb.base)}]
            assert finite, text
        several = re.search(r"^(They|We|These|Those) ", text)
        if several and not found["question"]:
            main = re.split(r" because | when ", text)[0].split()
            assert not {"was", "is", "does", third_person(sentence.verb.base)} & set(main), text


@pytest.mark.parametrize("split", VOCABULARIES)
def test_clauses_follow_the_tense_and_nothing_else(split):
    present = {now: then for theme in VOCABULARIES[split].themes for now, then in theme.clauses}
    assert all(now != then for now, then in present.items())
    for sentence in drawn(split):
        if sentence.clause[0]:
            for changes in SUBSETS:
                wanted = present[sentence.clause[0]] if "past" in changes else sentence.clause[0]
                assert realise(sentence, changes)[:-1].endswith(wanted)


# Splits


def test_rows_are_told_by_split_seed_and_count_and_never_shared():
    found = {split: [realise(s) for s in make_sentences(split, 0, 600)] for split in VOCABULARIES}
    texts = [text for rows in found.values() for text in rows]
    assert len(set(texts)) == len(texts) == 1800
    kept, learned = make_sentences("calibration", 1, 600), make_sentences("train", 2, 2000)
    assert not {realise(s) for s in kept} & {realise(s) for s in learned}
    assert [realise(s) for s in make_sentences("test", 0, 100)] == found["test"][:100]
    assert [realise(s) for s in make_sentences("test", 1, 100)] != found["test"][:100]


def test_a_drawn_sentence_uses_each_vocabulary_whole():
    rng, seen = random.Random(0), set()
    for _ in range(6000):
        seen |= set(re.findall(r"[A-Za-z]+", realise(draw(rng, TEST))))
    forms = {third_person(base) for base in verbs(TEST)}
    assert forms <= seen and {name for name in TEST.names} <= seen
    assert english.PRONOUNS.keys() - {"they", "we", "you"} <= {word if word == "I" else word.lower() for word in seen}
