import gzip
import json
from dataclasses import replace

import pytest

from lab.errors import LabError
from lab.evaluation import statistics
from lab.evaluation.evaluate import scored_rows
from lab.evaluation.scorers import Verdict
from lab.experiments.candidates import describe
from lab.files import content_hash
from lab.records import record as record_of
from lab.records import tables
from lab.records.record import (
    by_question,
    environment,
    find_record,
    load_records,
    make_record,
    questions_file,
    save_record,
    skill_names,
)
from lab.tasks import Example


def rows_of(scores, reason="wrong"):
    reasons = {1.0: "right", 0.0: reason, None: "unscored"}
    return [
        {"id": f"p{i}", "question": "", "group": "", "prompt": "How many?", "targets": ["1"], "metadata": {}, "completion": f"x{score}",
         "extracted": "1", "score": score, "reason": reasons[score], "extras": {} if score is None else {"last_number": 1.0}}
        for i, score in enumerate(scores)
    ]  # fmt: skip


def saved(folder, method, seed, scores, **more):
    rows = rows_of(scores)
    options = {"section": "s", "preset": "embedded", "task": "t", "task_version": 1, "key": content_hash(method, seed)} | more
    record = make_record(rows, method=method, seed=seed, **options)
    return save_record(record, rows, folder)


OWN = {"maths": 0.9, "code": 0.8}


@pytest.fixture
def records(tmp_path):
    """Base, two skills and a merge that solves what each of them solves, and two problems more."""
    saved(tmp_path, "base", 0, [0.0] * 8, own=OWN)
    for seed in (0, 1):
        saved(tmp_path, "maths", seed, [1.0, 0.0] + [0.0] * 6, own=OWN)
        saved(tmp_path, "code", seed, [0.0, 1.0] + [0.0] * 6, own=OWN)
        saved(tmp_path, "cat", seed, [1.0, 1.0, 1.0, 1.0] + [0.0] * 4, own=OWN, seconds={"learning": 3.0, "evaluation": 4.0})
        saved(tmp_path, "cat_static", seed, [1.0, 1.0, float(seed), 0.0] + [0.0] * 4, own=OWN, loss=[2.0, 1.0])
    return load_records(tmp_path)


def test_a_record_counts_what_its_rows_say():
    rows = rows_of([1.0, 0.0, None, 1.0])
    record = make_record(
        rows, section="s", preset="p", method="cat", seed=0, task="t", task_version=1, key=content_hash(1)
    )
    assert (record.n, record.unscored) == (3, 1)
    assert record.scores == {"right": pytest.approx(2 / 3), "last_number": 1.0}
    assert record.classes == {"right": 2, "wrong": 1, "unscored": 1}
    assert record.interval == statistics.proportion_interval(2, 3)


def test_round_trip_keeps_everything(tmp_path):
    values = {"skills": ["maths", "code"], "modules": ["m"], "values": [[0.25], [0.75]]}
    record = saved(tmp_path, "cat", 1, [1.0, None, 0.0], coefficients=values, own=OWN, loss=[2.5, 1.25], sandbox="landlock")
    (loaded,) = load_records(tmp_path, "s")
    assert loaded == record
    assert loaded.rows() == rows_of([1.0, None, 0.0])
    assert loaded.path.name == f"cat-seed1-{content_hash('cat', 1)[:10]}.json"


def test_the_same_bytes_every_time(tmp_path):
    first = saved(tmp_path / "a", "cat", 0, [1.0, 0.0]).path.with_suffix(".jsonl.gz").read_bytes()
    assert first == saved(tmp_path / "b", "cat", 0, [1.0, 0.0]).path.with_suffix(".jsonl.gz").read_bytes()


def test_a_past_record_is_never_edited(tmp_path):
    record = saved(tmp_path, "cat", 0, [1.0, 0.0], seconds={"evaluation": 1.0})
    before = record.path.read_bytes()
    assert saved(tmp_path, "cat", 0, [1.0, 0.0], seconds={"evaluation": 9.0}) == record
    with pytest.raises(LabError, match="never edited"):
        saved(tmp_path, "cat", 0, [1.0, 1.0])
    assert record.path.read_bytes() == before


