"""Files that are never there in part, and JSON texts that are never in memory as a whole."""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any


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


def json_parts(value: Any) -> Iterator[str]:
    """Yields what `json.dumps` returns, in parts; an iterator in the value is a list.

    The objects of the whole, and the pieces that json.dumps joins, would take many times the
    memory of the text, and leave holes where it was.
    """
    if isinstance(value, dict):
        for i, (key, item) in enumerate(value.items()):
            yield f"{', ' if i else '{'}{json.dumps(key)}: "
            yield from json_parts(item)
        yield "}" if value else "{}"
    elif isinstance(value, list | Iterator):
        yield "["
        for i, item in enumerate(value):
            yield f"{', ' if i else ''}{json.dumps(item)}"
        yield "]"
    else:
        yield json.dumps(value)
