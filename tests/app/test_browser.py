"""The app in a real browser, driven by its own debugging protocol: no driver program, no download."""

import base64
import io
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
import zipfile
from pathlib import Path

import pytest

from lab.app import actions
from lab.app import mixer as mixing
from lab.app.server import Server
from tests.app.waiting import PATIENCE, until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium here: install Debian's package `chromium` to run the browser tests of the app"
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
    "--remote-allow-origins=*",
    "--hide-scrollbars",
)


class Browser:
    """One tab of a headless chromium."""

    def __init__(self):
        import websocket  # a dependency of jupyter

        self.folder = tempfile.mkdtemp(prefix="chromium-")
        self.process = subprocess.Popen(
            [CHROMIUM, *FLAGS, f"--user-data-dir={self.folder}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        port_file = Path(self.folder, "DevToolsActivePort")
        until(lambda: port_file.exists() and port_file.read_text().strip())
        port = port_file.read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as reply:
            page = next(t for t in json.load(reply) if t["type"] == "page")
        self.socket = websocket.create_connection(page["webSocketDebuggerUrl"], timeout=PATIENCE)
        self.numbers = itertools.count(1)
        self.requested: list[str] = []
        self.errors: list[str] = []
        for domain in ("Page", "Runtime", "Network", "DOM"):
            self.send(f"{domain}.enable")
        self.size(1400, 900)

    def send(self, method: str, **params):
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("method") == "Network.requestWillBeSent":
                self.requested.append(message["params"]["request"]["url"])
            if message.get("method") == "Runtime.exceptionThrown":
                self.errors.append(json.dumps(message["params"]["exceptionDetails"])[:400])
            if message.get("id") == number:
                assert "error" not in message, message["error"]
                return message["result"]

    def js(self, expression: str):
        """The value of an expression, in which $ and $$ find one element and all."""
        helped = f"(($, $$) => ({expression}))(s => document.querySelector(s), s => [...document.querySelectorAll(s)])"
        found = self.send("Runtime.evaluate", expression=helped, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, condition: str):
        """Until the expression is true; its value."""
        deadline = time.monotonic() + PATIENCE
        while True:
            value = self.js(
                f"(() => {{ try {{ const v = {condition}; return v instanceof Element || v }} catch (e) {{ return null }} }})()"
            )
            if value:
                return value
            assert time.monotonic() < deadline, (
                f"never true: {condition}\nthe page says: {self.js('document.body.innerText')[:1500]}"
            )
            time.sleep(0.1)

    def open(self, url: str, fresh: bool = True):
        """Load the page. fresh: as somebody who was never here."""
        if fresh:
            self.send("Storage.clearDataForOrigin", origin=url.split("?")[0].rstrip("/"), storageTypes="local_storage")
        self.send("Page.navigate", url=url)
        self.wait("$$('#mixer [data-cell]').length > 0 && $$('#columns input:checked').length > 0")

    def size(self, width: int, height: int, phone: bool = False):
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)

    def click(self, selector: str, text: str = ""):
        """A real click in the middle of the first such element (that holds this text)."""
        find = f"$$({selector!r}).find(e => e.textContent.includes({text!r}) && e.getClientRects().length)"
        # Where the page is still growing, another element may have come to that place meanwhile.
        box = self.wait(
            f"(() => {{ const e = {find}; e.scrollIntoView({{block: 'center', behavior: 'instant'}}); const r = e.getBoundingClientRect();"
            "const [x, y] = [r.x + r.width / 2, r.y + r.height / 2], there = document.elementFromPoint(x, y);"
            "return there && (e.contains(there) || there.contains(e)) && [x, y]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def type(self, selector: str, text: str):
        """Replace a field's text by typing, and leave it by Tab; once more if the page was not ready to take it."""
        for _ in range(3):
            if self._type(selector, text):
                return
        raise AssertionError(f"{selector} does not take {text!r}")

    def _type(self, selector: str, text: str) -> bool:
        self.wait(f"$({selector!r}).getClientRects().length > 0")
        self.js(
            f"(() => {{ const e = $({selector!r}); e.scrollIntoView({{block: 'center'}}); e.focus(); e.select(); }})()"
        )
        self.send("Input.insertText", text=text)
        taken = self.js(f"$({selector!r}).value === {json.dumps(text)}")
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
        return taken

    def choose(self, selector: str, text: str):
        """An entry of a dropdown, by typing it."""
        self.click(f"{selector} input")
        self.js(f"$('{selector} input').select()")
        self.send("Input.insertText", text=text)
        self.wait(f"$$('[role=option]').some(e => e.innerText.trim() === {text!r} || e.ariaLabel === {text!r})")
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13)

    def drag(self, first: str, last: str):
        """Press on one element, move to another, let go."""
        for kind, selector, held in (
            ("mousePressed", first, 1),
            ("mouseMoved", first, 1),
            ("mouseMoved", last, 1),
            ("mouseReleased", last, 0),
        ):
            x, y = self.js(
                f"(() => {{ const r = $({selector!r}).getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2] }})()"
            )
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=held, clickCount=1)

    def slide(self, selector: str, value: float):
        """Move a range input as a hand does: input events, then change."""
        self.js(
            f"(() => {{ const e = $({selector!r}); e.value = {value};"
            "e.dispatchEvent(new Event('input', {bubbles: true})); e.dispatchEvent(new Event('change', {bubbles: true})); })()"
        )

    def tab(self, name: str):
        self.click('[role="tab"]', name)

    def choose_files(self, selector: str, files: list[str]):
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=files)

    def picture(self, path: str):
        """The whole page."""
        width, height = self.js("[innerWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        found = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        Path(path).write_bytes(base64.b64decode(found["data"]))

    def close(self):
        self.socket.close()
        self.process.terminate()
        self.process.wait(PATIENCE)
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    import app

    with Server(app.build_app(files=tmp_path_factory.mktemp("app"))) as server:
        yield server.url


@pytest.fixture(scope="module")
def browser():
    browser = Browser()
    yield browser
    browser.close()


def rules(browser, awaited: str = "") -> str:
    """The alphas as text, once they hold what is awaited. A tab's content is made when the tab is first opened."""
    browser.tab("Set")
    return browser.wait(f"$('#rules textarea').value.includes({json.dumps(awaited)}) && $('#rules textarea').value")


def ask(browser) -> dict[str, str]:
    """The columns' answers, once all are complete and judged."""
    browser.tab("Compare")
    browser.wait("$('#ask').getClientRects().length > 0")
    browser.js("$$('#answers article').forEach(a => a.dataset.old = 1)")
    browser.click("#ask")
    browser.wait("$('#answers article') && !$('#answers article[data-old]') && !$('#answers .caret')")
    browser.wait("$$('#answers article').every(a => a.querySelector('footer .verdict'))")
    return browser.js(
        "Object.fromEntries($$('#answers article').map(a => [a.dataset.column, a.querySelector('pre').innerText]))"
    )


def test_it_opens_working_and_asks_nobody_else(browser, address):
    browser.open(address)
    answers = ask(browser)
    assert list(answers) == ["base", "maths", "code", "merge"]
    assert "def solution" in answers["code"]
    assert browser.js("$$('#answers footer code').some(e => /^[0-9]+$/.test(e.innerText))")  # what a program returned
    strange = [
        url
        for url in browser.requested
        if not url.startswith((address.rstrip("/"), "data:", "blob:", "about:", "chrome"))
    ]
    assert not strange
    assert not browser.errors


def test_alphas_by_slider_cell_layer_and_text_change_the_next_answer(browser, address):
    browser.open(address)
    before = ask(browser)
    browser.slide("#mixer section[data-skill=maths] .master", 0)
    browser.slide("#mixer section[data-skill=code] .master", 1)
    assert rules(browser, "maths: 0\ncode: 1")
    after = ask(browser)
    assert after["merge"] == after["code"] == before["code"]  # the merge is the code skill now, without a re-merge
    browser.type("#mixer [data-cell='0/3/1']", "0.3")
    assert rules(browser, "maths layers 3 k: 0.3")
    browser.click("#mixer section[data-skill=maths] tbody th button", "5")
    browser.slide("#mixer .selection input[type=range]", 0.7)
    assert rules(browser, "maths layers 5: 0.7")
    browser.type("#rules textarea", "layers 0-1 q,v: 0.25")
    browser.click("#apply-rules")
    browser.wait("$('#mixer [data-cell=\"1/1/2\"]').value === '.25'")
    browser.click("#undo")
    browser.wait("$('#mixer [data-cell=\"1/1/2\"]').value === '1'")


def test_quick_edits_are_applied_one_after_the_other(browser, address, monkeypatch):
    browser.open(address)
    right, waits = mixing.scaled, iter([1.0])

    def slow_at_first(*args):
        time.sleep(next(waits, 0.0))
        return right(*args)

    monkeypatch.setattr(mixing, "scaled", slow_at_first)
    browser.slide("#mixer section[data-skill=maths] .master", 0)
    browser.slide("#mixer section[data-skill=code] .master", 1)
    browser.tab("Set")
    browser.wait("$('#side').innerText.includes('2 to undo')")
    assert rules(browser) == "maths: 0\ncode: 1"


def test_the_last_of_many_edits_is_on_the_page(browser, address):
    browser.open(address)
    browser.tab("Set")
    for alpha in (0.11, 0.22, 0.33, 0.44, 0.55):
        for layer in range(6):
            browser.js(
                f"(() => {{ const e = $('#mixer [data-cell=\"0/{layer}/1\"]'); e.value = '{alpha}';"
                "e.dispatchEvent(new Event('change')); })()"
            )
        browser.wait(f"$('#rules textarea').value.includes('maths layers 0-5 k: {alpha}')")


def test_cells_are_chosen_by_dragging_over_them(browser, address):
    browser.open(address)
    browser.drag("#mixer [data-cell='1/1/0']", "#mixer [data-cell='1/2/2']")
    browser.wait("$('#mixer .selection .count').innerText === '6 cells'")
    browser.slide("#mixer .selection input[type=range]", 0.35)
    assert rules(browser, "code layers 1-2 q,k,v: 0.35") == "maths: 0.8\ncode: 0.8\ncode layers 1-2 q,k,v: 0.35"


def test_work_comes_back_after_a_reload_and_after_a_restart_and_can_be_begun_anew(browser, tmp_path):
    import app
    from lab.experiments.context import SHIPPED

    upload = tmp_path / "mine.zip"
    with zipfile.ZipFile(upload, "w") as archive:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            archive.write(next(SHIPPED.glob("skill-code-*")) / name, f"mine/{name}")

    def there() -> None:
        """All of it, and a line that says so."""
        browser.wait("$('#welcome') && $('#welcome').innerText.includes('Your work is here again')")
        assert "maths, code, mine; alphas; setting A; 1 further columns; a learned result" in browser.js("$('#welcome').innerText")
        browser.wait("$('#prompt textarea').value === 'A prompt of my own' && $('#mixer [data-cell=\"2/3/1\"]').value === '.3'")
        assert browser.js("$$('#columns label').filter(l => l.querySelector('input').checked).map(l => l.innerText.trim())") == [
            "base", "mine", "merge", "A", "TIES"]  # fmt: skip
        assert rules(browser, "mine layers 3 k: 0.3") == "maths: 0.8\ncode: 0.8\nmine: 0.8\nmine layers 3 k: 0.3"
        browser.tab("Learn")
        browser.wait("$('#learn-status [data-state=done]') && $$('#learn-status svg').length >= 2")
        browser.tab("Compare")

    with Server(app.build_app(files=tmp_path / "app")) as server:
        port = int(server.url.rstrip("/").rpartition(":")[2])
        browser.open(server.url)
        assert not browser.js("$('#welcome') && $('#welcome').getClientRects().length")
        browser.tab("Load")
        browser.wait("$('#upload input[type=file]')")
        browser.choose_files("#upload input[type=file]", [str(upload)])
        browser.wait("$$('#mixer section').length === 3")
        browser.click("#keep-a")
        browser.wait("$('#side').innerText.includes('kept: A')")
        browser.type("#mixer [data-cell='2/3/1']", "0.3")
        browser.tab("Set")
        browser.click("#add-method", "TIES")
        browser.wait("$$('#columns label').some(l => l.textContent.includes('TIES'))")
        browser.tab("Compare")
        for name in ("maths", "code"):
            browser.click("#columns label", name)
        browser.click("#columns label", "A")
        browser.type("#prompt textarea", "A prompt of my own")
        browser.tab("Learn")
        browser.type("#steps input", "3")
        browser.type("#checked input", "2")
        browser.click("#start-learning")
        browser.wait("$('#verdict') && $('#verdict').innerText.includes('right of 2 problems')")
        browser.open(server.url, fresh=False)
        there()
    with Server(app.build_app(files=tmp_path / "app"), port=port) as server:
        browser.open(server.url, fresh=False)
        there()
        browser.click("#ask")  # a prompt of one's own has no gold, so no verdict
        browser.wait("$$('#answers article').length === 5 && !$('#answers .caret')")
        browser.tab("Learn")
        browser.click("#use-learned")
        assert "maths layers" in rules(browser, "mine layers 0")
        browser.click("#start-fresh")
        browser.wait("$$('#mixer section').length === 2 && $('#prompt textarea').value !== 'A prompt of my own'")
        browser.click("#bring-back")
        browser.wait("$$('#mixer section').length === 3 && $('#prompt textarea').value === 'A prompt of my own'")
        browser.open(server.url)  # another browser
        browser.wait("$$('#mixer section').length === 2")
        assert not browser.js("$('#welcome') && $('#welcome').getClientRects().length")


def test_an_edited_prompt_leaves_gold_and_verdict_of_the_example_behind(browser, address):
    browser.open(address)
    ask(browser)
    assert browser.js("$('#gold input, #gold textarea').value && $$('#answers .verdict').length")
    browser.type("#prompt textarea", "Add two and three.")
    browser.wait("$('#gold input, #gold textarea').value === '' && $('#answers').innerText.includes('before it was edited')")
    assert not browser.js("$$('#answers .verdict').length")


def test_a_filter_typed_while_the_records_are_read_holds(browser, address, monkeypatch):
    right, waits = actions.sections, iter([3.0])

    def slow_at_first(*args):
        time.sleep(next(waits, 0.0))
        return right(*args)

    browser.open(address)
    monkeypatch.setattr(actions, "sections", slow_at_first)
    browser.tab("Results")
    browser.type("#filter input, #filter textarea", "ties")
    browser.wait("$$('#leaderboard tbody tr').length && $$('#leaderboard tbody th').every(e => e.innerText.toLowerCase().includes('ties'))")
    assert not browser.js("document.body.innerText.includes('no such records')")


def test_a_comparison_is_saved_and_found_in_results(browser, address):
    browser.open(address)
    browser.click("#kind label", "Problems of a task")
    browser.type("#problems input", "3")
    browser.click("#ask")
    browser.wait("$('#keeping') && $('#keeping').getClientRects().length")
    browser.type("#comparison-name input, #comparison-name textarea", "First look")
    browser.click("#save-comparison")
    browser.wait("$$('#comparison-files a').length >= 6")
    assert b"merge" in b"".join(fetched(browser, '#comparison-files a[href*="table.md"]'))
    browser.tab("Results")
    browser.wait("$('#section input').value")
    browser.choose("#section", "First look · saved by you · 3 problems")
    browser.wait("$$('#leaderboard tbody th').some(e => e.innerText.includes('merge')) && $('#remove-comparison').getClientRects().length")


def test_what_is_refused_has_one_button_that_mends_it(browser, address, tmp_path):
    from dataclasses import replace

    from lab.app.sources import shipped_skills
    from lab.lora.peft_io import save

    save(tmp_path / "mine", replace(shipped_skills()[1], base="owner/name", name="mine"))
    browser.open(address)
    browser.tab("Load")
    for _ in range(2):  # a retry doubles nothing
        browser.type("#source input, #source textarea", str(tmp_path / "mine"))
        browser.click("#load-adapter")
        browser.wait("$('#mend') && $('#mend').getClientRects().length && $('#refusal').innerText.includes('owner/name')")
    assert browser.js("$$('#mixer section').length") == 2
    browser.click("#mend")
    browser.wait("$$('#mixer section').length === 3 && !$('#refusal').innerText.includes('owner/name')")


def test_any_method_is_a_column(browser, address):
    browser.open(address)
    browser.tab("Set")
    browser.click("#add-method", "TIES")
    browser.wait("$$('#take input, #columns label').some(e => (e.value || e.innerText).includes('TIES'))")
    browser.choose("#method", "Arrow")
    browser.click("#add-method", "Arrow")
    browser.tab("Compare")
    browser.wait("$$('#columns label').some(e => e.innerText.includes('Arrow'))")
    answers = ask(browser)
    assert list(answers) == ["base", "maths", "code", "merge", "TIES", "Arrow"] and answers["Arrow"] and answers["TIES"]


def test_a_wrong_rule_or_cell_is_told_and_changes_nothing(browser, address):
    browser.open(address)
    first = rules(browser)
    browser.tab("Set")
    browser.type("#rules textarea", "maths: 0.5\nlayers 9 q: 0.3")
    browser.click("#apply-rules")
    assert browser.wait(
        "document.body.innerText.includes('Line 2') && document.body.innerText.includes('there are no layers 9')"
    )
    browser.type("#mixer [data-cell='0/0/0']", "nan")
    browser.wait("document.body.innerText.includes('is no alpha')")
    browser.wait(
        f"$('#mixer [data-cell=\"0/0/0\"]').value !== 'nan' && $('#rules textarea').value === {json.dumps(first)}"
    )


def test_a_shared_link_sets_the_alphas(browser, address):
    browser.open(address)
    browser.tab("Set")
    browser.type("#rules textarea", "maths: late 0.2 1; code: complement maths")
    browser.click("#apply-rules")
    browser.wait("$('#mixer [data-cell=\"0/0/0\"]').value === '.2'")
    text = rules(browser)
    browser.click("#share")
    link = browser.wait("($('#link textarea, #link input') || {}).value")
    browser.send("Page.navigate", url="about:blank")
    browser.open(link)
    assert rules(browser) == text


def test_learning_is_live_stops_and_survives_a_closed_page(browser, address):
    browser.open(address)
    browser.tab("Learn")
    browser.type("#steps input", "4000")
    browser.click("#start-learning")
    browser.wait("$$('#learn-status svg').length >= 2")  # loss and heatmap
    browser.send("Page.navigate", url="about:blank")
    browser.open(address, fresh=False)
    browser.tab("Learn")
    browser.wait("$('#learn-status') && $('#learn-status').innerText.includes('running')")
    browser.click("#stop-learning")
    browser.wait("$('#learn-status').innerText.includes('stopped')")
    browser.click("#use-learned")
    assert "layers" in rules(browser, "layers")
    browser.tab("Learn")
    browser.click("#measure")
    browser.wait("$$('#costs tbody tr').length >= 5")


def test_layers_are_weighed_on_ones_own_rows_with_progress(browser, address, tmp_path):
    files = [tmp_path / "maths.jsonl", tmp_path / "code.jsonl"]
    for file in files:
        row = json.dumps({"prompt": "Question: 2 and 3?\nAnswer:", "completion": " 5"})
        file.write_text(f"{row}\n" * 8)
    browser.open(address)
    browser.tab("Learn")
    browser.click("#learn-data label", "my rows")
    browser.wait("$('#own-rows input[type=file]')")
    browser.choose_files("#own-rows input[type=file]", list(map(str, files)))
    browser.wait("$('#own-rows').innerText.includes('code')")
    browser.click("#weigh-layers")
    browser.wait("$('#layers [data-state=done]') && $('#layers svg')")
    assert "layer 5 maths" in browser.js("$('#layers').innerHTML")


def fetched(browser, selector: str) -> list[bytes]:
    """The content of the links, once there are any."""
    browser.wait(f"$$({selector!r}).length > 0")
    found = []
    for link in browser.js(f"[...new Set($$({selector!r}).map(a => a.href))]"):
        with urllib.request.urlopen(link) as reply:
            found.append(reply.read())
    return found


def test_plots_are_saved(browser, address):
    browser.open(address)
    browser.tab("Plots")
    browser.wait("$$('#pictures svg').length >= 3")
    browser.click("#save-png")
    pictures = fetched(browser, '#saved-plots a[href*=".png"]')
    assert len(pictures) == 3 and all(data.startswith(b"\x89PNG") for data in pictures)
    browser.click("#save-svg")
    pictures = fetched(browser, '#saved-plots a[href*=".svg"]')
    assert len(pictures) == 3 and all(b"<svg" in data for data in pictures)


def test_a_saved_recipe_comes_back(browser, address, tmp_path):
    browser.open(address)
    browser.tab("Set")
    browser.type("#rules textarea", "maths: ring 0.1 0.9; code layers 1 q: -0.2")
    browser.click("#apply-rules")
    browser.wait("!$('#rules textarea').value.includes('ring')")  # it is written out
    text = rules(browser, "code layers 1 q: -0.2")
    browser.tab("Take home")
    browser.click("#save-recipe")
    (recipe,) = fetched(browser, '#exported a[href*=".json"]')
    file = tmp_path / "recipe.json"
    file.write_bytes(recipe)
    browser.open(address)
    assert rules(browser) != text
    browser.tab("Take home")
    browser.wait("$('#recipe-in input[type=file]')")
    browser.choose_files("#recipe-in input[type=file]", [str(file)])
    assert rules(browser, "code layers 1 q: -0.2") == text


def test_results_are_filtered_read_and_opened_in_compare(browser, address):
    browser.open(address)
    browser.tab("Results")
    everything = browser.wait("$$('#leaderboard tbody tr').length > 5 && $$('#leaderboard tbody tr').length")
    browser.wait("$$('#browser details.question').length > 5 && $('#browser h3').innerText.startsWith('CAT')")
    assert browser.js("$('#browser details.question pre').textContent").strip()
    browser.type("#filter input, #filter textarea", "ties")
    browser.wait(f"$$('#leaderboard tbody tr').length < {everything}")
    assert browser.js("$$('#leaderboard tbody tr th').every(e => e.innerText.toLowerCase().includes('ties'))")
    browser.js("document.activeElement.blur()")  # the next field's list of choices lies over the button
    browser.click("#open-run")
    browser.wait("$('#ask').getClientRects().length > 0")
    assert "layers" in rules(browser, "layers")  # coefficients that were learned


def test_blind_vote_and_reveal(browser, address):
    browser.open(address)
    browser.wait("$('#blind input').getClientRects().length > 0")
    browser.click("#blind input")
    browser.click("#ask")
    browser.wait("$$('#choice input').length >= 3 && $('#choice').getClientRects().length > 0")
    names = browser.js("$$('#answers article').map(a => [a.dataset.column, a.querySelector('b').innerText])")
    assert all(column == "" and name.startswith("Answer ") for column, name in names)
    browser.click("#choice label", "Answer A")
    browser.click("#vote")
    browser.wait("$$('#answers article b').some(b => b.innerText === 'base')")


def test_adapters_come_from_uploads_and_wrong_ones_are_told(browser, address, tmp_path):
    from lab.experiments.context import SHIPPED

    good, bad = [], tmp_path / "evil.zip"
    for skill in ("maths", "code"):
        folder = next(SHIPPED.glob(f"skill-{skill}-*"))
        good.append(str(tmp_path / f"my-{skill}.zip"))
        with zipfile.ZipFile(good[-1], "w") as archive:
            for name in ("adapter_config.json", "adapter_model.safetensors"):
                archive.write(folder / name, f"my-{skill}/{name}")
    with zipfile.ZipFile(bad, "w") as archive:
        archive.writestr("../../adapter_config.json", "{}")
    browser.open(address)
    browser.tab("Load")
    browser.wait("$$('#report tbody tr').length === 2")
    browser.choose_files("#upload input[type=file]", [str(bad)])
    browser.wait("document.body.innerText.includes('outside its own folder')")
    browser.wait("$('#upload input[type=file]')")
    browser.choose_files("#upload input[type=file]", good)
    browser.wait("$$('#report tbody tr').length === 4 && $$('#mixer section').length === 4")
    assert browser.js("$$('#mixer section').map(e => e.dataset.skill)") == ["maths", "code", "my-maths", "my-code"]
    browser.type("#source input, #source textarea", str(folder))
    browser.click("#load-adapter")
    browser.wait("$$('#mixer section').length === 5")


def test_the_export_gives_equal_logits_through_peft(browser, address, tmp_path):
    import torch
    from peft import PeftModel

    from lab.app.engine import Engine
    from lab.app.session import Session
    from lab.app.sources import shipped_skills
    from lab.lora.base import load_base

    browser.open(address)
    browser.tab("Set")
    browser.type("#rules textarea", "maths: ramp 0.2 1; code layers 2-4 mlp: -0.4")
    browser.click("#apply-rules")
    browser.wait("$('#mixer [data-cell=\"0/0/0\"]').value === '.2'")
    text = rules(browser)
    browser.tab("Take home")
    browser.click("#export")
    link = browser.wait("($('#exported a[href*=\".zip\"]') || {}).href")
    with urllib.request.urlopen(link) as reply:
        zipfile.ZipFile(io.BytesIO(reply.read())).extractall(tmp_path)
    model, _ = load_base("embedded")
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        exported = PeftModel.from_pretrained(model, tmp_path / "merge-adapter")(input_ids=ids).logits
        engine, session = Engine("embedded"), Session()
        session.take(shipped_skills(), engine.model, "embedded")
        session.set_text(text)
        adapters, rows = session.plan(["merge"])
        lane = engine.lane(adapters)
        lane.use(rows)
        live = lane.model(input_ids=ids).logits
    assert (exported - live).norm() <= 1e-5 * live.norm()


if os.environ.get("LAB_APP_PICTURES"):

    def test_pictures(browser, address):
        """Screenshots of every tab, whole, for people to look at."""
        folder = Path(os.environ["LAB_APP_PICTURES"])
        for width, phone in ((1200, False), (400, True)):
            browser.size(width, 900, phone)
            browser.open(address)
            ask(browser)
            for tab in ("Compare", "Set", "Learn", "Plots", "Take home", "Load", "Results"):
                browser.js(f"$$('[role=tab]').find(e => e.textContent.includes({tab!r})).click()")
                time.sleep(4)
                for dark in (False, True):
                    browser.js(f"document.body.classList.toggle('dark', {str(dark).lower()})")
                    browser.picture(str(folder / f"{tab.replace(' ', '-')}-{'dark' if dark else 'light'}-{width}.png"))
