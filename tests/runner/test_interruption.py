"""kill -9 while a skill trains, while coefficients are learned and while answers are written: the records come out the same."""

import json
import os
import signal
import subprocess
import sys
import time

from lab.files import PROJECT
from lab.records.record import load_records

PROGRAM = """
import sys, time, torch
torch.set_num_threads(1)
import lab.training.loop, lab.evaluation.generate
from lab.experiments import comparison, sections
from lab.experiments.presets import get_preset
from pathlib import Path
base, folder, pause = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
lab.training.loop.fit.__kwdefaults__["checkpoint_seconds"] = 0.0
loss = lab.training.loop.token_loss
def slow(model, batch):
    time.sleep(pause)
    return loss(model, batch)
lab.training.loop.fit.__kwdefaults__["loss"] = slow
cut = lab.evaluation.generate.cut
def slow_cut(text, stop):
    time.sleep(pause)
    return cut(text, stop)
lab.evaluation.generate.cut = slow_cut
preset = get_preset("embedded", base=base, rank=2, lora_alpha=4, train_rows=64, coefficient_share=0.5, coefficient_rates=(0.1,),
                    own_test=2, max_new_tokens=4, generation_batch=2, dropout=0.1)
comparison.compare(sections.MATH_CODE, preset, ["maths", "cat"], [0], 12, out=folder / "records", artifacts=folder / "artifacts")
"""
STAGES = {"skill training": "skill-maths-*.checkpoint", "coefficients": "cat-*.checkpoint-0.1", "answers": "answers-*.checkpoint"}


def start(base, folder, pause: float) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(base), str(folder), str(pause)], cwd=PROJECT, stderr=subprocess.DEVNULL, start_new_session=True
    )


def contents(folder) -> list[str]:
    texts = []
    for record in load_records(folder / "records"):
        kept = {k: v for k, v in vars(record).items() if k not in ("seconds", "environment", "path")}
        texts.append(json.dumps({**kept, "rows": record.rows()}, default=str, sort_keys=True))
    return texts


def test_killed_three_times_gives_the_same_records(tiny_base, tmp_path):
    undisturbed = start(tiny_base, tmp_path / "a", 0)
    killed_at = []
    for stage, pattern in STAGES.items():
        worker = start(tiny_base, tmp_path / "b", 0.1)
        deadline = time.monotonic() + 90
        while not list((tmp_path / "b" / "artifacts").glob(pattern)):
            assert worker.poll() is None and time.monotonic() < deadline, f"{stage} was never reached"
            time.sleep(0.02)
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
        killed_at.append(stage)
    assert start(tiny_base, tmp_path / "b", 0).wait(120) == 0
    assert undisturbed.wait(120) == 0
    assert killed_at == list(STAGES)
    assert contents(tmp_path / "b") == contents(tmp_path / "a") and len(contents(tmp_path / "a")) == 2
    left = [p.name for p in (tmp_path / "b" / "artifacts").iterdir() if ".checkpoint" in p.name or (p.is_dir() and p.name[0] == ".")]
    assert left == []


