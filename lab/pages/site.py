"""Pages from executed notebooks and records: self-contained files, opened from disk, asking no host for anything.

A page per section and an index; a leaderboard, the paper's numbers beside ours, and browsers of completions and
coefficients. Whatever a notebook shows is cleaned before it is placed in a page: HTML loses everything that could act,
SVG becomes an image. The only scripts are the site's own (lab/templates), which each page allows by their hash; what
they read lies in the page itself.
"""

import base64
import gzip
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from urllib.parse import quote

import bleach
import nbformat
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from matplotlib.colors import to_rgb
from nbconvert import HTMLExporter
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from nbformat import NotebookNode

from lab.errors import LabError
from lab.experiments.presets import PRESETS
from lab.files import PROJECT, write_atomic
from lab.merging.oracles import DRAWS, EQUAL
from lab.pages import boards as boards_of
from lab.pages import formulas, published
from lab.pages.boards import Board
from lab.pages.figures import COLOURS, DIVERGING, INK, ROLE_LABELS
from lab.records.record import REASONS, RunRecord, read_records
from lab.records.tables import WorkedExample, result_table, standing

CARD_TYPE = "application/vnd.lab.export.card+json"
_TEMPLATES = Path(__file__).parent / "templates"
_CARD_MARK = re.compile(r'<script type="application/json" id="card">(.*?)</script>', re.DOTALL)
_TITLE = re.compile(r"#\s+(.+)")
_TAGS = {
    *bleach.ALLOWED_TAGS, "br", "caption", "col", "colgroup", "dd", "del", "details", "div", "dl", "dt", "figcaption", "figure",
    "h1", "h2", "h3", "h4", "h5", "h6", "hr", "img", "p", "pre", "s", "small", "span", "sub", "summary", "sup", "table", "tbody",
    "td", "tfoot", "th", "thead", "tr",
}  # fmt: skip
_ATTRIBUTES = {"class", "colspan", "href", "id", "open", "rowspan", "scope", "title", "alt", "src"}
_PAGES = Environment(loader=PackageLoader("lab.pages", "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
_PARTS = {role: ROLE_LABELS.get(role, "base model") for role in COLOURS}
_PAGES.filters["percent"] = lambda value: "" if value is None else f"{100 * value:.1f}"


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


def card(
    records: Sequence[RunRecord], method: str | None = None, finding: str = "", others: Iterable[RunRecord] = (), seconds: float = 0
) -> Html:
    """Headline of a section for its page and the index, and where its numbers come from. The last expression of a notebook.

    method: whose score is the headline number; None for the best merge's. finding: one sentence of what was found, the notebook's own words. others: what
    else the page shows, for where its numbers come from; seconds: that were spent on what has no records.
    """
    number, caption = _headline(records, method)
    records = list({r.key: r for r in (*records, *others)}.values())
    seconds += sum(sum(r.seconds.values()) for r in records)
    facts = {
        "Preset": _joined(r.preset for r in records),
        "Seeds": _joined(r.seed for r in records),
        "Problems": _joined(f"{r.n + r.unscored} of {r.task} version {r.task_version}" for r in records),
        "Measured in": f"{duration(seconds)}, all methods and seeds together",
        "Machine": _joined(_machine(r.environment) for r in records),
        "Sandbox": _joined(r.sandbox for r in records) or "none",
        "Code": _joined(_code(r.environment) for r in records),
        "Versions": _joined(_versions(r.environment["versions"]) for r in records),
    }
    lines = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts.items())
    text = "\n".join(f"{name}: {value}" for name, value in facts.items())
    data = {"number": number, "caption": caption, "finding": finding, "measured": seconds}
    commits = facts["Code"].split(", commit ")
    data |= {"machine": facts["Machine"], "code": facts["Code"] if len(commits) < 3 else f"{len(commits)} commits, listed at its end"}
    shown = f'<p class="finding">{escape(finding)}</p>' if finding else ""
    return Html(f'{shown}<table class="facts"><tbody>{lines}</tbody></table>', text, data)


def _headline(records: Sequence[RunRecord], method: str | None) -> tuple[str, str]:
    """Number and caption."""
    found = None if method else standing(records)
    method = method or (found.best.name if found else records[0].method)
    row = result_table(records, method).loc[method]
    label = f"{row['label']}, the best of {found.merges} merges on this test" if found and found.merges > 1 else row["label"]
    caption = (
        f"{label}: {100 * row['low']:.1f}–{100 * row['high']:.1f}\u00a0% (95\u00a0%), "
        f"{row['n']} problems × {row['seeds']} {'seed' if row['seeds'] == 1 else 'seeds'}"
    )
    for rival, _ in (found.against if found else {}).values():
        caption += f"; {rival['label']}: {100 * rival['score']:.1f}\u00a0%"
    return f"{100 * row['score']:.1f}\u00a0%", caption


def examples(worked: Iterable[WorkedExample]) -> Html:
    """Worked examples: the problem as the model read it, and what each method wrote, exactly as text."""
    parts, texts = [], []
    for example in worked:
        parts.append(
            f"<h4>Problem {escape(example.id)}</h4><pre class='prompt'>{escape(example.prompt.rstrip())}</pre>"
        )
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


def build(notebooks: Iterable[Path | str], results: Path | str, known: Iterable[Path | str] | None = None) -> Path:
    """Render executed notebooks to `results/<section>.html`, then the index and all pages of the records in `results/records`.

    known: the notebooks that there are, so that the index names those never run; default the project's. Gives the path of the
    index. Raises LabError for a notebook that cannot be read, or when the disk is full.
    """
    results = Path(results)
    known = sorted((PROJECT / "notebooks").glob("*.ipynb") if known is None else map(Path, known))
    read = {path.stem: _read_notebook(path) for path in map(Path, notebooks)}
    site = _Site.of(results, titles=_titles(results) | {stem: _title(nb, stem) for stem, nb in read.items()})
    for stem, nb in read.items():
        write_atomic(results / f"{stem}.html", render_page(nb, stem, site.nav(stem)))
        figure = _headline_figure(nb)
        if figure is not None:  # on its own, for the index, the README and talks
            write_atomic(results / f"{stem}.svg", _themed(figure[0]))
    for name, page in site.pages().items():
        write_atomic(results / name, page)
    write_atomic(
        results / "index.html",
        render_index(results, site, [(p.stem, _title(_read_notebook(p), p.stem)) for p in known]),
    )
    return results / "index.html"


def render_page(
    nb: NotebookNode, section: str, nav: Sequence[tuple[str, str]] = (("index.html", "All sections"),)
) -> str:
    """The page of an executed notebook, whole and self-contained. nav: (address, name) of the site's other pages."""
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
        extra_loaders=[PackageLoader("lab.pages", "templates")],
        filters={"clean_html": clean, "svg_image": svg_image},
        sanitize_html=True,
        exclude_anchor_links=True,
        preprocessors=[CoalesceStreamsPreprocessor(enabled=True)],
    )
    body, _ = exporter.from_notebook_node(nb)
    data = json.dumps(told).replace("<", "\\u003c")
    title = f"{told['title']} · Soup Lab"
    page = _render("page", title, nav, card=told, body=Markup(body), data=Markup(data), duration=duration)
    return page.replace(f"{PROJECT}/", "").replace(
        f"{sys.prefix}/", ""
    )  # where things lie on this machine is nobody's business


