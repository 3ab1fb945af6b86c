"""The sandbox against the corpus, against raw system calls and against forged memory."""

import errno
import json
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from azr.sandbox import STATUSES, Job, Limits, Sandbox, corpus
from tests.environments import run_in

_sandbox = pytest.importorskip("azr._sandbox", reason="the sandbox is not built here")

ROOT = Path(__file__).resolve().parent.parent
SLOT_HEADER_BYTES = 56
"""Where the code begins in `struct sbx_slot`."""


def corpus_in(environment: str) -> dict:
    """Returns what the corpus gave in an environment; skips with the reason if it cannot be."""
    return json.loads(run_in(environment, "tests/hostile/run_corpus.py"))


@pytest.fixture(scope="module")
def here() -> dict:
    return corpus_in("root" if os.getuid() == 0 else "user")


def test_the_corpus_covers_every_row():
    programs = corpus.load()
    assert len(programs) >= 70
    assert len({p.name for p in programs}) == len(programs)
    elsewhere = {
        26: "test_forged_results_harm_nobody_else",
        32: "test_every_system_call",
        39: "test_every_system_call",
        40: "test_other_doors_to_the_kernel",
        47: "test_every_system_call",
        56: "tests/test_sandbox_labels.py",
        62: "tests/test_sandbox_life.py",
    }
    assert {p.row for p in programs} | set(elsewhere) == set(range(1, 64))


def test_nothing_escapes(here):
    assert here["complaints"] == []


@pytest.mark.parametrize("environment", ["docker", "user"])
def test_verdicts_are_the_same_everywhere(here, environment):
    there = corpus_in(environment)
    assert there["complaints"] == []
    assert there["verdicts"] == here["verdicts"]
    for name in ("seccomp", "no_new_privs", "rlimits", "capabilities"):
        assert there["layers"][name]


# ---- A program that holds arbitrary native state ----------------------------------------------


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """A sandbox whose programs can make raw system calls and touch raw memory."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to build the raw calls with")
    # Readable for whatever user a zygote becomes: it is loaded before that, but by path.
    built = tmp_path_factory.mktemp("raw") / "rawcall.so"
    include = sysconfig.get_paths()["include"]
    source = ROOT / "tests" / "hostile" / "rawcall.c"
    command = [compiler, "-shared", "-fPIC", "-O1", f"-I{include}", str(source), "-o", str(built)]
    subprocess.run(command, check=True)
    limits = Limits(cpu_s=0.5, wall_s=2.0)
    with Sandbox(workers=2, limits=limits, _extra={"rawcall": str(built)}) as sandbox:
        yield sandbox


# The kernel answers these before it asks any filter (uretprobe, uprobe): harmless without probes.
EXEMPT = {335, 336} if os.uname().machine == "x86_64" else set()
NUMBERS = [*range(0, 480), *range(0x40000000, 0x40000010), 0x40000208, 2**31 - 1]


def test_every_system_call(raw):
    code = "import rawcall\ndef f(number): return rawcall.call(number)"
    jobs = [Job(code, [str(n) for n in NUMBERS[i : i + 40]]) for i in range(0, len(NUMBERS), 40)]
    results = dict(zip(NUMBERS, raw.run_batch(jobs), strict=True))
    granted = {number: what for _, number, what in _sandbox.syscalls()}
    wrong = []
    for number, result in results.items():
        what = granted.get(number, "kill")
        seen = (result.status, result.value)
        if number in EXEMPT:
            continue
        if what == "kill" and result.status != "violation":
            wrong.append((number, what, seen))
        if what == "deny" and seen != ("ok", -errno.EPERM):
            wrong.append((number, what, seen))
        if what == "allow" and result.status == "violation":
            wrong.append((number, what, seen))
    assert wrong == []
    assert sum(what == "allow" for what in granted.values()) < 30


def test_other_doors_to_the_kernel(raw):
    programs = {
        "the 32-bit entry": "rawcall.int80(20)",
        "executable memory": "rawcall.call(9, 0, 4096, 7, 0x22, -1, 0)",
        "memory made executable": "rawcall.call(10, 0x10000, 4096, 5)",
    }
    if os.uname().machine != "x86_64":
        pytest.skip("numbers of x86-64")
    for name, expression in programs.items():
        result = raw.run(f"import rawcall\ndef f(): return {expression}", "")
        assert result.status in ("violation", "crash"), (name, result)
    moved = raw.run(
        "import rawcall\ndef f(): return rawcall.call(25, 4096, 4096, 4096, 3, 8192)", ""
    )
    assert moved.value == -errno.EPERM


FIND_SLOT = f"""
import rawcall, struct
def slot():
    address = rawcall.slot({SLOT_HEADER_BYTES})
    assert address, "no slot"
    return address
