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
from azr.run.series import NAMED, Fold, Series, describe_damage, read_fold, read_lines

State = Literal["finished", "still going", "stopped early"]
EVENTS = 1_000
"""Of events.jsonl, the last ones."""


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


def read_run(folder: Path, *, is_over: bool = False, samples: bool = True) -> RunRecord:
    """Returns the record of a run directory; raises ConfigError where it is none.

    `is_over` says that the run has ended, for the process that ran it; without `samples`, run.db
    is not read.
    """
    folder = folder.resolve()
    if not (folder / "config.toml").is_file():
        raise ConfigError(f"{folder}: no run directory (it has no config.toml)")
    problems: list[str] = []
    options = _flat(_read(folder / "config.toml", tomllib.loads, problems))
    env = _read(folder / "env.json", json.loads, problems)
    fold = _fold(folder / "metrics.jsonl", problems)
    metrics = fold.series()
    preset, usual = _preset(env)
    levels = [name.split("/") for name in metrics]
    evaluated = [(parts[1], parts[2]) for parts in levels if parts[0] == "eval" and len(parts) == 4]
    step, target = max(fold.last_step, 0), options.get("steps", 0)
    state: State = "stopped early"
    if target and step >= target:
        state = "finished"
    elif not is_over and _is_held(folder / "lock"):
        state = "still going"
    return RunRecord(
        folder=folder,
        state=state,
        step=step,
        target=target,
        types=tuple(dict.fromkeys([*options.get("task.types", []), *(t for _, t in evaluated)])),
        splits=tuple(dict.fromkeys(["train", *(split for split, _ in evaluated)])),
        metrics=metrics,
        events=_events(folder / "events.jsonl", problems),
        facts=_facts(env),
        universe=env.get("universe", {}),
        options={name: _value(value) for name, value in options.items()},
        preset=preset,
        changed=_changed(options, usual),
        samples=read_samples(folder / "run.db", problems) if samples else None,
        problems=problems,
    )


def _read(path: Path, parse: Callable[[str], dict], problems: list[str]) -> dict:
    try:
        return parse(utf8_text(path.read_bytes()))
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{path.name} cannot be read: {error}")
        return {}


def _fold(path: Path, problems: list[str]) -> Fold:
    """Returns metrics.jsonl folded; what is left out of it is named."""
    try:
        fold = read_fold(path)
    except OSError as error:
        problems.append(f"{path.name} cannot be read: {error.strerror}")
        return Fold()
    problems += fold.problems()
    return fold


def _events(path: Path, problems: list[str]) -> list[Event]:
    """Returns the last EVENTS of events.jsonl, a file that a run without any does not have."""
    if not path.exists():
        return []
    try:
        with open(path, "rb") as file:
            rows = [line.row for line in read_lines(file)]
    except OSError as error:
        problems.append(f"{path.name} cannot be read: {error.strerror}")
        return []
    if damaged := [number for number, row in enumerate(rows, 1) if row is None]:
        problems.append(f"{path.name}: {describe_damage(len(damaged), damaged[:NAMED])}")
    events = [
        Event(row["step"], str(row.get("kind", "")), str(row.get("message", "")))
        for row in rows
        if row is not None
    ]
    if (left_out := len(events) - EVENTS) > 0:
        problems.append(f"{path.name}: the first {left_out:,} lines, of {len(rows):,}")
    return events[-EVENTS:]


def _is_held(lock: Path) -> bool:
    """Whether the process that wrote its number into the lock is alive, on this machine."""
    try:
        os.kill(int(lock.read_text()), 0)
        return True
    except PermissionError:
        return True
    except (OSError, ValueError, OverflowError):
        return False


def _flat(table: Mapping, where: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
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
    def shown(values: Mapping[str, object], name: str) -> str:
        return _value(values[name]) if name in values else "not there"

    return [
        (name, shown(options, name), shown(usual, name))
        for name in dict.fromkeys([*usual, *options])
        if options.get(name) != usual.get(name)
        and name not in PLACES
        # A run writes down what "auto" and 0 came to; the facts say the style with its reason.
        and not (name == "task.style" and usual.get(name) == "auto")
        and not (name == "optim.schedule_steps" and options.get(name) == options.get("steps"))
    ]


def _facts(env: Mapping) -> list[tuple[str, str]]:
    if not env:
        return []
    commit = f" ({env['commit']})" if env.get("commit") else ""
    cores = f", {env['cores']} cores" if env.get("cores") else ""
    peak = env.get("memory_peak_bytes")
    versions = ("python", "torch", "transformers", "numpy", "numba")
    facts = {
        "started": str(env.get("started", "")).replace("T", " "),
        "azr": f"{env.get('azr', '?')}{commit}",
        "machine": f"{env.get('processor', '?')}{cores}",
        "GPU": env.get("gpu") or "none",
        **{name: fact for name, fact in env.get("facts", {}).items() if name != "not default"},
        "versions": ", ".join(f"{v} {env[v]}" for v in versions if v in env),
        "platform": env.get("platform"),
        "memory plan": f"{peak / 2**30:.2f} GiB" if peak else "",
        "command": " ".join(map(str, env.get("command") or ())),
    }
    return [(name, str(fact)) for name, fact in facts.items() if fact]