def render_index(results: Path | str, site: "_Site | None" = None, known: Sequence[tuple[str, str]] = ()) -> str:
    """The index of the pages in a folder: a card each. Pages that are not ours are left out.

    site: the pages of the records, for links to them. known: (name, title) of all sections; those without a page are named.
    """
    site, cards = site or _Site.of(Path(results)), []
    for path in sorted(Path(results).glob("*.html")):
        found = _card_of_page(path)
        if found:
            cards.append(found | {"links": site.links(found["section"])})
    missing = [(name, title) for name, title in known if name not in {card["section"] for card in cards}]
    return _render(
        "index", "Soup Lab", site.nav(here="index.html"), "index", here="index.html", cards=cards, missing=missing,
        skipped=site.skipped, duration=duration,
    )  # fmt: skip


@dataclass(frozen=True)
class _Site:
    """The pages of the records. titles: of the sections' pages. skipped: what of the records' folder could not be read."""

    boards: Sequence[Board]
    titles: Mapping[str, str]
    skipped: Sequence[str]

    @classmethod
    def of(cls, results: Path, titles: Mapping[str, str] | None = None) -> "_Site":
        records, foreign = read_records(results / "records")
        found, damaged = boards_of.boards(records)
        return cls(found, _titles(results) if titles is None else titles, [*foreign, *damaged])

    def page(self, section: str) -> str | None:
        """The section whose page tells of these records: its own, or the one that its name continues."""
        return max(
            (stem for stem in self.titles if section == stem or section.startswith(f"{stem}_")), key=len, default=None
        )

    def title(self, section: str) -> str:
        page = self.page(section)
        rest = section.removeprefix(page or "").replace("_", " ").strip()
        return " · ".join(filter(None, (self.titles.get(page), rest)))

    def with_completions(self) -> list[str]:
        return list(dict.fromkeys(board.section for board in self.boards if board.rows))

    def with_coefficients(self) -> list[str]:
        return list(dict.fromkeys(board.section for board in self.boards if any(r.coefficients for r in board.records)))

    def links(self, stem: str) -> list[tuple[str, str]]:
        """What else there is of a section: (address, name)."""
        found = []
        for name, sections in (("Completions", self.with_completions()), ("Coefficients", self.with_coefficients())):
            own = [section for section in sections if self.page(section) == stem]
            for section in own:
                at = (
                    quote(_completions_page(section))
                    if name == "Completions"
                    else f"coefficients.html#{_fragment(section=section)}"
                )
                found.append((at, f"{name}: {self.title(section)}" if len(own) > 1 else name))
        return found

    def nav(self, stem: str = "", here: str = "") -> list[tuple[str, str]]:
        """The way to the other pages, from a section's or any other."""
        found = [("index.html", "Sections")]
        if self.boards:
            found += [("leaderboard.html", "Leaderboard"), ("paper.html", "Paper | measured")]
        completions = self.with_completions()
        if completions:
            own = [
                section for section in completions if self.page(section) == stem or _completions_page(section) == here
            ]
            found.append((_completions_page((own or completions)[0]), "Completions"))
        if self.with_coefficients():
            found.append(("coefficients.html", "Coefficients"))
        if self.boards:
            found.append(("formulas.html", "Formulas"))
        return found

    def pages(self) -> dict[str, str]:
        """Name -> text of every page made of records; none without records."""
        if not self.boards:
            return {}
        made = {"leaderboard.html": self._leaderboard(), "paper.html": self._paper(), "formulas.html": self._formulas()}
        made |= {_completions_page(section): self._completions(section) for section in self.with_completions()}
        return made | ({"coefficients.html": self._coefficients()} if self.with_coefficients() else {})

    def _render(
        self, template: str, title: str, width: str, here: str, scripts: Sequence[str] = (), **values: object
    ) -> str:
        return _render(
            template,
            f"{title} · Soup Lab",
            self.nav(here=here),
            width,
            scripts,
            here=here,
            skipped=self.skipped,
            **values,
        )

    def _leaderboard(self) -> str:
        completions, shown = self.with_completions(), []
        for board in self.boards:
            title, page = self.title(board.section), self.page(board.section)
            rows = []
            for line in boards_of.lines(board):
                at = (
                    f"{quote(_completions_page(board.section))}#{_fragment(method=line.name)}"
                    if board.section in completions
                    else None
                )
                rows.append(
                    vars(line)
                    | {
                        "href": at,
                        "role": _PARTS[line.role],
                        "colour": COLOURS[line.role],
                        "own_mean": sum(line.own.values()) / len(line.own) if line.own else None,
                        "downloads": [_downloads(r, r.key in board.rows) for r in line.records],
                    }
                )
            shown.append(
                {
                    "name": f"{title}: {board.label}",
                    "title": title,
                    "label": board.label,
                    "page": page and f"{page}.html",
                    "lines": rows,
                }
            )
        return self._render(
            "leaderboard",
            "Leaderboard",
            "wide",
            "leaderboard.html",
            ["leaderboard.js"],
            boards=shown,
            roles=_PARTS.values(),
        )

    def _paper(self) -> str:
        groups = []
        for title, numbers in published.NUMBERS.items():
            rows = []
            for number in numbers:
                found = [boards_of.measured(number, self.boards, kind) for kind in ("paper", "small", "embedded")]
                shown = [{"value": "", "more": ""} if hit is None else _measured(number, *hit) for hit in found]
                rows.append({"what": number.what, "where": number.where, "paper": _printed(number), "measured": shown})
            page = self.page(numbers[0].section)
            told = {"page": page and f"{page}.html", "page_title": self.titles.get(page)}
            groups.append({"title": title, "rows": rows} | told)
        presets = [PRESETS[name] for name in ("paper", "small", "embedded")]
        settings = [
            {
                "what": s.what,
                "where": s.where,
                "paper": s.value,
                "ours": [_setting(getattr(p, s.field)) if s.field else "" for p in presets],
            }
            for s in published.SETTINGS
        ]
        return self._render(
            "paper",
            "Paper and measured",
            "index",
            "paper.html",
            groups=groups,
            settings=settings,
            paper=published.PAPER,
            presets=[p.name for p in presets],
            small_base=PRESETS["small"].base,
        )

    def _formulas(self) -> str:
        return self._render(
            "formulas", "Every formula, and who else computes it", "wide", "formulas.html", methods=formulas.compared(),
            others=formulas.others(), cases=formulas.cases(), bound=formulas.size(EQUAL), draws=DRAWS,
        )  # fmt: skip

    def _completions(self, section: str) -> str:
        own = [board for board in self.boards if board.section == section]
        without = [f"{b.name(r)}, seed {r.seed}" for b in own for r in b.records if r.key not in b.rows]
        roles = {role: {"label": _PARTS[role], "colour": colour} for role, colour in COLOURS.items()}
        data = {
            "roles": roles,
            "reasons": REASONS,
            "boards": [boards_of.completions(board) for board in own if board.rows],
        }
        others = [(_completions_page(name), self.title(name)) for name in self.with_completions()]
        title, here = self.title(section), _completions_page(section)
        return self._render(
            "completions",
            f"Completions: {title}",
            "wide",
            here,
            ["unpack.js", "completions.js"],
            section=section,
            section_title=title,
            without=without,
            others=others,
            most=boards_of.SHOWN,
            data=_packed(data),
        )

    def _coefficients(self) -> str:
        shown = []
        for board in self.boards:
            found = boards_of.coefficients(board)
            if found:
                shown.append(
                    found | {"section": board.section, "label": f"{self.title(board.section)}: {found['label']}"}
                )
        data = {"scale": [[round(255 * part) for part in to_rgb(colour)] for colour in DIVERGING], "boards": shown}
        return self._render(
            "coefficients",
            "Coefficients",
            "wide",
            "coefficients.html",
            ["unpack.js", "coefficients.js"],
            data=_packed(data),
        )