def test_finished_work_is_found_and_damaged_work_done_again(tmp_path):
    record = saved(tmp_path, "cat", 0, [1.0, 0.0])
    assert find_record(tmp_path, "s", record.key) == record
    assert find_record(tmp_path, "s", content_hash("other")) is None
    record.path.with_suffix(".jsonl.gz").write_bytes(gzip.compress(b"{}\n"))
    with pytest.warns(UserWarning, match=f"{record.path.name}, or its completions, is damaged: it is made again"):
        assert find_record(tmp_path, "s", record.key) is None
    with pytest.raises(LabError, match="do not belong"):
        record.rows()
    assert saved(tmp_path, "cat", 0, [1.0, 0.0]).rows() == rows_of([1.0, 0.0])


def test_questions_lie_once_for_all_that_were_asked_them(tmp_path):
    one, two = saved(tmp_path, "cat", 0, [1.0, 0.0]), saved(tmp_path, "cat", 1, [0.0, None])
    other = saved(tmp_path, "cat", 2, [1.0])
    asked = questions_file(one)
    assert asked == questions_file(two) != questions_file(other)
    assert len(list((tmp_path / "s").glob("questions-*"))) == 2 and two.rows() == rows_of([0.0, None])
    asked.write_bytes(b"cut")
    with pytest.warns(UserWarning, match="is damaged"):
        assert find_record(tmp_path, "s", one.key) is None
    with pytest.raises(LabError, match=f"{asked.name} are missing or damaged"):
        two.rows()
    saved(tmp_path, "cat", 0, [1.0, 0.0])
    assert one.rows() == rows_of([1.0, 0.0]) and two.rows() == rows_of([0.0, None])


def test_rows_that_hold_their_questions_are_read_too(tmp_path):
    record = saved(tmp_path, "cat", 0, [1.0, 0.0])
    whole = "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows_of([1.0, 0.0]))
    record.path.with_suffix(".jsonl.gz").write_bytes(gzip.compress(whole.encode()))
    assert questions_file(record) is None and record.rows() == rows_of([1.0, 0.0])


def test_what_a_kill_left_beside_a_record_goes_with_the_next_saving_or_finding(tmp_path):
    record = saved(tmp_path, "cat", 0, [1.0, 0.0])
    for saving in (True, False):
        for file in (record.path, record.path.with_suffix(".jsonl.gz"), questions_file(record)):
            file.with_name(f".{file.name}.abcd1234.writing").mkdir()
        if saving:
            record.path.unlink()  # it was killed before it wrote this one
            assert saved(tmp_path, "cat", 0, [1.0, 0.0]) == record
        else:
            assert find_record(tmp_path, "s", record.key) == record
        assert not list(record.path.parent.glob(".*")), saving


def test_damaged_and_foreign_files_are_skipped_and_named(tmp_path):
    record = saved(tmp_path, "cat", 0, [1.0, 0.0])
    whole = record.path.read_text()
    (tmp_path / "s" / "cut.json").write_text(whole[:200])
    (tmp_path / "s" / "foreign.json").write_text('{"a": 1}')
    (tmp_path / "s" / "list.json").write_text("[]")
    (tmp_path / "s" / "cat-seed9-0000000000.json").write_text(whole)
    with pytest.warns(UserWarning, match="cat-seed9-0000000000.json.*cut.json.*foreign.json.*list.json"):
        assert load_records(tmp_path) == [record]


def test_no_record_without_its_completions(tmp_path, monkeypatch):
    written = []

    def fail_at_record(path, content):
        if path.suffix == ".json":
            raise LabError("disk full")
        written.append(path)

    monkeypatch.setattr(record_of, "write_atomic", fail_at_record)
    with pytest.raises(LabError, match="disk full"):
        saved(tmp_path, "cat", 0, [1.0, 0.0])
    assert [path.name.endswith(".jsonl.gz") for path in written] == [True, True]


