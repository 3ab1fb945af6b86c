"""What a program may import, and by what the compiler judges its code. Plain data."""

import builtins
import opcode
import sys
from collections.abc import Iterable

ALLOWED = tuple(
    """
    __future__ abc array bisect cmath collections collections.abc contextlib copy dataclasses
    decimal enum fractions functools heapq itertools json json.decoder json.encoder math numbers
    operator re statistics string struct textwrap types typing unicodedata warnings
    """.split()
)
"""Modules of the standard library that run without files, clocks, randomness and processes."""

FACADES: dict[str, frozenset[str]] = {
    "io": frozenset(("FileIO", "OpenWrapper")),
    "sys": frozenset(
        """
        __interactivehook__ _base_executable _home _current_exceptions _current_frames _getframe
        _getframemodulename _xoptions activate_stack_trampoline base_exec_prefix base_prefix
        breakpointhook dont_write_bytecode exec_prefix executable flags getallocatedblocks
        getrefcount meta_path modules orig_argv path path_hooks path_importer_cache prefix
        warnoptions
        """.split()
    ),
}
"""Modules that are harmless in part, and what of them a program does not get: what is another thing
here than elsewhere, or leads to a clock. The use of it is the program's outcome."""

INTERNAL = (
    *("_decimal", "copyreg", "linecache", "typing", "unicodedata", "warnings"),
    *(("_pylong",) if sys.version_info >= (3, 12) else ()),
    *(("_pydecimal",) if sys.version_info >= (3, 13) else ()),
)
"""Loaded, for the interpreter itself imports them at its first need, which is no import of the
program's."""

FORGOTTEN = ("time", "random", "_random", "secrets", "site", "uuid", "__main__", "_sandbox")
"""Dropped from sys.modules after loading, so that a program that gets at that table by a detour
finds no clock and no randomness there."""

INSIDERS = ("collections", "dataclasses", "typing", "warnings")
"""Modules that need what programs do not get of `sys`."""

PURE_CALLS = ("fsdecode", "fsencode", "fspath", "strerror")
"""Functions of `os` that say nothing of the machine. A program that gets at another one by a detour
is refused."""

PLAIN_MODULES = frozenset(
    """
    __future__ abc array bisect cmath collections collections.abc copy decimal fractions functools
    heapq itertools json math numbers operator re statistics string struct textwrap typing
    unicodedata
    """.split()
)
"""Modules of which the names in PLAIN_ATTRIBUTES show neither hash order nor identity."""

STATELESS_MODULES = PLAIN_MODULES - {"abc", "array", "decimal", "numbers"}
"""Modules of which those names leave nothing behind; a context of `decimal` is kept."""

PLAIN_BUILTINS = frozenset(
    """
    NotImplemented Ellipsis abs all any ascii bin bool bytearray bytes callable chr complex dict
    divmod enumerate filter float format hasattr hex input int isinstance issubclass iter len list
    map max memoryview min next oct ord pow print range repr reversed round slice sorted str sum
    tuple type zip __name__
    """.split()
)
"""Builtins, beside the exceptions, that show neither hash order nor identity and keep nothing."""

PLAIN_TYPES = (
    *(int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, range, slice),
    memoryview,
    *(e for e in vars(builtins).values() if isinstance(e, type) and issubclass(e, BaseException)),
)
"""Types whose public attributes are all plain, among which there is no way to make a set."""

