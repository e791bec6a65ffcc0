"""Every named endpoint of the app through gradio_client, several clients at once, and bad input."""

import gc
import json
import socket
import threading
import time
import weakref
import zipfile

import pytest
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from lab.experiments.comparison import SHIPPED
from lab.lora.adapter import load

PROMPT = "Ann has 3 apples and buys 4 more. How many apples does Ann have?"
HARD = "How many pears are there in the end? There are 37246 pears at the house of Ruth. Then she buys 516507 pears. Ruth receives 748946 pears."
CALM = {"verbose": False, "httpx_kwargs": {"timeout": 120}}  # machines that build are busy
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

    blocks = app.build_app(files=tmp_path_factory.mktemp("app"), device="cpu")
    blocks.launch(prevent_thread_lock=True, server_name="127.0.0.1", **app.launch_options())
    yield blocks
    blocks.close()


@pytest.fixture(scope="module")
def address(blocks):
    return blocks.local_url


@pytest.fixture
def client(address):
    client = Client(address, **CALM)
    yield client
    client.close()


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
    while (status := client.predict(job, api_name="/learn_status"))["state"] in ("waiting", "running"):
        time.sleep(0.2)
    assert status["state"] == "done" and len(status["losses"]) == 4 and status["held_out"] > 0
    text = client.predict(job, api_name="/learn_use")
    assert "layers" in text
    losses = client.predict(["base", "merge"], 8, 0, api_name="/delta_nll")
    assert losses["merge"]["maths"] < losses["base"]["maths"]
    with zipfile.ZipFile(client.predict("merge", api_name="/export")) as archive:
        archive.extractall(tmp_path)
    assert load(tmp_path / "merge-adapter").rank == 32
    recipe = client.predict("merge", api_name="/recipe")
    assert recipe["alphas"] == text
    client.predict("layers all: 0", api_name="/set_alphas")
    assert "alphas are set" in client.predict(recipe, api_name="/use_recipe")
    assert client.predict("maths layers 0 q: 0", api_name="/set_alphas") != text
    slow = client.predict("cat", {}, 8, 500, 0.1, 4, 0, api_name="/learn")
    client.predict(slow, api_name="/learn_stop")
    while (status := client.predict(slow, api_name="/learn_status"))["state"] in ("waiting", "running"):
        time.sleep(0.2)
    assert status["state"] == "stopped" and len(status["losses"]) < 500


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
        thread.join(240)
    assert heard == [[alone[i % 4]] * 2 for i in range(8)]


def test_a_closed_session_frees_what_it_held_and_its_run_goes_on(blocks, address, client, monkeypatch):
    context = blocks.context
    monkeypatch.setattr("lab.app.context.CLOSED", 2)
    visitor = Client(address, **CALM)
    visitor.predict(str(next(SHIPPED.glob("skill-maths-*"))), "maths", api_name="/load_adapter")
    visitor.predict("arrow", {}, [], api_name="/add_method")
    assert ask(visitor, ["arrow", "merge"], max_new_tokens=3)["arrow"]["done"]
    job = visitor.predict("moe", {}, 8, 300, 0.01, 2, 0, api_name="/learn")
    (session,) = [s for s in context.sessions() if "arrow" in s.others]
    own = [weakref.ref(a) for a in (*session.adapters, session.others["arrow"]) if a not in context.adapters]
    assert len(own) == 2
    while not client.predict(job, api_name="/learn_status")["losses"]:
        time.sleep(0.1)
    visitor.close()
    deadline = time.monotonic() + 60
    while not session.emptied and time.monotonic() < deadline:
        time.sleep(0.1)
    assert session.emptied and not session.others and not session.adapters and session.run is None
    before = len(client.predict(job, api_name="/learn_status")["losses"])
    while len(client.predict(job, api_name="/learn_status")["losses"]) == before:
        time.sleep(0.1)  # the run goes on, and can be stopped by whoever has its id
    client.predict(job, api_name="/learn_stop")
    while (status := client.predict(job, api_name="/learn_status"))["state"] == "running":
        time.sleep(0.1)
    assert status["state"] == "stopped" and status["held_out"] > 0
    gc.collect()
    assert not any(reference() for reference in own)  # neither the page's state nor a view of the model holds them
    for _ in range(4):
        short = Client(address, **CALM)
        short.predict("maths: 1", api_name="/set_alphas")
        short.close()
    while (count := sum(state.is_closed for state in blocks.state_holder.session_data.values())) > 3:
        assert time.monotonic() < deadline + 60, count
        time.sleep(0.1)


def test_routers_are_learned_and_become_columns(client):
    job = client.predict("moe", {}, 8, 2, 0.01, 4, 0, api_name="/learn")
    while client.predict(job, api_name="/learn_status")["state"] in ("waiting", "running"):
        time.sleep(0.1)
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
        while (status := client.predict(job, api_name="/learn_status"))["state"] in ("waiting", "running"):
            time.sleep(0.1)
        assert status["state"] == "failed" and "not enough memory" in status["message"]
    assert ask(client, ["code"], max_new_tokens=3)["code"]["done"]


def test_a_shared_page_keeps_the_disk_to_itself(tmp_path):
    import app

    blocks = app.build_app(files=tmp_path, device="cpu", shared=True, roots=[tmp_path])
    _, url, _ = blocks.launch(prevent_thread_lock=True, server_name="127.0.0.1", **app.launch_options())
    try:
        client = Client(url, **CALM)
        for path in ("/etc", str(SHIPPED), "owner/name"):
            with pytest.raises(AppError, match="shared"):
                client.predict(path, "", api_name="/load_adapter")
        client.close()
    finally:
        blocks.close()


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
    assert json.dumps(app.launch_options()["share"]) == "false"