"""

SCRIBBLES = {
    "ones everywhere": "rawcall.poke(slot(), b'\\xff' * 16000)",
    "zeros everywhere": "rawcall.poke(slot(), bytes(16000))",
    "another run's number": "rawcall.poke(slot() + 4, struct.pack('<I', 1))",
    "more results than inputs": "rawcall.poke(slot() + 32, struct.pack('<I', 1 << 31))",
    "more output than room": "rawcall.poke(slot() + 36, struct.pack('<I', 0xfffffff0))",
    "output elsewhere": "rawcall.poke(slot() + 24, struct.pack('<II', 0xffffff00, 0x7fffffff))",
    "a report as long as the slot": "rawcall.poke(slot() + 32, struct.pack('<II', 1, 8_000_000))",
    "the first pages": "rawcall.poke(slot() + 4096, b'\\x01' * 12000)",
    "pages far behind": "rawcall.poke(slot() + 1000000, b'secret' * 1000)",
}


@pytest.mark.parametrize("name", SCRIBBLES)
def test_forged_results_harm_nobody_else(raw, name):
    forger = f"{FIND_SLOT}\ndef f():\n    {SCRIBBLES[name]}\n    return 1"
    jobs = [Job("def f(x): return [x, 'honest']", str(i)) for i in range(40)]
    mixed = [job for pair in zip([Job(forger, "")] * 40, jobs, strict=True) for job in pair]
    results = raw.run_batch(mixed)
    assert [r.value for r in results[1::2]] == [[i, "honest"] for i in range(40)]
    statuses = {r.status for r in results[::2]}
    assert statuses <= {"ok", "violation", "no_result", "crash", "timeout_cpu", "timeout_wall"}
    assert raw.stats().get("restarts", 0) == 0


def test_a_slot_holds_nothing_of_the_program_before(raw):
    secret = "another program's secret"
    leave = f"{FIND_SLOT}\ndef f():\n    a = slot()\n"
    for offset in (4000, 16000, 100_000, 1_000_000, 4_000_000):
        leave += f"    rawcall.poke(a + {offset}, {secret.encode()!r})\n"
    look = f"""{FIND_SLOT}
def f():
    a = slot()
    return [bytes(24) == rawcall.peek(a + o, 24) for o in (4000, 16000, 100000, 1000000, 4000000)]
"""
    for _ in range(8):
        assert raw.run(leave, "").status == "ok"
        assert raw.run(look, "").value == [True] * 5


def test_entries_that_no_child_writes_are_refused():
    value = _sandbox.encode({"a": [1, 2.5, None], "b": {3}}, 4096, 60, 1000)[1]
    entry = (0).to_bytes(4, "little") + len(value).to_bytes(4, "little") + bytes(8) + value
    entry += bytes(-len(entry) % 8)
    found = decode_entry(entry * 2)
    assert found[2] == {"a": [1, 2.5, None], "b": {3}} and found[-1] == len(entry)
    assert decode_entry(entry * 2, len(entry))[2] == found[2]
    for offset in (-1, 1, len(entry), len(entry) + 1, 1 << 40):
        with pytest.raises(ValueError):
            decode_entry(entry, offset)
    for outcome in (4, 9, 10, 13, 14, 2**31):  # verdicts that only the zygote or the client give
        with pytest.raises(ValueError):
            decode_entry(outcome.to_bytes(4, "little") + entry[4:])
    with pytest.raises(ValueError):  # longer than a result may be
        decode_entry(entry, output_bytes=len(value) - 1)


def decode_entry(report: bytes, offset: int = 0, output_bytes: int = 4096):
    return _sandbox.decode_entry(report, offset, output_bytes, 60, 1000)


def test_a_forged_error_is_cut():
    text = b"E" * 4000
    entry = STATUSES.index("exception").to_bytes(4, "little") + len(text).to_bytes(4, "little")
    assert decode_entry(entry + bytes(8) + text)[2] == "E" * 200
