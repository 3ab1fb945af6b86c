"""The stages of `make gpu`, on a table of our own: no GPU is needed to run a command."""

import ast
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import gpu_build, gpu_learn, gpu_record, gpu_stages
from bench.gpu_record import FIGURES, Figure, Findings, add_stage, read_findings
from bench.gpu_stages import (
    CALL_LIMIT_S,
    FRAME_S,
    MOST_FILES,
    ROOT,
    STAGES,
    Bench,
    Stage,
    choose,
    main,
    run_all,
)

MACHINE = {
    "cpu": "Some CPU", "cores": 2, "os": "Linux", "gpus": [{"name": "Some GPU", "driver": "1"}],
}  # fmt: skip
SEEN = {"cuda": True, "torch": "2", "python": "3", "device": "Some GPU"}


def stage(name="one", code="print(1)", limit_s=60.0, **options):
    """A stage that runs this code, which may contain {findings} and {folder}."""
    return Stage(name=name, call=1, command=f"{{python}} -c '{code}'", limit_s=limit_s, **options)


def run(stages, results, machine=MACHINE, deadline=None, **options):
    code = run_all(stages, Bench(results=results, **options), SEEN, machine, deadline)
    return code, json.loads((results / "record.json").read_text())


def finds(**figures):
    """Code that writes these figures as a stage does."""
    told = "; ".join(f'found.figure("{name}", {value})' for name, value in figures.items())
    return (
        "from pathlib import Path; from bench.gpu_record import Findings; "
        f'found = Findings(Path("{{findings}}")); {told}'
    )


def test_stages_run_and_merge_into_one_record(tmp_path, capsys):
    results = tmp_path / "new"
    code, record = run(
        [
            stage("one", finds(copy_gb_s=3000.0) + '; print("hello")'),
            stage("two", 'open("{folder}/p.txt", "w").write("kept")', keep=("p.txt", "none.txt")),
        ],
        results,
    )
    assert code == 0
    assert {name: part["outcome"] for name, part in record["stages"].items()} == {
        "one": "ok",
        "two": "ok",
    }
    assert record["schema"] == 2 and record["slug"].startswith("some-gpu-some-cpu")
    figure = record["figures"]["copy_gb_s"]
    assert set(figure) == {"value", "unit", "stage", "commit", "date"}
    assert (figure["value"], figure["unit"], figure["stage"]) == (3000.0, "GB/s", "one")
    assert record["stages"]["one"]["tail"][-1] == "hello"
    assert (results / "p.txt").read_text() == "kept"
    assert sorted(path.name for path in results.iterdir()) == [
        "RECORD.md", "log.txt", "p.txt", "record.json",
    ]  # fmt: skip
    log = (results / "log.txt").read_text()
    assert "== one: " in log and "\nhello\n" in log and "== two: " in log
    page = (results / "RECORD.md").read_text()
    assert "| `copy_gb_s` | 3,000 GB/s |" in page and "Some GPU" in page
    said = capsys.readouterr().out
    assert "== one: passed after" in said and "copy_gb_s 3000 GB/s" in said


def test_a_failing_stage_does_not_stop_the_others(tmp_path, capsys):
    code, record = run([stage("bad", 'raise SystemExit("oh no")'), stage("good")], tmp_path)
    stages = record["stages"]
    assert code == 1
    assert (stages["bad"]["outcome"], stages["bad"]["exit_code"]) == ("failed", 1)
    assert stages["bad"]["tail"] == ["oh no"] and stages["good"]["outcome"] == "ok"
    assert "bad: FAILED" in capsys.readouterr().out
    assert "oh no" in (tmp_path / "RECORD.md").read_text()


def test_a_stage_over_its_limit_is_stopped_with_its_children(tmp_path):
    pid_file = tmp_path / "pid"
    deaf = "import signal, time; signal.signal(2, signal.SIG_IGN); time.sleep(60)"
    code = (
        finds(copy_gb_s=1.0) + "; import subprocess, sys, time; "
        f'child = subprocess.Popen([sys.executable, "-c", "{deaf}"]); '
        f'open("{pid_file}", "w").write(str(child.pid)); '
        'print("started", flush=True); time.sleep(60)'
    )
    result, record = run([stage("slow", code, limit_s=3.0), stage("next")], tmp_path)
    stages = record["stages"]
    assert result == 1
    assert stages["slow"]["outcome"] == "timeout" and "started" in stages["slow"]["tail"]
    assert record["figures"]["copy_gb_s"]["value"] == 1.0, "what was known before is kept"
    assert stages["next"]["outcome"] == "ok"
    path = Path(f"/proc/{pid_file.read_text()}/stat")
    for _ in range(50):
        try:
            state = path.read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            break
        if state == "Z":  # a killed orphan, until it is reaped
            break
        time.sleep(0.1)
    else:
        pytest.fail("the child of a stopped stage still runs")


