"""Arrays that go to a device in one copy: every value arrives, where a kernel can read it.

What is copied when, and that the host waits for none of it: tests/cuda/fake.
"""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from azr.model.transfer import ALIGNED_BYTES, Parcel

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
TYPES = (np.int64, np.int32, np.float32, np.bool_, np.float64)


@pytest.fixture
def on_host(monkeypatch):
    """Makes memory "of the device" memory of the host, so that what arrives there can be read."""
    monkeypatch.setattr(
        torch, "empty", lambda size, dtype, **where: torch.full((size,), 0xA5, dtype=dtype)
    )


@st.composite
def arrays(draw):
    shape = draw(st.sampled_from([(0,), (1,), (7,), (3, 5), (2, 0, 4), (4, 1, 3)]))
    values = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 100, shape)
    values = values.astype(draw(st.sampled_from(TYPES)))
    return values.T if draw(st.booleans()) else values


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(groups=st.lists(st.lists(arrays(), max_size=6), max_size=3), size=st.integers(1, 300))
def test_every_value_arrives_aligned(on_host, groups, size):
    parcel = Parcel(CUDA, buffer_bytes=size)
    for group in groups:  # a parcel that was sent may be used again
        sent = [(values, parcel.put(values)) for values in group]
        parcel.send()
        for values, found in sent:
            expected = torch.as_tensor(values)
            assert found.dtype == expected.dtype and torch.equal(found, expected)
            assert found.is_contiguous() and found.data_ptr() % ALIGNED_BYTES == 0


def test_a_type_is_that_which_was_asked_for(on_host):
    parcel = Parcel(CUDA)
    found = parcel.put(np.array([1.0, 0.3]), torch.bfloat16)
    parcel.send()
    assert torch.equal(found, torch.tensor([1.0, 0.3], dtype=torch.bfloat16))


def test_what_was_put_is_what_the_array_held_then(on_host):
    parcel, values = Parcel(CUDA), np.arange(3)
    found = parcel.put(values)
    values[:] = 9
    parcel.send()
    assert found.tolist() == [0, 1, 2]


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_a_tensor_is_filled_when_the_parcel_is_sent_and_once(on_host, device):
    parcel, target = Parcel(device), torch.zeros(2, 3, dtype=torch.int64)
    parcel.fill(target[:, 1:], np.array([[1, 2], [3, 4]]).T)
    assert not target.any()
    parcel.send()
    assert target.tolist() == [[0, 1, 3], [0, 2, 4]]
    target.zero_()
    parcel.send()
    assert not target.any()


def test_on_the_cpu_nothing_is_copied():
    values = np.arange(4)
    tensor = Parcel(CPU).put(values)
    values[0] = 7
    assert tensor.tolist() == [7, 1, 2, 3]
