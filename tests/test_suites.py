"""Suites of other people's tasks: layouts, prompts, and grading in the sandbox."""

import itertools
import json
import subprocess
import sys
import time
from concurrent.futures import Future

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from suites import CRUX, DOUBLE, HUMAN, PROMPT, TEST, wrapped, write

from azr.config import ConfigError
from azr.errors import RunError
from azr.evaluation.suite.bodies import complete
from azr.evaluation.suite.grading import MODULES, failing_references, grade_answers
from azr.evaluation.suite.items import Completion, Prediction, load_suite
from azr.evaluation.suite.prompts import STYLES, extract, instruction
from azr.sandbox import Limits, Result, Sandbox
from azr.tasks.program.records import FormatError

pytest.importorskip("azr._sandbox", reason="the sandbox is not built here")


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(workers=1, limits=Limits(cpu_s=0.5), modules=MODULES) as sandbox:
        yield sandbox


# Layouts


def test_layouts_are_told_apart_by_their_fields(tmp_path):
    crux = load_suite(write(tmp_path / "crux.jsonl", CRUX))
    assert (crux.name, crux.layout) == ("crux", "CRUXEval")
    assert [(i.id, i.kind) for i in crux.items] == list(
        itertools.product("abc", ("output", "input"))
    )
    assert crux.items[0].expected() == [1, 2, 3]
    human = load_suite(write(tmp_path / "human.jsonl", HUMAN))
    assert human.layout == "HumanEval" and [i.id for i in human.items] == ["T/0", "T/1"]
    nameless = [{k: v for k, v in row.items() if k != "id"} for row in CRUX]
    assert {i.id for i in load_suite(write(tmp_path / "n.jsonl", nameless)).items} == {
        "row_0", "row_1", "row_2",
    }  # fmt: skip
    nameless = [{k: v for k, v in row.items() if k != "task_id"} for row in HUMAN]
    items = load_suite(write(tmp_path / "n.jsonl", nameless)).items
    assert [i.id for i in items] == ["row_0", "row_1"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"code": "x", "input": "1"}], "in no layout that is known.*has code, input"),
        ([CRUX[0], {"code": "x", "input": "1"}], "line 2: output must be a string"),
        ([CRUX[0] | {"input": 3}], "line 1: input must be a string"),
        ([CRUX[0] | {"output": "f(3)"}], "line 1: output is no Python literal"),
        ([CRUX[0] | {"output": "0x" + "f" * 5000}], "output is no Python literal .no plain value"),
        ([CRUX[0] | {"output": "[" + "1, " * 3000 + "]"}], "longer than 8000 characters"),
        ([CRUX[0] | {"code": "'\ud800'"}], "line 1: code is no text in UTF-8: surrogates"),
        ([CRUX[0] | {"id": "\udfff"}], "line 1: id is no text in UTF-8"),
        ([CRUX[0], CRUX[1], CRUX[0]], "line 3: id 'a' is that of line 1, too"),
        ([HUMAN[0] | {"test": "assert triple(1) == 3"}], "no function check"),
        ([HUMAN[0] | {"test": "def check("}], "test is no Python"),
        ([HUMAN[0] | {"entry_point": "f()"}], "entry_point is no name"),
        ([[1, 2]], "needs one JSON object a line"),
        ([], "at least one"),
    ],
)
def test_a_file_in_no_layout_is_refused_by_line_and_field(tmp_path, rows, message):
    with pytest.raises(ConfigError, match=message):
        load_suite(write(tmp_path / "x.jsonl", rows))


def test_a_file_that_is_no_json_is_refused(tmp_path):
    good = json.dumps(CRUX[0]).encode()
    for data, message in (
        (b"{", "line 1: no JSON: Expecting property name"),
        (b"\xff\xfe", "not JSON lines in UTF-8"),
        (good + b"\n\n" + b"[" * 100_000, "line 3: no JSON"),
        (good + b"\n{'a': 1}\n", "line 2: no JSON: Expecting property name"),
        (good + b"\n[1]\n", "line 2: needs one JSON object a line"),
    ):
        (tmp_path / "x.jsonl").write_bytes(data)
        with pytest.raises(ConfigError, match=message):
            load_suite(tmp_path / "x.jsonl")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_suite(tmp_path / "nothing.jsonl")


# Prompts and answers


@pytest.mark.parametrize("style", STYLES)
def test_a_prompt_shows_what_is_given_and_hides_what_is_asked(style):
    code = "def f(x):\n    return x[::-1]"
    for kind in ("output", "input"):
        item = Prediction("a", kind, code, "'{0}given'", "'nevig}0{'")
        text = instruction(item, style)
        shown, hidden = item.input, item.output
        if kind == "input":
            shown, hidden = hidden, shown
        assert shown in text and hidden not in text and code in text
    item = Completion("T", PROMPT, "triple", TEST)
    text = instruction(item, style)
    assert "Three times n" in text and "candidate" not in text


