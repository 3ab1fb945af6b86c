"""The life of a sandbox: starting, dying at any moment, ending without a trace."""

import asyncio
import contextlib
import errno
import gc
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from azr.sandbox import Job, Limits, Sandbox, SandboxError, corpus, engine
from azr.sandbox.engine import START_ATTEMPTS
from azr.sandbox.process import Process
from tests.environments import run_in

pytest.importorskip("azr._sandbox", reason="the sandbox is not built here")

ROOT = Path(__file__).resolve().parent.parent
LOOP = "def f():\n    while True: pass"


@pytest.fixture
def sandbox():
    with Sandbox(workers=2, limits=Limits(cpu_s=0.25)) as sandbox:
        yield sandbox


def descriptors() -> set[str]:
    gc.collect()  # what earlier tests left to the collector must not be closed between two looks
    return set(os.listdir("/proc/self/fd"))


def descendants(pid: int) -> list[int]:
    """Every living process below one, by /proc."""
    try:
        texts = [(t / "children").read_text() for t in Path(f"/proc/{pid}/task").iterdir()]
    except (FileNotFoundError, ProcessLookupError):
        return []  # it has gone, perhaps just now
    children = [int(child) for text in texts for child in text.split()]
    return children + [pid for child in children for pid in descendants(child)]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until(condition, seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def test_close_leaves_nothing():
    before, threads = descriptors(), threading.active_count()
    here = set(descendants(os.getpid()))
    sandbox = Sandbox(workers=2, limits=Limits(cpu_s=60, wall_s=60))
    assert sandbox.label("def f(x): return sorted(set(x))", ["'a'"]).deterministic
    futures = sandbox.submit_batch([Job(LOOP, "")] * 4)
    children = set(descendants(os.getpid())) - here
    sandbox.close()
    assert all(future.result().status == "sandbox_failure" for future in futures)
    assert not any(alive(pid) for pid in children)
    assert descriptors() == before
    assert threading.active_count() == threads
    assert set(descendants(os.getpid())) <= here


def test_a_sandbox_that_is_forgotten_ends():
    here = set(descendants(os.getpid()))
    sandbox = Sandbox(workers=1)
    children = set(descendants(os.getpid())) - here
    assert len(children) == 3
    del sandbox
    assert wait_until(lambda: not any(map(alive, children)))


def test_no_memory_of_a_zygote_is_both_writable_and_executable(sandbox):
    """Their mappings are laid out anew when they start (csrc/residence.c)."""
    for zygote in sandbox._engine.zygotes.values():
        try:
            maps = Path(f"/proc/{zygote.pid}/maps").read_text()
        except PermissionError:
            pytest.skip("a zygote is undumpable: only root may look")
        rights = [line.split()[1] for line in maps.splitlines()]
        assert {"r-xp", "rw-p"} <= set(rights)
        assert not any("w" in r and "x" in r for r in rights)


def test_a_killed_zygote_costs_no_result(sandbox):
    jobs = [
        Job("def f(x):\n    for _ in range(10 ** 5): pass\n    return x", str(i)) for i in range(60)
    ]
    futures = sandbox.submit_batch(jobs)
    futures[5].result()
    os.kill(sandbox._engine.zygotes[0].pid, signal.SIGKILL)
    assert [future.result().value for future in futures] == list(range(60))
    stats = sandbox.stats()
    assert stats["restarts"] == 1 and stats["retries"] >= 1
    assert sandbox.run("def f(): return 1", "").value == 1


def test_a_killed_compiler_costs_no_result(sandbox):
    for number in range(5):
        os.kill(sandbox._engine.compiler.pid, signal.SIGKILL)
        assert sandbox.run(f"def f(): return {number}", "").value == number
    assert sandbox.stats()["restarts"] == 5


def test_killed_again_and_again(sandbox):
    """Whatever dies when: every job ends, with its own value or with the sandbox's failure."""
    rng = random.Random(0)
    jobs = [Job(f"def f(x): return x + {i}", "1") for i in range(300)]
    futures = sandbox.submit_batch(jobs)
    engine = sandbox._engine
    for _ in range(6):
        time.sleep(0.05 + rng.random() * 0.1)
        for process in (engine.zygotes.get(0), engine.compiler):
            if process is not None and process.layers is not None:
                os.kill(process.pid, signal.SIGKILL)
    for number, future in enumerate(futures):
        result = future.result(timeout=60)
        assert result.status == "sandbox_failure" or result.value == number + 1
    assert sandbox.run("def f(): return 1", "").value == 1


NONSENSE = (
    b'\x1f\0\0\0{"error": "MemoryError: none left"}',
    bytes(64),
    struct.pack("<12I", 48, 0xFFFFFFF0, *[0] * 10),  # of an unknown run
)


def test_a_process_that_sends_nonsense_is_replaced(sandbox):
    engine = sandbox._engine
    for number, frame in enumerate(NONSENSE):
        processes = engine.zygotes[0], engine.compiler
        for process in processes:
            process._in += frame
        assert sandbox.label(f"def f(): return {number}", [""]).results[0].value == number
        assert sandbox.stats()["restarts"] == 2 * (number + 1)
        assert not any(alive(process.pid) for process in processes)


def test_a_process_that_fails_once_it_has_greeted_is_not_started_for_ever():
    limits = Limits(source_bytes=16 << 20)
    # The compiler asks for room for a source, which Limits itself would have refused.
    object.__setattr__(limits, "memory_bytes", 1 << 20)
    try:
        sandbox = Sandbox(workers=1, limits=limits)
    except SandboxError as error:  # where all of its tries were over before the zygotes stood
        assert "does not start" in str(error)
        return
    with sandbox:
        result = sandbox.run("def f(): return 1", "")
        assert result.status == "sandbox_failure" and result.error
        assert wait_until(lambda: sandbox._engine.broken)
        assert sandbox.stats()["restarts"] <= 2 * START_ATTEMPTS
        with pytest.raises(SandboxError, match="does not start"):
            sandbox.run("def f(): return 1", "")


def test_a_sandbox_that_gives_up_keeps_no_work(sandbox, monkeypatch):
    monkeypatch.setattr("azr.sandbox.engine.START_ATTEMPTS", 1)
    engine, compiler = sandbox._engine, sandbox._engine.compiler
    os.kill(compiler.pid, signal.SIGSTOP)
    (future,) = sandbox.submit_batch([Job("def f(): return 1", "")])
    assert wait_until(lambda: compiler.sent)
    compiler.layers = None  # as if it had never greeted
    os.kill(compiler.pid, signal.SIGKILL)
    assert future.result().status == "sandbox_failure"
    engine.recall()
    assert wait_until(lambda: not engine._recalling)
    time.sleep(0.1)
    assert engine.thread.is_alive() and not engine._sources


def running(sandbox) -> list[int]:
    """The children of all zygotes."""
    zygotes = list(sandbox._engine.zygotes.values())
    return [child for zygote in zygotes for child in descendants(zygote.pid)]


def test_no_token_is_lost(sandbox):
    """After zygotes were killed with children running, as many run at a time as before."""
    for seed in (0, 1, 0):
        futures = sandbox.submit_batch([Job(LOOP, "")] * 2)
        assert wait_until(lambda: len(running(sandbox)) == 2)
        os.kill(sandbox._engine.zygotes[seed].pid, signal.SIGKILL)
        assert {future.result().status for future in futures} == {"timeout_cpu"}
    sandbox.submit_batch([Job(LOOP, "")] * 5)
    assert wait_until(lambda: len(running(sandbox)) == 2)
    time.sleep(0.1)
    assert len(running(sandbox)) == 2


ORPHANS = """
import os, sys
from azr.sandbox import Job, Limits, Sandbox
sandbox = Sandbox(workers=2, limits=Limits(cpu_s=60, wall_s=60))
sandbox.label("def f(): return len({1})", [""])
sandbox.submit_batch([Job("def f():\\n    while True: pass", "")] * 2)
print("ready", flush=True)
sys.stdin.read()
"""


def test_everything_dies_with_a_killed_trainer():
    process = subprocess.Popen(
        [sys.executable, "-c", ORPHANS],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout.readline() == b"ready\n"
        # 12 zygotes, a compiler, and the loops.
        assert wait_until(lambda: len(descendants(process.pid)) == 12 + 1 + 2)
        children = descendants(process.pid)
        process.kill()
    assert wait_until(lambda: not any(map(alive, children)))


def test_a_forked_copy_neither_runs_nor_ends_anything(sandbox):
    pid = os.fork()
    if pid == 0:
        try:
            sandbox.run("def f(): return 1", "")
        except SandboxError:
            sandbox.close()
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert sandbox.run("def f(): return 1", "").value == 1


def test_threads_share_a_sandbox(sandbox):
    def work(number: int) -> list[object]:
        return [sandbox.run(f"def f(x): return [x, {number}]", str(i)).value for i in range(20)]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, range(8)))
    assert found == [[[i, number] for i in range(20)] for number in range(8)]


