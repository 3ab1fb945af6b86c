"""Running programs: the sandbox with a memory of what it ran, and what its work says in numbers."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from azr.errors import RunError
from azr.sandbox import Job, Label, Limits, Result, Sandbox, SandboxError
from azr.tasks.program.values import LITERAL_DEPTH

REMEMBERED = 20_000
"""Results kept, each of one program on one input."""


class Running:
    """A program that runs on an input.

    The future goes once it has told the result: it is ten times as large, and thousands that live
    for hundreds of steps leave holes between what a step takes and gives back.
    """

    __slots__ = ("_run",)

    def __init__(self, future: Future[Result]):
        self._run: Future[Result] | Result = future

    def result(self) -> Result:
        """Returns the result, once it has run."""
        if isinstance(self._run, Future):
            self._run = self._run.result()
        return self._run

    def has_failed(self) -> bool:
        """Whether the sandbox itself has failed, so that there is no result to remember."""
        is_over = not isinstance(self._run, Future) or self._run.done()
        return is_over and self.result().status == "sandbox_failure"


class Executor:
    """Runs programs in the sandbox, which starts with the first of them if not before.

    The same program on the same input is run once, as long as it is remembered: results are those
    of a deterministic machine, or statuses that say otherwise. A failure of the sandbox itself is
    never remembered.
    """

    def __init__(self, *, cpu_s: float, output_bytes: int, workers: int):
        self._limits = Limits(
            cpu_s=cpu_s,
            wall_s=max(5 * cpu_s, 5.0),
            output_bytes=output_bytes,
            depth=LITERAL_DEPTH,
        )
        self._workers = workers or len(os.sched_getaffinity(0))
        self._sandbox: Sandbox | None = None
        self._known: dict[tuple[str, str], Running] = {}
        self._counts: Counter[str] = Counter()

    def label(self, jobs: Sequence[tuple[str, tuple[str, ...]]]) -> list[Future[Label]]:
        """Returns a future per (program, inputs): its results, and whether it is deterministic."""
        self._counts["labels"] += len(jobs)
        return self._submit(Sandbox.submit_labels, [Job(code, inputs) for code, inputs in jobs])

    def run(self, pairs: Sequence[tuple[str, str]], *, afresh: bool = False) -> list[Running]:
        """Returns what runs per (program, input); `afresh` runs what is remembered again."""
        known = {} if afresh else self._known
        wanted: dict[str, list[str]] = {}
        for code, given in dict.fromkeys(pairs):
            if (code, given) not in known or known[code, given].has_failed():
                wanted.setdefault(code, []).append(given)
        jobs = [
            Job(code, inputs[at : at + self._limits.inputs])
            for code, inputs in wanted.items()
            for at in range(0, len(inputs), self._limits.inputs)
        ]
        futures = iter(self._submit(Sandbox.submit_batch, jobs)) if jobs else iter(())
        for job in jobs:
            for given in job.args_texts:
                known[job.code, given] = Running(next(futures))
        self._counts["runs"] += len(pairs)
        self._counts["remembered"] += len(pairs) - sum(len(job.args_texts) for job in jobs)
        found = [known[pair] for pair in pairs]
        while len(self._known) > REMEMBERED:
            del self._known[next(iter(self._known))]
        return found

    def note_recheck(self, agrees: bool) -> None:
        """Counts a grade that was made a second time, from runs afresh."""
        self._counts["rechecked"] += 1
        self._counts["disagreements"] += not agrees

    def metrics(self) -> dict[str, float]:
        """Returns what ran since the last call, and percentiles of the sandbox's last calls."""
        counts, self._counts = self._counts, Counter()
        stats = self._sandbox.stats() if self._sandbox else {}
        runs = counts["runs"]
        found = {
            "sandbox/labels": float(counts["labels"]),
            "sandbox/runs": float(runs),
            "sandbox/remembered_frac": counts["remembered"] / runs if runs else float("nan"),
            "sandbox/rechecked": float(counts["rechecked"]),
            "sandbox/disagreements": float(counts["disagreements"]),
            "sandbox/failures_total": stats.get("status/sandbox_failure", 0.0),
            "sandbox/timeouts_total": stats.get("status/timeout_cpu", 0.0)
            + stats.get("status/timeout_wall", 0.0),
        }
        for name, ours in (
            ("latency_s/p50", "sandbox/latency_p50_ms"),
            ("latency_s/p99", "sandbox/latency_p99_ms"),
            ("child_cpu_s/p50", "sandbox/cpu_p50_ms"),
            ("child_cpu_s/p99", "sandbox/cpu_p99_ms"),
        ):
            found[ours] = 1e3 * stats.get(name, float("nan"))
        found["sandbox/rss_max_bytes"] = float(stats.get("rss_bytes/max", 0))
        return found

    def open(self) -> None:
        """Starts the sandbox; raises RunError where it cannot be used."""
        if self._sandbox is None:
            try:
                self._sandbox = Sandbox(workers=self._workers, limits=self._limits)
            except SandboxError as error:
                raise RunError(
                    f"--env program needs the sandbox: {error}; see `python -m azr.doctor`"
                ) from error

    def close(self) -> None:
        """Ends the sandbox, if it was started."""
        if self._sandbox:
            self._sandbox.close()

    def _submit(self, how: Callable, jobs: list[Job]) -> list[Future]:
        self.open()
        try:
            return how(self._sandbox, jobs)
        except SandboxError as error:
            raise RunError(
                f"the sandbox has given up: {error}; see `python -m azr.doctor`. The last "
                "checkpoint stands: --resume"
            ) from error