OUT, IN = (Prediction("a", kind, "def f(x): return x", "1", "1") for kind in ("output", "input"))
WHOLE = Completion("T", DOUBLE, "double", "")


def read(item, style, text, finished):
    """Returns the answer in a response and None, or None and the reason why there is none."""
    try:
        return extract(item, style, text, finished), None
    except FormatError as error:
        return None, str(error)


@pytest.mark.parametrize(
    ("item", "style", "text", "finished", "answer", "reason"),
    [
        (OUT, "r1", wrapped("[1]", "output"), True, "[1]", None),
        (OUT, "chat", wrapped("[1]", "output"), False, None, "unfinished"),
        (OUT, "r1", wrapped("[1]", "input"), True, None, "output_block"),
        (OUT, "r1", "[1]", True, None, "no_answer_end"),
        (IN, "chat", wrapped("1, [2]", "input"), True, "1, [2]", None),
        (WHOLE, "r1", wrapped("def double(n):\n  return 1", "python"), True,
         "def double(n):\n  return 1", None),
        (WHOLE, "r1", wrapped("def double(n): 1", ""), True, None, "python_block"),
        (OUT, "completion", " [1]\nassert", True, "[1]", None),
        (OUT, "completion", " [1", False, None, "unfinished"),
        (OUT, "completion", " [1]", True, "[1]", None),
        (IN, "completion", "1, [2])\n", True, "1, [2]", None),
        (IN, "completion", "1, [2]\n", True, None, "no_parenthesis"),
        (IN, "completion", "1) or (True)\n", True, "1) or (True", None),
        (IN, "completion", "1, '#)')  # since f adds\n", True, "1, '#)'", None),
        (IN, "completion", "'ü'.upper())<|file_sep|>x = (\n", True, "'ü'.upper()", None),
        (IN, "completion", "'<|sep|>')\n", True, "'<|sep|>'", None),
        (IN, "r1", wrapped("'a' * 13, lambda x: 1", "input"), True, "'a' * 13, lambda x: 1", None),
        (IN, "chat", wrapped("", "input"), True, "", None),
        (IN, "completion", ")\n", True, "", None),
        (OUT, "completion", " [1]  # a list\n", True, "[1]  # a list", None),
        (OUT, "completion", " [1]<|endoftext|>f(\n", True, "[1]", None),
        (OUT, "completion", " '<|sep|>'\n", True, "'<|sep|>'", None),
        (OUT, "chat", wrapped("sorted([2, 1])", "output"), True, "sorted([2, 1])", None),
        (WHOLE, "completion", "\n    return 1\n\nprint(2)", True,
         DOUBLE.rstrip() + "\n    return 1\n", None),
        (WHOLE, "completion", "\n    return 1", False, DOUBLE.rstrip() + "\n    return 1", None),
    ],
)  # fmt: skip
def test_answers_are_found_or_refused_with_a_reason(item, style, text, finished, answer, reason):
    assert read(item, style, text, finished) == (answer, reason)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60) | st.sampled_from(["(" * 4000, "-" * 9000 + "1", "9" * 9000, "{1: []"]))
def test_no_text_raises(text):
    for item, style, finished in itertools.product((OUT, IN, WHOLE), STYLES, (True, False)):
        for shown in (text, wrapped(text, "output")):
            answer, reason = read(item, style, shown, finished)
            assert (answer is None) == bool(reason)


# Where a completed function ends


DOC = DOUBLE.rstrip("\n")


