"""What is kept of visitors' work: all of it comes back, exactly; nobody else's; bounded; damaged files are told and set aside."""

import json
import os
import time

import pytest

from lab.app import actions
from lab.app import workspaces as module
from lab.app.context import Context
from lab.app.engine import Engine
from lab.app.sources import open_adapter, shipped_skills
from lab.errors import LabError
from lab.experiments.presets import get_preset
from lab.lora.peft_io import save
from tests.app.waiting import until

FORM = {"prompt": "How many?", "gold": "7", "columns": ["base", "merge"]}


@pytest.fixture(scope="module")
def engine():
    return Engine("embedded", device="cpu")


@pytest.fixture
def context(engine, tmp_path):
    return Context(engine, get_preset("embedded"), tuple(shipped_skills()), tmp_path / "results", tmp_path / "app")


def at_work(context):
    """A visitor who has changed nearly everything."""
    session, line = context.arrive("")
    assert line == ""
    context.keep(session)
    session.form = FORM
    session.set_text("maths: ramp 0.2 1; code layers 1 q: -0.2")
    session.store("A")
    session.set_text("maths: 0.123")
    session.add("ties 0.3", session.make("ties", {"density": 0.3}))
    session.add("arrow", session.make("arrow", {}))
    context.keep(session)
    assert not session.unkept
    return session


def restarted(context) -> Context:
    return Context(context.engine, context.preset, context.adapters, context.results, context.files)


def weights(context) -> list:
    return sorted((context.files / "workspaces" / "weights").glob("*"))


def test_all_of_the_work_comes_back_exactly(context, tmp_path):
    session = at_work(context)
    save(tmp_path / "mine", session.merged("merge"))
    actions.load_adapter(context, session, str(tmp_path / "mine"))
    session.set_text("mine layers 2: 0.5")
    session.store("B")
    session.add("ties 0.3", session.make("ties", {"density": 0.3}))
    session.add("arrow", session.make("arrow", {}))
    context.keep(session)
    for later in (context, restarted(context)):
        again, line = later.arrive(session.key)
        assert "here again" in line and "maths, code, mine" in line and "setting B" in line and "2 further columns" in line
        assert [a.digest() for a in again.adapters] == [a.digest() for a in session.adapters]
        assert again.text == session.text and (again.slots["B"] == session.slots["B"]).all()
        assert again.form == FORM and again.columns == session.columns and again.sources == session.sources
        assert again.others["ties 0.3"].digest() == session.others["ties 0.3"].digest()
        assert again.others["ties 0.3"].recipe == session.others["ties 0.3"].recipe
        assert again.others["arrow"].recipe["parameters"] == session.others["arrow"].recipe["parameters"]
        assert again.adapters[0] is later.adapters[0]  # memory is not taken twice
    visits = [context.arrive(session.key)[0].adapters[2] for _ in range(5)]
    assert len(set(map(id, visits))) == 1


def test_who_only_looks_leaves_nothing(context):
    session, _ = context.arrive("")
    context.keep(session)
    assert not list(context.files.rglob("*.json"))
    assert context.arrive(session.key)[1] == ""


def test_nobody_finds_anothers_work(context):
    session = at_work(context)
    names = " ".join(f.name for f in context.files.rglob("*"))
    assert len(session.key) >= 32 and session.key not in names
    for guess in ("", "a", session.key[:-1] + "é", "../" + session.key, None, 7, session.key.lower() + "x"):
        other, line = context.arrive(guess)
        assert line == "" and other.text != session.text
        assert other.key == guess or len(other.key) >= 32


def test_a_learned_result_outlives_the_server(context):
    session = at_work(context)
    id = actions.learn(context, session, "cat_free", {}, 8, 2, 0.1, 2)
    until(lambda: context.jobs.find(id).over)
    text = actions.learn_use(context, session, id)
    later = restarted(context)
    again, line = later.arrive(session.key)
    assert "a learned result" in line and again.job == id
    assert actions.learn_status(later, again, id)["state"] == "done" and len(actions.learn_status(later, again, id)["losses"]) == 2
    assert actions.learn_use(later, again, id) == text
    assert actions.learn_column(later, again, id) == "learned cat_free"
    assert len(later.jobs.find(id).view["drift"]) == 2
    for _ in range(10):  # others learn, and the server forgets its oldest runs
        later.jobs.submit("other", lambda job: None)
    until(lambda: not later.jobs.busy)
    later.jobs.submit("other", lambda job: None)
    assert id not in later.jobs and actions.learn_use(later, again, id) == text


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"version": 1}', b"[" * 100_000, None, "version", "base"], ids=range(9))
def test_what_is_damaged_or_of_another_version_is_told_and_set_aside(context, content):
    session = at_work(context)
    file = context.workspaces.place(session.key, "embedded")
    state = json.loads(file.read_text())
    if content is None:
        content = json.dumps(state | {"alphas": "maths: 99999"}).encode()
    elif content == "version":
        content = json.dumps(state | {"version": 0}).encode()
    elif content == "base":
        content = json.dumps(state | {"base": "other"}).encode()
    file.write_bytes(content)
    again, line = context.arrive(session.key)
    assert "set aside" in line and line.count(".json.damaged") == 1 and str(file.parent) not in line
    assert again.grid.skills == ("maths", "code")
    assert not file.exists() and file.with_name(f"{file.name}.damaged").read_bytes() == content
    context.keep(again)  # as the page does when it opens
    again.set_text("maths: 0.4")
    context.keep(again)
    assert "here again" in context.arrive(session.key)[1]


