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
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from lab.errors import LabError
from lab.results import REASONS, ROLES, RunRecord

INK = "#767b84"  # text and axes; pages put their own text colour in its place
COLOURS = {
    "base": "#888d96",
    "skills": "#b9770e",
    "controls": "#9a6dc4",
    "static": "#2f8fd0",
    "routers": "#c2569b",
    "learned": "#d64545",
    "data": "#2a9d6f",
}
_ROLE_LABELS = {
    "skills": "one skill",
    "controls": "control",
    "static": "static merge",
    "routers": "router per token",
    "learned": "learned merge",
    "data": "trained on all data",
}
_REASON_COLOURS = dict(
    zip(REASONS, ("#2a9d6f", "#d64545", "#b9770e", "#9a6dc4", "#2f8fd0", "#888d96", "#5f646d"), strict=True)
)
_SERIES = ("#2f8fd0", "#d64545", "#2a9d6f", "#b9770e", "#9a6dc4", "#888d96")
_DIVERGING = LinearSegmentedColormap.from_list("lab", ["#b35c00", "#f0b562", "#efeeec", "#8fb4e3", "#1d4f9e"])
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
    present = [role for role in ROLES if role in set(table["role"]) and role in _ROLE_LABELS]
    handles = [Patch(color=COLOURS[role], alpha=0.75, label=_ROLE_LABELS[role]) for role in present]
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
        axes.plot(own[here], score[here], "o", color=COLOURS[role], markersize=6, alpha=0.85, label=_ROLE_LABELS.get(role, role))
    order = np.lexsort((-score, -own))  # from the best keeper on: on the line is who scores more than all before
    best = np.maximum.accumulate(score[order])
    front = [i for i, position in enumerate(order) if i == 0 or score[position] > best[i - 1]]
    axes.plot(own[order][front], score[order][front], color=INK, linewidth=1, linestyle=":", zorder=0)
    roles = table["role"].to_numpy()
    leaders = {max(np.flatnonzero(roles == role), key=by.__getitem__) for role in set(roles) for by in (own, score)}
    for i in leaders | set(order[front]):
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


def coefficient_heatmap(record: RunRecord, title: str = "Coefficients of the merge") -> Chart:
    """Coefficients of one run: a panel per skill, rows are layers, columns module kinds; white is an equal share.

    Raises LabError when the record has none.
    """
    if not record.coefficients:
        raise LabError(f"{record.method} has no coefficients to show; choose a concatenation such as cat.")
    skills, modules = record.coefficients["skills"], record.coefficients["modules"]
    values = np.asarray(record.coefficients["values"], dtype=float)
    places = [_layer_and_kind(module) for module in modules]
    layers = sorted({layer for layer, _ in places})
    kinds = sorted({kind for _, kind in places}, key=_kind_order)
    equal = 1 / len(skills)
    reach = max(float(np.abs(values - equal).max()), 1e-3)
    norm = Normalize(equal - reach, equal + reach)
    beside = 2 if len(kinds) <= 8 else 1
    rows = -(-len(skills) // beside)
    chart, panels = _chart(rows * (0.24 * len(layers) + 1.15) + 0.7, rows, min(beside, len(skills)))
    for panel, skill, row in zip(panels, skills, values, strict=False):
        grid = np.full((len(layers), len(kinds)), np.nan)
        for (layer, kind), value in zip(places, row, strict=True):
            grid[layers.index(layer), kinds.index(kind)] = value
        mesh = panel.pcolormesh(np.ma.masked_invalid(grid), cmap=_DIVERGING, norm=norm, edgecolors=INK, linewidth=0.15)
        if len(layers) <= 12 and beside == 2:
            for (y, x), value in np.ndenumerate(grid):
                if np.isfinite(value):
                    ink = "white" if abs(norm(value) - 0.5) > 0.36 else "#15181d"
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
    bar.set_label(f"coefficient ({equal:.2f}: equal shares)", color=INK)
    bar.outline.set_visible(False)
    bar.ax.tick_params(color=INK, labelcolor=INK)
    span = "; ".join(f"{s}: mean {v.mean():.2f}, {v.min():.2f} to {v.max():.2f}" for s, v in zip(skills, values, strict=True))
    return _named(chart, title, f"over {len(layers)} layers and {len(kinds)} kinds of module. {span}")


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
    for reason in classes.columns:
        width = 100 * classes[reason].to_numpy()
        axes.barh(positions, width, left=start, height=0.7, color=_REASON_COLOURS[reason], linewidth=0, label=reason)
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


def super_linear_bars(table: pd.DataFrame, title: str = "What a merge solves beyond its skills") -> Chart:
    """Solved problems of each merge: those that a skill solves too, and those that none does. table: from `super_linearity`."""
    chart, (axes,) = _chart(0.36 * len(table) + 1.5)
    positions = np.arange(len(table))
    n = table["n"].to_numpy(dtype=float)
    merged, only = (100 * table[f"{name}_count"].to_numpy() / n for name in ("merged", "merged_only"))
    axes.barh(positions, merged - only, height=0.66, color=COLOURS["skills"], alpha=0.75, label="a skill alone solves it too")
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


def _chart(height: float, rows: int = 1, columns: int = 1) -> tuple[Chart, list[Axes]]:
    chart = Chart(figsize=(_WIDTH, height), layout="constrained")
    chart.patch.set_alpha(0)
    panels = list(np.ravel(chart.subplots(rows, columns)))
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


def _layer_and_kind(module: str) -> tuple[int, str]:
    """(3, 'q_proj') of 'model.layers.3.self_attn.q_proj'; a module outside the layers counts as layer 0 with its full name."""
    match = re.match(r"(?:.*?\.)?(\d+)\.(.+)$", module)
    return (int(match[1]), match[2].rsplit(".", 1)[-1]) if match else (0, module)


def _kind_order(kind: str) -> tuple:
    usual = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    return (usual.index(kind) if kind in usual else len(usual), kind)


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
