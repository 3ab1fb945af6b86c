"""The tree keeps its shape: imports point one way, packages are listed, heavy imports are late."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# The bands, of which each module is in one. A name stands for the module and everything below it.
PURE = (
    "azr.accuracy",
    "azr.advantage",
    "azr.config",
    "azr.errors",
    "azr.keys",
    "azr.modular",
    "azr.plan",
    "azr.reward",
    "azr.sandbox",
    "azr.streams",
    "azr.tasks",
)
DEVICE = ("azr.learner", "azr.memory", "azr.model", "azr.rollout")
SERVICES = ("azr.buffer", "azr.report", "azr.run")
JOINERS = ("azr.evaluation", "azr.resume", "azr.selfplay", "azr.start", "azr.text")
PROGRAMS = ("azr.doctor", "azr.evaluate", "azr.train")
KERNELS = ("rlvr_kernels",)
BANDS = (PURE, DEVICE, SERVICES, JOINERS, PROGRAMS, KERNELS)
TRAINER = (
    "azr.learner",
    "azr.resume",
    "azr.selfplay",
    "azr.start.prepare",
    "azr.start.session",
    "azr.start.trainee",
    "azr.train",
)
TENSORS = ("torch", "triton", "transformers", "tokenizers", "safetensors", "rlvr_kernels")

# (who, must not import, except that these may import those)
FORBIDDEN: list[tuple[tuple[str, ...], tuple[str, ...], dict[str, tuple[str, ...]]]] = [
    # Records and pure functions know no model, no device, no service.
    (PURE, DEVICE + SERVICES + JOINERS + PROGRAMS, {}),
    (PURE, TENSORS, {"azr.advantage": ("torch", "rlvr_kernels")}),
    # Device code knows no task.
    (DEVICE, ("azr.tasks", *SERVICES, *JOINERS, *PROGRAMS), {}),
    # Services know no model. A checkpoint holds tensors, a machine has versions; each of these is
    # imported late (see test_what_needs_no_model_imports_no_torch).
    (SERVICES, DEVICE + JOINERS + PROGRAMS, {}),
    (
        SERVICES,
        TENSORS,
        {
            "azr.run.checkpoint": ("torch", "safetensors"),
            "azr.run.dashboards": ("torch.utils.tensorboard",),
            "azr.run.machine": ("torch", "transformers"),
        },
    ),
    # What evaluates knows no trainer, nor do the parts of the start that it shares with one.
    (("azr.evaluation", "azr.start.evaluation", "azr.start.model", "azr.text"), TRAINER, {}),
    (("azr.evaluation",), ("azr.start",), {}),
    # The kernels stand alone.
    (KERNELS, ("azr", "transformers", "numba"), {}),
    # A program is not a library, except to another program.
    (("azr", "rlvr_kernels"), ("azr.train",), dict.fromkeys(PROGRAMS, ("azr.train",))),
]


def within(module: str, names: Iterable[str]) -> bool:
    """Whether the module is one of these or below one of them."""
    return any(module == name or module.startswith(name + ".") for name in names)


def imported(module: str, is_package: bool, source: str, known: set[str]) -> set[str]:
    """The modules that a source names in imports, wherever in the file they stand."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                parts = parts[: len(parts) - node.level + is_package]
                base = ".".join([*parts, *([base] if base else [])])
            submodules = {f"{base}.{alias.name}" for alias in node.names} & known
            found |= submodules
            # `from package import submodule` alone reads nothing else from the package.
            if len(submodules) < len(node.names):
                found.add(base)
    return found


def edges(sources: dict[str, tuple[bool, str]]) -> dict[str, set[str]]:
    """Module -> imported modules, for sources given as {module: (is_package, text)}."""
    known = set(sources)
    return {
        module: imported(module, is_package, text, known) - {module}
        for module, (is_package, text) in sources.items()
    }


def wrong_edges(graph: dict[str, set[str]]) -> list[str]:
    """Every import that points the wrong way, as a sentence."""
    wrong = []
    for module, targets in sorted(graph.items()):
        for target in sorted(targets):
            for who, what, exceptions in FORBIDDEN:
                if not within(module, who) or not within(target, what):
                    continue
                allowed = [names for name, names in exceptions.items() if within(module, [name])]
                if not any(within(target, names) for names in allowed):
                    wrong.append(f"{module} imports {target}")
        tasks = any(within(target, ["azr.tasks"]) for target in targets)
        device = any(within(target, DEVICE) for target in targets)
        may_join = (*JOINERS, "azr.evaluate", "azr.train")
        if tasks and device and not within(module, may_join):
            wrong.append(f"{module} joins tasks and model: only {', '.join(may_join)} do")
    return list(dict.fromkeys(wrong))