def test_waiting_and_submitting_hold_nobody_up(sandbox):
    begin = time.thread_time()
    futures = sandbox.submit_batch([Job(LOOP, "")] * 2)
    assert not any(future.done() for future in futures)
    assert [future.result().status for future in futures] == ["timeout_cpu"] * 2
    assert time.thread_time() - begin < 0.1  # it waited, it did not spin

    async def both() -> tuple[list[str], int]:
        turns = 0
        task = asyncio.create_task(sandbox.arun_batch([Job(LOOP, "")]))
        while not task.done():
            await asyncio.sleep(0.005)
            turns += 1
        return [result.status for result in task.result()], turns

    statuses, turns = asyncio.run(both())
    assert statuses == ["timeout_cpu"] and turns > 5


def test_what_nobody_waits_for_is_not_begun():
    with Sandbox(workers=2, limits=Limits(cpu_s=0.5)) as sandbox:
        loops = [Job(f"def f():\n    while True: {i}", "") for i in range(200)]
        wanted = [Job(f"def f(): return {i}", "") for i in range(20)]

        def loops_are_sent() -> bool:
            return wait_until(lambda: sandbox._engine._flights > len(wanted))

        def interrupt_soon() -> None:
            assert loops_are_sent()
            # In this thread: it wakes the main thread no more than one just before its wait does.
            signal.raise_signal(signal.SIGINT)

        async def give_up() -> None:
            task = asyncio.create_task(sandbox.alabel_batch(loops))
            await asyncio.sleep(0)
            assert loops_are_sent()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        def interrupt() -> None:
            # A process in the background of a shell begins with SIGINT ignored.
            before = signal.signal(signal.SIGINT, signal.default_int_handler)
            thread = threading.Thread(target=interrupt_soon)
            thread.start()
            with pytest.raises(KeyboardInterrupt):
                sandbox.run_batch(loops)
            thread.join()
            signal.signal(signal.SIGINT, before)

        def cancel() -> None:
            futures = sandbox.submit_batch(loops)
            assert loops_are_sent()
            assert all([future.cancel() for future in futures])
            assert len(wait(futures, timeout=20).done) == len(futures)

        for give_up_waiting in (interrupt, cancel, lambda: asyncio.run(give_up())):
            mixed = sandbox.submit_batch(wanted)
            begun = sandbox.stats().get("children", 0)
            give_up_waiting()
            mixed += sandbox.submit_batch(wanted)
            assert [future.result().value for future in mixed] == [*range(20)] * 2
            # Of the 200 loops no more than are sent at a time; what is sent already may run.
            begun = sandbox.stats()["children"] - begun
            assert begun <= len(mixed) + sandbox._engine._window < len(loops)
        stats = sandbox.stats()
        assert stats["cancelled"] == 3 * len(loops)
        assert "status/sandbox_failure" not in stats and "retries" not in stats


