"""What the sandbox says of programs: statuses, values, order, batches, labels."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from azr.sandbox import STATUSES, Job, Limits, Result, Sandbox, SandboxError

_sandbox = pytest.importorskip("azr._sandbox", reason="the sandbox is not built here")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(workers=2, limits=Limits(cpu_s=0.5)) as sandbox:
        yield sandbox


def test_c_and_python_share_one_table_of_outcomes():
    assert _sandbox.OUTCOMES == STATUSES


@pytest.mark.parametrize(
    ("code", "args_text", "status", "value"),
    [
        ("def f(x, y=1): return [x] * y", "'a', y=2", "ok", ["a", "a"]),
        ("def f(): return None", "", "ok", None),
        ("def f(x): return {x, (1, 2.5), b'b', 3j}", "'s'", "ok", {"s", (1, 2.5), b"b", 3j}),
        ("f = lambda *a, **k: (a, k)", "1, *[2]", "syntax_error", None),
        ("def f(x): return 1 / x", "0", "exception", None),
        ("def f(x)", "0", "syntax_error", None),
        ("g = 1", "0", "exception", None),
        ("import os\ndef f(): return 1", "", "forbidden_import", None),
        ("def f(): return __import__('ti' + 'me')", "", "forbidden_import", None),
        ("def f():\n while True: pass", "", "timeout_cpu", None),
        ("def f(): return [0] * 10**10", "", "memory", None),
        ("def f(): return 'a' * 10**6", "", "too_large", None),
        ("def f(): return 10**5000", "", "too_large", None),
        ("def f(): return float('nan')", "", "unsupported_value", None),
        ("def f(): return [frozenset()]", "", "unsupported_value", None),
        ("def f(x): return x", "1) or (True", "syntax_error", None),
        ("def f(x): return x", "f(1)", "syntax_error", None),
    ],
)
def test_statuses(sandbox, code, args_text, status, value):
    result = sandbox.run(code, args_text)
    assert (result.status, result.value) == (status, value)
    assert type(result.value) is type(value)


def test_inputs_of_one_program_keep_their_order(sandbox):
    code = "def f(x):\n while x == 2: pass\n return 10 // x"
    results = sandbox.run_many(code, ["1", "0", "2", "5", "z", "3"])
    statuses = [r.status for r in results]
    assert statuses == ["ok", "exception", "timeout_cpu", "ok", "syntax_error", "ok"]
    assert [r.value for r in results if r.ok] == [10, 2, 3]
    assert results[1].error == "ZeroDivisionError"


def test_batches_keep_their_order(sandbox):
    jobs = [Job(f"def f(x): return x + {i}", str(i), "0") for i in range(100)]
    values = [v for i in range(100) for v in (2 * i, i)]
    assert [r.value for r in sandbox.run_batch(jobs)] == values
    assert [f.result().value for f in sandbox.submit_batch(jobs)] == values
    assert [r.value for r in asyncio.run(sandbox.arun_batch(jobs))] == values


def test_labels(sandbox):
    good = sandbox.label("def f(x): return sorted(set(x))", ["'ab'", "'ba'"])
    assert good.deterministic, good
    assert [r.repr for r in good.results] == ["['a', 'b']"] * 2
    bad = sandbox.label("def f(x): return list(set(x))", ["[1]", "'abcdefgh'"])
    assert not bad.deterministic and "input 1" in bad.reason
    assert [r.status for r in bad.results] == ["ok", "nondeterministic"]
    slow = sandbox.label("def f():\n while True: pass", [""])
    assert not slow.deterministic and "timeout_cpu" in slow.reason


def test_importing_the_client_loads_nothing_heavy():
    code = "import azr.sandbox, sys; print({'torch', 'numpy', 'numba'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_a_closed_sandbox_says_so():
    sandbox = Sandbox(workers=1)
    sandbox.close()
    sandbox.close()
    with pytest.raises(SandboxError, match="closed"):
        sandbox.run("def f(): return 1", "")


def test_result_is_a_record():
    assert Result("ok", {2, 1}).repr == "{1, 2}"
    assert Result("crash").repr == ""
