"""The sandbox beside a bare fork, executors without isolation, and a process per program.

CPU time is that of all processes a call makes, read from the kernel; the client's own included.
Wall figures are of two cores. Every ratio is peer over ours in the same rounds.
"""

import contextlib
import io
import multiprocessing
import os
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from azr.sandbox import Job, Limits, Sandbox
from azr.sandbox.process import Process, Setting
from bench.peers import Absent, optional

pytest.importorskip("azr._sandbox", reason="the sandbox is not built here")

TEMPLATES = (
    "def f(x):\n    return sorted(x)[::-1] + [{i}]",
    "def f(x):\n    s = 0\n    for v in x:\n        s += v * {i}\n    return s",
    "def f(x):\n    d = {{}}\n    for c in str(x):\n        d[c] = d.get(c, 0) + {i}\n    return d",
    "def f(x):\n    return ' '.join(str(v * {i}).rjust(4) for v in x)",
    "def f(x):\n    return [v for v in x if v % 2] or x[: {i}]",
    "def f(x):\n    x.append({i})\n    return [x.pop(0) for _ in range(len(x))]",
    "def f(x):\n    a = b = 1\n    for i in x:\n        a, b = b, a + b\n    return a",
    "def f(x):\n    return {{str(v): (v, v + {i}) for v in x}}",
    "import math\ndef f(x):\n    return round(math.sqrt(sum(v * v for v in x) + {i}), 6)",
    "def f(x):\n    return max(x) if len(x) > {i} % 5 else min(x)",
    "from collections import Counter\ndef f(x):\n    return Counter(x).most_common({i} % 3 + 1)",
    "def f(x):\n    return list(zip(x, x[1:], range({i}, {i} + 9)))",
)
COUNT = 300
INPUT = "[3, 1, 4, 1, 5, 9, 2, 6]"
FRESH = iter(range(10**9))


def programs(count: int = COUNT) -> list[str]:
    """Programs that nobody has seen: compiled anew by everybody."""
    return [TEMPLATES[i % len(TEMPLATES)].format(i=next(FRESH)) for i in range(count)]


class Meter:
    """A clock to which time can be added that did not pass, or taken off that did."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.added_s = 0.0

    def __call__(self) -> float:
        return self.now() + self.added_s

    def charge(self, seconds: float, since_s: float) -> None:
        """Makes the time since then count as so many seconds."""
        self.added_s += seconds - (self() - since_s)


def family_cpu_s(sandboxes: Sequence[Sandbox]) -> float:
    """CPU seconds of this process, of the sandboxes' processes, and of all their dead children."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    reaped = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = own.ru_utime + own.ru_stime + reaped.ru_utime + reaped.ru_stime
    tick = os.sysconf("SC_CLK_TCK")
    for process in (p for sandbox in sandboxes for p in sandbox._engine._processes()):
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        total += sum(map(int, fields[11:15])) / tick
    return total


def cpu_meter(*sandboxes: Sandbox) -> Meter:
    return Meter(lambda: family_cpu_s(sandboxes))


def fork_floor(count: int) -> tuple[float, float, int]:
    """CPU seconds of forking, exiting and reaping so many bare children of a zygote, page faults
    of one, and the zygote's resident bytes."""
    tokens, held = os.eventfd(1, os.EFD_NONBLOCK), os.memfd_create("bench")
    os.ftruncate(held, 4096)
    setting = Setting(limits=Limits(), workers=1, tokens_fd=tokens, held_fd=held, floor=count)
    process = Process(setting, "zygote", 0)
    process.socket.setblocking(True)
    while process.floor is None and process.receive():
        list(process.frames())
    rss_bytes = process.rss_bytes()
    process.end(time.monotonic() + 1)
    os.close(tokens)
    os.close(held)
    assert process.floor is not None, process.error
    cpu_ns, faults = process.floor
    return cpu_ns / 1e9, faults / count, rss_bytes


# ---- Peers: what others do with the same programs ----------------------------------------------


OFFICIAL = """{code}
returns = f({text})
if returns != f({text}):
    raise ValueError("not deterministic")
"""