def test_a_callback_that_would_wait_for_its_own_thread_is_told(sandbox):
    told = Future()

    def call_back(_):
        try:
            sandbox.run("def f(): return 1", "")
        except SandboxError as error:
            told.set_result((str(error), sandbox.submit_batch([Job("def f(): return 2", "")])))

    sandbox.submit_batch([Job(LOOP, "")])[0].add_done_callback(call_back)
    error, futures = told.result(timeout=20)
    assert "submit_batch" in error and futures[0].result(timeout=20).value == 2


def test_a_verdict_near_a_limit_is_taken_again(sandbox):
    burn = "def f(n):\n    while n: n -= 1\n    return 'done'"
    sandbox.run(burn, "1000")
    before = sandbox.stats().get("reruns", 0)
    # Grown until it takes more than half of the limit, so that any machine gets there; in steps
    # that cannot leap over the other half, even where the machine's speed changes.
    for power in range(80):
        result = sandbox.run(burn, str(int(2**16 * 1.2**power)))
        if sandbox.stats().get("reruns", 0) > before:
            break
    assert sandbox.stats()["reruns"] == before + 1
    assert result.status in ("ok", "timeout_cpu")


def test_no_more_children_than_workers():
    with Sandbox(workers=3, limits=Limits(cpu_s=0.2)) as sandbox:
        futures = sandbox.submit_labels([Job(LOOP, "")] * 6)
        most = 0
        zygotes = [p.pid for p in sandbox._engine.zygotes.values()]
        while not all(future.done() for future in futures):
            most = max(most, sum(len(descendants(pid)) for pid in zygotes))
            time.sleep(0.01)
        assert most == 3


