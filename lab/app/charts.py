"""Pictures of alphas: SVG for the page (they take its text colour), and files to take along."""

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, to_rgb

from lab.app.scratch import fresh_folder
from lab.merging.alphas import Grid, short_kind
from lab.pages.figures import COLOURS, INK, Chart, coefficient_heatmap, diverging, ink_on, learning_curves, svg

_COSTS = LinearSegmentedColormap.from_list("costs", ["#1d4f9e", "#8fb4e3", "#efeeec", "#f0a08c", "#b3261e"])
REACH = 1.5  # of alphas: where their colours end, in the mixer and in the plots
_SERIES = ("#2f8fd0", "#d64545", "#2a9d6f", "#b9770e", "#9a6dc4", "#888d96")


def heatmap(values: np.ndarray, grid: Grid, title: str = "Alphas, layer by module") -> Chart:
    shown = np.where(grid.present, values, np.nan)
    record = SimpleNamespace(
        method="merge", coefficients={"skills": grid.skills, "modules": grid.modules, "values": np.nan_to_num(shown)}
    )
    return coefficient_heatmap(record, title, REACH)


def scale(steps: int = 30) -> list[tuple[str, str]]:
    """(colour, ink on it) of alphas from -REACH to REACH, in equal steps."""
    colours = [diverging(2 * i / steps - 1) for i in range(steps + 1)]
    return [(colour, ink_on(to_rgb(colour))) for colour in colours]


def by_layer(values: np.ndarray, grid: Grid) -> Chart:
    """Mean over the modules of each layer, and their range."""
    chart, axes = _chart("Alphas by layer", 2.6)
    layers = [layer for layer in grid.layers if layer is not None]
    for i, skill in enumerate(grid.skills):
        cells = [_cells(values[i], grid, grid.present[i], layer=layer) for layer in layers]
        mean = [c.mean() if len(c) else np.nan for c in cells]
        colour = _SERIES[i % len(_SERIES)]
        axes.plot(layers, mean, color=colour, marker="o", markersize=3.5, label=skill)
        axes.fill_between(
            layers,
            [c.min() if len(c) else np.nan for c in cells],
            [c.max() if len(c) else np.nan for c in cells],
            color=colour,
            alpha=0.15,
            linewidth=0,
        )
    axes.set_xlabel("layer")
    axes.set_ylabel("alpha")
    axes.xaxis.get_major_locator().set_params(integer=True)
    return _finished(chart, axes, "mean and range over each layer's modules")


def by_module(values: np.ndarray, grid: Grid) -> Chart:
    """How the alphas of each kind of module are spread over the layers."""
    chart, axes = _chart("Alphas by kind of module", 2.8)
    width = 0.8 / len(grid.skills)
    for i, skill in enumerate(grid.skills):
        colour = _SERIES[i % len(_SERIES)]
        for x, kind in enumerate(grid.kinds):
            cells = _cells(values[i], grid, grid.present[i], kind=kind)
            if not len(cells):
                continue
            at = x - 0.4 + (i + 0.5) * width
            axes.vlines(at, cells.min(), cells.max(), color=colour, alpha=0.35, linewidth=5)
            axes.plot(
                np.full(len(cells), at), cells, "o", color=colour, markersize=2.6, alpha=0.8, label=None if x else skill
            )
            axes.plot([at - width / 3, at + width / 3], [np.median(cells)] * 2, color=colour, linewidth=1.6)
    axes.set_xticks(range(len(grid.kinds)), [short_kind(k) for k in grid.kinds])
    axes.set_ylabel("alpha")
    return _finished(chart, axes, "a dot per layer; the line is the median")


def drift(pictures: Sequence[tuple[int, np.ndarray]], grid: Grid) -> Chart:
    """How each skill's alphas moved while they were learned: mean over modules, and the middle 80 %."""
    chart, axes = _chart("Drift while learning", 2.6)
    steps = [step + 1 for step, _ in pictures]
    for i, skill in enumerate(grid.skills):
        rows = np.array([values[i][grid.present[i]] for _, values in pictures])
        colour = _SERIES[i % len(_SERIES)]
        axes.plot(steps, rows.mean(1), color=colour, label=skill)
        low, high = np.percentile(rows, [10, 90], axis=1)
        axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.set_xlabel("step")
    axes.set_ylabel("alpha")
    return _finished(chart, axes, "mean over the modules; the band holds 80 % of them")


def loss_curve(losses: Sequence[float]) -> Chart:
    return learning_curves({"loss while learning": list(losses)}, "Learning")


