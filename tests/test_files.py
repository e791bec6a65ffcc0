"""Writing: whole or not at all, whoever is killed or is faster; the same content, the same bytes; what is wrong is named."""

import contextlib
import errno
import multiprocessing
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from lab import files
from lab.errors import LabError
from lab.files import PROJECT, atomic_file, atomic_folder, content_hash, lock, temporary_folder, write_atomic
from lab.lora.peft_io import save
from lab.training.loop import TrainConfig, bucketed_batches, fit
from tests.tiny_models import llama, two_skills
from tests.training.test_training import ROWS, tiny


def make(path: Path, text: str, **options) -> None:
    with atomic_folder(path, **options) as folder:
        (folder / "a").write_text(text)


def workplace(path: Path, former: str = "") -> Path:
    """What a killed process leaves, with the former folder in it or not."""
    place = path.with_name(f".{path.name}.abcd1234.writing")
    (place / "new").mkdir(parents=True)
    if former:
        (place / "old-1").mkdir()
        (place / "old-1" / "a").write_text(former)
    return place


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_a_killed_process_left_goes_with_the_next_one_and_only_that(tmp_path):
    out = tmp_path / "both"
    make(out, "old")
    workplace(out, "older")
    workplace(tmp_path / "both.v2")
    (tmp_path / ".both.notes").write_text("mine")
    make(out, "new", overwrite=True)
    assert names(tmp_path) == [".both.notes", ".both.v2.abcd1234.writing", "both"]
    assert (out / "a").read_text() == "new"


def test_a_former_folder_without_a_successor_goes_back_to_its_place(tmp_path):
    out = tmp_path / "both"
    workplace(out, "former")
    with pytest.raises(LabError, match="exists already"):
        make(out, "new")
    assert names(tmp_path) == ["both"] and (out / "a").read_text() == "former"
    workplace(out, "older")
    make(out, "new", overwrite=True)
    assert names(tmp_path) == ["both"] and (out / "a").read_text() == "new"


def test_what_a_living_process_writes_is_left_to_it(tmp_path):
    out = tmp_path / "both"
    with atomic_folder(out) as mine:
        (mine / "a").write_text("slow")
        make(tmp_path / "both", "fast")
        assert (mine / "a").read_text() == "slow"
        with pytest.raises(LabError, match="exists already"):  # told, not raised by the system
            with atomic_folder(out):
                pass
        (out / "a").unlink()
        out.rmdir()
    assert (out / "a").read_text() == "slow" and names(tmp_path) == ["both"]


def test_the_slower_of_two_writers_is_told(tmp_path):
    with pytest.raises(LabError, match="exists already"):
        with atomic_folder(tmp_path / "both"):
            make(tmp_path / "both", "fast")
    assert (tmp_path / "both" / "a").read_text() == "fast" and names(tmp_path) == ["both"]


class NoExchange:
    """A system that cannot exchange two names."""

    def __init__(self, *arguments, **options):
        pass


@pytest.mark.parametrize("exchange", [True, False])
def test_overwriting_keeps_no_former_folder_and_needs_no_exchange_of_names(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(files.ctypes, "CDLL", NoExchange)
    for text in ("one", "two", "three"):
        make(tmp_path / "both", text, overwrite=True)
        assert (tmp_path / "both" / "a").read_text() == text and names(tmp_path) == ["both"]


def test_a_former_folder_stays_where_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr(files.ctypes, "CDLL", NoExchange)
    make(tmp_path / "both", "former")
    rename = os.rename

    def refuse(source, target):
        if Path(source).name == "new":
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(LabError, match="Input/output error"):
        make(tmp_path / "both", "new", overwrite=True)
    assert (tmp_path / "both" / "a").read_text() == "former" and names(tmp_path) == ["both"]


def _overwrite(path: Path, text: str, times: int, told: multiprocessing.Queue, exchange: bool) -> None:
    if not exchange:
        files.ctypes.CDLL = NoExchange
    try:
        for _ in range(times):
            make(path, text, overwrite=True)
    except BaseException as error:
        told.put(repr(error))
        raise


@pytest.mark.parametrize("exchange", [True, False])
def test_processes_that_overwrite_one_folder_never_meet_an_error_of_the_system(tmp_path, exchange):
    context = multiprocessing.get_context("fork")
    told = context.Queue()
    writers = [context.Process(target=_overwrite, args=(tmp_path / "both", text, 150, told, exchange)) for text in "xyz"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert told.empty() and [writer.exitcode for writer in writers] == [0, 0, 0]
    assert (tmp_path / "both" / "a").read_text() in "xyz" and names(tmp_path) == ["both"]


def test_a_temporary_folder_is_cleared_away_after_a_kill(tmp_path, monkeypatch):
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path))
    workplace(tmp_path / "soup-lab-probe")
    with temporary_folder("probe") as mine, temporary_folder("probe") as other:
        assert sorted([mine, other]) == sorted(tmp_path.iterdir())
    assert names(tmp_path) == []


