"""Checkpoints: written under a temporary name, then renamed, a marker file last."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

MARKER = "COMPLETE"


def save_checkpoint(run_dir: Path, step: int, write_model: Callable[[Path], None]) -> Path:
    """Writes `checkpoints/step_000100/hf/` with `write_model(folder)`; returns the checkpoint.

    A folder without the marker file COMPLETE is a save that was cut short.
    """
    folder = run_dir / "checkpoints" / f"step_{step:06d}"
    temporary = folder.with_name(folder.name + ".tmp")
    if temporary.exists():
        shutil.rmtree(temporary)
    (temporary / "hf").mkdir(parents=True)
    write_model(temporary / "hf")
    for file in sorted(temporary.rglob("*")):
        if file.is_file():
            _sync(file)
    os.replace(temporary, folder)
    (folder / MARKER).touch()
    _sync(folder / MARKER)
    _sync(folder)
    return folder


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
