"""Every kernel through Triton's launcher, for GPUs that are not there: launches.py says how."""

import importlib.util
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OLDEST_TRITON = "3.6.0"
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def python(cache, *arguments, first=()):
    """Run Python with the package, kernels compiled, and a cache of them that starts empty.

    `first` comes before everything that is installed.
    """
    environment = {
        k: v for k, v in os.environ.items() if k not in ("RLVR_KERNELS", "TRITON_INTERPRET")
    }
    environment["TRITON_CACHE_DIR"] = str(cache)
    environment["PYTHONPATH"] = os.pathsep.join([*map(str, first), str(ROOT / "kernels")])
    command = [sys.executable, "-W", "error", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def launches(cache, *arguments, first=()):
    return python(cache, ROOT / "tests/kernels/launches.py", *arguments, first=first)


def assert_launched(done, at_least):
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("ok ")]
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(lines) >= at_least, done.stdout + done.stderr


def assert_every_kernel_launches(cache, *chips, first=()):
    """A process for each chip: what takes the time is to compile."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done in pool.map(lambda chip: launches(cache, chip, first=first), chips):
            assert_launched(done, 8 + 21)


def test_every_kernel_launches_on_an_h100_and_an_a100(tmp_path):
    assert_every_kernel_launches(tmp_path, 90, 80)


@pytest.mark.proof
def test_every_option_launches_on_an_h100_and_an_a100(tmp_path):
    with ThreadPoolExecutor() as pool:
        for done in pool.map(lambda chip: launches(tmp_path, "all", chip), (90, 80)):
            assert_launched(done, 180)


@pytest.mark.proof
def test_every_kernel_launches_where_a_block_has_99_kib(tmp_path):
    """The RTX cards: 8.6, 8.9, 12.0."""
    assert_every_kernel_launches(tmp_path, 86, 89, 120)


@pytest.fixture(scope="module")
def oldest_triton(tmp_path_factory):
    """A folder with the oldest Triton that is supported, and nothing else."""
    folder = tmp_path_factory.mktemp("triton")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-deps"]
    command += ["--target", str(folder), f"triton=={OLDEST_TRITON}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and "No matching distribution" in done.stderr:
        pytest.skip(f"pip finds no triton {OLDEST_TRITON} here")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.proof
def test_every_kernel_launches_with_the_oldest_triton(tmp_path, oldest_triton):
    which = python(
        tmp_path, "-c", "import triton; print(triton.__version__)", first=[oldest_triton]
    )
    assert which.stdout.strip() == OLDEST_TRITON, which.stderr
    assert_every_kernel_launches(tmp_path, 80, 86, 89, 90, 120, first=[oldest_triton])


@pytest.mark.proof
def test_every_shipped_kernel_passes_the_gates_with_the_oldest_triton(tmp_path, oldest_triton):
    done = python(tmp_path, "-m", "bench.kernels_report", first=[oldest_triton])
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"triton {OLDEST_TRITON}" in done.stdout and " 0 with problems" in done.stdout