@pytest.mark.parametrize(
    ("prompt", "text", "kept"),
    [
        # A control token's name, on a line of its own or behind the code; in a text it is data.
        (DOUBLE, "\n    return n\n<|file_sep|>x = (", "\n    return n"),
        (DOUBLE, "\n    return n\n<fim_suffix>x = (", "\n    return n"),
        (DOUBLE, "\n    return n<|endoftext|>x = (", "\n    return n"),
        (DOUBLE, "\n    return n</s>", "\n    return n"),
        (DOUBLE, "\n    return n<end_of_turn>\n", "\n    return n"),
        (DOUBLE, "\n    return n == '<|sep|>'\n", "\n    return n == '<|sep|>'\n"),
        # Prose, also such as Python reads; lines at column 0 that close a bracket or a text.
        (DOUBLE, "\n    return n\n\nThis returns n.\nIt (is\n  so", "\n    return n\n\n"),
        (DOUBLE, "\n    return n\n\nHere's why: '''\n", "\n    return n\n\n"),
        (DOUBLE, "\n    return n\nThanks\n", "\n    return n\n"),
        (DOUBLE, "\n    return n\nNote: this\n", "\n    return n\n"),
        (DOUBLE, "\n    return n\nreturn 5\n", "\n    return n\n"),
        (DOUBLE, "\n    return n\nwhile n:\n    return 5\n", "\n    return n\n"),
        (DOUBLE, "\n    return (\nn\n)\nDone, I think", "\n    return (\nn\n)\n"),
        (DOUBLE, "\n    return k(n)\n\nk = int\nDone!", "\n    return k(n)\n\nk = int\n"),
        (DOUBLE, "\n    s = '''\na b\n'''\n    return s", "\n    s = '''\na b\n'''\n    return s"),
        # What is broken inside the function is the model's mistake.
        (DOUBLE, "\n    return 3 *\n", "\n    return 3 *\n"),
        (DOUBLE, "\n    foo bar\n    return n\n", "\n    foo bar\n    return n\n"),
        # A prompt without its last newline, one that ends in an indent, and ones inside a line.
        (DOC, "    return n\n", "\n    return n\n"),
        (DOC + "\n    ", "return n\n", "\n    return n\n"),
        (DOC + "\n    return n +", " n\n", " n\n"),
        (DOC + "\n    return n", " + n\n", " + n\n"),
    ],
)
def test_a_completed_function_ends_where_it_cannot_go_on(prompt, text, kept):
    item = Completion("T", prompt, "double", "")
    answer = extract(item, "completion", text, True)
    assert answer.removeprefix(prompt.rstrip()) == kept
    assert instruction(item, "completion") == prompt.rstrip()


def test_hostile_texts_are_cut_in_bounded_time():
    start = time.process_time()
    for text in ("try:\n" * 30_000, "x (\n" * 30_000, "<|a|>" * 30_000, "(" * 150_000):
        complete(DOUBLE, f"    return n\n{text}x = (")
    assert time.process_time() - start < 20


# Grading


