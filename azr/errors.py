"""Errors that end a run or keep it from starting: one line that names the thing and what to do."""

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names the field, the value and the fix."""


class RunError(RuntimeError):
    """A run that cannot go on; what is saved stands. The command ends with code 1."""


@contextmanager
def naming_disk_errors(path: Path) -> Iterator[None]:
    """Turns a failed write into a RunError that names the file and how to go on.

    `path` is named where the error itself names none.
    """
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        named = getattr(error, "filename", None) or path
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        # In the words of libraries.
        full = full or "os error 28" in reason or "disk is full" in reason
        advice = "free some space" if full else "see that it can be written"
        raise RunError(
            f"cannot write {named}: {reason}; {advice}, then go on from the last checkpoint with "
            "--resume RUN, or start anew where there is none"
        ) from error


@contextmanager
def naming_memory_errors(phase: str, option: str) -> Iterator[None]:
    """Turns running out of memory into a RunError that names the phase and its option."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # torch.OutOfMemoryError on a GPU; the CPU allocator raises a plain RuntimeError.
        named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
        if not named and "can't allocate memory" not in str(error):
            raise
        first = (str(error).strip() or "no memory").splitlines()[0]
        raise RunError(
            f"out of memory during {phase} ({first}): lower {option}, then go on with --resume "
            "RUN, or start anew where it has no checkpoint yet"
        ) from error