def _render(
    template: str,
    title: str,
    nav: Sequence[tuple[str, str]],
    width: str = "",
    scripts: Sequence[str] = (),
    **values: object,
) -> str:
    """A page of the site. scripts: files of lab/templates, placed in the page as one, the only one that may run there."""
    text = "".join((_TEMPLATES / name).read_text() for name in scripts)
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    script = {"text": Markup(text), "hash": Markup(f"sha256-{digest}")} if scripts else None
    return _PAGES.get_template(f"{template}.html.j2").render(title=title, nav=nav, width=width, script=script, **values)


def _packed(data: object) -> str:
    """What lab/templates/unpack.js unpacks; the same for the same data."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def _completions_page(section: str) -> str:
    return f"completions-{section}.html"


def _fragment(**values: object) -> str:
    return "&".join(f"{name}={quote(str(value), safe='')}" for name, value in values.items())


def _downloads(record: RunRecord, rows: bool) -> dict:
    place = f"records/{quote(boards_of.place_of(record))}"
    return {"seed": record.seed, "json": f"{place}.json", "rows": f"{place}.jsonl.gz" if rows else None}


def _printed(number: published.Published) -> str:
    unit = {"%": "\u00a0%", "points": " points", "% more": "\u00a0%", "F1": ""}[number.unit]
    sign = "+" if number.unit in ("points", "% more") else ""
    error = f" ± {number.error}" if number.error is not None else ""
    return f"{sign}{number.value}{error}{unit}"


def _measured(number: published.Published, value: float, line: boards_of.Line) -> dict:
    """value: in the number's unit. The interval is the line's where the number is one method's own score."""
    if number.unit == "F1":
        shown = f"{value:.3f}"
    elif number.unit == "%":
        shown = f"{value:.1f}\u00a0%"
    else:
        shown = f"{value:+.{1 if number.unit == 'points' else 0}f}".replace("-", "−")
        shown += " points" if number.unit == "points" else "\u00a0%"
    counted = f"{line.problems} × {len(line.records)}"
    alone = number.unit == "%" and number.score == "right" and len(number.methods) == 1 and line.low is not None
    return {
        "value": shown,
        "more": f"({100 * line.low:.1f}–{100 * line.high:.1f}; {counted})" if alone else f"({counted})",
    }


