"""Programs that try to break out, and whether a sandbox holds against them (`tests/hostile/`)."""

import importlib.resources
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from azr.sandbox.client import Sandbox
from azr.sandbox.records import Job, Limits, Result

LIMITS = Limits(cpu_s=0.4, wall_s=2.5, memory_bytes=64 << 20)
"""Short, for every program that hangs is waited for."""

CONTROL = Job("def f(x): return sorted(x) + [len(x)]", "[3, 1]")
CONTROL_VALUE = [1, 3, 2]


@dataclass(frozen=True, slots=True, kw_only=True)
class HostileProgram:
    """One program of the corpus and its verdict; `error` and `value` are None where any will do."""

    row: int
    name: str
    job: Job
    statuses: tuple[str, ...]
    error: str | None = None
    value: str | None = None
    is_slow: bool = False

    def complaint(self, result: Result) -> str:
        """Returns what is wrong with a result, "" if nothing is."""
        got = (result.status, result.error, result.repr)
        if result.status not in self.statuses:
            return f"{self.name}: {got}, not {' or '.join(self.statuses)}"
        if self.error is not None and result.error != self.error:
            return f"{self.name}: {got}, not {self.error}"
        if self.value is not None and result.repr != self.value:
            return f"{self.name}: {got}, not {self.value}"
        return ""


def load() -> list[HostileProgram]:
    """Returns the corpus, in its order."""
    data = tomllib.loads(_text())
    programs = []
    for entry in data["program"]:
        fill = entry.get("fill", {"text": "", "times": 0})
        filling = fill["text"] * fill["times"]
        code = (data["prelude"] if entry.get("prelude") else "") + entry["code"]
        args = entry.get("args", "").replace("@FILL@", filling)
        statuses = entry["status"]
        programs.append(
            HostileProgram(
                row=entry["row"],
                name=entry["name"],
                job=Job(code.replace("@FILL@", filling), args),
                statuses=(statuses,) if isinstance(statuses, str) else tuple(statuses),
                error=entry.get("error"),
                value=entry.get("value"),
                is_slow=entry.get("slow", False),
            )
        )
    return programs


def _text() -> str:
    """Installed, the corpus is a package of data; in a checkout it stands among the tests."""
    checkout = Path(__file__).resolve().parents[2] / "tests" / "hostile" / "corpus.toml"
    if checkout.is_file():
        return checkout.read_text(encoding="utf-8")
    package = importlib.resources.files("azr.sandbox.hostile")
    return (package / "corpus.toml").read_text(encoding="utf-8")


def run(sandbox: Sandbox, programs: Sequence[HostileProgram]) -> tuple[list[Result], list[str]]:
    """Returns a result per program and every complaint, escapes of the machine included."""
    # A control program after each: what one leaves behind would show in it.
    jobs = [job for program in programs for job in (program.job, CONTROL)]
    results = sandbox.run_batch(jobs)
    hostile, controls = results[::2], results[1::2]
    complaints = [
        complaint
        for program, result in zip(programs, hostile, strict=True)
        if (complaint := program.complaint(result))
    ]
    complaints += [
        f"the program after {program.name!r} gave {control}"
        for program, control in zip(programs, controls, strict=True)
        if control.value != CONTROL_VALUE
    ]
    complaints += [f"left behind: {path}" for path in sorted(Path("/tmp").glob("azr-hostile*"))]
    restarts = sandbox.stats().get("restarts", 0)
    if restarts:
        complaints.append(f"{restarts:.0f} processes of the sandbox died")
    return hostile, complaints
