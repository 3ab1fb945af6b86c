"""Run directories: their names, which one --resume auto means, and what starts at the same time."""

import errno
import fcntl
import os
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import processes
import pytest

from azr.config import Config, ConfigError, RunConfig, parse_command_line, to_toml
from azr.run import directory as run_dir
from azr.run.checkpoint import MARKER, checkpoint_path
from azr.run.directory import RunLock, create_run_dir, find_resumable
from azr.run.files import write_whole

MARKS = '{"hf/config.json": [], "hf/model.safetensors": [], "train_state.safetensors": [], '
MARKS += '"state.json": []}'


def config(root, name="exp", **options):
    return replace(Config(), run=RunConfig(root=str(root), name=name, **options))


def make_run(root, folder, name, marks=MARKS):
    """A run as `find_resumable` sees it."""
    checkpoint = checkpoint_path(root / folder / "checkpoints", 2)
    checkpoint.mkdir(parents=True)
    (checkpoint / MARKER).write_text(marks)
    (root / folder / "config.toml").write_text(to_toml(config(root, name)), encoding="utf-8")
    return (root / folder).resolve()


@pytest.mark.parametrize("name", ["exp", "exp[1]", "e*p", "?", "ex p", "exp-2", "é", "20260101-1"])
def test_auto_finds_the_newest_run_of_exactly_this_name(name, tmp_path):
    for other in ("exp2", "exp-long", "1", "eXp", "exp-2-x", f"{name}0", f"0{name}"):
        make_run(tmp_path, f"20270101-000000-{other}", other)
    assert find_resumable("auto", config(tmp_path, name)) is None
    make_run(tmp_path, f"20260101-000000-{name}", name)
    for number in (2, 9, 10):  # of one second
        newest = make_run(tmp_path, f"20260101-000001-{name}-{number}", name)
    (tmp_path / "latest").symlink_to(newest)
    make_run(tmp_path, f"20260101-000002-{name}", name, marks="{}")  # killed before its first
    assert find_resumable("auto", config(tmp_path, name)) == newest


def test_the_name_is_that_of_the_configuration(tmp_path):
    mine = make_run(tmp_path, "20260101-000000-exp-2", "exp-2")
    renamed = make_run(tmp_path, "20260101-000001-other", "exp")
    assert find_resumable("auto", config(tmp_path, "exp-2")) == mine
    assert find_resumable("auto", config(tmp_path, "exp")) == renamed
    (mine / "config.toml").write_text("[")
    assert find_resumable("auto", config(tmp_path, "other")) is None
    with pytest.raises(ConfigError, match="exp-2/config.toml"):
        find_resumable("auto", config(tmp_path, "exp-2"))
    assert find_resumable("auto", config(tmp_path / "none", "exp")) is None


def test_a_resumed_run_keeps_its_name(tmp_path):
    folder = make_run(tmp_path, "20260101-000000-exp", "exp")
    command = ["--resume", str(folder), "--run.name", ""]
    assert parse_command_line(command).config.run.name == "exp"


@pytest.mark.parametrize(
    "name",
    ["a/b", "/", ".", "..", " ", "a\nb", "\x1b[1m", "a\x00", "x\udcff", "é" * 101, "a" * 999],
)
def test_a_name_that_is_no_folder_s_is_refused_by_its_option(name):
    with pytest.raises(ConfigError, match="^--run.name .*folder's name|^--run.name .*without NUL"):
        parse_command_line(["--run.name", name])
    assert parse_command_line(["--run.name", "é" * 100]).config.run.name == "é" * 100


@pytest.mark.parametrize(
    "flag", ["--run.root", "--model", "--task.family", "--selfplay.seed-file", "--task.style"]
)
def test_no_option_holds_what_config_toml_cannot(flag):
    for value in ("x\udcff", "x\x00"):
        with pytest.raises(ConfigError, match="must be text without NUL"):
            parse_command_line([flag, value])


START_SOME = """
from azr.config import Config, RunConfig
from azr.run.directory import create_run_dir
config = Config(run=RunConfig(root=sys.argv[1], name="exp"))
print(*[create_run_dir(config).name for _ in range(150)])
"""


def test_runs_that_start_together_have_folders_of_their_own_and_one_latest(tmp_path):
    root, outputs = tmp_path / "runs", [tmp_path / f"output{number}" for number in range(4)]
    started = [processes.start(START_SOME, [root], output) for output in outputs]
    assert [processes.finish(process, 60) for process in started] == [0] * 4
    names = " ".join(output.read_text() for output in outputs).split()
    assert len(set(names)) == 600
    assert {path.name for path in root.iterdir()} == {*names, "latest"}
    assert os.readlink(root / "latest") in names
    assert all(os.listdir(root / name) == ["config.toml"] for name in names)


def test_a_thousand_runs_of_one_second_are_no_limit(tmp_path, monkeypatch):
    class Noon(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 1, 12)

    monkeypatch.setattr(run_dir, "datetime", Noon)
    for number in range(1, 1001):
        (tmp_path / f"20260101-120000-exp{f'-{number}' if number > 1 else ''}").mkdir()
    assert create_run_dir(config(tmp_path)).name == "20260101-120000-exp-1001"


def test_what_is_called_latest_and_is_no_link_stays(tmp_path):
    (tmp_path / "latest").mkdir()
    create_run_dir(config(tmp_path))
    assert (tmp_path / "latest").is_dir() and not (tmp_path / "latest").is_symlink()


def test_a_full_disk_leaves_no_half_of_a_run(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ConfigError, match="--run.root .*No space left on device; make room"):
        create_run_dir(config(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_written_whole_or_stays_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "config.toml"
    write_whole(path, "old")
    monkeypatch.setattr(os, "replace", lambda *args: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        write_whole(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["config.toml"]


def test_the_owner_of_a_lock_is_named_whatever_the_file_holds(tmp_path):
    (tmp_path / "lock").write_bytes(b"\xff\xfe" * 100)
    lock = RunLock(tmp_path)
    with pytest.raises(ConfigError, match=f"process {os.getpid()} is writing to it"):
        RunLock(tmp_path)
    lock.release()
    RunLock(tmp_path).release()


def test_a_lock_that_was_removed_under_its_taker_is_taken_anew(tmp_path, monkeypatch):
    real, calls = fcntl.flock, []

    def flock(file, how):
        if not calls:  # the run before ends between the two calls
            (tmp_path / "lock").unlink()
        calls.append(file)
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    lock = RunLock(tmp_path)
    assert len(calls) == 2
    with pytest.raises(ConfigError, match=f"process {os.getpid()} is writing to it"):
        RunLock(tmp_path)
    lock.release()
    assert not (tmp_path / "lock").exists()
