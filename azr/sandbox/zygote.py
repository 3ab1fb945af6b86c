"""The program of zygotes and compilers, executed by path in an interpreter of its own.

It must not import the rest of the product: what it loads, every child carries. Its one argument is
a JSON object (`azr.sandbox.process.Setting` writes it); its first frame on the socket is another
one, `{"layers": ...}` or `{"error": ...}`, and the only one in JSON.
"""

import _imp
import builtins
import codecs
import encodings
import gc
import importlib
import json
import sys
import types

ENCODINGS = (
    "ascii",
    "cp1252",
    "latin_1",
    "punycode",
    "raw_unicode_escape",
    "unicode_escape",
    "utf_16_be",
    "utf_16_le",
    "utf_7",
    "utf_8",
    "utf_8_sig",
)
"""Encodings of text that programs may use; another is not known to the interpreter."""


class Silence:
    """Stands for standard input, output and error: swallows everything, yields nothing."""

    encoding = "utf-8"
    closed = False

    def write(self, text):
        return len(text)

    def read(self, size=-1):
        return ""

    readline = read

    def flush(self):
        pass

    def isatty(self):
        return False


def load_extension(name, path):
    """Returns the C module of that file without a search, and without the package around it."""
    spec = types.SimpleNamespace(name=name, origin=path)
    module = _imp.create_dynamic(spec)
    _imp.exec_dynamic(module)
    return module


def load_modules(names, internal):
    """Returns {name: module} of those a program may import."""
    for name in internal:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            continue  # a module of another version of Python
    return {name: importlib.import_module(name) for name in names}


def facades(names, recursion):
    """Returns the modules of which a program gets a part."""
    whole = {"io": importlib.import_module("io"), "sys": sys}
    made = {}
    for name, attributes in names.items():
        facade = made[name] = types.ModuleType(name)
        for attribute in attributes:
            setattr(facade, attribute, getattr(whole[name], attribute))
    made["sys"].argv = [""]
    made["sys"].stdin = made["sys"].stdout = made["sys"].stderr = sys.stdout
    # The limit is part of what a program means here, so that it is the same for everybody.
    made["sys"].setrecursionlimit = lambda limit: None
    return made


def load_encoding(name):
    """Returns the codec of that name without what only streams need."""
    codec = codecs.lookup(name)
    module = vars(sys.modules.pop(f"encodings.{name}"))
    delattr(encodings, name)
    for part in ("IncrementalEncoder", "IncrementalDecoder", "StreamWriter", "StreamReader"):
        del module[part]
    for part in ("StreamConverter", "getregentry", "__spec__", "__loader__"):
        module.pop(part, None)
    return codec.encode, codec.decode, None, None


def fix_encodings():
    """Loads the encodings, and makes their look-up one in a table, which never imports."""
    known = {name: load_encoding(name) for name in ENCODINGS}
    aliases = encodings.aliases.aliases.items()
    known |= {alias: known[name] for alias, name in aliases if name in known}
    codecs.unregister(encodings.search_function)
    encodings._cache.clear()
    codecs.register(known.get)


def exception_names(modules):
    """Returns {class: name} of the exceptions that are known by their address."""
    names = {}
    for module in (*modules, builtins):
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, BaseException):
                names[value] = value.__name__
    return names


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
    sys.stdin = sys.stdout = sys.stderr = sys.__stdin__ = sys.__stdout__ = sys.__stderr__ = (
        Silence()
    )
    fix_encodings()
    allowed = load_modules(config["allowed"], config["internal"])
    allowed |= {name: load_extension(name, path) for name, path in config["extra"].items()}
    names = exception_names(allowed.values())
    allowed = facades(config["facades"], config["recursion"]) | allowed
    importlib.import_module("random").seed(config["seed"])
    for name in config["forgotten"]:
        sys.modules.pop(name, None)
    loaded = dict(sys.modules)
    limits = tuple(config["limits"])
    sandbox.prepare(vars(builtins), names, allowed, loaded, builtins.__import__, limits)
    builtins.__import__ = sandbox.import_module
    sandbox.watch_identity()
    statistics = allowed.get("statistics")
    if statistics is not None:
        del statistics.random
    sys.argv[:] = [""]
    sys.orig_argv.clear()
    sys.path.clear()
    sys.modules["posix"].environ.clear()
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
        config["held_index"],
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
    opcodes = importlib.import_module("opcode").opmap
    allowed = {*config["allowed"], *config["facades"], *config["extra"]}
    layers = sandbox.lock_down(False, config["memory_bytes"]) if config["protected"] else {}
    posix = importlib.import_module("posix")
    config["greeted"] = True
    posix.write(config["socket_fd"], frame({"layers": layers}))
    risky = set(config["risky_names"])
    sandbox.serve_compiler(config["socket_fd"], config["source_bytes"], allowed, risky, opcodes)


def main():
    config = json.loads(sys.argv[1])
    sandbox = load_extension("_sandbox", config["extension"])
    try:
        sandbox.die_with(config["parent"])
        serve = {"zygote": serve_zygote, "compiler": serve_compiler}[config["role"]]
        serve(sandbox, config)
    except BaseException as error:
        # The client has no other way to learn why; it may be gone, too.
        posix = importlib.import_module("posix")
        text = f"{type(error).__name__}: {error}"
        try:
            if "greeted" not in config:
                posix.write(config["socket_fd"], frame({"error": text}))
        except OSError:
            pass
        posix._exit(1)


if __name__ == "__main__":
    main()
