"""The sections: which skills, which target, and what each changes in a preset. To add one, write it here and a notebook for it."""

import dataclasses
from functools import partial

from lab.errors import LabError
from lab.evaluation.retrieval import RETRIEVERS
from lab.experiments.comparison import Bench, Entry, Section, base_few_shot
from lab.experiments.continual import continual
from lab.experiments.retrieval_baseline import open_book
from lab.tasks import (
    choice,
    code,
    extraction,
    hard_math_code,
    instruction,
    letters,
    manual,
    manual_qa,
    maths,
    technical_reading,
    terms,
)  # fmt: skip

MATH_CODE = Section("s5_1_math_code", (maths.TASK, code.TASK), hard_math_code.TASK)


READER = {"base": "embedded-reading", "rank": 8, "lora_alpha": 16, "train_rows": 3000}  # its skills are learned within a minute


def text_few_shot(bench: Bench) -> Entry:
    """The text skill with worked examples before each question, for it never saw one (Table 2's "textbook (5-shot)")."""
    skill = bench.skill(bench.section.skills[0])
    return dataclasses.replace(skill, load=lambda: (skill.load()[0], {}), shots=base_few_shot(bench).shots)


def qabot(questions: str = "game") -> Section:
    """Section 5.2. questions: of real data, "game" (Figure 5) or "biology" (Figure 8); the generated manual is the same for both."""
    kinds = {"game": (manual.TASK, manual_qa.TASK, manual_qa.GAME), "biology": (manual.BIOLOGY, manual_qa.BIOLOGY, manual_qa.CHAPTER)}
    if questions not in kinds:
        raise LabError(f"There are no questions {questions!r}; choose {' or '.join(kinds)}.")
    text, target, file = kinds[questions]
    return Section(
        "s5_2_qabot", (text, instruction.TASK), target,
        presets={"embedded": READER, "small": {"epochs": 3}},
        contenders={
            "manual_few_shot": text_few_shot, "data_mix_continual": continual,
            **{method: partial(open_book, method=method, file=file) for method in RETRIEVERS},
        },
    )  # fmt: skip


QABOT = qabot()


READING = Section(
    "s5_3_reading", (terms.TASK, extraction.TASK), technical_reading.TASK,
    presets={"embedded": READER, "paper": {"max_tokens": 2048, "batch_size": 4}},
    contenders={"terms_few_shot": text_few_shot, "data_mix_continual": continual},
)  # fmt: skip


LETTERS = {
    "embedded": {"base": "embedded-letters", "rank": 8, "lora_alpha": 16, "train_rows": 4000},
    # No worked examples: they would show the very formats that are new.
    "small": {"train_rows": None, "max_tokens": 256}, "paper": {"max_tokens": 256, "shots": 0},
}  # fmt: skip
FORMATS_1_4 = Section("s5_4_prompt_formats_1_4", (letters.skill(1), letters.skill(4)), letters.TARGET, LETTERS)
FORMATS_1_2 = Section(
    "s5_4_prompt_formats_1_2", (letters.skill(1), letters.skill(2)), letters.TARGET, LETTERS, homes={"format_1": FORMATS_1_4}
)
FORMATS_2_4 = Section(
    "s5_4_prompt_formats_2_4", (letters.skill(2), letters.skill(4)), letters.TARGET, LETTERS,
    homes={"format_2": FORMATS_1_2, "format_4": FORMATS_1_4},
)  # fmt: skip
TWO_PROMPTS = Section("s5_4_prompt_formats_two_prompts", (choice.PROMPT_1, choice.PROMPT_2), choice.TARGET, presets=LETTERS)


def on_real_rows(section: Section) -> Section:
    """One of Section 5.4's pairs, with a name of its own for records on the real rows, whose text the project may not ship."""
    return dataclasses.replace(section, name=section.name.replace("formats", "formats_real"), passed_on=False)


SECTIONS = {section.name: section for section in list(globals().values()) if isinstance(section, Section)}  # all of the above


def get_section(name: str) -> Section:
    """By its name. Raises LabError for another."""
    if name not in SECTIONS:
        raise LabError(f"There is no section {name!r}; choose {', '.join(SECTIONS)}.")
    return SECTIONS[name]


def title(section: Section) -> str:
    """ "5.1 math code" of s5_1_math_code."""
    return section.name.removeprefix("s").replace("_", ".", 1).replace("_", " ")
