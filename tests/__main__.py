"""`python -m tests`: the whole suite, in two processes side by side.

The kernels share nothing with the rest of the product, and neither do their tests. What they say is
printed when they are done, behind the rest. The exit status is 0 where both halves pass.
"""

import subprocess
import sys
import tempfile

KERNELS = "tests/kernels"
PYTEST = [sys.executable, "-m", "pytest"]


def main() -> int:
    with tempfile.TemporaryFile("w+") as said:
        kernels = subprocess.Popen([*PYTEST, KERNELS], stdout=said, stderr=subprocess.STDOUT)
        try:
            rest = subprocess.run([*PYTEST, f"--ignore={KERNELS}"])
            kernels.wait()
        finally:
            kernels.kill()
        said.seek(0)
        print(f"\n{KERNELS}:\n", said.read(), sep="")
    return rest.returncode or kernels.returncode


if __name__ == "__main__":
    sys.exit(main())