def not_in_one_band(modules: Iterable[str]) -> list[str]:
    """The modules that are in no band, or in two."""
    return [m for m in modules if sum(within(m, band) for band in BANDS) != 1]


def cycles(graph: dict[str, set[str]]) -> list[str]:
    """Import cycles, each as 'a -> b -> a'; modules outside the graph are leaves."""
    found, done = [], set()

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            found.append(" -> ".join([*path[path.index(module) :], module]))
            return
        if module in done:
            return
        for target in sorted(graph.get(module, ())):
            if target in graph:
                visit(target, [*path, module])
        done.add(module)

    for module in sorted(graph):
        visit(module, [])
    return found


def tree() -> dict[str, tuple[bool, str]]:
    """The project's own modules."""
    sources = {}
    for folder in (ROOT / "azr", ROOT / "kernels" / "rlvr_kernels"):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder.parent).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            module = ".".join(parts[:-1] if is_package else parts)
            sources[module] = (is_package, path.read_text(encoding="utf-8"))
    return sources


def test_imports_point_one_way():
    graph = edges(tree())
    assert "azr.config" in graph and "rlvr_kernels" in graph
    assert wrong_edges(graph) == []
    assert cycles(graph) == []


def test_every_module_is_in_one_band():
    assert not_in_one_band(module for module in tree() if module != "azr") == []
    assert not_in_one_band(["azr.tasks.new", "azr.new", "rlvr_kernels.new"]) == ["azr.new"]
    names = [name for band in BANDS for name in band]
    assert len(names) == len(set(names)) and set(names) <= set(tree())


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("azr.reward", "import torch", "azr.reward imports torch"),
        ("azr.tasks.prime", "import torch.cuda", "azr.tasks.prime imports torch.cuda"),
        ("azr.tasks.prime", "from ..model import load", "azr.tasks.prime imports azr.model.load"),
        ("azr.tasks.prime", "from azr import buffer", "azr.tasks.prime imports azr.buffer"),
        ("azr.config", "def f():\n    import transformers", "azr.config imports transformers"),
        ("azr.advantage", "from azr import rollout", "azr.advantage imports azr.rollout"),
        ("azr.model.load", "from azr.tasks import prime", "azr.model.load imports azr.tasks.prime"),
        ("azr.rollout", "import azr.selfplay", "azr.rollout imports azr.selfplay"),
        ("azr.learner", "from . import run", "azr.learner imports azr.run"),
        ("azr.buffer", "from azr.model.load import x", "azr.buffer imports azr.model.load"),
        ("azr.run.checkpoint", "import azr.learner", "azr.run.checkpoint imports azr.learner"),
        ("azr.run.log", "import torch", "azr.run.log imports torch"),
        ("azr.evaluation", "import azr.resume", "azr.evaluation imports azr.resume"),
        ("rlvr_kernels", "from azr.config import x", "rlvr_kernels imports azr.config"),
        ("rlvr_kernels.loss", "import numba", "rlvr_kernels.loss imports numba"),
        ("azr.selfplay", "from azr.train import run", "azr.selfplay imports azr.train"),
        ("azr.doctor", "import azr.tasks.prime, azr.model", "azr.doctor joins tasks and model"),
    ],
)
def test_wrong_edges_are_found(module, source, complaint):
    packages = {"azr", "azr.tasks", "azr.model", "azr.rollout", "rlvr_kernels"}
    others = ("azr.tasks.prime", "azr.model.load", "azr.buffer", "azr.run", "azr.train")
    sources = {name: (name in packages, "") for name in (*packages, *others)}
    sources[module] = (module in packages, source)
    found = wrong_edges(edges(sources))
    assert len(found) == 1 and found[0].startswith(complaint), found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("azr.advantage", "import torch\nfrom rlvr_kernels import group_normalize"),
        ("azr.tasks.prime", "import numpy\nfrom azr import modular\nfrom .records import Task"),
        ("azr.selfplay", "from azr import tasks, model, rollout, buffer, run"),
        ("azr.evaluate", "from azr.train import run"),
        ("azr.modelling", "import azr.tasks"),
        ("rlvr_kernels.loss", "import torch\nfrom . import reference"),
    ],
)
def test_right_edges_pass(module, source):
    known = ("azr.modular", "azr.tasks", "azr.model", "azr.rollout", "azr.buffer", "azr.run")
    sources = {name: (False, "") for name in known}
    assert wrong_edges(edges(sources | {module: (False, source)})) == []