BODIES = {
    "right": ("return 3 * n", "correct"),
    "right, by a helper": ("return sum(map(one, [n]))\n\none = lambda n: n * 3", "correct"),
    "right, a subclass": ("class N(int):\n        pass\n    return N(3 * n)", "correct"),
    "wrong": ("return 2 * n", "AssertionError"),
    "no value": ("pass", "AssertionError"),
    "syntax": ("return 3 *", "SyntaxError"),
    "exit": ("raise SystemExit", "SystemExit"),
    "exit by sys": ("import sys\n    sys.exit(0)", "SystemExit"),
    "exit by os": ("import os\n    os._exit(0)", "forbidden_import"),
    "equal to all": (
        "class E:\n        __eq__ = __lt__ = lambda s, o: True\n        __sub__ = lambda s, o: 0\n"
        "    return E()", "TypeError"),
    "an int equal to all": (
        "class E(int):\n        __eq__ = __lt__ = lambda s, o: True\n"
        "        __sub__ = lambda s, o: 0\n    return E(7)", "AssertionError"),
    "a list equal to all": (
        "class L(list):\n        __eq__ = lambda s, o: True\n    return L()", "AssertionError"),
    "a class equal to all": (
        "class M(type):\n        __eq__ = lambda s, o: True\n        __hash__ = lambda s: 1\n"
        "    class E(metaclass=M):\n        __eq__ = __lt__ = lambda s, o: True\n"
        "        __sub__ = lambda s, o: 0\n    return E()", "TypeError"),
    "its own check": ("return 0\n\ndef check(candidate):\n    return None", "AssertionError"),
    "its own abs": ("return 0\n\nabs = lambda x: 0", "AssertionError"),
    "its own helper": ("return 3 * n\n\ndef helper(n):\n    return 0", "correct"),
    "another module's function": (
        "return 15 if n == 5 else 6\n\nimport math\nmath.fabs = lambda x: 0", "AssertionError"),
    "patched builtins": ("return 0\n\nimport builtins\nbuiltins.abs = abs", "forbidden_import"),
    "builtins by name": ("return 0\n\n__builtins__['abs'] = lambda x: 0", "forbidden_name"),
    "frames": ("g = (0 for _ in ())\n    g.gi_frame.f_back\n    return 0", "forbidden_name"),
    "never ends": ("while True: pass", "timeout_cpu"),
    "memory": ("return [0] * 10 ** 12", "memory"),
    "calls itself": ("return triple(n)", "RecursionError"),
    "deletes its name": ("return 0\n\ndel triple", "KeyError"),
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_only_a_function_that_passes_its_test_is_correct(sandbox, name):
    body, expected = BODIES[name]
    item = Completion("T", PROMPT, "triple", TEST)
    (got,) = grade_answers(sandbox, [(item, f"{PROMPT}    {body}\n")])
    assert (got.reason or got.outcome) == expected


@pytest.mark.parametrize(
    ("value", "check"),
    [
        ("{1: 2, n: 4}.keys()", "set(got) == got == {1, 3}"),
        ("{1: 2, n: 4}.items()", "got == {(1, 2), (3, 4)} and list(got) == [(1, 2), (3, 4)]"),
        ("{1: 2, n: 4}.values()", "list(got) == [2, 4]"),
        ("enumerate([n])", "next(got) == (0, 3)"),
        ("bytearray([n])", "got == b'\\x03'"),
        ("__import__('collections').deque([1, n], 2)", "got.popleft() == 1 and got.maxlen == 2"),
        ("__import__('collections').Counter([n, n])", "got == {3: 2}"),
        ("frozenset([n])", "got == {3}"),
        ("(i for i in [n])", "list(got) == [3]"),
    ],
)
def test_values_of_all_built_in_kinds_can_be_returned(sandbox, value, check):
    test = f"def check(candidate):\n    got = candidate(3)\n    assert {check}\n"
    item = Completion("T", "def g(n):\n", "g", test)
    right = f"def g(n):\n    return {value}\n"
    (got,) = grade_answers(sandbox, [(item, right)])
    assert (got.reason or got.outcome) == "correct"


POINT = '''from dataclasses import dataclass


@dataclass
class Point:
    x: int
    y: int


def mirror(p: Point) -> Point:
    """ The point on the other side of the diagonal """
'''
NODE = '''class Node:
    def __init__(self, value, next=None):
        self.value = value
        self.next = next


def reverse(node):
    """ Reverse a linked list """
'''
FAULT = '''class Fault(ValueError):
    """ Raised for negative numbers """


def root(n):
    """ Raises Fault """
'''
PAIR = "from collections import namedtuple\n\nPair = namedtuple('Pair', 'low high')\n\n\n"
COLOR = "from enum import Enum\n\n\nclass Color(Enum):\n    RED = 1\n    BLUE = 2\n\n\n"
TREE = "class Tree(list):\n    def total(self):\n        return weight(self)\n\n\n"
CALLS = "class Count:\n    calls = 0\n\n\ndef call():\n"
LOG = "NONE = object()\nlog = []\n\ndef find(x):\n"
LONG = "    n = None\n    for i in range(5000):\n        n = Node(i, n)\n"


def asserting(*lines):
    return "".join(["def check(candidate):\n", *(f"    {line}\n" for line in lines)])


HONEST = {
    "a recursion limit of its own": ("import sys\n\ndef down(n):\n", "down",
        "    sys.setrecursionlimit(10**6)\n    return n and 1 + down(n - 1)\n",
        asserting("assert candidate(5000) == 5000")),
    "a lowered recursion limit": ("import sys\n\ndef down(n):\n", "down",
        "    sys.setrecursionlimit(200)\n    return n and 1 + down(n - 1)\n",
        asserting("assert candidate(500) == 500")),
    "a dataclass": (POINT, "mirror", "    return Point(p.y, p.x)\n", asserting(
        "assert candidate(Point(1, 2)) == Point(2, 1)", "assert candidate(Point(1, 2)).x == 2")),
    "a wrong dataclass": (POINT, "mirror", "    return Point(p.x, p.y)\n", asserting(
        "assert candidate(Point(1, 2)) == Point(2, 1)")),
    "in place": (POINT, "mirror", "    p.x, p.y = p.y, p.x\n    return p\n", asserting(
        "p = Point(1, 2)", "assert candidate(p) is p and p.x == 2")),
    "annotations as texts": (
        "from __future__ import annotations\n" + POINT, "mirror", "    return Point(p.y, p.x)\n",
        asserting("assert candidate(Point(1, 2)) == Point(2, 1)")),
    "isinstance": (
        NODE, "reverse", "    assert isinstance(node, Node)\n    return node\n",
        asserting("assert isinstance(candidate(Node(1)), Node)")),
    "a long list": (
        NODE, "reverse",
        "    last = None\n    while node:\n        node.next, last, node = last, node, node.next\n"
        "    return last\n",
        asserting() + LONG + "    assert candidate(n).value == 0\n"),
    "a cycle": (NODE, "reverse", "    node.next = node\n    return node\n", asserting(
        "n = candidate(Node(1))", "assert n.next.next is n")),
    "the class itself": (NODE, "reverse", "    return type(node)\n", asserting(
        "assert candidate(Node(1)) is Node")),
    "an exception": (
        FAULT, "root", "    if n < 0:\n        raise Fault(n)\n    return n ** 0.5\n",
        "def check(candidate):\n    assert candidate(4) == 2\n    try:\n        candidate(-1)\n"
        "    except Fault as fault:\n        assert fault.args == (-1,)\n        return\n"
        "    assert False\n"),
    "another exception": (
        FAULT, "root", "    if n < 0:\n        raise ValueError(n)\n    return n ** 0.5\n",
        asserting("try:", "    candidate(-1)", "except Fault:", "    pass")),
    "a named tuple": (
        PAIR + "def ends(xs):\n", "ends", "    return Pair(xs[0], xs[-1])\n",
        asserting("got = candidate([1, 2, 3])", "assert got.high == 3 and got == Pair(1, 3)")),
    "its own named tuple": (
        "def ends(xs):\n", "ends",
        "    from collections import namedtuple\n"
        "    return namedtuple('P', 'low high')(xs[0], xs[-1])\n",
        asserting("assert candidate([1, 2, 3]).high == 3 and candidate([1, 2]) == (1, 2)")),
    "an enumeration": (COLOR + "def other(c):\n", "other",
        "    return Color.RED if c is Color.BLUE else Color.BLUE\n", asserting(
        "assert candidate(Color.RED) is Color.BLUE", "assert candidate(Color.BLUE) == Color.RED")),
    "a class that calls the function": (TREE + "def weight(tree):\n", "weight",
        "    return sum(t.total() if isinstance(t, Tree) else t for t in tree)\n", asserting(
        "assert candidate(Tree([1, Tree([2, 3])])) == 6", "assert Tree([4]).total() == 4")),
    "a class variable": (CALLS, "call", "    Count.calls += 1\n", asserting(
        "candidate()", "candidate()", "assert Count.calls == 2")),
    "a constant": (LOG, "find", "    log.append(x)\n    return NONE\n", asserting(
        "assert candidate(3) is NONE", "assert log == [3]")),
    "a counter": ("from collections import Counter\n\ndef count(s):\n", "count",
        "    return Counter(s)\n", asserting(
        "assert candidate('aab').most_common(1) == [('a', 2)]", "assert candidate('')['x'] == 0")),
    "an ordered dict": ("from collections import OrderedDict\n\ndef pairs():\n", "pairs",
        "    return OrderedDict(b=1, a=2)\n", asserting(
        "assert candidate() != OrderedDict(a=2, b=1)", "candidate().move_to_end('b')")),
    "a default dict": ("from collections import defaultdict\n\ndef groups():\n", "groups",
        "    return defaultdict(lambda: [1])\n", asserting("assert candidate()['x'] == [1]")),
    "a fraction": ("from fractions import Fraction\n\ndef half():\n", "half",
        "    return Fraction(1, 2)\n", asserting("assert candidate() + 1 == Fraction(3, 2)")),
    "a decimal": ("from decimal import Decimal\n\ndef half():\n", "half",
        "    return Decimal('0.5')\n", asserting("assert candidate() == Decimal('0.50')")),
    "a pattern": ("import re\n\ndef word():\n", "word",
        "    return re.compile('[a-z]+')\n", asserting(
        "assert candidate().match('ab1').end() == 2")),
    "an exception as a value": ("def fault():\n", "fault",
        "    return ValueError('no')\n", asserting(
        "assert type(candidate()) is ValueError and candidate().args == ('no',)")),
    "an attribute that is a function": (NODE, "reverse",
        "    node.key = lambda x: -x\n    return node\n", asserting(
        "assert candidate(Node(1)).key(3) == -3")),
    "a function": ("def adder(n):\n", "adder", "    return lambda x: x + n\n", asserting(
        "assert candidate(2)(3) == 5")),
    "an endless generator": ("def squares():\n", "squares",
        "    n = 0\n    while True:\n        yield n * n\n        n += 1\n", asserting(
        "import itertools", "assert list(itertools.islice(candidate(), 3)) == [0, 1, 4]")),
    "the same list": ("def same(xs):\n", "same", "    return xs\n", asserting(
        "xs = [[1]]", "assert candidate(xs) is xs")),
    "a module that the test imports": ("def area(r):\n", "area", "    return math.pi * r * r\n",
        "import math\n\n" + asserting("assert candidate(1) == math.pi")),
    "a module that nobody imports": ("def area(r):\n", "area", "    return math.pi * r * r\n",
        asserting("assert candidate(1) > 3")),
    "names in a comment and in a docstring": (
        "def twice(n):\n", "twice", "    '''Never reads __code__.'''\n"
        "    # nor gi_frame, nor __globals__\n    return '__code__' and 2 * n\n",
        asserting("assert candidate(2) == 4")),
    "a deep recursion": ("def down(n):\n", "down",
        "    return 0 if n == 0 else 1 + down(n - 1)\n", asserting("assert candidate(980) == 980")),
    "too deep a recursion": ("def down(n):\n", "down",
        "    return 0 if n == 0 else 1 + down(n - 1)\n", asserting("assert candidate(999) == 999")),
}  # fmt: skip


@pytest.fixture(scope="module")
def plain_verdicts():
    """What plain CPython says: prompt, body, test and call as one program, in another process."""
    script = (
        "import json, sys\n"
        "for row in json.load(sys.stdin):\n"
        "    sys.setrecursionlimit(1000)\n"
        "    try:\n"
        "        exec(row, {})\n"
        "        print('correct')\n"
        "    except Exception as error:\n"
        "        print(type(error).__name__)\n"
    )
    rows = [f"{p}{b}\n{t}\ncheck({name})\n" for p, name, b, t in HONEST.values()]
    run = subprocess.run(
        [sys.executable, "-c", script], input=json.dumps(rows), capture_output=True, text=True
    )
    return dict(zip(HONEST, run.stdout.split(), strict=True))


@pytest.mark.parametrize("name", HONEST)
def test_honest_solutions_get_the_verdict_of_plain_python(sandbox, plain_verdicts, name):
    prompt, entry_point, body, test = HONEST[name]
    item = Completion("T", prompt, entry_point, test)
    answers = [complete(prompt, body), f'"""Mine."""\n\n{prompt}{body}']
    for got in grade_answers(sandbox, [(item, answer) for answer in answers]):
        assert (got.reason or got.outcome) == plain_verdicts[name]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        # What is repeated from the prompt is the prompt's, however it is laid out.
        (POINT.replace("class Point:", "class Point:  # a pair\n    'Doc.'\n"), "correct"),
        (POINT.replace("\n", "\r\n"), "correct"),
        ("import dataclasses; " + POINT, "correct"),
        ("def mirror(p):\n", "correct"),  # its definitions are there without it, too
        ("ONE = 1\n" + POINT, "correct"),
        # What is altered is the answer's own, and so is what stands behind a name bound anew.
        (POINT.replace("y: int", "y: int = 0"), "TypeError"),
        ("Point = int\n" + POINT, "TypeError"),
    ],
)
def test_definitions_of_the_prompt_that_an_answer_repeats_are_run_once(sandbox, answer, expected):
    test = asserting("assert candidate(Point(1, 2)) == Point(2, 1)")
    item = Completion("T", POINT, "mirror", test)
    (got,) = grade_answers(sandbox, [(item, f"{answer}    return Point(p.y, p.x)\n")])
    assert (got.reason or got.outcome) == expected