def layer_costs(layers: Sequence, labels: Sequence[str], costs: np.ndarray, factor: float) -> Chart:
    """Heatmap layer x skill of what lowering a layer costs."""
    chart, axes = _chart(f"What a layer is worth (its alphas x {factor:g})", 0.24 * len(layers) + 1.3)
    known = costs[np.isfinite(costs)]
    reach = max(float(np.abs(known).max()), 1e-3) if len(known) else 1.0
    axes.pcolormesh(np.ma.masked_invalid(costs), cmap=_COSTS, vmin=-reach, vmax=reach, edgecolors=INK, linewidth=0.15)
    for (y, x), value in np.ndenumerate(costs):
        if np.isfinite(value):
            ink = "white" if abs(value) > 0.7 * reach else "#15181d"
            axes.text(
                x + 0.5, y + 0.5, f"{value:+.3f}".replace("-", "−"), ha="center", va="center", fontsize=8, color=ink
            )
    axes.set_yticks(np.arange(len(layers)) + 0.5, ["other" if n is None else str(n) for n in layers])
    axes.set_xticks(np.arange(len(labels)) + 0.5, labels)
    axes.invert_yaxis()
    axes.set_ylabel("layer lowered")
    axes.set_xlabel("ΔNLL, nats per token (red: the layer is needed)")
    axes.tick_params(length=0)
    chart.alt = "What each skill loses when one layer is lowered: " + "; ".join(
        f"layer {layer} " + ", ".join(f"{label} {v:+.3f}" for label, v in zip(labels, row, strict=True))
        for layer, row in zip(layers, costs, strict=True)
    )
    return chart


def elo_chart(table) -> Chart:
    chart, axes = _chart("Ratings from blind votes", 0.34 * len(table) + 1.1)
    at = np.arange(len(table))
    spread = np.nan_to_num(np.array([table["rating"] - table["low"], table["high"] - table["rating"]]))
    axes.errorbar(
        table["rating"], at, xerr=spread, fmt="o", color=COLOURS["learned"], ecolor=INK, capsize=3, markersize=5
    )
    axes.set_yticks(at, table.index)
    axes.set_ylim(len(table) - 0.5, -0.5)
    axes.set_xlabel("Elo, 95 % interval")
    axes.grid(axis="x", color=INK, alpha=0.22, linewidth=0.6)
    chart.alt = "Ratings: " + "; ".join(
        f"{name} {row.rating:.0f}" + (f" ({row.low:.0f} to {row.high:.0f})" if row.low == row.low else "")
        for name, row in table.iterrows()
    )
    return chart


def figure(chart: Chart) -> str:
    """HTML of a chart that takes the page's text colour and width."""
    return f'<figure class="chart">{svg(chart).replace(INK, "currentColor")}</figure>'


def files(charts: Sequence[Chart], names: Sequence[str], kind: str) -> list[str]:
    """Write charts as png or svg into a temporary folder; gives the paths."""
    folder = fresh_folder()
    paths = []
    for chart, name in zip(charts, names, strict=True):
        path = folder / f"{name}.{kind}"
        if kind == "svg":
            path.write_text(svg(chart), encoding="utf-8")
        else:
            chart.savefig(path, format="png", dpi=180, facecolor="white")
        paths.append(str(path))
    return paths


def _cells(
    row: np.ndarray, grid: Grid, present: np.ndarray, layer: int | None = None, kind: str | None = None
) -> np.ndarray:
    return np.array(
        [
            value
            for value, there, (at, of) in zip(row, present, grid.places, strict=True)
            if there and (kind is None and at == layer or kind is not None and of == kind)
        ]
    )


def _chart(title: str, height: float):
    chart = Chart(figsize=(5.4, height), layout="constrained")
    chart.patch.set_alpha(0)
    axes = chart.subplots()
    axes.patch.set_alpha(0)
    axes.spines[:].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9.5, width=0.6)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    chart.suptitle(title, x=0.01, ha="left", color=INK, fontsize=11.5, fontweight="bold")
    return chart, axes


def _finished(chart: Chart, axes, content: str) -> Chart:
    axes.grid(color=INK, alpha=0.22, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    handles, _ = axes.get_legend_handles_labels()
    chart.legend(
        handles=handles, loc="outside lower left", ncols=4, frameon=False, labelcolor=INK, fontsize=9, borderpad=0
    )
    chart.alt = f"{chart.get_suptitle()}: {content}."
    return chart
