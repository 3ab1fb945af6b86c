"""What plain CPython says of programs; executed by path, in an interpreter of its own.

Standard input holds JSON, `{"modules": [...], "programs": [[code, args_text], ...]}`; standard
output gets a line of JSON for each program, its outcome:

    ["ok", text]            returned a plain value; sets are sorted in its text
    ["exception", class]    raised; "UserException" for a class of the program's own
    ["unsupported", type]   returned another value
    ["syntax_error", ""]    does not compile
    ["none", ""]            ran into a limit, or died

Each program has a process of its own, a fork of this one, which has loaded the modules.
"""

import ast
import gc
import importlib
import json
import math
import os
import resource
import signal
import sys
import types

CPU_S = 1.0
WALL_S = 10.0
MEMORY_BYTES = 1 << 30
DEPTH = 60
INT_LIMIT = 10**4298


class Unsupported(Exception):
    """A value that is not plain; its text is the type's name."""


def text_of(value, depth=0):
    """Returns the text of a plain value as `azr.sandbox.Result.repr` has it."""
    kind = type(value)
    if depth > DEPTH:
        raise Unsupported("depth")
    if value is None or kind in (bool, str, bytes):
        return repr(value)
    if kind is int and abs(value) < INT_LIMIT:
        return repr(value)
    if kind is float and math.isfinite(value):
        return repr(value)
    if kind is complex and math.isfinite(value.real) and math.isfinite(value.imag):
        return repr(value)
    if kind is dict:
        pairs = [f"{text_of(k, depth + 1)}: {text_of(v, depth + 1)}" for k, v in value.items()]
        return "{" + ", ".join(pairs) + "}"
    if kind in (list, tuple, set):
        texts = [text_of(item, depth + 1) for item in value]
        if kind is list:
            return "[" + ", ".join(texts) + "]"
        if kind is set:
            return "{" + ", ".join(sorted(texts)) + "}" if texts else "set()"
        return f"({texts[0]},)" if len(texts) == 1 else "(" + ", ".join(texts) + ")"
    raise Unsupported(kind.__name__)


def outcome(code, args_text):
    """Runs a program in this process, which is not to be used any more."""
    try:
        compiled = compile(code, "<program>", "exec", dont_inherit=True)
    except Exception:
        return "syntax_error", ""
    call = ast.parse(f"f({args_text})", mode="eval").body
    args = [ast.literal_eval(node) for node in call.args]
    named = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    module = sys.modules["program"] = types.ModuleType("program")
    try:
        exec(compiled, vars(module))
        value = eval("f", vars(module))(*args, **named)
    except BaseException as error:
        is_own = type(error).__module__ == "program"
        return "exception", "UserException" if is_own else type(error).__name__
    sys.setrecursionlimit(1000)
    try:
        return "ok", text_of(value)
    except Unsupported as error:
        return "unsupported", str(error)


def outcome_apart(code, args_text):
    """Returns the JSON of an outcome that a child finds."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_fd)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.setitimer(signal.ITIMER_PROF, CPU_S)
        signal.setitimer(signal.ITIMER_REAL, WALL_S)
        try:
            text = json.dumps(outcome(code, args_text)).encode()
            with open(write_fd, "wb") as file:
                file.write(text)
        finally:
            os._exit(0)  # nothing that a program left behind runs on
    os.close(write_fd)
    with open(read_fd, "rb") as file:
        text = file.read().decode()
    os.waitpid(pid, 0)
    return text or '["none", ""]'


def main():
    request = json.load(sys.stdin)
    for name in request["modules"]:
        importlib.import_module(name)
    results = os.fdopen(os.dup(1), "w")
    null_fd = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null_fd, fd)
    gc.freeze()
    for code, args_text in request["programs"]:
        results.write(outcome_apart(code, args_text) + "\n")
        results.flush()


if __name__ == "__main__":
    main()
