import base64
import re
from html.parser import HTMLParser

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from lab import results, site
from lab.errors import LabError
from lab.figures import INK
from lab.files import PROJECT, content_hash

SVG = f'<svg role="img" aria-label="Bars" xmlns="http://www.w3.org/2000/svg"><text fill="{INK}">60</text></svg>'
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)><b onclick=alert(3)>bold</b>"


class Elements(HTMLParser):
    """All elements of a page, to look for what a browser would act on."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def code(source, *outputs, tags=(), count=1):
    cell = new_code_cell(source, outputs=list(outputs), execution_count=count)
    cell.metadata["tags"] = list(tags)
    return cell


def shown(data, metadata=None):
    return new_output("display_data", data, metadata=metadata or {})


def notebook(*cells, **lab):
    nb = new_notebook(cells=[new_markdown_cell("# 5.1 *Hard* maths\n\nWhat to expect."), *cells])
    nb.metadata["lab"] = {
        "seconds": 130.0,
        "parameters": {"preset": "embedded", "seeds": [0, 1]},
        "environment": {"device": "Test CPU", "cores": 2, "commit": "0123456789abcdef", "dirty": True},
    } | lab
    return nb


FIGURE = shown({"image/svg+xml": SVG, "text/plain": "Bars"}, {"image/svg+xml": {"alt": 'Bars "of" <methods>'}})
TRACEBACK = ["\x1b[31mLabError\x1b[0m <here>"]
FAILED = new_output("error", ename="LabError", evalue="The manual <m.txt> is empty.", traceback=TRACEBACK)


def assert_harmless(page):
    elements = Elements(page).found
    for tag, attributes in elements:
        assert not [name for name in attributes if name.startswith("on")]
        assert tag not in ("iframe", "object", "embed", "link", "base", "form", "svg")
        assert tag != "script" or attributes == {"type": "application/json", "id": "card"}
        assert attributes.get("src", "data:").startswith("data:")
        assert not attributes.get("href", "").startswith(("javascript:", "data:"))
    assert "url(" not in page and "@import" not in page and "//cdn" not in page


def test_a_page_shows_text_tables_figures_and_code():
    style = "<style scoped>td {color: red}</style>"
    table = shown({"text/html": style + '<table class="dataframe"><thead><tr><th>a</th></tr></thead></table>'})
    result = new_output("execute_result", {"text/html": "<p>an execute result</p>"}, execution_count=1)
    text = new_markdown_cell("Some `code` and a [link](x.html).")
    page = site.render_page(notebook(text, code("answer = 42", table, FIGURE, result)), "s5")
    assert "an execute result" in page
    tags = {tag for tag, _ in Elements(page).found}
    assert {"table", "thead", "th", "details", "figure", "h1", "code", "a"} <= tags
    assert "color: red" not in page
    commit = "commit 0123456789, with uncommitted changes"
    for fact in ("embedded", "seeds 0, 1", "2 min", "Test CPU, 2 cores", commit, "ran to its end"):
        assert fact in page
    assert "Hard maths · Soup Lab" in page
    assert_harmless(page)


def test_a_page_does_not_tell_where_the_project_lies():
    warning = new_output("stream", name="stderr", text=f"{PROJECT}/lab/x.py:3: UserWarning: careful\n")
    page = site.render_page(notebook(code("x", warning)), "s")
    assert str(PROJECT) not in page and "lab/x.py:3: UserWarning" in page


def test_figures_become_images_with_alternative_text_in_the_pages_ink():
    page = site.render_page(notebook(code("f", FIGURE)), "s5")
    (image,) = [attributes for tag, attributes in Elements(page).found if tag == "img"]
    assert image["alt"] == 'Bars "of" <methods>'
    svg = base64.b64decode(image["src"].split(",")[1]).decode()
    assert "var(--ink)" in svg and INK not in svg and "prefers-color-scheme" in svg


@pytest.mark.parametrize(
    "cell",
    [
        code("x", shown({"text/html": HOSTILE + '<a href="javascript:alert(4)">x</a><img src="https://host/x.png">'})),
        code("x", shown({"text/plain": HOSTILE})),
        code("x", shown({"text/markdown": HOSTILE + "[x](javascript:alert(4)) ![x](https://host/x.png)"})),
        code("x", shown({"image/svg+xml": SVG.replace("<text", "<script>alert(1)</script><text")})),
        code("x", shown({"application/javascript": "alert(1)", "text/plain": "x"})),
        code("x", new_output("stream", name="stdout", text=HOSTILE)),
        code("x", new_output("stream", name="stderr", text=HOSTILE)),
        code("x", new_output("error", ename="E", evalue=HOSTILE, traceback=[HOSTILE])),
        code(f"# {HOSTILE}"),
        code("x", shown({"text/plain": "x", site.CARD_TYPE: {"number": HOSTILE, "finding": "</script>" + HOSTILE}})),
        new_markdown_cell("# " + HOSTILE + "\n" + HOSTILE + "\n\n" + '<iframe src="https://host"></iframe>'),
    ],
)
def test_nothing_in_a_notebook_becomes_live(cell, tmp_path):
    nb = notebook(cell)
    if cell.cell_type == "markdown":
        nb.cells = [cell]
    page = site.render_page(nb, "s5")
    assert_harmless(page)
    (tmp_path / "s5.html").write_text(page)
    assert_harmless(site.render_index(tmp_path))


def test_completions_are_shown_exactly_and_as_text():
    row = {"reason": "right", "extracted": "<i>7</i>", "score": 1.0, "completion": f"def solution():\n    return 7 # {HOSTILE}"}
    worked = results.WorkedExample("p<1>", "How many & <why>?", "7", {"CAT <learned>": row})
    page = site.render_page(notebook(code("x", shown(site.examples([worked])._repr_mimebundle_()))), "s5")
    assert_harmless(page)
    assert "return 7 # &lt;script&gt;alert(1)&lt;/script&gt;" in page and "How many &amp; &lt;why&gt;?" in page


def test_a_failed_notebook_says_where(tmp_path):
    nb = notebook(code("a = 1"), code("f()", FAILED, count=2), code("later", count=None))
    marker = new_markdown_cell("<span>An Exception was encountered</span>", metadata={"tags": ["papermill-error-cell-tag"]})
    nb.cells.insert(0, marker)
    assert site.outcome(nb) == site.Outcome(False, 2, "The manual <m.txt> is empty.")
    page = site.render_page(nb, "s5")
    assert 'This run failed in <a href="#cell-2">cell 2</a>' in page and 'id="cell-2"' in page
    assert "The manual &lt;m.txt&gt; is empty." in page and "An Exception was encountered" not in page
    (tmp_path / "s5.html").write_text(page)
    index = site.render_index(tmp_path)
    assert "1 of 1 section failed" in index and "The manual &lt;m.txt&gt; is empty." in index


def test_outcomes():
    assert site.outcome(notebook(code("a"), code("", count=None))) == site.Outcome(True)
    plain = new_output("error", ename="KeyError", evalue="'x'", traceback=[])
    assert site.outcome(notebook(code("a", plain))).error == "KeyError: 'x'"
    assert site.outcome(notebook(code("a"), code("b", count=None))).ok is False
    cell = code("b", count=None)
    cell.metadata["papermill"] = {"start_time": "2026-01-01T00:00:00"}
    assert site.outcome(notebook(code("a"), cell, crash="The kernel died.")) == site.Outcome(False, 2, "The kernel died.")


def test_card_and_index(tmp_path):
    records = []
    for method, scores in {"base": [0.0] * 4, "maths": [1.0, 0, 0, 0], "cat": [1.0, 1.0, 1.0, 0.0]}.items():
        empty = {"prompt": "", "completion": "", "extracted": "", "answer": "", "extras": {}}
        rows = [empty | {"id": str(i), "score": s, "reason": "right" if s else "wrong"} for i, s in enumerate(scores)]
        record = results.make_record(rows, section="s5", preset="embedded", method=method, seed=0, task="t", task_version=2,
                                     key=content_hash(method), own={"maths": 0.5}, seconds={"evaluation": 60.0})  # fmt: skip
        records.append(results.save_record(record, rows, tmp_path / "records"))
    card = site.card(records, "cat", "Merging <helps>.")
    assert card.card["number"] == "75.0\u00a0%" and "4 problems × 1 seed" in card.card["caption"]
    assert "maths skill: 25.0\u00a0%" in card.card["caption"]
    assert "Merging &lt;helps&gt;." in card.html and "3 min" in card.html and "t version 2" in card.html

    nbformat.write(notebook(code("x", FIGURE), code("y", shown(card._repr_mimebundle_()))), tmp_path / "s5_1.ipynb")
    nbformat.write(notebook(code("f()", FAILED)), tmp_path / "s5_2.ipynb")
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "foreign.html").write_text("<p>Not ours</p>")
    index = site.build([tmp_path / "s5_1.ipynb"], tmp_path / "pages").read_text()
    index = site.build([tmp_path / "s5_2.ipynb"], tmp_path / "pages").read_text()
    assert index.count("<article") == 2 and "foreign" not in index
    assert "75.0\u00a0%" in index and "Merging &lt;helps&gt;." in index and 'href="s5_1.html"' in index
    assert_harmless(index)
    links = [attributes["href"].split("#")[0] for tag, attributes in Elements(index).found if tag == "a"]
    assert links and all((tmp_path / "pages" / link).exists() for link in links)


def test_the_headline_figure_is_the_tagged_one():
    other = shown({"image/svg+xml": SVG.replace("60", "70")}, {"image/svg+xml": {"alt": "Other"}})
    assert site._headline_figure(notebook(code("a", other), code("b", FIGURE)))[1] == "Other"
    assert site._headline_figure(notebook(code("a", other), code("b", FIGURE, tags=["headline"])))[1].startswith("Bars")
    assert site._headline_figure(notebook(code("a"))) is None


def test_progress_bars_leave_their_last_state():
    stream = new_output("stream", name="stderr", text="10 %\r50 %\r100 %\n")
    page = site.render_page(notebook(code("x", stream)), "s5")
    assert "100 %" in page and "50 %" not in page


def test_a_damaged_notebook_is_told(tmp_path):
    (tmp_path / "s5.ipynb").write_text("{")
    with pytest.raises(LabError, match="missing or damaged"):
        site.build([tmp_path / "s5.ipynb"], tmp_path)
    assert not list(tmp_path.glob("*.html"))


def test_pages_follow_light_and_dark_and_stay_small():
    page = site.render_page(notebook(code("x = 1", FIGURE)), "s5")
    assert "prefers-color-scheme: dark" in page and 'name="viewport"' in page
    assert re.search(r"default-src 'none'", page) and len(page) < 20_000


@pytest.mark.parametrize(("seconds", "told"), [(41.6, "42 s"), (720, "12 min"), (11100, "3 h 5 min"), (None, "unknown time")])
def test_durations(seconds, told):
    assert site.duration(seconds) == told
