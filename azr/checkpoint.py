"""Checkpoints: whole or not there, written beside the training, never pickled.

    checkpoints/step_000100/
        hf/                        the model, an ordinary Hugging Face folder
        train_state.safetensors    optimiser moments and generator states
        state.json                 counters, buffers, and how far the logs had come
        COMPLETE                   size and SHA-256 of every other file, written last

A checkpoint is written under a temporary name, synced, renamed, and marked. A folder without a
marker that fits is a save that was cut short, and is never loaded.
"""

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from azr.errors import RunError, naming_disk_errors

MARKER = "COMPLETE"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything of a step that a checkpoint holds, copied: training may go on meanwhile."""

    step: int
    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]
    write_model: Callable[[Path], None]
    """Writes the HF folder from copied weights."""


class CheckpointWriter:
    """Writes one checkpoint at a time in a thread, and drops old ones.

    The `keep_last` newest stay, and for good those at multiples of `keep_every` steps (0: none).
    """

    def __init__(self, run_dir: Path, *, keep_last: int, keep_every: int, saved_step: int = -1):
        """`saved_step` is the checkpoint that a resumed run came from."""
        self.folder = run_dir / "checkpoints"
        self._saved_step = saved_step
        self.keep_last, self.keep_every = keep_last, keep_every
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, snapshot: Snapshot) -> Path:
        """Starts writing; waits first for a save that is still under way.

        Returns where it will be. A step that was saved already is not written again. Raises
        RunError where the save before failed.
        """
        self.wait()
        if snapshot.step == self._saved_step:
            return checkpoint_path(self.folder, snapshot.step)
        self._saved_step = snapshot.step
        self._thread = threading.Thread(target=self._write, args=(snapshot,), name="checkpoint")
        self._thread.start()
        return checkpoint_path(self.folder, snapshot.step)

    def wait(self) -> None:
        """Waits for the save under way; raises RunError where it failed."""
        self.join()
        self.check()

    def join(self) -> None:
        """Waits for the save under way, whatever becomes of it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def check(self) -> None:
        """Raises RunError where a save has failed; does not wait."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write(self, snapshot: Snapshot) -> None:
        try:
            write_checkpoint(self.folder, snapshot)
            self._drop_old()
        except BaseException as error:  # handed to the training thread by check()
            self._error = error

    def _drop_old(self) -> None:
        complete = [p for p in _steps(self.folder) if (p / MARKER).exists()]
        for path in complete[: -self.keep_last]:
            if not self.keep_every or step_of(path) % self.keep_every:
                (path / MARKER).unlink()  # first: what is left of a cut deletion is no checkpoint
                shutil.rmtree(path)


def write_checkpoint(folder: Path, snapshot: Snapshot) -> Path:
    """Writes one checkpoint now; returns its path. Raises RunError where the disk refuses."""
    final = checkpoint_path(folder, snapshot.step)
    temporary = final.with_name(final.name + ".tmp")
    with naming_disk_errors(final):
        for leftover in (temporary, final):
            if leftover.exists():
                shutil.rmtree(leftover)
        try:
            (temporary / "hf").mkdir(parents=True)
            _write_all(temporary, snapshot)
            files = sorted(p for p in temporary.rglob("*") if p.is_file())
            marks = {str(p.relative_to(temporary)): _fingerprint(p) for p in files}
            for path in (*files, temporary / "hf", temporary):
                _sync(path)
            os.replace(temporary, final)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        marker = final / (MARKER + ".tmp")
        marker.write_text(json.dumps(marks, indent=1))
        _sync(marker)
        os.replace(marker, final / MARKER)
        _sync(final)
        _sync(folder)
    return final


def _write_all(temporary: Path, snapshot: Snapshot) -> None:
    try:
        snapshot.write_model(temporary / "hf")
        save_file(dict(snapshot.tensors), temporary / "train_state.safetensors")
    except OSError:
        raise
    except Exception as error:
        # safetensors has an exception of its own for a full disk.
        raise OSError(None, str(error)) from error
    (temporary / "state.json").write_text(json.dumps(snapshot.state))


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that has been read and found whole."""

    path: Path
    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


def load_newest(run_dir: Path, warn: Callable[[str], None]) -> Checkpoint:
    """Returns the newest whole checkpoint of a run.

    Each one that is not whole is named to `warn`, and the one before it is tried. Raises RunError
    where there is none.
    """
    path = find_newest(run_dir, warn)
    return Checkpoint(
        path=path,
        step=step_of(path),
        tensors=load_file(path / "train_state.safetensors"),
        state=json.loads((path / "state.json").read_text()),
    )


def find_newest(run_dir: Path, warn: Callable[[str], None]) -> Path:
    """Returns the folder of the newest whole checkpoint of a run; see `load_newest`."""
    for path in reversed(_steps(run_dir / "checkpoints")):
        problem = find_damage(path)
        if problem is None:
            return path
        warn(f"{path} is not used: {problem}")
    raise RunError(f"{run_dir} has no whole checkpoint to go on from; start a new run")


def find_damage(path: Path) -> str | None:
    """Returns what is wrong with a checkpoint, None where it is whole."""
    try:
        marks = json.loads((path / MARKER).read_text())
    except FileNotFoundError:
        return f"it has no {MARKER} file: the save was cut short"
    except (OSError, ValueError) as error:
        return f"its {MARKER} file cannot be read: {error}"
    for name, mark in marks.items():
        try:
            if _fingerprint(path / name) != mark:
                return f"{name} is not what was written"
        except OSError as error:
            return f"{name}: {error.strerror}"
    return None


def newest_marked_step(run_dir: Path) -> int:
    """Returns the step of the newest checkpoint with a marker, -1 where there is none."""
    marked = [p for p in _steps(run_dir / "checkpoints") if (p / MARKER).exists()]
    return step_of(marked[-1]) if marked else -1


def checkpoint_path(folder: Path, step: int) -> Path:
    """Returns the folder of a step's checkpoint."""
    return folder / f"step_{step:06d}"


def step_of(path: Path) -> int:
    """Returns the step of a checkpoint's folder."""
    return int(path.name.removeprefix("step_"))


def _steps(folder: Path) -> list[Path]:
    """Returns the checkpoint folders, oldest first; temporary ones are left out."""
    found = [p for p in folder.glob("step_*") if p.name.removeprefix("step_").isdigit()]
    return sorted(found, key=step_of)


def _fingerprint(path: Path) -> list:
    with open(path, "rb") as file:
        return [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
