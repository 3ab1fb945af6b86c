"""The package alone: what it imports, where it runs, and how it says which backend it uses."""

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from rlvr_kernels import backend, doctor

ROOT = Path(__file__).resolve().parents[2]


def run(code, **environment):
    """Run Python code in a process of its own that sees the package and the given variables."""
    clean = {k: v for k, v in os.environ.items() if k not in ("RLVR_KERNELS", "TRITON_INTERPRET")}
    clean |= {"PYTHONPATH": str(ROOT / "kernels")} | environment
    return subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True)


def test_kernels_is_a_plain_folder():
    """As a package it would shadow the `kernels` distribution that transformers looks for."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
    importing = re.compile(r"^\s*(import kernels\b|from kernels\b)", re.MULTILINE)
    folders = ("azr", "bench", "examples", "kernels", "tests")
    sources = [path for name in folders for path in (ROOT / name).rglob("*.py")]
    assert sources and not [path for path in sources if importing.search(path.read_text())]


def test_import_loads_neither_transformers_nor_numba_nor_triton():
    done = run(
        "import sys, rlvr_kernels\n"
        "print([m for m in ('transformers', 'numba', 'triton', 'azr') if m in sys.modules])"
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_works_where_triton_is_absent_and_says_so():
    done = run(
        "import sys\n"
        "sys.modules['triton'] = None\n"
        "import importlib.util\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda n, *a: None if n == 'triton' else find(n, *a)\n"
        "import torch, rlvr_kernels\n"
        "x = torch.randn(3, 5, requires_grad=True)\n"
        "out = rlvr_kernels.token_logprobs(x, torch.tensor([0, 1, 2]), return_entropy=True)\n"
        "out.entropy.sum().backward()\n"
        "print(rlvr_kernels.doctor()['triton'])\n"
        "try:\n"
        "    rlvr_kernels.token_logprobs(x, torch.tensor([0, 1, 2]), backend='triton')\n"
        "except RuntimeError as error:\n"
        "    print(error)\n"
    )
    assert done.stdout.splitlines() == [
        "not installed",
        "backend 'triton' cannot run on cpu: triton is not installed",
    ], done.stderr


def test_doctor_prints_the_backend_and_the_reason():
    done = subprocess.run(
        [sys.executable, "-m", "rlvr_kernels"],
        env=os.environ | {"PYTHONPATH": str(ROOT / "kernels"), "RLVR_KERNELS": "torch"},
        capture_output=True,
        text=True,
    )
    assert re.search(r"^cpu +torch: RLVR_KERNELS=torch$", done.stdout, re.MULTILINE), done.stderr
    assert doctor()["torch"] == torch.__version__


def test_the_variable_is_checked_and_overrides_auto_only(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.delenv("RLVR_KERNELS", raising=False)
    assert backend.resolve("auto", cpu) == "torch"
    monkeypatch.setenv("RLVR_KERNELS", "tritton")
    with pytest.raises(ValueError, match="RLVR_KERNELS: expected one of torch, triton, interpret"):
        backend.resolve("auto", cpu)
    monkeypatch.setenv("RLVR_KERNELS", "triton")
    assert backend.resolve("torch", cpu) == "torch"
    if not backend.interpreting():
        with pytest.raises(RuntimeError, match="cannot run on cpu: .*need a CUDA device|installed"):
            backend.resolve("auto", cpu)


def test_a_cuda_device_that_falls_back_warns_once(monkeypatch):
    """The device is a name here: resolve looks at its type and at what it was told of it."""
    monkeypatch.delenv("RLVR_KERNELS", raising=False)
    monkeypatch.setattr(backend, "_triton_problem", lambda device: "it is too old")
    backend._warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="slower torch path on cuda:0: it is too old"):
        assert backend.resolve("auto", torch.device("cuda:0")) == "torch"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backend.resolve("auto", torch.device("cuda:0")) == "torch"
    with pytest.raises(RuntimeError, match="'triton' cannot run on cuda:0: it is too old"):
        backend.resolve("triton", torch.device("cuda:0"))


def test_interpret_has_to_come_before_triton():
    pytest.importorskip("triton")
    late = run(
        "import triton, torch, rlvr_kernels\n"
        "rlvr_kernels.token_logprobs(torch.zeros(1, 2), torch.tensor([0]))",
        RLVR_KERNELS="interpret",
    )
    assert "triton was imported before, compiled; set TRITON_INTERPRET=1" in late.stderr
    first = run(
        "import torch, rlvr_kernels\n"
        "x = torch.zeros(1, 2)\n"
        "print(rlvr_kernels.token_logprobs(x, torch.tensor([0]), return_lse=True).lse.item())",
        RLVR_KERNELS="interpret",
    )
    assert float(first.stdout) == pytest.approx(0.6931472), first.stderr


def test_the_package_needs_torch_alone():
    """Its own project file, so that `pip install ./kernels` brings no other dependency."""
    text = (ROOT / "kernels" / "pyproject.toml").read_text()
    assert re.search(r'^dependencies = \["torch>=[\d.]+"\]$', text, re.MULTILINE)
