"""Figures as matplotlib `Figure` objects, made without pyplot so that threads may draw them.

Backgrounds are transparent and all colours stand out from white and from near-black, so one figure serves light and dark. The
last expression of a notebook cell shows a chart as SVG with its alternative text; `svg(chart)` gives the same to anyone else.
Text stays text in the SVG (system fonts): small, and legible at any size.
"""

import re
import threading
from collections.abc import Mapping, Sequence
from html import escape
from io import StringIO
from itertools import cycle

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from lab.errors import LabError
from lab.experiments.candidates import ROLES, describe
from lab.lora.module_names import grid
from lab.records.record import REASONS, RunRecord

INK = "#767b84"  # text and axes; pages put their own text colour in its place
COLOURS = {
    "base": "#888d96",
    "skill": "#b9770e",
    "control": "#9a6dc4",
    "static": "#2f8fd0",
    "router": "#c2569b",
    "learned": "#d64545",
    "data": "#2a9d6f",
    "retrieval": "#a3623a",
    "other": "#8a7f6a",
}
ROLE_LABELS = {
    "skill": "one skill",
    "control": "control",
    "static": "static merge",
    "router": "router per token",
    "learned": "learned merge",
    "data": "trained on all data",
    "retrieval": "retrieval",
    "other": "other",
}
_REASON_COLOURS = dict(
    zip(
        REASONS,
        ("#2a9d6f", "#6f9a2a", "#d64545", "#5d6f86", "#b9770e", "#8a5a2b", "#c46d8f", "#9a6dc4", "#2f8fd0", "#888d96", "#5f646d"),
        strict=True,
    )
)
_SERIES = ("#2f8fd0", "#d64545", "#2a9d6f", "#b9770e", "#9a6dc4", "#888d96")
DIVERGING = ("#b35c00", "#f0b562", "#efeeec", "#8fb4e3", "#1d4f9e")  # less than an equal share, white, more
_DIVERGING = LinearSegmentedColormap.from_list("lab", DIVERGING)
_SEQUENTIAL = LinearSegmentedColormap.from_list("lab grades", ["#efeeec", "#8fb4e3", "#1d4f9e"])
_VERDICTS = {"better": "#2a9d6f", "unclear": "#888d96", "worse": "#d64545"}
_VERDICT_LABELS = {"better": "clearly ahead", "unclear": "not clear", "worse": "clearly behind"}
_MARKERS = ("o", "s", "^")
_SIGNS = (  # of two marked points, which may be the same
    {"marker": "*", "color": "#d64545", "markersize": 5.5, "linestyle": ""},
    {"marker": "o", "color": "#d64545", "markersize": 9, "linestyle": "", "fillstyle": "none", "markeredgewidth": 1.3},
)
_WIDTH = 5.4  # inches; with 10 point text still legible when a phone shows it at 360 pixels
_FONTS = "system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif"
_SVG_LOCK = threading.Lock()  # rcParams are global


class Chart(Figure):
    """A Figure that knows its alternative text and shows itself in notebooks as SVG."""

    alt: str = ""

    def _repr_mimebundle_(self, **_: object) -> tuple[dict, dict]:
        return {"image/svg+xml": svg(self), "text/plain": self.alt}, {"image/svg+xml": {"alt": self.alt}}


def svg(figure: Figure, alt: str | None = None) -> str:
    """The figure as a small, self-contained SVG element with `alt` (default the chart's own) as its accessible name."""
    alt = alt if alt is not None else getattr(figure, "alt", "")
    buffer = StringIO()
    with _SVG_LOCK, matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "lab"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # What matplotlib repeats in every element weighs more than the figure: fonts, ids, line breaks, six decimals.
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<defs>\s*<style.*?</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r" ?font-family: [^;\"]+;?| transform=\"rotate\(-?0 [^\"]+\"", "", text)
    text = re.sub(r"<g id=\"[^\"]*\"", "<g", text)
    text = re.sub(r' (?:d|x|y|transform|points)="[^"]+"', _rounded, text)
    text = re.sub(r"\s*\n\s*", "\n", text).replace("<g>\n</g>\n", "").replace("<g/>\n", "")
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" style="font-family: {_FONTS}" ', 1)


def _rounded(attribute: re.Match) -> str:
    """An SVG attribute with its numbers cut to hundredths of a point, on one line."""
    text = " " + " ".join(attribute[0].split())
    return re.sub(r"\d+\.\d+", lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), text)


