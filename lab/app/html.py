"""The few pieces of HTML that several tabs draw. What comes from people or models is escaped by whoever puts it in."""

from collections.abc import Sequence
from html import escape

Cell = str | tuple[str, str]  # HTML, or (class, HTML)


def table(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Cell]]], caption: str = "") -> str:
    """A table that scrolls where the page is narrow. rows: (heading, cells); headings and columns are escaped here."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(f"<tr><th>{escape(name)}</th>{''.join(map(_cell, cells))}</tr>" for name, cells in rows)
    told = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="wide"><table class="plain">{told}<thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(cell: Cell) -> str:
    return f"<td>{cell}</td>" if isinstance(cell, str) else f'<td class="{cell[0]}">{cell[1]}</td>'


SIGNS = {"good": "✓", "bad": "✗", "dim": "·"}


def dot(mark: str, told: str) -> str:
    """A verdict as one sign, which says the same without its colour."""
    return f'<i class="dot {mark}" role="img" aria-label="{escape(told)}" title="{escape(told)}">{SIGNS[mark]}</i>'


def dim(text: str) -> str:
    """A quiet line of text, escaped."""
    return f'<p class="dim">{escape(text)}</p>'


def items(lines: Sequence[tuple[str, str]]) -> str:
    """A list of (class, text), escaped; nothing for no lines."""
    listed = "".join(f'<li class="{mark}">{escape(text)}</li>' for mark, text in lines)
    return f"<ul>{listed}</ul>" if listed else ""
