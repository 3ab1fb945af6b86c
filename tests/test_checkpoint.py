"""Checkpoints are whole or not there, whatever lies in their folder."""

import errno
import json
import os
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from azr.errors import RunError
from azr.run import checkpoint
from azr.run.checkpoint import (
    MARKER,
    MODEL_FILES,
    CheckpointWriter,
    Snapshot,
    find_damage,
    load_newest,
    newest_marked_step,
    remove_tree,
    write_checkpoint,
    write_marked,
)


def write_model(folder):
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")


def snapshot(step):
    return Snapshot(
        step=step, tensors={"x": torch.ones(2)}, state={"step": step}, write_model=write_model
    )


@pytest.fixture
def run_dir(tmp_path):
    for step in (2, 4):
        write_checkpoint(tmp_path / "checkpoints", snapshot(step))
    return tmp_path


def test_a_large_state_is_never_whole_in_memory(tmp_path):
    def state(make):
        rows = make([f"key {i}", {"n": i, "texts": ["é", ""]}, 3] for i in range(40_000))
        rest = {"none": None, "list": [1, [], {}], "empty": {}, "nothing": make([]), "x": -0.5}
        return {"a": {"rows": rows}, "b": rest}

    tracemalloc.start()
    saved = write_checkpoint(tmp_path, replace(snapshot(2), state=state(iter)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (saved / "state.json").read_text() == json.dumps(state(list))
    assert peak < 1_000_000 < (saved / "state.json").stat().st_size


def test_a_familys_fault_in_a_save_keeps_its_own_words(tmp_path):
    def rows():
        yield 1
        raise RunError("task family toy: no JSON")

    with pytest.raises(RunError, match="^task family toy: no JSON$"):
        write_checkpoint(tmp_path, replace(snapshot(2), state={"rows": rows()}))
    assert not list(tmp_path.iterdir())


def marks_without(*names):
    def damage(folder):
        marks = json.loads((folder / MARKER).read_text())
        for name in names:
            del marks[name]
        (folder / MARKER).write_text(json.dumps(marks))

    return damage


def marked(text):
    return lambda folder: (folder / MARKER).write_bytes(text)


def as_folder(name):
    return lambda folder: ((folder / name).unlink(), (folder / name).mkdir())


def other_mark(name, mark):
    def damage(folder):
        marks = json.loads((folder / MARKER).read_text())
        (folder / MARKER).write_text(json.dumps(marks | {name: mark}))

    return damage


BAD_MARKERS = {
    "null": marked(b"null"),
    "a list": marked(b'["hf/config.json"]'),
    "a number": marked(b"1"),
    "a text": marked(b'"state.json"'),
    "names nothing": marked(b"{}"),
    "empty": marked(b""),
    "no text": marked(b"\xff\x00"),
    "nested beyond the stack": marked(b"[" * 100_000),
    "without the state": marks_without("state.json"),
    "without the moments": marks_without("train_state.safetensors"),
    "without the weights": marks_without("hf/model.safetensors"),
    "without the model's configuration": marks_without("hf/config.json"),
    "a folder": as_folder(MARKER),
}
BAD_FILES = {
    "null for a file": other_mark("state.json", None),
    "a name with NUL": other_mark("a\0b", [1, ""]),
    "a name too long": other_mark("a" * 999, [1, ""]),
    "a file that is not there": other_mark("hf/more", [1, ""]),
    "the state a folder": as_folder("state.json"),
    "the state a broken link": lambda f: (
        (f / "state.json").unlink(), (f / "state.json").symlink_to("none")),
}  # fmt: skip


@pytest.mark.parametrize("damage", (BAD_MARKERS | BAD_FILES).values(), ids=BAD_MARKERS | BAD_FILES)
def test_a_checkpoint_that_is_not_whole_is_named_in_one_line(damage, run_dir, request):
    damage(run_dir / "checkpoints" / "step_000004")
    told = []
    assert load_newest(run_dir, told.append).step == 2
    assert len(told) == 1 and "step_000004 is not used: " in told[0] and "\n" not in told[0]
    has_marker = request.node.callspec.id in BAD_FILES
    assert newest_marked_step(run_dir) == (4 if has_marker else 2)


def test_what_cannot_be_read_is_named(run_dir, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(checkpoint, "_fingerprint", refuse)
    problem = find_damage(run_dir / "checkpoints" / "step_000004")
    assert problem.endswith(": Permission denied")


@pytest.mark.parametrize("name", ["step_²", "step_٣", "step_000009.tmp", "step_", "step_1" * 30])
def test_other_names_are_no_checkpoints(name, run_dir):
    shutil.copytree(run_dir / "checkpoints" / "step_000004", run_dir / "checkpoints" / name)
    (run_dir / "checkpoints" / "step_000008").write_text("a file")
    assert load_newest(run_dir, lambda message: None).step == 4
    assert newest_marked_step(run_dir) == 4


def test_old_ones_that_are_damaged_are_left_alone(run_dir):
    folder = run_dir / "checkpoints"
    BAD_MARKERS["null"](folder / "step_000002")
    BAD_MARKERS["a folder"](folder / "step_000004")
    writer = CheckpointWriter(run_dir, keep_last=1, keep_every=0)
    for step in (5, 6):
        writer.save(snapshot(step))
    writer.wait()
    assert sorted(p.name[-1] for p in folder.iterdir()) == ["2", "4", "6"]


def test_a_checkpoint_on_another_disk_is_left_alone_and_a_file_in_its_place_is_none(run_dir):
    folder, elsewhere = run_dir / "checkpoints", run_dir / "elsewhere"
    (folder / "step_000004").rename(elsewhere)
    (folder / "step_000004").symlink_to(elsewhere)
    (folder / "step_000006").write_text("no folder")
    (folder / "step_000008").symlink_to(elsewhere)
    assert load_newest(run_dir, lambda message: None).step == 8
    writer = CheckpointWriter(run_dir, keep_last=1, keep_every=0)
    for step in (6, 8):
        writer.save(snapshot(step))
        writer.wait()
    assert [p.name for p in folder.iterdir()] == ["step_000008"]
    assert not find_damage(folder / "step_000008") and not find_damage(elsewhere)


def test_a_leftover_without_modes_is_no_obstacle(run_dir, monkeypatch):
    leftover = run_dir / "checkpoints" / "step_000006.tmp"
    (leftover / "hf").mkdir(parents=True)
    (leftover / "link").symlink_to(run_dir / "checkpoints" / "step_000004")
    for folder in (leftover / "hf", leftover):
        folder.chmod(0)  # a umask of 777; the superuser is not stopped by it
    before = (run_dir / "checkpoints" / "step_000004").stat().st_mode
    write_checkpoint(run_dir / "checkpoints", snapshot(6))
    assert not leftover.exists() and load_newest(run_dir, pytest.fail).step == 6
    assert (run_dir / "checkpoints" / "step_000004").stat().st_mode == before
    opened = []
    monkeypatch.setattr(Path, "chmod", lambda path, mode: opened.append(path.name))
    remove_tree(run_dir / "checkpoints" / "step_000006")
    assert opened == ["step_000006", "hf"]


def test_a_leftover_that_cannot_go_is_no_obstacle(run_dir, monkeypatch):
    leftover = run_dir / "checkpoints" / "step_000006.tmp"
    leftover.mkdir()

    def refuse(path):
        if path == leftover:
            raise PermissionError(errno.EACCES, "not yours")
        return real(path)

    real = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", refuse)
    write_checkpoint(run_dir / "checkpoints", snapshot(6))
    assert leftover.exists() and load_newest(run_dir, pytest.fail).step == 6
    assert len(list((run_dir / "checkpoints").glob("*.tmp"))) == 1


FULL = {
    "the file system": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "safetensors": RuntimeError("Error while serializing: I/O error: No space (os error 28)"),
}


@pytest.mark.parametrize("error", FULL.values(), ids=FULL)
def test_a_disk_that_is_full_for_a_model_is_named_and_nothing_left(error, tmp_path):
    def full(folder):
        raise error

    with pytest.raises(RunError, match="cannot write .*start: .*free some space"):
        write_marked(tmp_path / "start", full)
    assert list(tmp_path.iterdir()) == []


def test_a_start_model_is_marked_as_a_checkpoint_is(tmp_path):
    start = tmp_path / "start"
    write_marked(start, lambda folder: write_model(folder / "hf"))
    assert find_damage(start, MODEL_FILES) is None
    (start / "hf" / "model.safetensors").write_bytes(b"weightz")
    assert find_damage(start, MODEL_FILES) == "hf/model.safetensors is not what was written"
    BAD_MARKERS["names nothing"](start)
    assert "does not name the files" in find_damage(start, MODEL_FILES)