def test_what_ends_early_leaves_its_time_and_none_takes_a_later_ones(tmp_path):
    deadline = time.monotonic() + 100
    table = [stage("a", limit_s=20), stage("b", limit_s=30), stage("c", limit_s=40)]
    _, record = run(table, tmp_path, deadline=deadline)
    a, b, c = (record["stages"][name]["limit_s"] for name in "abc")
    assert a <= 100 - 70 and b <= 100 - 40 and c <= 100
    assert b > 30 and c > 40, "each ended at once"


def test_past_the_deadline_stages_are_not_begun(tmp_path, capsys):
    run([stage("late", finds(copy_gb_s=1.0))], tmp_path)
    _, record = run([stage("late"), stage("too")], tmp_path, deadline=time.monotonic() + 1)
    assert record["stages"]["too"]["outcome"] == "late"
    assert "too: not run, for want of time" in capsys.readouterr().out
    assert record["stages"]["late"]["outcome"] == "ok", "an earlier run of it stays"
    assert record["figures"]["copy_gb_s"]["value"] == 1.0


def test_a_stage_without_its_modules_is_reported(tmp_path, capsys):
    needs = Stage(name="needs", call=1, command="no-such-command", limit_s=9,
                  modules=("json", "no_such_module"))  # fmt: skip
    code, record = run([needs, stage("next")], tmp_path)
    stages = record["stages"]
    assert code == 0
    assert stages["needs"]["outcome"] == "missing"
    assert stages["needs"]["missing"] == ["no_such_module"]
    assert stages["next"]["outcome"] == "ok"
    assert "needs: not run, for want of a module (no_such_module)" in capsys.readouterr().out


def test_a_stage_that_could_not_run_all_of_it_says_so(tmp_path, capsys):
    told = finds() + 'found.note("missing", ["no_such_module"])'
    code, record = run([stage("tests", told)], tmp_path)
    assert (code, record["stages"]["tests"]["outcome"]) == (0, "partial")
    said = capsys.readouterr().out
    assert "tests: passed, but not all of it was run for want of a module (no_such_module)" in said


def test_a_record_grows_over_calls_but_only_on_one_machine(tmp_path):
    run([stage("one", finds(copy_gb_s=1.0, matmul_tflop_s=2.0))], tmp_path)
    run([stage("two", finds(sampler_256_us=3.0))], tmp_path)
    _, record = run([stage("one", finds(copy_gb_s=4.0))], tmp_path)
    assert {k: v["value"] for k, v in record["figures"].items()} == {
        "sampler_256_us": 3.0,
        "copy_gb_s": 4.0,
    }, "a stage that ran again leaves none of its old figures"
    with pytest.raises(ValueError, match="another RESULTS folder"):
        run([stage("one")], tmp_path, MACHINE | {"cpu": "Another CPU"})
    with pytest.raises(ValueError, match="another RESULTS folder"):
        run([stage("one")], tmp_path, is_rehearsal=True)


def test_figures_are_of_the_commit_that_was_said_where_there_is_no_history(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_stages, "commit", lambda: {"commit": None, "dirty": None})
    _, record = run([stage("one", finds(copy_gb_s=1.0))], tmp_path, commit="abc")
    assert record["figures"]["copy_gb_s"]["commit"] == "abc"
    monkeypatch.setattr(gpu_stages, "commit", lambda: {"commit": "def", "dirty": True})
    _, record = run([stage("one", finds(copy_gb_s=1.0))], tmp_path, commit="abc")
    assert record["figures"]["copy_gb_s"]["commit"] == "def-dirty"


def test_findings_survive_a_stage_that_is_stopped_while_it_writes(tmp_path):
    findings = Findings(tmp_path / "f.jsonl")
    findings.figure("copy_gb_s", 1.0)
    findings.figure("copy_gb_s", 2.0)
    findings.figure("matmul_tflop_s", float("nan"))
    findings.note("rows", [1, 2])
    with findings.path.open("a") as file:
        file.write('{"figure": "sampler_256_us", "val')
    figures, notes = read_findings(findings.path)
    assert figures == {"copy_gb_s": 2.0}
    assert notes == {"matmul_tflop_s": "not a number: nan", "rows": [1, 2]}
    with pytest.raises(KeyError):
        findings.figure("no_such_figure", 1.0)