def test_bad_input_is_told_in_one_sentence(tmp_path):
    rows = rows_of([1.0, 0.0])
    record = make_record(rows, section="s", preset="p", method="cat", seed=0, task="t", task_version=1, key="k" * 64)
    with pytest.raises(LabError, match="not those of the record"):
        save_record(record, rows[:1], tmp_path)
    with pytest.raises(LabError, match="cannot be written as JSON"):
        save_record(replace(record, own={"maths": float("nan")}), rows, tmp_path)
    with pytest.raises(LabError, match="p0 occurs twice"):
        saved(tmp_path, "cat", 0, [1.0]) and make_record(
            rows_of([1.0]) * 2, section="s", preset="p", method="cat", seed=0, task="t", task_version=1, key="k"
        )
    with pytest.raises(LabError, match="2 examples, 1 completions and 1 verdicts"):
        scored_rows([None, None], ["a"], [None])


def test_scored_rows_hold_the_facts_of_example_and_verdict():
    example = Example("p0", "How many?", targets=("1",))
    verdict = Verdict("right", 1.0, "1", {"last_number": 1.0})
    assert scored_rows([example], ["x1.0"], [verdict]) == rows_of([1.0])
    told = scored_rows([replace(example, question="q", group="format 3", metadata={"set": "piqa"})], ["x1.0"], [verdict])
    assert told == [rows_of([1.0])[0] | {"question": "q", "group": "format 3", "metadata": {"set": "piqa"}}]


def test_result_table(records):
    table = tables.result_table(records, "cat")
    assert list(table.index) == ["base", "maths", "code", "cat_static", "cat"]
    assert table.loc["cat", "score"] == 0.5 and table.loc["cat", "seconds"] == 7.0
    assert table.loc["cat_static", "by_seed"] == [0.25, 0.375]
    static = [[1, 1, 0, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0]]
    expected = statistics.mean_interval(static)
    assert (table.loc["cat_static", "low"], table.loc["cat_static", "high"]) == (expected.low, expected.high)
    test = statistics.paired_test(static, [[1, 1, 1, 1, 0, 0, 0, 0]] * 2)
    assert table.loc["cat_static", "p"] == test.p_value and table.loc["cat_static", "difference"] == -0.1875
    assert table.loc["base", "p"] == statistics.paired_test([[0] * 8] * 2, [[1, 1, 1, 1, 0, 0, 0, 0]] * 2).p_value
    others = table.drop("cat")
    assert list(others["p_holm"]) == list(statistics.holm(dict(others["p"])).values())
    assert table.loc["cat"][["difference", "p", "p_holm"]].isna().all()


def test_formatted_table(records):
    shown = tables.format_table(tables.result_table(records, "cat"))
    assert shown.loc["CAT", "difference to CAT, points"] == ""
    assert shown.loc["Base", "difference to CAT, points"].startswith("−50.0 (")
    assert shown.loc["maths skill", "maths test, %"] == "90.0"
    assert shown.loc["Base", "n × seeds"] == "8 × 1"


