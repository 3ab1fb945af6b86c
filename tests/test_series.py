"""Series keep what matters of any number of steps, in little memory, whoever folds them."""

import json
import math
import random
import tracemalloc

import numpy as np
import pytest

from azr.run.metrics import MetricsLog, read_metrics
from azr.run.series import FOLDED, LONGEST, POINTS, Fold, Series, read_fold


def rows(steps, seed=0):
    """Metrics of a run: noisy, with NaN, some rare, one with spikes, one measured now and then."""
    rng = random.Random(seed)
    for step in range(steps):
        row = {"noisy": rng.gauss(0, 1), "spiky": 1e3 if step % 701 == 700 else rng.random()}
        row["sometimes"] = math.nan if rng.random() < 0.1 else rng.random()
        if step % 25 == 0:
            row["eval/train/a/greedy_accuracy"] = rng.random()
        if rng.random() < 0.05:
            row["rare"] = float(rng.randrange(9))
        yield step, row


def written(path, steps, *, saved=()):
    """Writes a metrics.jsonl, keeping its series after the steps of `saved`; returns them all."""
    log = MetricsLog(path)
    for step, row in rows(steps):
        log.write(step, row)
        if step in saved:
            log.save_fold()
    log.close()
    return log._fold.series()


def folded(values, steps=None):
    """Returns the series of a metric, measured at the steps from 0 on if not said otherwise."""
    fold = Fold()
    for step, value in zip(steps or range(len(values)), values, strict=True):
        fold.add_row({"step": step, "m": value})
    return fold.series()["m"]


@pytest.mark.parametrize("steps", [1, 240, 241, 3000])
@pytest.mark.parametrize("saved", [(), (0,), (100, 239, 240, 517), range(0, 3000, 100)])
def test_folded_as_written_is_folded_from_the_file(tmp_path, steps, saved):
    path = tmp_path / "metrics.jsonl"
    as_written = written(path, steps, saved=saved)
    assert read_fold(path).series() == as_written
    (path.parent / FOLDED).unlink(missing_ok=True)
    assert read_fold(path).series() == as_written


def test_a_long_series_keeps_extremes_sums_ends_and_what_had_no_value(tmp_path):
    values = dict(rows(30_000))
    series = written(tmp_path / "metrics.jsonl", 30_000)
    for name, found in series.items():
        raw = {step: row[name] for step, row in values.items() if name in row}
        steps, known = zip(*[(s, v) for s, v in raw.items() if not math.isnan(v)], strict=True)
        assert len(found.steps) <= POINTS and found.count == len(known)
        assert (found.steps[0], found.first) == (steps[0], known[0])
        assert (found.steps[-1], found.last) == (steps[-1], known[-1])
        assert math.fsum(found.sums) == pytest.approx(math.fsum(known))
        assert sum(gap.missing for gap in found.gaps) == len(raw) - len(known)
        edges = [0, *np.cumsum(found.counts)]
        for i, (a, b) in enumerate(zip(edges, edges[1:], strict=False)):
            assert (found.low[i], found.high[i]) == (min(known[a:b]), max(known[a:b]))
    assert sum(high == 1e3 for high in series["spiky"].high) == 42


def test_a_short_series_is_what_was_measured(tmp_path):
    found = written(tmp_path / "metrics.jsonl", 240)["noisy"]
    assert list(found.values) == [row["noisy"] for _, row in rows(240)]
    assert list(found.steps) == list(range(240)) and not found.is_folded


def test_the_running_mean_is_that_of_the_steps_of_a_short_series():
    values = [random.Random(i).random() for i in range(200)]
    plain = [sum(values[max(0, i - 4) : i + 1]) / min(i + 1, 5) for i in range(200)]
    assert folded(values).smooth() == pytest.approx(plain)
    long = folded([float(s) for s in range(48_000)])
    behind = np.array(long.steps) - long.smooth()
    assert 0 < behind[10:].max() < 0.025 * 48_000


def test_a_value_between_two_points_lies_on_their_line():
    long = folded([2.0 * s for s in range(10_000)])
    assert [long.at(s) for s in (0, 1234, 9999, 20_000)] == pytest.approx([0, 2468, 19_998, 19_998])
    assert Series().at(3) is None


def test_memory_does_not_grow_with_the_steps(tmp_path):
    path = tmp_path / "metrics.jsonl"
    written(path, 20_000)
    size = path.stat().st_size
    tracemalloc.start()
    read_fold(path).series()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size and peak < 1.5e6


@pytest.mark.parametrize(
    "steps", [[7, 3, 3, 900_000], [10**90, 5], [50_000 + s for s in range(999)]]
)
def test_steps_in_any_order_and_from_anywhere(steps):
    found = folded([1.0] * len(steps), steps)
    assert found.count == len(steps) and len(found.steps) <= POINTS
    assert list(found.steps) == sorted(found.steps)
    assert found.steps[0] == min(steps) and found.steps[-1] == max(steps)


