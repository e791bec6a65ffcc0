import base64
import errno
import gzip
import hashlib
import json
import os
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from lab.errors import LabError
from lab.experiments.presets import PRESETS
from lab.files import PROJECT, content_hash
from lab.merging import METHODS
from lab.merging.oracles import MATCHES
from lab.pages import boards, published, site
from lab.pages.figures import INK
from lab.records import tables
from lab.records.record import load_records, make_record, save_record
from tests.pages.site_pages import HOSTILE, make_results

SVG = f'<svg role="img" aria-label="Bars" xmlns="http://www.w3.org/2000/svg"><text fill="{INK}">60</text></svg>'


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
        assert attributes.get("src", "data:").startswith("data:") or re.fullmatch(r"s5\w*\.svg", attributes["src"])
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
    kind, _, text = image["src"].partition(",")
    svg = unquote(text)
    assert kind == "data:image/svg+xml" and "#" not in text and "\n" not in text
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
    row = {
        "reason": "right",
        "extracted": "<i>7</i>",
        "score": 1.0,
        "completion": f"def solution():\n    return 7 # {HOSTILE}",
    }
    worked = tables.WorkedExample("p<1>", "How many & <why>?", "7", {"CAT <learned>": row})
    page = site.render_page(notebook(code("x", shown(site.examples([worked])._repr_mimebundle_()))), "s5")
    assert_harmless(page)
    assert "return 7 # &lt;script&gt;alert(1)&lt;/script&gt;" in page and "How many &amp; &lt;why&gt;?" in page


def test_a_failed_notebook_says_where(tmp_path):
    nb = notebook(code("a = 1"), code("f()", FAILED, count=2), code("later", count=None))
    marker = new_markdown_cell(
        "<span>An Exception was encountered</span>", metadata={"tags": ["papermill-error-cell-tag"]}
    )
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
    assert site.outcome(notebook(code("a"), cell, crash="The kernel died.")) == site.Outcome(
        False, 2, "The kernel died."
    )


def test_card_and_index(tmp_path):
    records = []
    for method, scores in {"base": [0.0] * 4, "maths": [1.0, 0, 0, 0], "cat": [1.0, 1.0, 1.0, 0.0]}.items():
        empty = {"question": "", "group": "", "prompt": "", "targets": [], "metadata": {}, "completion": "", "extracted": "", "extras": {}}
        rows = [empty | {"id": str(i), "score": s, "reason": "right" if s else "wrong"} for i, s in enumerate(scores)]
        record = make_record(
            rows,
            section="s5",
            preset="embedded",
            method=method,
            seed=0,
            task="t",
            task_version=2,
            key=content_hash(method),
            own={"maths": 0.5},
            seconds={"evaluation": 60.0},
        )
        records.append(save_record(record, rows, tmp_path / "records"))
    card = site.card(records, finding="Merging <helps>.")
    assert card.card["number"] == "75.0\u00a0%" and "4 problems × 1 seed" in card.card["caption"]
    assert "maths skill: 25.0\u00a0%" in card.card["caption"]
    assert "Merging &lt;helps&gt;." in card.html and "3 min" in card.html and "<td>4 of t version 2</td>" in card.html
    other = replace(records[0], key="another", task="other", n=9, seconds={"make": 120.0})
    assert "maths skill" not in site.card(records, "cat").card["caption"]  # asked for by name, it speaks for itself
    more = site.card(records, others=[*records, other], seconds=60.0)
    assert more.card["measured"] == card.card["measured"] + 180 and "4 of t version 2, 9 of other version 2" in more.html
    assert more.card["caption"] == card.card["caption"]
    commits = [replace(other, key=str(i), environment=other.environment | {"commit": f"{i}" * 40}) for i in range(3)]
    assert site.card(records, others=commits).card["code"] == "4 commits, listed at its end"

    nbformat.write(notebook(code("x", FIGURE), code("y", shown(card._repr_mimebundle_()))), tmp_path / "s5_1.ipynb")
    nbformat.write(notebook(code("f()", FAILED)), tmp_path / "s5_2.ipynb")
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "foreign.html").write_text("<p>Not ours</p>")
    index = site.build([tmp_path / "s5_1.ipynb"], tmp_path / "pages", []).read_text()
    index = site.build([tmp_path / "s5_2.ipynb"], tmp_path / "pages", []).read_text()
    assert index.count("<article") == 2 and "foreign" not in index
    assert "75.0\u00a0%" in index and "Merging &lt;helps&gt;." in index and 'href="s5_1.html"' in index
    images = [attributes["src"] for tag, attributes in Elements(index).found if tag == "img"]
    assert_harmless(index)
    assert images and all("var(--ink)" in (tmp_path / "pages" / source).read_text() for source in images)
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