def test_a_prompt_may_break_off_inside_its_function(sandbox):
    prompt = POINT + "    if p.x == p.y:\n"
    body = "        return p\n    return Point(p.y, p.x)\n"
    test = asserting("assert candidate(Point(1, 2)) == Point(2, 1)")
    item = Completion("T", prompt, "mirror", test, reference=body)
    assert failing_references(sandbox, [item]) == {}


EVIL = {
    "methods of the prompt's class": "Point.__eq__ = lambda s, o: True\n    return p",
    "the same, as a method goes": "setattr(Point, '__eq__', lambda s, o: True)\n    return p",
    "the same, with its import": "return p\n\nPoint.__eq__ = lambda s, o: True",
    "methods, by a built-in class": "Point.__eq__ = str\n    return p",
    "methods, by another of its own": "Point.__eq__ = Point.__init__\n    return p",
    "a method, taken away": "del Point.__eq__\n    return p",
    "a class above it": "Point.__bases__ = (int,)\n    return p",
    "a class of the same name": "return Point()\n\nclass Point:\n    __eq__ = lambda s, o: True",
    "a class below it": "class Q(Point):\n        __eq__ = lambda s, o: True\n    return Q(0, 0)",
    "an attribute": (
        "class E:\n        __eq__ = lambda s, o: True\n    p.x = p.y = E()\n    return p"),
    "an attribute of a subclass": (
        "class E(int):\n        __eq__ = lambda s, o: True\n    p.x = p.y = E()\n    return p"),
    "its class": (
        "class E:\n        __eq__ = lambda s, o: True\n    p.__class__ = E\n    return p"),
    "its names": (
        "class D(dict):\n        get = lambda s, k: 0\n    p.__dict__ = D(x=2, y=1)\n    return p\n"
        "    Point"),
    "a late change": (
        "yield p\n    Point.__eq__ = lambda s, o: True\n    yield p"),
    "a standard class": (
        "import fractions\n    fractions.Fraction.__eq__ = lambda s, o: True\n"
        "    return fractions.Fraction(1)"),
    "names by a look-up": "getattr(mirror, '__globals__')\n    return p",
    "names by a pattern": "match mirror:\n        case object(__code__=c): pass\n    return p",
    "names by a path": (
        "import operator\n    operator.attrgetter('__code__.co_consts')(mirror)\n    return p"),
}  # fmt: skip


