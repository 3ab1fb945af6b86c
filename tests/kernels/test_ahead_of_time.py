"""The machine code of the shipped kernels, compiled without a GPU in a process of its own."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rlvr_kernels.configs import generation

ROOT = Path(__file__).resolve().parents[2]
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def python(*arguments):
    environment = {
        k: v for k, v in os.environ.items() if k not in ("RLVR_KERNELS", "TRITON_INTERPRET")
    }
    environment["PYTHONPATH"] = f"{ROOT}:{ROOT / 'kernels'}"
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True
    )


@needs_triton
def test_one_case_of_every_kernel_passes_the_gates():
    done = python("-m", "bench.kernels_report", "--brief")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in done.stdout.splitlines() if "| sm_" in line]
    assert len(rows) == 24 and all(line.endswith("| ok |") for line in rows)


@needs_triton
@pytest.mark.proof
def test_every_shipped_configuration_passes_the_gates():
    done = python("-m", "bench.kernels_report")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 with problems" in done.stdout


BROKEN = """
import dataclasses
from bench import aot
from bench import shipped_kernels as shipped
row = next(shipped.row_kernels())
narrow = {name: kind.removesuffix(" 16") for name, kind in row.arguments.items()}
wrong = dataclasses.replace(
    row, arguments=narrow, needs_tensor_cores=True, elements=row.elements // 2
)
big = dataclasses.replace(
    row, constants=row.constants | {"BLOCK": 65536}, elements=65536, num_warps=4
)
found = aot.compile_and_inspect(wrong).problems + aot.compile_and_inspect(big).problems
found += aot._judge(row, 999999, "REG:32 STACK:0", "DMUL R2, R2, R4 ;").problems
for gate in ("128-bit", "tensor-core", "exponentials", "spills", "double", "shared memory"):
    assert any(gate in problem for problem in found), (gate, found)
print("caught")
"""


@needs_triton
def test_the_gates_can_fail():
    """Each of them, on a kernel made to fail it."""
    done = python("-c", BROKEN)
    assert done.stdout.strip() == "caught", done.stderr


def test_report_refuses_the_interpreter():
    done = subprocess.run(
        [sys.executable, "-m", "bench.kernels_report"],
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "unset TRITON_INTERPRET" in done.stderr


@pytest.mark.parametrize(
    ("major", "shared_kib", "tiles"),
    [(8, 163, 8), (8, 99, 8), (9, 227, 9), (10, 227, 9), (12, 99, 8)],
)
def test_tiles_are_chosen_by_what_a_chip_offers(major, shared_kib, tiles):
    assert generation(major, shared_kib << 10) == tiles