def test_no_tests_collected_is_nothing_to_run(tmp_path):
    code, record = run([stage("tests", "raise SystemExit(5)", modules=("pytest",))], tmp_path)
    assert (code, record["stages"]["tests"]["outcome"]) == (0, "empty")


def test_the_tree_is_importable_and_works_without_installation(tmp_path):
    code = (
        "from importlib.util import find_spec; "
        'print(find_spec("azr").origin, find_spec("rlvr_kernels").origin)'
    )
    _, record = run([stage("p", code)], tmp_path)
    assert record["stages"]["p"]["tail"] == [
        f"{ROOT}/azr/__init__.py {ROOT}/kernels/rlvr_kernels/__init__.py"
    ]


def test_choosing_stages():
    table = (stage("a"), Stage(name="b", call=2, command="x", limit_s=1), stage("c"))

    def names(calls, stages):
        return [chosen.name for chosen in choose(table, calls, stages)]

    assert names([], ["c", "a"]) == ["a", "c"] == names([1], [])
    assert names([2], ["a"]) == ["a", "b"] and names([], []) == ["a", "b", "c"]
    with pytest.raises(ValueError, match="no stage z, y; the stages are: a b c"):
        choose(table, [], ["a", "z", "y"])
    with pytest.raises(ValueError, match="no call 3; the calls are: 1 2"):
        choose(table, [3], [])


def test_an_unknown_stage_is_an_error_on_any_machine(capsys):
    assert main(["build", "tets"]) == 2
    assert "no stage tets; the stages are: build " in capsys.readouterr().err


def test_without_a_gpu_nothing_runs_and_nothing_is_claimed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu_stages, "probe", lambda: {"cuda": False, "torch": "2"})
    monkeypatch.setattr(gpu_stages, "hardware", lambda: MACHINE | {"gpus": []})
    results = tmp_path / "results"
    table = [stage("a")]
    assert main(["--results", str(results)], table) == 0
    assert "no GPU on this machine" in capsys.readouterr().out
    assert not results.exists()
    monkeypatch.setattr(gpu_stages, "hardware", lambda: MACHINE)
    assert main(["--results", str(results)], table) == 1
    assert "torch 2 sees no CUDA device" in capsys.readouterr().err
    monkeypatch.setattr(gpu_stages, "probe", lambda: SEEN)
    assert main(["--results", str(results)], table) == 0
    assert (results / "record.json").exists()


def test_a_rehearsal_says_so_and_leaves_nothing_among_the_results(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu_stages, "probe", lambda: {"cuda": False, "torch": "2"})
    table = [stage("a", 'print("on {device} {toy}")')]
    assert gpu_stages.default_results(MACHINE, False).parent == ROOT / "bench" / "results"
    monkeypatch.setattr(gpu_stages, "RESULTS", tmp_path / "results")
    among = gpu_stages.RESULTS / "some-gpu"
    assert main(["--rehearse", "--results", str(among)], table) == 2
    assert "a rehearsal leaves nothing under" in capsys.readouterr().err and not among.exists()
    assert not gpu_stages.default_results(MACHINE, True).is_relative_to(gpu_stages.RESULTS)
    elsewhere = tmp_path / "elsewhere"
    assert main(["--rehearse", "--call", "1", "--results", str(elsewhere)], table) == 0
    said = capsys.readouterr().out
    assert "on cpu --toy" in said and gpu_record.REHEARSAL in said
    record = json.loads((elsewhere / "record.json").read_text())
    assert record["rehearsal"] is True and record["slug"].startswith("rehearsal-")
    assert gpu_record.REHEARSAL in (elsewhere / "RECORD.md").read_text()


# ---------------------------------------------------------------------------- the table of stages


def test_the_limits_of_a_calls_stages_fit_into_it():
    assert CALL_LIMIT_S[1] <= 280 and CALL_LIMIT_S[2] + CALL_LIMIT_S[3] <= 410
    for call, limit_s in CALL_LIMIT_S.items():
        assert sum(s.limit_s for s in STAGES if s.call == call) + FRAME_S <= limit_s, call


def test_what_comes_back_is_few_files_and_no_folder():
    kept = [name for s in STAGES for name in s.keep]
    assert len(kept) == len(set(kept)) and not any("/" in name for name in kept)
    assert len(kept) + len(("record.json", "RECORD.md", "log.txt")) <= MOST_FILES


