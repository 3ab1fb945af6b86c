"""Random programs `def f(...)` for the sandbox: what models write, and every corner of Python.

`draw(rng)` gives one. Most come from a grammar of what models write; the others from templates over
the syntax, from the methods of the built-in types, and from the signatures of all that programs may
import. A program shows what it got as a plain value, addresses cut off.
"""

# ruff: noqa: E501 (a program stays on its line)

import builtins
import encodings.aliases
import functools
import importlib
import inspect
import random
import re
import sys
from dataclasses import dataclass

from azr.sandbox.modules import ALLOWED, FACADES


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
    body = [grown(rng, rng.choice(GRAMMAR["statement"]), 3) for _ in range(rng.randint(1, 6))]
    value = grown(
        rng,
        rng.choice(
            ("$int", "$str", "$ints", "$words", "($int, $str)", "d", "{'k': $ints}", "xs", "$bool")
        ),
        3,
    )
    first = "def f(n, s, xs, ws):\n    d, b = {'a': 1}, False\n    "
    code = PRELUDE + first + "\n    ".join([*body, f"return {value}"]) + "\n"
    return Program("model", code, grown(rng, ARGS, 0))


# ---- Syntax -------------------------------------------------------------------------------------

SYNTAX = [
    "def f(x):\n    match x:\n        case 0 | 1: return 'small'\n        case int(v) if v > $N: return v\n        case [a, *b]: return [b, a]\n        case {'k': v, **r}: return (v, r)\n        case str() as t: return t\n        case _: return None",
    "class P:\n    __match_args__ = ('a', 'b')\n    def __init__(self, a, b): self.a, self.b = a, b\ndef f(x):\n    match P(x, $N):\n        case P(int(a), b=$N): return ['n', a]\n        case P([*v], _): return v\n        case P(a): return str(a)",
    "def f(x):\n    $I = $M\n    größe = [$I, x]\n    return größe",
    "π = $F\ndef f(x, *, ñ=$N): return [π, ñ, x]",
    "class Ω:\n    ü = $N\n    def µ(self): return self.ü\ndef f(x):\n    o = Ω()\n    o.ü += 1\n    return [o.µ(), getattr(o, 'µ', 'ascii'), hasattr(o, '\\xb5')]",
    "def f(x): return '\\N{BULLET} \\N{GREEK SMALL LETTER ALPHA}' + f'\\N{LATIN SMALL LETTER E WITH ACUTE}{x!r}' + '\\N{EURO SIGN}'",
    "def f(x): return b'\\x00\\xff' + rb'\\N' + '\\u00e9\\U0001F600'.encode()",
    "def f(x): return f'{x!r:>{$N}}|{x=}|{{}}|{$F:+.3e}|{$M:,}|{$N:#b}|{\"q\"!a}'",
    "def f(x): return f'''{\n x\n}''' f'{[v for v in range($N)]}' f'{(lambda: $N)()}' rf'\\d{x}'",
    "def f(x): return {k: v for k, v in zip($list_of_words, $list)} | {'z': x}",
    "def f(x): return [(i, j) for i in range($N) if i % 2 for j in range(i) if j != $N]",
    "def f(x): return [*$list, *(v for v in $list)], {**{'a': x}, 'b': $N}, {*$list}",
    "def f(x):\n    def g(a, b=2, /, c=3, *d, e, h=$N, **k): return [a, b, c, d, e, h, k]\n    return g(x, $N, e=1), g(*[1, 2, 3, 4], **{'e': 5, 'z': $N})",
    "def f(x):\n    def g(a, /): return a\n    return g(a=x)",
    "def f(x):\n    fs = [lambda i=i: i * $N for i in range(3)] + [lambda: i]\n    i = x\n    return [g() for g in fs]",
    "def f(x):\n    n = 0\n    def g():\n        nonlocal n\n        n += $N\n        return n\n    return [g(), g(), n]",
    "n = $N\ndef g():\n    global n\n    n *= 2\ndef f(x):\n    g()\n    return n",
    "seen = []\ndef f(x, memo={}):\n    seen.append(x)\n    memo[str(x)] = len(seen)\n    return [seen, memo]",
    "def g(n):\n    try:\n        got = yield n\n        while got: got = yield got * $N\n    finally:\n        out.append('done')\n    return 'r'\nout = []\ndef h(n):\n    r = yield from g(n)\n    out.append(r)\ndef f(x):\n    i = h(x)\n    a = [next(i), i.send(2), i.send(3)]\n    try: i.send(0)\n    except StopIteration as e: a.append(e.value)\n    return a, out",
    "def f(x):\n    def g():\n        try: yield 1\n        except ValueError as e: yield str(e)\n    i = g()\n    return [next(i), i.throw(ValueError('$N')), i.close(), list(i), i.gi_frame is None]",
    "async def g(): return $N\ndef f(x):\n    c = g()\n    c.close()\n    return x",
    "async def g(): return $N\ndef f(x):\n    g()\n    return x",
    "async def g(x):\n    async with x: pass\n    return [i async for i in x]\ndef f(x): return [g.__name__, g.__code__.co_flags & 128]",
    "async def g(x): return x * $N\nasync def h(x): return await g(x) + 1\ndef f(x):\n    try: h($N).send(None)\n    except StopIteration as e: return e.value",
    "class E(ValueError): pass\ndef f(x):\n    try: raise E($word) from KeyError(x)\n    except ValueError as e: return [type(e).__name__, str(e), repr(e.__cause__), e.args]\n    finally: x = 1",
    "class E(Exception): pass\ndef f(x): raise E(x)",
    "class E(KeyError): pass\ndef g(): raise E('a')\ndef f(x):\n    try: g()\n    except LookupError: raise",
    "def f(x):\n    for i in range(3):\n        try:\n            if i == $N % 3: continue\n            if i == 2: break\n        finally: x = [x, i]\n    else: return 'else'\n    return x",
    "def f(x):\n    try: return 1\n    finally: return $N",
    "def f(x):\n    try: raise ExceptionGroup('g', [ValueError($N), TypeError(x)])\n    except* ValueError as e: r = [repr(v) for v in e.exceptions]\n    except* TypeError as e: r.append(str(e))\n    return r",
    "def f(x):\n    try: 1 / 0\n    except ZeroDivisionError as e:\n        e.add_note($word)\n        return [e.__notes__, str(e), e.__traceback__.tb_lineno, e.__traceback__.tb_frame.f_code.co_name]",
    "def f(x):\n    while (n := len(str(x))) < $N: x = str(x) + 'q'\n    return n, x, [y := 1, y + 1]",
    "class V:\n    def __init__(self, *v): self.v = v\n    def __add__(self, o): return V(*(a + b for a, b in zip(self.v, o.v)))\n    def __eq__(self, o): return self.v == o.v\n    def __hash__(self): return hash(self.v)\n    def __repr__(self): return f'V{self.v}'\n    def __getitem__(self, i): return self.v[i]\n    def __len__(self): return len(self.v)\n    def __bool__(self): return False\n    def __call__(self, n=$N): return [*self] * n\n    def __contains__(self, n): return n == 1\n    def __format__(self, spec): return spec[::-1]\ndef f(x):\n    a = V(1, 2) + V(3, $N)\n    return [repr(a), a == V(4, 6), a[::-1], len(a), bool(a), a(), 1 in a, f'{a:abc}', {a: 1}[V(*a.v)]]",
    "class A:\n    def g(self): return ['A']\nclass B(A):\n    def g(self): return ['B', *super().g()]\nclass C(A):\n    def g(self): return ['C', *super().g()]\nclass D(B, C):\n    def __init_subclass__(cls, **k): cls.k = k\nclass E(D, z=$N): pass\ndef f(x): return E().g(), [c.__name__ for c in E.__mro__], E.k, isinstance(E(), A)",
    "class M(type):\n    def __new__(m, name, bases, d, **k): return super().__new__(m, name[::-1], bases, d | k)\n    def __call__(cls, *a): return [cls.__name__, a]\n    @classmethod\n    def __prepare__(m, *a, **k): return {'p': 1}\nclass Abc(metaclass=M, q=$N): r = p\ndef f(x): return Abc(x), Abc.q, Abc.r",
    "class D:\n    def __set_name__(self, o, n): self.n = n\n    def __get__(self, o, t): return (self.n, o is None)\nclass C:\n    __slots__ = ('a', '__dict__')\n    d = D()\n    @property\n    def p(self): return self.a\n    @p.setter\n    def p(self, v): self.a = v * 2\n    @staticmethod\n    def s(v): return v\n    @classmethod\n    def c(cls): return cls.__name__\n    def __getattr__(self, n): return n.upper()\n    def __missing__(self, k): return k\ndef f(x):\n    c = C()\n    c.p = $N\n    return [c.p, c.s(1), C.c(), c.d, C.d, c.zz, c.__dict__]",
    "import contextlib\n@contextlib.contextmanager\ndef g(n):\n    out.append(n)\n    try: yield n + 1\n    except ValueError: out.append('v')\n    finally: out.append(-n)\nout = []\ndef f(x):\n    with g(1) as a, g($N) as b: raise ValueError(a + b)\n    return out",
    "import contextlib\nclass R:\n    def __enter__(self): return self\n    def __exit__(self, *e): return e[0] is KeyError\ndef f(x):\n    with contextlib.ExitStack() as s, contextlib.suppress(IndexError):\n        s.callback(print, 1)\n        s.enter_context(R())\n        raise [KeyError, IndexError, ValueError][$N % 3]\n    return 'out'",
    "from dataclasses import *\n@dataclass(order=True, frozen=$N > 4)\nclass P:\n    a: int\n    b: str = $word\n    c: list = field(default_factory=list, compare=False)\n    def __post_init__(self): object.__setattr__(self, 'a', self.a + 1)\ndef f(x):\n    p = P($N)\n    q = replace(p, b='z')\n    try: p.a = 9\n    except FrozenInstanceError as e: return str(e), type(e).__name__, asdict(q)\n    return [repr(p), asdict(q), astuple(p), p < q, [v.name for v in fields(P)]]",
    "from dataclasses import dataclass, KW_ONLY\nfrom typing import ClassVar, Optional\n@dataclass(slots=True)\nclass P:\n    a: 'Optional[int]'\n    _: KW_ONLY\n    k: ClassVar[int] = 3\n    b: float = $F\ndef f(x): return repr(P(x, b=2)), P.__slots__, P.__match_args__, P(1, 2)",
    "from enum import *\nclass C(Enum):\n    R = auto()\n    G = $N + 10\n    A = R\n    def m(self): return self.name.lower()\nclass F(Flag):\n    X = auto()\n    Y = auto()\n    Z = X | Y\nclass I(IntEnum):\n    U = 5\nclass S(StrEnum):\n    T = auto()\ndef f(x): return [C.R.m(), C(1).name, C['A'].value, [*map(repr, C)], repr(F.X | F.Y), str(F(0)), I.U + 1, f'{S.T}', S.T == 't', F.X in F.Z, repr(C), list(C.__members__)]",
    "from enum import Enum\nclass C(Enum):\n    A = 1\ndef f(x): return C(x)",
    "from typing import *\nT = TypeVar('T')\nclass N(NamedTuple):\n    a: int\n    b: str = $word\nclass D(TypedDict, total=False):\n    k: int\nclass G(Generic[T]):\n    def g(self, v: T) -> 'list[T]': return [v]\ndef f(x): return [N(1)._asdict(), repr(N($N)), D(k=1), G[int]().g($N), str(get_type_hints(N)), str(Union[int, None]), str(List[Dict[str, T]]), str(G[int]), str(Callable[..., int])]",
    "from __future__ import annotations\ndef g(a: undefined, *b: int) -> nothing: ...\nz: int = $N\ndef f(x): return g.__annotations__, __annotations__",
    "from functools import *\n@lru_cache(maxsize=None)\ndef fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)\n@singledispatch\ndef g(v): return 'o'\n@g.register\ndef _(v: int): return 'i'\n@g.register(list)\ndef _(v): return 'l'\ndef deco(k):\n    def outer(h):\n        @wraps(h)\n        def inner(*a): return [k, h(*a)]\n        return inner\n    return outer\n@deco($N)\ndef h(v):\n    'doc'\n    return v\nclass C:\n    @cached_property\n    def p(self): return [1]\n    @partialmethod(lambda s, a, b: (a, b), 1).__get__\n    def q(self): pass\ndef f(x): return [fib(60), str(fib.cache_info()), g(1), g([]), g(''), h(x), h.__name__, h.__doc__, reduce(lambda a, b: a * b, $list, 1)]",
    "def f(x):\n    a = [1, 2, 3, 4, 5]\n    a[1:3] = $list\n    del a[::2]\n    a[-1:] += (9,)\n    b, (c, *d), e = 1, a + [0], 2\n    b, c = c, b\n    return [a, b, c, d, e]",
    "def f(x):\n    s = 0\n    for i in range(0, 50, $N):\n        if i % 7 == 0: continue\n        elif i > 40: break\n        s += i\n    else: s = -s\n    return s, i",
    "def f(x): return [1 < $N < 5, 1 == 1.0 is not None, not x, x or 0, x and 1, -2 ** 2, 7 // -2, -7 % 3, ~5, 1 if x else 2, 3 << 2 & 8 | 1 ^ 2]",
    "def f(x):\n    assert x != 0, 'zero'\n    del x\n    return x",
    "def f(x):\n    if x == '': import json as j, math\n    from math import floor as fl, pi\n    return [fl(pi * $N), 'j' in dir()]",
    "def f(x): return (lambda *a, k=$N, **o: [a, k, o])(1, *'ab', k=2, z=3), (lambda: (yield))().__class__.__name__",
    "def f(x):\n    x: int\n    y: list[int] = [$N]\n    return y",
    "def f(x):\n    'doc $N'\n    return [f.__doc__, f.__name__, f.__qualname__, f.__module__, f.__defaults__, f.__code__.co_varnames, f.__code__.co_argcount, __name__]",
    "'text'\ndef f(x): return __doc__",
    "def f(x): return __doc__",
    "def f(x): return [globals()['__name__'], sorted(locals()), 'f' in globals(), vars()['x'] == x]",
    "def f(x): return [eval('1 + $N'), eval('y * 2', {'y': $N}), exec('z = 1'), compile('a = $N', 'p', 'exec').co_names, eval(compile('x', '', 'eval'), {'x': 3})]",
    "def f(x):\n    d = {}\n    exec('def g(v):\\n    return v * $N', d)\n    return d['g'](2), sorted(d)",
    "def f(x): return [type('C', (list,), {'n': $N})([1]).n, type(x).__name__, isinstance(x, (int, str)), issubclass(bool, int), callable(f), type(...).__name__]",
    "def f(x): return 0x$N + 0b101 + 0o17 + 1_000, 1e$N, .5, 3j * 2, 1_0.0_1, 0xFF_FF",
    "def f(x): return ('a' 'b' \"c\" r'\\n' '''d''' '\\101\\x41\\t\\\n')",
    "def f(x): return x.$I",
    "def f(x): return undefined_name",
    "def f(x):\n    return y\n    y = 1",
    "def f(x):\n  if x:\n\treturn 1\n  return $N",
    "def f(x):\n\tif x:\n\t\treturn 1\n\treturn $N",
    "def f(x): return x +",
    "def f(x):\nreturn x",
    "def f(x): return (1, 2",
    "def f(x): break",
    "def f(x, x): return 1",
    "x = yield 1\ndef f(x): return 1",
    "def f(x):\n    return 1 if x else print = 2",
    "def f(x): return f'{x'",
    "def f(x): return [f'{'a'}', f\"{x!r:{'>'}{$N}}\"]",
    "def f(x): 1 = x",
    "def f(x):\n    nonlocal z\n    return 1",
    "def f(x): return '\\N{NO SUCH NAME}'",
    "def f(x): return [1 is 1, 'a' is 'a', () is ()]",
    "def f(x): return '\\d' + b'\\q'.decode()",
    "# -*- coding: latin-1 -*-\ndef f(x): return 'é' + x if isinstance(x, str) else 'é'",
    "\ufeffdef f(x): return $N",
    "def f(x): return 1 \\\n    + $N; return 2",
    "def f(x):\n    return {\n        'a': 1,  # é\n        # comment\n        'b': [x,],\n    }\n\n\n#end",
    "if True:\n    def f(x): return $N\nelse: f = None",
    "f = lambda x: [x, $N]",
    "class C:\n    def __call__(self, x): return [x, $N]\nf = C()",
    "from functools import partial\nf = partial(pow, $N)",
    "f = str",
    "class f:\n    def __init__(self, x): pass",
    "def f(x): return (i for i in [x])",
    "def f(x):\n    a = [x]\n    a.append(a)\n    return a",
    "def f(x):\n    a = []\n    for _ in range($N * 13): a = [a]\n    return a",
    "def f(x): return {True: 1, 1.0: $N, '1': 2, (1,): {3}, None: b'x'}",
    "def f(x): return float('nan') if $N > 5 else frozenset([1])",
    "def f(x): return int('1' * ($N * 1000))",
    "def g(n): return 0 if n == 0 else 1 + g(n - 1)\ndef f(x): return g($N * 100)",
    "def g(n): return 0 if n == 0 else 1 + g(n - 1)\ndef f(x):\n    try: return g(10 ** $N)\n    except RecursionError as e: return str(e)[:22]",
    "def f(x): return f(x)",
    "import sys\ndef g(n): return 0 if n == 0 else 1 + g(n - 1)\nsys.setrecursionlimit(10 ** 6)\ndef f(x): return g($N * 600)",
    "import sys\ndef g(n): return 0 if n == 0 else 1 + g(n - 1)\ndef f(x):\n    sys.setrecursionlimit($N * 1000)\n    return [sys.getrecursionlimit(), g(1500)]",
    "import sys\ndef g(n): return 0 if n == 0 else 1 + g(n - 1)\ndef f(x):\n    sys.setrecursionlimit(200)\n    return g(300)",
    "def f(x): return " + "(" * 60 + "$N" + ")" * 60,
    "def f(x): return " + "+".join(["$N"] * 80),
]  # fmt: skip
SYNTAX_312 = [
    "def f(x):\n    def g[T](v: T) -> list[T]: return [v, $N]\n    return g(x), str(g.__type_params__)",
    "class S[T: int, *A, **P]:\n    def p(self) -> T: return $N\ndef f(x): return S[int]().p(), [p.__name__ for p in S.__type_params__]",
    "type Q[T] = list[T] | None\ntype R = int\ndef f(x): return [Q.__name__, str(Q[int]), str(R.__value__), str(Q.__type_params__)]",
    "def f(x): return f'{'a' + f'{x!r}'}' f'{'\\n'.join(['a', 'b'])}' f'{x # comment\n}'",
    "from typing import override\nimport itertools\nclass C:\n    @override\n    def g(self): return list(itertools.batched('abcdefg', $N))\ndef f(x): return C().g()",
]  # fmt: skip
SYNTAX_313 = [
    "class S[T = int]: pass\ndef f(x): return str(S.__type_params__[0].__default__)",
    "import copy\nfrom dataclasses import dataclass\n@dataclass\nclass P:\n    a: int = $N\ndef f(x): return repr(copy.replace(P(), a=2))",
]
SYNTAX += SYNTAX_312 if sys.version_info >= (3, 12) else []
SYNTAX += SYNTAX_313 if sys.version_info >= (3, 13) else []
STATEFUL = re.compile(r"^(seen|out|n) = |setrecursionlimit|global ", re.M)
"""In templates: what the first call leaves changes the second."""

