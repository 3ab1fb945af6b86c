"""`Sandbox`: what callers see."""

import asyncio
import functools
import hashlib
import operator
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import TypeVar

from azr.sandbox.engine import Engine
from azr.sandbox.records import Job, Label, Limits, Result, SandboxError
from azr.sandbox.work import Call, LabelCall, PlainCall, Program

REQUIRED_LAYERS = ("seccomp", "no_new_privs", "rlimits")
"""Without these a process is no sandbox."""
LAYERS = (
    *REQUIRED_LAYERS,
    "landlock",
    "uid",
    "capabilities",
    "namespaces",
    "undumpable",
    "oom_victim",
)
NAMESPACES = {
    "mount": 0x00020000,
    "cgroup": 0x02000000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "user": 0x10000000,
    "net": 0x40000000,
}
HEAR_S = 0.2
"""A wait of the main thread is no longer: a signal that comes just before it does not end it."""
C = TypeVar("C", bound=Call)


class Sandbox:
    """Processes that run untrusted programs; a context manager. All methods are thread-safe.

    workers: programs that run at the same time; by default the cores this process may use.
    limits: what one program may use.
    allow_weak: accept a host that forbids seccomp or resource limits. `layers()` says what is left.
    modules: what programs may import beside the usual modules; it can cost labels their meaning.

    A program's failures are statuses of its `Result`; SandboxError means that the sandbox itself
    cannot be used: not built here, a host without the required layers, closed, or a forked copy.
    """

    def __init__(
        self,
        workers: int | None = None,
        limits: Limits | None = None,
        *,
        allow_weak: bool = False,
        modules: Sequence[str] = (),
        _protected: bool = True,
        _extra: Mapping[str, str] | None = None,
    ) -> None:
        # _protected=False is the bench's "no layers"; _extra gives the tests raw system calls.
        workers = len(os.sched_getaffinity(0)) if workers is None else workers
        if not isinstance(workers, int) or not 1 <= workers <= 1024:
            raise ValueError(f"workers is {workers!r}; it must be an integer from 1 to 1024")
        if not isinstance(limits, Limits | None):
            raise TypeError(f"limits is {limits!r}; it must be a Limits")
        if isinstance(modules, str) or not all(isinstance(name, str) for name in modules):
            raise TypeError(f'modules is {modules!r}; it must be a sequence of names, ["math"]')
        self.limits = limits or Limits()
        self.workers = workers
        self._pid = os.getpid()
        self._engine = Engine(self.limits, workers, _protected, tuple(modules), _extra or {})
        self._finalizer = weakref.finalize(self, _close, self._engine, self._pid)
        self._engine.ready.wait()
        if self._engine.broken:
            why = self._engine.broken
            self.close()
            raise SandboxError(why)
        missing = [name for name in REQUIRED_LAYERS if not self.layers().get(name)]
        if missing and not allow_weak and _protected:
            self.close()
            raise SandboxError(
                f"this host does not give the sandbox {', '.join(missing)}; "
                "Sandbox(allow_weak=True) runs programs without"
            )

    # ---- Running ------------------------------------------------------------------------------

    def run(self, code: str, args_text: str) -> Result:
        """Returns what `f` of this program does with one argument list."""
        return self.run_batch([Job(code, args_text)])[0]

    def run_many(self, code: str, args_texts: Sequence[str]) -> list[Result]:
        """Returns a result per argument list, in order, each as if it were alone."""
        return self.run_batch([Job(code, args_texts)])

    def run_batch(self, jobs: Iterable[Job]) -> list[Result]:
        """Returns the results of all inputs of all jobs, in order."""
        calls = self._run_calls(PlainCall, jobs)
        return [result for call in calls for result in call.results()]

    def label(self, code: str, args_texts: Sequence[str]) -> Label:
        """Returns the program's results and whether it is deterministic on these inputs."""
        return self.label_batch([Job(code, args_texts)])[0]

    def label_batch(self, jobs: Iterable[Job]) -> list[Label]:
        """Returns a label per job, in order."""
        return [call.label() for call in self._run_calls(LabelCall, jobs)]

    def submit_batch(self, jobs: Iterable[Job]) -> list["Future[Result]"]:
        """Returns at once a future per input of every job, in order.

        A job of which every future is cancelled is not begun any more."""
        jobs = list(jobs)
        futures: list[list[Future[Result]]] = [[Future() for _ in job.args_texts] for job in jobs]
        self._promise(PlainCall, jobs, futures, PlainCall.results)
        return [future for mine in futures for future in mine]

    def submit_labels(self, jobs: Iterable[Job]) -> list["Future[Label]"]:
        """Returns at once a future per job, in order."""
        jobs = list(jobs)
        futures: list[Future[Label]] = [Future() for _ in jobs]
        self._promise(LabelCall, jobs, [[future] for future in futures], lambda c: [c.label()])
        return futures

    async def arun_batch(self, jobs: Iterable[Job]) -> list[Result]:
        """Returns the results of all inputs of all jobs, in order; other tasks go on meanwhile."""
        return await asyncio.gather(*map(asyncio.wrap_future, self.submit_batch(jobs)))

    async def alabel_batch(self, jobs: Iterable[Job]) -> list[Label]:
        """Returns a label per job, in order; other tasks go on meanwhile."""
        return await asyncio.gather(*map(asyncio.wrap_future, self.submit_labels(jobs)))

    # ---- State --------------------------------------------------------------------------------

    def layers(self) -> dict[str, bool | int | str]:
        """Returns what protects this machine from programs, layer by layer, as tried at the start.

        A layer counts if every zygote has it. landlock: the kernel's ABI, 0 if there is none.
        uid: whether programs run as a user that nobody else is. namespaces: those entered.
        """
        zygotes = tuple(self._engine.zygotes.values())
        found = [zygote.layers for zygote in zygotes if zygote.layers]
        report: dict[str, bool | int | str] = {}
        for name in LAYERS:
            values = [layers[name] for layers in found] or [0]
            if name == "landlock":
                report[name] = min(values)
            elif name == "namespaces":
                common = functools.reduce(operator.and_, values)
                report[name] = " ".join(kind for kind, bit in NAMESPACES.items() if common & bit)
            else:
                report[name] = all(values)
        return report

    def stats(self) -> dict[str, float]:
        """Returns counters since the start, and percentiles over the last calls."""
        return self._engine.stats()

    def close(self) -> None:
        """Ends every process of the sandbox; calls that are not done fail. Safe to call twice."""
        self._finalizer()

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # ---- Calls --------------------------------------------------------------------------------

    def _run_calls(self, kind: type[C], jobs: Iterable[Job]) -> list[C]:
        """Runs the jobs' calls to their end."""
        if self._engine.is_this_thread():
            raise SandboxError(
                "a future's callback runs in the sandbox's own thread and cannot wait for it; "
                "use submit_batch or submit_labels there"
            )
        ended = threading.Event()
        jobs = list(jobs)
        count = [len(jobs)]

        def done(call: Call) -> None:
            count[0] -= 1  # in the sandbox's thread alone
            if not count[0]:
                ended.set()

        interrupted = threading.Event()
        calls = [self._call(kind, job, done, lambda: not interrupted.is_set()) for job in jobs]
        try:
            self._submit(calls)
            while calls and not ended.wait(HEAR_S):
                pass
        except BaseException:  # Ctrl-C
            interrupted.set()
            self._engine.recall()
            raise
        return calls

    def _promise(
        self,
        kind: type[C],
        jobs: Sequence[Job],
        futures: Sequence[Sequence[Future]],
        results: Callable[[C], list],
    ) -> None:
        """Submits a call per job, each of which fulfils its futures as it ends."""

        def fulfil(mine: Sequence[Future], call: C) -> None:
            for future, result in zip(mine, results(call), strict=True):
                if future.set_running_or_notify_cancel():
                    future.set_result(result)

        self._submit(
            self._call(kind, job, functools.partial(fulfil, mine), self._watch(mine))
            for job, mine in zip(jobs, futures, strict=True)
        )

    def _watch(self, futures: Sequence[Future]) -> Callable[[], bool]:
        """Returns the claim that one of the futures is not cancelled; says so when one is."""
        recall = self._engine.recall

        def hear(future: Future) -> None:
            if future.cancelled():
                recall()

        for future in futures:
            future.add_done_callback(hear)
        return lambda: not futures or not all(future.cancelled() for future in futures)

    def _call(
        self, kind: type[C], job: Job, done: Callable[[C], None], is_wanted: Callable[[], bool]
    ) -> C:
        limits = self.limits
        if len(job.args_texts) > limits.inputs:
            raise ValueError(
                f"a job has {len(job.args_texts)} inputs; Limits.inputs is {limits.inputs}"
            )
        begun_s = time.monotonic()
        engine = self._engine

        def ended(call: C) -> None:
            engine.note_end(call, time.monotonic() - begun_s)
            done(call)

        texts = [_encoded(text, limits.args_bytes) for text in job.args_texts]
        return kind(_program(job.code, limits), texts, limits, ended, is_wanted)

    def _submit(self, calls: Iterable[Call]) -> None:
        if os.getpid() != self._pid:
            raise SandboxError("this sandbox belongs to the process that was forked; open another")
        self._engine.submit(list(calls))


def _encoded(text: str, most_bytes: int) -> bytes | None:
    """Returns UTF-8 with line ends as Python reads them, None beyond the limit."""
    if len(text) > most_bytes:
        return None
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    # A lone surrogate is no UTF-8, and no text of a program: the parser refuses it.
    encoded = text.encode("utf-8", "surrogatepass")
    return None if len(encoded) > most_bytes else encoded


def _program(code: str, limits: Limits) -> Program:
    if len(code) > limits.source_bytes:
        return Program(b"", outcome="too_large", detail="source")
    try:
        source = code.encode()
    except UnicodeEncodeError:
        return Program(b"", outcome="syntax_error")
    if len(source) > limits.source_bytes:
        return Program(b"", outcome="too_large", detail="source")
    return Program(source, hashlib.blake2b(source, digest_size=16).digest())


def _close(engine: Engine, pid: int) -> None:
    if os.getpid() == pid:  # a forked copy must not end the processes of the original
        engine.close()
