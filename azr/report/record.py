"""A run directory as a record: whatever state the run is in, and whatever wrote it.

The run may still be going, may have been killed in the middle of a line, may be older than the
options of today, and may keep no samples: what cannot be read is left out and named.
"""

import json
import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from azr.config import Config, ConfigError, load_toml, preset_path, to_toml, utf8_text
from azr.report.samples import SampleBook, read_samples

State = Literal["finished", "still going", "stopped early"]


@dataclass(frozen=True, slots=True)
class Series:
    """A metric over the steps at which it was measured."""

    steps: Sequence[int] = ()
    values: Sequence[float] = ()

    def __bool__(self) -> bool:
        return bool(self.steps)

    @property
    def first(self) -> float | None:
        """The first value, None of nothing."""
        return self.values[0] if self.values else None

    @property
    def last(self) -> float | None:
        """The last value, None of nothing."""
        return self.values[-1] if self.values else None


@dataclass(frozen=True, slots=True)
class Event:
    """A line of events.jsonl."""

    step: int
    kind: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """What a run directory holds."""

    folder: Path
    state: State
    step: int
    """The last step that was recorded; 0 is the start model."""
    target: int
    """The step it was to reach."""
    types: tuple[str, ...]
    splits: tuple[str, ...]
    """"train" first."""
    metrics: Mapping[str, Series]
    events: Sequence[Event]
    facts: Sequence[tuple[str, str]]
    """Hardware, versions and choices, in the order in which they are shown."""
    universe: Mapping[str, int]
    """Distinct training tasks by type, where they are counted."""
    options: Mapping[str, str]
    """The configuration, dotted names to TOML values."""
    preset: str
    """The file that `changed` compares with; empty for the library's defaults."""
    changed: Sequence[tuple[str, str, str]]
    """(option, value, the preset's value)."""
    samples: SampleBook | None
    problems: Sequence[str] = field(default_factory=tuple)
    """What could not be read."""

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.folder.name

    def series(self, name: str) -> Series:
        """Returns a metric, empty where it was never measured."""
        return self.metrics.get(name, Series())


def read_run(folder: Path, *, is_over: bool = False) -> RunRecord:
    """Returns the record of a run directory; raises ConfigError where it is none.

    `is_over` says that the run has ended, for the process that ran it.
    """
    folder = folder.resolve()
    if not (folder / "config.toml").is_file():
        raise ConfigError(f"{folder}: no run directory (it has no config.toml)")
    problems: list[str] = []
    options = _flat(_toml(folder / "config.toml", problems))
    env = _env(folder / "env.json", problems)
    rows = _json_lines(folder / "metrics.jsonl", problems)
    metrics = _by_name(rows, problems)
    events = [
        Event(row["step"], str(row.get("kind", "")), str(row.get("message", "")))
        for row in _json_lines(folder / "events.jsonl", problems, may_lack=True)
    ]
    preset, usual = _preset(env)
    measured = [name.split("/") for name in metrics if name.startswith("eval/")]
    named = options.get("task.types", [])
    types = [*(named if isinstance(named, list) else []), *(p[2] for p in measured if len(p) == 4)]
    step, target = rows[-1]["step"] if rows else 0, options.get("steps", 0)
    if not _is_count(target):
        problems.append(f"config.toml: steps is {_short(target)}, not a number of steps")
        target = 0
    state: State = "stopped early"
    if rows and target and step >= target:
        state = "finished"
    elif not is_over and _is_held(folder / "lock"):
        state = "still going"
    return RunRecord(
        folder=folder,
        state=state,
        step=step,
        target=target,
        types=tuple(dict.fromkeys(map(str, types))),
        splits=tuple(dict.fromkeys(["train", *(p[1] for p in measured if len(p) == 4)])),
        metrics=metrics,
        events=events,
        facts=_facts(env),
        universe=env.get("universe", {}),
        options={name: _value(value) for name, value in options.items()},
        preset=preset,
        changed=_changed(options, usual),
        samples=read_samples(folder / "run.db", problems),
        problems=problems,
    )


def _toml(path: Path, problems: list[str]) -> dict:
    try:
        return tomllib.loads(utf8_text(path.read_bytes()))
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{path.name} cannot be read: {error}")
        return {}


LARGEST = 1e100
"""From here on a sum or a square could be more than a float holds."""


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST


def _is_count(value: object) -> bool:
    return isinstance(value, int) and _is_number(value) and value >= 0


ENV: dict[str, Callable[[Any], bool]] = {
    "facts": lambda value: isinstance(value, dict),
    "universe": lambda value: isinstance(value, dict) and all(map(_is_count, value.values())),
    "memory_peak_bytes": _is_count,
    "command": lambda value: isinstance(value, list),
}
"""What is read of env.json, but for what is only shown: whether a value is of the right kind."""