def test_damaged_weights_are_never_used(context, tmp_path):
    session = at_work(context)
    (ties,) = [f for f in weights(context) if f.stem.startswith(session.others["ties 0.3"].digest())]
    data = bytearray(ties.read_bytes())
    data[-3] ^= 0x11
    ties.write_bytes(data)
    again, line = restarted(context).arrive(session.key)
    assert "ties 0.3" in line and "set aside" in line and list(again.others) == []


def test_work_stays_with_its_base(context, tiny_base, monkeypatch):
    """Who exchanges the base takes nobody's work away: it comes back with the base."""
    mine, theirs = at_work(context), at_work(context)
    theirs.set_text("code: 0.77")
    context.keep(theirs)
    try:
        actions.exchange_base(context, mine, str(tiny_base))
        assert mine.base == str(tiny_base) and mine.grid is None
        with pytest.raises(LabError, match="exchanged.*reload"):
            context.check(theirs)
        now, line = context.arrive(theirs.key)
        assert "kept" in line and "embedded" in line and now.grid is None
    finally:
        said = actions.exchange_base(context, mine, "embedded")
    assert "here again" in said and mine.text.startswith("maths: 0.123")
    now, line = context.arrive(theirs.key)
    assert "here again" in line and "code: 0.77" in now.text


def test_it_is_bounded_in_size_and_age(context, monkeypatch):
    sessions = [at_work(context) for _ in range(3)]
    files = [context.workspaces.place(s.key, s.base) for s in sessions]
    for days, file in enumerate(files):
        os.utime(file, (time.time() - days * 86400,) * 2)
    monkeypatch.setattr(module, "DAYS", 1.5)
    context.workspaces.sweep()
    assert [f.exists() for f in files] == [True, True, False]
    monkeypatch.setattr(module, "MOST", 1)
    context.workspaces.sweep()
    assert [f.exists() for f in files] == [True, False, False]
    assert len(weights(context)) == 4  # maths, code, ties and the router, once for all
    monkeypatch.setattr(module, "BYTES", 1000)
    monkeypatch.setattr(module, "GRACE", -1)
    context.workspaces.sweep()
    assert not any(f.exists() for f in files) and not weights(context)
    monkeypatch.setattr(module, "OWN_BYTES", 1000)
    sessions[0].set_text("maths: 0.9")
    context.keep(sessions[0])
    assert "is not kept for a reload" in sessions[0].unkept and not files[0].exists()


def test_a_full_disk_is_told_and_the_work_goes_on(context, monkeypatch):
    session = at_work(context)

    def full(*args):
        raise LabError("Could not write it: no space left on device; free some space.")

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_atomic", full)
        session.set_text("maths: 0.9")
        context.keep(session)
        assert "no space" in session.unkept
    context.keep(session)
    assert not session.unkept and "maths: 0.9" in context.arrive(session.key)[0].text


def test_begun_anew_and_brought_back(context):
    session = at_work(context)
    text = session.text
    actions.start_fresh(context, session)
    context.keep(session)
    assert session.text == "maths: 0.8\ncode: 0.8" and not session.others and context.arrive(session.key)[1] == ""
    assert "here again" in actions.bring_back(context, session) and session.text == text and len(session.others) == 2
    with pytest.raises(LabError, match="no earlier work"):
        actions.bring_back(context, session)


def test_a_recipe_brings_its_own_adapters_back(context, tmp_path):
    session = at_work(context)
    save(tmp_path / "mine", session.adapters[1])
    session.set_text("maths: 0.5")
    actions.use(context, session, [session.adapters[0], open_adapter(str(tmp_path / "mine"))])
    session.set_text("mine: 0.25")
    context.keep(session)
    recipe, text = actions.recipe(context, session), session.text
    other, _ = context.arrive("")
    assert "alphas are set" in actions.use_recipe(context, other, recipe)
    assert set(other.grid.skills) == {"maths", "mine"}
    assert sorted(other.text.splitlines()) == sorted(text.splitlines())
    strange = dict(recipe, inputs=[i | {"name": "unknown", "digest": "ab" * 32} for i in recipe["inputs"]])
    with pytest.raises(LabError, match="load those adapters"):
        actions.use_recipe(context, other, strange)


def test_many_visits_take_no_memory(context):
    """A hundred reloads hold the same weights; the figures for a process are in benchmarks/visitors.py."""
    session = at_work(context)
    seen = [context.arrive(session.key)[0].others["ties 0.3"] for _ in range(20)]
    assert len(set(map(id, seen))) == 1
