"""The app's parts without a page: streaming, sessions, uploads, jobs, votes, recipes, learning."""

import gc
import io
import shlex
import shutil
import threading
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from lab.app import actions, charts, takehome
from lab.app.compare import Question, compare, differences, show
from lab.app.engine import Engine, shared_copy
from lab.app.jobs import Jobs
from lab.app.learning import Material, layers_job, learn_job, own_material, target_material, weigh
from lab.app.session import Session
from lab.app.showcase import WORD_PROBLEMS
from lab.app.sources import Access, open_adapter, open_uploads, read_pairs, read_prompts, shipped_skills
from lab.app.streaming import Decoding, stream
from lab.app.tab_compare import _ratings
from lab.app.turns import Turns
from lab.app.votes import Ballot, Vote, elo
from lab.cli.main import main as command
from lab.errors import LabError
from lab.evaluation.generate import end_tokens, generate
from lab.experiments.presets import get_preset
from lab.lora.adapter import LoraFactors
from lab.lora.base import load_base
from lab.lora.peft_io import load, save
from lab.lora.stacked import attach
from lab.merging import METHODS, merge
from lab.merging.routing import load_router
from lab.tasks import Example, hard_math_code
from lab.training.lora import encode_examples
from tests.app.waiting import PATIENCE, until

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def engine():
    return Engine("embedded", device="cpu")


@pytest.fixture
def session(engine):
    session = Session()
    session.take(shipped_skills(), engine.model, "embedded")
    return session


@pytest.fixture(scope="module")
def prompts():
    return [e.prompt for e in hard_math_code.TASK.load("world", "test", 3, 0)]


def last(stream):
    *_, final = stream
    return final


def test_streamed_answers_are_those_of_the_library(engine, session, prompts):
    """Every row of a mixed batch (other prompts, other coefficients) answers as if it were alone."""
    session.set_text("maths: late 0.2 1; code: 0.9")
    adapters, rows = session.plan(["base", "maths", "code", "merge"])
    lane = engine.lane(adapters)
    batch = [p for p in prompts for _ in range(4)]
    answers = last(stream(engine, lane, batch, rows.repeat(3, 1, 1), Decoding(40)))
    model, options = engine.model, {"max_new_tokens": 40, "stop": ("\nQuestion:",)}
    assert [a.text for a in answers[0::4]] == generate(model, engine.tokenizer, prompts, **options)
    with attach(model, adapters) as stack:
        for column in (1, 2, 3):
            stack.set_coefficients(rows[column])
            assert [a.text for a in answers[column::4]] == generate(model, engine.tokenizer, prompts, **options)


def test_the_stream_and_the_library_stop_at_every_end_token(tiny_base, tokenizer, prompts):
    """Chat models name several in their generation_config; the second need not be special to the tokenizer."""
    engine = Engine(str(tiny_base), device="cpu")
    model, batch, length = engine.model, prompts, 30

    def both() -> list[str]:
        streamed = last(stream(engine, engine.lane(()), batch, torch.zeros(len(batch), 0, 0), Decoding(length, stop=())))
        texts = generate(model, engine.tokenizer, batch, max_new_tokens=length)
        assert [a.text for a in streamed] == texts
        return [a.tokens for a in streamed]

    told = [engine.tokenizer(text, add_special_tokens=False)["input_ids"] for text in generate(
        model, engine.tokenizer, batch, max_new_tokens=length)]  # fmt: skip
    ends = sorted({told[0][4], told[1][2]})  # two that the answers do come to
    model.generation_config.eos_token_id = ends
    assert end_tokens(model, engine.tokenizer) == sorted({*ends, engine.tokenizer.eos_token_id})
    firsts = [next((i for i, token in enumerate(ids) if token in ends), length) for ids in told]
    assert both() == firsts and firsts[0] <= 4 and firsts[1] <= 2
    model.generation_config.eos_token_id = ends[0]  # one number means the same as a list of one
    assert both()[0] >= firsts[0]