SHELL = [
    "import io, sys\ndef f(x):\n    old, sys.stdout = sys.stdout, io.StringIO()\n    print('a', $N, sep='-', end='!')\n    sys.stdout.write('b')\n    new, sys.stdout = sys.stdout, old\n    return new.getvalue()",
    "import io, contextlib\ndef f(x):\n    with contextlib.redirect_stdout(io.StringIO()) as out: print(x)\n    return out.getvalue()",
    "import io, sys, contextlib\ndef f(x):\n    with contextlib.redirect_stderr(io.StringIO()) as out: print($word, file=sys.stderr)\n    return out.getvalue()",
    "import io, sys\ndef f(x):\n    sys.stdin = io.StringIO('one\\ntwo\\n')\n    return [input(), sys.stdin.readline(), sys.stdin.read()]",
    "def f(x): return input()",
    "def f(x): return print($word, flush=True, end=' ')",
    "import io\ndef f(x):\n    b = io.StringIO()\n    print(1, $word, file=b)\n    return b.getvalue()",
    "import sys\ndef f(x): return [sys.stdout.write('abc'), sys.stdout.flush(), sys.stdin.read(), sys.stdout.writable()]",
    "import sys\ndef f(x): return [sys.stdin.readlines(), list(sys.stdin)]",
    "import sys\ndef f(x): return [line for line in sys.stdin]",
    "import sys\ndef f(x): sys.exit($N)",
    "import sys\ndef f(x):\n    try: sys.exit($word)\n    except SystemExit as e: return [e.code, e.args]",
    "def f(x): exit()",
    "def f(x): quit($N)",
    "def f(x): raise SystemExit",
    "def f(x): return help(len)",
    "def f(x): return [callable(help), callable(exit), 'license' in dir(__builtins__) if not isinstance(__builtins__, dict) else 'license' in __builtins__]",
    "def f(x): return open('no_such_file_$N')",
    "def f(x):\n    try: return open('no_such_file').read()\n    except FileNotFoundError: return 'missing'",
    "def f(x):\n    try: return open('/etc/hostname_$N', 'rb')\n    except OSError as e: return [type(e).__name__, e.errno]",
    "import warnings\ndef f(x):\n    warnings.warn('w')\n    return $N",
    "def f(x):\n    x = ~True\n    return [x, 1 .real, '%d' % 3.7, int(3.9)]",
    "def f(x): return (1)($N)",
    "def f(x): return [0x1for x in [1]]",
    "import re\ndef f(x): return re.split('a', 'bab', 1), re.sub('a', 'b', 'aa', 1, 0)",
    "import unicodedata, enum\ndef f(x): return 5 in enum.IntEnum('E', 'A B')",
    "import sys\ndef f(x): return getattr(sys, '$sysname')",
    "import sys\ndef f(x): return hasattr(sys, '$sysname')",
    "import sys\ndef f(x):\n    try: return str(sys.$sysname)[:9]\n    except AttributeError: return 'none'",
    "import sys\ndef f(x):\n    try: from sys import $sysname as v\n    except ImportError: return 'none'\n    return type(v).__name__",
    "import sys\ndef f(x):\n    sys.$sysname = $N\n    return sys.$sysname",
    "import sys\ndef f(x): return [sys.maxsize, sys.byteorder, sys.version_info[:2], sys.float_info.max, sys.getsizeof([]), sys.intern($word), sys.maxunicode, sys.int_info[:2], sys.version_info >= (3, 8), str(sys.float_info)]",
    "import sys\ndef f(x): return sys.exc_info()[0], len(sys.argv), sys.version[:4], sys.platform, sys.getdefaultencoding()",
    "import sys\ndef f(x):\n    sys.set_int_max_str_digits(0)\n    return len(str(10 ** 5000))",
    "import sys\ndef f(x):\n    try: 1 / 0\n    except ZeroDivisionError: return sys.exc_info()[0].__name__",
    "import sys\ndef f(x): return sys._getframe().f_code.co_name",
    "import io\ndef f(x): return [hasattr(io, n) for n in ('StringIO', 'BytesIO', 'TextIOWrapper', 'open', 'SEEK_SET', 'BufferedReader')]",
    "import io\ndef f(x):\n    w = io.TextIOWrapper(io.BytesIO(), 'utf-8')\n    return w.write('é')",
    "import io\ndef f(x):\n    b = io.StringIO($text)\n    return [b.read(2), b.tell(), b.seek(0), b.readlines(), b.write('z'), b.getvalue(), b.isatty()]",
    "import io\ndef f(x):\n    b = io.BytesIO(b'ab\\ncd')\n    try: return [b.readline(), bytes(b.getbuffer()), b.seek(-1, 2), b.read(), b.fileno()]\n    except io.UnsupportedOperation as e: return str(e)",
    "import io\ndef f(x): return io.StringIO().fileno()",
    "import $module as m\ndef f(x): return sorted(n for n in dir(m) if n[:1] != '_')",
    "import $module as m\ndef f(x): return [hasattr(m, n) for n in ('__name__', '__doc__', '__all__', '__file__', '__path__', '$N', 'sys', 're', 'os')]",
    "import $module as m\ndef f(x): return [m.__name__, getattr(m, '__all__', 0), m.__doc__]",
    "from $module import *\ndef f(x): return sorted(n for n in globals() if n[:1] != '_')",
    "def f(x):\n    try: import $absent\n    except ImportError: return 'no'\n    return 'yes'",
    "def f(x):\n    try: return __import__('$module').__name__\n    except ImportError: return 'no'",
    "def f(x): return [type(__builtins__).__name__, '__import__' in dir(__builtins__), len.__self__.__name__]",
    "def f(x):\n    try: return breakpoint()\n    except BaseException as e: return type(e).__name__",
    "class C:\n    def __del__(self): seen.append($N)\nseen = []\ndef f(x):\n    c = C()\n    del c\n    return seen",
    "import decimal\ndef f(x):\n    with decimal.localcontext() as c:\n        c.prec = $N\n        return str(decimal.Decimal(1) / 3), decimal.getcontext().prec",
    "import decimal\ndef f(x):\n    decimal.getcontext().prec += $N\n    decimal.getcontext().traps[decimal.Inexact] = True\n    return str(decimal.Decimal(2).sqrt())",
    "import types\ndef f(x):\n    m = types.ModuleType('m', 'd')\n    m.a = $N\n    return [m.a, m.__doc__, repr(m), types.SimpleNamespace(b=1), str(types.SimpleNamespace(c=x))]",
    "import abc\nclass A(abc.ABC):\n    @abc.abstractmethod\n    def g(self): ...\ndef f(x):\n    try: A()\n    except TypeError as e: return str(e)",
    "import typing, collections.abc\n@typing.runtime_checkable\nclass P(typing.Protocol):\n    def g(self) -> int: ...\nclass C:\n    def g(self): return $N\ndef f(x): return [isinstance(C(), P), isinstance(x, collections.abc.Iterable), issubclass(dict, collections.abc.MutableMapping)]",
    "import json\ndef f(x):\n    try: return json.loads('[1, 2')\n    except json.JSONDecodeError as e: return [str(e), e.pos, e.lineno, e.colno, e.msg]",
    "import json\ndef f(x): return json.loads(json.dumps({'a': [x, None, True, $F], 'é': $M}, ensure_ascii=$N > 4, indent=$N, sort_keys=True)), json.dumps({1: [2, {}]}, indent='\\t', separators=(',', ':'))",
    "import re\ndef f(x): return [re.compile($text), re.I | re.M].__repr__(), re.compile('(?P<n>a+)|(b)').sub(r'<\\g<n>>', 'aab'), [m.span() for m in re.finditer(r'\\b\\w', $text)], re.escape($text), re.fullmatch('(?i)HELLO.*', $text) is None",
    "import re\ndef f(x): return re.compile('[')",
    "import struct, array\ndef f(x): return struct.pack('<ihq?d', $N, 2, 3, True, $F), struct.unpack('>H', b'ab'), array.array('i', $list).tobytes(), struct.calcsize('@lqP'), array.array('d', [$F]).tolist()",
    "import statistics\ndef f(x): return [statistics.mean($list + [1]), statistics.median($list + [2]), statistics.pstdev($list + [3]), statistics.quantiles([1, 2, 3, $N]), statistics.NormalDist(0, 1).cdf($F), statistics.mode($list + [4])]",
    "import statistics\ndef f(x): return statistics.NormalDist($N, 1).samples(3, seed=$N)",
]  # fmt: skip
SYS_NAMES = [name for name in dir(sys) if name != "exit"]
ABSENT = ("numpy", "os", "random", "no_such_module", "math.nothing", "_nothing", "pandas")
LIBRARY = [name for name in (*ALLOWED, *FACADES) if name != "__future__"]
TERMINALS |= {
    "sysname": lambda rng: rng.choice(SYS_NAMES),
    "module": lambda rng: rng.choice(LIBRARY),
    "absent": lambda rng: rng.choice(ABSENT),
}