def official(code: str, text: str = INPUT) -> str:
    """What the official executor does with a program in its worker, which isolates nothing: run it
    under an alarm and with its output caught, run it again to compare, repr, pickle."""
    scope: dict[str, object] = {}

    def out_of_time(*_):
        raise TimeoutError

    signal.signal(signal.SIGALRM, out_of_time)
    with contextlib.redirect_stdout(io.StringIO()):
        signal.setitimer(signal.ITIMER_REAL, 10)
        exec(OFFICIAL.format(code=code, text=text), scope)
        result = eval("repr(returns)", scope)
        signal.setitimer(signal.ITIMER_REAL, 0)
    pickle.dumps(result)
    return result


def pebble_pool(pebble, workers: int):
    return pebble.ProcessPool(
        max_workers=workers, context=multiprocessing.get_context("forkserver")
    )


def run_serially(pool, batch: list[str]) -> None:
    """One program after the other, each waited for, as the official trainer calls its executor."""
    for code in batch:
        run_batched(pool, [code])


def run_batched(pool, batch: list[str], chunksize: int = 1) -> None:
    """The official executor's batch; it leaves `chunksize` as it is."""
    results = pool.map(official, batch, timeout=10, chunksize=chunksize).result()
    assert sum(1 for _ in results) == len(batch)


def into_list(code: str, results) -> None:
    with tempfile.TemporaryDirectory():
        results.append(official(code))


def run_in_processes(batch: list[str]) -> None:
    """As human-eval does: a manager, a process and a folder per program."""
    context = multiprocessing.get_context("fork")
    for code in batch:
        with context.Manager() as manager:
            results = manager.list()
            process = context.Process(target=into_list, args=(code, results))
            process.start()
            process.join()
            assert len(results) == 1


def run_in_interpreters(batch: list[str]) -> None:
    for code in batch:
        subprocess.run(
            [sys.executable, "-I", "-c", f"{code}\nprint(repr(f({INPUT})))"],
            check=True,
            stdout=subprocess.DEVNULL,
        )


# ---- Benches ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(workers=2) as sandbox:
        run_all(sandbox, programs(100))
        yield sandbox


def run_all(sandbox: Sandbox, batch: list[str], inputs: int = 1) -> None:
    results = sandbox.run_batch([Job(code, [INPUT] * inputs) for code in batch])
    assert all(result.ok for result in results)


@pytest.mark.parametrize("kind", ["new", "seen"])
def bench_cpu_of_a_program(compare, sandbox, kind):
    """New programs are compiled as well; seen ones come from the cache of compiled code."""
    meter = cpu_meter(sandbox)
    seen = programs()
    facts: dict[str, float] = {}

    def bare_fork():
        begin_s = meter()
        seconds, faults, rss_bytes = fork_floor(COUNT)
        meter.charge(seconds, begin_s)
        facts.update(faults=faults, rss_mb=rss_bytes / 1e6, cpu_us=seconds / COUNT * 1e6)

    before = sandbox.stats()
    result = compare.with_options(
        clock=meter, items=COUNT, unit="program", rounds=9, warmup=1, round_s=0
    )(
        f"CPU, one input, {kind} programs",
        lambda: run_all(sandbox, programs() if kind == "new" else seen),
        bare_fork=bare_fork,
    )
    after = sandbox.stats()
    children = after["children"] - before["children"]
    result.bar("bare_fork", must=1 / 3.5, reach=1 / 2)
    result.note("bare_fork", **facts)
    result.note("ours", page_faults_per_program=(after["faults"] - before["faults"]) / children)
    if result.ours.median_s:
        result.note("ours", cpu_us=result.ours.median_s / COUNT * 1e6)


def bench_process_per_program(compare, sandbox):
    count = 60
    meter = cpu_meter(sandbox)
    result = compare.with_options(
        clock=meter, items=count, unit="program", rounds=5, warmup=0, round_s=0
    )(
        "CPU, a process per program",
        lambda: run_all(sandbox, programs(count)),
        multiprocessing_process=lambda: run_in_processes(programs(count)),
        python_I_c=lambda: run_in_interpreters(programs(count)),
    )
    result.bar("multiprocessing_process", must=30, reach=40)
    result.bar("python_I_c", must=20, reach=30)


