"""The tests here run in the process that tests/cuda/test_fake.py starts, nowhere else."""

import os

import pytest

if os.environ.get("AZR_FAKE_CUDA") != "1":
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def device(monkeypatch):
    from fake_device import FakeDevice

    with FakeDevice(monkeypatch) as device:
        yield device
