"""Random programs `def f(...)` for the sandbox: what models write, and every corner of Python.

`draw(rng)` gives one. Most come from a grammar of what models write; the others from templates over
the syntax, from the methods of the built-in types, and from the signatures of all that programs may
import. A program shows what it got as a plain value, addresses cut off.
"""

# ruff: noqa: E501 (a program stays on its line)

import builtins
import encodings.aliases
import importlib
import inspect
import itertools
import random
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from azr.sandbox.modules import ALLOWED, FACADES
from tests.templates import SHELL, SYNTAX


@dataclass(frozen=True, slots=True)
class Program:
    """`kind` names what it tries; `is_pure` says that its value depends on its arguments alone."""

    kind: str
    code: str
    args_text: str
    is_pure: bool = True


# ---- What models write --------------------------------------------------------------------------

GRAMMAR = {
    "int": ["n", "$N", "len($str)", "len($ints)", "sum($ints)", "($int + $int)", "($int - $int * $N)", "($int % $N)",
            "($int // $N)", "abs($int)", "max($ints, default=$N)", "min($ints + [$N])", "$str.count($char)", "$str.find($word)",
            "ord($char)", "d.get($str, $int)", "(1 if $bool else $int)", "$ints.count($int)", "($int ^ $int)", "($int & 255)",
            "sum(1 for w in $words if w.islower())", "int(str($int))", "len(set($str))", "pow($int, 2, 97)", "round($int / 7)",
            "($int >> 1)", "bisect.bisect([1, 3, 5], $int)", "math.gcd($int, 12)", "functools.reduce(lambda a, b: a * 31 % 1009 + b, $ints, $N)",
            "Counter($str)[$char]", "int($str or 0, 36) % 1000", "(m.start() if (m := re.search($word, $str)) else -1)"],
    "str": ["s", "$word", "$text", "($str + $str)", "$str.upper()", "$str.strip()", "$str[::-1]", "$str[$N:]", "''.join($words)", "$str.replace($char, $word)",
            "' '.join(sorted($words))", "f'{$int:>{$N}}'", "$str.title()", "str($int)", "($words or [''])[0]", "''.join(c for c in $str if c.isalpha())",
            "$str.zfill($N)", "chr(97 + $int % 26)", "($str if $bool else $str)", "''.join(map(str, $ints))", "$str.center(9, '*')", "repr($str)", "$str.swapcase()",
            "bin($int)[2:]", "re.sub('[aeiou]', lambda m: m[0].upper(), $str)", "('%s-%d' % ($word, $int))", "'{:.2f}|{!r}'.format($int / 8, $str)",
            "textwrap.shorten($str, 12)", "json.dumps([$int, $str])", "$str.translate(str.maketrans('abc', 'xyz'))", "''.join(k * v for k, v in sorted(Counter($word).items()))"],
    "ints": ["xs", "$list", "sorted($ints)", "[v * $N for v in $ints]", "[v for v in $ints if v % 2 == 0]", "list(range($N))", "($ints + $ints)", "$ints[::-1]",
             "$ints[$N:]", "[len(w) for w in $words]", "[ord(c) for c in $str]", "list(map(abs, $ints))", "[i for i, c in enumerate($str) if c in 'aeiou']",
             "list(itertools.accumulate($ints))", "[a + b for a, b in zip($ints, $ints)]", "sorted(set($ints))", "list(d.values())", "heapq.nsmallest(3, $ints)",
             "[divmod(v, 3)[1] for v in $ints]", "[*$ints, $int]", "list(filter(None, $ints))", "list(collections.deque($ints, 3))"],
    "words": ["ws", "$list_of_words", "$str.split()", "sorted($words)", "list($str)", "[w.upper() for w in $words]", "[w for w in $words if len(w) > 2]", "$str.split($char)",
              "list(d)", "[str(v) for v in $ints]", "re.findall('[a-z]+', $str)", "[''.join(p) for p in itertools.permutations($word[:3])]", "sorted($words, key=len)",
              "[k for k, _ in itertools.groupby($str)]", "[a + b for a, b in itertools.product($word[:2], $word[:2])]", "$str.partition($char)[::2]", "list(dict.fromkeys($words))",
              "[w for w, _ in Counter($words).most_common(2)]", "$str.splitlines()", "list(string.ascii_lowercase[:$N])"],
    "bool": ["b", "$int > $int", "$char in $str", "$int in $ints", "$str.isdigit()", "not $bool", "$int == $int", "($bool and $bool)", "any(v > $N for v in $ints)",
             "all(map(str.isalpha, $words))", "$str < $str", "$str.startswith($word)", "$ints == sorted($ints)", "isinstance($int, int)"],
    "statement": ["n = $int", "s = $str", "xs = $ints", "ws = $words", "b = $bool", "xs.append($int)", "d[$str] = $int", "n += $int", "for v in $ints[:9]:\n        n += v % 7",
                  "if $bool:\n        s = $str\n    else:\n        n = $int", "for i, c in enumerate($str[:9]):\n        d[c] = d.get(c, 0) + i", "while n > 50:\n        n //= 2",
                  "try:\n        n = $int // $int\n    except ZeroDivisionError:\n        n = -1", "ws.insert(0, $word)", "xs.sort(reverse=$bool)", "for w in $words[:9]:\n        if w == $word: continue\n        s += w[:1]",
                  "a, *rest = $ints + [1]\n    n = a + len(rest)", "print(n, s)", "xs[0:1] = $list", "if (k := $int) > $N:\n        xs = xs[:k]", "d = {k: v for k, v in sorted(d.items())}",
                  "g = lambda v, w=$N: v * w\n    n = g($int)", "def h(t):\n        nonlocal n\n        n += len(t)\n        return t * 2\n    s = h($str)", "try:\n        n = xs[$int]\n    except IndexError as e:\n        s = str(e)",
                  "try:\n        n = int($str)\n    except ValueError as e:\n        ws.append(str(e))", "q = collections.deque(xs)\n    q.rotate($N)\n    xs = list(q)", "assert n != 12345, s", "n = d.pop($str, 0)",
                  "d = dict(zip($words, $ints))", "t = collections.defaultdict(list)\n    for w in $words[:9]:\n        t[len(w)].append(w)\n    d = {str(k): len(v) for k, v in t.items()}"],
}  # fmt: skip
"""Expressions by type over the variables n, s, xs, ws, d and b; the first two hold no others."""

