"""Kinds of programs whose result is not a function of their arguments, and programs where it is.

A kind has variants: a random one differs from run to run in a way that a few runs can miss (the
order of a set of two, one bit of a hash), so that many variants measure how many are missed.
"""

# ruff: noqa: E501 (a program stays on its line)

import random
import re
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass

Build = Callable[[random.Random], tuple[str, list[str]]]


@dataclass(frozen=True, slots=True)
class Kind:
    name: str
    is_random: bool
    build: Build


def word(rng: random.Random) -> str:
    return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 8)))


def words(rng: random.Random, count: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found[word(rng)] = None
    return list(found)


def text_kind(name: str, template: str, args: list[str] | None = None, *, many: int = 0) -> Kind:
    """A random kind: in the template and the arguments @W is a word, @A and @B are two different
    ones, @S a list of `many`."""

    def build(rng: random.Random) -> tuple[str, list[str]]:
        a, b = words(rng, 2)
        drawn = {"@W": repr(word(rng)), "@A": repr(a), "@B": repr(b)}
        drawn |= {"@S": repr(words(rng, many or 2)), "@N": str(rng.randint(1, 9))}

        def fill(text: str) -> str:
            return re.sub("@[WABSN]", lambda found: drawn[found[0]], text)

        return fill(template), [*map(fill, args or ["@W", repr(word(rng))])]

    return Kind(name, True, build)


RANDOM = [
    text_kind("list of a set of two", "def f(x): return list({@A, @B})"),
    text_kind("list of a set of three", "def f(x): return list(set(@S))", many=3),
    text_kind("list of a set of eight", "def f(x): return list(set(@S))", many=8),
    text_kind("first of a set", "def f(x):\n    for v in {@A, @B}: return v"),
    text_kind("pop of a set", "def f(x): return {@A, @B}.pop()"),
    text_kind("next of a set", "def f(x): return next(iter(set(@S)))"),
    text_kind("star of a set", "def f(x): return [*{@A, @B}]"),
    text_kind("unpacked set", "def f(x):\n    a, b = {@A, @B}\n    return a"),
    text_kind("joined set", "def f(x): return ','.join({@A, @B})"),
    text_kind("set comprehension", "def f(x): return list({c + 'q' for c in @S})"),
    text_kind("frozenset", "def f(x): return tuple(frozenset(@S))"),
    text_kind("constant set in a loop", "def f(x): return [c for c in {@A, @B}]"),
    text_kind("text of a set", "def f(x): return str({@A, @B})"),
    text_kind("formatted set", "def f(x):\n    s = set(@S)\n    return f'{s}'"),
    text_kind("enumerated set", "def f(x): return {v: i for i, v in enumerate({@A, @B})}"),
    text_kind("set union", "def f(x): return list({@A} | {@B})"),
    text_kind("symmetric difference", "def f(x): return list({@A, @W} ^ {@B, @W})"),
    text_kind("keys united", "def f(x): return list({@A: 1}.keys() | {@B: 2}.keys())"),
    text_kind("items united", "def f(x): return list({@A: 1}.items() | {@B: 2}.items())"),
    text_kind("keys without", "def f(x): return list({@A: 1, @B: 2, 'z': 3}.keys() - ['z'])"),
    text_kind("items without", "def f(x): return list({@A: 1, @B: 2}.items() - {'z': 3}.items())"),
    text_kind(
        "keys in common by a function",
        "import operator\nd = {@A: 1, @B: 2}\ndef f(x): return list(operator.and_(d.keys(), d.keys()))",
    ),
    text_kind(
        "items folded",
        "from functools import reduce\nfrom operator import or_ as g\nd = {@A: 1, @B: 2}\ndef f(x): return list(reduce(g, [d.items()] * 2))",
    ),
    text_kind(
        "keys of a class",
        "from collections.abc import KeysView as K\ndef f(x): return list(K({@A: 1}) | [@B])",
    ),
    text_kind(
        "set of a type", "import typing\ndef f(x): return list(typing.get_origin(typing.Set)(@S))"
    ),
    text_kind("dict from a set", "def f(x): return dict.fromkeys({@A, @B})"),
    text_kind("min by a constant", "def f(x): return min({@A, @B}, key=lambda v: 0)"),
    text_kind(
        "sorted by length",
        "def f(x): return sorted({@A + 'q' * (9 - len(@A)), @B + 'q' * (9 - len(@B))}, key=len)",
    ),
    text_kind(
        "set by getattr", "def f(x): return list(getattr(__builtins__, 'get')('s' + 'et')(@S))"
    ),
    text_kind("set by eval", "def f(x): return list(eval('{' + repr(@A) + ',' + repr(@B) + '}'))"),
    text_kind("list of a set given", "def f(s): return list(s)", ["{@A, @B}"]),
    text_kind("joined set given", "def f(s): return ''.join(s)", ["s={@A, @B}"]),
    text_kind("set given inside", "def f(s): return [*s[0]['a']]", ["[{'a': {@A, (@B, 1)}}]"]),
    text_kind(
        "empty set given",
        "def f(s, t):\n    for w in t: s.add(w)\n    return list(s)",
        ["set ( ), @S"],
    ),
    text_kind("set of bytes", "def f(x): return list({@A.encode(), @B.encode()})"),
    text_kind("set of tuples", "def f(x): return list({(@A, 1), (@B, 2)})"),
    text_kind("hash(x) % 2", "def f(x): return hash(@W) % 2"),
    text_kind("hash > 0", "def f(x): return hash(@W) > 0"),
    text_kind("hash compared", "def f(x): return hash(@A) < hash(@B)"),
    text_kind("hash of bytes", "def f(x): return hash(@W.encode()) & 1"),
    text_kind("hash of a tuple", "def f(x): return hash((@W, 1)) & 1"),
    text_kind(
        "hash by its name",
        "import operator\ndef f(x): return operator.methodcaller('__hash__')(@W) % 2",
    ),
    text_kind(
        "hash by a built name",
        "from operator import attrgetter\ndef f(x): return attrgetter('_' * 2 + 'hash' + '_' * 2)(@W)() % 2",
    ),
    text_kind(
        "hash by a pattern",
        "def f(x):\n    match x:\n        case str(__hash__=h): return h() % 2",
    ),
    text_kind("__hash__", "def f(x): return @W.__hash__() >> 3 & 1"),
    text_kind(
        "order of objects in a set",
        "class C:\n    def __init__(self, n): self.n = n\ndef f(x): return [c.n for c in {C(i) for i in range(4)}]",
    ),
    text_kind(
        "set of two objects",
        "class C:\n    def __init__(self, n): self.n = n\ndef f(x): return [c.n for c in {C(0), C(1)}]",
    ),
    text_kind("id, one bit", "def f(x): return id([x]) >> 6 & 1"),
    text_kind("id compared", "def f(x):\n    a, b = [x], [x]\n    return id(a) < id(b)"),
    text_kind("hash of an object", "def f(x): return hash(object()) >> 3 & 1"),
    text_kind("digit of a lambda", "def f(x): return int(str(lambda: @N)[-3], 16) % 2"),
    text_kind("digit of a generator", "def f(x): return f'{(c for c in x)}'[-3] > '7'"),
    text_kind("digit of a map", "def f(x): return int(('%r' % map(str, @S))[-3], 16) % 2"),
    text_kind("digit of a method", "def f(x): return int(repr([@W].append)[-3], 16) % 2"),
    text_kind(
        "digit of a function in a message",
        "def f(x):\n    try: return {}[f]\n    except KeyError as e: return int(str(e)[-3], 16) % 2",
    ),
    text_kind(
        "digit of a made class's object",
        "def f(x): return int('{}'.format(type('C', (), {})())[-3], 16) % 2",
    ),
    text_kind(
        "memory of copies",
        "import copy\ndef f(x):\n    seen = {}\n    copy.deepcopy([[x]], seen)\n    return min(seen) >> 5 & 1",
    ),
    text_kind("sorted by id", "def f(x): return [v[0] for v in sorted([[1], [2], [3]], key=id)]"),
]


def fixed(name: str, code: str, args: list[str] | None = None) -> Kind:
    """A kind of which two runs cannot give the same."""
    return Kind(name, False, lambda rng: (code, args or ["1", "2"]))


CERTAIN = [
    fixed("id", "def f(x): return id(x) // 16"),
    fixed("id of a new object", "def f(x): return id(object())"),
    fixed("default repr", "class C: pass\ndef f(x): return repr(C())"),
    fixed("repr of a function", "def f(x): return repr(f)"),
    fixed("text of a generator", "def f(x): return str(i for i in [x])"),
    fixed("formatted lambda", "def f(x): return f'{(lambda: x)}'"),
    fixed("repr of a method", "def f(x): return repr([].append)"),
    fixed("hash of a function", "def f(x): return hash(f)"),
    fixed("hash of a text", "def f(x): return hash('text')"),
    fixed("hash of None in a tuple of text", "def f(x): return hash(('a', None))"),
    fixed("set of many words", "def f(x): return list({str(i) for i in range(50)})"),
    fixed("mutable default", "def f(x, seen=[]):\n    seen.append(x)\n    return list(seen)"),
    fixed("mutable default, one input", "def f(x, n=[0]):\n    n[0] += 1\n    return n[0]", ["1"]),
    fixed("dict default", "def f(x, seen={}):\n    seen[x] = len(seen)\n    return seen[x]"),
    fixed("global counter", "n = 0\ndef f(x):\n    global n\n    n += 1\n    return n"),
    fixed(
        "global counter, one input",
        "n = 0\ndef f(x):\n    global n\n    n += 1\n    return n",
        ["1"],
    ),
    fixed("global list", "seen = []\ndef f(x):\n    seen.append(x)\n    return len(seen)"),
    fixed("toggle", "on = False\ndef f(x):\n    global on\n    on = not on\n    return on"),
    fixed("attribute of f", "def f(x):\n    f.n = getattr(f, 'n', 0) + 1\n    return f.n"),
    fixed("generator kept", "g = iter(range(100))\ndef f(x): return next(g)"),
    fixed(
        "generator function kept",
        "def count():\n    i = 0\n    while True:\n        yield i\n        i += 1\ng = count()\ndef f(x): return next(g)",
    ),
    fixed(
        "cycle kept", "import itertools\ng = itertools.cycle('ab')\ndef f(x): return next(g)", ["1"]
    ),
    fixed("count kept", "import itertools\ng = itertools.count()\ndef f(x): return next(g)"),
    fixed("iterator runs dry", "g = iter([1])\ndef f(x): return next(g, 0)"),
    fixed("class attribute", "class C: n = 0\ndef f(x):\n    C.n += 1\n    return C.n"),
    fixed(
        "instance kept",
        "class C:\n    def __init__(self): self.seen = []\nc = C()\ndef f(x):\n    c.seen.append(x)\n    return c.seen",
    ),
    fixed(
        "closure",
        "def make():\n    n = 0\n    def g(x):\n        nonlocal n\n        n += 1\n        return n\n    return g\nf = make()",
    ),
    fixed(
        "cache that remembers the first",
        "import functools\n@functools.lru_cache\ndef g(): return [0]\ndef f(x):\n    g()[0] += 1\n    return g()[0]",
    ),
    fixed(
        "argument kept and changed",
        "kept = []\ndef f(x):\n    kept.append(x)\n    x.append(len(kept))\n    return x",
        ["[1]", "[2]"],
    ),
    fixed(
        "argument of the call before",
        "last = [None]\ndef f(x):\n    last.append(x)\n    return last[-2]",
        ["[1]", "[2]"],
    ),
    fixed(
        "argument changed through a global",
        "first = None\ndef f(x):\n    global first\n    if first is None: first = x\n    first.append(0)\n    return len(x)",
        ["[1]", "[2]"],
    ),
    fixed(
        "exception the second time",
        "n = []\ndef f(x):\n    n.append(x)\n    return 1 // (2 - len(n))",
        ["1", "2"],
    ),
    fixed(
        "another exception each time",
        "n = []\ndef f(x):\n    n.append(x)\n    raise [ValueError, KeyError][len(n) % 2]",
    ),
    fixed(
        "builtins changed",
        "def f(x):\n    __builtins__['n'] = __builtins__.get('n', 0) + 1\n    return n",
    ),
    fixed(
        "module changed",
        "import math\ndef f(x):\n    math.n = getattr(math, 'n', 0) + 1\n    return math.n",
    ),
    fixed(
        "deque kept",
        "from collections import deque\nd = deque([1, 2, 3])\ndef f(x):\n    d.rotate(1)\n    return d[0]",
        ["1"],
    ),
    fixed("heap kept", "import heapq\nh = [1, 2, 3]\ndef f(x): return heapq.heappop(h)"),
    fixed("bytearray kept", "b = bytearray(1)\ndef f(x):\n    b[0] += 1\n    return b[0]"),
    fixed(
        "random state by detour",
        "import statistics\ndef g():\n    for kind in ().__class__.__base__.__subclasses__():\n        if kind.__name__ == 'Random': return kind()\ndef f(x): return g().random()",
    ),
    fixed("gensym by id", "def f(x): return 'v%d' % id(f)"),
]
# Not a result at all: refused when imported.
CLOCKS_AND_CHANCE = ("time", "datetime", "random", "secrets", "uuid", "os", "numpy.random")
REFUSED = [f"import {name}\ndef f(x): return 1" for name in CLOCKS_AND_CHANCE] + [
    "from time import perf_counter\ndef f(x): return perf_counter()",
    "def f(x):\n    import random\n    return random.choice([1, 2])",
    "from os import urandom\ndef f(x): return urandom(1)",
    "def f(x): return __import__('ran' + 'dom').random()",
]

CLEAN_TEMPLATES = [
    "def f(x): return x * @N + @M",
    "def f(x): return sorted(set(str(x) + @W))",
    "def f(x): return {c: (str(x) + @W).count(c) for c in sorted(set(@W))}",
    "def f(x): return set(str(x)) | set(@W)",
    "def f(x): return len({@W, str(x)}) + @N",
    "def f(x): return @W in {@W, 'no'} and x in {@N, @M}",
    "def f(x): return {@N, @M, x}",
    "def f(x): return sum({@N, @M, x})",
    "def f(x): return hash(x) == hash(int(x)) and hash(@N) == @N",
    "def f(x):\n    a = b = [x]\n    return (a is b, id(a) == id(b))",
    "class C:\n    def __init__(self, n): self.n = n\n    def g(self): return self.n * @N\ndef f(x): return C(x).g()",
    "def f(x, seen=None):\n    seen = seen or []\n    seen.append(x)\n    return seen * @N",
    "def f(x):\n    s = 0\n    for i in range(@N): s += i * x\n    return s",
    "def f(x): return [*map(str, range(x % @N))] + list(@W)",
    "def f(x): return 1 // (x % @N)",
    "def f(x): return {@W: x}[str(x)]",
    "import math\ndef f(x): return math.sqrt(x * x + @N) + math.sin(@M)",
    "import functools\n@functools.lru_cache\ndef g(n): return n if n < 2 else g(n - 1) + g(n - 2)\ndef f(x): return g(@N + 10)",
    "import collections\ndef f(x): return dict(collections.Counter(@W + str(x)))",
    "import itertools\ndef f(x): return list(itertools.permutations(@W[:3]))[: @N]",
    "def f(x):\n    try: return int(@W)\n    except ValueError as e: return str(e)",
    "def f(x): return f'{x:>{@N}}|{@W!r}|{x / @M:.3f}'",
    "def f(x): return [x, [x, (@N, @W)], {@W: None}]",
    "import re\ndef f(x): return re.findall('[a-m]+', @W * @N)",
    "from dataclasses import dataclass\n@dataclass\nclass P:\n    a: int\n    b: str = @W\ndef f(x): return repr(P(x))",
    "def f(x):\n    x = [x]\n    x.append(@N)\n    return x",
    "s = {@W, 'a', 'b'}\ndef f(x): return sorted(s, reverse=True) + [x]",
    "from enum import Enum\nclass E(Enum):\n    A = @N\n    B = @W\ndef f(x): return [e.name for e in E]",
]


def clean(count: int, seed: int) -> Iterator[tuple[str, list[str]]]:
    """Yields deterministic programs with their inputs."""
    rng = random.Random(seed)
    for i in range(count):
        code = CLEAN_TEMPLATES[i % len(CLEAN_TEMPLATES)]
        code = code.replace("@N", str(rng.randint(2, 9))).replace("@M", str(rng.randint(10, 99)))
        yield code.replace("@W", repr(word(rng))), [str(rng.randint(0, 50)) for _ in range(3)]
