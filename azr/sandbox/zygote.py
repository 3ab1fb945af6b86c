"""The program of zygotes and compilers, in an interpreter of its own (`process.BOOT`).

It must not import the rest of the product: what it loads, every child carries. Its first argument
is a JSON object (`azr.sandbox.process.Setting` writes it); its first frame on the socket is another
one, `{"layers": ...}` or `{"error": ...}`, and the only one in JSON.
"""

import _imp
import builtins
import codecs
import encodings
import functools
import gc
import importlib
import json
import sys
import types
from _frozen_importlib import ModuleSpec  # which `importlib.machinery` would load more for

STREAMED = ("ascii", "latin_1", "utf_8")
"""Encodings of text that programs may use for streams, too."""
ENCODINGS = (
    "punycode",
    "raw_unicode_escape",
    "undefined",
    "unicode_escape",
    "utf_16",
    "utf_16_be",
    "utf_16_le",
    "utf_32",
    "utf_32_be",
    "utf_32_le",
    "utf_7",
    "utf_8_sig",
)
"""Encodings of text that programs may use. The use of another one that Python has is the program's
outcome; only one that Python does not have is an error that a program can catch."""

CHARMAPS = ("cp", "hp_", "iso8859_", "koi8_", "kz", "mac_", "palmos", "ptcp", "tis_")
"""Beginnings of modules that encode by two tables, and of a few that do not."""

NOT_OF_TEXT = (
    "base64_codec",
    "bz2_codec",
    "hex_codec",
    "quopri_codec",
    "rot_13",
    "uu_codec",
    "zlib_codec",
)
"""Modules of `encodings` by which no text is encoded."""

NO_ENCODINGS = ("__init__", "aliases", "mbcs", "oem")
"""Others in its folder, of which none comes on this system."""


def load_extension(name, path):
    """Returns the C module of that file without a search, and without the package around it."""
    module = _imp.create_dynamic(ModuleSpec(name, None, origin=path))
    _imp.exec_dynamic(module)
    return module


def facade(whole, withheld, refuse):
    """Returns what stands for a module: it gives and takes what that does, but for some names."""
    name = whole.__name__

    def check(attribute):
        if attribute in withheld:
            refuse(f"{name}.{attribute}")
            raise AttributeError(f"module {name!r} has no attribute {attribute!r}")

    class Facade(types.ModuleType):
        def __getattribute__(self, attribute):
            if attribute in ("__class__", "__spec__"):  # for the text of a module
                return object.__getattribute__(self, attribute)
            check(attribute)
            return getattr(whole, attribute)

        def __setattr__(self, attribute, value):
            check(attribute)
            setattr(whole, attribute, value)

        def __delattr__(self, attribute):
            check(attribute)
            delattr(whole, attribute)

    Facade.__name__ = Facade.__qualname__ = "module"
    Facade.__module__ = "builtins"
    made = Facade(name)
    types.ModuleType.__setattr__(made, "__spec__", whole.__spec__)
    return made


def streams(io):
    """Gives this interpreter standard streams that swallow everything and yield nothing."""

    class Sink(io.RawIOBase):
        def writable(self):
            return True

        def write(self, data):
            return len(data)

        def fileno(self):
            return self.number

    for number, name in enumerate(("stdout", "stderr"), 1):
        sink = Sink()
        sink.name, sink.number = f"<{name}>", number
        errors = "strict" if name == "stdout" else "backslashreplace"
        stream = io.TextIOWrapper(io.BufferedWriter(sink), "utf-8", errors)
        stream.mode = "w"
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    source = io.BytesIO()
    source.name = "<stdin>"
    sys.stdin = sys.__stdin__ = io.TextIOWrapper(source, "utf-8")
    sys.stdin.mode = "r"


def fix_warnings(warnings, linecache):
    """Has warnings take the ways that they take elsewhere, to a stream that swallows them."""
    linecache.updatecache = lambda filename, module_globals=None: []  # no source is to be had
    tracemalloc = sys.modules["tracemalloc"] = types.ModuleType("tracemalloc")
    vars(tracemalloc).update(is_tracing=lambda: False, get_object_traceback=lambda source: None)
    warnings.resetwarnings()
    for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", category)


def unraisable(report, /):
    """Swallows what happens in a `__del__`."""
    if type(report).__name__ != "UnraisableHookArgs":
        raise TypeError("sys.unraisablehook argument type must be UnraisableHookArgs")


