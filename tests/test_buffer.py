"""The buffer holds distinct tasks, drops the oldest, and draws as asked."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from azr.buffer import TaskBuffer, draw_entries


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


def drawn_from_a_list(pool, rng, n, recency):
    """The draw as it is defined: from a list of entries, with weights made of their steps."""
    weights = np.array([e.step + 1 for e in pool], dtype=np.float64) if recency else None
    n = min(n, len(pool))
    if n == 0:
        return []
    p = weights / weights.sum() if recency else None
    return [pool[i] for i in rng.choice(len(pool), size=n, replace=False, p=p)]


@given(
    st.lists(st.integers(0, 40), max_size=80), st.integers(1, 30), st.integers(0, 40),
    st.sets(st.integers(0, 40)), st.booleans(), st.integers(0, 2**32),
)  # fmt: skip
def test_draws_and_counts_are_those_of_a_plain_list(keys, capacity, n, excluded, recency, seed):
    buffers = [TaskBuffer(c, answer=lambda task: str(task % 3)) for c in (capacity, 7)]
    for step, key in enumerate(keys):
        buffers[step % 2].add(str(key), key, step)
    one, two = (list(buffer.entries()) for buffer in buffers)
    for buffer, entries in zip(buffers, (one, two), strict=True):
        assert [buffer[i] for i in range(len(buffer))] == entries
        assert buffer.answers == Counter(str(e.task % 3) for e in entries)
    exclude = {str(key) for key in excluded}
    rngs = [np.random.default_rng(seed) for _ in range(2)]
    pool = [e for e in one if e.key not in exclude]
    drawn = buffers[0].draw(rngs[0], n, recency=recency, exclude=exclude)
    assert drawn == drawn_from_a_list(pool, rngs[1], n, recency)
    drawn = draw_entries(buffers, rngs[0], n, recency=recency)
    assert drawn == drawn_from_a_list(one + two, rngs[1], n, recency)


def test_no_draw_and_no_count_looks_at_every_task():
    looked_at = Counter()

    def answer(task):
        looked_at[task] += 1
        return ""

    buffer = TaskBuffer(1000, answer)
    for i in range(2000):
        buffer.add(f"k{i}", i, step=i)
        buffer.draw(np.random.default_rng(i), 3, recency=True, exclude={f"k{i}"})
    # Once as it enters, once as it leaves.
    assert max(looked_at.values()) == 2 and looked_at.total() == 3000


def test_an_empty_draw_and_a_bad_capacity():
    assert TaskBuffer(3).draw(np.random.default_rng(0), 5) == []
    with pytest.raises(ValueError, match="capacity must be at least 1, got 0"):
        TaskBuffer(0)
