"""Artifacts: made once, found again, safe to kill and to share."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from lab.errors import LabError
from lab.experiments.store import Store
from lab.files import atomic_folder, content_hash, write_atomic


def test_made_once_and_found_again(tmp_path):
    calls = []

    def make(folder: Path, checkpoint: Path) -> None:
        calls.append(1)
        (folder / "x").write_text("1")

    store = Store(tmp_path)
    assert store.get("thing", {"a": 1}, make) == store.get("thing", {"a": 1}, make)
    assert store.get("thing", {"a": 2}, make) != store.get("thing", {"a": 1}, make)
    assert len(calls) == 2


def test_failure_leaves_no_artifact_and_keeps_the_checkpoint(tmp_path):
    def fail(folder: Path, checkpoint: Path) -> None:
        (folder / "half").write_text("1")
        checkpoint.write_text("so far")
        raise LabError("no")

    def finish(folder: Path, checkpoint: Path) -> None:
        assert checkpoint.read_text() == "so far"
        (folder / "whole").write_text("1")

    store = Store(tmp_path)
    with pytest.raises(LabError):
        store.get("thing", {}, fail)
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == []
    folder = store.get("thing", {}, finish)
    assert sorted(p.name for p in folder.iterdir()) == ["key.json", "whole"]
    assert not list(tmp_path.glob("*.checkpoint"))


def _slow(root, started, calls):
    def make(folder: Path, checkpoint: Path) -> None:
        with calls.get_lock():
            calls.value += 1
        started.set()
        time.sleep(0.5)
        (folder / "x").write_text("1")

    Store(root).get("thing", {}, make)


def test_two_processes_make_it_once(tmp_path):
    context = multiprocessing.get_context("fork")
    started, calls = context.Event(), context.Value("i", 0)
    workers = [context.Process(target=_slow, args=(tmp_path, started, calls)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(20)
    assert [w.exitcode for w in workers] == [0, 0, 0] and calls.value == 1


def test_killed_process_leaves_nothing_in_the_way(tmp_path):
    context = multiprocessing.get_context("fork")
    started, calls = context.Event(), context.Value("i", 0)
    worker = context.Process(target=_slow, args=(tmp_path, started, calls))
    worker.start()
    assert started.wait(20)
    os.kill(worker.pid, signal.SIGKILL)
    worker.join(20)
    folder = Store(tmp_path).get("thing", {}, lambda folder, checkpoint: (folder / "x").write_text("2"))
    assert (folder / "x").read_text() == "2"
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == [folder.name]


def entry(store: Store, made: list, **options) -> dict:
    def make(folder: Path, checkpoint: Path) -> None:
        made.append(folder)
        (folder / "facts.json").write_text('{"x": 1}')

    return store.get("thing", {}, options.get("make", make), lambda folder: json.loads((folder / "facts.json").read_text())["x"] and folder)


def empty(folder: Path) -> None:
    (folder / "facts.json").write_text("")


@pytest.mark.parametrize(
    "damage",
    [empty, lambda f: (f / "facts.json").unlink(), lambda f: (f / "facts.json").write_text('{"x'), lambda f: (f / "facts.json").write_text("[]"),
     lambda f: (f / "facts.json").write_text("{}"), lambda f: (f / "facts.json").write_bytes(b"\xff")],
)  # fmt: skip
def test_a_damaged_entry_is_set_aside_and_made_again_and_said_once(tmp_path, damage):
    store, made = Store(tmp_path), []
    folder = entry(store, made)
    for times in (2, 3):
        damage(folder)
        with pytest.warns(UserWarning) as told:
            assert entry(store, made) == folder
        assert len(told) == 1 and f"{folder} is damaged" in str(told[0].message) and "is made again" in str(told[0].message)
        assert len(made) == times and entry(store, made) == folder and len(made) == times
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [folder.name, f"{folder.name}.damaged"]
    damage(folder)
    with pytest.raises(LabError, match=f"{folder.name} is damaged .*training is forbidden"):
        entry(store, made, make=None)


def test_a_damaged_shipped_entry_is_made_in_the_store(tmp_path):
    made = []
    folder = entry(Store(tmp_path / "shipped"), made)
    store = Store(tmp_path / "own", shipped=tmp_path / "shipped")
    assert entry(store, made) == folder and len(made) == 1
    empty(folder)
    assert entry(store, made) == tmp_path / "own" / folder.name and len(made) == 2


def test_an_entry_that_cannot_be_made_whole_is_not_made_for_ever(tmp_path):
    with pytest.raises(FileNotFoundError):
        entry(Store(tmp_path), [], make=lambda folder, checkpoint: None)


def test_what_a_kill_after_the_making_left_goes_with_the_next_reading(tmp_path):
    store = Store(tmp_path)
    folder = entry(store, [])
    (tmp_path / f"{folder.name}.checkpoint-0.1").write_text("of a killed run")
    (tmp_path / f".{folder.name}.checkpoint-0.1.abcd1234.writing").mkdir()
    other = tmp_path / "other.checkpoint"
    other.write_text("of another")
    assert entry(store, []) == folder
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".{folder.name}.lock", "other.checkpoint", folder.name]


def test_a_folder_in_the_place_of_the_lock_is_named(tmp_path):
    store = Store(tmp_path)
    folder = entry(store, [])
    (tmp_path / f".{folder.name}.lock").unlink(missing_ok=True)
    (tmp_path / f".{folder.name}.lock").mkdir()
    assert entry(store, []) == folder
    empty(folder)
    with pytest.raises(LabError, match="cannot be taken"):
        entry(store, [])


def test_atomic_folder_keeps_the_old_one_on_failure(tmp_path):
    target = tmp_path / "out"
    with atomic_folder(target) as folder:
        (folder / "a").write_text("old")
    with pytest.raises(LabError, match="exists already"), atomic_folder(target):
        pass
    with pytest.raises(RuntimeError), atomic_folder(target, overwrite=True) as folder:
        (folder / "a").write_text("new")
        raise RuntimeError
    assert (target / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_full_disk_names_the_file_and_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LabError, match="No space left on device; free some space"):
        write_atomic(tmp_path / "file", "text")
    assert not list(tmp_path.iterdir())


def test_content_hash_sees_content_not_place(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_text("1")
    assert content_hash(tmp_path / "a") == content_hash(tmp_path / "b")
    (tmp_path / "b" / "f").write_text("2")
    assert content_hash(tmp_path / "a") != content_hash(tmp_path / "b")
    assert content_hash({"x": 1, "y": 2}) == content_hash({"y": 2, "x": 1})