def test_both_zygotes_run_what_shows_no_seed_and_one_runs_the_rest(sandbox):
    def faults_of_children() -> list[int]:
        stats = [
            Path(f"/proc/{zygote.pid}/stat").read_text().rpartition(")")[2].split()
            for zygote in sandbox._engine.zygotes.values()
        ]
        return [int(fields[8]) for fields in stats]

    before = faults_of_children()
    risky = sandbox.run_batch([Job("def f(x): return hash(str(x))", "1")] * 60)
    between = faults_of_children()
    assert len({result.value for result in risky}) == 1
    assert [b > a for a, b in zip(before, between, strict=True)] == [True, False]
    sandbox.run_batch([Job("def f(x): return x", str(i)) for i in range(60)])
    assert all(b > a for a, b in zip(between, faults_of_children(), strict=True))


def test_a_weak_host_is_refused_unless_accepted():
    code = """
from azr.sandbox import Sandbox, SandboxError
try:
    Sandbox(workers=1)
except SandboxError as error:
    print(error)
with Sandbox(workers=1, allow_weak=True) as sandbox:
    print(sandbox.layers()["seccomp"], sandbox.run("def f(x): return x", "5").value)
"""
    refusal, accepted = run_in("weak", "-c", code).splitlines()
    assert "seccomp" in refusal and "allow_weak" in refusal
    assert accepted == "False 5"


CROWDED = """
import resource, time
from azr.sandbox import Job, Limits, Sandbox

def allow(count):  # processes of this user
    for zygote in sandbox._engine.zygotes.values():
        hard = resource.prlimit(zygote.pid, resource.RLIMIT_NPROC)[1]
        resource.prlimit(zygote.pid, resource.RLIMIT_NPROC, (count, hard))

with Sandbox(workers=2, limits=Limits(cpu_s=1)) as sandbox:
    most = resource.prlimit(0, resource.RLIMIT_NPROC)[0]
    jobs = [Job("def f(x): return x", "1")] * 5
    allow(1)
    begin = time.monotonic()
    first = sandbox.submit_batch(jobs)
    time.sleep(0.5)
    allow(most)
    print(*(future.result().status for future in first), time.monotonic() - begin < 2)
    allow(1)
    last = sandbox.run_batch(jobs)
    print(*(result.status for result in last), "ulimit -u" in last[0].error)
    allow(most)
    print(sandbox.run("def f(x): return x", "5").value, sandbox.stats().get("restarts", 0))
"""


def test_a_host_without_room_for_a_process_is_waited_for_then_named():
    said = run_in("user", "-c", CROWDED, timeout_s=60)
    assert said.splitlines() == ["ok " * 5 + "True", "sandbox_failure " * 5 + "True", "5 0"]


def test_a_sandbox_process_that_finds_no_room_is_tried_again(monkeypatch):
    def crowded(*args):
        refusals.append(args)
        if len(refusals) <= 2:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return Process(*args)

    refusals = []
    monkeypatch.setattr(engine, "Process", crowded)
    with Sandbox(workers=1) as sandbox:
        assert sandbox.run("def f(): return 1", "").value == 1
    refusals = []
    monkeypatch.setattr(engine, "START_PAUSES_S", (0.0,))
    with pytest.raises(SandboxError, match="compiler does not start: .*ulimit -u"):
        Sandbox(workers=1)