PRELUDE = "import bisect, collections, functools, heapq, itertools, json, math, re, string, textwrap\nfrom collections import Counter\n"
FRAMES = (
    ("def f(n, s, xs, ws):\nBODY", False),
    ("from typing import Any, List, Optional\ndef f(n: int, s: str, xs: List[int], ws: Optional[List[str]] = None) -> Any:\n    \"\"\"Solves it.\n\n    >>> f(1, 'a', [], [])\n    \"\"\"\nBODY", False),
    ("class Solution:\n    @staticmethod\n    def solve(n, s, xs, ws):\nBODYdef f(*args): return Solution().solve(*args)\n", True),
    ("def solve(n, s, xs, ws):\nBODYdef f(n, *args):\n    try:\n        return solve(n, *args)\n    except (ValueError, TypeError, IndexError) as error:\n        return f'{type(error).__name__}: {error}'\n", False),
    ("@functools.lru_cache(maxsize=None)\ndef fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)\ndef f(n, s, xs, ws):\n    n = fib(n + $N)\nBODY", False),
    ("def walk(xs, depth=0):\n    if len(xs) < 2 or depth > 5: return xs\n    half = len(xs) // 2\n    return walk(xs[half:], depth + 1) + walk(xs[:half], depth + 1)\ndef f(n, s, xs, ws):\n    xs = walk(xs)\nBODY", False),
    ("class Box:\n    count = 0\n    def __init__(self, *items): self.items = list(items); Box.count += len(items)\n    def __len__(self): return len(self.items)\n    def __iter__(self): yield from self.items\ndef f(n, s, xs, ws):\n    xs = sorted(Box(*xs, n, $N), key=lambda v: (v % 3, v))\nBODY", False),
)  # fmt: skip
"""Programs around a body, which is nested deeper in some."""

