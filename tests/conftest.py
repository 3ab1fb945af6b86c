"""What every test runs under: one thread, and a reason where a test does not run."""

import os

# Read when torch and OpenMP load, here and in subprocesses: bit-equality and timings of the suite
# must not depend on the number of cores.
os.environ["OMP_NUM_THREADS"] = "1"

import datetime
import importlib.util
import sys

import pytest


def pytest_collection_modifyitems(config, items):
    for tier in ("proof", "soak"):
        if tier not in config.getoption("markexpr"):
            _skip(items, tier, f"takes long: make {tier}")
    if any(item.get_closest_marker("gpu") for item in items) and not has_cuda():
        _skip(items, "gpu", "no CUDA device")


def _skip(items, marker: str, reason: str) -> None:
    for item in items:
        if item.get_closest_marker(marker):
            item.add_marker(pytest.mark.skip(reason=reason))


def has_cuda() -> bool:
    """Whether a CUDA device can be used; imports torch, so only asked for marked tests."""
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


@pytest.fixture(autouse=True)
def one_torch_thread():
    """Undoes a thread count that an earlier test set; torch is not imported for it."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture
def midnight(monkeypatch):
    """Gives a function that makes a day pass, as chat templates see it."""
    from transformers.utils import chat_template_utils

    class Clock(datetime.datetime):
        ahead = datetime.timedelta()

        @classmethod
        def now(cls, tz=None):
            return super().now(tz) + cls.ahead

    def pass_by():
        Clock.ahead += datetime.timedelta(days=1, seconds=1)

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
    return pass_by
