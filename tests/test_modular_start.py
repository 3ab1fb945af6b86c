"""`azr.modular` stands alone and starts fast."""

import subprocess
import sys

PROGRAM = """
import sys, time
import numba
start = time.process_time()
from azr import modular
p, x, y = modular.sample(1000, 2**20, seed=0)
assert (modular.invert(x, p) == y).all()
assert (modular.verify_y(p, x, y) == 0).all() and (modular.verify_p(x, y, p) == 0).all()
assert modular.is_prime(p).all()
print(time.process_time() - start)
loaded = [m for m in sys.modules if m.split(".")[0] in ("azr", "torch", "transformers")]
print(*sorted(loaded))
"""


def test_a_second_process_starts_within_a_second_and_loads_nothing_else():
    for _ in range(2):  # the first one may have to compile
        done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    seconds, loaded = done.stdout.splitlines()
    assert float(seconds) < 1.0
    assert loaded == "azr azr.modular azr.modular_kernels azr.modular_simd"
