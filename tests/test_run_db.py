"""run.db in the hands of others: locked, damaged, emptied."""

import os
import sqlite3
from contextlib import closing

import pytest

from azr.errors import RunError
from azr.run import db as run_db
from azr.run.db import RunDb, SampleRow


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(run_db, "BUSY_S", 0.02)


def sample(text, prompt="p"):
    return SampleRow(
        role="solve", type="deduction", prompt=prompt, task_key=None, text=text, outcome="wrong",
        reason="", solve_rate=None, reward=-0.5, advantage=0.0, tokens=3, finish="stop",
        is_estimate=False,
    )  # fmt: skip


def open_db(path, keep=None, told=None):
    return RunDb(path, lambda task: {"task": task}, keep, (told if told is not None else []).append)


def write(db, step):
    prompts = ["p", f"p{step}"]
    db.write(step, [("deduction", f"k{step}", step)], [sample(f"a{step}", p) for p in prompts])


def contents(path):
    with closing(sqlite3.connect(path)) as db:
        return [
            db.execute(f"SELECT * FROM {t}").fetchall() for t in ("tasks", "prompts", "samples")
        ]


def test_rows_of_later_steps_go_where_the_checkpoint_knew_no_run_db(tmp_path):
    for _ in range(2):  # a run that went on from step 1 twice
        db = RunDb(tmp_path / "run.db", lambda task: {"task": task}, last_step=1)
        write(db, 2)
        db.close()
    assert [len(rows) for rows in contents(tmp_path / "run.db")] == [1, 2, 2]


@pytest.fixture
def locked(tmp_path):
    """A run.db with one step, which another connection has locked."""
    db, told = open_db(tmp_path / "run.db", told=(told := [])), told
    write(db, 1)
    other = sqlite3.connect(tmp_path / "run.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    yield db, other, told
    other.close()


def test_rows_wait_for_a_lock_and_are_written_as_without_one(locked, tmp_path):
    db, other, told = locked
    write(db, 2)
    write(db, 3)
    assert (
        len(told) == 1 and "locked by another process: the samples from step 2 on wait" in told[0]
    )
    position = db.position()
    assert position == {"tasks": 3, "prompts": 4, "samples": 6} and not db.is_stuck
    other.execute("ROLLBACK")
    write(db, 4)
    db.close()
    free = open_db(tmp_path / "free.db")
    for step in (1, 2, 3, 4):
        write(free, step)
        assert step != 3 or free.position() == position
    free.close()
    assert contents(tmp_path / "run.db") == contents(tmp_path / "free.db")


def test_a_lock_that_stays_is_told_of_again_and_ends_the_run_in_time(locked, monkeypatch):
    db, _, told = locked
    clock = [1000.0]
    monkeypatch.setattr(run_db.time, "monotonic", lambda: clock[0])
    for step in range(2, 15):
        assert not db.is_stuck
        write(db, step)
        clock[0] += 50.0
    assert db.is_stuck and len(told) == 7
    db.close()
    assert "it has no samples from step 2 on" in told[-1]


def test_a_lock_that_goes_at_the_end_costs_nothing(locked, tmp_path, monkeypatch):
    db, other, _ = locked
    write(db, 2)
    flush = db._flush

    def then_unlocked():
        done = flush()
        if other.in_transaction:
            other.execute("ROLLBACK")
        return done

    monkeypatch.setattr(db, "_flush", then_unlocked)
    db.close()
    assert len(contents(tmp_path / "run.db")[0]) == 2


def test_rows_that_a_lock_kept_out_for_good_are_missed_when_the_run_goes_on(locked, tmp_path):
    db, other, _ = locked
    write(db, 2)
    position = db.position()
    db.close()
    other.execute("ROLLBACK")
    again, told = open_db(tmp_path / "run.db", position, told=(told := [])), told
    assert "holds 1 of 2 tasks, 2 of 3 prompts, 2 of 4 samples" in told[0]
    write(again, 3)
    again.close()
    assert [row[3] for row in contents(tmp_path / "run.db")[0]] == [1, 3]


def test_a_prompt_keeps_its_number_for_24_bytes_of_memory():
    kept = run_db._Prompts([(7, "a"), (9, "b")])
    assert kept.number(["c", "b", "d"], 10) == {"c": 10, "b": 9, "d": 11}
    assert kept.number([], 12) == {}
    numbers = {"a": 7, "b": 9, "c": 10, "d": 11}
    for start in range(0, 4000, 50):  # some digests end in a zero byte
        texts = [f"prompt {i}" for i in range(start // 2, start + 50)]
        found, first = kept.number(texts, len(numbers) + 8), len(numbers) + 8
        for text in texts:
            first += numbers.setdefault(text, first) == first
        assert found == {text: numbers[text] for text in texts}
    again = run_db._Prompts((number, text) for text, number in numbers.items())
    assert again.number(list(numbers), 0) == numbers
    assert again._digests.nbytes + again._numbers.nbytes == 24 * len(numbers)


DAMAGE = {
    "locked": (None, "database is locked; close what has it open"),
    "truncated": (lambda p: os.truncate(p, 5000), "malformed; move it away"),
    "cut in its header": (lambda p: os.truncate(p, 50), "malformed; move it away"),
    "garbage": (lambda p: p.write_bytes(b"garbage " * 999), "not a database; move it away"),
    "a folder": (lambda p: (p.unlink(), p.mkdir()), "unable to open database file; move it away"),
    "another's": (lambda p: (p.unlink(), other_tables(p)), "no such column: id; move it away"),
}


def other_tables(path):
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE samples (a INTEGER)")


@pytest.mark.parametrize(("damage", "words"), DAMAGE.values(), ids=DAMAGE)
def test_what_cannot_be_used_is_named_in_one_line(damage, words, tmp_path):
    path = tmp_path / "run.db"
    db = open_db(path)
    write(db, 1)
    position = db.position()
    db.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        if damage:
            damage(path)
        else:
            other.execute("BEGIN IMMEDIATE")
        with pytest.raises(RunError, match="^cannot use .*run.db: .*" + words) as raised:
            open_db(path, position)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("empty", [True, False])
def test_earlier_samples_that_are_gone_are_named_and_the_run_goes_on(empty, tmp_path):
    path, told = tmp_path / "run.db", []
    if empty:
        path.touch()
    db = open_db(path, {"tasks": 5, "prompts": 6, "samples": 7}, told)
    assert len(told) == 1 and "0 of 5 tasks, 0 of 6 prompts, 0 of 7 samples" in told[0]
    write(db, 8)
    db.close()
    assert len(contents(path)[2]) == 2