RESULTS = ("$int", "$str", "$ints", "$words", "($int, $str)", "d", "{'k': $ints}", "xs", "$bool")
ARGS = "$N, $text, $list, $list_of_words"

TEXTS = (
    "",
    "a",
    "Hello World",
    "aaa bbb",
    "a,b,,c",
    "3.14",
    "-12",
    " pad ",
    "été",
    "ß",
    "İx",
    "日本語",
    "😀!",
    "\x00\x7f",
    "line\nnext\r\n",
    "\ud800",
    "ǆ",
    "e\u0301",
    "[x](y)",
    "%d {0}",
    "١٢",
)


def grown(rng: random.Random, text: str, depth: int) -> str:
    """Replaces each `$name` by a word of that kind, or by an expression that is grown in turn."""

    def grow(match: re.Match[str]) -> str:
        name = match[1]
        if name in TERMINALS:
            return TERMINALS[name](rng)
        choices = GRAMMAR[name]
        return grown(rng, rng.choice(choices if depth > 0 else choices[:2]), depth - 1)

    return re.sub(r"\$([A-Z]|[a-z_]+)", grow, text)


def word(rng: random.Random) -> str:
    return "".join(rng.choices("abcdefgxyz", k=rng.randint(1, 6)))


TERMINALS = {
    "N": lambda rng: str(rng.randint(1, 9)),
    "M": lambda rng: str(rng.randint(-99, 999)),
    "B": lambda rng: str(rng.choice((1, -1)) * rng.getrandbits(rng.choice((8, 31, 64, 65, 300, 3000)))),
    "F": lambda rng: repr(rng.choice((0.0, -0.0, 0.1, 1.5, -2.75, 1e16, 1e-7, 1e300, 123456.789, rng.random()))),
    "I": lambda rng: "xyz"[rng.randrange(3)] + rng.choice(("", "é", "ß", "名", "_1", "π", "ﬁ")),
    "char": lambda rng: repr(rng.choice("abcxyz ,e")),
    "word": lambda rng: repr(word(rng)),
    "text": lambda rng: repr(rng.choice(TEXTS)),
    "list": lambda rng: str([rng.randint(-9, 30) for _ in range(rng.randint(0, 6))]),
    "list_of_words": lambda rng: str([word(rng) for _ in range(rng.randint(0, 4))]),
}  # fmt: skip


def model_like(rng: random.Random) -> Program:
    """A function of a few statements, as models write them."""
    lines = [grown(rng, rng.choice(GRAMMAR["statement"]), 3) for _ in range(rng.randint(1, 6))]
    lines += [f"return {grown(rng, rng.choice(RESULTS), 3)}"]
    body = "".join(f"    {line}\n" for line in ["d, b = {'a': 1}, False", *lines])
    frame, is_nested = rng.choice(FRAMES)
    code = frame.replace("BODY", textwrap.indent(body, "    ") if is_nested else body)
    return Program("model", PRELUDE + grown(rng, code, 3), grown(rng, ARGS, 0))


# ---- Templates ------------------------------------------------------------------------------------

TEMPLATES = {"syntax": SYNTAX, "shell": SHELL}
STATEFUL = re.compile(r"^(seen|out|n) = |setrecursionlimit|cache_info|global ", re.M)
"""In a template: what the first call leaves may change the second."""

SYS_NAMES = [name for name in dir(sys) if name != "exit"]
ABSENT = ("numpy", "os", "random", "no_such_module", "math.nothing", "_nothing", "pandas")
LIBRARY = [name for name in (*ALLOWED * 2, *FACADES) if name != "__future__"]
OFTEN = ("math", "collections", "itertools", "functools", "re", "string", "heapq", "operator")
TERMINALS |= {
    "sysname": lambda rng: rng.choice(SYS_NAMES),
    "module": lambda rng: rng.choice(LIBRARY),
    "absent": lambda rng: rng.choice(ABSENT),
}

CALLS = (*("$N", "$text", "$list", "{'k': $N, 'z': None}") * 3, "0", "None", "x=$N", "$N, $N", "", "(1, -2.5)", "{1, 2}", "b'a'", "$B", "-1e-7", "[[$list], {'a': (True,)}]", "'é'")  # fmt: skip
"""Texts of arguments; most give one."""