def method_bars(table: pd.DataFrame, title: str = "Problems solved") -> Chart:
    """Figure 4 of the paper: one bar per method with its 95 % interval and a dot per seed. table: from `result_table`."""
    chart, (axes,) = _chart(0.36 * len(table) + 1.35)
    positions = np.arange(len(table))
    score = 100 * table["score"].to_numpy(dtype=float)
    low, high = (100 * table[side].to_numpy(dtype=float) for side in ("low", "high"))
    colours = [COLOURS[role] for role in table["role"]]
    axes.barh(positions, score, height=0.66, color=colours, alpha=0.75, linewidth=0)
    errors = np.maximum([score - low, high - score], 0)
    axes.errorbar(score, positions, xerr=errors, fmt="none", ecolor=INK, elinewidth=1.4, capsize=3)
    for position, seeds in zip(positions, table["by_seed"], strict=True):
        if len(seeds) > 1:
            spread = position + np.linspace(-0.16, 0.16, len(seeds))
            axes.plot(100 * np.array(seeds), spread, "o", markersize=3.4, markerfacecolor="white", markeredgecolor=INK)
    for position, value, end in zip(positions, score, high, strict=True):
        axes.annotate(f"{value:.1f}", (end, position), (5, 0), textcoords="offset points", va="center", color=INK)
    axes.set_yticks(positions, table["label"])
    axes.set_xlim(0, max(5, float(high.max())) * 1.14)
    axes.set_ylim(len(table) - 0.5, -0.5)
    axes.set_xlabel(f"right, % of {int(table['n'].max())} problems")
    _grid(axes, "x")
    present = [role for role in ROLES if role in set(table["role"]) and role in ROLE_LABELS]
    handles = [Patch(color=COLOURS[role], alpha=0.75, label=ROLE_LABELS[role]) for role in present]
    handles.append(Line2D([], [], color=INK, marker="|", markersize=7, label="95 % interval"))
    if table["seeds"].max() > 1:
        handles.append(Line2D([], [], linestyle="", marker="o", markersize=3.4, mfc="white", mec=INK, label="each seed"))
    _legend(chart, handles)
    shown = zip(table["label"], score, low, high, strict=True)
    return _named(chart, title, "; ".join(f"{label} {s:.1f} % ({lo:.1f} to {hi:.1f})" for label, s, lo, hi in shown))


def tradeoff(table: pd.DataFrame, title: str = "What a merge keeps, and what it composes") -> Chart:
    """A point per method: the skills' own tests against the target; a line joins those that none beats in both.

    table: from `results.tradeoff`.
    """
    chart, (axes,) = _chart(4.6)
    own, score = (100 * table[name].to_numpy(dtype=float) for name in ("own", "score"))
    for role in (role for role in ROLES if role in set(table["role"])):
        here = (table["role"] == role).to_numpy()
        axes.plot(own[here], score[here], "o", color=COLOURS[role], markersize=6, alpha=0.85, label=ROLE_LABELS.get(role, role))
    front = _front(-own, score)
    axes.plot(own[front], score[front], color=INK, linewidth=1, linestyle=":", zorder=0)
    roles = table["role"].to_numpy()
    leaders = {max(np.flatnonzero(roles == role), key=by.__getitem__) for role in set(roles) for by in (own, score)}
    for i in leaders | set(front):
        axes.annotate(table["label"].iloc[i], (own[i], score[i]), (6, 3), textcoords="offset points", color=INK, fontsize=8)
    axes.set_xlabel("right on the skills' own tests, mean %")
    axes.set_ylabel("right on the target, %")
    axes.set_xlim(-3, 108)
    axes.margins(y=0.08)
    _grid(axes, "both")
    handles, _ = axes.get_legend_handles_labels()
    _legend(chart, handles)
    shown = zip(table["label"], own, score, strict=True)
    return _named(chart, title, "; ".join(f"{label}: own {o:.0f} %, target {s:.0f} %" for label, o, s in shown))