def test_the_finding_is_clear_only_where_the_test_and_the_interval_agree(tmp_path):
    def told(name, *by_seed, rival="data_mix"):
        runs = [("cat", [1.0, 0.0] * 20)] * len(by_seed) + [(rival, scores) for scores in by_seed]
        return tables.finding([saved(tmp_path / name, method, i % len(by_seed), scores) for i, (method, scores) in enumerate(runs)])

    half = "The only merge, CAT, solves 50.0 %: "
    assert told("steady", [0.0] * 40, [0.0] * 40) == f"{half}clearly ahead of Data mix (0.0 %)."
    assert told("one", [1.0] * 40) == f"{half}clearly behind Data mix (100.0 %)."
    assert told("level", [1.0, 0.0] * 20) == f"{half}not clearly different from Data mix (50.0 %)."
    assert told("apart", [0.0] * 40, [1.0, 0.0] * 20) == f"{half}not clearly different from Data mix (25.0 %)."
    by_method = {name: [r for r in load_records(tmp_path / "apart") if r.method == name] for name in ("cat", "data_mix")}
    apart = tables.differences({("apart",): (by_method["cat"], by_method["data_mix"])}).iloc[0]
    assert apart["p_holm"] < 0.001 and apart["low"] < 0 and apart["verdict"] == "unclear"  # the seeds disagree: not for new ones
    assert told("merges", [1.0] * 40, rival="ties") == (
        "The best of 2 merges on this test, TIES, solves 100.0 %. CAT, the paper's method, solves 50.0 %, clearly behind it."
    )
    assert told("behind", [0.0] * 40, rival="ties") == "The best of 2 merges on this test, CAT, solves 50.0 %."
    assert tables.finding([saved(tmp_path / "none", "base", 0, [1.0])]) == "There is no merge among these records."


