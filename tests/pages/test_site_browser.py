"""The site in a real browser, from disk, offline: what is asked for, keys, phones, scripts off."""

import pytest

from lab.pages import site
from tests.app.test_browser import CHROMIUM, Browser
from tests.pages.site_pages import HOSTILE, make_results

pytestmark = pytest.mark.skipif(
    CHROMIUM is None,
    reason="no chromium here: install Debian's package `chromium` to run the browser tests of the site",
)
PAGES = {
    "index.html": "$('h1')",
    "leaderboard.html": "$('#count').textContent",
    "paper.html": "$('table')",
    "formulas.html": "$('table')",
    "completions-s5_1_math_code.html": "$('#shown article')",
    "coefficients.html": "$('#shown table')",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    make_results(folder)
    site.build([], folder)
    return folder


@pytest.fixture(scope="module")
def browser():
    browser = Browser()
    yield browser
    browser.close()


@pytest.fixture
def go(browser, folder):
    """Opens a page anew and waits until it is there; the browser as it was afterwards."""

    def go(page, ready=""):
        browser.send("Page.navigate", url="about:blank")
        browser.send(
            "Page.navigate",
            url=(folder / page.split("#")[0]).as_uri() + ("#" + page.split("#")[1] if "#" in page else ""),
        )
        browser.wait(f"location.href.includes({page.split('#')[0]!r}) && ({ready or PAGES[page.split('#')[0]]})")
        return browser

    browser.size(1200, 800)
    yield go
    browser.send("Emulation.setScriptExecutionDisabled", value=False)


def press(browser, key, code=0):
    for kind in ("keyDown", "keyUp"):
        text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
        browser.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)


def choose(browser, field, value):
    browser.js(
        f"(() => {{ const e = $({field!r}); e.value = {value!r}; if (e.value !== {value!r}) throw 'no such choice';"
        "e.dispatchEvent(new Event('input', {bubbles: true})); e.dispatchEvent(new Event('change', {bubbles: true})); })()"
    )


def test_nothing_but_the_page_itself_is_asked_for(go, browser):
    browser.requested.clear()
    for page in PAGES:
        go(page)
    asked = [url for url in browser.requested if not url.startswith(("data:", "about:", "blob:"))]
    assert len(asked) == len(PAGES) and all(url.startswith("file:") for url in asked)
    assert browser.errors == []


@pytest.mark.parametrize("page", PAGES)
def test_a_phone_scrolls_downwards_only(go, browser, page):
    browser.size(400, 800, phone=True)
    go(page)
    assert browser.js("document.documentElement.scrollWidth") <= 400


def test_the_leaderboard_sorts_and_filters_by_keys(go):
    browser = go("leaderboard.html")
    scores = "$$('tbody tr').filter(r => !r.hidden).map(r => Number(r.cells[1].dataset.value))"
    browser.js("$$('thead button')[1].focus()")
    press(browser, "Enter", 13)
    assert browser.js(scores) == sorted(browser.js(scores), reverse=True)
    assert browser.js("$$('thead th')[1].getAttribute('aria-sort')") == "descending"
    press(browser, "Enter", 13)
    assert browser.js(scores) == sorted(browser.js(scores))
    press(browser, "Tab", 9)
    press(browser, "Enter", 13)
    assert browser.js("$$('[aria-sort]').map(h => [h.textContent, h.getAttribute('aria-sort')])") == [
        ["section", "ascending"]
    ]
    choose(browser, "#role", "learned merge")
    assert browser.js("$('#count').textContent") == "4 of 14 rows"
    choose(browser, "#section", "s5 1 math code: embedded, 4 problems of hard math code")
    browser.js("$('#text').focus()")
    browser.send("Input.insertText", text="per rank")
    assert browser.wait("$('#count').textContent.startsWith('1 of')") and browser.js(scores) == [0.25]
    browser.click("button", "Show all")
    browser.wait("$('#count').textContent === '14 rows'")


