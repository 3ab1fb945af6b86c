"""Programs in processes of their own that begin with torch and the trainer loaded.

A process that imports the trainer works four seconds before its first step, a run of the tests two.
So one server imports it, once, and every program is forked from the server: a process like any
other, to be signalled, killed and waited for. `python -m azr.train` itself runs in test_train.py.
"""

import multiprocessing
import os
import sys
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

_FORKED = multiprocessing.get_context("forkserver")
_FORKED.set_forkserver_preload(
    [
        "azr.train",
        "azr.resume",
        "azr.evaluate",
        "azr.report",
        "azr.tasks.prime",
        "transformers.models.qwen2.modeling_qwen2",
    ]
)

TRAIN = "from azr.train import main; sys.exit(main(sys.argv[1:]))"
EVALUATE = "from azr.evaluate import main; sys.exit(main(sys.argv[1:]))"


def start(code: str, arguments: Sequence[str], output: Path) -> BaseProcess:
    """Starts `python -c "import sys; code" arguments`; all that it prints goes to the file."""
    process = _FORKED.Process(target=_run, args=(code, [str(a) for a in arguments], str(output)))
    process.start()
    return process


def finish(process: BaseProcess, timeout_s: float) -> int:
    """Waits for the end of a process; returns its exit code, -N for one that signal N ended."""
    process.join(timeout_s)
    assert process.exitcode is not None, f"still running after {timeout_s} s"
    return process.exitcode


def _run(code: str, arguments: list[str], output: str) -> None:
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = ["-c", *arguments]
    exec(f"import sys\n{code}", {"__name__": "__main__"})