def guard_machine(sandbox, io, pure):
    """Makes `open` and what `os` does outcomes of the program, however it gets there; the calls
    themselves are those that the layers around a child see to."""
    builtins.open = io.open = sandbox.guard("open", io.open)
    vars(sys.modules["_io"])["open"] = io.open
    native = vars(sys.modules["posix"])
    calls = {
        name: sandbox.guard(f"os.{name}", value)
        for name, value in native.items()
        if isinstance(value, types.BuiltinFunctionType) and name not in pure
    }
    for part in (vars(sys.modules["os"]), native):
        part.update((name, calls[name]) for name in part.keys() & calls.keys())
        part["environ"].clear()
    thread = vars(sys.modules["_thread"])
    thread["get_native_id"] = sandbox.guard("_thread.get_native_id", thread["get_native_id"])


def cache_emptier():
    """Returns what empties the caches of `re` and `typing`."""
    empty = [importlib.import_module("re").purge, *importlib.import_module("typing")._cleanups]

    def forget():
        for call in empty:
            call()

    return forget


class Table(tuple):
    """A codec without what only streams need."""

    _is_text_encoding = True
    refuse: types.BuiltinFunctionType

    def __getattr__(self, part):
        self.refuse(f"encodings.{part}")
        raise AttributeError(part)


class NotOfText(Table):
    """A codec by which no text is encoded: Python says so."""

    _is_text_encoding = False


def recode(how, table, text, errors="strict"):
    return how(text, errors, table)


def load_charmap(name):
    """Returns the codec of an encoding that is a table; None for any other encoding."""
    module = importlib.import_module(f"encodings.{name}")
    sys.modules.pop(module.__name__)
    delattr(encodings, name)
    if not hasattr(module, "decoding_table"):
        return None
    table = module.decoding_table
    encode = functools.partial(recode, codecs.charmap_encode, codecs.charmap_build(table))
    return Table((encode, functools.partial(recode, codecs.charmap_decode, table), None, None))


def fix_encodings(refuse):
    """Loads the encodings, and makes their look-up one in a table, which never imports."""
    known = {name: codecs.lookup(name) for name in STREAMED}
    known |= {name: Table((*codecs.lookup(name)[:2], None, None)) for name in ENCODINGS}
    for name in ENCODINGS:
        module = vars(sys.modules.pop(f"encodings.{name}"))
        delattr(encodings, name)
        for part in ("IncrementalEncoder", "IncrementalDecoder", "StreamWriter", "StreamReader"):
            module.pop(part, None)
        for part in ("StreamConverter", "getregentry", "__spec__", "__loader__"):
            module.pop(part, None)
    files = sys.modules["posix"].listdir(encodings.__path__[0])
    names = {name.removesuffix(".py") for name in files if name.endswith(".py")}
    known |= {name: load_charmap(name) for name in names if name.startswith(CHARMAPS)}
    known |= dict.fromkeys(NOT_OF_TEXT, NotOfText((None, None, None, None)))
    others = names - {*STREAMED, *ENCODINGS, *NOT_OF_TEXT, *NO_ENCODINGS}
    aliases, normalize = encodings.aliases.aliases, encodings.normalize_encoding

    def look_up(name):
        # As encodings.search_function goes about it.
        name = normalize(name)
        alias = aliases.get(name) or aliases.get(name.replace(".", "_"))
        for module in filter(None, (alias, name)):
            if known.get(module):
                return known[module]
            if module in others:
                refuse(f"encodings.{module}")
                return None
        return None

    Table.refuse = refuse
    codecs.unregister(encodings.search_function)
    encodings._cache.clear()
    # Python asks for four things in a tuple of any class; its annotations, for its own.
    codecs.register(look_up)  # pyrefly: ignore[bad-argument-type]
    sys.path_importer_cache.clear()
    gc.collect()  # what comes next takes the room of the modules that have gone


def exception_names(modules):
    """Returns {class: name} of the exceptions that are known by their address."""
    values = (value for module in (*modules, builtins) for value in vars(module).values())
    classes = (value for value in values if isinstance(value, type))
    return {kind: kind.__name__ for kind in classes if issubclass(kind, BaseException)}


