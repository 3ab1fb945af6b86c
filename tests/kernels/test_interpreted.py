"""Runs the tests of this folder once more, with the Triton kernels under Triton's interpreter."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_the_kernels_under_the_interpreter(tmp_path):
    """One mode a process: Triton reads TRITON_INTERPRET when it is imported."""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not soak and not gpu"]
    command += ["-p", "no:cacheprovider", str(Path(__file__).parent)]
    environment = os.environ | {"TRITON_INTERPRET": "1", "RLVR_KERNELS": "interpret"}
    run = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
