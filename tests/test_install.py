"""What pip installs works away from the checkout, and beside one that is named azr."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import rlvr_kernels

import azr

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("azr", "configs", "csrc", "kernels", "tests/hostile", "setup.py", "pyproject.toml",
           "README.md", "LICENSE")  # fmt: skip
PRESETS = sorted(path.name for path in (ROOT / "configs").glob("*.toml"))


def copy_tree(folder: Path, names: tuple[str, ...] = SOURCES) -> Path:
    """Returns the folder with a copy of what the package is built from."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info")
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def run(*command: object, cwd: Path, code: int = 0) -> str:
    """Returns what a command prints in a clean environment; it must end with `code`."""
    kept = {"PATH", "HOME", "OMP_NUM_THREADS", "LANG", "LC_ALL"}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, env={k: v for k, v in os.environ.items() if k in kept},
    )  # fmt: skip
    assert done.returncode == code, done.stdout[-6000:]
    return done.stdout


def build(kind: str, source: Path, out: Path) -> Path:
    """Returns the file that a hook of the build backend makes."""
    hook = f"import setuptools.build_meta as b, sys; b.build_{kind}(sys.argv[1])"
    out.mkdir()
    run(sys.executable, "-c", hook, out, cwd=source)
    (file,) = out.iterdir()
    return file


def environment(folder: Path) -> tuple[Path, Path]:
    """Returns (bin, site-packages) of a new environment that sees the packages of this one."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=ROOT)
    (site,) = (folder / "lib").glob("python3.*/site-packages")
    paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "others.pth").write_text("".join(f"{path}\n" for path in paths))
    return folder / "bin", site


def test_one_version_is_told_everywhere():
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {azr.__version__}\n" in citation
    assert rlvr_kernels.__version__ == azr.__version__


def test_the_presets_stand_inside_an_installed_package(tmp_path):
    copy_tree(tmp_path, ("azr/__init__.py", "azr/errors.py", "azr/config"))
    shutil.copytree(ROOT / "configs", tmp_path / "azr" / "configs")
    code = (
        "from azr.config import *; c = parse_command_line([]); print(c.preset); preset_path('no')"
    )
    printed = run(sys.executable, "-c", code, cwd=tmp_path, code=1)
    assert str(tmp_path / "azr" / "configs" / "cpu-prime.toml") in printed
    assert f"presets that come with azr: {', '.join(PRESETS)}" in printed


def test_a_checkout_named_azr_hides_no_editable_install(tmp_path):
    tree = copy_tree(tmp_path / "azr", ("azr", "kernels", "setup.py", "pyproject.toml", "README.md",
                                        "LICENSE", "configs", "tests/hostile"))  # fmt: skip
    bin_folder, site = environment(tmp_path / "venv")
    with zipfile.ZipFile(build("editable", tree, tmp_path / "wheel")) as wheel:
        wheel.extractall(site)
    code = "import azr, rlvr_kernels; print(azr.__version__, azr.__file__, rlvr_kernels.__file__)"
    for cwd in (tmp_path, tmp_path / "venv"):
        version, *files = run(bin_folder / "python", "-c", code, cwd=cwd).split()
        assert all(Path(file).is_relative_to(tree) for file in files)
    help_text = run(bin_folder / "python", "-m", "azr.train", "--help", cwd=tmp_path)
    assert "--optim.lr" in help_text


@pytest.mark.proof
def test_a_wheel_made_from_the_source_archive_works_elsewhere(tmp_path):
    archive = build("sdist", copy_tree(tmp_path / "tree"), tmp_path / "sdist")
    shutil.unpack_archive(archive, tmp_path / "unpacked")
    (source,) = (tmp_path / "unpacked").iterdir()
    wheel = build("wheel", source, tmp_path / "wheel")
    shutil.rmtree(tmp_path / "tree")
    shutil.rmtree(tmp_path / "unpacked")
    bin_folder, _ = environment(tmp_path / "venv")
    pip = [sys.executable, "-m", "pip", "--python", bin_folder / "python"]
    run(*pip, "install", "--no-deps", "--no-index", "--quiet", wheel, cwd=tmp_path)

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("train", "evaluate", "report", "doctor"):
        assert "usage" in run(bin_folder / f"azr-{name}", "--help", cwd=elsewhere).lower()
    for name in PRESETS[-3:]:
        assert name.startswith("cpu-")
        assert "memory plan" in run(
            bin_folder / "azr-train", "--config", name, "--dry-run", cwd=elsewhere
        )
    run(
        bin_folder / "azr-train", "--steps", "2", "--warmup.steps", "5", "--eval.samples", "1",
        "--selfplay.proposals-per-type", "4", "--env", "program", cwd=elsewhere,
    )  # fmt: skip
    assert "<style>" in (elsewhere / "runs" / "latest" / "report.html").read_text()
    run(bin_folder / "azr-evaluate", "runs/latest", "--eval.samples", "1", cwd=elsewhere)
    run(bin_folder / "azr-report", "runs/latest", cwd=elsewhere)
    python = bin_folder / "python"
    assert "Broken:" not in run(python, "-m", "azr.doctor", cwd=elsewhere)
    assert "0 complaints" in run(python, "-m", "azr.sandbox", "--self-test", cwd=elsewhere)
    run(python, "-m", "rlvr_kernels", cwd=elsewhere)
