"""What visitors do, without a page: asking, voting, loading, learning, saving; each was once silently wrong."""

import json
import re
import socket
import time
from dataclasses import replace

import pandas as pd
import pytest

from lab.app import actions
from lab.app.compare import Question, show
from lab.app.context import Context
from lab.app.engine import Engine
from lab.app.sources import open_uploads, read_pairs, read_prompts, shipped_skills
from lab.app.streaming import Answer
from lab.app.tab_learn import _verdict
from lab.app.workspaces import new_key
from lab.errors import LabError
from lab.experiments.presets import get_preset, preset_for
from lab.lora.base import EMBEDDED
from lab.lora.peft_io import save
from lab.merging import METHODS
from tests.app.waiting import until


@pytest.fixture(scope="module")
def engine():
    return Engine("embedded", device="cpu")


@pytest.fixture
def context(engine, tmp_path):
    return Context(engine, get_preset("embedded"), tuple(shipped_skills()), tmp_path / "results", tmp_path / "app")


@pytest.fixture
def session(context):
    session = context.session()
    session.key = new_key()
    return session


def saying(monkeypatch, *texts):
    """The columns say these, in their order, to every question."""

    def fixed(engine, lane, prompts, rows, decoding, stopped):
        yield [Answer(text, 3, 0.1, True) for _ in range(len(prompts) // len(texts)) for text in texts]

    monkeypatch.setattr("lab.app.compare.stream", fixed)


def asked(context, session, questions, columns, **options):
    *_, state = actions.answers(context, session, questions, columns, 8, 0, 1, 0, **options)
    return state


# Asking


def test_the_gold_of_an_example_goes_with_its_text_and_old_verdicts_with_it(context, session, monkeypatch):
    text, template, gold = actions.example(context, "hard_math_code", 1)
    saying(monkeypatch, "def solution():\n    return 1\n")
    asked(context, session, [actions.question(context, text, template, gold)], ["base"])
    assert "gold" in show(session.run)
    assert actions.edited(context, session, text, template, gold, [text, gold]) == (gold, False)
    assert actions.edited(context, session, text + " Really?", template, gold, [text, gold]) == ("", True)
    shown = show(session.run)
    assert "wrong" not in shown and gold not in shown and "before it was edited" in shown
    assert actions.edited(context, session, "My own", template, "7", [text, gold])[0] == "7"  # typed by hand
    assert actions.edited(context, session, text, template, "", [text, gold])[0] == ""  # taken away by hand
    assert actions.edited(context, session, text, template, gold, [text, gold]) == (gold, True) and "gold" in show(session.run)


def test_a_blind_vote_sees_no_verdict_and_the_same_answer_once(context, session, monkeypatch):
    saying(monkeypatch, "def solution():\n    return 1\n", "def solution():\n    return 2\n", "def solution():\n    return 1\n")
    question = Question("q", "2", program=True)
    state = asked(context, session, [question], ["base", "maths", "code"], blind=True)
    hidden = show(state)
    assert state.verdicts[0][1].reason == "right" and not re.search("right|wrong|gold|<code>", hidden)
    assert hidden.count("<article") == 2 and len(state.ballot) == 2
    (same,) = [label for label, columns in state.ballot.items() if len(columns) == 2]
    assert re.fullmatch(r"Answer [ABC] = [ABC]", same) and same in hidden
    revealed = show(actions.vote(context, session, same))
    assert revealed.count("<article") == 3 and "right" in revealed
    votes, _ = context.ballot.votes()
    assert {(vote.winner, vote.players) for vote in votes} == {("base", ("base", "maths")), ("code", ("code", "maths"))}
    with pytest.raises(LabError, match="voted"):
        actions.vote(context, session, same)
    with pytest.raises(LabError, match="one prompt"):
        next(actions.answers(context, session, [question] * 2, ["base", "maths"], 8, 0, 1, 0, blind=True))


def test_a_long_file_of_prompts_is_counted_and_only_a_part_is_asked(context, session, tmp_path):
    file = tmp_path / "many.txt"
    file.write_text("What is it?\n" * 100_000)
    assert "100,000 prompts" in actions.file_length(session, str(file))
    assert len(actions.file_questions(context, str(file), "as typed", 20)) == 20
    for count in (0, 501, 100_000):
        with pytest.raises(LabError, match="first 1 to 500"):
            actions.file_questions(context, str(file), "as typed", count)


# Adapters


def test_an_adapter_of_this_base_under_another_path_is_taken_for_it(context, session, tmp_path):
    """As when the base was copied: the weights are the same."""
    adapter = replace(session.adapters[1], base=str(EMBEDDED["embedded"]), name="mine")
    save(tmp_path / "mine", adapter)
    state = actions.load_adapter(context, session, str(tmp_path / "mine"))
    assert state["skills"] == ["maths", "code", "mine"] and session.adapters[2].base == "embedded"


def test_what_is_refused_is_not_loaded_and_can_be_mended_once(context, session, tmp_path, tiny_base):
    save(tmp_path / "mine", replace(session.adapters[1], base="owner/name", name="mine"))
    new = actions.read_source(context, session, str(tmp_path / "mine"))
    facts = actions.stage(context, session, actions.put(context, session, new))
    assert not facts.ok and "base=" not in " ".join(facts.problems)
    assert [a.name for a in session.adapters] == ["maths", "code"]
    again = actions.read_source(context, session, str(tmp_path / "mine"))  # a retry doubles nothing
    assert [a.name for a in actions.put(context, session, again)] == ["maths", "code", "mine"]
    assert actions.refuse(context, session, again, "")
    assert actions.stage(context, session, actions.mend(context, session)).ok
    assert [a.name for a in session.adapters] == ["maths", "code", "mine"]
    with pytest.raises(LabError, match="Nothing waits"):
        actions.mend(context, session)
    strange = [replace(again[0], base=str(tiny_base), name="strange")]  # its base is there, and another one
    assert not actions.refuse(context, session, strange, "")


def test_ones_own_adapters_take_the_place_of_all(context, session, tmp_path):
    for name, adapter in zip(("a", "b"), session.adapters, strict=True):
        save(tmp_path / name, replace(adapter, base="owner/name"))
    for name in ("a", "b"):
        place = actions.ALL if name == "a" else ""
        new = actions.read_source(context, session, str(tmp_path / name), place)
        assert actions.stage(context, session, actions.put(context, session, new, place)).ok
    assert [a.name for a in session.adapters] == ["a", "b"]


def test_the_words_about_an_upload(tmp_path):
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(b"x")
    with pytest.raises(LabError, match="^The upload has no adapter_config.json"):
        open_uploads([file])


def test_a_hub_that_cannot_be_reached_is_told_soon(context, session, monkeypatch):
    waited = []

    def nobody(address, timeout):
        waited.append(timeout)
        raise TimeoutError

    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(socket, "create_connection", nobody)
    started = time.monotonic()
    for ask in (lambda: actions.load_adapter(context, session, "nobody/nothing"), lambda: actions.exchange_base(context, session, "nobody/nothing")):
        with pytest.raises(LabError, match="Hub cannot be reached"):
            ask()
    assert waited == [2, 2] and time.monotonic() - started < 60 and context.engine.source == "embedded"


# Rows


def test_what_is_taken_of_a_file_is_said(tmp_path):
    file = tmp_path / "alpaca.jsonl"
    file.write_text('{"instruction": "Add", "input": "2 and 3", "output": "5", "id": 7}\n{"instruction": "Say hi", "input": "", "output": "hi", "id": 8}\n')
    rows = read_pairs(file)
    assert rows.pairs == [("Add\n2 and 3", "5"), ("Say hi", "hi")]
    assert rows.told == "alpaca.jsonl: 2 rows; prompt from instruction and input, completion from output; not used: id."
    table = tmp_path / "rows.csv"
    table.write_text('\ufeffprompt,completion\n"a, b","c\nd"\ne,f\n', encoding="utf-8")
    assert read_pairs(table).pairs == [("a, b", "c\nd"), ("e", "f")]
    assert read_prompts(table) == [("a, b", "c\nd"), ("e", "f")]
    for text, said in {"prompt,completion\n": "no rows", "a\nb\n": "two text fields", "prompt,completion\nx\n": "row 1", 'a,b\n"x': "CSV"}.items():
        table.write_text(text)
        with pytest.raises(LabError, match=said):
            read_pairs(table)


def test_each_skill_has_a_file_or_one_says_that_it_mixes_them(context, session, tmp_path):
    files = [tmp_path / f"{name}.jsonl" for name in ("maths", "code")]
    for file in files:
        file.write_text('{"prompt": "Question: 2 and 3?", "completion": " 5"}\n' * 8)
    one, both = [str(files[0])], list(map(str, files))
    with pytest.raises(LabError, match=r"1 file for 2 skills \(maths, code\)"):
        actions.material(context, session, 8, 0, one)
    assert set(actions.material(context, session, 8, 0, one, mixed=True).held) == {"maths"}
    assert set(actions.material(context, session, 8, 0, both).held) == {"maths", "code"}
    with pytest.raises(LabError, match="3 files"):
        actions.material(context, session, 8, 0, [*both, both[0]])
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "maths.jsonl").write_text(files[0].read_text())
    with pytest.raises(LabError, match="called maths"):
        actions.material(context, session, 8, 0, [both[0], str(tmp_path / "b" / "maths.jsonl")])
    assert [mark for mark, _ in actions.describe_rows([*both, str(tmp_path / "nothing.txt")])] == ["dim", "dim", "bad"]


def test_two_rules_in_a_line_are_told(session):
    with pytest.raises(LabError, match="two rules"):
        session.set_text("maths: 0.5 code: 0.3")


# Bases


def test_a_base_gets_its_own_preset_or_none_of_the_toys_data(context, session, tiny_base):
    assert preset_for("embedded") == get_preset("embedded") and preset_for("smollm2-135m") == get_preset("laptop")
    own = preset_for("/models/mine", dtype="bfloat16", chat=True)
    assert own.dtype == "bfloat16" and own.chat and own.max_tokens > get_preset("embedded").max_tokens
    assert actions.has_data(context, session)
    import app

    blocks = app.build_app(str(tiny_base), files=context.files, device="cpu")
    assert blocks.context.preset.name == "own" and blocks.context.preset.base == str(tiny_base)
    assert not actions.has_data(blocks.context, session)
    blocks.context.end()


# Learning


def test_learning_ends_in_a_verdict(context, session):
    session.set_text("layers all: 0")
    id = actions.learn(context, session, "cat_free", {}, 8, 3, 0.3, 4, checked=4)
    job = context.jobs.find(id)
    until(lambda: job.over)
    assert job.state == "done", job.message
    verdict = json.loads(json.dumps(job.view["verdict"]))
    assert verdict["losses"]["after"]["maths"] < verdict["losses"]["before"]["maths"]  # from nothing at all
    right = verdict["right"]
    assert right["n"] == 4 and right["before"][0] == 0 and right["test"] == "exact McNemar" and 0 <= right["p"] <= 1
    shown = _verdict(verdict)
    assert "right of 4 problems" in shown and "held-out loss of maths" in shown
    noisy = verdict | {"right": right | {"p": 0.4, "difference": [0.25, -0.1, 0.6]}}
    sure = verdict | {"right": right | {"p": 0.001, "difference": [0.25, 0.1, 0.4]}}
    assert "noise" in _verdict(noisy) and "noise" not in _verdict(sure) and "more problems" in _verdict(sure)
    assert "No problems were asked" in _verdict(verdict | {"right": None}) and "stopped" in _verdict(None)
    assert "in the mixer" in actions.use_learned(context, session, id) and session.text != "maths: 0\ncode: 0"


# Saving


def compared(context, session, columns=("base", "maths", "merge")):
    questions = [Question(f"q{i}", str(i), program=True) for i in range(4)]
    return asked(context, session, questions, columns)


def test_a_comparison_is_saved_listed_and_opened_again(context, session, monkeypatch):
    session.set_text("maths: 0.3; code: 0.9")
    text = session.text
    session.add("ties 0.3", session.make("ties", {"density": 0.3}))
    saying(monkeypatch, "none", "def solution():\n    return 1\n", "def solution():\n    return 2\n", "def solution():\n    return 2\n")
    compared(context, session, ["base", "maths", "merge", "ties 0.3"])
    session.set_text("maths: 1")
    files, told = actions.save_comparison(context, session, "My first / comparison")
    assert "Results lists it" in told
    by_name = {file.rsplit("/", 1)[-1]: file for file in files}
    assert set(by_name) == {"answers.jsonl", "table.csv", "table.tex", "table.md", "chart.png", "chart.svg"}
    rows = [json.loads(line) for line in open(by_name["answers.jsonl"])]
    assert len(rows) == 16 and {row["column"] for row in rows} == {"base", "maths", "merge", "ties 0.3"}
    table = pd.read_csv(by_name["table.csv"], index_col=0)
    assert table.loc["maths", "score"] == 0.25 and table.loc["merge", "n"] == 4 and table.loc["maths", "test"] == "exact McNemar"
    assert (table["low"] <= table["score"]).all() and (table["score"] <= table["high"]).all()
    assert open(by_name["table.md"]).read().count("\n| ") == 5 and "\\toprule" in open(by_name["table.tex"]).read()
    assert open(by_name["chart.png"], "rb").read(4) == b"\x89PNG" and "<svg" in open(by_name["chart.svg"]).read()
    (section,) = actions.sections(context, session)[0]
    assert "My first - comparison" in section and "saved by you" in section
    columns, told = actions.open_run(context, session, section, "merge", "0")
    assert session.text == text and "merge" in columns
    session.others = {}
    columns, _ = actions.open_run(context, session, section, "ties 0.3", "0")
    assert columns[-1] == "TIES" and session.others["TIES"].recipe["parameters"]["density"] == 0.3
    assert len(actions.section_files(context, session, section)) == 6
    other, nobody = context.session(), context.session()
    other.key = new_key()
    assert not actions.sections(context, other)[0] and not actions.sections(context, nobody)[0]  # others do not see it
    with pytest.raises(LabError, match="already"):
        actions.save_comparison(context, session, "My first / comparison")
    with pytest.raises(LabError, match="no such records"):
        actions.remove_comparison(context, other, section)
    assert actions.remove_comparison(context, session, section) == "My first - comparison"
    assert not actions.sections(context, session)[0]


def test_a_comparison_without_golds_gives_its_answers_only(context, session, monkeypatch):
    with pytest.raises(LabError, match="no comparison yet"):
        actions.save_comparison(context, session, "x")
    saying(monkeypatch, "a", "b")
    asked(context, session, [Question("p1"), Question("p2")], ["base", "maths"])
    (file,), told = actions.save_comparison(context, session, "x")
    assert "Only the answers" in told and len(open(file).readlines()) == 4 and not actions.sections(context, session)[0]
    compared(context, session, ["base", "maths"])
    for name in ("", "  ", "..", "/"):
        with pytest.raises(LabError, match="name"):
            actions.save_comparison(context, session, name)
    actions.save_comparison(context, session, "../../etc")
    assert not (context.files.parent / "etc").exists()


def test_several_methods_are_added_in_one_go_and_what_refuses_is_told(context, session):
    added, refused = actions.add_methods(context, session, ["ties", "dare_linear", "cat_static"])
    assert added == ["TIES", METHODS["dare_linear"].label, "Static CAT"] and not refused and session.columns[-3:] == added
    added, refused = actions.add_methods(context, session, ["ties", "nothing"])
    assert added == ["TIES 2"] and len(refused) == 1 and "nothing" in refused[0]
    with pytest.raises(LabError, match="Choose"):
        actions.add_methods(context, session, [])
