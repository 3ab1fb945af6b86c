"""What the sandbox says of programs: statuses, values, order, batches, labels."""

import ast
import asyncio
import copy
import dataclasses
import decimal
import encodings
import os
import pkgutil
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from azr.sandbox import STATUSES, Job, Limits, Result, Sandbox, SandboxError
from tests.plain_values import VALUES, same

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


def test_an_import_refused_while_loading_is_refused_to_every_input(sandbox):
    code = "try: __import__('o' + 's')\nexcept ImportError: pass\ndef f(x): return x"
    results = sandbox.run_many(code, ["1", "2", "z"])
    assert [r.status for r in results] == ["forbidden_import"] * 3
    assert sandbox.label(code, ["1", "2"]).deterministic


def test_no_exception_passes_for_another(sandbox):
    code = """
class M(type):
    def __hash__(self): return hash(ValueError)
    def __eq__(self, other): return True
class E(Exception, metaclass=M): pass
def f(): raise E
"""
    assert sandbox.run(code, "").error == "UserException"


@pytest.mark.parametrize("future", ["", "from __future__ import annotations\n"])
def test_a_class_may_name_itself_in_an_annotation(sandbox, future):
    code = (
        future
        + """
import dataclasses, typing
@dataclasses.dataclass
class Node:
    value: int
    next: 'Node' = None
def f(x):
    hints = typing.get_type_hints(Node)
    return Node(x, Node(2)).next.value, hints['next'] is Node, Node.__module__
"""
    )
    assert sandbox.run(code, "1").value == (2, True, "program")


def test_what_the_library_asks_of_the_machine_is_no_refusal(sandbox):
    code = """
import contextlib, copy, dataclasses, enum, functools, io, json, statistics, textwrap, types, typing
@dataclasses.dataclass(order=True)
class P:
    a: int
    b: list = dataclasses.field(default_factory=list)
class C(enum.Flag):
    A = 1
    B = 2
@functools.singledispatch
def g(x): return 'any'
@g.register
def _(x: int): return 'int'
class N(typing.NamedTuple):
    a: int = 1
def f(x):
    p = P(x)
    p.b.append(p)
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(KeyError):
        print(p, C.A | C.B, g(1), g(''), N())
    text = textwrap.fill(json.dumps(dataclasses.asdict(P(2)), indent=1), 10)
    return out.getvalue(), text, statistics.median([x]), repr(copy.deepcopy(P(3, [P(4)])))
"""
    result = sandbox.run(code, "1")
    assert (result.status, result.error) == ("ok", "")
    printed, _, median, copied = result.value
    assert printed.startswith("P(a=1, b=[...]) C.A|B int any N(a=1)") or "<C.B|A: 3>" in printed
    assert median == 1 and copied == "P(a=3, b=[P(a=4, b=[])])"


def test_a_program_may_lose_its_module(sandbox):
    code = "import dataclasses\ntable = dataclasses.sys.modules\n"
    code += "own = table.pop('program')\ntable.clear()\ndel own\ndef f(x): return g(x)\n"
    code += "def g(x): return x + 1"
    assert [r.value for r in sandbox.run_many(code, ["1", "2"])] == [2, 3]


def test_encodings_are_those_of_a_table(sandbox):
    code = "def f(name): return 'a\u0141\xe9'.encode(name, 'ignore')"
    names = ["utf8", "unicode_escape", "raw-unicode-escape", "windows-1252", "utf-7", "punycode"]
    names += ["UTF-16-LE", "utf_32", "utf_8_sig", "latin1", "cp819", "us-ascii"]
    results = sandbox.run_many(code, [repr(name) for name in names])
    assert [r.value for r in results] == ["a\u0141\xe9".encode(n, "ignore") for n in names]
    back = "def f(name): return 'a\xe9'.encode(name).decode(name)"
    results = sandbox.run_many(back, [repr(name) for name in names[:-1]])
    assert [r.value for r in results] == ["a\xe9"] * len(results)
    results = sandbox.run_many(code, [repr(name) for name in ("rot13", "hex", "no such one")])
    assert [(r.status, r.error) for r in results] == [("exception", "LookupError")] * 3
    # Others are Python's and not ours: refused, whatever the program makes of the error.
    caught = "def f(name):\n try:\n  return 'a'.encode(name)\n except LookupError: return b''"
    others = {"big5": "big5", "Shift-JIS": "shift_jis", "cp932": "cp932", "idna": "idna"}
    results = sandbox.run_many(caught, [repr(name) for name in others])
    names = [f"encodings.{module}" for module in others.values()]
    assert [(r.status, r.error) for r in results] == [("forbidden_import", n) for n in names]


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_every_encoding_is_python_s_or_refused(sandbox):
    names = [module.name for module in pkgutil.iter_modules(encodings.__path__)]
    code = "def f(name, text):\n    data = text.encode(name, 'replace')\n"
    code += (
        "    return data, data.decode(name, 'replace'), bytes(range(256)).decode(name, 'ignore')"
    )
    # What each can write, and what it cannot.
    texts = {
        name: bytes(range(256)).decode("latin_1") + "\u0141\u2022\u05d0 \u0416" for name in names
    }
    jobs = [Job(code, f"{name!r}, {text!r}") for name, text in texts.items()]
    refused = 0
    for name, result in zip(names, sandbox.run_batch(jobs), strict=True):
        try:
            data = texts[name].encode(name, "replace")
            back = data.decode(name, "replace"), bytes(range(256)).decode(name, "ignore")
            right = "ok", (data, *back)
        except Exception as error:
            right = "exception", type(error).__name__
        if result.status == "forbidden_import":
            refused += 1
            assert result.error == f"encodings.{name}"
        else:
            assert (result.status, result.value if result.ok else result.error) == right, name
    assert len(names) > 100 and refused < 40


