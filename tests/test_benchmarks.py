"""Every benchmark runs at toy size, keeps its record, and refuses to report when its results are wrong."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import change
import common
import generate
import merge
import model_card
import step
import visitors

from lab.errors import LabError
from lab.evaluation.likelihood import Likelihood
from lab.lora.adapter import LoraAdapter, LoraFactors
from lab.lora.stacked import StackedLinear

# A process that has worked on several threads cannot be forked safely (see common.measure_alone).
torch.set_num_threads(1)

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.filterwarnings("ignore::UserWarning")]


def run(script, tmp_path, *extra):
    script.main(["--quick", "--device", "cpu", "--out", str(tmp_path), *extra])
    (path,) = tmp_path.glob(f"{script.__name__}-*.json")
    record = json.loads(path.read_text())
    assert record["device"] and record["versions"]["torch"] == torch.__version__
    assert record["checks"] and all(c["relative_error"] <= c["tolerance"] for c in record["checks"])
    return record["rows"]


def skills_counted_twice(self, x, forward=StackedLinear.forward):
    return 2 * forward(self, x) - self.base(x)


def test_step(tmp_path):
    rows = run(step, tmp_path)
    assert [(r["skills"], r["variant"]) for r in rows] == [
        (0, "base"), *((k, v) for k in (2, 3) for v in ("stacked", "peft", "released"))
    ]  # fmt: skip
    base, two = rows[0], rows[1]
    assert base["x base"] == base["arithmetic"] == 1 and all(r["median s"] > 0 for r in rows)
    # q/k/v (32, 32), up and down (86, 32), rank 2, beside them o and gate.
    assert two["arithmetic"] == pytest.approx(1 + 4 * (3 * 64 + 2 * 118) / (4 * 32 * 32 + 3 * 86 * 32))
    assert all(r["peak MB"] >= r["held MB"] for r in rows)


def test_generate(tmp_path):
    rows = run(generate, tmp_path)
    assert [r["variant"] for r in rows] == ["base", "folded", "stacked", "peft"]
    assert all(r["tokens/s"] > 0 for r in rows)


def test_merge(tmp_path):
    methods = ["cat_static", "ties_factors", "dare_linear_factors", "svd", "ties"]
    rows = {(r["method"], r["by"]): r for r in run(merge, tmp_path, "--methods", *methods)}
    assert set(rows) - {("ties", "mergekit")} == {
        *((m, "lab") for m in methods), ("ties", merge.UNCUT), *((m, "peft") for m in methods[:4]), ("torch.linalg.svd", "dense")
    }  # fmt: skip
    measured = {key: row["measured modules"] for key, row in rows.items()}
    assert measured["svd", "lab"] == 5 and measured["ties", "lab"] == 2 and measured["svd", "peft"] == 1
    assert rows["svd", "lab"]["faster than dense svd"] and rows["cat_static", "lab"]["faster than peft"]


def test_merge_measures_every_static_method_by_default():
    static = merge.static_methods()
    assert {"cat_static", "ties", "tsv", "cat_random"} <= set(static) and not {"cat", "moe"} & set(static)
    assert set(merge.SVD_FAMILY) | set(merge.PEFT_TYPES) <= set(static)


def test_change(tmp_path):
    rows = run(change, tmp_path)
    assert len(rows) == 3 and all(r["median ms"] > 0 for r in rows)


@pytest.mark.parametrize("script", [step, generate, change])
def test_wrong_results_are_not_reported(script, tmp_path, monkeypatch):
    monkeypatch.setattr(StackedLinear, "forward", skills_counted_twice)
    with pytest.raises(LabError, match="the timings mean nothing"):
        run(script, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_wrong_merge_is_not_reported(tmp_path, monkeypatch):
    def doubled(name, adapters, weights):
        modules = {m: LoraFactors(f.A, f.B, 2 * f.scaling) for m, f in adapters[0].modules.items()}
        return LoraAdapter("wrong", "", modules)

    monkeypatch.setattr(merge, "merge", doubled)
    with pytest.raises(LabError, match="ties_factors of lab and ties_factors of peft differ"):
        run(merge, tmp_path, "--methods", "ties_factors")
    assert not list(tmp_path.iterdir())


def test_change_sees_a_factor_that_moved(tmp_path, monkeypatch):
    apply = change.Stack.set_coefficients

    def rebuild(stack, values):
        layer = next(iter(stack.layers.values()))
        layer.A_cat = layer.A_cat.clone()
        apply(stack, values)

    monkeypatch.setattr(change.Stack, "set_coefficients", rebuild)
    with pytest.raises(LabError, match="moved or changed a factor"):
        run(change, tmp_path)


def test_model_card(tmp_path):
    (found,) = run(model_card, tmp_path)
    assert found["set"] == "toy" and found["n"] == 4 and found["low"] <= found["per character"] <= found["high"]


def test_model_card_goes_on_where_it_stopped(tmp_path, monkeypatch):
    """What was scored is not scored again, and what is right is told from the likelihoods."""
    asked = []

    def likelihoods(model, tokenizer, prompts, choices, **_):
        asked.extend(prompts)
        return [[Likelihood(-float(len(choice)), 1) for choice in given] for given in choices]

    monkeypatch.setattr(model_card, "likelihoods", likelihoods)
    monkeypatch.setattr(model_card, "AT_A_TIME", 2)
    partial = tmp_path / "partial.json"
    partial.write_text("[[-2.0, -7.0], [-7.0, -2.0]]")
    totals = model_card.log_likelihoods(None, None, "toy", model_card.TOY, 4, partial)
    assert asked == [model_card.CLOZE.format(text=question.text) for question in model_card.TOY[2:]]
    assert json.loads(partial.read_text()) == totals
    found = model_card.row("toy", model_card.TOY, totals, {"instruct": 66.3})
    assert found["accuracy"] == 75 and found["card"] == 66.3


def test_a_wrong_likelihood_is_not_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(model_card, "likelihoods", lambda *_, **__: [[Likelihood(-1.0, 1)]])
    with pytest.raises(LabError, match="log-likelihood of a choice"):
        run(model_card, tmp_path)
    assert not list(tmp_path.iterdir())


def test_bad_arguments_are_named(tmp_path):
    with pytest.raises(LabError, match="'nowhere' is no static method"):
        run(merge, tmp_path, "--methods", "nowhere")
    with pytest.raises(LabError, match="no device 'tpu'"):
        common.find_device("tpu")


MEASURED = """
import common, torch

def build():
    held = torch.ones(16 * 2**20)
    return lambda: float(held.repeat(2).sum())

usage = common.measure_alone(build, torch.device("cpu"))
print(usage.result, usage.held, usage.peak)
"""


def test_peak_memory_is_that_of_the_run():
    """64 MiB are held; the run makes 128 MiB more, and frees it. In a fresh process: this one's freed memory would be used again."""
    folder = Path(common.__file__).parent
    done = subprocess.run([sys.executable, "-c", MEASURED], cwd=folder, capture_output=True, text=True, check=True)
    result, held, peak = map(float, done.stdout.split())
    assert result == 32 * 2**20
    assert 60 * 2**20 < held < 80 * 2**20 and 180 * 2**20 < peak < 215 * 2**20


def test_an_error_in_the_measured_process_is_raised_here():
    def build():
        raise LabError("no room")

    with pytest.raises(LabError, match="no room"):
        common.measure_alone(build, torch.device("cpu"))


def test_visitors(tmp_path):
    rows = {row["what"]: row["value"] for row in run(visitors, tmp_path)}
    assert rows["errors"] == rows["answers that were not the visitor's own"] == 0 and rows["answers to 2 visitors in 3 s"] > 0