ADAPTER = """
import sys, torch
from lab.lora.adapter import LoraAdapter, LoraFactors
from lab.lora.peft_io import save
from lab.export.folders import export
torch.manual_seed(0)
modules = {f"model.layers.{i}.self_attn.{k}_proj": LoraFactors(torch.randn(2, 8), torch.randn(8, 2)) for i in (0, 1) for k in "qv"}
export(sys.argv[1], LoraAdapter("ü", "base", modules, {"method": "x", "text": 'a "quote", \\\\ and \\x01\\x7f é'}))
"""


def test_equal_content_has_equal_bytes_in_processes_with_different_hash_seeds(tmp_path):
    for seed in range(6):  # of two pieces of metadata one order is as likely as the other
        run = [sys.executable, "-c", ADAPTER, tmp_path / f"{seed}"]
        subprocess.run(run, cwd=PROJECT, env={**os.environ, "PYTHONHASHSEED": str(seed)}, check=True)
    assert len({content_hash(tmp_path / f"{seed}") for seed in range(6)}) == 1
    assert len({(tmp_path / f"{seed}" / "adapter_model.safetensors").read_bytes() for seed in range(6)}) == 1


@contextlib.contextmanager
def small_disk(size: int):
    """Files of this process grow no larger, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_as_the_system_tells_it_and_leaves_nothing(tmp_path):
    def checkpoint(path: Path) -> None:
        batches = bucketed_batches(ROWS, 4, 1, 0, 0)
        fit(tiny(), batches, TrainConfig(steps=1, learning_rate=1e-3), checkpoint=path)

    writers = {
        "text": lambda path: write_atomic(path, "x" * 10_000),
        "folder": lambda path: make(path, "x" * 10_000),
        "adapter": lambda path: save(path, two_skills(llama())[0]),
        "checkpoint": checkpoint,
    }
    for name, write in writers.items():
        with small_disk(4096), pytest.raises(LabError) as told:
            write(tmp_path / name)
        assert "File too large" in str(told.value) and "free some space" in str(told.value), name
        assert "iostream" not in str(told.value) and names(tmp_path) == []


def test_a_folder_in_the_place_of_a_lock_is_named(tmp_path):
    (tmp_path / ".x.lock").mkdir()
    with pytest.raises(LabError, match=r"\.x\.lock cannot be taken .*remove what is in its place"):
        with lock(tmp_path / ".x.lock"):
            pass


def test_a_failed_file_leaves_the_old_one(tmp_path):
    write_atomic(tmp_path / "a", "old")
    with pytest.raises(RuntimeError):
        with atomic_file(tmp_path / "a") as temporary:
            temporary.write_text("half")
            raise RuntimeError
    assert (tmp_path / "a").read_text() == "old" and names(tmp_path) == ["a"]


def test_kills_lose_nothing_and_leave_nothing():
    """The whole of it: python -m tests.campaigns.kills."""
    run = subprocess.run([sys.executable, "-m", "tests.campaigns.kills", "12", "7"], cwd=PROJECT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "12 kills" in run.stdout and "0 lost, 0 left over, 0 failed" in run.stdout
