"""The pytest plugin of the test stages: which GPU tests there are, and what became of each.

    python -m pytest -p bench.gpu_tests --gpu-findings FILE --gpu-figures kernel_tests
                     --gpu-device cuda tests/kernels

What carries the mark `gpu` after a real collection runs, whoever gave it the mark. On the device
"cpu" (a rehearsal) a test that takes a place runs in torch's instead, and the others are skipped
for want of a device. A file that needs a module which is not installed is named and is no failure;
where it may hold GPU tests, the stage has passed in part only.
"""

import re
from collections import Counter
from pathlib import Path

import pytest

from bench.gpu_record import Findings

MISSING = re.compile(r"ModuleNotFoundError: No module named '([\w.]+)'")
OWN = ("azr", "rlvr_kernels", "bench", "tests")


def pytest_addoption(parser):
    group = parser.getgroup("gpu tests")
    group.addoption("--gpu-findings", metavar="FILE", required=True)
    group.addoption("--gpu-figures", metavar="NAME", help="first words of the figures' names")
    group.addoption("--gpu-device", choices=("cuda", "cpu"), default="cuda")


def pytest_configure(config):
    # The processes of xdist collect alike; the first one's words are as good as any.
    is_first = getattr(config, "workerinput", {}).get("workerid", "gw0") == "gw0"
    config.pluginmanager.register(Tally(config, is_first), "gpu-tally")


def on_the_cpu(ids: list[str], marked: set[str]) -> set[str]:
    """Returns the tests that stand for the marked ones on a CPU: torch's place for CUDA's."""
    known = set(ids)
    return {twin if (twin := _twin(id)) in known else id for id in marked}


def _twin(id: str) -> str:
    name, bracket, rest = id.partition("[")
    words = ("torch" if word == "cuda" else word for word in rest.removesuffix("]").split("-"))
    return name + bracket + "-".join(words) + "]" * bool(rest)


def may_hold_gpu_tests(path: Path) -> bool:
    """Whether a file that could not be collected, or its folder's conftest, gives the mark."""
    files = (path, path.parent / "conftest.py")
    return any("mark.gpu" in file.read_text("utf-8") for file in files if file.is_file())


class Tally:
    """Chooses the tests, counts them, and tells at once what is known."""

    def __init__(self, config, is_first: bool):
        self.config, self.is_first = config, is_first
        # In a process of xdist reports go to the one that started it.
        self.is_worker = hasattr(config, "workerinput")
        self.findings = Findings(Path(config.getoption("gpu_findings")))
        self.name = config.getoption("gpu_figures")
        self.outcomes: dict[str, str] = {}
        self.failed: list[str] = []
        self.skipped: Counter[str] = Counter()
        self.not_collected: dict[str, str] = {}
        self.missing: set[str] = set()
        self.broken_files = 0

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config, items):
        marked = {item.nodeid for item in items if item.get_closest_marker("gpu")}
        if self.is_first:
            self.findings.figure(f"{self.name}_collected", len(marked))
            self.findings.note("collected", sorted(marked))
        wanted = marked
        if config.getoption("gpu_device") == "cpu":
            wanted = on_the_cpu([item.nodeid for item in items], marked)
        config.hook.pytest_deselected(items=[i for i in items if i.nodeid not in wanted])
        items[:] = [item for item in items if item.nodeid in wanted]

    def pytest_collectreport(self, report):
        if not report.failed or self.is_worker:
            return
        text = str(report.longrepr)
        found = MISSING.findall(text)
        if found and found[-1].partition(".")[0] not in OWN:
            self.not_collected[report.nodeid] = found[-1]
            if may_hold_gpu_tests(self.config.rootpath / report.nodeid):
                self.missing.add(found[-1])
                self.findings.note("missing", sorted(self.missing))
        else:
            self.broken_files += 1
            self.failed.append(f"{report.nodeid}: cannot be collected: {_last_line(text)}")
        self.findings.note("not collected", self.not_collected)
        self.findings.note("failed", self.failed)

    def pytest_runtest_logreport(self, report):
        if self.is_worker or (report.when != "call" and report.passed):
            return
        if report.failed or report.nodeid not in self.outcomes:
            self.outcomes[report.nodeid] = report.outcome
        if report.failed:
            self.failed.append(f"{report.nodeid}: {_last_line(str(report.longrepr))}")
            self.findings.note("failed", self.failed)
        elif report.skipped:
            self.skipped[report.longrepr[2] if report.longrepr else "?"] += 1
        self._count(is_last=False)

    def _count(self, *, is_last: bool) -> None:
        """Tells the counts so far: the last ones hold, also of a stage that is stopped."""
        counts = Counter(self.outcomes.values()) + Counter(failed=self.broken_files)
        for outcome in ("passed", "failed", "skipped"):
            self.findings.figure(f"{self.name}_{outcome}", counts[outcome], is_last=is_last)

    def pytest_sessionfinish(self, session):
        if self.is_worker:
            return
        self._count(is_last=True)
        self.findings.note("skipped", dict(self.skipped))
        # pytest counts a file without its module as an error.
        if session.exitstatus == pytest.ExitCode.TESTS_FAILED and not self.failed:
            session.exitstatus = pytest.ExitCode.OK


def _last_line(text: str) -> str:
    """Returns the error of a traceback: the last line that pytest marks as one."""
    errors = [line[1:].strip() for line in text.splitlines() if line.startswith("E ")]
    return errors[0] if errors else (text.strip().splitlines() or ["?"])[-1]
