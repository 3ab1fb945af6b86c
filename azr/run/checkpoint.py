"""Checkpoints: whole or not there, written beside the training, never pickled.

    checkpoints/step_000100/
        hf/                        the model, an ordinary Hugging Face folder
        train_state.safetensors    optimiser moments and generator states
        state.json                 counters, buffers, and how far the logs had come
        COMPLETE                   size and SHA-256 of every other file, written last

A checkpoint is written and marked under a temporary name, synced, and renamed. A folder without a
marker that fits was cut short or damaged, and is never loaded. The start model of a run, in
`start/`, is written and marked the same way.
"""

import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from azr.errors import RunError, naming_disk_errors
from azr.run.files import json_parts

if TYPE_CHECKING:
    from torch import Tensor

START = "start"
"""Folder of the model that self-play started from, in the run directory."""
MARKER = "COMPLETE"
MODEL_FILES = ("hf/config.json",)
CHECKPOINT_FILES = (*MODEL_FILES, "train_state.safetensors", "state.json")
"""What a marker names at least; the weights have names of their own."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything of a step that a checkpoint holds, copied: training may go on meanwhile."""

    step: int
    tensors: Mapping[str, "Tensor"]
    state: Mapping[str, Any]
    """JSON values. A list may be an iterator instead, whose items are made as they are written."""
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
        if snapshot.step != self._saved_step:
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
        for path in _marked(self.folder)[: -self.keep_last]:
            if not self.keep_every or step_of(path) % self.keep_every:
                with naming_disk_errors(path):
                    if not path.is_symlink():
                        (path / MARKER).unlink()  # first: a cut deletion leaves no checkpoint
                    remove_tree(path)


def write_checkpoint(folder: Path, snapshot: Snapshot) -> Path:
    """Writes one checkpoint now; returns its path. Raises RunError where the disk refuses."""
    final = checkpoint_path(folder, snapshot.step)
    write_marked(final, lambda temporary: _write_all(temporary, snapshot))
    return final


def write_marked(final: Path, write: Callable[[Path], None]) -> None:
    """Writes a folder with its marker, by `write`, to which a temporary one is given.

    Raises RunError where the disk refuses.
    """
    temporary = final.with_name(final.name + ".tmp")
    with naming_disk_errors(final):
        with suppress(OSError):
            remove_tree(temporary)
        if temporary.exists():  # another user's, say
            temporary = final.with_name(f"{final.name}.{os.getpid()}.tmp")
        if os.path.lexists(final):
            remove_tree(final)
        try:
            (temporary / "hf").mkdir(parents=True)
            _write(write, temporary)
            files = sorted(p for p in temporary.rglob("*") if p.is_file())
            marks = {str(p.relative_to(temporary)): _fingerprint(p) for p in files}
            (temporary / MARKER).write_text(json.dumps(marks, indent=1))
            for path in (*files, temporary / MARKER, temporary / "hf", temporary):
                _sync(path)
            os.replace(temporary, final)
        except (OSError, RunError):
            with suppress(OSError):
                remove_tree(temporary)
            raise
        _sync(final.parent)


def remove_tree(path: Path) -> None:
    """Removes a folder, also one whose modes forbid it, as a umask of 777 leaves them.

    Of a link, to a checkpoint that was moved to another disk say, the link; a file is removed too.
    """
    if path.is_symlink() or path.is_file():
        path.unlink()
        return
    with suppress(PermissionError):  # another user's, who may let us all the same
        path.chmod(0o700)
        for folder, names, _ in os.walk(path):
            for inner in (Path(folder, name) for name in names):
                if not inner.is_symlink():
                    inner.chmod(0o700)
    shutil.rmtree(path)


def _write(write: Callable[[Path], None], temporary: Path) -> None:
    try:
        write(temporary)
    except (OSError, RunError):
        raise
    except Exception as error:
        # safetensors and tokenizers have exceptions of their own for a full disk.
        raise OSError(None, str(error)) from error


