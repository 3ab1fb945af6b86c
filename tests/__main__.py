"""`python -m tests`: the whole suite, in two processes side by side.

What the second one says is printed when both are done, behind the first one's. The exit status is
0 where both pass.
"""

import subprocess
import sys
import tempfile

SECOND = (
    "tests/kernels",
    "tests/test_hf_models.py",
    "tests/test_rollout.py",
    "tests/test_rollout_cache.py",
    "tests/test_train.py",
)
"""Two fifths of the time; none of them measures what another process can disturb."""

PYTEST = [sys.executable, "-m", "pytest"]


def main() -> int:
    with tempfile.TemporaryFile("w+") as said:
        second = subprocess.Popen([*PYTEST, *SECOND], stdout=said, stderr=subprocess.STDOUT)
        try:
            first = subprocess.run([*PYTEST, *(f"--ignore={path}" for path in SECOND)])
            second.wait()
        finally:
            second.kill()
        said.seek(0)
        print(f"\n{' '.join(SECOND)}:\n", said.read(), sep="", flush=True)
    return first.returncode or second.returncode


if __name__ == "__main__":
    sys.exit(main())
