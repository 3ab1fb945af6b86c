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

from tests.differential import settled
from tests.generated import draw

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


def built(rng: random.Random, text: str) -> str:
    """Returns an expression that gives the text: written, or put together from parts."""
    cut = rng.randint(1, len(text) - 1)
    left, right, codes = text[:cut], text[cut:], [*text.encode()]
    return rng.choice(
        (
            repr(text),
            f"({left!r} + {right!r})",
            f"{text[::-1]!r}[::-1]",
            f"{text.swapcase()!r}.swapcase()",
            f"'%s%s' % ({left!r}, {right!r})",
            f"''.join([{left!r}, {right!r}])",
            f"''.join(map(chr, {codes}))",
            f"bytes({codes}).decode()",
        )
    )


def text_kind(name: str, template: str, args: list[str] | None = None, *, many: int = 0) -> Kind:
    """A random kind.

    In the template and the arguments @W is a word, @A and @B are two different ones, @S a list of
    `many`, @N a digit, @D the place of one in an address that the layout decides, @C a container of
    a lock, and @{text} an expression for that text.
    """

    def build(rng: random.Random) -> tuple[str, list[str]]:
        a, b = words(rng, 2)
        drawn = {"@W": repr(word(rng)), "@A": repr(a), "@B": repr(b)}
        drawn |= {"@S": repr(words(rng, many or 2)), "@N": str(rng.randint(1, 9))}
        drawn |= {"@D": str(rng.randint(3, 6)), "@C": rng.choice(CONTAINERS)}

        def fill(text: str) -> str:
            filled = re.sub("@[WABSNDC]", lambda found: drawn[found[0]], text)
            return re.sub("@{(.+?)}", lambda found: built(rng, found[1]), filled)

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


def digit_kind(name: str, expression: str, before: str = "") -> Kind:
    """A random kind: a bit of the address that the text of an expression shows."""
    code = f"{before}def f(x): return int(repr({expression}).split('0x')[1][@D], 16) % 2"
    return text_kind(f"digit of {name}", code)


