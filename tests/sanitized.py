"""Builds the sandbox with the address and undefined-behaviour sanitizers and runs the corpus.

    python -m tests.sanitized

What the sanitizers look for is in the parts that read hostile bytes and text: the decoder, the
argument parser, reports, and the whole way of a program through a child. The sanitizers need more
memory and system calls than a sandbox gives, so here the layers are off: `tests/test_sandbox*.py`
test those. Ends non-zero on any report or wrong verdict.
"""

import os
import random
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FLAGS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
WARNINGS = ["-Wall", "-Wextra", "-Werror"]

OPTIONS = {
    "LD_PRELOAD": "",
    # The interpreter keeps what it has until it ends.
    "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1:exitcode=99",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    "PYTHONMALLOC": "malloc",
}


def build(folder: Path) -> Path:
    """Returns the sanitized extension."""
    target = folder / "_sandbox.so"
    sources = sorted(map(str, (ROOT / "csrc").glob("*.c")))
    include = sysconfig.get_paths()["include"]
    command = ["cc", "-std=gnu11", "-O1", "-g", "-shared", "-fPIC", "-fvisibility=hidden"]
    command += [*WARNINGS, *FLAGS, f"-I{include}", *sources, "-o", str(target)]
    subprocess.run(command, check=True)
    return target


def runtime() -> str:
    """Returns the sanitizers' libraries, which must be loaded before the interpreter."""
    names = ("libasan.so", "libubsan.so")
    found = [
        subprocess.run(
            ["cc", f"-print-file-name={name}"], check=True, capture_output=True, text=True
        ).stdout.strip()
        for name in names
    ]
    return " ".join(found)


def fuzz(module) -> None:
    """Feeds bytes and texts, sound and damaged, to what reads them."""
    rng = random.Random(0)
    value = [{"a": (1, -(2**70), 2.5, 3j, None)}, {b"b", "\ud800", True}, [[]] * 9]
    sound = module.encode(value, 4096, 60, 1000)[1]
    text = "[1, -2.5e3, 'a\\n' \"b\", r'\\d', b'\\xff', {1: (2,)}, {3}, set()], x=0x_ff, y=1+2j"
    for _ in range(100_000):
        data = bytearray(sound)
        for _ in range(rng.randint(0, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            module.decode(bytes(data[: rng.randint(1, len(data))]), 1 << 16, 60, 200_000)
        except (ValueError, OverflowError):
            pass
        at = rng.randrange(len(text))
        damaged = text[:at] + rng.choice("()[]{},:'\"\\_.eEjJxb#\n é0") + text[at + 1 :]
        try:
            module.parse_args(damaged[: rng.randint(1, len(damaged))], 60)
        except SyntaxError:
            pass
        entry = rng.randbytes(16) + bytes(data)
        try:
            module.decode_entry(entry, rng.choice((0, 0, 8, 16)), 1 << 16, 60, 200_000)
        except (ValueError, OverflowError):
            pass


def child(path: str) -> None:
    """Runs with the sanitizers loaded."""
    import azr

    module = load(path)
    sys.modules["azr._sandbox"] = azr._sandbox = module
    from azr.sandbox import Sandbox, corpus, process

    # Its processes start from an empty environment; these need the sanitizers' libraries.
    plain = process.environment
    process.environment = lambda seed: plain(seed) | {name: os.environ[name] for name in OPTIONS}

    fuzz(module)
    print("fuzzed the decoder, the argument parser and the reports")
    programs = [program for program in corpus.load() if is_safe(program)]
    with Sandbox(workers=2, limits=corpus.LIMITS, _protected=False) as sandbox:
        _, complaints = corpus.run(sandbox, programs)
    print(f"{len(programs)} programs, {len(complaints)} complaints", *complaints, sep="\n")
    sys.exit(bool(complaints))


# Rows of the corpus that only the interpreter and the codec have to do with. There are no layers
# here: nothing else of the corpus may run, least of all as root.
SAFE_ROWS = {15, 16, 17, 20, 21, 22, 48, 49, 50, 58, 59, 60, 61}


def is_safe(program) -> bool:
    """Whether a program is harmless where nothing protects from it."""
    reaches_out = any(word in program.job.code for word in ("def loaded", "open(", "subclasses"))
    return program.row in SAFE_ROWS and not reaches_out and not program.is_slow


def load(path: str):
    from importlib.machinery import ExtensionFileLoader
    from importlib.util import module_from_spec, spec_from_loader

    loader = ExtensionFileLoader("_sandbox", path)
    module = module_from_spec(spec_from_loader("_sandbox", loader))
    loader.exec_module(module)
    return module


def main() -> None:
    if len(sys.argv) > 1:
        child(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        built = build(Path(folder))
        env = {**os.environ, **OPTIONS, "LD_PRELOAD": runtime()}
        command = [sys.executable, "-W", "ignore", "-m", "tests.sanitized", str(built)]
        done = subprocess.run(command, cwd=ROOT, env=env)
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