def _env(path: Path, problems: list[str]) -> dict:
    """Returns env.json; a value of the wrong kind is left out and named."""
    try:
        env = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{path.name} cannot be read: {error}")
        return {}
    if not isinstance(env, dict):
        problems.append(f"{path.name} is {_short(env)}, not a table of facts")
        return {}
    for name, fits in ENV.items():
        if name in env and not fits(env[name]):
            problems.append(f"{path.name}: {name} is {_short(env.pop(name))}, and left out")
    return env


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:39] + "…"


def _json_lines(path: Path, problems: list[str], may_lack: bool = False) -> list[dict]:
    """Returns the objects of a JSONL file; a line that is none, cut by a kill say, is named."""
    rows = []
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        if not (may_lack and isinstance(error, FileNotFoundError)):
            problems.append(f"{path.name} cannot be read: {error.strerror}")
        return []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and _is_count(row.get("step")):
            rows.append(row)
        else:
            problems.append(f"{path.name}: line {number} is cut short or damaged, and left out")
    return rows


def _is_drawable(name: str, value: object) -> bool:
    if not _is_number(value):
        return False
    # Else there is no interval.
    if name.startswith("eval/") and name.endswith(("_accuracy", "/chance")):
        return 0 <= value <= 1
    return value >= 1 if name.startswith("eval/") and name.endswith("/tasks") else True


def _by_name(rows: list[dict], problems: list[str]) -> dict[str, Series]:
    """Returns the metrics; null is no value, and what cannot be drawn is left out, named once."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    wrong: dict[str, str] = {}
    for row in rows:
        for name, value in row.items():
            if name == "step" or value is None:
                continue
            if _is_drawable(name, value):
                steps, values = found.setdefault(name, ([], []))
                steps.append(row["step"])
                values.append(float(value))
            else:
                wrong.setdefault(name, f"{_short(value)} at step {row['step']}")
    problems += [f"metrics.jsonl: {name} is {what}, and left out" for name, what in wrong.items()]
    return {name: Series(*pair) for name, pair in found.items()}


def _is_held(lock: Path) -> bool:
    """Whether the process that wrote its number into the lock is alive, on this machine."""
    try:
        os.kill(int(lock.read_text()), 0)
        return True
    except PermissionError:
        return True
    except (OSError, ValueError, OverflowError):
        return False


def _flat(table: Mapping, where: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in table.items():
        found |= _flat(value, f"{where}{key}.") if isinstance(value, dict) else {where + key: value}
    return found


def _value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value) if value != "" else '""'


def _preset(env: Mapping) -> tuple[str, dict[str, object]]:
    """Returns (name, options) of the preset that the run started from.

    Falls back to the defaults of the library, under the name "", where the run names none or it
    is no longer there.
    """
    name = str(env.get("facts", {}).get("preset", ""))
    for candidate in (name, Path(name).name) if name else ():
        try:
            return name, _flat(tomllib.loads(to_toml(load_toml(preset_path(candidate)))))
        except (ConfigError, OSError):
            continue
    return "", _flat(tomllib.loads(to_toml(Config())))


PLACES = ("run.name", "run.root")
"""Options that say where a run is, not what it is."""


def _changed(
    options: Mapping[str, object], usual: Mapping[str, object]
) -> list[tuple[str, str, str]]:
    names = [n for n in dict.fromkeys([*usual, *options]) if n not in PLACES]
    return [
        (
            name,
            _value(options[name]) if name in options else "not there",
            _value(usual[name]) if name in usual else "not there",
        )
        for name in names
        if options.get(name) != usual.get(name)
        # A run writes down what "auto" and 0 came to; the facts say the style with its reason.
        and not (name == "task.style" and usual.get(name) == "auto")
        and not (name == "optim.schedule_steps" and options[name] == options.get("steps"))
    ]


def _facts(env: Mapping) -> list[tuple[str, str]]:
    if not env:
        return []
    facts = [("started", str(env["started"]).replace("T", " "))] if "started" in env else []
    commit = f" ({env['commit']})" if env.get("commit") else ""
    facts.append(("azr", f"{env.get('azr', '?')}{commit}"))
    cores = f", {env['cores']} cores" if env.get("cores") else ""
    facts.append(("machine", f"{env.get('processor', '?')}{cores}"))
    facts.append(("GPU", str(env.get("gpu") or "none")))
    chosen = {k: v for k, v in env.get("facts", {}).items() if k != "not default" and v}
    facts += [(str(k), str(v)) for k, v in chosen.items()]
    versions = ("python", "torch", "transformers", "numpy", "numba")
    facts.append(("versions", ", ".join(f"{v} {env[v]}" for v in versions if v in env)))
    if "platform" in env:
        facts.append(("platform", str(env["platform"])))
    if env.get("memory_peak_bytes"):
        facts.append(("memory plan", f"{env['memory_peak_bytes'] / 2**30:.2f} GiB"))
    if env.get("command"):
        facts.append(("command", " ".join(map(str, env["command"]))))
    return facts
