"""The program that tests a completed function inside the sandbox; its text is a job's source.

What the prompt defines exists once, for the test and the solution alike, so that its exceptions,
classes and instances mean the same to both, as in one module. Beyond that the two have nothing in
common that the solution could write to: each has its own builtins and names, and the solution's
modules are copies. What the function returns reaches the test as it is where all of it is built in
or the prompt's, and otherwise in built-in types, so that no method of the solution's decides a
comparison. Classes of the prompt are watched: a solution that changes their methods is stopped.
"""

import sys
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from decimal import Decimal
from fractions import Fraction
from functools import partial
from re import Match, Pattern
from types import BuiltinFunctionType, FunctionType, MemberDescriptorType, MethodType, ModuleType

BUILTINS = vars(__builtins__) if type(__builtins__) is ModuleType else __builtins__
globals().update(BUILTINS)  # held here, whatever a solution does to the interpreter's

# The frames between the interpreter and the function are no part of its recursion.
sys.setrecursionlimit(sys.getrecursionlimit() + 7)

HEAP_TYPE = 1 << 9
"""Flag of a class that Python code made, or some C code; others cannot be changed."""

# Read past anything that a class says of itself.
vars_of = type.__dict__["__dict__"].__get__
mro_of = type.__dict__["__mro__"].__get__
bases_of = type.__dict__["__bases__"].__get__
flags_of = type.__dict__["__flags__"].__get__
state_of = object.__getattribute__
exception_args = vars_of(BaseException)["args"].__get__

ATOMS = {
    id(kind)
    for kind in (
        type(None), bool, int, float, complex, str, bytes, bytearray, range, slice, type(...),
        type(NotImplemented), object, Decimal, Pattern, Match,
    )
}  # fmt: skip
SEQUENCES = {id(kind) for kind in (list, tuple, set, frozenset, deque)}
DICTS = {id(kind) for kind in (dict, OrderedDict, defaultdict)}
VIEWS = {id(kind) for kind in (type({}.keys()), type({}.values()), type({}.items()))}
FUNCTIONS = {
    id(kind) for kind in (FunctionType, BuiltinFunctionType, MethodType, partial, type("".join))
}
BASES = (
    (int, int.__int__), (float, float.__float__), (str, str.__str__), (bytes, bytes.__bytes__),
    (list, list.__iter__), (tuple, tuple.__iter__), (set, set.__iter__),
    (frozenset, frozenset.__iter__), (deque, deque.__iter__), (dict, dict.items),
)  # fmt: skip
FILLS = {id(list): list.extend, id(set): set.update}


classes = {id(Counter): Counter, id(Fraction): Fraction}
"""Of which an instance reaches the test as it is: the prompt's and the test's own, and these."""
values = {}
"""All else that prompt and test name, and the functions in their classes."""
watched = {}
"""id -> (class, its bases, what it held, its marks) of all that those classes inherit from."""
rows = {}
"""Fields -> the class that stands for a solution's named tuples."""


def f(setup, solution, test, entry_point):
    """Returns "passed" where the test of the solution raises nothing."""
    tested = world()
    exec(setup, tested)
    shared = {name: value for name, value in tested.items() if name != entry_point}
    exec(test, tested)
    check = tested["check"]
    watch(tested)

    import_copy, copied = copying(BUILTINS["__import__"])
    solved = {name: copied(value) for name, value in shared.items()} | world(__import__=import_copy)
    exec(solution, solved)
    verify()
    # In one module the test's imports and helpers are there, too, when the function is called.
    for name in {*tested} - {*solved, entry_point}:
        if callable(tested[name]) or type(tested[name]) is ModuleType:
            solved[name] = copied(tested[name])
    tested[entry_point] = called = checked(solved[entry_point])
    check(called)
    return "passed"


def world(**replaced) -> dict:
    """Returns names to run a module in, with builtins of its own.

    It is called as public harnesses call it; where its name has no module, dataclasses fail.
    """
    return {"__name__": "builtins", "__builtins__": BUILTINS | replaced}


def copying(load):
    """Returns an import of copies of modules, and what makes the copy of a module."""
    copies = {}

    def copied(value):
        if type(value) is not ModuleType:
            return value
        if value.__name__ not in copies:
            copies[value.__name__] = copy = ModuleType(value.__name__)
            vars(copy).update(vars(value))
        return copies[value.__name__]

    def import_copy(name, globals=None, locals=None, fromlist=(), level=0):
        return copied(load(name, globals, locals, fromlist, level))

    return import_copy, copied


def watch(names):
    """Notes what prompt and test define."""
    found = list(names.values())
    while found:
        value = found.pop()
        values[id(value)] = value
        if isinstance(value, type) and id(value) not in classes and is_own(value):
            classes[id(value)] = value
            found += vars_of(value).values()
    for kind in classes.values():
        for base in mro_of(kind):
            if flags_of(base) & HEAP_TYPE:
                watched[id(base)] = (base, bases_of(base), dict(vars_of(base)), marks(base))


def is_own(kind):
    return flags_of(kind) & HEAP_TYPE and vars_of(kind).get("__module__") == "builtins"


def marks(kind):
    """Returns what changes when anything in a class does; no method of a value in it is called."""
    holds = vars_of(kind)
    return list(holds), list(map(id, holds.values()))


def verify():
    """Raises where a watched class has got or lost more than data."""
    for kind, bases, held, marked in watched.values():
        if bases_of(kind) is not bases:
            raise RuntimeError("the solution changes what a class inherits from")
        if marks(kind) == marked:
            continue
        holds = vars_of(kind)
        for name in {*held, *holds}:
            before, after = held.get(name), holds.get(name)
            if before is not after and not (is_data(before) and is_data(after)):
                raise RuntimeError("the solution changes the methods of a class")