def test_sampling_is_seeded_whoever_else_is_asking(engine, session, prompts):
    adapters, rows = session.plan(["code"])
    lane, hot = engine.lane(adapters), Decoding(20, temperature=1.5, top_p=0.95, seed=3)
    alone = last(stream(engine, lane, prompts[:1], rows, hot))[0].text
    mine, others = (
        stream(engine, lane, prompts[:1], rows, hot),
        stream(engine, lane, prompts[1:2], rows, Decoding(20, 1.0)),
    )
    for _ in range(3):
        next(mine), next(others)
    assert last(mine)[0].text == alone
    assert last(stream(engine, lane, prompts[:1], rows, Decoding(20, 1.5, 0.95, seed=4)))[0].text != alone


@pytest.mark.parametrize(
    "prompt, decoding, said",
    [
        ("", {}, "empty"),
        ("  \n", {}, "empty"),
        ("word " * 3000, {}, "exceed"),
        ("x" * 300_000, {}, "characters"),
        ("a", {"max_new_tokens": 0}, "max_new_tokens"),
        ("a", {"temperature": float("nan")}, "temperature"),
        ("a", {"top_p": 0}, "top_p"),
    ],
)
def test_bad_prompts_and_decoding(engine, session, prompt, decoding, said):
    adapters, rows = session.plan(["base"])
    with pytest.raises(LabError, match=said):
        last(stream(engine, engine.lane(adapters), [prompt], rows, Decoding(**decoding)))


def test_turns_are_given_in_order():
    turns, order, threads = Turns(), [], []

    def take(name):
        with turns:
            order.append(name)

    with turns:
        for name in range(5):
            threads.append(threading.Thread(target=take, args=(name,)))
            threads[-1].start()
            until(lambda: len(turns._line) == name + 1)
    for thread in threads:
        thread.join(PATIENCE)
    assert order == list(range(5))


def test_a_session_undoes_keeps_and_compares(session):
    first = session.text
    session.set_text("maths: 0.5")
    session.store("A")
    session.set_text("maths: 0")
    assert session.plan(["A", "merge"])[1][:, 0, 0].tolist() == [0.5, 0]
    session.undo()
    session.undo()
    assert session.text == first
    session.recall("A")
    assert session.text.startswith("maths: 0.5")
    with pytest.raises(LabError, match="empty"):
        session.recall("B")
    with pytest.raises(LabError, match="no column"):
        session.plan(["C"])
    with pytest.raises(LabError, match="NaN"):
        session.set(np.full(session.alphas.shape, np.nan))


def test_lanes_share_the_weights_and_are_let_go(engine, session):
    lane = engine.lane(session.adapters)
    ours = {p.data_ptr() for p in engine.model.parameters()}
    assert {p.data_ptr() for p in lane.model.parameters()} <= ours
    before = len(engine._lanes)
    for _ in range(8):
        other = Session()
        other.take(shipped_skills(), engine.model, "embedded")
        engine.lane(other.adapters)
    assert len(engine._lanes) <= max(before, 4)


@pytest.mark.parametrize("readable", [True, False])
def test_another_base_comes_after_the_old_one_is_freed_and_not_at_all_when_it_fails(
    tiny_base, tmp_path, monkeypatch, readable
):
    engine, session = Engine("embedded", device="cpu"), Session()
    session.take(shipped_skills(), engine.model, "embedded")
    adapters, rows = session.plan(["merge"])
    answers = stream(engine, engine.lane(adapters), ["Question: 1?\nProgram:\n"], rows, Decoding(60))
    next(answers)
    old, held = engine.model, []

    def watched(source, **options):
        held.append(sum(p.numel() for p in old.parameters()))
        if source != "embedded" and not readable:
            raise MemoryError
        return load_base(source, **options)

    monkeypatch.setattr("lab.app.engine.load_base", watched)
    with pytest.raises(LabError, match="does not exist"):
        engine.load(str(tmp_path / "nothing"))
    assert engine.model is old and not held  # what is wrong is seen before anything is freed
    if readable:
        engine.load(str(tiny_base))
        assert engine.source == str(tiny_base) and held == [0]
    else:
        with pytest.raises(MemoryError):
            engine.load(str(tiny_base))
        assert engine.source == "embedded" and held == [0, 0]
        assert last(stream(engine, engine.lane(adapters), ["Question: 1?"], rows, Decoding(3)))[0].tokens
    with pytest.raises(LabError, match="exchanged"):
        list(answers)