CONTAINERS = tuple(
    text.replace("LOCK", "functools.RLock()")
    for text in (
        "collections.deque([LOCK])",
        "collections.namedtuple('P', 'a')(LOCK)",
        "collections.ChainMap({1: LOCK})",
        "collections.OrderedDict(a=LOCK)",
        "dataclasses.make_dataclass('P', 'a')(LOCK)",
        "itertools.repeat(LOCK)",
        "types.MappingProxyType({1: LOCK})",
        "slice(LOCK)",
        "KeyError(LOCK)",
    )
)
HASHED = "[@{hash}](@W) >> @N & 1"
DETOURS = [
    text_kind("frame of a generator", f"def f(x): return (c for c in x).gi_frame.f_builtins{HASHED}"),
    text_kind("frame of a generator, id", "def f(x): return (c for c in x).gi_frame.f_builtins[@{id}]([x]) >> 20 + @N & 1"),
    text_kind("frame of a generator, set", "def f(x): return list((c for c in x).gi_frame.f_builtins[@{set}](@S))"),
    text_kind("frame of a generator, frozenset", "def f(x): return next(iter((c for c in x).gi_frame.f_builtins[@{frozenset}](@S)))"),
    text_kind("frame by get", "def f(x): return (c for c in x).gi_frame.f_builtins.get(@{hash})(@W) >> @N & 1"),
    text_kind("frame by values", "def f(x): return [v for k, v in (c for c in x).gi_frame.f_builtins.items() if k == @{hash}][0](@W) >> @N & 1"),
    text_kind("frame by a pattern", f"import types\ndef f(x):\n    match (c for c in x):\n        case types.GeneratorType(gi_frame=r): return r.f_builtins{HASHED}"),
    text_kind("frame by a field", f"import string\ndef f(x):\n    r, _ = string.Formatter().get_field('0.' + @{{gi_frame}} + '.' + @{{f_builtins}}, [(c for c in x)], {{}})\n    return r{HASHED}"),
    text_kind("frame by a wrapper", f"import functools, types\ndef f(x):\n    n = types.SimpleNamespace()\n    functools.update_wrapper(n, (c for c in x).gi_frame, assigned=[@{{f_builtins}}], updated=())\n    return n.f_builtins{HASHED}"),
    text_kind("globals of a frame", f"def f(x): return (c for c in x).gi_frame.f_globals[@{{__builtins__}}]{HASHED}"),
    text_kind("frame behind a frame", f"def g(): yield h[0].gi_frame.f_back.f_builtins{HASHED}\nh = []\ndef f(x):\n    h[:] = [g()]\n    return next(h[0])"),
    text_kind("frame of a coroutine", f"async def c(): pass\ndef f(x):\n    k = c()\n    try: return k.cr_frame.f_builtins{HASHED}\n    finally: k.close()"),
    text_kind("frame of an asynchronous generator", f"async def c(): yield 1\ndef f(x): return c().ag_frame.f_builtins{HASHED}"),
    text_kind("frame of a traceback", f"def f(x):\n    try: return x / 0\n    except TypeError as e: return e.__traceback__.tb_frame.f_builtins{HASHED}"),
    text_kind("frame of a traceback given", f"import contextlib\ndef g(kind, e, t): r.append(t.tb_frame.f_builtins{HASHED}); return True\nr = []\ndef f(x):\n    with contextlib.ExitStack() as s:\n        s.push(g)\n        x / 0\n    return r.pop()"),
    text_kind("frame by sys", f"import collections\ndef f(x): return collections._sys._getframe().f_builtins{HASHED}"),
    text_kind("frame by inspect", f"import dataclasses\ndef f(x): return dataclasses.inspect.currentframe().f_builtins{HASHED}"),
    text_kind("field of a formatter", "import string\ndef f(x): return string.Formatter().get_field('0.' + @{__hash__}, [@W], {})[0]() >> @N & 1"),
    text_kind("field of a formatter, named", "import string\ndef f(x): return string.Formatter().get_field('a.' + @{__hash__}, (), {'a': @W})[0]() >> @N & 1"),
    text_kind("formatted field", "import string\ndef f(x): return int(string.Formatter().vformat('{0.' + @{__hash__} + '}', [@W], {}).split('0x')[1][@D], 16) % 2"),
    text_kind("field of a format", "def f(x): return int(('{0.' + @{__hash__} + '}').format(@W).split('0x')[1][@D], 16) % 2"),
    text_kind("format_field", "import string\ndef f(x): return int(string.Formatter().format_field(f, '').split('0x')[1][@D], 16) % 2"),
    text_kind("convert_field", "import functools, string\ndef f(x): return int(string.Formatter().convert_field(functools.RLock(), 'r').split('0x')[1][@D], 16) % 2"),
    text_kind("template", "import functools, string\ndef f(x): return int(string.Template('$a').substitute(a=functools.RLock()).split('0x')[1][@D], 16) % 2"),
    text_kind("members", "import dataclasses\ndef f(x): return dict(dataclasses.inspect.getmembers(@W))[@{__hash__}]() >> @N & 1"),
    text_kind("static attribute", "import dataclasses\ndef f(x): return dataclasses.inspect.getattr_static(@W, @{__hash__})(@W) >> @N & 1"),
    text_kind("annotation", "import typing\ndef g(a: @{[int, str][hash(@W) & 1]}): pass\ndef f(x): return typing.get_type_hints(g)['a'] is int"),
    text_kind("annotation given", "import types, typing\ndef f(x): return typing.get_type_hints(types.SimpleNamespace(**{@{__annotations__}: {'a': @{[int, str][hash(@W) & 1]}}}))['a'] is int"),
    text_kind("annotation of a record", "import dataclasses, typing\ndef f(x): return typing.get_type_hints(dataclasses.make_dataclass('C', [('a', @{[int, str][hash(@W) & 1]})]))['a'] is int"),
    text_kind("eval by a table of modules", "import collections\ndef f(x): return collections._sys.modules['builtins'].eval(@{hash(@W) & 1})"),
    text_kind("annotation by inspect", "import dataclasses\ndef g(a: @{hash(@W) & 1}): pass\ndef f(x): return dataclasses.inspect.get_annotations(g, eval_str=True)['a']"),
    text_kind("body by dataclasses", "import dataclasses\ndef f(x): return dataclasses._create_fn('g', [], [@{return hash(@W) & 1}])()"),
    text_kind("code with another name", "import types\ndef f(x): return next(types.FunctionType((len(@W) for c in x).gi_code.replace(co_names=(@{hash},)), {})(iter(x))) >> @N & 1"),
    text_kind("frame by an item", "from operator import itemgetter\ndef f(x): return itemgetter(@{hash})((c for c in x).gi_frame.f_builtins)(@W) >> @N & 1"),
    text_kind("frames of threads", "import typing\ndef f(x): return [*typing.sys._current_frames()][0] >> 20 + @N & 1"),
    text_kind("wrapper's attribute", "import functools, types\ndef f(x): return int(repr(functools.update_wrapper(types.SimpleNamespace(), @W, assigned=[@{__hash__}], updated=())).split('0x')[1][@D], 16) % 2"),
    text_kind("key of a cache", "import functools\ndef f(x): return functools._make_key((@A, @B), {}, False).hashvalue >> @N & 1"),
    text_kind("hash of an abstract set", "import collections.abc\ndef f(x): return collections.abc.Set._hash({@A: 1}.keys()) >> @N & 1"),
    text_kind("type of the library's set", "import re\ndef f(x): return list(type(re._parser.DIGITS)(@S))"),
    text_kind("type by its text", "import copy\ndef f(x): return list(next(k for k in copy._deepcopy_dispatch | copy._copy_dispatch if str(k) == @{<class 'set'>})(@S))"),
    text_kind("set by ast", "import dataclasses\ndef f(x): return [*dataclasses.inspect.ast.literal_eval('{' + repr(@A) + ',' + repr(@B) + '}')]"),
    text_kind("names of the library", "import typing\ndef f(x): return [*typing.sys.stdlib_module_names][@N] < 'm'"),
    text_kind("keys united in place", "def f(x):\n    k = {@A: 1}.keys()\n    k |= [@B]\n    return list(k)"),
    text_kind("keys of a proxy united", "import types\ndef f(x): return list(types.MappingProxyType({@A: 1}).keys() | [@B])"),
    text_kind("keys of a chain united", "import collections\ndef f(x): return list(collections.ChainMap({@A: 1}).keys() | [@B])"),
    text_kind("keys by a pattern", "def f(x):\n    match {@A: 1}:\n        case dict(keys=k): return list(k() | [@B])"),
    text_kind("keys by a field", "import string\ndef f(x): return list(string.Formatter().get_field('0.' + @{keys}, [{@A: 1}], {})[0]() | dict.fromkeys([@B]).keys())"),
    text_kind("set of the library", "import re\ndef f(x): return [*re._parser.HEXDIGITS][@N] > '8'"),
    text_kind("markers of an encoder", "import json.encoder\ndef f(x):\n    seen, kept = {}, []\n    json.encoder.c_make_encoder(seen, lambda v: kept.extend(seen), str, None, ':', ',', False, False, False)([1j], 0)\n    return kept[0] >> 20 + @N & 1"),
    text_kind("markers of an encoder in Python", "import json.encoder\ndef f(x):\n    seen, kept = {}, []\n    list(json.encoder._make_iterencode(seen, lambda v: kept.extend(seen), str, None, str, ':', ',', False, False, False)([1j], 0))\n    return kept[0] >> 20 + @N & 1"),
    text_kind("memory of copies of a list", "import copy\ndef f(x):\n    seen = {}\n    copy._deepcopy_dispatch[list]([1], seen, lambda v, m: v)\n    return min(seen) >> 20 + @N & 1"),
    text_kind("memory of copies kept alive", "import copy\ndef f(x):\n    seen = {}\n    copy._keep_alive([x], seen)\n    return min(seen) >> 20 + @N & 1"),
    text_kind("address of an array", "from array import array\ndef f(x): return array('d', [@N] * 99).buffer_info()[0] >> 20 + @N & 1"),
    text_kind("address of an array by a pattern", "from array import array\ndef f(x):\n    match array('i', [@N] * 99):\n        case array(buffer_info=g): return g()[0] >> 20 + @N & 1"),
    text_kind("address of an array by a field", "import array, string\ndef f(x): return string.Formatter().get_field('0.' + @{buffer_info}, [array.array('i', [1])], {})[0]()[0] >> 20 + @N & 1"),
    digit_kind("a lock", "functools.RLock()", "import functools\n"),
    digit_kind("a lock by another module", "typing.sys.modules[@{_thread}].allocate_lock()", "import typing\n"),
    digit_kind("a lock in a list", "[{'k': functools.RLock()}]", "import functools\n"),
    digit_kind("a weak proxy", "collections._proxy(f)", "import collections\n"),
    digit_kind("a weak reference", "typing.sys.modules[@{_weakref}].ref(f)", "import typing\n"),
    digit_kind("a capsule", "unicodedata._ucnhash_CAPI", "import unicodedata\n"),
    digit_kind("a StringIO", "io.StringIO()", "import io\n"),
    digit_kind("a BytesIO's buffer", "io.BytesIO(b'a').getbuffer()", "import io\n"),
    digit_kind("a memoryview", "memoryview(b'a')"),
    digit_kind("a decimal context", "decimal.localcontext()", "import decimal\n"),
    digit_kind("a bound method", "@W.join"),
    digit_kind("a partial", "functools.partial(f, x)", "import functools\n"),
    digit_kind("a cell", "types.CellType(x)", "import types\n"),
    digit_kind("code", "(c for c in x).gi_code"),
    digit_kind("a frame", "(c for c in x).gi_frame"),
    digit_kind("a chain", "itertools.chain(x)", "import itertools\n"),
    digit_kind("super", "super(C, C()).g", "class B:\n    def g(self): pass\nclass C(B): pass\n"),
    digit_kind("a function of sys", "sys.setrecursionlimit", "import sys\nsys.setrecursionlimit = lambda n: None\n"),
    digit_kind("a lock in a container", "@C", "import collections, dataclasses, functools, itertools, types\n"),
    text_kind("digit of a printed lock", "import functools, io\ndef f(x):\n    to = io.StringIO()\n    print(functools.RLock(), file=to)\n    return int(to.getvalue().split('0x')[1][@D], 16) % 2"),
    text_kind("digit of a padded lock", "import functools\ndef f(x): return int(f'{functools.RLock()!s:>90}'.split('0x')[1][@D], 16) % 2"),
    text_kind("digit of a lock in an exception", "import functools\ndef f(x):\n    try: raise ValueError(functools.RLock())\n    except ValueError as e: return int(str(e).split('0x')[1][@D], 16) % 2"),
    digit_kind("a namespace", "types.SimpleNamespace(a=functools.RLock())", "import functools, types\n"),
    text_kind("digit of a lock in a message", "import collections, functools\ndef f(x):\n    try: collections.deque().index(functools.RLock())\n    except ValueError as e: return int(str(e).split('0x')[1][@D], 16) % 2"),
    text_kind("digit of a lock as JSON", "import functools, json\ndef f(x): return int(json.dumps(functools.RLock(), default=str).split('0x')[1][@D], 16) % 2"),
    text_kind("number of the process", "import contextlib\ndef f(x): return contextlib.os.getpid() // @N & 1"),
    text_kind("number of the process, coarse", "import contextlib\ndef f(x): return contextlib.os.getpid() // 1000 % 7"),
    text_kind("number of the parent", "import contextlib\ndef f(x): return contextlib.os.getppid() // @N & 1"),
    text_kind("number of the process by sys", "import typing\ndef f(x): return typing.sys.modules[@{posix}].getpid() // @N & 1"),
    text_kind("number of the thread", "import typing\ndef f(x): return typing.sys.modules[@{_thread}].get_native_id() // @N & 1"),
    text_kind("address of the thread", "import typing\ndef f(x): return typing.sys.modules[@{_thread}].get_ident() >> 20 + @N & 1"),
    text_kind("times of the process", "import contextlib\ndef f(x): return int(contextlib.os.times()[4] * 100) & 1"),
    text_kind("bytes of the system", "import contextlib\ndef f(x): return contextlib.os.urandom(1)[0] & 1"),
    text_kind("random bytes of the system", "import contextlib\ndef f(x): return contextlib.os.getrandom(1)[0] & 1"),
    text_kind("a clock by a detour", "import dataclasses\ndef f(x): return dataclasses.inspect.importlib.import_module(@{time}).perf_counter_ns() >> 4 + @N & 1"),
    text_kind("chance by a detour", "import dataclasses\ndef f(x): return dataclasses.inspect.importlib.import_module(@{_random}).Random().getrandbits(1)"),
    text_kind("samples", "import statistics\ndef f(x): return statistics.NormalDist().samples(1)[0] > 0"),
]  # fmt: skip
"""Random kinds whose source of chance is reached by a detour, or shows in a text of its own."""


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
    """Yields deterministic programs with their inputs, from the templates."""
    rng = random.Random(seed)
    for i in range(count):
        code = CLEAN_TEMPLATES[i % len(CLEAN_TEMPLATES)]
        code = code.replace("@N", str(rng.randint(2, 9))).replace("@M", str(rng.randint(10, 99)))
        yield code.replace("@W", repr(word(rng))), [str(rng.randint(0, 50)) for _ in range(3)]


def clean_drawn(count: int, seed: int) -> list[tuple[str, list[str]]]:
    """Returns deterministic programs with their inputs, drawn from all that Python has.

    Their outcomes depend on their arguments alone, and are CPython's under two hash seeds.
    """
    rng = random.Random(seed)
    found: list[tuple[str, list[str]]] = []
    while len(found) < count:
        drawn = [program for program in (draw(rng) for _ in range(2 * count)) if program.is_pure]
        found += [
            (program.code, [program.args_text] * 2)
            for program, (status, text) in settled(drawn[:count])
            if status in ("ok", "exception") and text != "MemoryError"
        ]
    return found[:count]