PLAIN_ATTRIBUTES = frozenset(
    """
    A ASCII Annotated Any AnyStr AsyncContextManager AsyncGenerator AsyncIterable AsyncIterator
    Awaitable ByteString Callable ChainMap Clamped ClassVar Collection Complex Container Context
    ContextManager Coroutine Counter DOTALL Decimal DecimalException DecimalTuple DefaultContext
    DefaultDict Deque Dict DivisionByZero DivisionUndefined ExtendedContext Final FloatOperation
    Fraction Generator Generic Hashable I IGNORECASE Inexact Integral InvalidOperation Iterable
    Iterator JSONDecodeError L LOCALE List Literal M MAX_EMAX MAX_PREC MIN_EMIN MIN_ETINY MULTILINE
    Mapping Match MutableMapping MutableSequence NOFLAG NamedTuple Never NewType NoReturn NormalDist
    Number Optional OrderedDict Overflow Pattern Protocol ROUND_05UP ROUND_CEILING ROUND_DOWN
    ROUND_FLOOR ROUND_HALF_DOWN ROUND_HALF_EVEN ROUND_HALF_UP ROUND_UP Rational Real RegexFlag
    Reversible Rounded S Self Sequence Sized StatisticsError Struct Subnormal SupportsAbs
    SupportsBytes SupportsComplex SupportsFloat SupportsIndex SupportsInt SupportsRound
    TYPE_CHECKING Template Text TextWrapper Tuple Type TypeAlias TypeGuard TypeVar TypedDict U
    UNICODE Underflow Union VERBOSE X abc abs accumulate acos acosh adjusted and_ appendleft
    as_tuple ascii_letters ascii_lowercase ascii_uppercase asin asinh atan atan2 atanh batched
    bidirectional bisect bisect_left bisect_right cache cache_clear cache_info calcsize call
    canonical capwords category cbrt cdf ceil chain close cmp_to_key comb combinations
    combinations_with_replacement combining compare compare_signal compare_total compare_total_mag
    compile compress concat contains copy_abs copy_negate copy_sign copysign correlation cos cosh
    countOf covariance cycle decimal decomposition dedent default_factory defaultdict degrees
    delitem deque digit digits dist dropwhile dumps e east_asian_width elements endpos eq erf erfc
    error escape exp exp2 expand expm1 extendleft fabs factorial fill filterfalse findall finditer
    flags floor floordiv fma fmean fmod frexp from_decimal from_float from_samples fsum fullmatch
    func gamma gcd ge geometric_mean getcontext getitem group groupby groupdict groupindex groups gt
    harmonic_mean heapify heappop heappush heappushpop heapreplace hexdigits hypot iadd iand iconcat
    ifloordiv ilshift imatmul imod imul indent indexOf inf infj insort insort_left insort_right inv
    inv_cdf invert ior ipow irshift is_ is_canonical is_finite is_infinite is_nan is_normal
    is_normalized is_not is_qnan is_signed is_snan is_subnormal is_valid is_zero isclose isfinite
    isinf islice isnan isqrt isub itemgetter iter_unpack itruediv ixor kde keywords lastgroup
    lastindex lcm ldexp le length_hint lgamma limit_denominator linear_regression ln loads
    localcontext log log10 log1p log2 logb logical_and logical_invert logical_or logical_xor lookup
    lru_cache lshift lt match matmul max max_mag maxlen mean median median_grouped median_high
    median_low merge min min_mag mirrored mod mode modf most_common move_to_end mul multimode
    namedtuple nan nanj ne neg new_child next_minus next_plus next_toward nextafter nlargest
    normalize not_ nsmallest number_class numeric octdigits or_ overlap pack pack_into pairwise
    parents partial pattern pdf perm permutations phase pi polar popleft pos pow printable prod
    product pstdev punctuation purge pvariance quantiles quantize radians radix re rect reduce
    remainder remainder_near repeat rotate rshift safe_substitute same_quantum scaleb search send
    setcontext setitem shift shorten sin sinh size span sqrt starmap stdev string sub subn
    substitute subtract sumprod takewhile tan tanh tau tee throw to_eng_string to_integral
    to_integral_exact to_integral_value total truediv trunc truth ulp unpack unpack_from variance
    whitespace wrap xor zip_longest zscore
    """.split()
)
"""Names that a program may read from anything: of functions and constants of PLAIN_MODULES, and of
what these return. It is enough that one thing of that name is not plain to leave the name out."""

MODULE_OPS = frozenset(
    """
    BINARY_OP BINARY_SUBSCR BUILD_TUPLE CACHE EXTENDED_ARG IMPORT_FROM IMPORT_NAME LOAD_ATTR
    LOAD_CONST LOAD_NAME MAKE_FUNCTION NOP POP_TOP RESUME RETURN_CONST RETURN_VALUE
    SET_FUNCTION_ATTRIBUTE STORE_NAME
    """.split()
)
"""Opcodes that make, outside of functions, nothing that a call could change: imports, functions
with constant defaults, constants, annotations."""

ATTRIBUTE_SHIFT = 1 if sys.version_info >= (3, 12) else 0

MEANINGS = {
    "IMPORT_NAME": ("import", 0),
    "LOAD_NAME": ("name", 0),
    "LOAD_GLOBAL": ("name", 1),
    "LOAD_FROM_DICT_OR_GLOBALS": ("name", 0),
    "STORE_NAME": ("bind", 0),
    "IMPORT_FROM": ("attribute", 0),
    "LOAD_ATTR": ("attribute", ATTRIBUTE_SHIFT),
    "LOAD_METHOD": ("attribute", 0),
    "LOAD_SUPER_ATTR": ("attribute", 2),
    "BINARY_OP": ("operator", 0),
    "BUILD_SET": ("shows", 0),
    "SET_ADD": ("shows", 0),
    "SET_UPDATE": ("shows", 0),
    "LOAD_BUILD_CLASS": ("shows", 0),
    "MATCH_CLASS": ("shows", 0),
    "STORE_GLOBAL": ("keeps", 0),
    "DELETE_GLOBAL": ("keeps", 0),
    "STORE_ATTR": ("keeps", 0),
    "DELETE_ATTR": ("keeps", 0),
    "EXTENDED_ARG": ("extends", 0),
    "LOAD_CONST": ("constant", 0),
}
"""What an opcode says to the compiler's scan, and the bits of its argument below the index of a
name. Those without an entry compute with what is there."""

_CODES = ("", "import", "name", "bind", "attribute", "operator", "shows", "keeps", "extends")
_CODES += ("constant",)
"""As `enum meaning` of csrc/compiler.c numbers them."""


def scan_lists(importable: Iterable[str]) -> dict[str, list[list[str]] | str]:
    """Returns what the compiler process is told, as its program takes it."""
    attributes = {name for kind in PLAIN_TYPES for name in dir(kind) if not name.startswith("_")}
    attributes -= {"format_map"}  # `format` itself goes by the text that it is called on
    exceptions = {kind.__name__ for kind in PLAIN_TYPES if issubclass(kind, BaseException)}
    lists = (
        importable,
        PLAIN_MODULES,
        STATELESS_MODULES,
        PLAIN_BUILTINS | exceptions,
        PLAIN_ATTRIBUTES | attributes,
    )
    table = bytearray(256)
    for name, number in opcode.opmap.items():
        if number < len(table):
            meaning, shift = MEANINGS.get(name, ("", 0))
            kept = 0 if name in MODULE_OPS else 16
            table[number] = _CODES.index(meaning) | kept | shift * 32
    return {"scan": [sorted(names) for names in lists], "meanings": table.hex()}