def _setting(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_setting, value))
    return "each task's own" if value is None else str(value)


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
        return Outcome(
            False, started[-1] if started else None, crash or "The notebook was not run to its end; run it again."
        )
    return Outcome(True)


def clean(html: object) -> str:
    """HTML without anything that acts or asks a host for something; images only where they are part of the page."""
    text = html.decode() if isinstance(html, bytes) else str(html)
    text = re.sub(
        r"<style\b.*?</style\s*>", "", text, flags=re.DOTALL | re.IGNORECASE
    )  # pandas sends one with each table
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


def _read_notebook(path: Path) -> NotebookNode:
    try:
        return nbformat.read(path, as_version=4)
    except (OSError, ValueError, KeyError, AttributeError, nbformat.ValidationError) as error:
        raise LabError(f"The executed notebook {path} is missing or damaged; run it again.") from error


def _card_of_page(path: Path) -> dict | None:
    """What a page of ours says about its section; None for any other."""
    found = _CARD_MARK.search(path.read_text(errors="replace"))
    return json.loads(found[1]) if found else None


def _titles(results: Path) -> dict[str, str]:
    """Titles of the sections' pages that lie there, by section."""
    cards = filter(None, map(_card_of_page, sorted(results.glob("*.html"))))
    return {card["section"]: card["title"] for card in cards}