@pytest.mark.parametrize("name", EVIL)
def test_a_solution_decides_no_comparison_by_the_prompts_classes(sandbox, name):
    test = asserting(
        "got = candidate(Point(1, 2))",
        "if hasattr(got, '__next__'):",
        "    next(got), next(got)",
        "assert got == Point(2, 1)",
    )
    item = Completion("T", POINT, "mirror", test)
    (got,) = grade_answers(sandbox, [(item, f"{POINT}    {EVIL[name]}\n")])
    assert got.outcome == "wrong" and got.reason in {
        "AssertionError", "RuntimeError", "TypeError", "forbidden_name",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "as_input", "as_output"),
    [
        ("1, 2", "correct", "wrong"),
        ("b=4, a=-1", "correct", "no_literal"),
        ("1.5, 1.5", "correct", "wrong"),
        ("3", "TypeError", "correct"),
        ("3.0", "TypeError", "correct"),
        ("[1], [2]", "wrong", "wrong"),
        ("1) or (True", "no_literal", "no_literal"),
        ("1)(2", "no_literal", "no_literal"),
        ("1), f(2", "no_literal", "no_literal"),
        ("type('E', (), {'__eq__': 1})(), 2", "forbidden_name", "no_literal"),
        ("", "TypeError", "no_literal"),
        ("[" * 3000, "no_literal", "no_literal"),
    ],
)
def test_predictions_are_values_compared_outside(sandbox, answer, as_input, as_output):
    code = "def f(a, b):\n    return a + b"
    got = grade_answers(
        sandbox,
        [(Prediction("x", kind, code, "1, 2", "3"), answer) for kind in ("input", "output")],
    )
    assert [g.reason or g.outcome for g in got] == [as_input, as_output]


