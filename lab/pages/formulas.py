"""Every formula of lab.merging beside who else computes it: the table of the page, measured when it is made."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from lab.merging import METHODS
from lab.merging.oracles import CASES, DRAWN, EQUAL, MATCHES, SOURCES, WITHOUT, Case, Drawn, Match, case, not_here, stored


@dataclass(frozen=True)
class Line:
    """One comparison. source, link: the repository and its place. cases: inputs. apart: how far our method by itself is, where it
    is defined otherwise. verdict: in words; ok: equal, by whatever definition it names.
    """

    source: str
    link: str
    where: str
    value: str
    setting: str
    cases: str
    error: str
    apart: str
    verdict: str
    ok: bool


@dataclass(frozen=True)
class Compared:
    """A method and its comparisons; reason: why there is none."""

    name: str
    label: str
    paper: str
    formula: str
    lines: Sequence[Line]
    reason: str


@cache
def compared() -> tuple[Compared, ...]:
    """All methods of the registry, by label."""
    lines: dict[str, list[Line]] = {}
    for match in MATCHES:
        lines.setdefault(match.method, []).append(_line(match))
    for drawn in DRAWN:
        lines.setdefault(drawn.method, []).append(_drawn(drawn))
    return tuple(
        Compared(m.name, m.label, m.paper, m.formula, lines.get(m.name, ()), WITHOUT.get(m.name, ""))
        for m in sorted(METHODS.values(), key=lambda method: method.label.casefold())
    )


def others() -> list[tuple[str, list[str]]]:
    """What others compute and no method here: name, keys of the values."""
    return sorted(not_here().items())


def cases() -> list[str]:
    """What each case is, in words."""
    made = []
    for name in CASES:
        (_, out_features, in_features), ranks = case(name).deltas.shape, case(name).ranks
        made.append(f"{name}: {len(ranks)} skills, {out_features} × {in_features}, ranks {', '.join(map(str, ranks))}")
    return made


def size(value: float) -> str:
    """A relative difference: 8e-08, 0.41."""
    return f"{value:.0e}" if value < 1e-3 else f"{value:.2g}"


def _line(match: Match) -> Line:
    found = match.found()
    error = max(match.error(one) for one in found)
    apart = max(match.apart(one) for one in found) if match.difference else 0.0
    ok = error <= EQUAL
    if not match.difference:
        verdict = "equal" if ok else "differs"
    elif match.offered:
        verdict = f"{'equal by their definition' if ok else 'differs'}: {match.difference}"
    else:
        verdict = f"defined otherwise: {match.difference}; {'equal with that step as theirs' if ok else 'and that is not all'}"
    return Line(*_source(match), match.said(), _names(found), size(error), size(apart) if match.difference else "", verdict, ok)


def _drawn(drawn: Drawn) -> Line:
    found = stored(f"{drawn.value}.mean")
    rms, largest = (max(values) for values in zip(*(drawn.z(one) for one in found), strict=True))
    ok = rms < 1.25 and largest < 5
    verdict = "equal in distribution" if ok else "another distribution"
    verdict += f"; {drawn.difference}" if drawn.difference else ""
    return Line(*_source(drawn), drawn.setting, _names(found), f"z {rms:.2f}, at most {largest:.1f}", "", verdict, ok)


def _source(row: Match | Drawn) -> tuple[str, str, str, str]:
    repository, commit = SOURCES[row.value.split(".")[0]]
    return repository, f"https://github.com/{repository}/tree/{commit}", row.where, row.value


def _names(found: Sequence[Case]) -> str:
    return ", ".join(one.name for one in found)
