"""A section of the paper as data."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from lab.experiments.presets import Preset, configure
from lab.tasks import Task


@dataclass(frozen=True)
class Section:
    """Skills, and a target that needs them.

    presets: what it changes in a preset, by the preset's name. candidates: the special ones that it has. passed_on: False for rows whose text may not be shipped: records then leave out the prompts.
    """

    name: str
    skills: tuple[Task, ...]
    target: Task
    presets: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    candidates: tuple[str, ...] = ()
    passed_on: bool = True

    def preset(self, name: str, base: str = "", data: str = "", settings: Mapping[str, object] | None = None) -> Preset:
        """A preset as this section has it, with a notebook's parameters (see lab.experiments.presets.configure)."""
        return configure(name, base, data, settings, self.presets)

    @property
    def title(self) -> str:
        return title_of(self.name)


def title_of(name: str) -> str:
    """ "5.1 math code" of s5_1_math_code, "x3 methods" of x3_methods."""
    return re.sub(r"^s(\d+)_(\d+)_", r"\1.\2 ", name).replace("_", " ")
