"""Peers of a comparison that may not be installed: a row "absent" with its reason, never gone."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType


@dataclass(frozen=True, slots=True)
class Absent:
    """A peer that cannot run here, and why."""

    reason: str


def absent(reason: str) -> Absent:
    """Returns the marker to pass to `compare` in place of a peer's callable."""
    return Absent(reason)


def optional(
    module: str, build: Callable[[ModuleType], Callable[[], object]]
) -> Callable[[], object] | Absent:
    """Returns `build(imported module)`, or an `Absent` that names what is missing.

    `build` receives the module and returns the zero-argument callable to time:
    `optional("gmpy2", lambda gmpy2: lambda: [gmpy2.invert(a, b) for a, b in pairs])`.
    A module that is installed but lacks the name that `build` looks up is absent too.
    """
    try:
        return build(importlib.import_module(module))
    except ModuleNotFoundError as error:
        return Absent(f"{error.name or module} is not installed")
    except (ImportError, AttributeError) as error:
        return Absent(f"{module}: {error}")