def from_template(kind: str, templates: list[str], rng: random.Random) -> Program:
    index = rng.randrange(len(templates))
    code = grown(rng, templates[index], 3) + "\n"
    args_text = grown(
        rng, rng.choice(("$N", "0", "$text", "$list", "{'k': $N, 'z': None}", "None")), 0
    )
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
IMPURE_METHODS = {"__hash__", "__sizeof__", "__reduce__", "__reduce_ex__"}


@functools.cache
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


def tries(kind: str, calls: list[str], imports: str = "", *, is_pure: bool = True) -> Program:
    body = ", ".join(f"lambda: {call}" for call in calls)
    return Program(kind, f"{imports}{SHOW}def f(x): return tried({body})\n", "1", is_pure)


def library(rng: random.Random) -> Program:
    """Calls of one function, or of one class and a method of its instances."""
    module = rng.choice(LIBRARY)
    name = rng.choice(public(module))
    found, default = (
        getattr(importlib.import_module(module), name),
        MODULE_POOLS.get(module, "object"),
    )
    calls = [f"m.{name}({arguments(rng, found, default)})" for _ in range(3)]
    methods = [n for n in dir(found) if n[:1] != "_"] if isinstance(found, type) else []
    for i in range(len(calls) if methods else 0):
        method = rng.choice(methods)
        if callable(getattr(found, method, None)):
            calls.append(f"{calls[i]}.{method}({arguments(rng, getattr(found, method), default)})")
        else:
            calls.append(f"{calls[i]}.{method}")
    return tries(f"{module}.{name}", calls, f"import io, {module} as m\n", is_pure=False)