ALIASED = "def f(rows):\n    rows[0].append(1)\n    return rows"
GLOBAL = "table = {'a': 1}\n\ndef f(x, *more):\n    return table.get(x)"
PREDICATE = "def f(xs, keep):\n    return [x for x in xs if keep(x)]"


@pytest.mark.parametrize(
    ("code", "given", "output", "expected"),
    [
        ("def f(s):\n    return len(s)", "'a' * 13", "13", "correct"),
        ("def f(s):\n    return len(s)", "'a' * 100_000", "100000", "correct"),
        ("def f(d):\n    return sorted(d)", "dict(a=1, b=2)", "['a', 'b']", "correct"),
        ("def f(xs):\n    return xs[-1]", "range(1, 10)", "9", "correct"),
        ("def f(xs):\n    return xs", "sorted([3, 1])", "[1, 3]", "correct"),
        ("def f(s, t):\n    return s + t", "'$78'.upper(), '$'", "'$78$'", "correct"),
        ("def f(*xs, k):\n    return xs, k", "*[1, 2], **{'k': -3}", "((1, 2), -3)", "correct"),
        ("def f(x):\n    return x > 10**400", "1e999", "True", "correct"),
        ("def f(**named):\n    return named", "größe=1", "{'größe': 1}", "correct"),
        (PREDICATE, "[0, 3], lambda x: x < 2", "[0]", "correct"),
        (PREDICATE, "iter([0, 3]), bool", "[3]", "correct"),
        (PREDICATE, "[0, 3], 2", "[3]", "TypeError"),
        ("xs = [1, 2]\n\ndef f(a):\n    return a", "xs[:]", "[1, 2]", "correct"),
        ("def g(x):\n    return x\n\ndef f(h):\n    return h(2)", "g", "2", "correct"),
        ("class P:\n    n = 5\n\ndef f(p):\n    return p.n", "P()", "5", "correct"),
        (ALIASED, "[[]] * 2", "[[1], [1]]", "correct"),
        (ALIASED, "[[], []]", "[[1], []]", "correct"),
        ("def f():\n    return 1", "", "1", "correct"),
        ("def f(x):\n    return x", "missing", "1", "NameError"),
        ("def f(x):\n    return x", "1 / 0", "1", "ZeroDivisionError"),
        ("def f(x):\n    return x", "1 +", "1", "no_literal"),
        # Evaluated beside the program, an answer must not reach it.
        (GLOBAL, "'b'", "5", "wrong"),
        (GLOBAL, "(table.update(b=5), 'b')[1]", "5", "wrong"),
        (GLOBAL, "(table.update(b=5), 'b')[1], lambda: 0", "5", "wrong"),
        (GLOBAL, "(table.update(b=5), 'b')[1], range(table['a'])", "None", "correct"),
        (GLOBAL, "f.__init__ and 'b', bool", "5", "forbidden_name"),
        (PREDICATE, "[_ for _ in range(2)], lambda _: _", "[1]", "correct"),
        ("def f(x):\n    return (", "x", "1", "syntax_error"),
        (GLOBAL, "(globals().update(table={'b': 5}), 'b')[1], bool", "5", "forbidden_name"),
        (GLOBAL, "(table := {'b': 5}) and 'b', bool", "5", "forbidden_name"),
        (GLOBAL, "f.__globals__.update(table={'b': 5}) or 'b', bool", "5", "forbidden_name"),
        (GLOBAL, "__import__('json') and 'b', bool", "5", "forbidden_name"),
    ],
)
def test_arguments_that_are_expressions_are_evaluated_inside(
    sandbox, code, given, output, expected
):
    item = Prediction("x", "input", code, given, output)
    (got,) = grade_answers(sandbox, [(item, given)])
    assert (got.reason or got.outcome) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("sorted([3, 1])  # as a list", "correct"),
        ("[1] + [3]", "correct"),
        ("dict(a=1)", "wrong"),
        ("f(0)", "no_literal"),
        ("range(3)", "no_literal"),
        ("[1, 3", "no_literal"),
        ("1e999", "no_literal"),
        ("type('E', (), {'__eq__': lambda s, o: True})()", "no_literal"),
    ],
)
def test_an_output_that_is_an_expression_sees_nothing_of_the_program(sandbox, answer, expected):
    item = Prediction("x", "output", "def f(x):\n    return [1, 3]", "0", "[1, 3]")
    (got,) = grade_answers(sandbox, [(item, answer)])
    assert (got.reason or got.outcome) == expected


