"""The benches' own arithmetic: fair rounds, honest ratios, rows that never vanish."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import record
from bench.measure import (
    MIN_ROUNDS,
    OURS,
    CpuClock,
    CudaClock,
    Options,
    Result,
    Row,
    calibrate,
    changed,
    l2_flush,
    measure,
    quartiles,
    smoke,
    summarise,
    turn_order,
)
from bench.peers import Absent, absent, optional

ROOT = Path(__file__).resolve().parent.parent


class ScriptedClock:
    """A clock under which every call costs what the table says; keeps the order of the turns."""

    def __init__(self, costs_s):
        self.costs_s = costs_s
        self.turns = []

    def time(self, call, loops, before):
        if before is not None:
            before()
        name = call()
        self.turns.append((name, loops))
        cost = self.costs_s[name]
        return cost(len(self.turns)) if callable(cost) else cost


def work(n):
    return lambda: sum(range(n))


def test_ratio_is_the_median_of_the_ratios_per_round():
    # Round 3 is ten times slower for both: the ratio of that round stays what it is.
    times = {OURS: [1.0, 2.0, 10.0, 1.0, 2.0], "peer": [3.0, 6.2, 31.0, 2.8, 6.0]}
    rows = summarise(times, {OURS: 4, "peer": 2}, Options(items=100))
    assert rows["peer"].ratio == pytest.approx(3.0)
    assert (rows["peer"].ratio_q1, rows["peer"].ratio_q3) == pytest.approx((3.0, 3.1))
    assert (rows[OURS].median_s, rows[OURS].ratio) == (2.0, 1.0)
    assert rows["peer"].items_per_s == pytest.approx(100 / 6.0)
    assert (rows[OURS].loops, rows["peer"].loops) == (4, 2)


def test_quartiles():
    assert quartiles([5.0]) == (5.0, 5.0, 5.0)
    assert quartiles([4.0, 1.0, 2.0, 3.0, 5.0]) == (2.0, 3.0, 4.0)


def test_items_may_differ_by_row():
    rows = summarise(
        {OURS: [1.0], "copy": [2.0], "other": [1.0]},
        {OURS: 1, "copy": 1, "other": 1},
        Options(items={OURS: 10, "copy": 40}),
    )
    assert [row.items_per_s for row in rows.values()] == [10, 20, None]


def test_rounds_are_interleaved_in_changing_order():
    clock = ScriptedClock({OURS: 1.0, "a": 2.0, "b": 3.0})
    options = Options(rounds=20, warmup=2)
    result = measure(
        "bench_x", "x", lambda: OURS, {"a": lambda: "a", "b": lambda: "b"}, options, clock
    )
    calibration = 2 * 3  # the dropped first call and one that is long enough
    names = [name for name, _ in clock.turns[calibration:]]
    rounds = [names[start : start + 3] for start in range(0, len(names), 3)]
    assert len(rounds) == 22
    assert all(sorted(turns) == ["a", "b", OURS] for turns in rounds)
    assert rounds == [turn_order([OURS, "a", "b"], index) for index in range(22)]
    assert len({tuple(turns) for turns in rounds}) == 6
    assert result.rounds == 20
    assert list(result.rows) == [OURS, "a", "b"]
    assert (result.ratio("a"), result.ratio("b")) == (2.0, 3.0)


def test_warm_up_rounds_are_dropped():
    # Slow until the tenth turn of all: calibration takes 2, warm-up the rest.
    clock = ScriptedClock({OURS: lambda turn: 9.0 if turn <= 10 else 1.0})
    result = measure("b", "x", lambda: OURS, {}, Options(rounds=6, warmup=8), clock)
    assert (result.ours.median_s, result.ours.q3_s) == (1.0, 1.0)


def test_a_turn_is_long_enough_to_time():
    clock = ScriptedClock({OURS: 3e-6})
    loops, per_call = calibrate(clock, lambda: OURS, Options(round_s=0.01))
    assert loops * per_call >= 0.01 and loops < 10_000
    clock = ScriptedClock({OURS: 0.5})
    assert calibrate(clock, lambda: OURS, Options(round_s=0.01)) == (1, 0.5)
    # A clock too coarse to see one call must not divide by zero.
    clock = ScriptedClock({OURS: lambda turn: 0.0 if turn < 4 else 1e-3})
    assert calibrate(clock, lambda: OURS, Options(round_s=0.01))[0] >= 10


def test_default_rounds_fit_the_budget_and_asked_rounds_stand():
    clock = ScriptedClock({OURS: 1.0})
    assert measure("b", "x", lambda: OURS, {}, Options(budget_s=12), clock).rounds == 12
    assert measure("b", "x", lambda: OURS, {}, Options(budget_s=1), clock).rounds == MIN_ROUNDS
    assert measure("b", "x", lambda: OURS, {}, Options(budget_s=99), clock).rounds == 30
    asked = Options(budget_s=1, rounds=50)
    assert measure("b", "x", lambda: OURS, {}, asked, clock).rounds == 50


def test_rows_of_peers_that_cannot_run_stay():
    def broken():
        raise RuntimeError("no kernel image\nlong trace")

    result = measure(
        "bench_x",
        "x",
        work(100),
        {
            "gone": absent("not installed"),
            "missing": optional("no_such_module_anywhere", lambda module: module.f),
            "too_old": optional("math", lambda math: math.no_such_function),
            "broken": broken,
            "there": optional("math", lambda math: lambda: math.factorial(50)),
        },
        Options(rounds=3, round_s=1e-4),
    )
    assert list(result.rows) == [OURS, "gone", "missing", "too_old", "broken", "there"]
    assert (result["gone"].status, result["gone"].reason) == ("absent", "not installed")
    assert result["missing"].reason == "no_such_module_anywhere is not installed"
    assert "no_such_function" in result["too_old"].reason
    assert result["broken"].status == "failed"
    assert result["broken"].reason == "RuntimeError: no kernel image"
    assert result.ratio("gone") is None and result.bar("gone", must=2) is None
    assert result["there"].status == "ok"
    text = "\n".join(record.table([result]))
    assert all(name in text for name in result.rows)
    assert "absent: not installed" in text and "failed: RuntimeError: no kernel image" in text


def test_a_peer_that_fails_midway_is_a_failed_row():
    calls = iter(range(10))

    def tires():
        if next(calls) == 5:
            raise RuntimeError("tired")
        return "tires"

    clock = ScriptedClock({OURS: 1.0, "tires": 2.0})
    peers = {"tires": tires}
    result = measure("b", "x", lambda: OURS, peers, Options(rounds=8, warmup=0), clock)
    assert (result["tires"].status, result.rounds) == ("failed", 8)
    assert result.ours.status == "ok"


def test_an_error_of_ours_propagates():
    with pytest.raises(ZeroDivisionError):
        measure("b", "x", lambda: 1 / 0, {}, Options(rounds=3))
    with pytest.raises(ValueError, match="ours"):
        measure("b", "x", work(1), {OURS: work(1)}, Options(rounds=3))


def test_before_runs_once_per_call_and_outside_the_clock():
    events = []
    clock = CpuClock()
    seconds = clock.time(lambda: events.append("call"), 3, lambda: events.append(sum(range(10**6))))
    assert [event == "call" for event in events] == [False, True] * 3
    assert seconds < 1e-3  # the sum takes several milliseconds


class FakeCuda:
    """The part of torch.cuda that the clock uses, on a device clock of our own (milliseconds)."""

    def __init__(self):
        self.now_ms = 0.0
        self.held = 100
        self.peak = 0
        self.synchronised = 0

    def Event(self, enable_timing):  # noqa: N802
        cuda = self

        class Event:
            def record(self):
                self.at_ms = cuda.now_ms

            def elapsed_time(self, end):
                assert cuda.synchronised, "read before the device had finished"
                return end.at_ms - self.at_ms

        return Event()

    def synchronize(self):
        self.synchronised += 1

    def work(self, ms):
        self.now_ms += ms

    def reset_peak_memory_stats(self):
        self.peak = self.held

    def memory_allocated(self):
        return self.held

    def max_memory_allocated(self):
        return self.peak


def test_cuda_events_time_the_calls_and_not_what_comes_before():
    cuda = FakeCuda()
    clock = CudaClock(cuda)
    assert clock.time(lambda: cuda.work(2.0), 5, None) == pytest.approx(2e-3)
    assert cuda.synchronised == 1
    flush = clock.time(lambda: cuda.work(2.0), 5, lambda: cuda.work(100.0))
    assert flush == pytest.approx(2e-3)
    assert cuda.synchronised == 2

    def allocate():
        cuda.peak += 50

    assert clock.peak_extra_bytes(allocate) == 50
    options = Options(rounds=3, device="cuda", memory=True, round_s=0.004)
    peers = {"slow": lambda: cuda.work(6.0)}
    result = measure("b", "x", lambda: cuda.work(2.0), peers, options, clock)
    assert (result.ours.loops, result["slow"].loops) == (3, 1)
    assert result.ratio("slow") == pytest.approx(3.0)
    assert result.ours.facts == {"peak_extra_bytes": 0}


@pytest.mark.gpu
def test_a_gpu_is_timed_by_its_own_clock():
    import torch

    small, large = (torch.randn(n, n, device="cuda") for n in (2048, 4096))
    options = Options(rounds=10, device="cuda", memory=True, before=l2_flush())
    result = measure(
        "b", "matmul", lambda: small @ small, {"large": lambda: large @ large}, options
    )
    assert result.ratio("large") > 3
    assert result.ours.facts["peak_extra_bytes"] >= 2048 * 2048 * 4


def test_unknown_options_are_refused():
    with pytest.raises(TypeError, match="no option round;.*rounds"):
        changed(Options(), round=3)
    with pytest.raises(ValueError, match="gpu"):
        changed(Options(), device="gpu")
    assert changed(Options(), rounds=3, unit="pair") == Options(rounds=3, unit="pair")


def test_three_times_the_work_measures_as_more_than_twice_the_time():
    options = Options(rounds=9, round_s=0.005)
    result = measure("b", "x", work(4_000), {"slow": work(12_000)}, options)
    assert 2 < result.ratio("slow") < 4.5
    assert result["slow"].ratio_q1 <= result.ratio("slow") <= result["slow"].ratio_q3
    assert result.bar("slow", must=2) is True
    assert result.bar("slow", must=100, reach=200) is False


def test_smoke_calls_everything_once_and_times_nothing():
    calls = []
    peers = {"a": lambda: calls.append("a"), "gone": absent("why"), "bad": lambda: 1 / 0}
    result = smoke("b", "x", lambda: calls.append(OURS), peers, Options())
    assert calls == [OURS, "a"]
    assert [row.status for row in result.rows.values()] == [
        "not timed",
        "not timed",
        "absent",
        "failed",
    ]
    assert result.rounds == 0 and result.ratio("a") is None
    assert record.table([result])


def sample_result():
    clock = ScriptedClock({OURS: 1e-3, "peer": 4e-3})
    peers = {"peer": lambda: "peer", "gone": Absent("not installed")}
    options = Options(rounds=5, items=1000, unit="pair", facts={"bits": 31})
    result = measure("bench_x", "invert", lambda: OURS, peers, options, clock)
    result.bar("peer", must=3, reach=5)
    result.bar("gone", must=2)
    result.note("peer", peak_extra_bytes=1 << 20)
    result.note(width=8)
    return result


def test_record_holds_machine_versions_commit_and_every_row(tmp_path):
    made = record.build([sample_result()])
    path = record.committed_path(made, tmp_path)
    record.write(made, path)
    read = json.loads(path.read_text())
    assert read == made
    assert {"schema", "date", "slug", "commit", "dirty", "hardware", "versions", "results"} == set(
        read
    )
    assert {"cpu", "cores", "cores_usable", "ram_gib", "gpus", "os"} == set(read["hardware"])
    assert read["versions"]["python"].startswith("3.")
    assert path.parent.name == read["slug"] and path.name.startswith(read["date"][:10] + "-")
    (result,) = read["results"]
    assert result["facts"] == {"bits": 31, "width": 8}
    assert (result["bench"], result["name"], result["device"]) == ("bench_x", "invert", "cpu")
    assert (result["rounds"], result["unit"]) == (5, "pair")
    ours, peer, gone = result["rows"]
    assert (ours["name"], ours["ratio"], ours["items_per_s"]) == (OURS, 1.0, 1e6)
    assert (peer["ratio"], peer["must"], peer["reach"], peer["met"]) == (4.0, 3, 5, True)
    assert peer["facts"] == {"peak_extra_bytes": 1 << 20}
    assert gone == {"name": "gone", "status": "absent", "reason": "not installed", "must": 2}


def test_table_is_aligned_and_says_whether_the_bar_is_met():
    title, head, ours, peer, gone = record.table([sample_result()])
    assert title.split() == ["per", "call", "vs", "ours", "quartiles", "throughput"]
    assert head.startswith("bench_x: invert  (cpu, 5 rounds)") and "bits 31" in head
    assert ours.split()[:5] == [OURS, "1", "ms", "1x", "1"]
    assert "4x" in peer and "[4, 4]" in peer and "250 kpair/s" in peer
    assert "must 3x, reach 5x: met" in peer and "peak_extra 1.0 MiB" in peer
    assert gone.strip() == "gone  absent: not installed  must 2x: not measured"
    assert ours.index("1x") + 1 == peer.index("4x") + 1
    assert record.table([]) == []


def test_slug_names_the_machine():
    machine = {"gpus": [], "cpu": "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", "cores": 8}
    assert record.slug(machine) == "intel-xeon-platinum-8481c-cpu-8-cores"
    machine["gpus"] = [{"name": "NVIDIA H200"}] * 2
    assert record.slug(machine) == "2x-nvidia-h200-intel-xeon-platinum-8481c-cpu-8-cores"


def test_figures_have_three_digits_and_a_prefix():
    assert record.si(1.2345e9, "token/s") == "1.23 Gtoken/s"
    assert record.si(4.56e-6, "s") == "4.56 us"
    assert record.si(0.0, "s") == "0 s"
    assert record.si(12, "x") == "12 x"


def test_a_row_without_bar_or_ratio_meets_nothing():
    assert Row(name="a", status="ok", ratio=3.0).met is None
    assert Row(name="a", status="failed", must=3.0).met is None
    empty = Result(bench="b", name="x", device="cpu", rounds=0, unit="", rows={}, facts={})
    assert empty.facts == {}


BENCH = """
import pytest
from bench.peers import absent