def test_every_test_file_belongs_to_one_stage():
    """By the paths that pytest is given: not by what stands in the files."""
    whole = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("test_*.py")}
    found = []
    for s in STAGES:
        words = s.command.split()
        if "pytest" in words:
            ignored = {w.partition("=")[2] for w in words if w.startswith("--ignore=")}
            roots = [word for word in words if word.startswith("tests")]
            found += [
                file
                for file in whole
                if any(file.startswith(f"{root}/") for root in roots)
                and not any(file.startswith(f"{folder}/") for folder in ignored)
            ]
            assert " -m gpu" not in s.command and "-k" not in words, "the plugin chooses"
    assert sorted(found) == sorted(whole)


def test_the_training_stages_ask_for_options_that_exist(tmp_path):
    from azr.config import parse_command_line

    (train,) = choose(STAGES, [], ["train"])
    words = Bench(results=tmp_path).words(train, tmp_path)
    config = parse_command_line(words[words.index("azr.train") + 1 :]).config
    assert (config.run.device, config.run.dtype, config.steps) == ("cuda", "bfloat16", 3)
    assert config.optim.recompute and config.run.root == f"{tmp_path}/runs"
    learn = parse_command_line([*gpu_learn.OPTIONS, *gpu_learn.TOY_OPTIONS]).config
    assert learn.run.dtype == "bfloat16" and learn.task.prime.number_tokens == "digit"
    learn = parse_command_line(list(gpu_learn.OPTIONS)).config
    assert learn.task.prime.max_p > 23, "larger than the default's"


def test_figures_end_in_their_unit_and_know_their_bars():
    ends = {
        "tests": ("collected", "passed", "failed", "skipped"), "GB/s": ("gb_s",), "s": ("s",),
        "TFLOP/s": ("tflop_s",), "frac": ("frac",), "x": ("ratio",), "MiB": ("mib",), "us": ("us",),
        "tok/s": ("tok_s",), "nats": ("nats",), "GiB": ("gib",), "steps": ("steps",),
        "step": ("step",),
    }  # fmt: skip
    for name, figure in FIGURES.items():
        assert name.endswith(tuple(f"_{end}" for end in ends[figure.unit])), name
    at_least, at_most = Figure("x", "", must=2), Figure("x", "", most=2)
    assert (at_least.met(2), at_least.met(1.9), at_least.bar) == (True, False, "at least 2")
    assert (at_most.met(-2), at_most.met(-2.1), at_most.bar) == (True, False, "at most 2")
    assert Figure("x", "").met(1) is None


# The third-party packages that a stage imports, found in the sources.

PACKAGES = {"azr": ROOT / "azr", "rlvr_kernels": ROOT / "kernels" / "rlvr_kernels",
            "bench": ROOT / "bench"}  # fmt: skip


def file_of(module):
    """The file of a module of the tree, None for another's."""
    top, *rest = module.split(".")
    if top not in PACKAGES:
        return None
    path = PACKAGES[top].joinpath(*rest)
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in candidates if file.is_file()), None)


def imports(module, *, with_functions):
    """The modules that one names in import statements, but for those that it can do without."""
    file = file_of(module)
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]

    def visit(node):
        if isinstance(node, ast.Try) and any("ImportError" in ast.dump(h) for h in node.handlers):
            return
        if isinstance(node, ast.Try) and any("NotFound" in ast.dump(h) for h in node.handlers):
            return
        if isinstance(node, ast.FunctionDef | ast.Lambda) and not with_functions:
            return
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parts, *filter(None, [base])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    yield from visit(ast.parse(file.read_text()))


def third_party(entry, *, late=True):
    """The requirements of the project that running a module of the tree imports.

    Followed through the tree; what a function imports counts in the module that is run only, and
    there not with `late=False`.
    """
    found, seen, todo = set(), set(), [(entry, late)]
    while todo:
        module, with_functions = todo.pop()
        for name in imports(module, with_functions=with_functions):
            found.add(name.partition(".")[0])
            while name:  # importing a.b imports a
                if file_of(name) and name not in seen:
                    seen.add(name)
                    todo.append((name, False))
                name = name.rpartition(".")[0]
    return found & {*gpu_build.required(), "pytest", "triton"}


@pytest.mark.parametrize("s", STAGES, ids=lambda s: s.name)
def test_a_stage_names_the_modules_that_it_imports(s):
    words = s.command.split()
    module = words[words.index("-m") + 1]
    # The doctor does without what is missing, and says so.
    late = s.name != "doctor"
    needed = {"pytest"} if module == "pytest" else third_party(module, late=late)
    assert needed <= set(s.modules)


