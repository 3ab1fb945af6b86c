"""A large JSON text, in parts."""

import json
from collections.abc import Iterator
from typing import Any


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
