"""The buffer holds distinct tasks, drops the oldest, and draws as asked."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from azr.buffer import TaskBuffer


def filled(n, capacity=100):
    buffer = TaskBuffer(capacity)
    for i in range(n):
        buffer.add(f"k{i}", i, step=i)
    return buffer


@given(st.lists(st.integers(0, 12), max_size=60), st.integers(1, 6))
def test_it_equals_a_plain_list_model(keys, capacity):
    buffer, model = TaskBuffer(capacity), []
    for step, key in enumerate(keys):
        is_new = key not in model
        assert buffer.add(str(key), key, step) == is_new
        if is_new:
            model = (model + [key])[-capacity:]
        assert [e.task for e in buffer.entries()] == model
        assert len(buffer) == len(model)


def test_a_full_buffer_still_admits_new_tasks_and_drops_the_oldest():
    buffer = filled(3, capacity=3)
    assert buffer.add("new", 99, step=9)
    assert [e.task for e in buffer.entries()] == [1, 2, 99]


def test_a_repeated_task_is_not_added_and_keeps_its_age():
    buffer = filled(3, capacity=3)
    assert not buffer.add("k0", 0, step=9)
    buffer.add("new", 99, step=9)
    assert "k0" not in buffer


def test_draws_are_distinct_and_respect_exclusion():
    drawn = filled(10).draw(np.random.default_rng(0), 20, exclude={"k3", "k4"})
    assert sorted(e.task for e in drawn) == [0, 1, 2, 5, 6, 7, 8, 9]


def test_uniform_draws_are_uniform_and_recent_ones_weigh_by_step():
    buffer, rng = filled(4), np.random.default_rng(0)
    n = 20_000
    for recency, expected in ((False, [0.25] * 4), (True, [0.1, 0.2, 0.3, 0.4])):
        drawn = [buffer.draw(rng, 1, recency=recency)[0].task for _ in range(n)]
        share = np.bincount(drawn, minlength=4) / n
        assert np.abs(share - expected).max() < 5 * 0.5 / np.sqrt(n)


def test_an_empty_draw_and_a_bad_capacity():
    assert TaskBuffer(3).draw(np.random.default_rng(0), 5) == []
    with pytest.raises(ValueError, match="capacity must be at least 1, got 0"):
        TaskBuffer(0)