def test_wordings_of_a_question_count_once(tmp_path):
    """Asked in two formats and right or wrong in both, a question tells no more than asked once; half right is a half."""
    right = {"cat": [1, 1, 1, 0, 1, 0, 1, 1], "ties": [1, 0, 1, 0, 0, 0, 1, 0]}

    def table(folder, ids, questions):
        for method, scores in right.items():
            facts = [{"id": name, "question": question} for name, question in zip(ids, questions, strict=True)]
            rows = [row | own for own, row in zip(facts, rows_of(map(float, scores * (len(ids) // 8))), strict=True)]
            made = make_record(
                rows, section="s", preset="p", method=method, seed=0, task="t", task_version=1, key=content_hash(method)
            )
            save_record(made, rows, tmp_path / folder)
        return tables.result_table(load_records(tmp_path / folder), "cat")

    formats = table("formats", [f"format {f}, {q}" for f in (3, 7) for q in range(8)], [str(q) for _ in (3, 7) for q in range(8)])
    once = table("once", [str(q) for q in range(8)], [""] * 8)
    apart = table("apart", [str(q) for q in range(16)], [""] * 16)
    columns = ["score", "low", "high", "difference", "difference_low", "difference_high", "p"]
    assert formats[columns].equals(once[columns]) and set(formats["n"]) == {8}
    assert apart.at["ties", "p"] < once.at["ties", "p"]
    half = [("a", "1", 1.0), ("b", "1", 0.0), ("c", "2", None), ("d", "2", 1.0), ("e", "", 1.0)]
    assert by_question([{"id": name, "question": asked, "score": score} for name, asked, score in half]) == {"1": 0.5, "2": None, "e": 1.0}


def test_tables_refuse_what_cannot_be_compared(records, tmp_path):
    with pytest.raises(LabError, match="no record of ties"):
        tables.result_table(records, "ties")
    with pytest.raises(LabError, match="two records of cat seed 0"):
        tables.result_table([*records, replace(records[-1], seed=0)], "cat")
    other = saved(tmp_path / "more", "ties", 0, [1.0] * 9)
    with pytest.raises(LabError, match="different problems"):
        tables.result_table([*records, other], "cat")
    late = saved(tmp_path / "more", "cat_static", 7, [1.0] * 8), saved(tmp_path / "more", "cat_static", 8, [1.0] * 8)
    with pytest.raises(LabError, match="no seed in common"):
        tables.result_table([r for r in records if r.method != "cat_static"] + list(late), "cat")
    with pytest.raises(LabError, match="no records"):
        tables.result_table([], "cat")


def test_super_linearity(records):
    table = tables.super_linearity(records)
    assert list(table.index) == ["Static CAT", "CAT"]
    learned = table.loc["CAT"]
    assert (learned["merged_only"], learned["any_skill_count"], learned["sum_of_skills"]) == (0.25, 2, 2)
    assert learned["super_linear"] and learned["n"] == 8
    assert table.loc["Static CAT", "merged_only_count"] == 0.5
    shown = tables.format_super_linearity(table).loc["CAT"]
    assert (shown["solved"], shown["only by the merge"], shown["super-linear"]) == ("4", "2", "yes")
    with pytest.raises(LabError, match="skill alone"):
        tables.super_linearity([r for r in records if r.method in ("base", "cat")])


def test_table_one(records):
    table = tables.table_one(records)
    assert table.to_numpy().tolist() == [[0.0, 0.125], [0.125, 0.5]]
    assert list(table.index) == ["no maths", "maths"] and list(table.columns) == ["no code", "code"]
    with pytest.raises(LabError, match="needs base, ties"):
        tables.table_one(records, "ties")


def test_error_classes_are_shares_of_all_problems(tmp_path):
    saved(tmp_path, "cat", 0, [1.0, 0.0, None, 0.0])
    saved(tmp_path, "cat", 1, [1.0, 1.0, 0.0, 0.0])
    table = tables.error_classes(load_records(tmp_path))
    assert list(table.columns) == ["right", "wrong", "unscored"]
    assert table.loc["CAT"].tolist() == [0.375, 0.5, 0.125]


def test_worked_examples_begin_where_only_the_merge_is_right(records):
    worked = tables.worked_examples(records, "cat", 3)
    assert [example.id for example in worked] == ["p2", "p3", "p0"]
    assert list(worked[0].answers) == ["maths skill", "code skill", "CAT"]
    assert worked[0].answers["CAT"]["reason"] == "right"


def test_smaller_tables(records):
    both = tables.paper_and_measured({"here": records, "there": records[:1]}, {"cat": 0.2111, "moe": None})
    assert list(both) == ["here, % (n = 8 × 2)", "there, % (n = 8 × 1)", "paper (Llama-7B), %"]
    e = statistics.mean_interval([[1.0] * 4 + [0.0] * 4] * 2)
    assert both.loc["CAT"].tolist() == [f"50.0 ({100 * e.low:.1f}–{100 * e.high:.1f})", "", "21.1"] and both.loc["MoE router"].tolist() == ["", "", ""]
    assert tables.loss_curves(records) == {"Static CAT": [[2.0, 1.0]] * 2}
    assert tables.stage_seconds(records).loc["CAT", "learning"] == 3.0


def test_tradeoff_and_the_ranks_of_a_skill(records):
    part = replace(records[-1], coefficients={"skills": ["maths[0]", "maths[1]"], "modules": ["m"], "values": [[1], [1]]})
    assert skill_names([*records[:-1], part]) == skill_names(records)
    table = tables.tradeoff(records)
    assert set(table.index) == {r.method for r in records if all(r.own.get(s) is not None for s in skill_names(records))}
    first = next(r for r in records if r.method == table.index[0])
    assert table["own"].iloc[0] == pytest.approx(sum(first.own.values()) / len(first.own))
    assert len(tables.format_tradeoff(table)) == len(table)


def test_methods_are_described_in_one_place():
    order = ["base", "maths", "cat_random", "cat_static", "moe", "cat", "cat_softmax", "data_mix", "retrieval_bm25", "unheard_of"]
    infos = [describe(name, ["maths"]) for name in order]
    assert sorted(infos, key=lambda info: info.position) == infos
    assert [info.role for info in infos] == ["base", "skill", "control", "static", "router", "learned", "learned", "data", "retrieval", "other"]
    assert describe("cat_softmax").label == "CAT (softmax)"
    assert describe("new_lora_compute").label != describe("new_lora").label
    assert describe("rescale_one", ["code"]).role == "control"


def test_environment_says_where_it_ran(monkeypatch):
    found = environment()
    assert found["versions"]["torch"] and found["device"] and found["cores"] >= 1
    json.dumps(found)
    monkeypatch.setenv("PATH", "")
    assert record_of._git("rev-parse", "HEAD") is None