def coefficient_heatmap(record: RunRecord, title: str = "Coefficients of the merge", reach: float | None = None) -> Chart:
    """Coefficients of one run: a panel per skill, rows are layers, columns module kinds; white is an equal share.

    reach: white is 0 instead, and the colours end at -reach and reach, whatever the coefficients are.

    Raises LabError when the record has none.
    """
    if not record.coefficients:
        raise LabError(f"{record.method} has no coefficients to show; choose a concatenation such as cat.")
    skills = record.coefficients["skills"]
    values = np.asarray(record.coefficients["values"], dtype=float)
    layers, kinds, grids = coefficient_grids(record)
    equal = 1 / len(skills)
    if reach is None:
        far = max(float(np.abs(values - equal).max()), 1e-3)
        norm, told = Normalize(equal - far, equal + far), f"coefficient ({equal:.2f}: equal shares)"
    else:
        norm, told = Normalize(-reach, reach), "alpha"
    beside = 2 if len(kinds) <= 8 else 1
    rows = -(-len(skills) // beside)
    chart, panels = _chart(rows * (0.24 * len(layers) + 1.15) + 0.7, rows, min(beside, len(skills)))
    for panel, skill, cells in zip(panels, skills, grids, strict=False):
        mesh = panel.pcolormesh(np.ma.masked_invalid(cells), cmap=_DIVERGING, norm=norm, edgecolors=INK, linewidth=0.15)
        if len(layers) <= 12 and beside == 2:
            for (y, x), value in np.ndenumerate(cells):
                if np.isfinite(value):
                    ink = ink_on(_DIVERGING(norm(value)))
                    panel.text(x + 0.5, y + 0.5, _short(value), ha="center", va="center", fontsize=7, color=ink)
        step = max(1, len(layers) // 16)
        panel.set_yticks(np.arange(len(layers))[::step] + 0.5, [str(layer) for layer in layers][::step])
        panel.set_xticks(np.arange(len(kinds)) + 0.5, kinds, rotation=45, ha="right", rotation_mode="anchor")
        panel.invert_yaxis()
        panel.set_title(f"{skill} skill", color=INK, fontsize=10)
        panel.tick_params(length=0)
    for panel in panels[len(skills) :]:
        panel.remove()
    panels[0].set_ylabel("layer")
    bar = chart.colorbar(mesh, ax=panels[: len(skills)], location="bottom", aspect=40, shrink=0.8)
    bar.set_label(told, color=INK)
    bar.outline.set_visible(False)
    bar.ax.tick_params(color=INK, labelcolor=INK)
    span = "; ".join(f"{s}: mean {v.mean():.2f}, {v.min():.2f} to {v.max():.2f}" for s, v in zip(skills, values, strict=True))
    return _named(chart, title, f"over {len(layers)} layers and {len(kinds)} kinds of module. {span}")


def ink_on(colour: Sequence[float]) -> str:
    """White or black, whichever stands out more from a colour (red, green, blue from 0 to 1): 4.5 to 1 at least.

    Source: relative luminance and contrast ratio of the W3C's WCAG 2.2.
    """
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    luminance = sum(share * c for share, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return "white" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "black"


def diverging(share: float) -> str:
    """The colour of a share of the scale's reach, from -1 to 1 (beyond: as its end), as #rrggbb."""
    return to_hex(_DIVERGING(Normalize(-1, 1, clip=True)(share)))


def coefficient_grids(record: RunRecord) -> tuple[list[int], list[str], np.ndarray]:
    """Layers, kinds of modules, and a run's coefficients, (skills, layers, kinds); NaN where a layer has no such module."""
    modules = record.coefficients["modules"]
    layers, projections, places = grid(modules)
    grids = np.full((len(record.coefficients["skills"]), len(layers), len(projections)), np.nan)
    for values, row in zip(grids, record.coefficients["values"], strict=True):
        for module, value in zip(modules, row, strict=True):
            values[places[module]] = value
    return layers, projections, grids


def heatmaps(
    panels: Mapping[str, pd.DataFrame], label: str, title: str, *, rows: str = "layer", columns: str = "",
    marks: Mapping[str, tuple[str, object, object]] = {}, digits: int = 2,
) -> Chart:  # fmt: skip
    """A panel per table, all in one colour scale; NaN stays empty. label: what the values are. rows, columns: what the axes are.

    marks: name -> the cell that bears it, as (panel, row, column); at most as many as _SIGNS. digits: 2, or 0 for per cent.
    """
    height, width = next(iter(panels.values())).shape
    worded = any(isinstance(name, str) for name in next(iter(panels.values())).columns)
    beside = min(len(panels), 2 if worded else 3)
    down = -(-len(panels) // beside)
    chart, axes = _chart(down * (0.24 * height + (1.15 if worded else 0.7)) + 1.3, down, beside)
    values = np.concatenate([np.ravel(table.to_numpy(dtype=float)) for table in panels.values()])
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    norm = Normalize(low, high if high > low else low + 1)
    for panel, (name, table) in zip(axes, panels.items(), strict=False):
        cells = table.to_numpy(dtype=float)
        mesh = panel.pcolormesh(np.ma.masked_invalid(cells), cmap=_SEQUENTIAL, norm=norm)
        told = width <= 8 and values.size <= 150
        if told:
            for (y, x), value in np.ndenumerate(cells):
                if np.isfinite(value):
                    ink = "white" if norm(value) > 0.55 else "#15181d"
                    text = _short(value) if digits else f"{value:.0f}"
                    panel.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=7, color=ink)
        for sign, (at, row, column) in zip(_SIGNS, marks.values(), strict=False):
            if at == name:
                x, y = (0.8, 0.25) if told else (0.5, 0.5)  # beside the number
                panel.plot(table.columns.get_loc(column) + x, table.index.get_loc(row) + y, clip_on=False, **sign)
        panel.set_xticks(np.arange(width) + 0.5, table.columns)
        if worded:
            panel.set_xticks(panel.get_xticks(), table.columns, rotation=45, ha="right", rotation_mode="anchor")
        panel.set_yticks(np.arange(height) + 0.5, table.index)
        panel.invert_yaxis()
        panel.set_title(name, color=INK, fontsize=9.5)
        panel.tick_params(length=0, labelsize=8.5)
    for panel in axes[len(panels) - beside : len(panels)]:
        panel.set_xlabel(columns, fontsize=9)
    for panel in axes[len(panels) :]:
        panel.remove()
    chart.supylabel(rows, color=INK, fontsize=10)
    bar = chart.colorbar(mesh, ax=axes[: len(panels)], location="bottom", aspect=40, shrink=0.8)
    bar.set_label(label, color=INK)
    bar.outline.set_visible(False)
    bar.ax.tick_params(color=INK, labelcolor=INK)
    _signs(chart, marks)
    spans = (f"{name}: {np.nanmin(t.to_numpy()):.3g} to {np.nanmax(t.to_numpy()):.3g}" for name, t in panels.items())
    cells = (f"{mark}: {', '.join(map(str, cell))}" for mark, cell in marks.items())
    return _named(chart, title, "; ".join((label, *spans, *cells)))


def spectra(panels: Mapping[str, Mapping[str, Sequence[float]]], title: str = "Singular values of the updates") -> Chart:
    """A panel per skill and a line per kind of module: singular values in descending order, as shares of the largest."""
    chart, axes = _chart(3.3, 1, len(panels))
    kinds = dict.fromkeys(kind for lines in panels.values() for kind in lines)
    colours = dict(zip(kinds, cycle((*_SERIES, "#5d6f86")), strict=False))
    for panel, (name, lines) in zip(axes, panels.items(), strict=True):
        for kind, values in lines.items():
            numbers = np.arange(1, len(values) + 1)
            panel.plot(numbers, np.divide(values, values[0]), "o-", color=colours[kind], linewidth=1.3, markersize=2.4)
        panel.set_title(name, color=INK, fontsize=10)
        panel.set_ylim(0, 1.04)
        panel.set_xlabel("number of the singular value")
        panel.locator_params(axis="x", nbins=6, integer=True)
        _grid(panel, "both")
    chart.supylabel("share of the largest", color=INK, fontsize=10)
    _legend(chart, [Line2D([], [], color=colour, label=kind) for kind, colour in colours.items()])
    ends = (f"{name}, {kind}: last {v[-1] / v[0]:.2f}" for name, lines in panels.items() for kind, v in lines.items())
    return _named(chart, title, "; ".join(ends))


def loss_against_score(
    tables: Mapping[str, pd.DataFrame], marks: Mapping[str, Mapping[str, int]], title: str = "Held-out loss and the target"
) -> Chart:
    """A panel per sweep, a point per merge. tables: with loss and score. marks: name -> the row that bears it, by panel."""
    chart, panels = _chart(2.9, 1, len(tables))
    told = []
    for panel, (name, table) in zip(panels, tables.items(), strict=True):
        loss, score = table["loss"].to_numpy(dtype=float), 100 * table["score"].to_numpy(dtype=float)
        panel.plot(loss, score, "o", color=COLOURS["static"], markersize=3.6, alpha=0.5, markeredgewidth=0)
        for sign, (mark, rows) in zip(_SIGNS, marks.items(), strict=False):
            at = rows[name]
            panel.plot(loss[at], score[at], **sign)
            told.append(f"{name}, {mark}: loss {loss[at]:.3f}, target {score[at]:.0f} %")
        panel.set_title(name, color=INK, fontsize=8.5)
        panel.set_ylim(-0.04 * max(5, score.max()), 1.1 * max(5, score.max()))
        panel.set_xlabel("held-out loss")
        panel.locator_params(nbins=4)
        _grid(panel, "both")
    chart.supylabel("right on the target, %", color=INK, fontsize=10)
    _signs(chart, marks)
    return _named(chart, title, "; ".join(told))


def learning_curves(curves: Mapping[str, Sequence], title: str = "Learning curves") -> Chart:
    """A panel per entry: loss over steps. curves: label -> losses of one run, or a list of such, one line per seed."""
    if not curves:
        raise LabError("There are no losses to draw; give the records of something that was trained.")
    columns = min(2, len(curves))
    rows = -(-len(curves) // columns)
    chart, panels = _chart(1.55 * rows + 0.75, rows, columns)
    ends = []
    for panel, colour, (label, given) in zip(panels, cycle(_SERIES), curves.items(), strict=False):
        lines = [given] if np.ndim(given[0]) == 0 else list(given)
        for line in lines:
            steps, means = _binned(line)
            panel.plot(steps, means, color=colour, linewidth=1.3, alpha=0.9 if len(lines) == 1 else 0.6)
        panel.set_title(label, color=INK, fontsize=10)
        panel.set_xlim(left=0)
        _grid(panel, "both")
        panel.locator_params(nbins=5)
        ends.append(f"{label}: {_binned(lines[0])[1][0]:.3g} to {_binned(lines[0])[1][-1]:.3g}")
    for panel in panels[len(curves) :]:
        panel.remove()
    chart.supxlabel("step", color=INK, fontsize=10)
    chart.supylabel("loss, nats per token", color=INK, fontsize=10)
    return _named(chart, title, "; ".join(ends))


def error_bars(classes: pd.DataFrame, title: str = "What became of the answers") -> Chart:
    """One bar per method, divided into the classes of its completions. classes: from `error_classes`."""
    chart, (axes,) = _chart(0.34 * len(classes) + 1.35)
    positions, start = np.arange(len(classes)), np.zeros(len(classes))
    more = cycle(_SERIES[1:])  # a task may have classes of its own
    for reason in classes.columns:
        width = 100 * classes[reason].to_numpy()
        colour = _REASON_COLOURS.get(reason) or next(more)
        axes.barh(positions, width, left=start, height=0.7, color=colour, linewidth=0, label=reason)
        for position, value, left in zip(positions, width, start, strict=True):
            if value >= 9:
                text = f"{value:.0f}"
                axes.text(left + value / 2, position, text, ha="center", va="center", color="white", fontsize=8.5)
        start += width
    axes.set_yticks(positions, classes.index)
    axes.set_ylim(len(classes) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of problems")
    axes.tick_params(left=False)
    handles, _ = axes.get_legend_handles_labels()
    _legend(chart, handles)
    shown = (f"{label}: " + ", ".join(f"{r} {100 * v:.0f} %" for r, v in row.items() if v) for label, row in classes.iterrows())
    return _named(chart, title, "; ".join(shown))


def ratings(table: pd.DataFrame, title: str = "Ratings from pairwise verdicts") -> Chart:
    """Figure 6a of the paper: Elo, and Bradley-Terry beside it, each with its 95 % interval. table: from `judging.rate`."""
    chart, panels = _chart(0.36 * len(table) + 1.3, 1, 2)
    positions, colours = np.arange(len(table)), [COLOURS[role] for role in table["role"]]
    for panel, (name, label) in zip(panels, {"elo": "Elo", "bt": "Bradley–Terry"}.items(), strict=True):
        rating, low, high = (table[column].to_numpy(dtype=float) for column in (name, f"{name}_low", f"{name}_high"))
        panel.hlines(positions, low, high, color=colours, linewidth=1.8)
        panel.scatter(rating, positions, s=26, color=colours, zorder=2)
        panel.set_xlabel(f"{label} rating")
        panel.set_yticks(positions, table["label"] if panel is panels[0] else [])
        panel.set_ylim(len(table) - 0.5, -0.5)
        panel.margins(x=0.08)
        panel.locator_params(axis="x", nbins=4)
        _grid(panel, "x")
    present = [role for role in ROLES if role in set(table["role"]) and role in ROLE_LABELS]
    handles = [Patch(color=COLOURS[role], label=ROLE_LABELS[role]) for role in present]
    _legend(chart, [*handles, Line2D([], [], color=INK, label="95 % interval over questions")], columns=3)
    shown = zip(table["label"], table["elo"], table["bt"], strict=True)
    return _named(chart, title, "; ".join(f"{label}: Elo {elo:.0f}, Bradley–Terry {bt:.0f}" for label, elo, bt in shown))


def super_linear_bars(table: pd.DataFrame, title: str = "What a merge solves beyond its skills") -> Chart:
    """Solved problems of each merge: those that a skill solves too, and those that none does. table: from `super_linearity`."""
    chart, (axes,) = _chart(0.36 * len(table) + 1.5)
    positions = np.arange(len(table))
    n = table["n"].to_numpy(dtype=float)
    merged, only = (100 * table[f"{name}_count"].to_numpy() / n for name in ("merged", "merged_only"))
    axes.barh(positions, merged - only, height=0.66, color=COLOURS["skill"], alpha=0.75, label="a skill alone solves it too")
    red = {"color": COLOURS["learned"], "alpha": 0.8, "label": "only the merge solves it"}
    axes.barh(positions, only, left=merged - only, height=0.66, **red)
    errors = np.maximum([only - 100 * table["low"], 100 * table["high"] - only], 0)
    axes.errorbar(merged, positions, xerr=errors, fmt="none", ecolor=INK, elinewidth=1.4, capsize=3)
    limit = 100 * table["sum_of_skills"].to_numpy(dtype=float) / n
    half = 0.42
    dashed = {"color": INK, "linestyle": (0, (2, 1.5)), "label": "the skills' scores added up"}
    axes.vlines(limit, positions - half, positions + half, **dashed)
    for position, end, value in zip(positions, merged + errors[1], only, strict=True):
        axes.annotate(f"+{value:.1f}", (end, position), (5, 0), textcoords="offset points", va="center", color=INK)
    axes.set_yticks(positions, table.index)
    axes.set_ylim(len(table) - 0.5, -0.5)
    axes.set_xlim(0, max(5.0, float((merged + errors[1]).max()), float(limit.max())) * 1.16)
    axes.set_xlabel("% of problems")
    _grid(axes, "x")
    handles, _ = axes.get_legend_handles_labels()
    handles.append(Line2D([], [], color=INK, marker="|", markersize=7, label="95 % interval of the red part"))
    _legend(chart, handles, columns=2)
    rows = zip(table.index, merged, only, limit, strict=True)
    shown = (f"{label} solves {m:.1f} %, {o:.1f} % that no skill solves (skills added up {s:.1f} %)" for label, m, o, s in rows)
    return _named(chart, title, "; ".join(shown))


def table_one(table: pd.DataFrame, title: str = "Each skill, and both together") -> Chart:
    """The paper's Table 1: per cent right without and with each of two skills, and the gain over the base."""
    chart, (axes,) = _chart(2.3)
    values = 100 * table.to_numpy(dtype=float)
    base = values[0, 0]
    top = max(float(values.max()), 1.0)
    for (row, column), value in np.ndenumerate(values):
        axes.add_patch(Rectangle(
            (column, row), 1, 1, facecolor=COLOURS["static"], alpha=0.08 + 0.5 * value / top, edgecolor=INK, linewidth=0.6
        ))  # fmt: skip
        gain = "" if (row, column) == (0, 0) else f"{value - base:+.1f} points".replace("-", "−")
        axes.text(column + 0.5, row + 0.45, f"{value:.1f} %", ha="center", va="center", fontsize=14, color=INK)
        axes.text(column + 0.5, row + 0.74, gain, ha="center", va="center", fontsize=9, color=INK)
    axes.set(xlim=(0, 2), ylim=(2, 0))
    axes.set_xticks([0.5, 1.5], table.columns)
    axes.set_yticks([0.5, 1.5], table.index)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    cells = (f"{i} and {c}: {100 * table.at[i, c]:.1f} %" for i in table.index for c in table.columns)
    return _named(chart, title, "; ".join(cells))


def forest(table: pd.DataFrame, title: str = "Learned merges against their controls") -> Chart:
    """A panel per section, a line per control, a sign per learned merge: points that it is ahead, with the 95 % interval.

    Colour is `results.differences`' verdict. table: from `controls.table`; at most as many learned
    merges as _MARKERS.
    """
    sections, merges, controls = (list(table.index.unique(level)) for level in ("section", "learned", "control"))
    beside = min(2, len(sections))
    down = -(-len(sections) // beside)
    chart, panels = _chart(down * (0.21 * len(controls) + 0.42) + 1.2, down, beside, sharex=True)
    for number, (panel, section) in enumerate(zip(panels, sections, strict=False)):
        for sign, shift, merge in zip(_MARKERS, np.linspace(-0.2, 0.2, len(merges)), merges, strict=False):
            own = table.xs((section, merge), level=("section", "learned"))
            places = np.array([controls.index(control) for control in own.index])
            points, low, high = (100 * own[name].to_numpy(dtype=float) for name in ("difference", "low", "high"))
            colours = [_VERDICTS[verdict] for verdict in own["verdict"]]
            panel.hlines(places + shift, low, high, color=colours, linewidth=1.2)
            panel.scatter(points, places + shift, s=15, marker=sign, color=colours, zorder=2, linewidth=0)
        panel.axvline(0, color=INK, linewidth=0.9)
        panel.set_yticks(range(len(controls)), controls if number % beside == 0 else [])
        panel.set_ylim(len(controls) - 0.5, -0.5)
        panel.set_title(section, color=INK, fontsize=9.5)
        lowest = number + beside >= len(sections)
        panel.tick_params(labelsize=8.5, labelbottom=lowest)
        panel.set_xlabel("points ahead of the control" if lowest else "", fontsize=9)
        _grid(panel, "x")
    for panel in panels[len(sections) :]:
        panel.remove()
    handles = [Line2D([], [], color=colour, linewidth=3, label=_VERDICT_LABELS[verdict]) for verdict, colour in _VERDICTS.items()]
    named = [describe(merge).label for merge in merges]
    handles += [Line2D([], [], linestyle="", marker=s, color=INK, label=name) for s, name in zip(_MARKERS, named, strict=False)]
    _legend(chart, handles, columns=3)
    told = (f"{describe(merge).label} and {control}, {section}: {100 * row.difference:+.1f}, {row.verdict}"
            for (section, merge, control), row in table.iterrows())  # fmt: skip
    return _named(chart, title, "; ".join(told))


def lines(panels: Mapping[str, Mapping[str, pd.DataFrame]], x: str, y: str, title: str) -> Chart:
    """Small multiples: a panel per entry, in it a line per label; a label has one colour in all of them.

    Tables: indexed by x (whole numbers), with value and, where known, low and high. y: "" where the panels' headings say it.
    """
    labels = list(dict.fromkeys(label for own in panels.values() for label in own))
    colours = dict(zip(labels, cycle((*_SERIES, "#c2569b", "#5d6f86", "#6f9a2a", "#a3623a")), strict=False))
    chart, axes = _chart(2.9 + 0.17 * -(-len(labels) // 3), 1, len(panels), sharey=bool(y))
    told = []
    for panel, (name, own) in zip(axes, panels.items(), strict=True):
        shifts = np.linspace(-0.12, 0.12, len(own)) if len(own) > 1 else [0]
        for shift, (label, table) in zip(shifts, own.items(), strict=True):
            table = table.sort_index()
            at, value = table.index.to_numpy() + shift, table["value"].to_numpy(dtype=float)
            panel.plot(at, value, "o-", color=colours[label], linewidth=1.3, markersize=3)
            if "low" in table:
                low, high = (table[side].to_numpy(dtype=float) for side in ("low", "high"))
                panel.vlines(at, low, high, color=colours[label], linewidth=1, alpha=0.6)
            told.append(f"{name}, {label}: {', '.join(f'{v:.3g} at {k}' for k, v in zip(table.index, value, strict=True))}")
        panel.set_title(name, color=INK, fontsize=9)
        panel.set_xticks(sorted({int(k) for table in own.values() for k in table.index}))
        panel.margins(x=0.12)
        panel.set_xlabel(x, fontsize=9)
        panel.tick_params(labelsize=8.5)
        _grid(panel, "both")
    for panel in axes:  # a limit ends autoscaling, which panels may share
        panel.set_ylim(bottom=min(0, panel.get_ylim()[0]))
    if y:
        chart.supylabel(y, color=INK, fontsize=10)
    handles = [Line2D([], [], color=colour, marker="o", markersize=3, label=label) for label, colour in colours.items()]
    _legend(chart, handles, columns=3)
    return _named(chart, title, "; ".join(told))


def pareto(tables: Mapping[str, pd.DataFrame], cost: str, label: str, title: str) -> Chart:
    """A panel per section, a point per method: the target's score against a cost, to the left and up is better.

    tables: from `atlas.table`. cost: one of its columns. label: what it is. The dotted front joins those that none beats in both.
    """
    beside = min(2, len(tables))
    down = -(-len(tables) // beside)
    chart, panels = _chart(3.4 * down + 0.8 if beside == 1 else 2.7 * down + 0.9, down, beside)
    told = []
    for number, (panel, (name, table)) in enumerate(zip(panels, tables.items(), strict=False)):
        score, paid = 100 * table["score"].to_numpy(dtype=float), table[cost].to_numpy(dtype=float)
        for role in (role for role in ROLES if role in set(table["role"])):
            here = (table["role"] == role).to_numpy()
            panel.plot(paid[here], score[here], "o", color=COLOURS[role], markersize=4.5, alpha=0.8, markeredgewidth=0)
        best = _front(paid, score)
        panel.plot(paid[best], score[best], color=INK, linewidth=1, linestyle=":", drawstyle="steps-post", zorder=0)
        if np.nanmax(paid) > 20:  # merges of no seconds beside those of many
            panel.set_xscale("symlog")
            panel.xaxis.set_major_formatter("{x:g}")
        along = panel.xaxis.get_transform().transform(paid)
        for i in best:
            left = along[i] > (along.min() + along.max()) / 2
            panel.annotate(table["label"].iloc[i], (paid[i], score[i]), (-5 if left else 5, 3), textcoords="offset points",
                           ha="right" if left else "left", color=INK, fontsize=7.5)  # fmt: skip
        panel.set_title(name, color=INK, fontsize=9.5)
        panel.margins(x=0.1, y=0.12)
        panel.set_xlabel(label if number + beside >= len(tables) else "", fontsize=9)
        panel.tick_params(labelsize=8.5)
        _grid(panel, "both")
        leaders = (f"{table['label'].iloc[i]} ({paid[i]:.3g}, {score[i]:.0f} %)" for i in best)
        told.append(f"{name}: not beaten are {', '.join(leaders)}")
    for panel in panels[len(tables) :]:
        panel.remove()
    chart.supylabel("right on the target, %", color=INK, fontsize=10)
    present = [role for role in ROLES if any(role in set(table["role"]) for table in tables.values())]
    dot = {"linestyle": "", "marker": "o", "markersize": 4.5}
    handles = [Line2D([], [], color=COLOURS[role], label=ROLE_LABELS.get(role, role), **dot) for role in present]
    _legend(chart, [*handles, Line2D([], [], color=INK, linestyle=":", label="not beaten in both")], columns=3)
    return _named(chart, title, "; ".join(told))


def format_panels(panels: Mapping[str, pd.DataFrame], guess: float, title: str = "New prompt formats") -> Chart:
    """Figure 10 of the paper: a panel per trained pair, a row per method, a column per test format; colour begins at `guess`.

    panels: heading -> a table of `result_table` whose further scores are formats ("format 3"). guess: what always giving the most
    frequent answer scores. A skill that a pair lacks leaves its row empty there.
    """
    found = [name for name in next(iter(panels.values())).columns if re.fullmatch(r"format \d+", name)]
    names = sorted(found, key=lambda name: int(name.split()[1]))
    if not names:
        raise LabError("These tables have no scores per format; give those of Section 5.4.")
    rows = pd.concat([table[["label", "role"]] for table in panels.values()])
    rows = rows[~rows.index.duplicated()]
    order = sorted(range(len(rows)), key=lambda i: ROLES.index(rows["role"].iloc[i]))  # a later pair's skills go to the others'
    methods = list(rows.index[order])
    chart, axes = _chart(0.27 * len(methods) + 1.5, 1, len(panels))
    told = []
    for place, (panel, (heading, table)) in enumerate(zip(axes, panels.items(), strict=True)):
        for row, column in np.ndindex(len(methods), len(names)):
            if methods[row] not in table.index:
                continue
            value = float(table.at[methods[row], names[column]])
            depth = max(0.0, value - guess) / ((1 - guess) or 1)
            panel.add_patch(Rectangle((column, row), 1, 1, facecolor=COLOURS["static"], alpha=0.6 * depth, linewidth=0))
            panel.text(column + 0.5, row + 0.5, f"{100 * value:.0f}", ha="center", va="center", fontsize=7.5, color=INK)
        panel.set(xlim=(0, len(names)), ylim=(len(methods), 0))
        panel.set_xticks(np.arange(len(names)) + 0.5, [name.removeprefix("format ") for name in names])
        panel.set_yticks(np.arange(len(methods)) + 0.5, rows.loc[methods, "label"] if place == 0 else [])
        panel.set_title(f"trained on {heading}", color=INK, fontsize=9)
        panel.tick_params(length=0)
        means = table[names].astype(float)
        best = means.mean(axis=1).idxmax()
        told.append(f"{heading}: best on average {table.at[best, 'label']}, {100 * means.loc[best].mean():.0f} %")
    legend = f"format of the question; right, %; no colour: not above always the same answer ({100 * guess:.0f} %)"
    chart.supxlabel(legend, color=INK, fontsize=9)
    return _named(chart, title, "; ".join(told))


def recall_bars(table: pd.DataFrame, title: str = "Passages of the gold page found for real questions") -> Chart:
    """A panel per set of questions: recall at each k and retriever, with 95 % intervals. table: from `open_book.recall_table`."""
    sets = list(dict.fromkeys(table["questions"]))
    ks = sorted(int(column.removeprefix("recall_")) for column in table.columns if column.startswith("recall_"))
    chart, panels = _chart(2.7, 1, len(sets))
    shown = []
    for panel, questions in zip(panels, sets, strict=True):
        rows = table[table["questions"] == questions]
        width = 0.8 / len(rows)
        for number, (colour, (_, row)) in enumerate(zip(_SERIES, rows.iterrows(), strict=False)):
            places = np.arange(len(ks)) + (number - (len(rows) - 1) / 2) * width
            recall, low, high = (100 * row[[f"{name}_{k}" for k in ks]].to_numpy(dtype=float) for name in ("recall", "low", "high"))
            panel.bar(places, recall, width=0.9 * width, color=colour, alpha=0.75, label=row["retriever"])
            panel.errorbar(places, recall, yerr=[recall - low, high - recall], fmt="none", ecolor=INK, elinewidth=1.2, capsize=2.5)
            for place, value in zip(places, recall, strict=True):
                panel.text(place, 2, f"{value:.0f}", ha="center", va="bottom", color="white", fontsize=8.5)
            told = ", ".join(f"{value:.0f} % at {k}" for k, value in zip(ks, recall, strict=True))
            shown.append(f"{questions}, {row['retriever']}: {told}")
        panel.set_title(f"{questions}, n = {int(rows['n'].max())}", color=INK, fontsize=10)
        panel.set_xticks(np.arange(len(ks)), [f"first {k}" if k > 1 else "first" for k in ks])
        panel.set_ylim(0, 102)
        _grid(panel, "y")
    panels[0].set_ylabel("recall, % of questions")
    handles, _ = panels[0].get_legend_handles_labels()
    _legend(chart, [*handles, Line2D([], [], color=INK, marker="|", markersize=7, label="95 % interval")])
    return _named(chart, title, "; ".join(shown))


def _front(cost: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Places of what nothing beats, from the cheapest on: whatever costs no more scores less."""
    order = np.lexsort((-score, cost))
    before = np.maximum.accumulate(score[order])
    return order[[i == 0 or score[place] > before[i - 1] for i, place in enumerate(order)]]


def _chart(height: float, rows: int = 1, columns: int = 1, **shared: bool) -> tuple[Chart, list[Axes]]:
    chart = Chart(figsize=(_WIDTH, height), layout="constrained")
    chart.patch.set_alpha(0)
    panels = list(np.ravel(chart.subplots(rows, columns, **shared)))
    for panel in panels:
        panel.patch.set_alpha(0)
        panel.spines[:].set_visible(False)
        panel.tick_params(colors=INK, labelsize=9.5, width=0.6)
        panel.xaxis.label.set_color(INK)
        panel.yaxis.label.set_color(INK)
    return chart, panels


def _named(chart: Chart, title: str, content: str) -> Chart:
    chart.suptitle(title, x=0.01, ha="left", color=INK, fontsize=11.5, fontweight="bold")
    chart.alt = f"{title}. {content}."
    return chart


def _grid(axes: Axes, axis: str) -> None:
    axes.grid(axis=axis, color=INK, alpha=0.22, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)


def _legend(chart: Chart, handles: list, columns: int = 4) -> None:
    if len(handles) > 1:
        chart.legend(
            handles=handles, loc="outside lower left", ncols=columns, frameon=False, labelcolor=INK, fontsize=9,
            handlelength=1.1, handleheight=0.8, columnspacing=1.2, borderpad=0,
        )  # fmt: skip


def _signs(chart: Chart, marks: Mapping) -> None:
    handles = [Line2D([], [], **sign, label=mark) for sign, mark in zip(_SIGNS, marks, strict=False)]
    if handles:
        chart.legend(handles=handles, loc="outside lower left", ncols=3, frameon=False, labelcolor=INK, fontsize=9, borderpad=0)


def _short(value: float) -> str:
    return f"{value:.2f}".replace("0.", ".", 1).replace("-", "−")


def _binned(line: Sequence[float], bins: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """Steps (from 1) and losses, averaged down to at most `bins` points, so that long runs stay small on the page."""
    values = np.asarray(line, dtype=float)
    steps = np.arange(1, len(values) + 1)
    if len(values) <= bins:
        return steps, values
    parts = np.array_split(np.arange(len(values)), bins)
    return np.array([steps[part].mean() for part in parts]), np.array([values[part].mean() for part in parts])
