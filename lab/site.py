"""Pages from executed notebooks: a self-contained file per section and an index, opened from disk, asking no host for anything.

Whatever a notebook shows is cleaned before it is placed in a page: HTML loses everything that could act, SVG becomes an image.
"""

import base64
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path

import bleach
import nbformat
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from nbconvert import HTMLExporter
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from nbformat import NotebookNode

from lab.errors import LabError
from lab.figures import INK
from lab.files import PROJECT, write_atomic
from lab.results import RunRecord, WorkedExample, describe, result_table, skill_names

CARD_TYPE = "application/vnd.lab.card+json"
_CARD_MARK = re.compile(r'<script type="application/json" id="card">(.*?)</script>', re.DOTALL)
_TITLE = re.compile(r"#\s+(.+)")
_TAGS = {
    *bleach.ALLOWED_TAGS, "br", "caption", "col", "colgroup", "dd", "del", "details", "div", "dl", "dt", "figcaption", "figure",
    "h1", "h2", "h3", "h4", "h5", "h6", "hr", "img", "p", "pre", "s", "small", "span", "sub", "summary", "sup", "table", "tbody",
    "td", "tfoot", "th", "thead", "tr",
}  # fmt: skip
_ATTRIBUTES = {"class", "colspan", "href", "id", "open", "rowspan", "scope", "title", "alt", "src"}
_PAGES = Environment(loader=PackageLoader("lab", "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True)


@dataclass(frozen=True)
class Outcome:
    """ok: the notebook ran to its end; else the number of the cell (among the code cells, from 1) and what went wrong."""

    ok: bool
    cell: int | None = None
    error: str = ""


@dataclass(frozen=True)
class Html:
    """Something a notebook shows as HTML, with data for the page's card if there are any."""

    html: str
    text: str
    card: Mapping[str, object] | None = None

    def _repr_mimebundle_(self, **_: object) -> dict:
        bundle = {"text/html": self.html, "text/plain": self.text}
        return bundle | ({CARD_TYPE: dict(self.card)} if self.card else {})


def card(records: Sequence[RunRecord], method: str = "cat", finding: str = "") -> Html:
    """Headline of a section for its page and the index, and where its numbers come from. The last expression of a notebook.

    method: whose score is the headline number. finding: one sentence of what was found, the notebook's own words.
    """
    table = result_table(records, method)
    row, skills = table.loc[method], skill_names(records)
    others = table[table["role"].isin(["base", "skills"])]
    number = f"{100 * row['score']:.1f}\u00a0%"
    caption = (
        f"{describe(method, skills).label}: {100 * row['low']:.1f}–{100 * row['high']:.1f}\u00a0% (95\u00a0%), "
        f"{row['n']} problems × {row['seeds']} {'seed' if row['seeds'] == 1 else 'seeds'}"
    )
    if len(others):
        best = others.loc[others["score"].idxmax()]
        caption += f"; {best['label']}: {100 * best['score']:.1f}\u00a0%"
    seconds = sum(sum(r.seconds.values()) for r in records)
    facts = {
        "Preset": _joined(r.preset for r in records),
        "Seeds": _joined(r.seed for r in records),
        "Problems": f"{row['n']} ({_joined(f'{r.task} version {r.task_version}' for r in records)})",
        "Measured in": f"{duration(seconds)}, all methods and seeds together",
        "Machine": _joined(_machine(r.environment) for r in records),
        "Sandbox": _joined(r.sandbox for r in records) or "none",
        "Code": _joined(_code(r.environment) for r in records),
        "Versions": _joined(_versions(r.environment["versions"]) for r in records),
    }
    lines = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts.items())
    text = "\n".join(f"{name}: {value}" for name, value in facts.items())
    data = {"number": number, "caption": caption, "finding": finding, "measured": seconds}
    data |= {"machine": facts["Machine"], "code": facts["Code"]}
    shown = f'<p class="finding">{escape(finding)}</p>' if finding else ""
    return Html(f'{shown}<table class="facts"><tbody>{lines}</tbody></table>', text, data)


def examples(worked: Iterable[WorkedExample]) -> Html:
    """Worked examples: the problem as the model read it, and what each method wrote, exactly as text."""
    parts, texts = [], []
    for example in worked:
        parts.append(f"<h4>Problem {escape(example.id)}</h4><pre class='prompt'>{escape(example.prompt.rstrip())}</pre>")
        texts.append(f"Problem {example.id}\n{example.prompt.rstrip()}\n")
        for label, row in example.answers.items():
            told = f"{row['reason']}; answer {row['extracted'] or 'none'}, expected {example.answer}"
            mark = "right" if row["score"] == 1 else "not"
            parts.append(
                f"<p class='answer {mark}'><b>{escape(label)}</b>: {escape(told)}</p>"
                f"<pre>{escape(row['completion'].rstrip())}</pre>"
            )
            texts.append(f"{label}: {told}\n{row['completion'].rstrip()}\n")
    return Html(f"<div class='examples'>{''.join(parts)}</div>", "\n".join(texts))


def build(notebooks: Iterable[Path | str], results: Path | str) -> Path:
    """Render executed notebooks to `results/<section>.html` and make `results/index.html` of all pages that lie there.

    Gives the path of the index. Raises LabError for a notebook that cannot be read.
    """
    results = Path(results)
    for path in map(Path, notebooks):
        try:
            nb = nbformat.read(path, as_version=4)
        except (OSError, ValueError, KeyError, AttributeError, nbformat.ValidationError) as error:
            raise LabError(f"The executed notebook {path} is missing or damaged; run it again.") from error
        write_atomic(results / f"{path.stem}.html", render_page(nb, path.stem))
        figure = _headline_figure(nb)
        if figure is not None:  # on its own too, for the README and for talks
            write_atomic(results / f"{path.stem}.svg", figure[0])
    write_atomic(results / "index.html", render_index(results))
    return results / "index.html"


def render_page(nb: NotebookNode, section: str) -> str:
    """The page of an executed notebook, whole and self-contained."""
    told = _card_of(nb, section)
    nb = nbformat.from_dict(nb)  # a copy: preparing it for the page must not change the caller's
    nb.cells = [c for c in nb.cells if "papermill-error-cell-tag" not in c.metadata.get("tags", [])]
    for number, cell in enumerate((c for c in nb.cells if c.cell_type == "code"), 1):
        cell.metadata["number"] = number
    for cell in nb.cells:  # the title stands in the page's header
        if cell.cell_type == "markdown" and _TITLE.match(cell.source):
            cell.source = _TITLE.sub("", cell.source, count=1)
            break
    exporter = HTMLExporter(
        template_name="basic",
        template_file="cells.html.j2",
        extra_loaders=[PackageLoader("lab", "templates")],
        filters={"clean_html": clean, "svg_image": svg_image},
        sanitize_html=True,
        exclude_anchor_links=True,
        preprocessors=[CoalesceStreamsPreprocessor(enabled=True)],
    )
    body, _ = exporter.from_notebook_node(nb)
    data = json.dumps(told).replace("<", "\\u003c")
    page = _PAGES.get_template("page.html.j2").render(card=told, body=Markup(body), data=Markup(data), duration=duration)
    return page.replace(f"{PROJECT}/", "").replace(f"{sys.prefix}/", "")  # where things lie on this machine is nobody's business


def render_index(results: Path | str) -> str:
    """The index of the pages in a folder: a card each. Pages that are not ours are left out."""
    cards = []
    for path in sorted(Path(results).glob("*.html")):
        found = _CARD_MARK.search(path.read_text(errors="replace"))
        if found:
            cards.append(json.loads(found[1]))
    return _PAGES.get_template("index.html.j2").render(cards=cards, duration=duration)


def outcome(nb: NotebookNode) -> Outcome:
    """How an executed notebook ended, read from its outputs."""
    code = [cell for cell in nb.cells if cell.cell_type == "code"]
    for number, cell in enumerate(code, 1):
        for output in cell.outputs:
            if output.output_type == "error":
                # A LabError is a sentence for people already; its type would add nothing.
                named = "" if output.ename == "LabError" else f"{output.ename}: "
                return Outcome(False, number, f"{named}{output.evalue}".strip())
    crash = nb.metadata.get("lab", {}).get("crash")
    missed = [n for n, cell in enumerate(code, 1) if cell.source.strip() and cell.execution_count is None]
    if crash or missed:
        started = [n for n, c in enumerate(code, 1) if c.metadata.get("papermill", {}).get("start_time")]
        return Outcome(False, started[-1] if started else None, crash or "The notebook was not run to its end; run it again.")
    return Outcome(True)


def clean(html: object) -> str:
    """HTML without anything that acts or asks a host for something; images only where they are part of the page."""
    text = html.decode() if isinstance(html, bytes) else str(html)
    text = re.sub(r"<style\b.*?</style\s*>", "", text, flags=re.DOTALL | re.IGNORECASE)  # pandas sends one with each table
    return bleach.clean(text, tags=_TAGS, attributes=_allowed, protocols={"http", "https", "mailto", "data"})


def svg_image(svg: str, alt: str | None = None) -> Markup:
    """An SVG as an <img>, where no script in it can run; its neutral ink takes the page's text colour, light or dark."""
    return Markup('<img class="chart" alt="{}" src="{}">').format(alt or "Figure", _svg_uri(svg))


def duration(seconds: float | None) -> str:
    """Seconds as people say them: 42 s, 12 min, 3 h 5 min."""
    if seconds is None:
        return "unknown time"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _card_of(nb: NotebookNode, section: str) -> dict:
    """All that page header and index say about a notebook."""
    lab, papermill = nb.metadata.get("lab", {}), nb.metadata.get("papermill", {})
    parameters = lab.get("parameters") or papermill.get("parameters", {})
    data = [output["data"] for cell in nb.cells for output in cell.get("outputs", []) if "data" in output]
    given = next((d[CARD_TYPE] for d in reversed(data) if CARD_TYPE in d), {})
    title = next((m[1] for c in nb.cells if c.cell_type == "markdown" for m in [_TITLE.match(c.source)] if m), section)
    ended, place = outcome(nb), lab.get("environment")
    figure = _headline_figure(nb)
    return {
        "section": section,
        "title": re.sub(r"[*_`]", "", title).strip(),
        "ok": ended.ok,
        "cell": ended.cell,
        "error": ended.error,
        "preset": parameters.get("preset"),
        "seeds": parameters.get("seeds"),
        "seconds": lab.get("seconds", papermill.get("duration")),
        "date": _date(papermill.get("end_time")),
        "measured": given.get("measured"),
        "machine": given.get("machine") or (_machine(place) if place else None),
        "code": given.get("code") or (_code(place) if place else None),
        "number": given.get("number"),
        "caption": given.get("caption"),
        "finding": given.get("finding"),
        "figure": figure and {"alt": figure[1], "src": _svg_uri(figure[0])},
    }


def _headline_figure(nb: NotebookNode) -> tuple[str, str] | None:
    """SVG and alternative text of the first figure of the cell tagged "headline", else of the notebook."""
    cells = sorted(nb.cells, key=lambda cell: "headline" not in cell.metadata.get("tags", []))
    for cell in cells:
        for output in cell.get("outputs", []):
            if "image/svg+xml" in output.get("data", {}):
                alt = output.get("metadata", {}).get("image/svg+xml", {}).get("alt", "Figure")
                return output["data"]["image/svg+xml"], alt
    return None


def _svg_uri(svg: str) -> str:
    theme = "<style>svg{--ink:#33383f}@media(prefers-color-scheme:dark){svg{--ink:#c6cbd3}}</style>"
    themed = re.sub(r"(<svg\b[^>]*>)", lambda found: found[1] + theme, svg.replace(INK, "var(--ink)"), count=1)
    return "data:image/svg+xml;base64," + base64.b64encode(themed.encode()).decode()


def _allowed(tag: str, name: str, value: str) -> bool:
    if name == "src":
        return tag == "img" and value.startswith("data:image/")
    if name == "href":
        return tag == "a" and not value.lower().startswith("data:")
    return name in _ATTRIBUTES


def _joined(values: Iterable[object]) -> str:
    return ", ".join(str(value) for value in dict.fromkeys(values) if value not in (None, ""))


def _machine(environment: Mapping) -> str:
    return f"{environment['device']}, {environment['cores']} cores"


def _code(environment: Mapping) -> str:
    commit = environment["commit"]
    if not commit:
        return "commit unknown"
    return f"commit {commit[:10]}{', with uncommitted changes' if environment['dirty'] else ''}"


def _versions(versions: Mapping) -> str:
    return " · ".join(f"{name} {version}" for name, version in versions.items() if version)


def _date(text: str | None) -> str | None:
    return datetime.fromisoformat(text).strftime("%-d %B %Y") if text else None