def from_template(rng: random.Random, kind: str, index: int) -> Program:
    code = grown(rng, TEMPLATES[kind][index], 3) + "\n"
    args_text = grown(rng, rng.choice(CALLS), 0)
    is_pure = kind == "syntax" and not STATEFUL.search(code)
    return Program(f"{kind} {index}", code, args_text, is_pure)


# ---- Calls: built-in types, modules, codecs, formats, long integers ------------------------------

SHOW = """\
def show(v, depth=0):
    if v is None or type(v) in (bool, int, str, bytes): return v
    if type(v) is float: return repr(v)
    if type(v) in (list, tuple) and depth < 5: return [show(w, depth + 1) for w in v]
    if type(v) is dict and depth < 5: return {repr(k).split(' at 0x')[0]: show(w, depth + 1) for k, w in v.items()}
    if type(v) in (set, frozenset): return [type(v).__name__, *sorted(map(repr, v))]
    if hasattr(type(v), '__next__'): return [type(v).__name__, [show(w, depth + 1) for w, _ in zip(v, range(9))]]
    return [type(v).__name__, repr(v).split(' at 0x')[0]]
def tried(*calls):
    got = []
    for call in calls:
        try: got.append(show(call()))
        except Exception as e: got.append([type(e).__name__, str(e).split(' at 0x')[0]])
    return got
"""

POOLS = {
    "int": ["$N", "$N", "$M", "0", "-1", "$B", "True"],
    "number": ["$N", "$M", "$F", "$F", "0", "$B", "-1.5", "float('inf')"],
    "complex": ["($F * 1j)", "complex($F, $F)", "$N", "$F", "1j"],
    "str": ["$word", "$text", "''", "'a'", "'ab cab'", "$char"],
    "char": ["'a'", "'é'", "'٣'", "'Ⅷ'", "'½'", "'中'", "'\\u0301'", "'\\U0001F600'", "$char"],
    "form": ["'NFC'", "'NFKD'", "'NFD'"],
    "bytes": ["b''", "b'ab cab'", "b'\\xff\\x00'", "b'12'", "$word.encode()", "bytearray(b'abc')"],
    "list": ["$list", "$list", "$list_of_words", "[$F, $N]", "[(1, 'a'), (2, 'b')]", "range($N)", "'abca'", "()", "[[1, 2], [3]]", "iter($list)", "{'a': 1, 'b': $N}"],
    "dict": ["{'a': $N, 'b': 2}", "{}", "{1: [$word]}", "{'b': None}"],
    "set": ["{1, $N}", "set()", "{'a'}", "frozenset($list)"],
    "function": ["len", "str", "lambda v: v", "lambda *a: a", "abs", "int", "lambda a, b=1: a", "None", "max"],
    "type": ["int", "str", "list", "list[int]", "dict", "ValueError", "int | None", "type"],
    "format": ["'<i'", "'>hh'", "'3s'", "'d'", "'?B'", "'q'", "'i'", "'b'", "'u'"],
    "pattern": ["'a+'", "'(a)(b)?'", "r'\\w+'", "'[a-c]'", "''", "r'(?P<x>\\d)'", "'('", "'a|b'", "b'a'"],
    "json": ["'[1, 2.5, null]'", "'{\"a\": [true]}'", "'{'", "'\"\\\\u00e9\"'", "'NaN'", "'12'"],
    "file": ["io.StringIO($text)", "io.BytesIO(b'ab')", "io.StringIO('[1]')"],
    "object": ["None", "...", "object()", "(1, 'a')", "$F", "$N", "$word", "$list", "slice(1, 3)", "1j", "NotImplemented"],
}  # fmt: skip
KINDS = [
    (r"func|function|predicate|key$|factory|callback|callable|method|^f$|wrapper|deco", "function"),
    (r"iterable|iterator|seq|data|^a$|heap|^p$|^q$|list|args|values|points|bases|names|fields", "list"),
    (r"pattern", "pattern"), (r"form$", "form"), (r"format|fmt|typecode", "format"), (r"chr|char|unichr", "char"),
    (r"string|text|^s$|name|prefix|sep|repl|template|width|unistr|msg|attr|module|doc", "str"),
    (r"^n$|^k$|^i$|count|times|lo|hi|start|stop|index|digits|maxlen|num|base|flags|size|step|r$|max", "int"),
    (r"^x$|^y$|value|mu|sigma|real|imag|other|^b$|^m$", "number"), (r"mapping|dict|kw|namespace|^d$", "dict"),
    (r"cls|type|tp|^t$|class|origin|hint", "type"), (r"buffer|bytes", "bytes"), (r"^fp$|file|stream", "file"),
]  # fmt: skip
"""What a parameter's name says of its argument; the first that matches."""