@pytest.mark.parametrize(
    ("seconds", "told"), [(41.6, "42 s"), (720, "12 min"), (11100, "3 h 5 min"), (None, "unknown time")]
)
def test_durations(seconds, told):
    assert site.duration(seconds) == told


PAGES = [
    "coefficients.html",
    "completions-s5_1_math_code.html",
    "completions-s5_4_prompt_formats_1_4.html",
    "formulas.html",
    "leaderboard.html",
    "paper.html",
]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A built site of made-up records, to look at."""
    folder = tmp_path_factory.mktemp("built")
    make_results(folder / "site")
    nbformat.write(notebook(code("x", FIGURE)), folder / "s5_1_math_code.ipynb")
    site.build([folder / "s5_1_math_code.ipynb"], folder / "site", [])
    return folder / "site"


def unpacked(page):
    return json.loads(gzip.decompress(base64.b64decode(re.search(r'id="data">([^<]+)<', page)[1])))


def cells(page, table=0):
    """Rows of a table of a page, each a list of its cells' words."""
    body = re.findall(r"<tbody>(.*?)</tbody>", page, re.DOTALL)[table]
    strip = lambda cell: " ".join(re.sub(r"<[^>]+>", "", cell.replace("<br>", " ")).split())  # noqa: E731
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", body, re.DOTALL)
    return [[strip(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)] for row in rows]


def assert_links_lead_somewhere(folder):
    checked = 0
    for path in Path(folder).glob("*.html"):
        for _, attributes in Elements(path.read_text()).found:
            for name in ("href", "src"):
                target = unquote(attributes.get(name, "").split("#")[0])
                if target and not target.startswith(("data:", "http://", "https://", "mailto:")):
                    assert (Path(folder) / target).exists(), f"{path.name} links to {target}"
                    checked += 1
    assert checked


def test_every_page_is_made_and_every_link_leads_somewhere(pages):
    assert sorted(p.name for p in pages.glob("*.html")) == sorted([*PAGES, "index.html", "s5_1_math_code.html"])
    assert_links_lead_somewhere(pages)
    page = (pages / "s5_1_math_code.html").read_text()
    assert 'href="leaderboard.html"' in page and 'href="completions-s5_1_math_code.html"' in page
    index = (pages / "index.html").read_text()
    assert 'href="coefficients.html#section=s5_1_math_code">Coefficients</a>' in index


def test_the_page_of_formulas_shows_every_method_and_finds_all_equal(pages):
    page = (pages / "formulas.html").read_text()
    rows = cells(page)
    for method in METHODS.values():
        own = [row for row in rows if row[0] == method.label or row[0].startswith(f"{method.label} ")]
        assert own, method.label
    verdicts = {row[-1].partition(";")[0].partition(":")[0] for row in rows if row[1] != "no value"}
    assert verdicts == {"equal", "equal by their definition", "defined otherwise", "equal in distribution"}
    assert page.count("equal with that step as theirs") == sum(not match.offered for match in MATCHES)
    assert "<b>" not in page and ">Formulas</a>" in (pages / "index.html").read_text()


@pytest.mark.parametrize("name", PAGES)
def test_pages_of_records_run_their_own_script_only(pages, name):
    page = (pages / name).read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1]
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")
    assert re.findall(r"'sha256-([^']+)'", policy) == hashes and "script-src 'unsafe" not in policy
    for tag, attributes in Elements(page).found:
        assert not [key for key in attributes if key.startswith("on")]
        assert tag not in ("iframe", "object", "embed", "link", "base", "img")
        assert tag != "script" or attributes in ({}, {"type": "text/plain", "id": "data"})
    assert "alert(1)" not in page and "fetch(" not in page and "url(" not in page


