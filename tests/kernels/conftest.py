"""Where a kernel test runs: in torch, on CUDA, or under Triton's interpreter.

The interpreter has to be chosen before triton is imported, so those cases run in a process of their
own: test_interpreted.py starts this folder again with RLVR_KERNELS=interpret.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # the oracles beside this file

INTERPRETED = os.environ.get("RLVR_KERNELS") == "interpret"


@dataclass(frozen=True)
class Place:
    """A device and the backend that the kernels use on it."""

    name: str
    device: str
    backend: str

    @property
    def rounding(self) -> float:
        """How many times half a unit in the last place a stored bf16 may be off.

        The interpreter truncates where the chip rounds to nearest.
        """
        return 2.0 if self.name == "interpreted" else 1.0

    @property
    def repeats(self) -> int:
        """Runs compared with the first one for equal bits; the interpreter is serial and slow."""
        return 2 if self.name == "interpreted" else 9

    def skip_interpreted(self, is_repeated: bool, reason: str) -> None:
        """Leaves a case to the other places where the interpreter has run its code in another."""
        if is_repeated and self.name == "interpreted":
            pytest.skip(f"{reason}, and the interpreter is slow")


TORCH = Place("torch", "cpu", "torch")
TRITON = Place("interpreted", "cpu", "triton")
CUDA = pytest.param(Place("cuda", "cuda", "triton"), marks=pytest.mark.gpu, id="cuda")
PLACES = [TRITON] if INTERPRETED else [TORCH, CUDA]


@pytest.fixture(params=PLACES, ids=lambda place: place.name)
def place(request) -> Place:
    return request.param


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(20260)


def pytest_collection_modifyitems(items):
    """Under the interpreter only the tests that take a place say anything new."""
    if INTERPRETED:
        items[:] = [item for item in items if "place" in getattr(item, "fixturenames", ())]