DAMAGE = {
    "garbage": lambda path, kept: kept.write_bytes(b"\xff\x00{"),
    "cut": lambda path, kept: kept.write_bytes(kept.read_bytes()[:-100]),
    "one digit": lambda path, kept: kept.write_bytes(kept.read_bytes().replace(b"1", b"2", 40)),
    "of another file": lambda path, kept: written(path, 400),
    "the file is shorter": lambda path, kept: path.write_bytes(path.read_bytes()[: 10**4]),
    "the file begins otherwise": lambda path, kept: path.write_bytes(
        path.read_bytes().replace(b'"noisy": ', b'"NOISY": ', 1)
    ),
    "empty": lambda path, kept: kept.write_bytes(b""),
    "a folder": lambda path, kept: (kept.unlink(), kept.mkdir()),
    "another version's": lambda path, kept: kept.write_bytes(b"2745614147\n{}"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_kept_series_that_do_not_fit_the_file_are_made_anew(tmp_path, damage):
    path, kept = tmp_path / "metrics.jsonl", tmp_path / FOLDED
    written(path, 500, saved=[450])
    damage(path, kept)
    alone = tmp_path / "alone" / path.name
    alone.parent.mkdir()
    alone.write_bytes(path.read_bytes())
    assert read_fold(path).series() == read_fold(alone).series()


def resumed(path, step, kept):
    """Goes on after a step as a run does; returns what it complains of."""
    size = path.stat().st_size if path.exists() else 0
    log = MetricsLog(path, kept, step)
    assert path.stat().st_size <= size
    log.write(step + 1, {"m": float(step + 1)})
    series = log._fold.series()
    log.close()
    assert read_fold(path).series() == series and read_metrics(path)[-1]["step"] == step + 1
    return log.problems


@pytest.fixture
def ten(tmp_path):
    """A metrics.jsonl of ten steps, and the bytes that it has after step 5."""
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for step in range(10):
        log.write(step, {"m": float(step)})
        if step == 5:
            kept = log.position()
    log.save_fold()
    log.close()
    return path, kept


def test_a_resumed_log_keeps_exactly_what_was_there(ten):
    path, kept = ten
    before = path.read_bytes()[:kept]
    assert resumed(path, 5, kept) == [] and path.read_bytes().startswith(before)
    assert [row["step"] for row in read_metrics(path)] == list(range(7))


def damaged(path, change):
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(change(lines)))


@pytest.mark.parametrize(
    ("change", "steps", "complaints"),
    [
        (lambda x: x[:4], [0, 1, 2, 3, 6], ["bytes up to step 5"]),
        (lambda x: [*x[:4], x[4][:9]], [0, 1, 2, 3, 6], ["bytes up to step 5"]),
        (lambda x: [*x[:2], *x[4:]], [0, 1, 4, 5, 6], ["bytes up to step 5"]),
        (lambda x: [*x[:6], b'{"step": 6, "to\n'], [0, 1, 2, 3, 4, 5, 6], []),
        (lambda x: [*x[:2], b"\0" * len(x[2]), *x[3:]], [0, 1, 4, 5, 6], ["line 3 is cut"]),
        (lambda x: [x[0], b"?\n", b"[1]\n", *x[3:]], [0, 3, 4, 5, 6], ["lines 2 and 3", "bytes"]),
        (lambda x: [b"?" * 99 + b"\n", *x], [0, 1, 2, 3, 4, 5, 6], ["line 1 is cut", "bytes"]),
        (lambda x: [], [6], ["missing or empty: it begins anew after step 5"]),
        (lambda x: [b"\x00" * 400], [6], ["missing or empty"]),
    ],
)
def test_a_damaged_log_never_grows_and_is_named(ten, change, steps, complaints):
    path, kept = ten
    damaged(path, change)
    told = resumed(path, 5, kept)
    assert [row["step"] for row in read_metrics(path)] == steps
    assert len(told) == len(complaints)
    assert all(words in line for words, line in zip(complaints, told, strict=True)), told
    assert not any("\n" in line for line in told)


def test_a_log_that_is_gone_begins_anew(ten):
    path, kept = ten
    path.unlink()
    (told,) = resumed(path, 5, kept)
    assert "metrics.jsonl is missing" in told


def test_a_line_of_any_length_is_one_damaged_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(
        b'{"step": 1}\n' + b"\x00" * (3 * LONGEST) + b"\n" + b'{"step": 2}\n' + b"{" * 9999
    )
    fold = read_fold(path)
    assert (fold.last_step, fold.lines, fold.position) == (2, 4, path.stat().st_size)
    assert fold.problems() == [
        "metrics.jsonl: lines 2 and 4 are cut short or damaged, and left out"
    ]


def test_what_is_no_number_is_named_once_and_nan_is_no_value(tmp_path):
    path = tmp_path / "metrics.jsonl"
    text = '{"step": %d, "a": %s, "b": 2, "eval/x/y/tasks": %s}\n'
    path.write_text(
        "".join(text % (i, v, i) for i, v in enumerate(["NaN", "1", "true", '"x"', "1e999"]))
    )
    fold = read_fold(path)
    series = fold.series()
    assert series["a"].values == [1.0] and series["a"].gaps == [(0, 0, 1, True)]
    assert series["b"].values == [2.0] * 5 and series["eval/x/y/tasks"].values == [1, 2, 3, 4]
    assert fold.problems() == [
        "metrics.jsonl: eval/x/y/tasks is 0 at step 0, and left out",
        "metrics.jsonl: a is True at step 2, and left out",
    ]


def test_ninety_damaged_lines_are_counted(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": i} if i % 10 else []) + "\n" for i in range(90)))
    assert read_fold(path).problems() == [
        "metrics.jsonl: lines 1, 11, 21, 31, 41 and 4 more are cut short or damaged, and left out"
    ]