MODULE_POOLS = {"math": "number", "cmath": "complex", "unicodedata": "char", "decimal": "number", "fractions": "number", "bisect": "list", "heapq": "list",
                "itertools": "list", "json": "json", "json.decoder": "json", "re": "str", "struct": "format", "textwrap": "str", "statistics": "list",
                "operator": "number", "typing": "type", "array": "format", "string": "str"}  # fmt: skip
RECEIVERS = {
    str: ("str", ("str", "int")), bytes: ("bytes", ("bytes", "int")), bytearray: ("bytes", ("bytes", "int")), list: ("list", ("int", "list")),
    dict: ("dict", ("object", "dict")), set: ("set", ("set", "list")), frozenset: ("set", ("set", "list")), tuple: ("list", ("int", "list")),
    int: ("int", ("int", "number")), float: ("number", ("number", "int")), complex: ("complex", ("complex", "number")), bool: ("int", ("int",)),
    range: ("int", ("int", "list")), memoryview: ("bytes", ("int", "format")), slice: ("int", ("int",)), enumerate: ("list", ("int",)),
    object: ("object", ("object", "str")), BaseException: ("object", ("object", "str")), type: ("object", ("type", "str")), property: ("function", ("function",)),
}  # fmt: skip
UNCALLED_METHODS = {
    "__hash__",
    "__sizeof__",
    "__reduce__",
    "__reduce_ex__",
    "__subclasses__",
    "__flags__",
}
"""Their results are those of one process."""


def public(module: str) -> list[str]:
    """Returns the names of a module's own functions and classes."""
    found = importlib.import_module(module)
    names = getattr(found, "__all__", None) or [n for n in dir(found) if not n.startswith("_")]
    return [n for n in names if callable(getattr(found, n, None))]


def drawn(rng: random.Random, kind: str) -> str:
    return grown(rng, rng.choice(POOLS[kind]), 0)


def argument(rng: random.Random, name: str, default: str) -> str:
    if rng.random() < 0.1:
        return drawn(rng, rng.choice([*POOLS]))
    return drawn(rng, next((kind for text, kind in KINDS if re.search(text, name)), default))


def arguments(rng: random.Random, function: object, default: str) -> str:
    """Returns argument texts by the names of the parameters, or a few of the default kind."""
    try:
        parameters = [*inspect.signature(function).parameters.values()]
    except (ValueError, TypeError):
        return ", ".join(argument(rng, "", default) for _ in range(rng.randint(0, 3)))
    texts = []
    for p in parameters:
        if p.name in ("self", "cls") or p.kind is p.VAR_KEYWORD:
            continue
        if p.kind is p.VAR_POSITIONAL:
            texts += [argument(rng, p.name, default) for _ in range(rng.randint(0, 3))]
        elif p.default is p.empty or rng.random() < 0.4:
            text = argument(rng, p.name, default)
            is_keyword = p.kind is p.KEYWORD_ONLY or (
                p.default is not p.empty and rng.random() < 0.5
            )
            texts.append(
                f"{p.name}={text}" if is_keyword and p.kind is not p.POSITIONAL_ONLY else text
            )
    first = [t for t in texts if not re.match(r"\w+=[^=]", t)]
    return ", ".join(first + [t for t in texts if t not in first])


