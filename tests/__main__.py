"""`python -m tests`: the whole suite, in two processes side by side.

The first one's words are printed as they come, the second one's behind them, and what failed in
either comes last. The exit status is 0 where both pass.
"""

import signal
import subprocess
import sys
import tempfile

SECOND = (
    "tests/kernels",
    "tests/test_fused.py",
    "tests/test_hf_models.py",
    "tests/test_program.py",
    "tests/test_resume.py",
    "tests/test_rollout.py",
    "tests/test_rollout_cache.py",
    "tests/test_suites.py",
    "tests/test_train.py",
)
"""Half of the time; none of them measures what another process can disturb."""

PYTEST = [sys.executable, "-m", "pytest"]
STACK_LINES = 16
"""Of the stack of a crash: the innermost frames."""


def main() -> int:
    with tempfile.TemporaryFile("w+", errors="replace") as file:
        second = subprocess.Popen([*PYTEST, *SECOND], stdout=file, stderr=subprocess.STDOUT)
        try:
            first_status, first_said = _run_aloud([f"--ignore={path}" for path in SECOND])
            second_status = second.wait()
        finally:
            second.kill()
        file.seek(0)
        second_said = file.read()
    print(f"\n{' '.join(SECOND)}:\n", second_said, sep="", flush=True)
    print(_what_failed("all others", first_status, first_said), end="")
    print(_what_failed("those", second_status, second_said), end="", flush=True)
    return int(first_status != 0 or second_status != 0)


def _run_aloud(arguments: list[str]) -> tuple[int, str]:
    """Returns the exit status of pytest and what it said, which is printed line by line."""
    said = []
    with subprocess.Popen(
        [*PYTEST, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            said.append(line)
    return process.returncode, "".join(said)


def _what_failed(part: str, status: int, said: str) -> str:
    """Returns the failed tests, or where the process crashed; nothing where all passed."""
    if status == 0:
        return ""
    how = f"exit status {status}" if status > 0 else f"ended by {signal.Signals(-status).name}"
    lines = said.splitlines()
    found = []
    for n, line in enumerate(lines):
        if "Fatal Python error" in line:
            found.append(line)
        elif line.startswith("Current thread"):
            found += lines[n : n + STACK_LINES]
    found += [line for line in lines if line.startswith(("FAILED ", "ERROR "))]
    return "\n".join([f"\n{part}: {how}", *found, ""])


if __name__ == "__main__":
    sys.exit(main())