def soak(count: int) -> None:
    """Runs so many programs, 5% from the fast half of the corpus, and looks for what is left."""
    fast = [program for program in corpus.load() if not program.is_slow]
    fast = [p for p in fast if "memory" not in p.statuses and len(p.job.code) < 10_000][::2]
    rng = random.Random(0)
    before = descriptors()
    tmp = set(os.listdir("/tmp"))
    with Sandbox(workers=2, limits=corpus.LIMITS) as sandbox:

        def some(n: int) -> None:
            jobs = [
                rng.choice(fast).job
                if rng.random() < 0.05
                else Job(f"def f(x): return [x] * {rng.randrange(50)}", str(rng.randrange(99)))
                for _ in range(n)
            ]
            assert all(r.status != "sandbox_failure" for r in sandbox.run_batch(jobs))

        some(max(count // 10, 500))
        processes = sandbox._engine._processes()
        rss = sum(process.rss_bytes() for process in processes)
        opened = descriptors()
        for _ in range(count // 1000):
            some(1000)
        assert sandbox._engine._processes() == processes, "a process died"
        assert sum(process.rss_bytes() for process in processes) <= 1.05 * rss
        assert descriptors() == opened
        assert all(not descendants(process.pid) for process in processes)
    assert descriptors() == before
    assert {name for name in set(os.listdir("/tmp")) - tmp if "azr" in name} == set()


def test_5000_programs_leave_nothing():
    soak(5000)


@pytest.mark.soak
def test_100000_programs_leave_nothing():
    soak(100_000)


@pytest.mark.parametrize("error", [MemoryError(), ValueError("of the engine"), RecursionError()])
def test_an_error_in_the_thread_ends_the_call_that_it_concerns(sandbox, monkeypatch, error):
    decode = sandbox._engine._decode_entry

    def fail_once(*args):
        monkeypatch.setattr(sandbox._engine, "_decode_entry", decode)
        raise error

    def fail_to_note(*args):
        raise error

    if isinstance(error, ValueError):
        monkeypatch.setattr(sandbox._engine, "_note", fail_to_note)
    else:
        monkeypatch.setattr(sandbox._engine, "_decode_entry", fail_once)
    result = sandbox.run("def f(x): return x", "1")
    assert result.status == "sandbox_failure" and type(error).__name__ in result.error
    monkeypatch.undo()
    assert sandbox.run("def f(x): return x", "2").value == 2
    assert sandbox.label("def f(x): return x", ["3"]).deterministic


@pytest.mark.parametrize("error", [KeyboardInterrupt, asyncio.CancelledError, SystemExit, OSError])
def test_a_callback_may_raise_what_it_likes(sandbox, error, capfd):
    def fail(future):
        raise error("of the callback")

    (future,) = sandbox.submit_batch([Job("def f(x): return x", "1")])
    future.add_done_callback(fail)
    with contextlib.suppress(error):  # it ran here if the result was there already
        assert future.result(timeout=10).value == 1
    assert sandbox.run("def f(x): return x + 1", "1").value == 2


def test_a_label_ends_with_the_first_input_that_hangs():
    with Sandbox(workers=2, limits=Limits(cpu_s=0.2)) as sandbox:
        for state in ("", "n = []\n"):
            before = sandbox.stats().get("children", 0)
            label = sandbox.label(state + "def f(x):\n    while x: pass", ["0", *["1"] * 10, "0"])
            assert not label.deterministic and "timeout_cpu" in label.reason
            assert label.results[2].error.startswith("not run")
            # Each input before it, the one that hangs, and that one again if the machine was busy.
            assert sandbox.stats()["children"] - before <= 3


def test_a_compilation_ends_at_its_limit(monkeypatch):
    monkeypatch.setattr("azr.sandbox.engine.COMPILE_S", 0.01)
    long = "x = [1, (2, 3), {4: 5}, 'six']\n" * 2000 + "def f(): return 1"
    with Sandbox(workers=1) as sandbox:
        jobs = [Job(long, ""), Job("def f(): return 2", ""), Job(long + " + 1", "")]
        for _ in range(2):
            results = sandbox.run_batch(jobs)
            assert [(r.status, r.error) for r in results[::2]] == [("timeout_cpu", "compiling")] * 2
            assert results[1].value == 2
        assert sandbox.stats().get("restarts", 0) == 0


def test_a_source_that_takes_for_ever_to_compile_is_stopped(sandbox):
    lines = ["def f():"]
    for depth in range(1, 21):  # each `finally` is compiled twice, once for the way of an exception
        lines += [" " * depth + "try: x", " " * depth + "finally:"]
    bomb = "\n".join([*lines, " " * 21 + "y"])
    result, other = sandbox.run_batch([Job(bomb, ""), Job("def f(): return 2", "")])
    # Which limit it meets first is a matter of the machine and of the Python.
    assert (result.status, result.error) in [("timeout_cpu", "compiling"), ("memory", "")]
    assert len(bomb) < 1000 and other.value == 2


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_standard_stream_is_no_matter(closed, tmp_path):
    code = "from azr.sandbox import Sandbox\n"
    code += "import pathlib\nwith Sandbox(workers=1) as sandbox:\n"
    code += "    value = sandbox.run('def f(x): return x + 1', '1').value\n"
    code += f"    pathlib.Path({str(tmp_path / 'value')!r}).write_text(str(value))"
    command = ["bash", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, code]
    subprocess.run(command, check=True, timeout=60)
    assert (tmp_path / "value").read_text() == "2"
