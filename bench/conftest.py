"""The one fixture of the benches: `compare(name, ours, **peers)`.

    def bench_invert(compare):
        result = compare.with_options(items=8192, unit="pair")(
            "invert 31 bit",
            lambda: modular.invert(x, p),
            gmpy2=optional("gmpy2", lambda gmpy2: lambda: [gmpy2.invert(a, b) for a, b in pairs]),
            galois=absent("needs a prime below 2^31"),
        )
        result.bar("gmpy2", must=20, reach=30)

All options: `bench.measure.Options`. Every run writes `bench/results/latest.json` (ignored by
git); `--record` also writes `bench/results/<hardware>/<date>-<commit>.json`, which is to be
committed, and `--record-file FILE` writes to a place of one's own.
"""

import os

# Read when torch, OpenBLAS and OpenMP load, so it stands before anything imports them: a peer
# that spreads over all cores would be compared with one that does not.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `bench.*`, however called

from bench import record
from bench.measure import Call, Options, Result, changed, measure, smoke
from bench.peers import Absent

RESULTS = pytest.StashKey[list[Result]]()


def pytest_addoption(parser):
    group = parser.getgroup("bench records")
    group.addoption("--record", action="store_true", help="write a record that is to be committed")
    group.addoption("--record-file", metavar="FILE", help="write the record to FILE as well")


@pytest.hookimpl(tryfirst=True)  # before pytest-benchmark reads its options
def pytest_configure(config):
    config.stash[RESULTS] = []
    # Its table knows no peers and no ratios; ours at the end of the session does.
    config.option.benchmark_quiet = True


def pytest_collection_modifyitems(items):
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if gpu_items and not _has_cuda():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def _has_cuda() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


class Session:
    """One test's comparisons: runs them and keeps them for the table and the record."""

    def __init__(self, benchmark, results: list[Result], bench: str) -> None:
        self.benchmark = benchmark
        self.results = results
        self.bench = bench
        self.used = False

    def run(
        self, name: str, ours: Call, peers: dict[str, Call | Absent], options: Options
    ) -> Result:
        if any((self.bench, name) == (seen.bench, seen.name) for seen in self.results):
            raise ValueError(f"{self.bench} already has a comparison called {name!r}")
        if options.device == "cuda" and not _has_cuda():
            pytest.skip("no CUDA device")
        how = measure if self.benchmark.enabled else smoke

        def rounds() -> Result:
            return how(self.bench, name, ours, peers, options)

        # pytest-benchmark allows one measurement per test: the first comparison is it.
        result = rounds() if self.used else self.benchmark.pedantic(rounds)
        if self.benchmark.enabled and not self.used:
            # It timed the whole session of rounds; its own report is to hold our figure instead.
            self.benchmark.stats.stats.data = [result.ours.median_s]
        self.used = True
        self.benchmark.extra_info[name] = {row.name: row.ratio for row in result.rows.values()}
        self.results.append(result)
        return result


@dataclass(frozen=True, slots=True)
class Compare:
    """What a bench calls: times ours beside its peers and returns the rows."""

    session: Session
    options: Options

    def with_options(self, **changes: object) -> "Compare":
        """This fixture with other options (`bench.measure.Options`)."""
        return Compare(self.session, changed(self.options, **changes))

    def __call__(self, name: str, ours: Call, /, **peers: Call | Absent) -> Result:
        """Measures and returns the rows; `name` is unique within the bench file."""
        return self.session.run(name, ours, peers, self.options)


@pytest.fixture
def compare(benchmark, request) -> Compare:
    """`compare(name, ours, **peers)`, built on `benchmark` so that `--benchmark-only` keeps it."""
    bench = Path(request.node.path).stem
    return Compare(Session(benchmark, request.config.stash[RESULTS], bench), Options())


def pytest_terminal_summary(terminalreporter, config):
    results = config.stash[RESULTS]
    if not results:
        return
    terminalreporter.section("bench")
    for line in record.table(results):
        terminalreporter.line(line)
    if not any(result.rounds for result in results):
        return  # --benchmark-disable: every callable ran once, nothing was timed
    made = record.build(results)
    paths = [record.LATEST]
    if config.getoption("record", False):
        paths.append(record.committed_path(made))
    if config.getoption("record_file", None):
        paths.append(Path(config.getoption("record_file")))
    for path in paths:
        record.write(made, path)
        terminalreporter.line(f"record: {path}")
    if config.getoption("record", False) and made["dirty"]:
        terminalreporter.line("not to be committed: the tree had uncommitted changes")