def _write_all(temporary: Path, snapshot: Snapshot) -> None:
    from safetensors.torch import save_file  # and with it torch, which nobody else here needs

    snapshot.write_model(temporary / "hf")
    save_file(dict(snapshot.tensors), temporary / "train_state.safetensors")
    with open(temporary / "state.json", "w") as file:
        file.writelines(json_parts(snapshot.state))


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that has been read and found whole."""

    path: Path
    step: int
    tensors: dict[str, "Tensor"]
    state: dict[str, Any]


def load_newest(run_dir: Path, warn: Callable[[str], None]) -> Checkpoint:
    """Returns the newest whole checkpoint of a run.

    Each one that is not whole is named to `warn`, and the one before it is tried. Raises RunError
    where there is none.
    """
    from safetensors.torch import load_file

    path = find_newest(run_dir, warn)
    return Checkpoint(
        path=path,
        step=step_of(path),
        tensors=load_file(path / "train_state.safetensors"),
        state=json.loads((path / "state.json").read_text()),
    )


def find_newest(run_dir: Path, warn: Callable[[str], None]) -> Path:
    """Returns the folder of the newest whole checkpoint of a run; see `load_newest`."""
    why = ""
    for path in reversed(_steps(run_dir / "checkpoints")):
        problem = find_damage(path)
        if problem is None:
            return path
        warn(f"{path} is not used: {problem}")
        why = why or f" ({path.name}: {problem})"
    raise RunError(f"{run_dir} has no whole checkpoint to go on from{why}; start a new run")


def find_damage(path: Path, expected: Collection[str] = CHECKPOINT_FILES) -> str | None:
    """Returns what is wrong with a checkpoint, None where it is whole.

    `expected` are files that its marker has to name beside the weights.
    """
    marks = _read_marker(path, expected)
    if isinstance(marks, str):
        return marks
    for name, mark in marks.items():
        try:
            if _fingerprint(path / name) != mark:
                return f"{name} is not what was written"
        except OSError as error:
            return f"{name}: {error.strerror}"
        except ValueError as error:
            return f"{name!r} is no file's name: {error}"
    return None


def find_start_damage(run_dir: Path) -> str | None:
    """Returns what is wrong with the start model of a run, None where it is whole.

    Older runs have no marker there: their folder is taken as it is.
    """
    start = run_dir / START
    is_old = (start / "hf").is_dir() and not (start / MARKER).exists()
    return None if is_old else find_damage(start, MODEL_FILES)


def _read_marker(path: Path, expected: Collection[str]) -> dict[str, list] | str:
    """Returns the fingerprints in a folder's marker by file, or what is wrong with the marker."""
    try:
        marks = json.loads((path / MARKER).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"it has no {MARKER} file: the save was cut short"
    except OSError as error:
        return f"its {MARKER} file cannot be read: {error.strerror}"
    except (ValueError, RecursionError):
        marks = None
    if isinstance(marks, dict) and marks.keys() >= {*expected}:
        if any(re.fullmatch(r"hf/[^/]+\.safetensors", name) for name in marks):
            return marks
    return f"its {MARKER} file does not name the files of one: it was cut short or damaged"


def newest_marked_step(run_dir: Path) -> int:
    """Returns the step of the newest checkpoint with a marker, -1 where there is none."""
    return max(map(step_of, _marked(run_dir / "checkpoints")), default=-1)


def _marked(folder: Path) -> list[Path]:
    """Returns the checkpoints with a marker, oldest first; their files are not looked at."""
    return [p for p in _steps(folder) if isinstance(_read_marker(p, CHECKPOINT_FILES), dict)]


def checkpoint_path(folder: Path, step: int) -> Path:
    """Returns the folder of a step's checkpoint."""
    return folder / f"step_{step:06d}"


def is_step(path: Path) -> bool:
    """Whether a folder has the name of a checkpoint."""
    return re.fullmatch(r"step_[0-9]{6,18}", path.name) is not None


def step_of(path: Path) -> int:
    """Returns the step of a checkpoint's folder."""
    return int(path.name.removeprefix("step_"))


def _steps(folder: Path) -> list[Path]:
    """Returns the checkpoint folders, oldest first; temporary ones are left out."""
    return sorted((p for p in folder.glob("step_*") if is_step(p)), key=step_of)


def _fingerprint(path: Path) -> list:
    with open(path, "rb") as file:
        return [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