def test_no_answer_raises(sandbox):
    answers = [
        "[" * 3000, "9**9**9", "0x" + "f" * 5000, "1+" * 3000 + "1", "\x00", "\ud800", "(yield)",
        "await x", "f'{1!r}'", "x=1, x=2", "**{'a': 1}, **{'a': 2}", "1;2", "\\", "_call_(1)",
        "float('nan')", "(lambda xs: xs.append(xs) or xs)([])", "exit()",
    ]  # fmt: skip
    items = (OUT, IN, WHOLE)
    got = grade_answers(sandbox, list(itertools.product(items, answers)))
    assert all(grade.outcome != "correct" and grade.reason for grade in got)


def test_a_program_that_returns_what_equals_everything_is_wrong(sandbox):
    code = "class E:\n    __eq__ = lambda s, o: True\n\ndef f(a):\n    return E()"
    (got,) = grade_answers(sandbox, [(Prediction("x", "input", code, "1", "3"), "1")])
    assert got.reason == "unsupported_value"


def test_items_whose_own_answer_fails_here_are_named(tmp_path, sandbox):
    rows = [
        HUMAN[0] | {"canonical_solution": "    import numpy\n    return 3 * n\n"},
        HUMAN[1],
        HUMAN[0] | {"task_id": "T/2", "canonical_solution": "    return 4 * n\n"},
    ]
    suite = load_suite(write(tmp_path / "s.jsonl", rows))
    assert failing_references(sandbox, suite.items) == {
        "T/0": "forbidden_import",
        "T/2": "AssertionError",
    }
    rows = [CRUX[0], CRUX[1] | {"output": "'xy'"}, CRUX[2] | {"input": "object()"}]
    suite = load_suite(write(tmp_path / "s.jsonl", rows))
    assert failing_references(sandbox, suite.items) == {"b": "wrong", "c": "TypeError"}


class Failing:
    """A sandbox that fails itself so many times before it gives a result."""

    def __init__(self, times):
        self.times, self.calls = times, 0

    def submit_batch(self, jobs):
        self.calls += 1
        futures = [Future() for _ in jobs]
        for future in futures:
            broken = self.calls <= self.times
            future.set_result(Result("sandbox_failure") if broken else Result("ok", 3))
        return futures


def test_a_failure_of_the_sandbox_is_tried_again_and_never_a_grade():
    item = Prediction("x", "input", "def f(a): return a", "3", "3")
    assert grade_answers(Failing(2), [(item, "3")])[0].outcome == "correct"
    with pytest.raises(RunError, match="failed 3 times on an answer to x"):
        grade_answers(Failing(3), [(item, "3")])
    assert grade_answers(Failing(0), []) == []