def call(rng: random.Random, kind: type, name: str, default: str) -> str:
    """Returns the text of an attribute of that type, called if it can be."""
    found = getattr(kind, name, None)
    return f"{name}({arguments(rng, found, default)})" if callable(found) else name


def tries(kind: str, calls: list[str], imports: str = "", *, is_pure: bool = True) -> Program:
    body = ", ".join(f"lambda: {call}" for call in calls)
    return Program(kind, f"{imports}{SHOW}def f(x): return tried({body})\n", "1", is_pure)


def library(rng: random.Random, module: str, name: str) -> Program:
    """Calls of one function, or of one class and methods of its instances."""
    found = getattr(importlib.import_module(module), name)
    default = MODULE_POOLS.get(module, "object")
    calls = [f"m.{name}({arguments(rng, found, default)})" for _ in range(3)]
    methods = [n for n in dir(found) if n[:1] != "_"] if isinstance(found, type) else []
    for made in calls[: 3 * bool(methods)]:
        calls.append(f"{made}.{call(rng, found, rng.choice(methods), default)}")
    return tries(f"{module}.{name}", calls, f"import io, {module} as m\n", is_pure=False)


def method(rng: random.Random, kind: type, name: str) -> Program:
    """Calls of a method of a built-in type, an operator's among them."""
    source, given = RECEIVERS[kind]
    made = [f"{kind.__name__}({drawn(rng, source)})" for _ in range(3)]
    calls = [f"{receiver}.{call(rng, kind, name, rng.choice(given))}" for receiver in made]
    return tries(f"{kind.__name__}.{name}", calls)


UNCALLED = ("breakpoint", "exit", "quit", "hash", "id", "globals", "locals", "vars")
"""Builtins whose results are those of a debugger, a runner or one process."""

BUILTINS = [n for n in dir(builtins) if callable(getattr(builtins, n)) and n[0] != "_" and n not in UNCALLED]  # fmt: skip


def builtin(rng: random.Random, name: str) -> Program:
    calls = [
        f"{name}({arguments(rng, getattr(builtins, name), rng.choice(('list', 'int', 'str')))})"
        for _ in range(3)
    ]
    return tries(f"builtin {name}", calls, "import io\n", is_pure=False)


CODECS = sorted({*encodings.aliases.aliases.values(), "idna", "punycode", "undefined", "raw_unicode_escape", "unicode_escape", "utf_8_sig", "mbcs", "oem"})  # fmt: skip
SPELLINGS = (
    str.upper,
    lambda name: name.replace("_", "-"),
    lambda name: name.replace("_", " "),
    str,
)
ERRORS = ("strict", "ignore", "replace", "backslashreplace", "xmlcharrefreplace", "namereplace", "surrogateescape", "surrogatepass", "nothing")  # fmt: skip


def codec(rng: random.Random, name: str) -> Program:
    """Text to bytes and back in one of the encodings that CPython knows."""
    spelled, text, errors = rng.choice(SPELLINGS)(name), drawn(rng, "str"), rng.choice(ERRORS)
    way = rng.choice((
        f"def f(x): return {text}.encode({spelled!r}, {errors!r})",
        f"def f(x):\n    b = {text}.encode({spelled!r}, 'replace')\n    return b, b.decode({spelled!r}, {errors!r})",
        f"def f(x): return bytes({text}, {spelled!r}), str({drawn(rng, 'bytes')}, {spelled!r}, {errors!r})",
        f"def f(x):\n    try: return {text}.encode({spelled!r})\n    except LookupError: return 'no such'\n    except UnicodeError as e: return [e.start, e.end, e.reason, e.encoding]",
    ))  # fmt: skip
    return Program(f"codec {name}", way + "\n", "1")