def test_the_leaderboard_is_a_plain_table_with_intervals_and_records(pages):
    page = (pages / "leaderboard.html").read_text()
    rows = {(row[0], row[2].split(" embedded")[0]): row for row in cells(page)}
    cat = rows["CAT", "5.1 Hard maths"]
    assert cat[1].startswith("75.0 (") and cat[4:6] == ["4", "2"] and cat[6] == "50.0 (maths 60.0, code 40.0)"
    assert cat[7:9] == ["32", "1,235"] and cat[9] == "last number 25.0"
    assert cat[10].count("json") == 2 and cat[10].count("rows") == 2
    kept_out = rows["Data mix", "5.1 Hard maths"]
    assert kept_out[1].startswith("50.0 (") and "rows" not in kept_out[10]  # one seed: its record has the interval
    assert ("CAT", "s5_4_prompt_formats 1 4") not in rows and ("CAT", "s5 4 prompt formats 1 4") in rows
    scores = [float(row[1].split()[0]) for row in cells(page) if row[2].startswith("5.1")]
    assert scores == sorted(scores, reverse=True)


def test_completions_lie_in_the_page_problem_by_problem(pages):
    page = (pages / "completions-s5_1_math_code.html").read_text()
    (board,) = unpacked(page)["boards"]
    for record in load_records(pages / "records", "s5_1_math_code"):
        place = next((i for i, run in enumerate(board["runs"]) if run["record"] == boards.place_of(record)), None)
        if record.method == "data_mix":
            assert place is None and "No completions are kept here of: Data mix, seed 0." in page
            continue
        for row, (name, prompt, answer, answers) in zip(record.rows(), board["problems"], strict=True):
            completion, extracted, reason, score, before, extras = answers[place]
            assert (name, answer, completion) == (row["id"], " or ".join(row["targets"]), row["completion"])
            assert (extracted, reason, score, extras) == (row["extracted"], row["reason"], row["score"], row["extras"])
            assert ("" if before is None else board["before"][before]) + prompt == row["prompt"]
    assert len(board["before"]) == 1  # the few-shot base's examples, once for all problems


def test_coefficients_show_ranks_by_their_mean_and_spread(pages):
    shown = unpacked((pages / "coefficients.html").read_text())["boards"]
    runs = {run["method"]: run for run in shown[0]["runs"]}
    assert runs["cat"]["skills"] == [["maths", [[0.25, 0.5]]], ["code", [[0.75, 0.5]]]] and runs["cat"]["kinds"] == [
        "q_proj",
        "up_proj",
    ]
    maths, code_ = runs["rank_cat"]["skills"]
    assert (
        runs["rank_cat"]["ranks"] == 2
        and maths == ["maths", [[0.3, 0.5]], [[0.2, 0.5]], [[0.4, 0.5]]]
        and code_[0] == "code"
    )


def test_published_numbers_stand_beside_ours_and_are_never_guessed(pages):
    rows = {row[0]: row for row in cells((pages / "paper.html").read_text())}
    assert rows["CAT"] == ["CAT", "21.11 %", "", "", rows["CAT"][4], "Figure 4, Table 1"]
    assert re.fullmatch(r"75\.0 % \([\d.]+–[\d.]+; 4 × 2\)", rows["CAT"][4])
    assert rows["CAT, mean of 3 seeds"][1] == "21.63 ± 1.07 %"
    assert rows["CAT, gain over the base"][4] == ""  # the base solves none
    assert rows["data-mix, gain over the math skill"][4] == "+100 % (4 × 1)"
    assert rows["learned minus static CAT"][4] == ""  # never run
    for table in (1, 2, 3):
        assert all(row[1] and not any(row[2:5]) for row in cells((pages / "paper.html").read_text(), table))


@pytest.mark.parametrize(
    ("base", "data", "told"),
    [
        (PRESETS["paper"].base, "hub", "75.0"), (PRESETS["paper"].base, "/manuals+hub", "75.0"),
        (PRESETS["paper"].base, "/other", ""), ("some/other-base", "hub", ""),
    ],
)  # fmt: skip
def test_only_the_real_base_and_data_fill_the_paper_column(tmp_path, base, data, told):
    make_results(tmp_path, preset="paper", base=base, data=data)
    found = site._Site.of(tmp_path)._paper()
    assert cells(found)[4][2].split(" ")[0].replace("\u00a0", "") == told and cells(found)[4][4] == ""


def test_the_paper_agrees_with_itself():
    numbers = {number.what: number.value for number in published.NUMBERS[published.GSM_HARD]}
    base = numbers["base, 8 worked programs (PAL)"]
    for method in ("math skill", "code skill", "CAT"):
        assert 100 * (numbers[method] / base - 1) == pytest.approx(numbers[f"{method}, gain over the base"], abs=1)
    assert 100 * (numbers["data-mix"] / numbers["math skill"] - 1) == pytest.approx(
        numbers["data-mix, gain over the math skill"], abs=1
    )
    assert 100 * (numbers["CAT"] / numbers["data-mix"] - 1) == pytest.approx(numbers["CAT, gain over data-mix"], abs=1)
    assert (
        published.scores("s5_1_math_code")["cat"] == pytest.approx(0.2111)
        and min(published.scores("s5_3_reading", "f1").values()) == 0.028
    )
    assert sum(map(len, published.NUMBERS.values())) == 38