def bench_two_cores(compare, sandbox):
    """Elapsed time on two cores against executors that isolate nothing."""
    with contextlib.ExitStack() as stack:
        one = optional("pebble", lambda pebble: stack.enter_context(pebble_pool(pebble, 1)))
        two = optional("pebble", lambda pebble: stack.enter_context(pebble_pool(pebble, 2)))
        is_there = not isinstance(one, Absent)
        result = compare.with_options(
            clock=time.perf_counter, items=COUNT, unit="program", rounds=9, warmup=1, round_s=0
        )(
            "wall, two cores, new programs",
            lambda: run_all(sandbox, programs()),
            pebble_serial=(lambda: run_serially(one, programs())) if is_there else one,
            pebble_two_batched=(lambda: run_batched(two, programs())) if is_there else two,
            # A message for 20 programs, of which one that hangs takes the others along.
            pebble_two_in_twenties=(lambda: run_batched(two, programs(), 20)) if is_there else two,
        )
    result.bar("pebble_serial", must=1.5, reach=4)
    result.bar("pebble_two_batched", must=0.5, reach=1)


def bench_ten_inputs(compare, sandbox):
    count = 100
    meter = cpu_meter(sandbox)

    def ten_single_runs():
        for _ in range(10):
            run_all(sandbox, programs(count))

    result = compare.with_options(
        clock=meter, items=10 * count, unit="input", rounds=7, warmup=1, round_s=0
    )(
        "CPU, ten inputs in one child",
        lambda: run_all(sandbox, programs(count), inputs=10),
        ten_single_runs=ten_single_runs,
    )
    result.bar("ten_single_runs", must=6, reach=8)


def bench_inputs_per_second(compare, sandbox):
    """The peers are the bars themselves, as time: 2,000 and 8,000 inputs a second."""
    meter = Meter(time.perf_counter)

    def pace(inputs_per_s: float) -> Callable[[], None]:
        return lambda: meter.charge(10 * COUNT / inputs_per_s, meter())

    result = compare.with_options(
        clock=meter, items=10 * COUNT, unit="input", rounds=7, warmup=1, round_s=0
    )(
        "wall, two cores, ten inputs per program",
        lambda: run_all(sandbox, programs(), inputs=10),
        at_2000_per_s=pace(2000),
        at_8000_per_s=pace(8000),
    )
    result.bar("at_2000_per_s", must=1)
    result.bar("at_8000_per_s", must=0.25, reach=1)


def bench_layers(compare, sandbox):
    with Sandbox(workers=2, _protected=False) as bare:
        run_all(bare, programs(100))
        result = compare.with_options(
            clock=cpu_meter(sandbox, bare),
            items=COUNT,
            unit="program",
            rounds=21,
            warmup=2,
            round_s=0,
        )(
            "CPU, all layers",
            lambda: run_all(sandbox, programs()),
            no_layers=lambda: run_all(bare, programs()),
        )
    result.bar("no_layers", must=1 / 1.10, reach=1 / 1.06)


@pytest.mark.parametrize("kind", ["new", "seen"])
def bench_latency(compare, sandbox, kind):
    """One call at a time on an idle sandbox; the median over rounds is the p50."""
    meter = Meter(time.perf_counter)
    (seen,) = programs(1)
    result = compare.with_options(
        clock=meter, items=1, unit="call", rounds=200, warmup=20, round_s=0
    )(
        f"wall, one call, {kind} program",
        lambda: sandbox.run(seen if kind == "seen" else programs(1)[0], INPUT),
        of_2500_us=lambda: meter.charge(2.5e-3, meter()),
    )
    result.bar("of_2500_us", must=1, reach=2.5 / 1.2)


def bench_endless_loops(compare):
    """300 programs, of which 2% never end; the ideal is their CPU time spread over the cores."""
    meter = Meter(time.perf_counter)
    spent_s = [0.0]

    def ours():
        batch = [Job(code, INPUT) for code in programs()]
        for at in range(0, COUNT, 50):
            batch[at] = Job("def f(x):\n    while True: pass", INPUT)
        results = sandbox.run_batch(batch)
        assert sum(result.status == "timeout_cpu" for result in results) == COUNT // 50
        spent_s[0] = sum(result.cpu_s for result in results)

    with Sandbox(workers=2, limits=Limits(cpu_s=1.0)) as sandbox:
        run_all(sandbox, programs(100))
        ours()
        result = compare.with_options(
            clock=meter, items=COUNT, unit="program", rounds=3, warmup=0, round_s=0
        )(
            "wall, two cores, 2% endless loops",
            ours,
            ideal=lambda: meter.charge(spent_s[0] / 2, meter()),
        )
    result.bar("ideal", must=0.8, reach=0.9)