def test_cycles_are_found():
    sources = {
        "azr": (True, ""),
        "azr.a": (False, "from azr import b"),
        "azr.b": (False, "def late():\n    from .c import name"),
        "azr.c": (False, "import azr.a"),
        "azr.d": (False, "import azr.a, os"),
    }
    assert cycles(edges(sources)) == ["azr.a -> azr.b -> azr.c -> azr.a"]
    sources["azr.c"] = (False, "import azr")
    assert cycles(edges(sources)) == []


def test_kernels_is_a_plain_folder():
    # With an __init__.py, `import kernels` in the checkout would shadow a package of that name.
    assert not (ROOT / "kernels" / "__init__.py").exists()
    offenders = []
    for folder in ("azr", "kernels", "bench", "tests", "examples", "configs"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            if any(within(name, ["kernels"]) for name in imported("x", False, text, set())):
                offenders.append(str(path.relative_to(ROOT)))
    assert offenders == []


def test_every_package_is_listed_for_installation():
    # setuptools is told the packages by name, so a forgotten one would be missing from a wheel
    # while the checkout keeps working.
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    in_tree = {module for module, (is_package, _) in tree().items() if is_package}
    assert in_tree <= set(settings["packages"])
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in ROOT.glob("azr/**/*.py")}
    assert folders <= in_tree, "a folder of modules without __init__.py"


def executes_text(source: str) -> set[str]:
    """The ways in which a source turns text or bytes into running code."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found |= {node.func.id} & {"eval", "exec", "compile", "__import__"}
    names = imported("x", False, source, set())
    return found | {name for name in names if within(name, ("pickle", "marshal", "shelve", "dill"))}


def test_model_text_cannot_become_code():
    assert executes_text("import pickle\nx = eval('1')") == {"pickle", "eval"}
    assert executes_text("model.eval(); torch.compile(f); re.compile('a')") == set()
    found = {module: executes_text(text) for module, (_, text) in tree().items()}
    assert {module: names for module, names in found.items() if names} == {
        # The sandbox's own program, from its file; read back by the process that it is for.
        "azr.sandbox.process": {"compile", "marshal"},
        # The text of a job, never imported: what it runs, it runs inside the sandbox.
        "azr.evaluation.suite.program": {"exec"},
    }


def loaded_by(code: str) -> set[str]:
    """Modules that a fresh interpreter holds after running the code."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules, file=sys.stderr)"],
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines()[-1].split())


def test_what_needs_no_model_imports_no_torch():
    services = "azr.run.log, azr.run.checkpoint, azr.run.watchdog, azr.report, azr.buffer"
    pure = "azr.config, azr.plan, azr.accuracy, azr.sandbox, azr.tasks"
    assert not loaded_by(f"import {services}, {pure}") & {"torch", "transformers"}


def test_help_imports_no_torch():
    code = """
import runpy, sys
sys.argv = ["azr.train", "--help"]
try:
    runpy.run_module("azr.train", run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
"""
    assert not loaded_by(code) & {"torch", "transformers"}


def test_a_model_that_is_not_there_is_refused_at_once():
    code = """
from azr import evaluate, train
assert evaluate.main(["runs/none"]) == evaluate.main([".", "--baseline", "runs/none"]) == 2
assert train.main(["--model", "runs/none"]) == train.main(["--model", "/nowhere/model"]) == 2
assert train.main(["--model", "runs/none", "--dry-run"]) == 2
"""
    assert not loaded_by(code) & {"torch", "transformers"}


def test_device_code_needs_nothing_of_the_command_line():
    """A GPU machine may lack what only commands, screens and pictures need."""
    code = """
import sys
for name in ("tyro", "rich", "mccabe", "gmpy2", "hypothesis"):
    sys.modules[name] = None
import azr.rollout, azr.learner, azr.learner.optim, azr.learner.packing, rlvr_kernels
from azr.config import Config, ConfigError, parse_command_line
assert Config().run.seed == 0
try:
    parse_command_line([])
except ConfigError as error:
    assert "pip install tyro" in str(error)
else:
    raise AssertionError("a command line was read without tyro")
"""
    assert "torch" in loaded_by(code)


def test_a_type_error_that_is_ignored_is_named_and_has_its_reason_beside_it():
    found = []
    for folder in ("azr", "bench", "kernels"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            lines = path.read_text(encoding="utf-8").splitlines()
            found += [(path, n, lines) for n, line in enumerate(lines) if ": ignore" in line]
    for path, n, lines in found:
        assert re.search(r"  # pyrefly: ignore\[[a-z-]+\]$", lines[n]), (path, n + 1)
        assert any("# " in line for line in lines[n - 2 : n]), (path, n + 1)
    assert len(found) < 15