def rehearsal():
    """The code of this function, run as a program, does what programs do most."""
    global f

    def f(x, *, y=1):
        total = 0
        for i, c in enumerate(sorted(x, key=lambda c: -len(str(c)))):
            total += i * y if c else len({c: i})
        text = ", ".join(f"{i:>3}" for i in range(3)).upper().split(",")
        try:
            text.append({}["missing"])
        except KeyError as error:
            text.append(repr(error))
        pairs = {str(v): (v, total) for v in range(4)}
        return [total, text, pairs, {"a": (1.5, None, True)}, {1, 2}, b"x" * 3, 7 // y % 3]


def rehearse(sandbox, times):
    """Runs the rehearsal, so that children find caches filled and pages present."""
    for _ in range(times):
        sandbox.rehearse(rehearsal.__code__, "[1, 'two', (3.0, None), {'k': b'v'}], y=-2")


def prepare(sandbox, config):
    """Loads what programs need, and makes this interpreter one that they cannot mark."""
    sandbox.watch_memory()
    io, refuse = importlib.import_module("io"), sandbox.refuse
    streams(io)
    sys.unraisablehook = unraisable
    fix_encodings(refuse)
    internal = {name: importlib.import_module(name) for name in config["internal"]}
    allowed = {name: importlib.import_module(name) for name in config["allowed"]}
    allowed |= {name: load_extension(name, path) for name, path in config["extra"].items()}
    names = exception_names((io, *allowed.values()))
    modules = [vars(allowed[name]) for name in allowed if name not in config["insiders"]]
    for name, withheld in config["facades"].items():
        whole = importlib.import_module(name)
        allowed[name] = made = facade(whole, {*withheld, "__dict__", "__dir__"}, refuse)
        for module in modules:
            module.update((key, made) for key, value in module.items() if value is whole)
    site = importlib.import_module("site")
    for add in (site.setquit, site.setcopyright, site.sethelper):
        add()
    importlib.import_module("random").seed(config["seed"])
    for name in config["forgotten"]:
        sys.modules.pop(name, None)
    loaded = dict(sys.modules)
    limits = tuple(config["limits"])
    load, forget = builtins.__import__, cache_emptier()
    sandbox.prepare(vars(builtins), names, allowed, internal, loaded, forget, load, limits)
    builtins.__import__ = getattr(sandbox, "__import__")  # noqa: B009
    sandbox.watch_identity()
    if "random" in config["forgotten"]:  # and `statistics` has it
        statistics = vars(sys.modules["statistics"])
        withheld = {*dir(statistics["random"])} - {"Random"}  # which is asked for with a seed
        statistics["random"] = facade(statistics["random"], withheld, refuse)
    fix_warnings(sys.modules["warnings"], sys.modules["linecache"])
    sys.argv[:] = [""]
    sys.orig_argv.clear()
    sys.path.clear()
    guard_machine(sandbox, io, config["pure_calls"])
    sys.setrecursionlimit(config["recursion"])


def frame(value):
    """Returns a JSON object behind its length."""
    body = json.dumps(value).encode()
    return len(body).to_bytes(4, "little") + body


def serve_zygote(sandbox, config):
    # Small objects of different numbers, so that no two zygotes lay out their memory alike.
    padding = [bytes(16 * (i % 32)) for i in range(config["seed"] * 97 % 512)]
    prepare(sandbox, config)
    own_bytes = sandbox.open_zygote(
        config["socket_fd"],
        config["tokens_fd"],
        config["held_fd"],
        config["seed"],
        config["slots"],
    )
    gc.disable()
    rehearse(sandbox, 20)
    gc.collect()
    gc.freeze()
    sandbox.tidy()
    rehearse(sandbox, 2)
    sandbox.settle()
    memory_bytes = config["memory_bytes"] - own_bytes
    layers = sandbox.lock_down(True, memory_bytes) if config["protected"] else {}
    hello = {"layers": layers}
    if config["floor"]:
        hello["floor"] = sandbox.fork_floor(config["floor"])
    config["greeted"] = True
    sandbox.serve(frame(hello))
    return padding


def serve_compiler(sandbox, config):
    sandbox.watch_memory()
    importlib.import_module("unicodedata")  # for names beyond ASCII and \N{...}
    layers = sandbox.lock_down(False, config["memory_bytes"]) if config["protected"] else {}
    posix = importlib.import_module("posix")
    config["greeted"] = True
    posix.write(config["socket_fd"], frame({"layers": layers}))
    lists = (set(names) for names in config["scan"])
    meanings = bytes.fromhex(config["meanings"])
    sizes = config["source_bytes"], config["code_bytes"]
    sandbox.serve_compiler(config["socket_fd"], *sizes, *lists, vars(builtins), meanings)


def main():
    config = json.loads(sys.argv[1])
    sandbox = load_extension("_sandbox", config["extension"])
    posix = importlib.import_module("posix")
    write, end = posix.write, posix._exit
    try:
        sandbox.die_with(config["parent"])
        serve = {"zygote": serve_zygote, "compiler": serve_compiler}[config["role"]]
        serve(sandbox, config)
    except BaseException as error:
        # The client has no other way to learn why; it may be gone, too.
        try:
            if "greeted" not in config:
                text = f"{type(error).__name__}: {error}"
                write(config["socket_fd"], frame({"error": text}))
        except OSError:
            pass
        end(1)


if __name__ == "__main__":
    main()