def _title(nb: NotebookNode, section: str) -> str:
    title = next((m[1] for c in nb.cells if c.cell_type == "markdown" for m in [_TITLE.match(c.source)] if m), section)
    return re.sub(r"[*_`]", "", title).strip()


def _card_of(nb: NotebookNode, section: str) -> dict:
    """All that page header and index say about a notebook."""
    lab, papermill = nb.metadata.get("lab", {}), nb.metadata.get("papermill", {})
    parameters = lab.get("parameters") or papermill.get("parameters", {})
    data = [output["data"] for cell in nb.cells for output in cell.get("outputs", []) if "data" in output]
    given = next((d[CARD_TYPE] for d in reversed(data) if CARD_TYPE in d), {})
    ended, place = outcome(nb), lab.get("environment")
    figure = _headline_figure(nb)
    return {
        "section": section,
        "title": _title(nb, section),
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
        "figure": figure and {"alt": figure[1], "src": quote(f"{section}.svg")},
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


def _themed(svg: str) -> str:
    theme = "<style>svg{--ink:#33383f}@media(prefers-color-scheme:dark){svg{--ink:#c6cbd3}}</style>"
    return re.sub(r"(<svg\b[^>]*>)", lambda found: found[1] + theme, svg.replace(INK, "var(--ink)"), count=1)


def _svg_uri(svg: str) -> str:
    # A tenth smaller than base64, and these figures are a quarter of the site.
    return "data:image/svg+xml," + quote(_themed(svg).replace(">\n<", "><"), safe=" =:;,/.()!*@$?-_~+[]{}|^`")


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
