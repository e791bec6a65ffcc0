"""Every named endpoint of the app through gradio_client, several clients at once, and bad input."""

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.parse
import urllib.request
import weakref
import zipfile
from pathlib import Path

import httpx
import pytest
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from lab.app.server import Server
from lab.errors import LabError
from lab.experiments.context import SHIPPED
from lab.files import PROJECT
from lab.lora.peft_io import load
from tests.app.waiting import PATIENCE, until

PROMPT = "Ann has 3 apples and buys 4 more. How many apples does Ann have?"
HARD = "How many pears are there in the end? There are 37246 pears at the house of Ruth. Then she buys 516507 pears. Ruth receives 748946 pears."
CALM = {"verbose": False, "httpx_kwargs": {"timeout": PATIENCE}}  # machines that build are busy
EXPECTED = {
    "/load_adapter",
    "/upload_adapters",
    "/report",
    "/set_alphas",
    "/undo",
    "/add_method",
    "/ask",
    "/learn",
    "/learn_status",
    "/learn_stop",
    "/learn_use",
    "/learn_column",
    "/delta_nll",
    "/export",
    "/recipe",
    "/use_recipe",
    "/commands",
    "/methods",
    "/results",
}


@pytest.fixture(scope="module")
def blocks(tmp_path_factory):
    import app

    return app.build_app(files=tmp_path_factory.mktemp("app"), device="cpu")


@pytest.fixture(scope="module")
def address(blocks):
    with Server(blocks) as server:
        yield server.url


@pytest.fixture
def client(address):
    client = Client(address, **CALM)
    yield client
    client.close()


def finished(client, job) -> dict:
    """The status of a job that is over."""

    def over():
        status = client.predict(job, api_name="/learn_status")
        return status["state"] not in ("waiting", "running") and status

    return until(over)


def ask(client, columns, prompt=PROMPT, **settings):
    return client.predict(prompt, columns, api_name="/ask", **{"max_new_tokens": 40, **settings})


def test_every_endpoint_is_named_and_none_besides(client):
    assert set(client.view_api(return_format="dict")["named_endpoints"]) == EXPECTED
    assert not client.view_api(return_format="dict")["unnamed_endpoints"]


def test_answers_follow_the_alphas(client):
    text = client.predict("maths: 0; code: 1", api_name="/set_alphas")
    assert text == "maths: 0\ncode: 1"
    found = ask(client, ["base", "code", "merge"], gold="7")
    assert found["merge"]["text"] == found["code"]["text"] != found["base"]["text"]
    assert found["code"]["tokens"] > 0 and found["code"]["tokens_per_second"] > 0 and found["code"]["done"]
    assert found["base"]["verdict"] in ("no code", "wrong", "syntax error", "raised") and found["code"]["verdict"]
    assert client.predict(api_name="/undo") != text
    job = client.submit(PROMPT, ["code"], api_name="/ask", max_new_tokens=30)
    job.result()
    lengths = [len(step["code"]["text"]) for step in job.outputs()]
    assert len(lengths) > 2 and lengths == sorted(lengths)  # it streams


def test_methods_report_commands_and_results(client):
    methods = {m["name"]: m for m in client.predict(api_name="/methods")}
    assert methods["ties"]["parameters"]["density"] and methods["cat"]["learned"]
    report = client.predict(api_name="/report")
    assert report["ok"] and "ties" in report["methods"]
    assert client.predict("ties", {"density": 0.3}, [0.7, 0.3], api_name="/add_method") == "ties"
    assert "--method ties" in client.predict("ties", api_name="/commands")
    assert ask(client, ["ties"])["ties"]["done"]
    results = client.predict("", api_name="/results")
    assert results and any(row["method"] for rows in results.values() for row in rows)


def test_adapters_can_be_loaded_and_uploaded(client, tmp_path):
    folder = next(SHIPPED.glob("skill-maths-*"))
    state = client.predict(str(folder), "maths", api_name="/load_adapter")
    assert len(state["skills"]) == 2 and "maths" not in state["skills"]
    zipped = tmp_path / "mine.zip"
    with zipfile.ZipFile(zipped, "w") as archive:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            archive.write(folder / name, f"mine/{name}")
    state = client.predict([handle_file(str(zipped))], False, api_name="/upload_adapters")
    assert state["skills"][-1] == "mine" and len(state["skills"]) == 3


