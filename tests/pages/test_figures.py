import subprocess
import sys
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from lab.errors import LabError
from lab.experiments.candidates import ROLES
from lab.pages import figures
from lab.records.record import REASONS


@pytest.fixture
def table():
    return pd.DataFrame(
        {
            "label": ["Base", "<b>maths</b> & skill", "CAT"],
            "role": ["base", "skill", "learned"],
            "score": [0.0, 0.1, 0.6],
            "low": [0.0, 0.05, 0.5],
            "high": [0.02, 0.2, 0.7],
            "by_seed": [[0.0], [0.08, 0.12], [0.55, 0.65]],
            "n": [500, 500, 500],
            "seeds": [1, 2, 2],
        },
        index=["base", "maths", "cat"],
    )


def record(layers=3, skills=("maths", "code")):
    kinds = ("self_attn.q_proj", "mlp.down_proj")
    modules = [f"model.layers.{layer}.{kind}" for layer in range(layers) for kind in kinds]
    values = [[(row + 1) / 10] * len(modules) for row, _ in enumerate(skills)]
    return SimpleNamespace(method="cat", coefficients={"skills": list(skills), "modules": modules, "values": values})


SUPER = pd.DataFrame(
    [[0.2, 0.1, 0.3, 100, 5, 200, 105, 120.0, True, 500]],
    columns=["merged_only", "low", "high", "merged_only_count", "lost_count", "merged_count", "any_skill_count",
             "sum_of_skills", "super_linear", "n"],
    index=["CAT"],
)  # fmt: skip
TWO_BY_TWO = pd.DataFrame([[0.01, 0.05], [0.02, 0.6]], index=["no maths", "maths"], columns=["no code", "code"])
CLASSES = pd.DataFrame([[0.5, 0.3, 0.2]], columns=["right", "wrong", "no code"], index=["CAT"])


def every_chart(table):
    return [
        figures.method_bars(table),
        figures.coefficient_heatmap(record()),
        figures.learning_curves({"maths skill": [[3.0, 2.0], [3.1, 2.2]], "CAT": [1.0, 0.5, 0.4]}),
        figures.error_bars(CLASSES),
        figures.super_linear_bars(SUPER),
        figures.table_one(TWO_BY_TWO),
        figures.tradeoff(table.assign(own=[0.0, 0.9, 0.5])),
    ]


def test_charts_are_figures_with_title_and_alternative_text(table):
    for chart in every_chart(table):
        assert isinstance(chart, Figure)
        title = chart.get_suptitle()
        assert title and chart.alt.startswith(title) and len(chart.alt) > len(title) + 20


def test_pyplot_stays_out():
    code = "import sys; import lab.pages.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_svg_is_small_valid_and_without_requests(table):
    for chart in every_chart(table):
        text = figures.svg(chart)
        root = ElementTree.fromstring(text)
        assert root.get("role") == "img" and root.get("aria-label") == chart.alt
        assert len(text) < 40_000
        assert "<metadata" not in text and "<script" not in text
        links = {value for element in root.iter() for name, value in element.attrib.items() if name.endswith("href")}
        assert all(link.startswith(("#", "data:image/png")) for link in links)


def test_svg_keeps_text_as_text_and_numbers_near(table):
    root = ElementTree.fromstring(figures.svg(figures.method_bars(table)))
    words = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"Base", "<b>maths</b> & skill", "60.0"} <= words


def test_svg_is_reproducible(table):
    assert figures.svg(figures.method_bars(table)) == figures.svg(figures.method_bars(table))


def test_charts_show_themselves_in_notebooks(table):
    chart = figures.method_bars(table)
    data, metadata = chart._repr_mimebundle_()
    assert data["image/svg+xml"].startswith("<svg") and metadata["image/svg+xml"]["alt"] == chart.alt


def test_colours_stand_out_from_light_and_dark():
    def luminance(colour):
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    dark = luminance("#15181d")
    for colour in [*figures.COLOURS.values(), figures.INK]:
        assert 1.05 / (luminance(colour) + 0.05) >= 3 and (luminance(colour) + 0.05) / (dark + 0.05) >= 3, colour
    assert set(figures.COLOURS) == set(ROLES) and set(figures._REASON_COLOURS) == set(REASONS)


def test_bars_and_seed_dots(table):
    axes = figures.method_bars(table).axes[0]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([0, 10, 60])
    assert sum(len(line.get_xdata()) == 2 and line.get_marker() == "o" for line in axes.lines) == 2


def test_heatmap_places_every_module():
    chart = figures.coefficient_heatmap(record(layers=3, skills=("a", "b", "c")))
    panels = [axes for axes in chart.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == ["a skill", "b skill", "c skill"]
    assert [label.get_text() for label in panels[0].get_xticklabels()] == ["q_proj", "down_proj"]
    assert np.ravel(panels[2].collections[0].get_array()).tolist() == pytest.approx([0.3] * 6)
    assert chart.alt.endswith("a: mean 0.10, 0.10 to 0.10; b: mean 0.20, 0.20 to 0.20; c: mean 0.30, 0.30 to 0.30.")
    with pytest.raises(LabError, match="no coefficients"):
        figures.coefficient_heatmap(SimpleNamespace(method="ties", coefficients=None))


def test_projections_of_one_name_are_two_columns():
    """GPT-2 has a c_proj in attention and one in the MLP; the map once showed only the latter."""
    modules = [f"transformer.h.{layer}.{part}.c_proj" for layer in range(2) for part in ("attn", "mlp")]
    found = SimpleNamespace(method="cat", coefficients={"skills": ["a"], "modules": modules, "values": [[1.0, 2.0, 3.0, 4.0]]})
    layers, projections, grids = figures.coefficient_grids(found)
    assert (layers, projections) == ([0, 1], ["attn.c_proj", "mlp.c_proj"]) and grids[0].tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_long_curves_are_thinned_without_moving():
    steps, means = figures._binned(np.arange(1, 5001))
    assert len(steps) == 80 and means == pytest.approx(steps)
    with pytest.raises(LabError, match="no losses"):
        figures.learning_curves({})