def test_without_scripts_the_leaderboard_is_a_table_and_the_rest_says_where_to_look(go, browser):
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    go("leaderboard.html", "$('table')")
    assert browser.js("$$('tbody tr').length") == 14 and browser.js("$('#filters').getClientRects().length") == 0
    go("completions-s5_1_math_code.html", "$('#note')")
    assert "records/s5_1_math_code" in browser.js("$('#note').innerText")


def test_completions_are_chosen_by_keys_filters_and_seeds(go, browser):
    go("completions-s5_1_math_code.html")
    assert browser.js("$('#method').value") == "CAT"
    browser.js("$('#problem').focus()")
    press(browser, "ArrowDown", 40)
    browser.wait("$('#shown h2').textContent === 'hard-1'")
    assert "Question: second?" in browser.js("$('#shown .prompt').textContent")
    labels = browser.js("$$('#shown article h3').map(e => e.textContent)")
    assert labels[0] == "CAT" and {"Base", "Few-shot base", "maths skill", "code skill"} < set(labels)
    assert browser.js("$$('#shown details pre').map(e => e.textContent)") == ["Question: how?\nProgram: so."]
    choose(browser, "#outcome", "only")
    assert browser.js("[...$('#problem').options].map(o => o.value)") == ["hard-1", "hard-2"]
    choose(browser, "#outcome", "=no code")
    assert browser.js("[...$('#problem').options].map(o => o.value)") == ["hard-3"]
    choose(browser, "#outcome", "lost")
    browser.wait("$('#shown').textContent.includes('No problem fits')")
    choose(browser, "#outcome", "")
    choose(browser, "#seed", "1")
    shown = browser.js(
        "Object.fromEntries($$('#shown article').map(a => [a.querySelector('h3').textContent, a.innerText]))"
    )
    assert "cat 1" in shown["CAT"] and "base 0" in shown["Base"]
    browser.js("$('#roles input[value=base]').click()")
    browser.wait("!$$('#shown h3').some(e => e.textContent === 'Base')")
    browser.click("#next")
    assert browser.js("location.hash") == "#seed=1&method=CAT&outcome=&problem=hard-1"


def test_an_address_leads_to_its_problem(go, browser):
    go("completions-s5_1_math_code.html#seed=1&method=maths+skill&outcome=not&problem=hard-2")
    values = [browser.js(f"$('#{field}').value") for field in ("seed", "method", "outcome", "problem")]
    assert values == ["1", "maths skill", "not", "hard-2"]


def test_what_a_model_wrote_stays_text(go, browser):
    go("completions-s5_1_math_code.html#problem=hard-3")
    assert browser.js("$('#shown').textContent").count(HOSTILE) > 4
    assert browser.js("$$('#shown img, #shown script, #shown b[onclick]').length") == 0


def test_coefficients_are_drawn_for_a_method_and_a_seed(go, browser):
    go("coefficients.html#section=s5_4_prompt_formats_1_4")
    assert browser.js("$('#board').selectedOptions[0].textContent").startswith("s5 4 prompt formats 1 4")
    assert browser.js("$$('#shown tbody td').map(e => e.textContent)") == ["0.25", "0.50", "0.75", "0.50"]
    colours = browser.js("$$('#shown tbody td').map(e => e.style.backgroundColor)")
    assert colours[1] == colours[3] and len(set(colours)) == 3
    choose(browser, "#method", "CAT per rank")
    assert browser.js("$('#shown tbody td').textContent") == "0.300.20 to 0.40"
    assert browser.js("$('#shown a').getAttribute('href')").startswith(
        "records/s5_4_prompt_formats_1_4/rank_cat-seed0-"
    )


def test_an_old_browser_is_told(go, browser):
    number = browser.send("Page.addScriptToEvaluateOnNewDocument", source="delete window.DecompressionStream")[
        "identifier"
    ]
    try:
        go("coefficients.html", "$('#note')")
        browser.wait("$('#note').textContent.includes('a browser from 2023 or later can')")
    finally:
        browser.send("Page.removeScriptToEvaluateOnNewDocument", identifier=number)