def bench_sum(compare):
    quick = compare.with_options(rounds=5, round_s=0.001, items=300, unit="pair")
    result = quick("sum", lambda: sum(range(300)), slow=lambda: sum(range(3000)), no=absent("why"))
    assert result.ratio("slow") is None or result.bar("slow", must=2)
    quick("again", lambda: None)

def bench_skipped(compare):
    pytest.skip("not here")
"""

GPU_BENCH = """
@pytest.mark.gpu
def bench_gpu(compare):
    raise AssertionError("runs without a GPU")
"""


@pytest.fixture
def run_bench(tmp_path):
    """Runs a bench file in a copy of the frame; returns (exit code, output, record or None)."""
    folder = tmp_path / "bench"
    folder.mkdir()
    for name in ("conftest.py", "measure.py", "record.py", "peers.py"):
        (folder / name).write_text((ROOT / "bench" / name).read_text())
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    # A stand-in that imports at once and sees no GPU, whatever this machine has.
    (tmp_path / "torch.py").write_text("class cuda:\n    is_available = staticmethod(bool)\n")

    def run(source, *options):
        (folder / "bench_it.py").write_text(source)
        plugins = ["-p", "no:cacheprovider", "-p", "pytest_benchmark.plugin"]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "bench/", *plugins, *options],
            cwd=tmp_path,
            env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},  # starts in half the time
            capture_output=True,
            text=True,
            timeout=120,
        )
        latest = folder / "results" / "latest.json"
        made = json.loads(latest.read_text()) if latest.exists() else None
        return done.returncode, done.stdout + done.stderr, made

    return run


def test_benches_run_under_benchmark_only(run_bench, tmp_path):
    asked = tmp_path / "out" / "kernels.json"
    code, output, made = run_bench(
        BENCH + GPU_BENCH, "--benchmark-only", "--record-file", str(asked)
    )
    assert code == 0, output
    assert "1 passed, 2 skipped" in output and "must 2x: met" in output and "absent: why" in output
    assert [result["name"] for result in made["results"]] == ["sum", "again"]
    assert json.loads(asked.read_text()) == made
    assert not list((tmp_path / "bench" / "results").glob("*/*.json"))


def test_a_run_with_record_lies_under_its_hardware(run_bench, tmp_path):
    code, output, made = run_bench(BENCH, "--benchmark-only", "--record")
    assert code == 0, output
    (path,) = (tmp_path / "bench" / "results").glob("*/*.json")
    assert json.loads(path.read_text()) == made
    assert path.parent.name == made["slug"]


def test_untimed_and_failing_benches(run_bench):
    code, output, made = run_bench(BENCH, "--benchmark-disable")
    assert (code, made) == (0, None), output
    assert "not timed" in output
    twice = BENCH.replace('"again"', '"sum"')
    code, output, made = run_bench(twice, "--benchmark-only")
    assert code == 1 and "already has a comparison called 'sum'" in output
    assert [result["name"] for result in made["results"]] == ["sum"]