def is_data(value):
    kind = type(value)
    return is_trusted(value) and not callable(value) and not defines(kind, "__get__")


def checked(function):
    """Returns the function, as one whose results are plain."""

    def called(*args, **kwargs):
        try:
            return plain(function(*args, **kwargs))
        finally:
            verify()

    return called


def plain(value):
    """Returns the value itself where no method of the solution's is in it, else a plain copy."""
    return value if is_trusted(value) else converted(value, {})


def is_trusted(value):
    """Returns whether a value is made of built-in types and of the prompt's classes alone."""
    left, seen = [value], {}
    while left:
        value = left.pop()
        kind = type(value)
        if id(kind) in ATOMS or id(value) in seen:
            continue
        seen[id(value)] = value  # kept, so that no other value gets its id
        if id(kind) in SEQUENCES or id(kind) in VIEWS:
            left += value
        elif id(kind) in DICTS:
            left += [*dict.keys(value), *dict.values(value)]
            if kind is OrderedDict:
                left.append(state_of(value, "__dict__"))
            elif kind is defaultdict:
                left.append(value.default_factory)
        elif is_known(kind):
            left += parts(value, kind)
        elif not (id(value) in values or is_static(value)):
            return False
    return True


def is_known(kind):
    """Returns whether instances of a class reach the test as they are, if what they hold does."""
    return id(kind) in classes or (is_static(kind) and inherits(kind, BaseException))


def is_static(value):
    """Returns whether a value is a class that nobody can change."""
    return type(value) is type and not flags_of(value) & HEAP_TYPE


def parts(value, kind):
    """Returns what an instance of a class of the prompt's holds."""
    found = [base_items(value, kind), state(value)]
    for slot in slots(kind):
        try:
            found.append(slot.__get__(value))
        except AttributeError:
            pass
    if inherits(kind, BaseException):
        found.append(exception_args(value))
    return found


def state(value):
    try:
        return state_of(value, "__dict__")
    except AttributeError:
        return {}


def base_items(value, kind):
    for base, read in BASES[4:]:
        if inherits(kind, base):
            return list(read(value))
    return []


def slots(kind):
    return [
        member
        for base in mro_of(kind)
        for member in vars_of(base).values()
        if type(member) is MemberDescriptorType
    ]


def converted(value, done):
    """Returns the value in built-in types; `done` has what was converted already, by id."""
    if is_trusted(value):
        return value
    if id(value) in done:
        return done[id(value)][1]
    kind = type(value)
    if is_known(kind):
        return cleaned(value, kind, done)
    if id(kind) in FUNCTIONS:
        return checked(value)
    if defines(kind, "__next__"):
        return lazily(value)
    for empty in ({}, OrderedDict()):
        if kind is type(empty.keys()):
            return {converted(key, done): None for key in value}.keys()
        if kind is type(empty.items()):
            return {converted(k, done): converted(v, done) for k, v in value}.items()
        if kind is type(empty.values()):
            return {i: converted(v, done) for i, v in enumerate(value)}.values()
    for base, read in BASES:
        if inherits(kind, base):
            return in_base(value, kind, base, read, done)
    raise TypeError("the function returned a value of no built-in type")


def in_base(value, kind, base, read, done):
    """Returns an instance of a built-in class with what a value of a subclass holds."""
    if base in (int, float, str, bytes):
        return read(value)
    if base is dict:
        same = next((known() for known in (Counter, OrderedDict) if inherits(kind, known)), {})
        if inherits(kind, defaultdict):
            factory = vars_of(defaultdict)["default_factory"].__get__(value)
            same = defaultdict(factory and converted(factory, done))
        done[id(value)] = (value, same)  # it can hold itself
        for key, held in read(value):
            dict.__setitem__(same, converted(key, done), converted(held, done))
        return same
    if id(base) in FILLS:
        same = base()
        done[id(value)] = (value, same)
        FILLS[id(base)](same, [converted(item, done) for item in read(value)])
        return same
    items = [converted(item, done) for item in read(value)]
    if base is deque:
        return deque(items, deque.maxlen.__get__(value))
    fields = vars_of(kind).get("_fields") if base is tuple else None
    if type(fields) is tuple and all([type(field) is str for field in fields]):
        if fields not in rows:
            rows[fields] = partial(namedtuple, "Row")(fields)
        return rows[fields](*items)
    return base(items)


def cleaned(value, kind, done):
    """Returns an instance of a class of the prompt's after its parts were converted in place."""
    done[id(value)] = (value, value)
    names = state(value)
    for name, held in list(dict.items(names)):
        dict.__setitem__(names, name, converted(held, done))
    for slot in slots(kind):
        try:
            slot.__set__(value, converted(slot.__get__(value), done))
        except AttributeError:
            pass
    items = base_items(value, kind)
    fixed = exception_args(value) if inherits(kind, BaseException) else ()
    if inherits(kind, tuple):
        value = tuple.__new__(kind, [converted(item, done) for item in items])
    elif inherits(kind, list):
        list.__setitem__(value, slice(None), [converted(item, done) for item in items])
    elif inherits(kind, dict):
        fixed = [key for key, _ in items]
        for key, held in items:
            dict.__setitem__(value, key, converted(held, done))
    else:
        fixed = [*fixed, *items]
    if type(names) is not dict or not is_trusted(fixed):
        raise TypeError("the function returned a value of no built-in type")
    return value


def lazily(values):
    """Yields what an iterator of the solution's yields, when it is asked for."""
    for value in values:
        verify()
        yield plain(value)


def defines(kind, name):
    return any([name in vars_of(base) for base in mro_of(kind)])


def inherits(kind, base):
    """Returns what issubclass says, asking no metaclass."""
    return any([one is base for one in mro_of(kind)])
