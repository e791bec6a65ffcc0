"""A table as files: CSV with the numbers, Markdown and LaTeX as people read it."""

from pathlib import Path

import pandas as pd

from lab.files import write_atomic


def write_table(folder: Path, name: str, numbers: pd.DataFrame, shown: pd.DataFrame) -> None:
    """NAME.csv of `numbers`, NAME.md and NAME.tex of `shown` (strings throughout); an index without a name counts as the first column."""
    write_atomic(folder / f"{name}.csv", numbers.to_csv(index=numbers.index.name is not None))
    write_atomic(folder / f"{name}.md", markdown(shown))
    write_atomic(folder / f"{name}.tex", latex(shown))


def markdown(shown: pd.DataFrame) -> str:
    heads, rows = _cells(shown)
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def latex(shown: pd.DataFrame) -> str:
    """A tabular for the package booktabs."""
    heads, rows = _cells(shown)
    lines = [" & ".join(map(_escaped, line)) + r" \\" for line in (heads, *rows)]
    columns = "l" + "r" * (len(heads) - 1)
    first, last = rf"\begin{{tabular}}{{{columns}}}", r"\end{tabular}"
    return "\n".join([first, r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule", last, ""])


def _cells(shown: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    named = not isinstance(shown.index, pd.RangeIndex)
    heads = [*([""] if named else []), *map(str, shown.columns)]
    return heads, [[*([str(index)] if named else []), *map(str, row)] for index, row in zip(shown.index, shown.to_numpy(), strict=True)]


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "−": "$-$", "–": "--", "×": r"$\times$",
}  # fmt: skip


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
