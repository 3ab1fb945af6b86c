"""Runs the tests of `fake/` on a CUDA device that computes nothing.

In a process of its own: that torch takes every tensor on "cuda" for one of a device.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).resolve().parent / "fake"


@pytest.fixture(scope="session")
def fake_device(tmp_path_factory):
    """The library that is preloaded."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler to make a fake CUDA device with")
    if torch.version.cuda is not None:
        pytest.skip("this torch was built for CUDA, and has a device of its own or none")
    library = tmp_path_factory.mktemp("fake") / "device.so"
    home = Path(torch.__file__).parent
    command = [compiler, "-shared", "-fPIC", "-std=c++20", f"-I{home / 'include'}"]
    command += [HERE / "device.cpp", f"-L{home / 'lib'}", "-lc10", "-ltorch_cpu"]
    command += [f"-Wl,-rpath,{home / 'lib'}", "-o", library]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-2000:]
    return library


def test_rollout_and_update_on_a_fake_cuda_device(fake_device, capfd):
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-s", "-p", "no:cacheprovider", HERE]
    environment = os.environ | {"LD_PRELOAD": str(fake_device), "AZR_FAKE_CUDA": "1"}
    root = HERE.parents[2]
    run = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
    with capfd.disabled():
        print("\n" + "\n".join(line for line in run.stdout.splitlines() if "launches" in line))
