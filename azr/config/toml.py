"""Configurations as TOML: presets by name, reading with checked keys and types, writing."""

import codecs
import dataclasses
import difflib
import json
import tomllib
import typing
from pathlib import Path
from typing import Any

from azr.config.checks import fault_of, shown
from azr.config.options import Config, field_names, value_of
from azr.errors import ConfigError

DEFAULT_PRESET = "cpu-prime.toml"

RETIRED = {
    "run.watchdog_s": 900.0,
    "task.program.max_output_chars": 400,
    "optim.max_bad_updates": 5,
    "log.plain": False,
}
"""Options of before that stand in the files of runs; another value than this is refused as any
unknown key is."""


def preset_path(name: str) -> Path:
    """Returns the file meant by `--config name`: a path, or a preset of this package by its name.

    Raises ConfigError naming the presets where there is no such file.
    """
    path = Path(name)
    if path.is_file():
        return path
    presets = presets_folder()
    candidate = presets / (path.name if path.suffix else path.name + ".toml")
    if candidate.is_file() and path.parent.name in ("", "configs"):
        return candidate
    known = ", ".join(sorted(p.name for p in presets.glob("*.toml")))
    raise ConfigError(f"--config {name}: no such file; presets that come with azr: {known}")


def presets_folder() -> Path:
    """Installed, the presets stand inside the package; in a checkout, beside it."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def load_toml(path: Path) -> Config:
    """Returns the configuration in a TOML file over the defaults.

    Raises ConfigError for a file that is no TOML, an unknown key (with the nearest known one) or
    a value that is none of the field's type.
    """
    try:
        table = tomllib.loads(utf8_text(path.read_bytes()))
    except (OSError, ValueError, RecursionError) as error:  # no TOML, or not even text
        raise ConfigError(f"{path}: {error}") from error
    return _from_table(Config, table, where="", source=str(path))


_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # before UTF-16's, which it begins with
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def utf8_text(data: bytes) -> str:
    """Returns the text of a file without its byte-order mark.

    Raises ValueError for another encoding, and names it where its own mark does.
    """
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if data.startswith(mark):
            raise ValueError(f"the file is {encoding}: save it as UTF-8")
    if b"\0" in data:
        raise ValueError("the file holds NUL bytes, as UTF-16 does: save it as UTF-8 text")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"the file is not UTF-8 ({error}): save it as UTF-8") from error


def _from_table(cls: type, table: dict[str, Any], *, where: str, source: str):
    hints = typing.get_type_hints(cls)
    values = {}
    for key, value in table.items():
        name = f"{where}{key}"
        if name in RETIRED and value == RETIRED[name]:
            continue
        if key not in hints:
            raise ConfigError(f"{source}: unknown key {name}{_nearest(name)}")
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, dict):
                raise ConfigError(f"{source}: {name} is a table of options, got {value!r}")
            values[key] = _from_table(hints[key], value, where=f"{name}.", source=source)
        else:
            if typing.get_origin(hints[key]) is tuple and type(value) is list:
                value = tuple(value)
            if fault := fault_of(value, hints[key], name):
                raise ConfigError(f"{source}: {name} {fault}, got {shown(value)}")
            values[key] = float(value) if hints[key] is float else value
    return cls(**values)


def _nearest(name: str) -> str:
    names = field_names()
    # Of several options with one last word the shortest name is meant: steps, not warmup.steps.
    by_tail = {n.rsplit(".", 1)[-1]: n for n in sorted(names, key=len, reverse=True)}
    tail = name.rsplit(".", 1)[-1]
    if tail in by_tail:
        return f"; did you mean {by_tail[tail]}?"
    for wanted, known in ((name, names), (tail, by_tail)):
        match = difflib.get_close_matches(wanted, known, n=1, cutoff=0.6)
        if match:
            return f"; did you mean {by_tail.get(match[0], match[0])}?"
    return "; see --help for the options"


def to_toml(config: Config) -> str:
    """Returns the resolved configuration as TOML text that `load_toml` reads back to itself."""
    lines: list[str] = []
    table = ""
    for name in field_names():  # every section has its own options before its sections
        where, _, key = name.rpartition(".")
        if where != table:
            lines += ["", f"[{where}]"]
            table = where
        lines.append(f"{key} = {_toml_value(value_of(config, name))}")
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml_value(v) for v in value) + "]"
    if not isinstance(value, str):
        return json.dumps(value)  # of numbers and truth values it is TOML as well
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in escaped) + '"'