def test_a_program_too_large_to_compile_is_no_syntax_error():
    large = "x = [" + "1," * 100_000 + "]\ndef f(): return 1"
    limits = Limits(source_bytes=1 << 20, memory_bytes=24 << 20)
    with Sandbox(workers=1, limits=limits) as sandbox:
        assert sandbox.run(large, "").status == "memory"
        label = sandbox.label(large, [""])
        assert not label.deterministic and "memory" in label.reason
        # The parser says MemoryError of it as well.
        assert sandbox.run("x = " + "-" * 7000 + "1", "").status == "syntax_error"
        assert sandbox.run("def f(): return 1", "").value == 1


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


def test_the_example_pays_what_is_right():
    done = subprocess.run(
        [sys.executable, "examples/sandbox_reward.py"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    paid = dict(line.rsplit(maxsplit=1) for line in done.stdout.splitlines())
    assert paid == {
        "right": "1.00",
        "half right": "0.50",
        "endless": "0.00",
        "equal to all": "0.00",
        "breaks out": "0.00",
        "no program": "0.00",
    }


@given(
    st.lists(VALUES, max_size=3),
    st.dictionaries(st.from_regex("[a-z]{1,3}_", fullmatch=True), VALUES, max_size=2),
)
def test_argument_texts_mean_what_they_mean_to_python(args, kwargs):
    text = ", ".join([*map(repr, args), *(f"{k} = {v!r}" for k, v in kwargs.items())])
    found_args, found_kwargs = _sandbox.parse_args(text, 60)
    assert same(list(found_args), list(ast.literal_eval(f"({text_of(args)})")))
    assert {k: ast.literal_eval(repr(v)) for k, v in kwargs.items()} == found_kwargs


@pytest.mark.parametrize(
    "expression",
    [
        # What the interpreter imports for itself, in some version of Python, at its first need.
        "(3**40000 % 7**9000) % 97",
        "[n % 10**9 for n in divmod(3**60000, 7**9000)]",
        "str(3**8000)[:20], int('7' * 4000) % 97",
        "[format(Decimal('-0.0001'), spec) for spec in ('.1f', '+.2e', '010.3f', ',.2f', 'n')]",
        "[f'{Decimal(3) / 7:{spec}}' for spec in ('>12.3', '%', '.4g', '_<9.1')]",
        "'\\N{BULLET}' + r'\N{BULLET}'.encode().decode('unicode_escape')",
        "'a\u2022'.encode('ascii', 'namereplace')",
        "re.sub(r'\\N{BULLET}', '-', '\u2022')",
        "copy.copy({1: [2]}), copy.deepcopy([{3: 4}])",
        "eval('größe', {'größe': 3})",
    ],
)
def test_what_the_interpreter_loads_for_itself_is_there(sandbox, expression):
    names = {"Decimal": decimal.Decimal, "re": re, "copy": copy}
    code = f"import re, copy\nfrom decimal import Decimal\ndef f(): return {expression}"
    result = sandbox.run(code, "")
    assert (result.status, result.error) == ("ok", "")
    assert result.value == eval(expression, names)


def test_the_sign_of_zero_can_be_dropped(sandbox):
    code = "from decimal import Decimal\ndef f(x): return format(Decimal(x), 'z.1f')"
    assert sandbox.run(code, "'-0.0001'").value == "0.0"


def test_caches_of_the_library_do_not_join_equal_inputs(sandbox):
    code = "from typing import List\ndef f(x): return str(List[list[x]])"
    results = sandbox.run_many(code, ["1", "True", "1.0"])
    assert [r.value.partition("List")[2] for r in results] == [
        "[list[1]]",
        "[list[True]]",
        "[list[1.0]]",
    ]
    code = "import re\ndef f(x):\n    try: re.sub('q', 'b', 'a', 0, x)\n"
    code += "    except TypeError: return 'refused'\n    return 'taken'"
    results = sandbox.run_many(code, ["8", "8.0", "9.0"])
    assert [r.value for r in results] == ["taken", "refused", "refused"]


def test_plain_programs_are_known_for_it(sandbox):
    plain = [
        "def f(x): return '{} {:.2f} {0!r:>{1}}'.format(x, x)",
        "from typing import List, Optional\nimport math\nN = 10\n"
        "def g(a: List[int]) -> Optional[int]:\n"
        "    return [math.sqrt(i) for i in a if i]\ndef f(x, y=2): return g([x, y])",
        "import re\nfrom collections import Counter, defaultdict\n"
        "def f(s):\n    d = defaultdict(list)\n"
        "    for w in re.findall(r'a+', s): d[w].append(len(w))\n"
        "    return Counter(s).most_common(), dict(d)",
    ]  # fmt: skip
    risky = [
        "def f(x): return '{0.real}'.format(x)",
        "def f(x): return '{:{0[a]}}'.format(x)",
        "def f(x): return x.format(1)",
        "def f(x): return str.format(x, 1)",
        "def f(x): return '{a}'.format_map(x)",
        "def f(x): return x.gi_frame",
        "def f(x): return len(set(x))",
        "hash = len\ndef f(x): return hash(x)",
        "def f(x): return undefined",
        "import dataclasses\ndef f(x): return x",
    ]
    keeps = [
        "n = [0]\ndef f(x): return x",
        "def f(x, y=[]): return x",
        "def f(x):\n    global n\n    n = x",
        "import math\ndef f(x): math.k = x",
        "import decimal\ndef f(x): return x",
        "f = (lambda: len)()",
    ]
    sandbox.run_batch([Job(code, "'a'") for code in (*plain, *risky, *keeps)])
    known = {p.source.decode(): p for p in sandbox._engine._programs.values()}
    traits = {code: (known[code].is_risky, known[code].keeps) for code in (*plain, *risky, *keeps)}
    assert traits == {
        **dict.fromkeys(plain, (False, False)),
        **dict.fromkeys(risky, (True, True)),
        **dict.fromkeys(keeps, (False, True)),
    }


def test_names_beyond_ascii_are_python_s(sandbox):
    assert _sandbox.parse_args("größe=1, ﬁ=2", 60) == ((), {"größe": 1, "fi": 2})
    code = "def f(größe, *, ﬁ): return größe, fi"
    assert sandbox.run(code, "größe=1, ﬁ=2").value == (1, 2)


def text_of(args: list[object]) -> str:
    return "".join(f"{arg!r}, " for arg in args)


LITERALS = [
    "1_000",
    "0x_ff",
    "0b1",
    "0o17",
    "00",
    "1e5",
    "1_0.5e-1_0",
    ".5",
    "5.",
    "1j",
    "0777j",
    "-1",
    "+1",
    "-1.5+2j",
    "1-2j",
    "1e999",
    "'a' 'b'",
    "r'\\d'",
    "b'a' b'\\x00'",
    "rb'\\x'",
    "u'é'",
    "'\\N{BULLET}'",
    "'\\u00e9é\\\\é'",
    "'\\é'",
    "'''a\nb'''",
    "'a\\\nb'",
    "'\\d'",
    "set()",
    "()",
    "(1)",
    "(1,)",
    "[]",
    "{}",
    "{1}",
    "{1: 2,}",
    "[1,\n 2]",
    "(1 # c\n)",
    "'\\'\"'",
    '"\'"',
    "'\\400'",
    "b'\\400'",
    "''''a'''",
    "01",
    "1__0",
    "_1",
    "1_",
    "0x",
    "1e",
    "1if",
    "--1",
    "-True",
    "not 1",
    "1+1",
    "1j+1",
    "f''",
    "bf''",
    "b'é'",
    "'a' b'b'",
    "'a",
    "'a\nb'",
    "[1",
    "1]",
    "[,]",
    "(,)",
    "{1, 2: 3}",
    "{1: 2, 3}",
    "{**{}}",
    "[*[]]",
    "{[]: 1}",
    "{[]}",
    "x",
    "None()",
    "lambda: 1",
    "1 if 1 else 2",
    "'\\x1'",
    "'\\N{nothing}'",
    "1,",
    "True",
    "{True: 1, 1: 2}",
    "\\\n1",
    "1 \\\n",
    "0_7",
    "0_0",
    "1.real",
    "'%s' % 1",
    "[1][0]",
]


@pytest.mark.parametrize("text", LITERALS)
def test_literals_are_those_of_python(text):
    """Against ast.literal_eval, inside parentheses as in a call."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wanted = ast.literal_eval(f"[{text}\n]")
    except (SyntaxError, ValueError, TypeError):
        with pytest.raises(SyntaxError):
            _sandbox.parse_args(text, 60)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        args, kwargs = _sandbox.parse_args(text, 60)
    assert same(list(args), wanted) and kwargs == {}


@given(st.text(alphabet="0123456789_.eEjxob+-'\"\\rbu[](){},:= \n#nN", max_size=12))
def test_no_text_is_read_otherwise_than_by_python(text):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            args, kwargs = _sandbox.parse_args(text, 60)
        except SyntaxError:
            return
        if not kwargs:
            assert same(list(args), ast.literal_eval(f"[{text}\n]"))


@pytest.mark.parametrize(
    "text", ["a=1, a=2", "a=1, 2", "None=1", "if=1", "١=1", "a=1, ａ=2", "a==1", "=1", "a="]
)
def test_keywords_are_those_of_a_call(text):
    with pytest.raises(SyntaxError):
        _sandbox.parse_args(text, 60)


def test_jobs_and_limits_are_checked():
    assert Job("c", "1", "2") == Job("c", ["1", "2"])
    assert Job("c", args_text="1").args_texts == ("1",)
    with pytest.raises(TypeError, match="args_text"):
        Job("c", 1)
    with pytest.raises(ValueError, match="cpu_s"):
        Limits(cpu_s=0)
    with pytest.raises(ValueError, match="depth"):
        Limits(depth=10**6)
    for workers in (0, 1.5):
        with pytest.raises(ValueError, match="workers"):
            Sandbox(workers=workers)
    with pytest.raises(TypeError, match="modules"):
        Sandbox(modules="math")
    with pytest.raises(TypeError, match="limits"):
        Sandbox(limits={"cpu_s": 1})


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("inputs", 2.5, TypeError),
        ("memory_bytes", 1e8, TypeError),
        ("recursion", True, TypeError),
        ("cpu_s", "1", TypeError),
        ("cpu_s", float("nan"), ValueError),
        ("recursion", 19, ValueError),
        ("memory_bytes", 1 << 19, ValueError),
        ("source_bytes", 16 << 20, ValueError),
    ],
)
def test_limits_that_cannot_work_are_named(name, value, error):
    values = {"memory_bytes": 16 << 20} | {name: value}
    with pytest.raises(error, match=rf"Limits\.(memory_bytes|{name}) is"):
        Limits(**values)


def test_the_least_limits_work():
    code = "def f(x): return sorted([x, *range(9)])"
    limits = Limits(memory_bytes=(1 << 20) + (64 << 10), recursion=20)
    with Sandbox(workers=2, limits=limits) as sandbox:
        assert sandbox.label(code, ["4"]).results[0].ok
    with Sandbox(workers=1, limits=Limits(memory_bytes=17 << 20, source_bytes=16 << 20)) as sandbox:
        assert sandbox.run(code, "4").ok


def test_a_job_can_be_replaced():
    job = Job("c", "1", "2")
    assert dataclasses.replace(job, code="d") == Job("d", "1", "2")
    assert dataclasses.replace(job, args_texts=("3",)) == Job("c", "3") == Job("c", args_text="3")


def test_too_many_inputs_are_the_callers_error(sandbox):
    with pytest.raises(ValueError, match="Limits.inputs"):
        sandbox.run_many("def f(x): return x", ["1"] * 65)


def test_limits_of_every_size(sandbox):
    long = "x" * (70 << 10)
    assert sandbox.run(f"# {long}\ndef f(): return 1", "").status == "too_large"
    assert sandbox.run("def f(x): return 1", repr(long)).status == "too_large"
    assert sandbox.run("def f(): return 'x' * 65000", "").status == "ok"
    assert sandbox.run("def f(): return 'x' * 66000", "").status == "too_large"
    deep = "def f(n):\n    x = 0\n    for _ in range(n): x = [x]\n    return x"
    assert [r.status for r in sandbox.run_many(deep, ["60", "61"])] == ["ok", "unsupported_value"]
    counted = "def f(n):\n    f.n = 0\n    def g(k):\n        f.n = k\n        return g(k + 1)\n"
    counted += "    try: g(0)\n    except RecursionError: return 900 < f.n < 1000"
    assert sandbox.run(counted, "0").value is True
    full = [Job("def f(x): return x", ["'" + "y" * 60_000 + "'"] * 64)]
    assert all(r.status == "ok" and len(r.value) == 60_000 for r in sandbox.run_batch(full))
