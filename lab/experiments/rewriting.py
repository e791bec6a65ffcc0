"""Rewriting (beyond the paper): skills that each make one change to an English sentence, merged for targets that ask for several."""

from collections.abc import Sequence

from lab.experiments.section import Section
from lab.tasks import rewriting

# Sentences and their rewritings take few tokens, so a step is short.
PRESETS = {"laptop": {"train_rows": 800, "max_tokens": 96, "coefficient_share": 0.1}}


def section(changes: Sequence[str], style: str = "named") -> Section:
    """A skill per change, and the target that asks for all of them. style: of lab.tasks.rewriting.STYLES."""
    skills = tuple(rewriting.skill(change, style) for change in changes)
    return Section(f"x4_rewriting_{style}_{'_'.join(changes)}", skills, rewriting.target(tuple(changes), style), PRESETS)