def test_an_adapter_whose_folder_goes_stays_in_use(engine, tmp_path):
    skills = shipped_skills()
    save(tmp_path / "mine", skills[0])
    session = Session()
    session.take([open_adapter(str(tmp_path / "mine")), skills[1]], engine.model, "embedded")
    shutil.rmtree(tmp_path / "mine")
    adapters, rows = session.plan(["merge"])
    assert last(stream(engine, engine.lane(adapters), ["Question: 1?"], rows, Decoding(3)))[0].tokens
    assert takehome.as_zip(engine, session, "merge").is_file()
    with pytest.raises(LabError, match="not a folder"):
        open_adapter(str(tmp_path / "mine"))


def test_adapters_that_do_not_go_together_are_refused(engine, session):
    maths, code = shipped_skills()
    module, factors = next(iter(code.modules.items()))
    narrow = replace(code, modules={module: LoraFactors(factors.A[:, :-1], factors.B, 1.0)})
    for wrong, said in (([maths, narrow], module), ([maths, replace(code, name="maths")], "maths"), ([], "adapter")):
        with pytest.raises(LabError, match=said):
            session.take(wrong, engine.model, "embedded")
    assert session.grid.skills == ("maths", "code")  # the ones before stay in use


def test_another_base_refuses_the_adapters(tiny_base):
    engine = Engine(str(tiny_base), device="cpu")
    with pytest.raises(LabError, match="base"):
        Session().take(shipped_skills(), engine.model, engine.source)


# Uploads


def packed(folder, entries: dict) -> str:
    path = folder / "adapter.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return str(path)


def test_uploads_as_zip_and_as_files(tmp_path):
    maths = shipped_skills()[0]
    save(tmp_path / "maths", maths)
    files = {f.name: f.read_bytes() for f in (tmp_path / "maths").iterdir()}
    (zipped,) = open_uploads(
        [packed(tmp_path, {f"deep/maths/{name}": data for name, data in files.items()})], taken=["maths"]
    )
    assert zipped.name == "maths-2" and zipped.digest() == maths.digest()
    (loose,) = open_uploads([tmp_path / "maths" / name for name in files])
    assert loose.digest() == maths.digest()


@pytest.mark.parametrize(
    "entries, said",
    [
        ({"../adapter_config.json": "{}"}, "outside"),
        ({"/etc/adapter_config.json": "{}"}, "outside"),
        ({"..\\x": "{}"}, "outside"),
        ({"adapter_model.bin": b"\x80\x04"}, "pickled"),
        ({"readme.txt": "hello"}, "adapter_config.json"),
        ({"adapter_config.json": "{", "adapter_model.safetensors": b""}, "JSON"),
        ({"adapter_config.json": '{"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"]}', "adapter_model.safetensors": b"abc"}, "truncated"),
        ({"adapter_model.safetensors": bytes(60 << 20)}, "unpack"),
        ({"a/adapter_config.json": "{}", "b/adapter_config.json": "{}"}, "several"),
    ],
)
def test_bad_zips(tmp_path, entries, said):
    with pytest.raises(LabError, match=said) as told:
        open_uploads([packed(tmp_path, entries)])
    assert "/tmp" not in str(told.value)


def test_no_zip_and_pickles(tmp_path):
    (tmp_path / "fake.zip").write_bytes(b"no zip at all")
    with pytest.raises(LabError, match="damaged"):
        open_uploads([tmp_path / "fake.zip"])
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80")
    with pytest.raises(LabError, match="pickled"):
        open_uploads([tmp_path / "adapter_model.bin"])
    with pytest.raises(LabError, match="Choose a zip"):
        open_uploads([])


