"""The sandbox under the other Pythons that the project supports: built there, all its tests run.

Its C extension reads the interpreter's own structures, and its modules differ by version.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OTHERS = [minor for minor in (11, 12, 13) if minor != sys.version_info.minor]
COPIED = (
    "azr",
    "configs",
    "csrc",
    "examples",
    "tests",
    "setup.py",
    "pyproject.toml",
    "README.md",
    "LICENSE",
)
INSTALLED = ("pytest", "hypothesis", "setuptools")

pytestmark = pytest.mark.proof


def interpreter(minor: int) -> str:
    """Returns a Python 3.`minor` of this machine; skips the test that asks where there is none."""
    name = f"python3.{minor}"
    versions = sorted(Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/{name}"))
    for candidate in filter(None, (shutil.which(name), *map(str, versions))):
        # A name on the path may be a shim for a version that is not there.
        asked = [candidate, "-c", "import ensurepip, sys, venv; print(sys.version_info.minor)"]
        done = subprocess.run(asked, capture_output=True, text=True)
        if done.returncode == 0 and done.stdout.strip() == str(minor):
            return candidate
    pytest.skip(f"no {name} on this machine")


def run(*command: str | Path, cwd: Path) -> str:
    """Returns what a command printed; fails the test with it where the command failed."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that ordinary users may enter, as the tests that become one need it."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.parametrize("minor", OTHERS)
def test_the_sandboxs_tests_pass_under_another_python(minor, open_folder):
    tree = open_folder / "tree"
    tree.mkdir()
    for name in COPIED:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("*.so", "__pycache__")
            shutil.copytree(ROOT / name, tree / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, tree / name)
    run(interpreter(minor), "-m", "venv", open_folder / "venv", cwd=open_folder)
    python = open_folder / "venv" / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run(*pip, "-c", ROOT / "constraints.txt", *INSTALLED, cwd=open_folder)
    run(python, "setup.py", "--quiet", "build_ext", "--inplace", cwd=tree)
    # In place, as `pip install -e` would do it, but without the packages that a trainer needs.
    (site,) = (open_folder / "venv" / "lib").glob("python3.*/site-packages")
    (site / "tree.pth").write_text(f"{tree}\n")
    tests = sorted(path for path in (tree / "tests").glob("test_sandbox*.py"))
    tests.remove(tree / "tests" / Path(__file__).name)
    said = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, cwd=tree)
    last = said.strip().splitlines()[-1]
    assert int(last.split()[0]) > 200, said[-2000:]
    print(f"{python.resolve().name}: {last}")
