"""What a program may import, and the names that make a label take more seeds. Plain data."""

ALLOWED = (
    "__future__",
    "abc",
    "array",
    "bisect",
    "cmath",
    "collections",
    "collections.abc",
    "contextlib",
    "copy",
    "dataclasses",
    "decimal",
    "enum",
    "fractions",
    "functools",
    "heapq",
    "itertools",
    "json",
    "json.decoder",
    "json.encoder",
    "math",
    "numbers",
    "operator",
    "re",
    "statistics",
    "string",
    "struct",
    "textwrap",
    "types",
    "typing",
    "unicodedata",
)
"""Modules of the standard library that run without files, clocks, randomness and processes."""

FACADES: dict[str, tuple[str, ...]] = {
    "io": ("BytesIO", "StringIO"),
    "sys": (
        "byteorder",
        "exit",
        "float_info",
        "getrecursionlimit",
        "getsizeof",
        "int_info",
        "intern",
        "maxsize",
        "maxunicode",
        "version_info",
    ),
}
"""Modules that are harmless in part: a program that imports one gets these names alone."""

INTERNAL = ("_pylong", "_decimal")
"""Loaded where they exist, for the interpreter itself imports them at its first need."""

FORGOTTEN = ("time", "random", "_random", "secrets", "uuid", "__main__", "_sandbox")
"""Dropped from sys.modules after loading, so that a program that gets at that table by a detour
finds no clock and no randomness there."""

RISKY_NAMES = (
    "ItemsView",
    "KeysView",
    "attrgetter",
    "compile",
    "deepcopy",
    "dir",
    "eval",
    "exec",
    "frozenset",
    "get_origin",
    "getattr",
    "globals",
    "hash",
    "id",
    "locals",
    "methodcaller",
    "object",
    "set",
    "vars",
)
"""A program that uses one of these, a set display, a class, a name that begins with two underscores
or a text that holds two, or both a view of a dict and an operator of sets, can see hash order or
identity: its label takes all seeds, not two."""