def test_imports_are_followed_through_the_tree():
    assert {"torch", "numpy", "transformers"} <= third_party("azr.learner")
    assert third_party("rlvr_kernels") == {"torch"}
    assert third_party("bench.gpu_record") == set()
    assert {"torch", "transformers"} <= third_party("azr.train"), "what it imports late counts"
    assert "torch" not in third_party("azr.train", late=False)


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
    assert gpu_build.numba_error() is None


# ------------------------------------------------------------------------- the tests of the stages

CONFTEST = """
import pytest

@pytest.fixture(params=["torch", pytest.param("cuda", marks=pytest.mark.gpu)])
def place(request):
    return request.param

def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
"""
MARKED_BY_A_FIXTURE = """
import pytest

@pytest.mark.parametrize("n", [1, 2])
def test_it(place, n):
    assert place == "torch"

def test_other():
    raise AssertionError("no GPU test")
"""


def run_plugin(folder, device, *options):
    """(exit code, figures, notes) of the plugin on the tests in a folder."""
    findings = folder / "findings.jsonl"
    findings.unlink(missing_ok=True)
    plugins = ["-p", "no:cacheprovider", "-p", "bench.gpu_tests", "-o", "markers=gpu: on a GPU"]
    told = ["--gpu-findings", str(findings), "--gpu-figures", "kernel_tests"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *plugins, *told, "--gpu-device", device,
         "--continue-on-collection-errors", "--rootdir", str(folder), *options, str(folder)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
    )  # fmt: skip
    return done.returncode, *read_findings(findings)


def test_gpu_tests_are_those_of_a_real_collection(tmp_path):
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_fixture.py").write_text(MARKED_BY_A_FIXTURE)
    (tmp_path / "test_marked.py").write_text(
        "import pytest\n\n@pytest.mark.gpu\ndef test_here():\n    assert 0\n"
    )
    (tmp_path / "test_missing.py").write_text("import no_such_module\n")
    code, figures, notes = run_plugin(tmp_path, "cuda")
    assert (code, figures) == (0, {
        "kernel_tests_collected": 3, "kernel_tests_passed": 0, "kernel_tests_failed": 0,
        "kernel_tests_skipped": 3,
    })  # fmt: skip
    assert notes["collected"] == [
        "test_fixture.py::test_it[cuda-1]",
        "test_fixture.py::test_it[cuda-2]",
        "test_marked.py::test_here",
    ]
    assert notes["not collected"] == {"test_missing.py": "no_such_module"}
    assert notes["missing"] == ["no_such_module"], "the conftest beside it gives the mark"
    # In a rehearsal torch's place stands for CUDA's; what has none is skipped.
    code, figures, _ = run_plugin(tmp_path, "cpu")
    assert code == 0
    assert (figures["kernel_tests_passed"], figures["kernel_tests_skipped"]) == (2, 1)
    assert figures["kernel_tests_collected"] == 3


def test_a_failing_test_or_a_broken_file_fails_the_stage(tmp_path):
    (tmp_path / "conftest.py").write_text(CONFTEST)
    wrong = MARKED_BY_A_FIXTURE.replace('== "torch"', '== "torch" and n == 1, "n is 2"')
    (tmp_path / "test_fixture.py").write_text(wrong)
    code, figures, notes = run_plugin(tmp_path, "cpu")
    assert code == 1
    assert (figures["kernel_tests_passed"], figures["kernel_tests_failed"]) == (1, 1)
    (line,) = notes["failed"]
    assert "test_it[torch-2]" in line and "n is 2" in line
    (tmp_path / "test_fixture.py").write_text("import azr.no_such_part\n")
    code, figures, notes = run_plugin(tmp_path, "cpu")
    assert code == 1 and figures["kernel_tests_failed"] == 1
    assert "cannot be collected" in notes["failed"][0]


def test_a_stage_that_is_killed_keeps_the_counts_so_far(tmp_path):
    (tmp_path / "test_marked.py").write_text(
        "import os, pytest\npytestmark = pytest.mark.gpu\n"
        "def test_a():\n    pass\ndef test_b():\n    assert 0\n"
        "def test_c():\n    os.kill(os.getpid(), 9)\ndef test_d():\n    pass\n"
    )
    code, figures, notes = run_plugin(tmp_path, "cuda")
    assert code == -9 and figures["kernel_tests_collected"] == 4
    assert (figures["kernel_tests_passed"], figures["kernel_tests_failed"]) == (1, 1)
    assert "test_b" in notes["failed"][0]


