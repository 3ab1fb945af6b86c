"""The thread between the callers and the processes: compiles, dispatches, retries, restarts."""

import errno
import mmap
import os
import selectors
import signal
import struct
import threading
import time
import traceback
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from azr.sandbox.process import (
    COMPILED,
    LENGTH,
    REPORT,
    RUN,
    SOURCE,
    BadFrame,
    Process,
    Setting,
    above_standard,
    extension,
)
from azr.sandbox.records import STATUSES, Limits, SandboxError, Status
from azr.sandbox.work import ALL_SEEDS, BASE_SEEDS, CONTENDED, Call, Outcome, Program, Run

COMPILE_S = 0.25
"""CPU seconds for a source of up to 64 KiB, in proportion for longer ones. All programs wait for
one compiler, and twenty `finally` inside each other, 800 bytes, are compiled a million times."""
LONG_BYTES = 1 << 13
"""Of a result, after which other threads get a turn: about 0.1 ms of decoding."""
ERROR_BYTES = 200
"""Of a name in a result; a longer one is cut."""
RISKY, KEEPS = 1, 2
"""Bits of what the compiler says of a program's code."""
CACHE_BYTES = 64 << 20
"""Compiled programs that are kept."""
START_PAUSES_S = (0.1, 0.2, 0.4, 0.8, 1.6)
"""Waits between tries to start a process where the host has no room for one."""
START_ATTEMPTS = 5
"""Processes of one kind that may fail to start in a row before the sandbox gives up."""
ALONE_AFTER_S = 1.0
"""A run that must be alone waits no longer than this for others to be used up."""
CRASHES = (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS, -signal.SIGILL, -signal.SIGSYS)
"""Ways in which a compiler ends by its own doing."""
FAILED = STATUSES.index("sandbox_failure")
CLOSED = "the sandbox is closed"
NO_ROOM = "the host gave no process (ulimit -u, the container's pids limit, or memory)"
WORD = struct.Struct("I")
"""Native, so that a zygote never reads half of one."""
RECALLED_AT = 2048
"""Where in the shared page the last run stands that a zygote may give back, by its seed."""
FULL_BYTES = 1 << 20
"""Bytes on their way to one process."""