def formatted(rng: random.Random) -> Program:
    """Format specifications of numbers and text, and the `%` operator."""

    def spec() -> str:
        parts = (
            ["", "*<", "0>", "=^", ">", "é<"],
            ["", "+", " ", "-"],
            ["", "z"],
            ["", "#"],
            ["", "0"],
            ["", "7", "20"],
            ["", ",", "_"],
            ["", ".0", ".3", ".12"],
            [*"dbxXonceEfFgG%s", ""],
        )
        return "".join(rng.choice(part) if rng.random() < 0.6 else part[0] for part in parts)

    values = (
        "$N",
        "$M",
        "$B",
        "$F",
        "$F",
        "$text",
        "Decimal($word)",
        "Decimal('-0.0001')",
        "Decimal($M) / 7",
        "Fraction($M, 7)",
        "($F * 1j)",
        "True",
    )
    calls = [f"format({grown(rng, rng.choice(values), 0)}, {spec()!r})" for _ in range(3)]
    calls += [
        f"'%{rng.choice(('', '-8', '+', '08', '#', '.3', '5.1'))}{rng.choice('diouxXeEfFgGcrsa%')}' % ({grown(rng, rng.choice(values), 0)},)"
        for _ in range(2)
    ]
    return tries("format", calls, "from decimal import Decimal\nfrom fractions import Fraction\n")


LONG = [
    "str(7 ** $N00)", "len(str(3 ** ($N * 900)))", "int('$N' * ($N * 480))", "int('9' * 4300) % 97", "str(10 ** 4300)", "int('1' * 5000)", "(3 ** 40000 % 7 ** 9000) % 97",
    "divmod(3 ** ($N * 5000), 7 ** ($N * 900))[1] % 10 ** 9", "math.gcd($B * 6, $B * 15)", "math.isqrt(abs($B))", "pow($B, $B, 10 ** 9 + 7)", "pow($M, -1, 1009)", "hex($B)", "($B).bit_length()",
    "$B / $N", "$B // $M", "$B % $M", "float($B)", "int($F)", "round($B, -$N)", "$B ** $N % 1000", "f'{$B:,}'", "f'{$B:_x}'", "int(hex(abs($B)), 16)", "int('zz$N', 36)", "($B).to_bytes(400, 'big', signed=True)[-4:]",
    "int.from_bytes(b'$N' * $N, 'little')", "sum(int(c) for c in str(abs($B)))", "math.factorial($N * 30)", "math.comb($N * 40, $N * 9)", "~$B & 0xFFFF", "$B << $N >> 3", "$B ^ $B", "($B).as_integer_ratio()",
    "str($B)[::-1]", "eval('$N' * 4000) % 7", "1 << $N * 1000 > 10 ** ($N * 300)", "Decimal($B) + 1", "Fraction($B, $N)", "math.log2(abs($B) + 1)", "hash($B)", "$B == float($B)", "len(repr(2 ** ($N * 3000)))", "divmod(-$B, $N)",
]  # fmt: skip


def long_integer(rng: random.Random) -> Program:
    calls = [grown(rng, rng.choice(LONG), 0) for _ in range(4)]
    return tries(
        "long", calls, "import math\nfrom decimal import Decimal\nfrom fractions import Fraction\n"
    )


ALONE = [[()]]
SOURCES = (
    (63, model_like, ALONE),
    (13, from_template, [[("syntax", i) for i in range(len(SYNTAX))]]),
    (1, from_template, [[("shell", i) for i in range(len(SHELL))]]),
    (10, library, [[(module, name) for name in public(module)] for module in (*LIBRARY, *OFTEN * 4)]),
    (5, method, [[(kind, n) for n in dir(kind) if n not in UNCALLED_METHODS] for kind in RECEIVERS]),
    (2, builtin, [[(name,) for name in BUILTINS]]),
    (1, codec, [[(name,) for name in names] for names in (CODECS, encodings.aliases.aliases)]),
    (3, formatted, ALONE),
    (2, long_integer, ALONE),
)  # fmt: skip
"""Weight, source, and groups of what it can be asked for: first a group is drawn, then one of it."""


def draw(rng: random.Random) -> Program:
    """Returns a program, most often as models write them."""
    ((_, source, groups),) = rng.choices(SOURCES, [weight for weight, _, _ in SOURCES])
    return source(rng, *rng.choice(rng.choice(groups)))


def every(rng: random.Random) -> Iterator[Program]:
    """Yields one program of each thing that a source can be asked for."""
    for _, source, groups in SOURCES:
        for wanted in dict.fromkeys(itertools.chain.from_iterable(groups)):
            yield source(rng, *wanted)