def test_visitors_of_a_shared_page_read_below_the_roots_only(tmp_path):
    inside, outside = tmp_path / "allowed", tmp_path / "private"
    for folder in (inside, outside):
        save(folder / "maths", shipped_skills()[0])
    access = Access((inside,))
    assert open_adapter(str(inside / "maths"), access).rank == 16
    (inside / "way-out").symlink_to(outside)
    said = set()
    for path in (
        outside / "maths",
        outside / "nothing",
        inside / ".." / "private" / "maths",
        inside / "way-out" / "maths",
        "owner/name",
    ):
        with pytest.raises(LabError) as told:
            open_adapter(str(path), access)
        said.add(str(told.value))
    assert len(said) == 1  # the same words, whether or not something is there


def test_rows_from_files(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a", "completion": "b"}\n\n{"prompt": "c", "completion": "d"}\n')
    assert read_pairs(file).pairs == [("a", "b"), ("c", "d")]
    file.write_text('{"x": "a", "y": "b"}\n')
    assert read_pairs(file).pairs == [("a", "b")]
    for text, said in {
        '{"prompt": "a", "completion": "b"}\n{"prompt"': "line 2",
        '{"prompt": "a", "completion": "b"}\n{"prompt": "a"}': "row 2",
        "[1, 2]": "row 1",
        '{"prompt": "a", "completion": 3}': "no text",
        "": "empty",
    }.items():
        file.write_text(text)
        with pytest.raises(LabError, match=said) as told:
            read_pairs(file)
        assert str(tmp_path) not in str(told.value)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one\n\ntwo\n")
    assert read_prompts(prompts) == [("one", ""), ("two", "")]
    file.write_text('{"input": "a", "target": 3}\n')
    assert read_prompts(file) == [("a", "3")]


# Comparing


def test_programs_are_run_and_judged(engine, session, monkeypatch):
    texts = {
        "base": "I do not know",
        "maths": "def solution():\n    return 6 * 7\n",
        "code": "def solution():\n    return 1\n",
        "merge": "def solution(:\n",
    }

    def fixed(engine, lane, prompts, rows, decoding, stopped):
        from lab.app.streaming import Answer

        yield [Answer(text, 3, 0.1, True) for text in texts.values()]

    monkeypatch.setattr("lab.app.compare.stream", fixed)
    state = last(compare(engine, session, [Question("q", "42", program=True)], list(texts), Decoding(), judge=actions.judge))
    assert [v.reason for v in state.verdicts[0]] == ["no code", "right", "wrong", "syntax error"]
    assert state.values[0][1] == "42"
    assert "right" in show(state) and "gold 42" in show(state)


def test_a_comparison_stops_and_keeps_what_it_has(engine, session, prompts):
    steps = compare(engine, session, [Question(p) for p in prompts], ["base", "code"], Decoding(100))
    next(steps)
    session.stop.set()
    state = last(steps)
    assert state.note == "stopped" and state.done and state.answers[0][0].tokens > 0


def test_blind_answers_hide_their_columns(engine, session):
    state = last(
        compare(engine, session, [Question("Question: 1?\nProgram:\n")], ["base", "maths"], Decoding(5), blind=True)
    )
    hidden = show(state)
    assert "maths" not in hidden and "Answer A" in hidden
    state.voted = "none"
    assert "maths" in show(state)


def test_differences_are_marked_and_harmless():
    html = differences("total = 1", "total = 2 <script>")
    assert "<mark>2" in html and "<del>1</del>" in html and "<script>" not in html


def test_votes_and_ratings(tmp_path):
    ballot = Ballot(tmp_path / "deep" / "votes.jsonl")
    for i in range(12):
        ballot.cast(Vote(f"p{i}", ("good", "middle", "bad"), "good" if i % 4 else "middle"))
    ballot.cast(Vote("p0", ("good", "bad"), ""))
    with pytest.raises(LabError, match="not among"):
        ballot.cast(Vote("p", ("a", "b"), "c"))
    with open(ballot.file, "a") as file:
        file.write("{broken\n")
    votes, damaged = ballot.votes()
    assert len(votes) == 13 and damaged == [14]  # named, not dropped
    table = elo(votes)
    assert list(table.index) == ["good", "middle", "bad"] and table["wins"].tolist() == [18, 6, 0]
    assert (table["low"] <= table["rating"]).all() and (table["rating"] <= table["high"]).all()
    assert table["rating"].mean() == pytest.approx(1000) and np.isfinite(table.to_numpy(dtype=float)).all()
    for few in (table, elo([Vote("p", ("a", "b"), "a")] * 50), elo([Vote("p", ("a", "b"), "")])):
        assert "nan" not in charts.elo_chart(few).alt and "nan" not in _ratings(few)
    assert elo([]).empty


# Learning


def material(engine) -> Material:
    named = [{"skill": name} for name in ("maths", "code")]
    rows = [Example(str(i), f"Question: {i}?\nAnswer:", f" {i} and {i}", metadata=named[i % 2]) for i in range(12)]
    return Material(
        encode_examples(engine.tokenizer, rows, 64), {"maths": encode_examples(engine.tokenizer, rows[:4], 64)}
    )


def finished(job):
    until(lambda: job.over)
    return job


def test_learning_in_the_background_lets_others_answer_and_stops(engine, session, prompts):
    jobs = Jobs()
    before = {name: p.clone() for name, p in engine.model.named_parameters()}
    work = learn_job(
        engine,
        session.adapters,
        material(engine),
        method="cat",
        parameters={"parametrisation": "free"},
        steps=5000,
        learning_rate=0.1,
        batch_size=2,
        seed=0,
    )
    job, second = jobs.submit("learn", work), jobs.submit("learn", work)
    until(lambda: len(job.view.get("losses", ())) >= 3)
    assert jobs.place(second) == 1
    jobs.stop(second)
    adapters, rows = session.plan(["code"])
    answer = last(stream(engine, engine.lane(adapters), prompts[:1], rows, Decoding(12)))[0]
    assert not job.over and answer.tokens == 12  # it answered while the run went on
    jobs.stop(job)
    finished(job)
    assert job.state == "stopped" and second.state == "stopped" and second.result is None
    assert len(job.view["losses"]) < 5000 and len(job.view["drift"]) >= 1
    assert job.result.alphas.shape == session.alphas.shape and (job.result.alphas != 0.5).any()
    assert all((p == before[name]).all() for name, p in engine.model.named_parameters())


def test_bad_settings_of_a_run_are_told_at_once(engine, session):
    usual = {"method": "cat", "parameters": {}, "steps": 5, "learning_rate": 0.1, "batch_size": 2, "seed": 0}
    for change, said in [
        ({"steps": 0}, "steps"),
        ({"learning_rate": float("nan")}, "learning rate"),
        ({"batch_size": 0}, "batch_size"),
        ({"method": "ties"}, "learns no"),
        ({"parameters": {"parametrisation": "no"}}, "parametrisation"),
    ]:
        with pytest.raises(LabError, match=said):
            learn_job(engine, session.adapters, material(engine), **usual | change)
    with pytest.raises(LabError, match="at least 4"):
        own_material(engine, get_preset("embedded"), {"few": [("a", "b")]}, 0)


def test_layers_are_weighed_against_the_losses(engine, session):
    held = material(engine).held
    job = finished(Jobs().submit("layers", layers_job(engine, session, held, 0.0)))
    costs = job.view["costs"]
    assert costs.shape == (6, 1) and np.isfinite(costs).all()
    whole = weigh(engine, session, ["merge"], held)["merge"]["maths"]
    session.set_text("layers 2: 0")
    assert weigh(engine, session, ["merge"], held)["merge"]["maths"] - whole == pytest.approx(costs[2, 0], abs=1e-5)


def test_one_failed_job_does_not_stop_the_line():
    jobs = Jobs()

    def broken(job):
        raise RuntimeError("secret /path")

    first, second = jobs.submit("x", broken), jobs.submit("x", lambda job: 7)
    assert finished(second).result == 7 and first.state == "failed"
    assert "secret" not in first.message


def learned(engine, session, method, parameters, steps=2, rows=None):
    work = learn_job(
        engine, session.adapters, rows or material(engine), method=method, parameters=parameters, steps=steps,
        learning_rate=0.01, batch_size=4, seed=0,
    )  # fmt: skip
    job = finished(Jobs().submit("learn", work))
    assert job.state == "done", job.message
    return job.result


def test_routers_answer_beside_the_others_and_can_be_taken_home(engine, session, prompts, tmp_path):
    """Each router decides for its own column only; what is taken home gives the same logits."""
    for name in ("moe", "lora_flow", "xlora", "prompt_router"):  # plain, with a hook, with a cache of its own, per prompt
        found = learned(engine, session, name, {}).result(session.adapters)
        assert session.add(f"learned {name}", found) == f"learned {name}"
    session.add("arrow", session.make("arrow", {"temperature": 0.5}))
    columns = ["arrow", "base", "learned moe", "learned prompt_router", "learned xlora", "merge", "learned lora_flow"]
    questions = [Question(p) for p in prompts[:2]]
    state = last(compare(engine, session, questions, columns, Decoding(8)))
    answers = {c: [row[i].text for row in state.answers] for i, c in enumerate(columns)}
    assert all(answer.done for row in state.answers for answer in row)
    options = {"max_new_tokens": 8, "stop": ("\nQuestion:",)}
    assert answers["base"] == generate(engine.model, engine.tokenizer, prompts[:2], **options)
    ids = torch.arange(3, 40)[None]
    for column, routing in session.others.items():
        with attach(shared_copy(engine.model), session.adapters) as stack:
            routing.put_on(stack)
            assert answers[column] == generate(stack.model, engine.tokenizer, prompts[:2], **options)
            logits = stack.model(input_ids=ids).logits
        with zipfile.ZipFile(takehome.as_zip(engine, session, column)) as archive:
            archive.extractall(tmp_path)
        folder = tmp_path / f"{column.replace(' ', '-')}-adapter"
        skills = [load(folder / "skills" / name) for name in ("maths", "code")]
        with attach(shared_copy(engine.model), skills) as stack:
            load_router(folder / "router", stack)
            again = stack.model(input_ids=ids).logits
        assert torch.allclose(again, logits, atol=1e-4)
        assert f"--method {routing.recipe['method']}" in takehome.commands(session, column, "embedded")
        compile(takehome.snippet(session, column, "embedded"), "snippet", "exec")
        with pytest.raises(LabError, match="token by token"):
            takehome.as_zip(engine, session, column, folded=True)
    assert set(weigh(engine, session, columns[:2], material(engine).held)) == set(columns[:2])
    with pytest.raises(LabError, match="leave weights"):
        session.make("arrow", {}, [1, 1])


def test_lorahub_learns_from_examples_of_the_target(engine, session):
    rows = target_material(engine, get_preset("embedded"), WORD_PROBLEMS, 5)
    outcome = learned(engine, session, "lorahub", {"semantics": "delta"}, steps=4, rows=rows)
    weights = outcome.recipe["weights"]
    assert outcome.alphas[:, 0].tolist() == pytest.approx([weights["maths"], weights["code"]], abs=1e-4)
    session.add("learned lorahub", outcome.result(session.adapters))
    line = takehome.commands(session, "learned lorahub", "embedded")
    assert "--data hard_math_code.jsonl" in line and "--rates" not in line
    mixed = learned(engine, session, "lorahub", {}, steps=2, rows=rows)
    assert mixed.alphas is None and mixed.result(session.adapters).rank == 16
    with pytest.raises(LabError, match="other adapters"):
        mixed.result(session.adapters[:1])


# Taking home


def test_recipes_come_back(engine, session):
    session.set_text("maths: ring 0.1 0.9; code layers 1 q: -0.2")
    text, recipe = session.text, takehome.recipe_text(session, "merge")
    other = Session()
    other.take(shipped_skills(), engine.model, "embedded")
    takehome.apply_recipe(other, takehome.read_recipe(recipe))
    assert other.text == text
    for bad in (
        "{",
        "[]",
        "{}",
        '{"method": "cat", "coefficients": [[1]], "skills": ["maths"], "modules": []}',
        '{"alphas": "x: 1"}',
    ):
        with pytest.raises(LabError):
            takehome.apply_recipe(other, takehome.read_recipe(bad))
    assert other.text == text


def delta(adapter, module):
    return adapter.delta_weight(module)


def test_an_export_is_the_merge_and_its_command_makes_it_again(engine, session, tmp_path):
    """The page, the command line and the library mean the same by a text of alphas."""
    session.set_text("maths: ramp 0.2 1; layers 0-2 q,v: code -0.3")
    with zipfile.ZipFile(io.BytesIO(takehome.as_zip(engine, session, "merge").read_bytes())) as archive:
        archive.extractall(tmp_path)
    exported, merged = load(tmp_path / "merge-adapter"), session.merged("merge")
    given = []
    for adapter in session.adapters:
        save(tmp_path / adapter.name, adapter)
        session.sources[adapter.name] = str(tmp_path / adapter.name)
        given.append(load(tmp_path / adapter.name))
    program, *words = shlex.split(takehome.commands(session, "merge", "embedded"))
    assert program == "python" and words[:3] == ["-m", "lab", "merge"]
    words[words.index("--out") + 1] = str(tmp_path / "again")
    assert command(words[2:]) == 0
    again = load(tmp_path / "again")
    called = merge("cat_static", given, alphas=session.text)
    for module in merged.modules:
        places = [session.grid.modules.index(module)]
        by_hand = sum(a * delta(x, module) for a, x in zip(session.alphas[:, places[0]], session.adapters, strict=True))
        for found in (merged, exported, again, called):
            assert torch.allclose(delta(found, module), by_hand.float(), atol=1e-6)
    assert exported.recipe["alphas"] == again.recipe["alphas"] == merge("cat_static", given[::-1], alphas=session.text).recipe["alphas"]
    assert exported.recipe["alphas"] in (tmp_path / "again" / "README.md").read_text()


@pytest.mark.parametrize("method, parameters, weights, rank", [("ties", {"density": 0.3}, [0.7, 0.3], 8), ("svd", {}, None, None)])
def test_the_command_of_another_method_makes_it_again(engine, session, tmp_path, method, parameters, weights, rank):
    for adapter in session.adapters:
        save(tmp_path / adapter.name, adapter)
        session.sources[adapter.name] = str(tmp_path / adapter.name)
    column = session.add(method, session.make(method, parameters, weights, rank))
    words = shlex.split(takehome.commands(session, column, "embedded"))[3:]
    words[words.index("--out") + 1] = str(tmp_path / "again")
    assert command(words) == 0
    again = load(tmp_path / "again")
    for module, factors in session.others[column].modules.items():
        assert torch.allclose(delta(again, module), factors.delta_weight(), atol=1e-5)
    text = takehome.recipe_text(session, column)
    takehome.apply_recipe(session, takehome.read_recipe(text))
    assert session.others[METHODS[method].label].rank == session.others[column].rank


def test_commands_name_what_was_done(engine, session):
    session.set_text("maths: 0.7; code: 0.9")
    session.sources = {"maths": "a b/maths"}
    said = takehome.commands(session, "merge", "embedded")
    assert "--method cat_static --alphas 'code: 0.9; maths: 0.7'" in said and "'maths=a b/maths'" in said
    for base in ("embedded", "owner/base"):
        compile(takehome.snippet(session, "merge", base), "snippet", "exec")


def test_memory_stays_flat_over_many_answers_and_settings(engine):
    """The figures for 200 answers and 50 swaps in a process of its own are in benchmarks/visitors.py."""
    session = Session()
    session.take(shipped_skills(), engine.model, "embedded")

    def kept() -> int:
        engine.keep([*session.adapters, *session.others.values()])
        gc.collect()
        return sum(t.numel() * t.element_size() for t in gc.get_objects() if issubclass(type(t), torch.Tensor))

    def some(count):
        for i in range(count):
            if i % 4 == 0:  # other adapters, a method and a router
                session.take(shipped_skills(), engine.model, "embedded")
                session.add("ties", session.make("cat_static", {}))
                session.add("arrow", session.make("arrow", {}))
            session.set_text(f"maths: {i % 7 / 7:.3f}")
            columns = ["base", "merge", "ties", "arrow"]
            question = Question("Question: a?\nProgram:\n")
            assert last(compare(engine, session, [question], columns, Decoding(2))).done

    some(4)
    before = kept()
    some(12)
    assert kept() <= before + 100_000
