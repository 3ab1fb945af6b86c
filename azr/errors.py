"""Errors that end a run or keep it from starting: one line that names the thing and what to do."""

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names the field, the value and the fix."""


class ModelError(ConfigError):
    """A model that cannot be used. The option that names it goes before each part of the message,
    "--model " where nothing else is said."""

    def __str__(self) -> str:
        return self.named("--model ")

    def named(self, option: str) -> str:
        """Returns the message to somebody who named the model by another option."""
        return "".join(option + part for part in self.args)


@contextmanager
def naming_model(option: str) -> Iterator[None]:
    """Lets an error in a model name the option by which it was named here."""
    try:
        yield
    except ModelError as error:
        raise ConfigError(error.named(option)) from error


class RunError(RuntimeError):
    """A run that cannot go on; what is saved stands. The command ends with code 1."""


def in_one_line(error: BaseException) -> str:
    """Returns the kind of an error, and the first line of what it says."""
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]


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
        is_out = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
        detail = str(error).strip() or "no memory"
        if not is_out and "can't allocate memory" not in detail:
            raise
        raise RunError(
            f"out of memory during {phase} ({detail.splitlines()[0]}): lower {option}, then go on "
            "with --resume RUN, or start anew where it has no checkpoint yet"
        ) from error
