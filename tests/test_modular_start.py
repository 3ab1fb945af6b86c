"""`azr.modular` stands alone, starts fast, and needs no cache of Numba's to be right."""

import errno
import importlib.util
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numba
import pytest
from numba.core.caching import IndexDataCacheFile

from azr.modular import jit as modular_jit

ROOT = Path(__file__).resolve().parent.parent

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
    assert loaded == "azr azr.modular azr.modular.jit azr.modular.kernels azr.modular.simd"


FUNCTION = """
from azr.modular.jit import jit

@jit
def square(x):
    return x * x
"""


def used(folder: Path) -> tuple[int, int]:
    """Returns (functions loaded from the cache, warnings) of a new import of FUNCTION."""
    path = folder / "squares.py"
    path.write_text(FUNCTION)
    spec = importlib.util.spec_from_file_location("squares", path)
    module = importlib.util.module_from_spec(spec)
    modular_jit._warned.clear()
    with warnings.catch_warnings(record=True, action="always") as caught:
        spec.loader.exec_module(module)
        assert (module.square(3), module.square(1.5)) == (9, 2.25)
    for warning in caught:
        assert "Numba's cache cannot be used" in str(warning.message)
        assert "NUMBA_CACHE_DIR" in str(warning.message)
    return sum(module.square.stats.cache_hits.values()), len(caught)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(numba.core.config, "CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(modular_jit, "_warned", [])
    assert used(tmp_path) == (0, 0)
    assert used(tmp_path) == (2, 0)
    return tmp_path / "cache"


DAMAGES = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "text": lambda data: b"no pickle at all",
    "zeros": lambda data: bytes(len(data)),
    "one bit": lambda data: (
        data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]
    ),
}


@pytest.mark.parametrize(
    ("kind", "damage"),
    [(k, d) for k in ("nbi", "nbc") for d in DAMAGES if (k, d) != ("nbi", "one bit")],
)
def test_a_damaged_cache_is_named_once_and_made_anew(kind, damage, cache, tmp_path):
    for file in cache.rglob(f"*.{kind}"):
        file.write_bytes(DAMAGES[damage](file.read_bytes()))
    assert used(tmp_path) == (0, 1)
    assert used(tmp_path) == (2, 0)


def test_a_file_that_is_a_folder_costs_the_time_alone(cache, tmp_path):
    for file in list(cache.rglob("*.nb?")):
        file.unlink()
        file.mkdir()
    assert used(tmp_path) == (0, 1)
    assert used(tmp_path) == (0, 1)


def test_a_full_disk_costs_the_time_alone(cache, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    shutil.rmtree(cache)
    monkeypatch.setattr(IndexDataCacheFile, "_dump", full)
    assert used(tmp_path) == (0, 1)


@pytest.mark.parametrize("setting", ["HOME", "NUMBA_CACHE_DIR"])
def test_where_no_folder_can_be_written_it_compiles_and_says_so(setting, tmp_path):
    folder = tmp_path / "installed" / "azr"
    no_caches = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "azr" / "modular", folder / "modular", ignore=no_caches)
    shutil.copy(ROOT / "azr" / "__init__.py", folder)
    for package in (folder, folder / "modular"):
        (package / "__pycache__").write_text("another user's folder: it cannot be written")
    program = "from azr import modular; print(modular.verify_y([7, 7], 3, [5, 4]))"
    settings = {"HOME": str(folder / "__init__.py"), setting: str(folder / "__init__.py")}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(folder.parent), **settings},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "[0 1]\n"), done.stderr
    assert done.stderr.count("Numba's cache cannot be used") == 1