def test_learning_export_and_recipe(client, tmp_path):
    job = client.predict("cat", {"parametrisation": "free"}, 8, 4, 0.1, 4, 0, api_name="/learn")
    status = finished(client, job)
    assert status["state"] == "done" and len(status["losses"]) == 4 and status["held_out"] > 0
    text = client.predict(job, api_name="/learn_use")
    assert "layers" in text
    losses = client.predict(["base", "merge"], 8, 0, api_name="/delta_nll")
    assert losses["merge"]["maths"] < losses["base"]["maths"]
    with zipfile.ZipFile(client.predict("merge", api_name="/export")) as archive:
        archive.extractall(tmp_path)
    assert load(tmp_path / "merge-adapter").rank == 32
    recipe = client.predict("merge", api_name="/recipe")
    assert sorted(recipe["alphas"].splitlines()) == sorted(text.splitlines())  # a merge's skills are in alphabetical order
    client.predict("layers all: 0", api_name="/set_alphas")
    assert "alphas are set" in client.predict(recipe, api_name="/use_recipe")
    assert client.predict("maths layers 0 q: 0", api_name="/set_alphas") != text
    slow = client.predict("cat", {}, 8, 5000, 0.1, 4, 0, api_name="/learn")
    client.predict(slow, api_name="/learn_stop")
    status = finished(client, slow)
    assert status["state"] == "stopped" and len(status["losses"]) < 5000


@pytest.mark.parametrize(
    "endpoint, given, said",
    [
        ("/ask", ("",), "empty"),
        ("/ask", ("word " * 3000,), "exceed"),
        ("/ask", (PROMPT, ["nobody"]), "no column"),
        ("/set_alphas", ("layers 77: 1",), "Line 1"),
        ("/set_alphas", ("maths: nan",), "Line 1"),
        ("/undo", (), "nothing to undo"),
        ("/add_method", ("ties", {"density": 7}), "density"),
        ("/add_method", ("tiess", {}), "did you mean"),
        ("/add_method", ("ties", {}, [1]), "weights"),
        ("/load_adapter", ("/nowhere/at/all", ""), "not a folder"),
        ("/learn", ("cat", {"granularity": "galaxy"}), "granularity"),
        ("/learn_status", ("guess",), "no such job"),
        ("/export", ("base",), "base"),
        ("/use_recipe", ({"nothing": 1},), "no recipe"),
        ("/export", ("merge", "int4"), "dtype"),
    ],
)
def test_bad_input_is_told_and_the_app_goes_on(client, endpoint, given, said):
    with pytest.raises(AppError, match=said):
        client.predict(*given, api_name=endpoint)
    assert ask(client, ["code"], max_new_tokens=3)["code"]["done"]


@pytest.mark.parametrize(
    "endpoint, body, said",
    [
        ("set_alphas", b'{"data": [null]}', "does not fit this endpoint"),
        ("ask", b'{"data": [null, "x", ["merge"], "as typed", "", "many", 0, 1, 0]}', "max_new_tokens is 'many', not a whole number"),
        ("delta_nll", b'{"data": [null, {"a": {}}, 8, 0]}', "columns is {'a': {}}, not a list"),
        ("delta_nll", b'{"data": [null, ["base"], 1.5, 0]}', "rows is 1.5, not a whole number"),
        ("add_method", b'{"data": [null, "ties", 3, []]}', "parameters is 3, not a JSON object"),
        ("add_method", b'{"data": [null, "ties", {}, "0.5"]}', "weights is a list of numbers"),
        ("add_method", b'{"data": [null, "ties", {}, ["a", "b"]]}', "weights is a list of numbers"),
        ("use_recipe", b'{"data": [null, {"inputs": [{"name": []}], "alphas": ""}]}', "The recipe is for"),
        ("use_recipe", b'{"data": [null, {"inputs": 3, "method": 3}]}', "method"),
        ("load_adapter", b'{"data": [null, "' + b"1" * 400 + b'", ""]}', "no folder and no Hub id"),
        ("load_adapter", b'{"data": [null, "~nobody-is-called-so/x", ""]}', "no folder"),
        ("ask", b'{"data": [NaN', "cannot be read"),
        ("ask", b"\xff\xfe", "cannot be read"),
        ("ask", b'{"data": NaN}', "cannot be read"),
        ("ask", b"[1]", "cannot be read"),
    ],
)
def test_what_no_page_would_send_is_answered_by_one_sentence(address, capfd, endpoint, body, said):
    reply = httpx.post(f"{address}gradio_api/run/{endpoint}", content=body, headers={"Content-Type": "application/json"}, timeout=PATIENCE)
    assert reply.status_code in (422, 500) and said in reply.json()["error"]
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("length", [1 << 10, 3 << 20])
def test_an_upload_that_is_cut_off_leaves_nothing(address, length):
    """Of either size: what Gradio holds in memory, and what it has written."""
    place = Path(os.environ["GRADIO_TEMP_DIR"])

    def files() -> set:
        return {path for path in place.rglob("*") if path.is_file()}

    before, url = files(), urllib.parse.urlsplit(address)
    part = b'--x\r\nContent-Disposition: form-data; name="files"; filename="cut.zip"\r\n\r\n' + bytes(length)
    head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: {len(part) + 99}\r\n\r\n"
    with socket.create_connection((url.hostname, url.port)) as line:
        line.sendall(head.encode() + part)
        until(lambda: files() - before)  # it has begun
    until(lambda: files() == before)