def method(rng: random.Random) -> Program:
    """Calls of a method of a built-in type, an operator's among them."""
    kind = rng.choice([*RECEIVERS])
    receiver, given = RECEIVERS[kind]
    names = [
        n for n in dir(kind) if n not in IMPURE_METHODS and (n[:1] != "_" or rng.random() < 0.5)
    ]
    name = rng.choice(names)
    calls = []
    for _ in range(3):
        args = ", ".join(drawn(rng, rng.choice(given)) for _ in range(rng.randint(0, 2)))
        made = f"{kind.__name__}({drawn(rng, receiver)})"
        calls.append(
            f"{made}.{name}({args})" if callable(getattr(kind, name)) else f"{made}.{name}"
        )
    return tries(f"{kind.__name__}.{name}", calls, is_pure=False)


UNCALLED = ("exit", "quit", "hash", "id", "globals", "locals", "vars")
"""Builtins whose results are those of a runner or of one process."""

BUILTINS = [n for n in dir(builtins) if callable(getattr(builtins, n)) and n[0] != "_" and n not in UNCALLED]  # fmt: skip


def builtin(rng: random.Random) -> Program:
    name = rng.choice(BUILTINS)
    calls = [f"{name}({arguments(rng, getattr(builtins, name), 'list')})" for _ in range(3)]
    return tries(f"builtin {name}", calls, is_pure=False)


