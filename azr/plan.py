"""A memory plan: its parts, the most that is held at once, and whether that fits."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from azr.config import ConfigError

GIB = 2**30

Phase = Literal["always", "warm-up", "self-play", "rollouts", "update"]
"""Which parts are held together: `always` with `warm-up`; later `always` and `self-play`, with
`rollouts` and `update` in turn."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the plan, the option that changes it, and the phase of a run that holds it."""

    name: str
    bytes: int
    option: str
    phase: Phase = "always"


def peak_bytes(plan: list[Part]) -> int:
    """Returns the most that is held at once; see `Phase`."""
    return sum(part.bytes for part in fullest(plan))


def fullest(plan: list[Part]) -> list[Part]:
    """Returns the parts that are held together when most is."""
    of = by_phase(plan)
    moments = (
        of["always"] + of["warm-up"],
        of["always"] + of["self-play"] + of["rollouts"],
        of["always"] + of["self-play"] + of["update"],
    )
    return max(moments, key=lambda parts: sum(part.bytes for part in parts))


def by_phase(plan: list[Part]) -> dict[Phase, list[Part]]:
    """Returns the parts of each phase, in the order of the phases."""
    return {phase: [p for p in plan if p.phase == phase] for phase in get_args(Phase)}


def check_fit(plan: list[Part], available: int | None, device: str) -> None:
    """Raises ConfigError naming the largest part and its option where the plan does not fit."""
    total = peak_bytes(plan)
    if available is not None and total > available:
        # A smaller part of a phase that holds less would not help.
        largest = max(fullest(plan), key=lambda part: part.bytes)
        when = " during the warm-up" if largest.phase == "warm-up" else ""
        raise ConfigError(
            f"the run needs about {readable(total)} on {device}, and {readable(available)} "
            f"are free; the largest part is {largest.name} ({readable(largest.bytes)}){when}: "
            f"change {largest.option}"
        )


def readable(count: int) -> str:
    """Returns a number of bytes as text."""
    for unit, size in (("GiB", GIB), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 2**10:.0f} KiB"


def resident_bytes() -> int:
    """Returns the memory that this process holds on the host, 0 where it cannot be told."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError):
        return 0  # not Linux
    return pages * os.sysconf("SC_PAGE_SIZE")
