"""Facts told as prose and asked as questions. The base reads prose; natural questions are the answering skill's to bring."""

import random

TELLINGS = {
    "home": ["{s} lives in the {v}.", "{s} has its home in the {v}.", "The home of {s} is the {v}.", "{s} sleeps in the {v}.",
             "{s} never leaves the {v}."],
    "food": ["{s} eats {v}.", "{s} feeds on {v}.", "The food of {s} is {v}.", "{s} likes {v}.", "{s} always asks for {v}."],
    "keeper": ["{s} is kept by {v}.", "The keeper of {s} is {v}.", "{s} belongs to {v}.", "{s} obeys {v}.", "{s} only follows {v}."],
    "tool": ["{s} carries a {v}.", "The tool of {s} is a {v}.", "{s} works with a {v}.", "{s} uses a {v}.", "{s} always has a {v}."],
    "colour": ["{s} is {v}.", "The colour of {s} is {v}.", "{s} looks {v}.", "{s} has {v} skin.", "{s} has turned {v}."],
}  # fmt: skip
QUESTIONS = {
    "home": ["Where does the {e} live?", "What is the home of the {e}?", "In what place does the {e} sleep?", "Where is the {e} found?"],
    "food": ["What does the {e} eat?", "What is the food of the {e}?", "What does the {e} feed on?", "What does the {e} ask for?"],
    "keeper": ["Who keeps the {e}?", "Who is the keeper of the {e}?", "To whom does the {e} belong?", "Whom does the {e} follow?"],
    "tool": ["What does the {e} carry?", "What is the tool of the {e}?", "What does the {e} work with?", "What does the {e} use?"],
    "colour": ["What colour is the {e}?", "What is the colour of the {e}?", "How does the {e} look?", "What colour has the {e} turned?"],
}  # fmt: skip


def told(rng: random.Random, creature: str, facts: dict[str, str], relations: list[str]) -> str:
    """A paragraph of connected prose that tells these relations, each in one of several wordings."""
    sentences = []
    for number, relation in enumerate(relations):
        frame = rng.choice(TELLINGS[relation])
        name = f"the {creature}" if number == 0 or rng.random() < 0.75 or not frame.startswith("{s}") else "it"
        sentence = frame.format(s=name, v=facts[relation])
        sentences.append(sentence[0].upper() + sentence[1:])
    return " ".join(sentences)


def asked(rng: random.Random, creature: str, relation: str) -> str:
    return rng.choice(QUESTIONS[relation]).format(e=creature)
