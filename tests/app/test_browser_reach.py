"""The app in a real browser: that every control can be reached, read and told apart, and that a thing has one name and one colour."""

import dataclasses
import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import app
from lab.app.controls import control
from lab.app.learning import learnable
from lab.app.server import Server
from lab.lora.adapter import LoraAdapter, LoraFactors
from lab.lora.peft_io import save
from lab.merging import METHODS, schema
from tests.app.test_browser import CHROMIUM, Browser

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: install Debian's package `chromium`")
TABS = ("Compare", "Set", "Learn", "Plots", "Take home", "Load", "Results")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with Server(app.build_app(files=tmp_path_factory.mktemp("app"), device="cpu")) as server:
        yield server.url


@pytest.fixture(scope="module")
def browser():
    browser = Browser()
    yield browser
    browser.close()


def test_every_generated_control_is_told_that_it_can_be_edited():
    for method in METHODS.values():
        assert [p.name for p in method.parameters if control(p).interactive is not True] == []


def pick(browser, menu: str, entry: str):
    """An entry of a menu, clicked; typing its name alone would also find others that hold it."""
    browser.click(f"{menu} input")
    browser.js(f"$('{menu} input').select()")
    browser.send("Input.insertText", text=entry)
    browser.click(f"[role=option][aria-label={json.dumps(entry, ensure_ascii=False)}]")


def test_every_control_of_every_method_can_be_edited(browser, address):
    """Each method is chosen as a person does; nothing that it shows is dead."""
    browser.open(address)
    learned = {m.name for m in learnable()}
    for tab, menu, place in (("Set", "#method", "#set-parameters"), ("Learn", "#learn-method", "#learn-parameters")):
        browser.tab(tab)
        for method in METHODS.values():
            wanted = [p for p in schema(method.name) if tab == "Set" or p.name != "seed"]
            if (method.name in learned) != (tab == "Learn") or not wanted:
                continue
            pick(browser, menu, method.label)
            inputs = f"$$('{place}.of-{method.name} :is(input, textarea)')"
            browser.wait(f"{inputs}.length >= {len(wanted)}")
            assert browser.js(f"{inputs}.filter(e => e.disabled || e.readOnly).map(e => e.ariaLabel || e.outerHTML)") == []
    browser.tab("Set")
    pick(browser, "#method", "TIES")
    browser.type("#set-parameters.of-ties input[type=number]", "0.3")
    browser.click("#add-method", "TIES")
    browser.tab("Compare")
    browser.wait("$$('#columns label').some(e => e.innerText.includes('TIES (density 0.3)'))")


def at(browser, selector: str) -> tuple[float, float]:
    return tuple(browser.js(f"(() => {{ const r = $({selector!r}).getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2] }})()"))


def press(browser, selector: str, to: str = "", modifiers: int = 0):
    """A press on one cell, slowly drawn to another, and let go. modifiers: 8 is shift."""
    (x, y), (u, v) = at(browser, selector), at(browser, to or selector)
    steps = [("mousePressed", x, y, 1), *(("mouseMoved", x + (u - x) * i / 8, y + (v - y) * i / 8, 1) for i in range(9)), ("mouseReleased", u, v, 0)]
    for kind, left, top, held in steps:
        browser.send("Input.dispatchMouseEvent", type=kind, x=left, y=top, button="left", buttons=held, clickCount=1, modifiers=modifiers)


def test_a_drag_that_begins_on_chosen_text_selects_cells(browser, address):
    """The text of a cell that was clicked is selected, and browsers drag selected text."""
    browser.open(address)
    press(browser, "#mixer [data-cell='1/1/0']")
    browser.wait("document.activeElement.dataset.cell === '1/1/0'")
    assert browser.js("document.activeElement.selectionEnd - document.activeElement.selectionStart") > 0
    press(browser, "#mixer [data-cell='1/1/0']", "#mixer [data-cell='1/3/2']")
    browser.wait("$('#mixer .selection .count').innerText === '9 cells'")
    assert browser.js("document.activeElement.dataset.cell || ''") == ""
    press(browser, "#mixer [data-cell='1/0/4']", "#mixer [data-cell='1/0/5']")  # and again
    browser.wait("$('#mixer .selection .count').innerText === '2 cells'")


