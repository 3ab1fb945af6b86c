"""The stages of `make gpu`, on a table of our own: no GPU is needed to run a command."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import gpu_build, gpu_stages
from bench.gpu_stages import ROOT, STAGES, Stage, choose, existing, main, run_all

MACHINE = {"cpu": "Some CPU", "cores": 2, "gpus": [{"name": "Some GPU"}]}
SEEN = {"cuda": True, "torch": "2", "python": "3"}


def python(code):
    """A stage command that runs this code, which may contain {results}."""
    return f"{{python}} -c '{code}'"


def run(stages, results, machine=MACHINE):
    code = run_all(stages, results, SEEN, machine)
    return code, json.loads((results / "record.json").read_text())["stages"]


def test_stages_run_and_merge_into_one_record(tmp_path, capsys):
    writes = 'print("hello"); open("{results}/out.json", "w").write("[1, 2]")'
    rows = 'open("{results}/m.jsonl", "w").write("1\\n2\\n")'
    code, stages = run(
        [
            Stage(name="one", command=python(writes), outputs=("out.json", "not-written.json")),
            Stage(name="two", command=python(rows), outputs=("m.jsonl",)),
        ],
        tmp_path / "new",
    )
    assert code == 0
    assert {name: part["outcome"] for name, part in stages.items()} == {"one": "ok", "two": "ok"}
    assert stages["one"]["data"] == {"out.json": [1, 2]}
    assert stages["two"]["data"] == {"m.jsonl": [1, 2]}
    assert stages["one"]["tail"] == ["hello"] and stages["one"]["seconds"] >= 0
    assert (tmp_path / "new" / "one.log").read_text() == "hello\n"
    assert "== one: passed after" in capsys.readouterr().out


def test_a_failing_stage_does_not_stop_the_others(tmp_path, capsys):
    code, stages = run(
        [
            Stage(name="bad", command=python('raise SystemExit("oh no")')),
            Stage(name="good", command=python("print(1)")),
        ],
        tmp_path,
    )
    assert code == 1
    assert (stages["bad"]["outcome"], stages["bad"]["exit_code"]) == ("failed", 1)
    assert stages["bad"]["tail"] == ["oh no"]
    assert stages["good"]["outcome"] == "ok"
    assert "bad: FAILED" in capsys.readouterr().out


def test_a_stage_over_its_limit_is_stopped_with_its_children(tmp_path):
    pid_file = tmp_path / "pid"
    deaf = "import signal, time; signal.signal(2, signal.SIG_IGN); time.sleep(60)"
    code = (
        "import subprocess, sys, time; "
        f'child = subprocess.Popen([sys.executable, "-c", "{deaf}"]); '
        f'open("{pid_file}", "w").write(str(child.pid)); '
        'print("started", flush=True); time.sleep(60)'
    )
    started = time.monotonic()
    result, stages = run(
        [
            Stage(name="slow", command=python(code), limit_s=1.5),
            Stage(name="next", command=python("print(1)")),
        ],
        tmp_path,
    )
    assert time.monotonic() - started < 20
    assert result == 1
    assert stages["slow"]["outcome"] == "timeout" and "started" in stages["slow"]["tail"]
    assert stages["next"]["outcome"] == "ok"
    stat = Path(f"/proc/{pid_file.read_text()}/stat")
    for _ in range(50):
        try:
            state = stat.read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            break
        if state == "Z":  # a killed orphan, until it is reaped
            break
        time.sleep(0.1)
    else:
        pytest.fail("the child of a stopped stage still runs")


def test_a_stage_without_its_modules_is_reported(tmp_path, capsys):
    code, stages = run(
        [
            Stage(name="needs", command="no-such-command", modules=("json", "no_such_module")),
            Stage(name="next", command=python("print(1)")),
        ],
        tmp_path,
    )
    assert code == 0
    assert (stages["needs"]["outcome"], stages["needs"]["missing"]) == (
        "missing",
        ["no_such_module"],
    )
    assert stages["next"]["outcome"] == "ok"
    assert "needs: not run, for want of a module (no_such_module)" in capsys.readouterr().out


def test_a_record_grows_over_calls_but_only_on_one_machine(tmp_path):
    one = Stage(name="one", command=python("print(1)"))
    two = Stage(name="two", command=python("print(2)"))
    run([one], tmp_path)
    _, stages = run([two], tmp_path)
    assert set(stages) == {"one", "two"}
    with pytest.raises(ValueError, match="another RESULTS folder"):
        run([one], tmp_path, MACHINE | {"cpu": "Another CPU"})


def test_figures_of_an_earlier_run_do_not_count(tmp_path):
    (tmp_path / "out.json").write_text("[1]")
    (tmp_path / "half.jsonl").write_text("{}\n")
    half = 'open("{results}/half.jsonl", "w").write("[1]\\n[")'
    _, stages = run(
        [Stage(name="one", command=python(half), outputs=("out.json", "half.jsonl"))], tmp_path
    )
    assert list(stages["one"]["data"]) == ["half.jsonl"]
    assert "unreadable" in stages["one"]["data"]["half.jsonl"]


def test_no_tests_collected_is_nothing_to_run(tmp_path):
    stage = Stage(name="tests", command=python("raise SystemExit(5)"), modules=("pytest",))
    code, stages = run([stage], tmp_path)
    assert (code, stages["tests"]["outcome"]) == (0, "empty")


def test_the_tree_is_importable_and_works_without_installation(tmp_path):
    code = (
        "from importlib.util import find_spec; "
        'print(find_spec("azr").origin, find_spec("rlvr_kernels").origin)'
    )
    code, stages = run([Stage(name="p", command=python(code))], tmp_path)
    assert code == 0
    assert stages["p"]["tail"] == [
        f"{ROOT}/azr/__init__.py {ROOT}/kernels/rlvr_kernels/__init__.py"
    ]


def test_choosing_stages(tmp_path):
    table = (
        Stage(name="a", command="x"),
        Stage(name="b", command="x", files=("no/such/file",)),
        Stage(name="c", command="x"),
    )
    present = existing(table)
    assert [stage.name for stage in present] == ["a", "c"]
    assert choose(present, []) == present
    assert [stage.name for stage in choose(present, ["c", "a"])] == ["a", "c"]
    with pytest.raises(ValueError, match="no stage b, z; the stages are: a c"):
        choose(present, ["b", "a", "z"])


def test_an_unknown_stage_is_an_error_on_any_machine(capsys):
    assert main(["build", "tets"]) == 2
    assert "no stage tets; the stages are: build " in capsys.readouterr().err


def test_without_a_gpu_nothing_runs_and_nothing_is_claimed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu_stages, "probe", lambda: {"cuda": False, "torch": "2"})
    monkeypatch.setattr(gpu_stages, "hardware", lambda: MACHINE | {"gpus": []})
    results = tmp_path / "results"
    table = [Stage(name="a", command=python("print(1)"))]
    assert main(["--results", str(results)], table) == 0
    assert "no GPU on this machine" in capsys.readouterr().out
    assert not results.exists()
    monkeypatch.setattr(gpu_stages, "hardware", lambda: MACHINE)
    assert main(["--results", str(results)], table) == 1
    assert "torch 2 sees no CUDA device" in capsys.readouterr().err
    monkeypatch.setattr(gpu_stages, "probe", lambda: SEEN)
    assert main(["--results", str(results)], table) == 0
    assert (results / "record.json").exists()


def test_the_training_stage_asks_for_options_that_exist(tmp_path):
    from azr.config import parse_command_line

    (stage,) = choose(STAGES, ["train-prime"])
    words = gpu_stages.fill_in(stage.command, tmp_path)
    config = parse_command_line(words[words.index("azr.train") + 1 :]).config
    assert (config.run.device, config.run.name) == ("cuda", "gpu-prime")
    assert config.run.root == f"{tmp_path}/runs"


def test_gpu_tests_are_found_without_importing_any(tmp_path):
    (tmp_path / "tests" / "part").mkdir(parents=True)
    (tmp_path / "tests" / "test_a.py").write_text("import no_such_module")
    assert gpu_stages.gpu_tests(tmp_path) == ["tests"]
    (tmp_path / "tests" / "part" / "test_b.py").write_text("@pytest.mark.gpu")
    assert gpu_stages.gpu_tests(tmp_path) == ["tests/part/test_b.py"]
    words = gpu_stages.fill_in("{python} x {gpu_tests} '{results}/a b'", tmp_path)
    assert words[0] == sys.executable and words[-1] == f"{tmp_path}/a b"
    assert "tests/test_bench_frame.py" in words


def test_the_real_table_holds_at_most_eight_minutes_a_stage():
    names = [stage.name for stage in STAGES]
    assert names == ["build", "aot", "tests", "kernels", "rollout", "step", "train-prime"]
    assert all(stage.limit_s <= 480 for stage in STAGES)


def test_the_probe_asks_torch_in_another_process(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "torch.py").write_text(
        "from types import SimpleNamespace as N\n"
        "__version__, version = '2.99', N(cuda='13.0')\n"
        "cuda = N(is_available=lambda: True, get_device_name=lambda: 'Some GPU',\n"
        "         get_device_capability=lambda: (9, 0))\n"
    )
    seen = gpu_stages.probe()
    assert (seen["torch"], seen["cuda"], seen["device"]) == ("2.99", True, "Some GPU")
    assert seen["capability"] == [9, 0]
    (tmp_path / "torch.py").write_text("raise ImportError('libcuda is missing')")
    assert gpu_stages.probe()["reason"] == "libcuda is missing"
    (tmp_path / "torch.py").write_text("raise RuntimeError('driver')")
    assert gpu_stages.probe()["reason"] == "RuntimeError: driver"


def test_the_build_stage_tells_missing_from_broken(tmp_path):
    (tmp_path / "needs_it.py").write_text("import no_such_package.part")
    (tmp_path / "broken_one.py").write_text("1 / 0")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})"
    code += "; from bench.gpu_build import import_all"
    code += "; import json; print(json.dumps(import_all(['json', 'needs_it', 'broken_one'])))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          cwd=gpu_build.ROOT)  # fmt: skip
    missing, broken = json.loads(done.stdout)
    assert missing == {"needs_it": "no_such_package"}
    assert list(broken) == ["broken_one"] and "ZeroDivisionError" in broken["broken_one"]
    assert "azr.config" in gpu_build.modules() and "rlvr_kernels.reference" in gpu_build.modules()
    assert {"torch", "tyro", "numba"} <= set(gpu_build.required())