@pytest.mark.parametrize("outcome", ["failed", "timeout"])
def test_a_stage_that_fails_takes_no_figure_away(outcome):
    record = {"stages": {}, "figures": {}}

    def part(outcome, date):
        return {"outcome": outcome, "commit": "c", "dirty": False, "date": date}

    add_stage(record, "model", part("ok", "1"), {"update_3b_s": 2.0, "copy_gb_s": 5.0})
    add_stage(record, "model", part(outcome, "2"), {"copy_gb_s": 6.0})
    assert record["stages"]["model"]["outcome"] == outcome
    found = {name: (f["value"], f["date"]) for name, f in record["figures"].items()}
    assert found == {"update_3b_s": (2.0, "1"), "copy_gb_s": (6.0, "2")}
    add_stage(record, "model", part("ok", "3"), {"copy_gb_s": 7.0})
    assert set(record["figures"]) == {"copy_gb_s"}


def test_a_part_that_fails_costs_no_other(tmp_path):
    findings = Findings(tmp_path / "findings.jsonl")

    def broken():
        raise RuntimeError("no profiler here")

    parts = {"broken": broken, "copy": lambda: findings.figure("copy_gb_s", 3.0)}
    assert findings.run(parts) == 1
    figures, notes = read_findings(findings.path)
    assert figures == {"copy_gb_s": 3.0} and "no profiler here" in notes["broken failed"][-1]
    assert findings.run({"copy": parts["copy"]}) == 0


# ----------------------------------------------------------------------- the three calls, rehearsed

ON_CUDA_ALONE = {
    "decode_3b_256_roofline_frac", "rollout_3b_256_roofline_frac", "rollout_3b_256_decode_frac",
    "linear_fwd_extra_mib", "linear_both_extra_mib", "update_3b_matmul_frac",
    *(f"decode_3b_{rows}_rows{own}_frac" for rows in (128, 256) for own in ("", "_unfused")),
}  # fmt: skip
"""A CPU has neither events nor a count of allocations."""


def rehearse(call, results):
    """The record of a call rehearsed through make, as on a GPU."""
    done = subprocess.run(
        ["make", "gpu", f"CALL={call}", "REHEARSE=1", f"RESULTS={results}",
         f"PYTHON={sys.executable}"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-6000:]
    assert gpu_record.REHEARSAL in said
    assert not [path for path in results.iterdir() if path.is_dir()]
    assert len(list(results.iterdir())) <= MOST_FILES
    return json.loads((results / "record.json").read_text()), said


@pytest.mark.proof
def test_call_1_rehearsed_collects_every_gpu_test_of_the_tree(tmp_path):
    record, said = rehearse(1, tmp_path)
    stages = record["stages"]
    assert {part["outcome"] for part in stages.values()} == {"ok"}
    listed = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "gpu", "tests"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    whole = sorted(line for line in listed.stdout.splitlines() if "::" in line)
    told = [stages[name]["notes"]["collected"] for name in ("kernel-tests", "other-tests")]
    assert sorted(told[0] + told[1]) == whole and len(whole) > 150
    figures = {name: figure["value"] for name, figure in record["figures"].items()}
    counts = [figures[f"{part}_tests_collected"] for part in ("kernel", "other")]
    assert sum(counts) == len(whole)
    assert f"kernel_tests_collected {counts[0]} tests" in said, "the count is printed"
    assert figures["kernel_tests_passed"] > 100 and "3 of 3 steps" in said


@pytest.mark.proof
def test_calls_2_and_3_rehearsed_find_every_figure(tmp_path):
    record, _ = rehearse("2 3", tmp_path)
    assert {part["outcome"] for part in record["stages"].values()} == {"ok"}
    of_call_1 = {name for name in FIGURES if "_tests_" in name}
    assert set(record["figures"]) == set(FIGURES) - of_call_1 - ON_CUDA_ALONE
    assert {path.name for path in tmp_path.iterdir()} == {
        "record.json", "RECORD.md", "log.txt", "profile.txt", "metrics.jsonl",
        "learning_curve.svg", "report.html",
    }  # fmt: skip
    profile = (tmp_path / "profile.txt").read_text()
    assert profile.count(" ms in ") == 3, "many rows, few rows, an update"
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    resumed = record["figures"]["learn_resumed_step"]["value"]
    assert steps == list(range(len(steps))) and 0 < resumed < steps[-1]