def test_shift_click_selects_from_the_cell_clicked_before(browser, address):
    browser.open(address)
    press(browser, "#mixer [data-cell='0/1/1']")
    press(browser, "#mixer [data-cell='0/2/4']", modifiers=8)
    browser.wait("$('#mixer .selection .count').innerText === '8 cells'")
    browser.click("#mixer section[data-skill=code] thead th button", "up")
    browser.wait("$('#mixer .selection .count').innerText === '14 cells'")  # a column's head adds its cells
    browser.slide("#mixer .selection input[type=range]", 0.45)
    browser.wait("$('#mixer [data-cell=\"0/2/4\"]').value === '.45' && $('#mixer [data-cell=\"1/5/5\"]').value === '.45'")


@pytest.fixture(scope="module")
def deep(tmp_path_factory, tokenizer):
    """Base and two skills of 32 layers."""
    folder, sizes = tmp_path_factory.mktemp("deep"), {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=len(tokenizer), num_hidden_layers=32, num_key_value_heads=2, tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, **sizes,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    kinds = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
    modules = {f"model.layers.{i}.{kind}": LoraFactors(torch.ones(2, 16), torch.ones(16, 2), 1.0) for i in range(32) for kind in kinds}
    skill = LoraAdapter("first", str(folder / "base"), modules)
    for name in ("first", "second"):
        save(folder / name, dataclasses.replace(skill, name=name))
    given = [f"{name}={folder / name}" for name in ("first", "second")]
    with Server(app.build_app(str(folder / "base"), given, files=folder / "app", device="cpu")) as server:
        yield server.url


@pytest.mark.parametrize("height", [900, 650])
def test_slider_undo_and_use_stay_in_view_on_32_layers(browser, deep, height):
    browser.size(1280, height)
    browser.open(deep)
    for cell in ("0/0/0", "0/31/2", "1/31/2"):
        browser.js(f"$('#mixer [data-cell=\"{cell}\"]').scrollIntoView({{block: 'center', behavior: 'instant'}})")
        press(browser, f"#mixer [data-cell='{cell}']", f"#mixer [data-cell='{cell[:-1]}1']")
        browser.wait("$('#mixer .selection.on .count').innerText === '2 cells'")
        for wanted in ("#mixer .selection input[type=range]", "#undo", "#use-a"):
            assert browser.js(
                f"(() => {{ const e = $({wanted!r}), r = e.getBoundingClientRect(), there = document.elementFromPoint(r.x + r.width / 2, r.y + r.height / 2);"
                f"return r.top >= 0 && r.bottom <= innerHeight && Boolean(there) && (e.contains(there) || there.contains(e)); }})()"
            ), (cell, wanted)
    browser.size(1400, 900)


def test_a_number_has_one_colour_in_mixer_and_plots(browser, address):
    browser.open(address)
    browser.tab("Set")
    browser.type("#rules textarea", "maths: 0.3; code: -0.5; code layers 0: 1.2")
    browser.click("#apply-rules")
    browser.wait("$('#mixer [data-cell=\"1/0/0\"]').value === '1.2'")
    browser.tab("Plots")
    browser.wait("$$('#pictures svg').length >= 3")
    fills = browser.js("[...new Set($$('#pictures figure:first-child svg path').map(p => getComputedStyle(p).fill))]")
    for cell in ("0/0/0", "1/3/0", "1/0/0"):
        assert browser.js(f"getComputedStyle($('#mixer [data-cell=\"{cell}\"]')).backgroundColor") in fills
    assert browser.js("$('#mixer .legend').innerText").split() == ["alpha", "≤", "−1.5", "≥", "1.5"]


CONTRAST = """(() => {
  const parse = (c) => { const n = c.match(/[\\d.]+/g).map(Number); return [n[0], n[1], n[2], n.length > 3 ? n[3] : 1]; };
  const over = (a, b) => [0, 1, 2].map((i) => a[i] * a[3] + b[i] * (1 - a[3])).concat(1);
  const light = (c) => [0.2126, 0.7152, 0.0722].reduce((sum, w, i) => { const v = c[i] / 255; return sum + w * (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); }, 0);
  const behind = (e) => { const layers = []; for (; e; e = e.parentElement) { const s = getComputedStyle(e); if (s.backgroundImage !== 'none') return null; layers.push(parse(s.backgroundColor)); if (layers[layers.length - 1][3] === 1) break; } return layers.reverse().reduce((c, l) => over(l, c), [255, 255, 255, 1]); };
  const found = [];
  for (const e of document.querySelectorAll('.gradio-container *')) {
    const field = e.matches('input:not([type=range], [type=radio], [type=checkbox], [type=file]), textarea');
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own && !field || e.closest('svg, [disabled]') || !e.getClientRects().length) continue;
    const style = getComputedStyle(e); if (style.visibility === 'hidden' || style.opacity === '0') continue;
    const ground = behind(e); if (!ground) continue;
    const colours = [style.color]; if (field && e.placeholder) colours.push(getComputedStyle(e, '::placeholder').color);
    for (const colour of colours) {
      const [a, b] = [light(over(parse(colour), ground)), light(ground)].sort((x, y) => y - x), ratio = (a + 0.05) / (b + 0.05);
      if (ratio < 4.5) found.push(`${ratio.toFixed(2)} ${colour} on ${ground.slice(0, 3)}: ${e.tagName} ${e.className} ${(e.value || e.textContent).trim().slice(0, 40)}`);
    }
  }
  return [...new Set(found)];
})()"""
UNNAMED = """$$('.gradio-container :is(input, textarea, select, button)').filter((e) => e.getClientRects().length || e.type === 'file')
  .filter((e) => !(e.ariaLabel || '').trim() && !(e.labels && [...e.labels].some((l) => l.textContent.trim())) && !(e.tagName === 'BUTTON' && e.textContent.trim()) && !e.title && !e.getAttribute('aria-labelledby'))
  .map((e) => e.outerHTML.slice(0, 160))"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_all_text_stands_out_and_all_inputs_have_names(browser, address, dark):
    browser.open(address)
    faults = {}
    for tab in TABS:
        browser.tab(tab)
        browser.wait("!document.querySelector('.generating, .progress-text')")
        if tab == "Results":
            browser.wait("$$('#browser details.question').length > 5")
        browser.js(f"document.body.classList.toggle('dark', {str(dark).lower()})")
        browser.js("new Promise((go) => setTimeout(go, 600))")  # colours glide
        found = browser.js(CONTRAST) + browser.js(UNNAMED)
        if found:
            faults[tab] = found
    assert not faults, json.dumps(faults, indent=1, ensure_ascii=False)


def test_a_chosen_radio_button_is_seen_under_the_mouse(browser, address):
    browser.open(address)
    x, y = at(browser, "#kind input:checked")
    browser.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    browser.wait("$('#kind input:checked').matches(':hover')")
    browser.js("new Promise((go) => setTimeout(go, 400))")
    assert browser.js("getComputedStyle($('#kind input:checked')).backgroundColor") not in ("rgb(255, 255, 255)", "rgba(0, 0, 0, 0)")


def test_right_and_wrong_differ_without_colour(browser, address):
    browser.open(address)
    browser.tab("Results")
    browser.wait("$$('#browser .dot').length > 5")
    signs = browser.js("[...new Set($$('#browser .dot').map(e => [e.classList.contains('good'), e.innerText].join()))]")
    assert set(signs) <= {"true,✓", "false,✗", "false,·"} and len(signs) > 1
    assert browser.js("$$('#browser .dot').every(e => e.getAttribute('role') === 'img' && e.ariaLabel)")


def test_a_method_has_one_name_and_the_filter_is_the_charts_too(browser, address):
    browser.open(address)
    browser.tab("Results")
    browser.wait("$$('#leaderboard tbody tr').length > 5 && $('#browser h3')")
    table = browser.js("$$('#leaderboard tbody tr th').map(e => e.innerText)")
    chart = browser.js("$('#leaderboard svg').ariaLabel")
    assert all(name in chart for name in table)
    browser.click("#result-method input")
    browser.wait("$$('[role=option]').length > 5")
    entries = browser.js("$$('[role=option]').map(e => e.ariaLabel)")
    assert set(entries) == set(table)
    browser.js("document.activeElement.blur()")
    assert browser.js("$('#browser h3').innerText").startswith("CAT")
    browser.type("#filter input, #filter textarea", "ties")
    browser.wait(f"$$('#leaderboard tbody tr').length < {len(table)}")
    left = browser.js("$$('#leaderboard tbody tr th').map(e => e.innerText)")
    chart = browser.js("$('#leaderboard svg').ariaLabel")
    assert left and all("ties" in name.lower() for name in left)
    assert all(name in chart for name in left) and not any(name in chart for name in table if name not in left)
    browser.click("#section input")
    browser.wait("$$('[role=option]').length > 5")
    assert browser.js("$$('[role=option]').filter(e => e.ariaLabel.includes('_')).map(e => e.ariaLabel)") == []
    browser.js("document.activeElement.blur()")