def test_clients_at_once_never_mix(address):
    """Each has its own alphas; what it hears is what it hears alone."""
    settings = ["maths: 1; code: 0", "maths: 0; code: 1", "maths: 0.8; code: 0.8", "maths: 0; code: 0"]

    def hear(text, times, into):
        try:
            client = Client(address, **CALM)
            client.predict(text, api_name="/set_alphas")
            into += [ask(client, ["merge"], HARD, max_new_tokens=24)["merge"]["text"] for _ in range(times)]
            client.close()
        except Exception as error:
            into.append(repr(error))

    alone = []
    for text in settings:
        hear(text, 1, alone)
    assert len(set(alone)) == 4
    heard = [[] for _ in range(8)]
    threads = [threading.Thread(target=hear, args=(settings[i % 4], 2, heard[i])) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert heard == [[alone[i % 4]] * 2 for i in range(8)]


def test_a_closed_session_frees_what_it_held_and_its_run_goes_on(blocks, address, client, monkeypatch):
    context = blocks.context
    monkeypatch.setattr("lab.app.context.CLOSED", 2)
    visitor = Client(address, **CALM)
    visitor.predict(str(next(SHIPPED.glob("skill-maths-*"))), "maths", api_name="/load_adapter")
    visitor.predict("arrow", {}, [], api_name="/add_method")
    assert ask(visitor, ["arrow", "merge"], max_new_tokens=3)["arrow"]["done"]
    job = visitor.predict("moe", {}, 8, 3000, 0.01, 2, 0, api_name="/learn")
    (session,) = [s for s in context.sessions() if "arrow" in s.others]
    own = [weakref.ref(a) for a in (*session.adapters, session.others["arrow"]) if a not in context.adapters]
    assert len(own) == 2

    def steps() -> int:
        return len(client.predict(job, api_name="/learn_status")["losses"])

    until(steps)
    visitor.close()
    until(lambda: session.emptied)
    assert not session.others and not session.adapters and session.run is None
    before = steps()
    until(lambda: steps() > before)  # the run goes on, and can be stopped by whoever has its id
    client.predict(job, api_name="/learn_stop")
    status = finished(client, job)
    assert status["state"] == "stopped" and status["held_out"] > 0
    gc.collect()
    assert not any(reference() for reference in own)  # neither the page's state nor a view of the model holds them
    for _ in range(4):
        short = Client(address, **CALM)
        short.predict("maths: 1", api_name="/set_alphas")
        short.close()
    until(lambda: sum(state.is_closed for state in blocks.state_holder.session_data.values()) <= 3)


def test_routers_are_learned_and_become_columns(client):
    job = client.predict("moe", {}, 8, 2, 0.01, 4, 0, api_name="/learn")
    finished(client, job)
    with pytest.raises(AppError, match="no table of alphas"):
        client.predict(job, api_name="/learn_use")
    assert client.predict(job, api_name="/learn_column") == "learned moe"
    assert ask(client, ["learned moe"], max_new_tokens=3)["learned moe"]["done"]
    with zipfile.ZipFile(client.predict("learned moe", api_name="/export")) as archive:
        assert any(name.endswith("router/router.safetensors") for name in archive.namelist())


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError])
def test_out_of_memory_is_told_and_the_app_goes_on(client, monkeypatch, error):
    def full(*args, **kwargs):
        raise error("secret numbers")

    with monkeypatch.context() as patch:
        patch.setattr("lab.app.compare.stream", full)
        with pytest.raises(AppError, match="not enough memory") as told:
            ask(client, ["code"])
        assert "secret" not in str(told.value)
        patch.setattr("lab.merging.learn.learn", full)
        job = client.predict("cat", {}, 8, 2, 0.1, 4, 0, api_name="/learn")
        status = finished(client, job)
        assert status["state"] == "failed" and "not enough memory" in status["message"]
    assert ask(client, ["code"], max_new_tokens=3)["code"]["done"]


