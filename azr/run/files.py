"""Files that are never there in part: written beside their place, and moved."""

import os
from contextlib import suppress
from pathlib import Path


def beside(path: Path) -> Path:
    """Returns where a file is written before it takes its place."""
    return path.with_name(path.name + ".tmp")


def write_whole(path: Path, data: str | bytes) -> None:
    """Writes a file, a text as UTF-8; where that fails, the one that was there stays."""
    data = data.encode() if isinstance(data, str) else data
    try:
        beside(path).write_bytes(data)
        os.replace(beside(path), path)
    except OSError:
        with suppress(OSError):
            beside(path).unlink()
        raise
