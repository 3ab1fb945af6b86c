"""What goes into a sandbox and what comes out of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Literal, get_args

Status = Literal[
    "ok",
    "syntax_error",
    "forbidden_import",
    "exception",
    "timeout_cpu",
    "timeout_wall",
    "memory",
    "too_large",
    "unsupported_value",
    "nondeterministic",
    "crash",
    "no_result",
    "violation",
    "sandbox_failure",
]
STATUSES: tuple[Status, ...] = get_args(Status)

Value = object
"""None, bool, int, float, complex, str, bytes, or a list, tuple, dict or set of such values."""


class SandboxError(RuntimeError):
    """The sandbox itself cannot be used; says why and what to do. Never about a program."""


BOUNDS = {
    "cpu_s": (1e-6, 3600),
    "wall_s": (1e-6, 86400),
    "memory_bytes": (1 << 20, 1 << 40),
    "source_bytes": (1, 16 << 20),
    "args_bytes": (1, 16 << 20),
    "inputs": (1, 4096),
    "output_bytes": (1, 16 << 20),
    "recursion": (20, 100_000),  # below, the sandbox's own Python does not start
    "depth": (1, 200),
    "nodes": (1, 1 << 30),
}
"""The least and the most of each of `Limits`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one program may use.

    cpu_s: CPU seconds of one input; loading the program counts to its first input.
    wall_s: elapsed seconds of one input, for a program that waits instead of computing.
    memory_bytes: address space beyond that of the empty interpreter.
    source_bytes, args_bytes: length of a program and of one argument text, in UTF-8.
    inputs: argument texts of one job.
    output_bytes: canonical bytes of one result; a longer one is `too_large`, never cut. So is one
        that takes more than 14 times as much memory when decoded.
    recursion: Python's recursion limit, for programs that do not set another.
    depth: nesting of a value; deeper is `unsupported_value` (`syntax_error` in an argument text).
    nodes: values inside one value; more is `too_large`.
    """

    cpu_s: float = 1.0
    wall_s: float = 10.0
    memory_bytes: int = 256 << 20
    source_bytes: int = 64 << 10
    args_bytes: int = 64 << 10
    inputs: int = 64
    output_bytes: int = 64 << 10
    recursion: int = 1000
    depth: int = 60
    nodes: int = 200_000

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            is_number = isinstance(value, int | limit.type) and not isinstance(value, bool)
            if not is_number:
                kind = "a number of seconds" if limit.type is float else "an integer"
                raise TypeError(f"Limits.{limit.name} is {value!r}; it must be {kind}")
            least, most = BOUNDS[limit.name]
            if not least <= value <= most:
                raise ValueError(
                    f"Limits.{limit.name} is {value!r}; it must be from {least} to {most}"
                )
        if self.memory_bytes < (1 << 20) + self.source_bytes:
            raise ValueError(
                f"Limits.memory_bytes is {self.memory_bytes}; it must be 1 MiB more than "
                f"source_bytes, {(1 << 20) + self.source_bytes}, or above"
            )
        if self.inputs * (self.args_bytes + self.output_bytes) > 1 << 30:
            raise ValueError(
                f"Limits.inputs is {self.inputs}; times args_bytes + output_bytes it must stay "
                "within 1 GiB"
            )


@dataclass(frozen=True, slots=True, init=False)
class Job:
    """A program and the argument texts to call its `f` with: `Job(code, "1, [2]", "3, []")`.

    One list or tuple of texts stands for its items. Each result is that of the input alone: inputs
    share a process only where the program is known to keep nothing from one call to the next.
    """

    code: str
    args_texts: tuple[str, ...]

    def __init__(
        self,
        code: str,
        *texts: str | Sequence[str],
        args_text: str | None = None,
        args_texts: Sequence[str] | None = None,
    ) -> None:
        if args_text is not None:
            texts = (*texts, args_text)
        elif args_texts is not None:  # as dataclasses.replace says it
            texts = (*texts, args_texts)
        if len(texts) == 1 and isinstance(texts[0], list | tuple):
            texts = tuple(texts[0])
        for name, text in (("code", code), *(("args_text", text) for text in texts)):
            if not isinstance(text, str):
                raise TypeError(f"Job {name} is {type(text).__name__}, not str")
        object.__setattr__(self, "code", code)
        object.__setattr__(self, "args_texts", texts)


@dataclass(frozen=True, slots=True)
class Result:
    """What one program did with one input.

    value: the decoded plain value where `status` is "ok", else None.
    error: class of the exception; the offending type, module, limit or layer; or "". Of what a
        child has said, 200 characters at most.
    canonical: bytes that are equal exactly for the same value, type by type; empty unless "ok".
    cpu_s, wall_s: seconds of this input, as far as they can be told apart from other inputs.
    signal: that ended the process, 0 if none.
    """

    status: Status
    value: Value = None
    error: str = ""
    canonical: bytes = field(default=b"", repr=False)
    cpu_s: float = 0.0
    wall_s: float = 0.0
    signal: int = 0

    @property
    def ok(self) -> bool:
        """Whether the program returned a value."""
        return self.status == "ok"

    @property
    def repr(self) -> str:
        """The value's canonical text: Python's own, with sets in a fixed order; "" unless "ok"."""
        return canonical_text(self.value) if self.status == "ok" else ""


@dataclass(frozen=True, slots=True)
class Label:
    """The results of a program that was run under several hash seeds, orders and layouts.

    deterministic: every run gave the same canonical bytes or the same exception for every input.
    reason: why not, "" if so. An input whose results differ has the status "nondeterministic"; one
        that was not run any more, for another had settled the label, "no_result".
    """

    results: tuple[Result, ...]
    deterministic: bool
    reason: str = ""


def canonical_text(value: Value) -> str:
    """Returns `repr(value)` with the elements of sets sorted by their own text."""
    if isinstance(value, set):
        return "{" + ", ".join(sorted(map(canonical_text, value))) + "}" if value else "set()"
    if isinstance(value, list):
        return "[" + ", ".join(map(canonical_text, value)) + "]"
    if isinstance(value, tuple):
        body = ", ".join(map(canonical_text, value))
        return f"({body},)" if len(value) == 1 else f"({body})"
    if isinstance(value, dict):
        pairs = (f"{canonical_text(k)}: {canonical_text(v)}" for k, v in value.items())
        return "{" + ", ".join(pairs) + "}"
    return repr(value)