def test_a_shared_page_keeps_the_disk_to_itself(tmp_path):
    import app

    blocks = app.build_app(files=tmp_path, device="cpu", shared=True, roots=[tmp_path])
    with Server(blocks) as server:
        client = Client(server.url, **CALM)
        for path in ("/etc", str(SHIPPED), "owner/name"):
            with pytest.raises(AppError, match="shared"):
                client.predict(path, "", api_name="/load_adapter")
        client.close()


def test_the_command_tells_what_is_wrong(capsys):
    import app

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert app.main(["--port", str(taken.getsockname()[1]), "--device", "cpu"]) == 2
        assert "cannot be used" in capsys.readouterr().err
    for arguments, said in [
        (["--preset", "nothing"], "no preset"),
        (["--base", "/nowhere"], "does not exist"),
        (["--port", "0"], "port"),
        (["--adapters", "/nowhere"], "not a folder"),
    ]:
        assert app.main(arguments) == 2
        assert said in capsys.readouterr().err


def test_it_starts_where_a_request_to_itself_gets_no_answer_in_time(tmp_path, monkeypatch):
    """As on a busy machine, where `Blocks.launch` gives up."""
    import app

    def slow(*args, **kwargs):
        raise httpx.ReadTimeout("the machine is busy")

    blocks = app.build_app(files=tmp_path, device="cpu")
    with monkeypatch.context() as patch:
        for name in ("get", "head", "request", "stream"):
            patch.setattr(httpx, name, slow)
        with Server(blocks) as server:
            with urllib.request.urlopen(f"{server.url}config", timeout=PATIENCE) as reply:
                assert json.load(reply)["title"] == "Soup Lab"
    with pytest.raises(LabError, match="cannot be used"):  # the port is free again, and told when it is not
        with Server(blocks, port=int(server.url.rsplit(":")[-1].strip("/"))) as again:
            Server(blocks, port=int(again.url.rsplit(":")[-1].strip("/")))


def test_the_command_opens_and_ends_at_once_with_nothing_left_behind(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = {"TMPDIR": str(tmp_path), "GRADIO_TEMP_DIR": str(tmp_path / "gradio"), "PYTHONPATH": str(PROJECT)}
    process = subprocess.Popen(
        [sys.executable, "app.py", "--port", str(port), "--device", "cpu"],
        cwd=PROJECT, env={**os.environ, **places}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout.readline() == f"Soup Lab is open at http://127.0.0.1:{port}/ (Ctrl+C ends it)\n"
        client = Client(f"http://127.0.0.1:{port}/", **CALM)
        assert client.predict("merge", api_name="/export")
        job = client.predict("cat", {}, 100, 5000, 0.1, 8, 0, api_name="/learn")  # it would go on for minutes
        until(lambda: client.predict(job, api_name="/learn_status")["losses"])
        process.send_signal(signal.SIGINT)  # with an open page
        said = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 0 and not said[0] and "Traceback" not in said[1]
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_what_people_can_do_needs_no_page():
    """The actions are plain functions: they are imported, and so can be called, without Gradio."""
    told = "import sys, lab.app.actions; print('gradio' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", told], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"
