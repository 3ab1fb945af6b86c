"""A ratio that fell is marked, everything else is told apart from it."""

import json
import subprocess

import pytest

from bench.compare_records import main

SLUG = "some-cpu-2-cores"


def record(date, **comparisons):
    """A record with one bench; each comparison is {peer: ratio or None}."""
    rows = {
        name: [{"name": "ours", "status": "ok", "ratio": 1.0}]
        + [
            {"name": peer, "status": "absent", "reason": "gone"}
            if ratio is None
            else {"name": peer, "status": "ok", "ratio": ratio}
            for peer, ratio in peers.items()
        ]
        for name, peers in comparisons.items()
    }
    results = [{"bench": "bench_x", "name": name, "rows": rows[name]} for name in rows]
    return {"schema": 1, "date": date, "slug": SLUG, "commit": "abcdef0123456", "results": results}


@pytest.fixture
def place(tmp_path, capsys):
    """Writes the committed records and the run, compares; returns (exit code, output)."""

    def git(*command):
        subprocess.run(["git", *command], cwd=tmp_path, check=True, capture_output=True)

    def compare(run, *records, uncommitted=()):
        git("init", "-q", "-b", "main")
        folder = tmp_path / SLUG
        folder.mkdir()
        for index, made in enumerate([*records, *uncommitted]):
            path = folder / f"{made['date'][:10]}-{index}.json"
            path.write_text(json.dumps(made))
            if index < len(records):
                git("add", str(path))
        latest = tmp_path / "latest.json"
        latest.write_text(json.dumps(run))
        code = main([str(latest), "--results", str(tmp_path)])
        return code, capsys.readouterr().out

    return compare


def test_a_fall_of_more_than_a_tenth_is_marked(place):
    code, output = place(
        record("2026-02-01", invert={"gmpy2": 17.0, "pow": 99.0, "numpy": 91.0}),
        record("2026-01-01", invert={"gmpy2": 20.0, "pow": 80.0, "numpy": 100.0}),
    )
    assert code == 1
    assert "bench_x: invert / gmpy2: 20x -> 17x  -15%   <-- FELL" in output
    assert "invert / numpy: 100x -> 91x  -9%\n" in output
    assert output.count("FELL") == 1
    assert "1 of 3 ratios fell by more than 10%" in output


def test_nothing_fell(place):
    run = record("2026-02-01", invert={"pow": 80.0})
    code, output = place(run, record("2026-01-01", invert={"pow": 80.0}))
    assert code == 0 and "none of 1 ratios fell" in output
    assert "record of 2026-01-01, commit abcdef012" in output


def test_the_newest_record_that_has_the_comparison_counts(place):
    code, output = place(
        record("2026-04-01", invert={"pow": 50.0}, loss={"torch": 5.0}, fresh={"torch": 1.0}),
        record("2026-01-01", invert={"pow": 90.0}, loss={"torch": 9.0}),
        record("2026-02-01", invert={"pow": 50.0}),
    )
    assert code == 1
    assert "invert / pow: 50x -> 50x  +0%" in output
    assert "loss / torch: 9x -> 5x  -44%   <-- FELL" in output
    assert "bench_x: fresh: in no record yet" in output


def test_peers_that_came_or_went_are_told_but_not_marked(place):
    code, output = place(
        record("2026-02-01", invert={"came": 2.0, "went": None}),
        record("2026-01-01", invert={"went": 3.0, "never": None}),
    )
    assert code == 0
    assert "went: 3x -> not measured\n" in output
    assert "came: not measured -> 2x\n" in output
    assert "never: not measured -> not measured\n" in output


def test_uncommitted_records_and_the_run_itself_do_not_count(place):
    run = record("2026-02-01", invert={"pow": 50.0})
    draft = record("2026-01-15", invert={"pow": 50.0})
    code, output = place(run, run, uncommitted=[draft])
    assert code == 0
    assert f"no committed record of this hardware ({SLUG})" in output


def test_other_hardware_is_no_record(tmp_path, capsys):
    run = tmp_path / "run.json"
    run.write_text(json.dumps(record("2026-02-01", invert={"pow": 1.0}) | {"slug": "other"}))
    assert main([str(run), "--results", str(tmp_path)]) == 0
    assert "(other)" in capsys.readouterr().out


@pytest.mark.parametrize(("text", "complaint"), [("{", "not JSON"), ("{}", "not a bench record")])
def test_a_bad_or_missing_run_is_an_error(tmp_path, capsys, text, complaint):
    run = tmp_path / "run.json"
    assert main([str(run)]) == 2
    assert "run `make bench` first" in capsys.readouterr().err
    run.write_text(text)
    assert main([str(run)]) == 2
    assert complaint in capsys.readouterr().err