def test_damaged_and_foreign_records_are_named_and_left_out(tmp_path):
    records = make_results(tmp_path)
    first, second, third = [r.path for r in records if r.section == "s5_1_math_code"][:3]
    first.write_text("{")
    second.write_text(second.read_text().replace('"right":0', '"left":0', 1))
    third.with_suffix(".jsonl.gz").write_bytes(b"no gzip")
    (third.parent / "foreign <b>.json").write_text("[1]")
    site.build([], tmp_path, [])
    for name in ("index.html", "leaderboard.html", "completions-s5_1_math_code.html"):
        page = (tmp_path / name).read_text()
        for path in (first.name, second.name, "foreign &lt;b&gt;.json", third.with_suffix(".jsonl.gz").name):
            assert f"s5_1_math_code/{path}" in page
        assert str(tmp_path) not in page
    assert_links_lead_somewhere(tmp_path)


def test_the_same_records_give_the_same_bytes(pages):
    before = {path.name: path.read_bytes() for path in pages.glob("*.html")}
    site.build([], pages, [])
    assert {name: (pages / name).read_bytes() for name in before} == before


def test_another_run_of_a_method_is_told_apart(tmp_path):
    make_results(tmp_path, sections=["s5_1_math_code"])
    make_results(tmp_path, sections=["s5_1_math_code"], salt="again", rank=8)
    (board,), _ = boards.boards(load_records(tmp_path / "records"))
    lines = [line for line in boards.lines(board) if line.method == "cat"]
    assert len({line.name for line in lines}) == 2 and all(
        re.fullmatch(r"CAT \([0-9a-f]{6}\)", line.name) for line in lines
    )
    assert [[r.seed for r in line.records] for line in lines] == [[0, 1], [0, 1]]
    for line in lines:
        assert len({r.parameters["preset"]["rank"] for r in line.records}) == 1


def test_the_index_names_what_was_never_run(tmp_path):
    nbformat.write(notebook(code("x", FIGURE)), tmp_path / "s5_1.ipynb")
    nbformat.write(new_notebook(cells=[new_markdown_cell("# 5.9 *More* <b>")]), tmp_path / "s5_9.ipynb")
    index = site.build(
        [tmp_path / "s5_1.ipynb"], tmp_path / "pages", [tmp_path / "s5_1.ipynb", tmp_path / "s5_9.ipynb"]
    ).read_text()
    missing = index.split("Not run yet")[1]
    assert "5.9 More &lt;b&gt;" in missing and "--only s5_9" in missing and "s5_1" not in missing
    assert [
        path.name for path in (tmp_path / "pages").glob("*.html") if path.name not in ("index.html", "s5_1.html")
    ] == []


def test_a_full_disk_leaves_the_old_pages_whole(pages, tmp_path, monkeypatch):
    pages = shutil.copytree(pages, tmp_path / "site")
    before = {path: path.read_bytes() for path in pages.rglob("*") if path.is_file()}
    make_results(pages, salt="again")  # so that every page would change
    added = {path for path in pages.rglob("*") if path.is_file()} - set(before)
    written = []

    def full(descriptor):
        written.append(descriptor)
        if len(written) > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("lab.files.os.fsync", full)
    with pytest.raises(LabError, match="No space left on device; free some space"):
        site.build([], pages, [])
    after = {path: path.read_bytes() for path in pages.rglob("*") if path.is_file() and path not in added}
    assert after.keys() == before.keys()  # nothing half-written lies about
    assert sum(after[path] != before[path] for path in before) == 2 and all(
        b"</html>" in after[p] for p in pages.glob("*.html")
    )


def test_the_committed_site_is_whole_and_small():
    folder = PROJECT / "results"
    if not (folder / "index.html").exists():
        pytest.skip("no results have been committed yet")
    assert_links_lead_somewhere(folder)
    own = [
        path
        for path in folder.rglob("*")
        if path.is_file() and path.relative_to(folder).parts[0] not in ("quick", "small", "paper")
    ]
    assert sum(path.stat().st_size for path in own) < 25e6 and (folder / "index.html").stat().st_size < 0.25e6