CODECS = sorted(
    {
        *encodings.aliases.aliases.values(),
        "idna",
        "punycode",
        "undefined",
        "raw_unicode_escape",
        "unicode_escape",
        "utf_8_sig",
        "mbcs",
        "oem",
    }
)
SPELLINGS = [
    str.upper,
    lambda name: name.replace("_", "-"),
    lambda name: name.replace("_", " "),
    str,
    str,
]
ERRORS = (
    "strict",
    "ignore",
    "replace",
    "backslashreplace",
    "xmlcharrefreplace",
    "namereplace",
    "surrogateescape",
    "surrogatepass",
    "nothing",
)


def codec(rng: random.Random) -> Program:
    """Text to bytes and back in one of the encodings that CPython knows."""
    name = rng.choice(CODECS if rng.random() < 0.8 else sorted(encodings.aliases.aliases))
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
    "divmod(3 ** ($N * 5000), 7 ** ($N * 900))[1] % 10 ** 9", "math.gcd($B * 6, $B * 15)", "math.isqrt(abs($B))", "pow($B, $B, 10 ** 9 + 7)", "pow($M, -1, 1009)", "hex($B)", "$B.bit_length()",
    "$B / $N", "$B // $M", "$B % $M", "float($B)", "int($F)", "round($B, -$N)", "$B ** $N % 1000", "f'{$B:,}'", "f'{$B:_x}'", "int(hex(abs($B)), 16)", "int('zz$N', 36)", "($B).to_bytes(400, 'big', signed=True)[-4:]",
    "int.from_bytes(b'$N' * $N, 'little')", "sum(int(c) for c in str(abs($B)))", "math.factorial($N * 30)", "math.comb($N * 40, $N * 9)", "~$B & 0xFFFF", "$B << $N >> 3", "$B ^ $B", "($B).as_integer_ratio()",
    "str($B)[::-1]", "eval('$N' * 4000) % 7", "1 << $N * 1000 > 10 ** ($N * 300)", "Decimal($B) + 1", "Fraction($B, $N)", "math.log2(abs($B) + 1)", "hash($B)", "$B == float($B)", "len(repr(2 ** ($N * 3000)))", "divmod(-$B, $N)",
]  # fmt: skip


def long_integer(rng: random.Random) -> Program:
    calls = [grown(rng, rng.choice(LONG), 0) for _ in range(4)]
    return tries(
        "long", calls, "import math\nfrom decimal import Decimal\nfrom fractions import Fraction\n"
    )


SOURCES = (
    (55, model_like), (13, functools.partial(from_template, "syntax", SYNTAX)), (5, functools.partial(from_template, "shell", SHELL)),
    (10, library), (6, method), (3, builtin), (3, codec), (3, formatted), (2, long_integer),
)  # fmt: skip
"""The sources of programs and their weights."""


def draw(rng: random.Random) -> Program:
    weights, sources = zip(*SOURCES, strict=True)
    return rng.choices(sources, weights)[0](rng)