class Engine:
    """State and main loop of the sandbox's one thread. Methods without an underscore may be called
    from other threads."""

    def __init__(
        self,
        limits: Limits,
        workers: int,
        protected: bool,
        modules: tuple[str, ...],
        extra: Mapping[str, str],
    ):
        self._decode_entry = extension().decode_entry
        self.limits = limits
        semaphore = os.EFD_NONBLOCK | os.EFD_SEMAPHORE | os.EFD_CLOEXEC
        tokens_fd = above_standard(os.eventfd(workers, semaphore))
        held_fd = above_standard(os.memfd_create("azr-sandbox", os.MFD_CLOEXEC))
        os.ftruncate(held_fd, mmap.PAGESIZE)
        self._held = mmap.mmap(held_fd, mmap.PAGESIZE)
        self.setting = Setting(
            limits=limits,
            workers=workers,
            tokens_fd=tokens_fd,
            held_fd=held_fd,
            protected=protected,
            modules=modules,
            extra=extra,
        )
        self._wake_fd = above_standard(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
        self._compile_s = COMPILE_S * max(1.0, limits.source_bytes / (64 << 10))
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake_fd, selectors.EVENT_READ)
        self._lock = threading.Lock()
        self._submitted: deque[Call] = deque()
        self._closing = False
        self._recalling = False
        self.zygotes: dict[int, Process[Run]] = {}
        self.compiler: Process[Program] | None = None
        self._programs: OrderedDict[bytes, Program] = OrderedDict()
        self._cached_bytes = 0
        self._compiling: dict[Program, list[Call]] = {}
        self._sources: deque[Program] = deque()
        self._runs: dict[int, deque[Run]] = {seed: deque() for seed in range(ALL_SEEDS)}
        self._alone: deque[tuple[float, Run]] = deque()
        self._alone_in_flight = False
        self._flights = 0
        self._next_id = 0
        self._window = 8 * workers + 32
        self._failed_starts: Counter[str] = Counter()
        self.broken = ""
        self.counters: Counter[str] = Counter()
        self.latencies_s: deque[float] = deque(maxlen=4096)
        self.cpu_s: deque[float] = deque(maxlen=4096)
        self.ready = threading.Event()
        self.thread = threading.Thread(target=self._main, name="azr-sandbox", daemon=True)
        self.thread.start()

    # ---- From other threads -------------------------------------------------------------------

    def submit(self, calls: Iterable[Call]) -> None:
        """Takes calls over; each ends by its `done`, in the sandbox's thread.

        Raises SandboxError where it is closed or has given up.
        """
        with self._lock:
            if self._closing or self.broken:
                raise SandboxError(self.broken or CLOSED)
            self._submitted.extend(calls)
            os.eventfd_write(self._wake_fd, 1)

    def close(self) -> None:
        """Ends all processes and the thread; what is unfinished fails."""
        with self._lock:
            if not self._closing:
                self._closing = True
                os.eventfd_write(self._wake_fd, 1)
        if not self.is_this_thread():
            self.thread.join()

    def is_this_thread(self) -> bool:
        """Whether the caller runs in the sandbox's own thread, which must not wait."""
        return threading.current_thread() is self.thread

    def recall(self) -> None:
        """Has the thread look for calls that nobody waits for any more."""
        with self._lock:
            if not self._closing:
                self._recalling = True
                os.eventfd_write(self._wake_fd, 1)

    def note_end(self, call: Call, latency_s: float) -> None:
        """Counts a call that has ended."""
        if call.is_dropped:
            self.counters["cancelled"] += 1
            return
        self.counters["programs"] += 1
        self.counters["inputs"] += len(call.texts)
        self.latencies_s.append(latency_s)
        for status in call.statuses():
            self.counters[f"status/{status}"] += 1

    def stats(self) -> dict[str, float]:
        """Returns counters, percentiles over the last calls, and the memory of the processes."""
        found: dict[str, float] = dict(self.counters)
        for name, values in (("latency_s", self.latencies_s), ("child_cpu_s", self.cpu_s)):
            ordered = sorted(tuple(values))
            for percent in (50, 99):
                at = min(len(ordered) * percent // 100, len(ordered) - 1)
                found[f"{name}/p{percent}"] = ordered[at] if ordered else 0.0
        processes = self._processes()
        found["processes"] = len(processes)
        found["rss_bytes/max"] = max((p.rss_bytes() for p in processes), default=0)
        return found

    # ---- The thread ---------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            self._start_all()
            while not self._closing:
                self._take_submitted()
                if self._recalling:
                    self._recall()
                self._dispatch()
                self._listen(self._patience_s())
                self._watch_compiler()
        except SandboxError as error:
            self._break(str(error))
        except BaseException as error:
            self._break(_text(error))
            raise
        finally:
            self._end()

    def _for(self, call: Call, step: Callable, *args: object) -> None:
        """Takes a step that concerns this call alone: an error in it ends that, not the sandbox.

        Memory may be short, or a value's bytes such as nobody has thought of."""
        try:
            step(*args)
        except BaseException as error:  # a callback may raise CancelledError or SystemExit
            if call.is_over:
                traceback.print_exception(error)
            self._abandon(call, f"in the sandbox's thread: {_text(error)}")

    def _abandon(self, call: Call, why: str) -> None:
        try:
            call.abandon(why)
        except BaseException:
            # Whoever waits must hear of it whatever happens, and the other calls go on.
            traceback.print_exc()

    def _end(self) -> None:
        with self._lock:
            self._closing = True
        self.ready.set()
        self._break(CLOSED)
        deadline_s = time.monotonic() + 1
        processes = self._processes()
        for process in processes:
            self._selector.unregister(process.socket)
            process.socket.close()
        for process in processes:
            process.end(deadline_s)
        self._selector.close()
        self._held.close()
        for fd in (self.setting.tokens_fd, self.setting.held_fd, self._wake_fd):
            os.close(fd)

    def _processes(self) -> list[Process]:
        return [*self.zygotes.values(), *([self.compiler] if self.compiler else [])]

    def _start_all(self) -> None:
        if self.compiler is None:
            self.compiler = self._start("compiler", 0)
        for seed in range(BASE_SEEDS):
            self._zygote(seed)

    def _start(self, role: Literal["zygote", "compiler"], seed: int) -> Process:
        """Returns a new process; waits a while for room on the host."""
        pauses_s = iter(START_PAUSES_S)
        while True:
            try:
                process = Process(self.setting, role, seed)
                break
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.ENOMEM):
                    raise SandboxError(f"a {role} of the sandbox does not start: {error}") from None
                pause_s = next(pauses_s, None)
                if pause_s is None or self._closing:
                    raise SandboxError(f"a {role} does not start: {NO_ROOM}") from None
                time.sleep(pause_s)
        self._selector.register(process.socket, selectors.EVENT_READ, process)
        return process

    def _listen(self, patience_s: float | None) -> None:
        for process in self._processes():
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if process.has_output else 0)
            if self._selector.get_key(process.socket).events != wanted:
                self._selector.modify(process.socket, wanted, process)
        for key, events in self._selector.select(patience_s):
            process = key.data
            if process is None:
                os.eventfd_read(self._wake_fd)
                continue
            if events & selectors.EVENT_WRITE:
                process.flush()
            if events & selectors.EVENT_READ:
                self._hear(process)

    def _hear(self, process: Process) -> None:
        take = self._take_report if process.role == "zygote" else self._take_compiled
        try:
            lives = process.receive()
            for frame in process.frames():
                take(process, frame)
        except (BadFrame, MemoryError):  # another process may do with less
            lives = False
        if process.has_answered:
            self._failed_starts[process.role] = 0
        if all(p.layers is not None for p in self._processes()):
            self.ready.set()
        if not lives:
            self._lose(process)

    def _patience_s(self) -> float | None:
        if self._alone and not self._alone_in_flight:
            return ALONE_AFTER_S / 4
        compiling = self.compiler is not None and self.compiler.sent
        return min(self._compile_s, self.limits.wall_s) / 2 if compiling else None

    # ---- Processes ----------------------------------------------------------------------------

    def _zygote(self, seed: int) -> Process[Run]:
        """Returns the zygote of this seed, started if need be."""
        if seed not in self.zygotes:
            self.zygotes[seed] = self._start("zygote", seed)
        return self.zygotes[seed]

    def _lose(self, process: Process, by_itself: bool = True) -> None:
        """Buries a process that has gone, gives its work to another one."""
        self._selector.unregister(process.socket)
        code = process.kill()
        self.counters["restarts"] += by_itself
        # A signal comes from outside; a process that ends by itself before it has done anything
        # would do so again.
        if process.layers is None or (code > 0 and not process.has_answered):
            self._failed_starts[process.role] += 1
            if self._failed_starts[process.role] >= START_ATTEMPTS:
                why = process.error or f"it ended with code {code} and did not say why"
                self._break(f"a {process.role} of the sandbox does not start: {why}")
                self.ready.set()
        if process.role == "compiler":
            self.compiler = None
            self._recompile(process, code)
        else:
            del self.zygotes[process.seed]
            self._free_tokens(process)
            self._rerun(process)
        if not self.broken:
            self._start_all()

    def _free_tokens(self, process: Process[Run]) -> None:
        """Puts back the tokens that a dead zygote held; its children die with it."""
        at = process.seed * LENGTH.size
        (held,) = LENGTH.unpack_from(self._held, at)
        LENGTH.pack_into(self._held, at, 0)
        WORD.pack_into(self._held, RECALLED_AT + at, 0)
        if held:
            os.eventfd_write(self.setting.tokens_fd, held)

    def _rerun(self, process: Process[Run]) -> None:
        """Takes back what a dead zygote had."""
        for run in process.sent.values():
            self._landed(run)
            if not run.call.is_over:
                self._again(run, "the process that ran it died")

    def _again(self, run: Run, why: str) -> None:
        """Takes back a run that the sandbox failed: once more, alone, then a sandbox_failure."""
        run.attempts += 1
        if run.attempts > 1:
            self._fail(run, why)
        else:
            self.counters["retries"] += 1
            run.alone = True
            self._alone.append((time.monotonic(), run))

    def _recompile(self, process: Process[Program], code: int) -> None:
        """Takes back what a dead compiler had; it worked in order, so the first is to blame."""
        programs = list(process.sent.values())
        if programs:
            programs[0].attempts += 1
            if programs[0].attempts > 1:
                # It may have been somebody else who sent a SIGKILL.
                by_itself = code in CRASHES
                programs[0].detail = "" if by_itself else "the compiler died"
                self._compiled(programs.pop(0), "crash" if by_itself else "sandbox_failure")
        self._sources.extendleft(reversed(programs))

    def _watch_compiler(self) -> None:
        """Ends a compilation that takes longer than it may."""
        process = self.compiler
        if process is None or not process.sent or process.layers is None:
            return
        elapsed_s, cpu_s = process.busy()
        if cpu_s > self._compile_s or elapsed_s > self.limits.wall_s:
            program = next(iter(process.sent.values()))
            program.attempts += 1  # so that it is not compiled again
            program.detail = "compiling"
            self._compiled(process.sent.pop(program.id), "timeout_cpu")
            self._lose(process, by_itself=False)

    def _break(self, why: str) -> None:
        """Gives up: every call that is not done fails, now and from now on."""
        self.broken = self.broken or why
        calls = self._calls()
        with self._lock:
            calls |= dict.fromkeys(self._submitted)
            self._submitted.clear()
        for process in self._processes():
            process.sent.clear()
        self._compiling.clear()
        self._sources.clear()
        self._alone.clear()
        for queue in self._runs.values():
            queue.clear()
        for call in calls:
            self._abandon(call, self.broken)

    def _calls(self) -> dict[Call, None]:
        """Returns the calls that are under way."""
        calls = [call for queue in self._compiling.values() for call in queue]
        runs = [run for queue in self._runs.values() for run in queue]
        runs += [run for _, run in self._alone]
        for process in self.zygotes.values():
            runs += process.sent.values()
        calls += [run.call for run in runs if not run.call.is_over]
        return dict.fromkeys(calls)

    def _recall(self) -> None:
        """Ends the calls that nobody waits for; of their runs only those go on that have begun."""
        self._recalling = False
        self._take_submitted()  # what was submitted before it was cancelled
        dropped = [call for call in self._calls() if not call.is_wanted()]
        for call in dropped:
            call.is_dropped = True
            self._abandon(call, "cancelled")
        for program, calls in self._compiling.items():
            self._compiling[program] = [call for call in calls if not call.is_over]
        needless = {program for program in self._sources if not self._compiling[program]}
        self._sources = deque(program for program in self._sources if program not in needless)
        for program in needless:
            del self._compiling[program]
            if self._programs.pop(program.key, None):
                self._cached_bytes -= len(program.source)
        for seed, queue in self._runs.items():
            self._runs[seed] = deque(run for run in queue if not run.call.is_over)
        self._alone = deque(item for item in self._alone if not item[1].call.is_over)
        for process in self.zygotes.values():
            if any(run.call.is_over for run in process.sent.values()):
                self._take_back(process)

    def _take_back(self, process: Process[Run]) -> None:
        """Has a zygote give back what it has not begun: all of it, for it knows no calls."""
        at = RECALLED_AT + process.seed * WORD.size
        WORD.pack_into(self._held, at, next(reversed(process.sent)))
        for run in process.sent.values():
            run.is_recalled = True

    # ---- Compiling ----------------------------------------------------------------------------

    def _take_submitted(self) -> None:
        with self._lock:
            calls = list(self._submitted)
            self._submitted.clear()
        if self.broken:
            for call in calls:
                self._abandon(call, self.broken)
            return
        for call in calls:
            if call.program.outcome is None:
                call.program = self._known(call.program)
            program = call.program
            if program.outcome is not None:
                self._for(call, call.begin, self._ask)
            elif program in self._compiling:
                self._compiling[program].append(call)
            else:
                self._compiling[program] = [call]
                self._sources.append(program)
                self.counters["compiled"] += 1

    def _known(self, program: Program) -> Program:
        """Returns the program of the same source that is compiled or being compiled."""
        known = self._programs.get(program.key)
        if known is None:
            self._programs[program.key] = known = program
            self._cached_bytes += len(program.source)
            self._forget_oldest()
        else:
            self._programs.move_to_end(program.key)
        return known

    def _forget_oldest(self) -> None:
        while self._cached_bytes > CACHE_BYTES and len(self._programs) > 1:
            _, old = self._programs.popitem(last=False)
            self._cached_bytes -= len(old.source) + len(old.code)

    def _send_sources(self, process: Process[Program]) -> None:
        frames: list[bytes] = []
        while self._sources and process.sent_bytes < FULL_BYTES:
            program = self._sources.popleft()
            if not process.sent:
                process.begin()
            program.id = self._new_id()
            source = program.source
            room = -(SOURCE.size + len(source)) % 8
            head = SOURCE.pack(SOURCE.size + len(source) + room, program.id, len(source), 0)
            process.sent[program.id] = program
            process.sent_bytes += len(source)
            frames += (head, source, bytes(room))
        if frames:
            process.send(b"".join(frames))

    def _take_compiled(self, process: Process[Program], frame: bytes) -> None:
        _, number, outcome, traits, payload_bytes, _ = COMPILED.unpack_from(frame)
        program = process.sent.pop(number)
        process.sent_bytes -= len(program.source)
        process.begin()
        payload = frame[COMPILED.size : COMPILED.size + payload_bytes]
        status = STATUSES[outcome]
        if status == "ok":
            program.code = payload
            self._cached_bytes += len(payload)
        elif status == "forbidden_import":
            program.detail = payload[:ERROR_BYTES].decode(errors="replace")
        elif status == "too_large":
            program.detail = "compiled program"
        program.is_risky = bool(traits & RISKY)
        program.keeps = bool(traits & KEEPS)
        self._compiled(program, status)

    def _compiled(self, program: Program, status: Status) -> None:
        program.outcome = status
        if status == "sandbox_failure":  # nothing to remember
            self._programs.pop(program.key, None)
        for call in self._compiling.pop(program, ()):
            self._for(call, call.begin, self._ask)

    # ---- Running ------------------------------------------------------------------------------

    def _ask(self, run: Run) -> None:
        if run.seed < 0:  # either
            run.seed = min(range(BASE_SEEDS), key=self._load)
        if run.alone:
            self.counters["reruns"] += 1
            self._alone.append((time.monotonic(), run))
        else:
            self._runs[run.seed].append(run)

    def _load(self, seed: int) -> int:
        """Runs that wait for this zygote or are with it."""
        process = self.zygotes.get(seed)
        return len(self._runs[seed]) + (len(process.sent) if process else 0)

    def _dispatch(self) -> None:
        if self.broken or self.compiler is None:
            return
        self._send_sources(self.compiler)
        if self._alone_in_flight:
            return
        waiting = any(self._runs.values())
        overdue = self._alone and time.monotonic() - self._alone[0][0] > ALONE_AFTER_S
        if waiting and not overdue:
            for seed, queue in self._runs.items():
                if queue:
                    self._send_runs(self._zygote(seed), queue)
        elif self._alone and not self._flights:
            _, run = self._alone.popleft()
            if run.call.is_over:
                return
            self._alone_in_flight = True
            process = self._zygote(run.seed)
            process.send(self._frame(process, run))

    def _send_runs(self, process: Process[Run], queue: deque[Run]) -> None:
        if len(process.sent) > self._window // 2:
            return  # it has enough for now; a send wakes it up, so many runs go together
        frames = []
        while queue and len(process.sent) < self._window and process.sent_bytes < FULL_BYTES:
            run = queue.popleft()
            if not run.call.is_over:
                frames.append(self._frame(process, run))
        if frames:
            process.send(b"".join(frames))

    def _new_id(self) -> int:
        self._next_id = self._next_id % 0xFFFFFFFF + 1
        return self._next_id

    def _frame(self, process: Process[Run], run: Run) -> bytes:
        """Returns the frame of what is left of a run, and counts the run as sent."""
        texts = run.call.texts
        code = run.call.program.code
        positions = run.positions[len(run.outcomes) :]
        parts = [b"", code]
        size = RUN.size + len(code)
        for position in positions:
            text = texts[position] or b""  # a run has none of those without
            parts += (LENGTH.pack(len(text)), text)
            size += LENGTH.size + len(text)
        room = -size % 8
        number = self._new_id()
        parts[0] = RUN.pack(size + room, number, len(code), len(positions), run.shake, 0)
        parts.append(bytes(room))
        process.sent[number] = run
        run.is_recalled = False
        process.sent_bytes += size
        run.frame_bytes = size
        self._flights += 1
        return b"".join(parts)

    def _landed(self, run: Run) -> None:
        self._flights -= 1
        if run.alone:
            self._alone_in_flight = False

    def _take_report(self, process: Process[Run], frame: bytes) -> None:
        number = REPORT.unpack_from(frame)[1]
        run = process.sent.pop(number)
        process.sent_bytes -= run.frame_bytes
        self._landed(run)
        if not run.call.is_over:
            self._for(run.call, self._note, run, frame)

    def _note(self, run: Run, frame: bytes) -> None:
        """Adds the outcomes of a report to its run, and sees to what is left of it."""
        _, _, ended, signal, committed, faults, cpu_ns, wall_ns = REPORT.unpack_from(frame)
        if ended == FAILED:
            self._give_back(run)
            return
        self.counters["children"] += 1
        self.counters["faults"] += faults
        self.cpu_s.append(cpu_ns / 1e9)
        left = len(run.positions) - len(run.outcomes)
        try:
            if committed > left:
                raise ValueError("more results than inputs")
            found, spent_ns = self._decode(frame, committed)
        except ValueError:
            # The program wrote over its own results: no honest one can.
            run.outcomes += [Outcome("violation", value="forged results")] * left
        else:
            if left == 1 and found:  # all that the child did was for this input
                found[0] = found[0]._replace(cpu_s=cpu_ns / 1e9, wall_s=wall_ns / 1e9)
            run.outcomes += found
            if len(found) < left:
                status = STATUSES[ended] if ended else "no_result"
                rest_s = (cpu_ns - spent_ns) / 1e9
                contended = wall_ns > CONTENDED * cpu_ns
                run.outcomes.append(
                    Outcome(status, b"", None, rest_s, wall_ns / 1e9, signal, contended)
                )
        if len(run.outcomes) < len(run.positions) and run.call.needs_rest(run):
            self._ask(run)  # the inputs behind the one that ended the child
        else:
            run.call.take(run, run.outcomes, self._ask)

    def _decode(self, frame: bytes, count: int) -> tuple[list[Outcome], int]:
        """Returns the outcomes in a report, and the nanoseconds that they took together.

        One by one, and with a long one the interpreter's lock is offered to other threads."""
        limits, at, spent_ns = self.limits, REPORT.size, 0
        bounds = limits.output_bytes, limits.depth, limits.nodes
        found = []
        for _ in range(count):
            outcome, payload, value, cpu_ns, differs, at = self._decode_entry(frame, at, *bounds)
            if len(payload) > LONG_BYTES:
                time.sleep(0)
            spent_ns += cpu_ns
            cpu_s = cpu_ns / 1e9
            found.append(
                Outcome(STATUSES[outcome], payload, value, cpu_s, cpu_s, may_differ=differs)
            )
        return found, spent_ns

    def _give_back(self, run: Run) -> None:
        """Takes a run that a zygote has not begun."""
        if not run.is_recalled:
            self._again(run, NO_ROOM)
        elif run.alone:
            self._alone.appendleft((time.monotonic(), run))
        else:
            self._runs[run.seed].appendleft(run)

    def _fail(self, run: Run, why: str) -> None:
        left = len(run.positions) - len(run.outcomes)
        run.alone = True  # final
        run.outcomes += [Outcome("sandbox_failure", value=why)] * left
        run.call.take(run, run.outcomes, self._ask)


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
