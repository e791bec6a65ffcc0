"""The sections: which skills, which target, and what each changes in a preset. To add one, write it here and a notebook for it."""

import dataclasses

from lab.errors import LabError
from lab.experiments.section import Section
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
    word_problems,
)  # fmt: skip

MATH_CODE = Section("s5_1_math_code", (maths.TASK, code.TASK), hard_math_code.TASK)
# What a real base of 135 million parameters can learn on a CPU: shorter rows, and easier problems beside GSM-Hard.
_MATH_CODE_OF = {
    "laptop": Section(
        "s5_1_math_code_short", (word_problems.MATHS, word_problems.CODE), word_problems.TARGET,
        presets={"laptop": {"train_rows": 600, "max_tokens": 160, "shots": 1}}, passed_on=False,
    )
}  # fmt: skip


def math_code(preset: str) -> Section:
    """Section 5.1 as a preset asks it, by the preset's name."""
    return _MATH_CODE_OF.get(preset, MATH_CODE)


READER = {"base": "embedded-reading", "rank": 8, "lora_alpha": 16, "train_rows": 3000}  # its skills are learned within a minute


def qabot(questions: str = "game") -> Section:
    """Section 5.2. questions: of real data, "game" (Figure 5) or "biology" (Figure 8); the generated manual is the same for both."""
    kinds = {"game": (manual.TASK, manual_qa.TASK), "biology": (manual.BIOLOGY, manual_qa.BIOLOGY)}
    if questions not in kinds:
        raise LabError(f"There are no questions {questions!r}; choose {' or '.join(kinds)}.")
    text, target = kinds[questions]
    return Section(
        "s5_2_qabot", (text, instruction.TASK), target,
        presets={"embedded": READER, "small": {"epochs": 3}},
        candidates=("manual_few_shot", "data_mix_continual", "retrieval_bm25", "retrieval_embedding"),
    )  # fmt: skip


QABOT = qabot()


READING = Section(
    "s5_3_reading", (terms.TASK, extraction.TASK), technical_reading.TASK,
    presets={"embedded": READER, "paper": {"max_tokens": 2048, "batch_size": 4}},
    candidates=("terms_few_shot", "data_mix_continual"),
)  # fmt: skip


LETTERS = {
    "embedded": {"base": "embedded-letters", "rank": 8, "lora_alpha": 16, "train_rows": 4000},
    # No worked examples: they would show the very formats that are new.
    "small": {"train_rows": None, "max_tokens": 256}, "paper": {"max_tokens": 256, "shots": 0},
}  # fmt: skip
FORMATS_1_4 = Section("s5_4_prompt_formats_1_4", (letters.skill(1), letters.skill(4)), letters.TARGET, LETTERS)
FORMATS_1_2 = Section(
    "s5_4_prompt_formats_1_2", (letters.skill(1), letters.skill(2)), letters.TARGET, LETTERS
)
FORMATS_2_4 = Section(
    "s5_4_prompt_formats_2_4", (letters.skill(2), letters.skill(4)), letters.TARGET, LETTERS
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
