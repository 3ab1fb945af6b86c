"""`python -m azr.doctor`: what is here, which backends run and why, and what mends the rest.

Its output is what a bug report pastes (`--json` for machines). Each part is examined by itself: one
that fails is a line of the table, with its error, and the others still stand. Nothing secret is
printed: of tokens and keys only that they are set.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
import re
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from azr import __version__
from azr.config import ConfigError, check_process
from azr.errors import in_one_line
from azr.run.machine import commit, processor
from azr.streams import open_standard_streams

Status = Literal["ok", "note", "missing", "broken"]
"""`note` is no fault but worth knowing; `missing` limits what can run; `broken` stops a run."""

ROOT = Path(__file__).resolve().parent.parent

OPTIONAL = {
    "triton": ("the GPU kernels", "pip install 'triton>=3.6' (Linux)"),
    "flash-attn": ("flash attention on GPUs", "pip install 'azr[flash]'"),
    "tensorboard": ("--log.to tensorboard", "pip install 'azr[tensorboard]'"),
    "wandb": ("--log.to wandb", "pip install 'azr[wandb]'"),
    "trackio": ("--log.to trackio", "pip install 'azr[trackio]'"),
}
"""Package -> (what it is for, what installs it)."""

VARIABLES = (
    "CUDA_VISIBLE_DEVICES", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "OMP_NUM_THREADS",
    "RLVR_KERNELS", "TRITON_INTERPRET", "TRITON_CACHE_DIR", "NUMBA_CACHE_DIR", "NUMBA_DISABLE_JIT",
    "HF_HOME", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "WANDB_MODE", "WANDB_PROJECT",
    "TRACKIO_DIR", "WORLD_SIZE", "RANK", "LOCAL_RANK", "NO_COLOR",
)  # fmt: skip
SECRETS = ("HF_TOKEN", "WANDB_API_KEY")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the examination."""

    part: str
    name: str
    status: Status
    detail: str
    fix: str = ""


def examine() -> list[Finding]:
    """Returns what was found, part by part; raises nothing."""
    found: list[Finding] = []
    for part, look in PARTS.items():
        try:
            found += look()
        except Exception as error:  # a broken part is a finding, whatever it raises
            fix = "report it with this output"
            found.append(Finding(part, part, "broken", in_one_line(error), fix))
    return found


def system() -> Iterator[Finding]:
    """The interpreter and the machine."""
    version = platform.python_version()
    fits = (3, 11) <= sys.version_info[:2] < (3, 14)
    fix = "" if fits else "use Python 3.11, 3.12 or 3.13"
    yield Finding("system", "python", "ok" if fits else "broken", f"{version} {sys.prefix}", fix)
    yield Finding("system", "platform", "ok", platform.platform())
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = f"{os.cpu_count()} cores, {usable} for this process"
    yield Finding("system", "processor", "ok", f"{processor()}, {cores}")
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        yield Finding("system", "memory", "ok", f"{total / 2**30:.1f} GiB")
    free = shutil.disk_usage(Path.cwd()).free
    short = free < 2**30
    fix = "free some space, or --run.root elsewhere" if short else ""
    yield Finding(
        "system", "disk", "missing" if short else "ok", f"{free / 2**30:.1f} GiB free here", fix
    )
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    yield Finding(
        "system", "C compiler", "ok" if compiler else "missing",
        compiler or "none: the sandbox cannot be built, nor Triton's launchers",
        "" if compiler else "apt-get install gcc, or your system's equivalent",
    )  # fmt: skip


def packages() -> Iterator[Finding]:
    """azr itself, and every package that it needs or can use."""
    here = commit()
    yield Finding("packages", "azr", "ok", __version__ + (f" ({here})" if here else ""))
    for requirement in _required():
        name = re.findall(r"[\w.-]+", requirement)[0]
        yield _version_finding(name, requirement.removeprefix(name).strip())
    for name, (purpose, fix) in OPTIONAL.items():
        try:
            version = importlib.metadata.version(name)
            yield Finding("packages", name, "ok", version)
        except importlib.metadata.PackageNotFoundError:
            yield Finding("packages", name, "note", f"not installed; for {purpose}", fix)


def _version_finding(name: str, wanted: str) -> Finding:
    from packaging.specifiers import SpecifierSet

    fix = f"pip install '{name}{wanted}'"
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding("packages", name, "broken", "not installed", fix)
    # A local or development build of a version in the range is in the range.
    if SpecifierSet(wanted).contains(version.split("+")[0], prereleases=True):
        return Finding("packages", name, "ok", version)
    return Finding("packages", name, "broken", f"{version}, which is not {wanted}", fix)


def _required() -> list[str]:
    """Returns azr's own requirements, from the checkout or from what is installed."""
    project = ROOT / "pyproject.toml"
    if project.is_file():
        return tomllib.loads(project.read_text())["project"]["dependencies"]
    lines = importlib.metadata.requires("azr") or []
    return [line for line in lines if ";" not in line]


def device() -> Iterator[Finding]:
    """The GPUs, or why there is none."""
    import torch

    build = torch.version.cuda or torch.version.hip
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            p = torch.cuda.get_device_properties(index)
            detail = (
                f"{p.name}, {p.total_memory / 2**30:.0f} GiB, capability {p.major}.{p.minor}, "
                f"{p.multi_processor_count} multiprocessors, CUDA {build}"
            )
            yield Finding("device", f"cuda:{index}", "ok", detail)
        return
    if build is None:
        reason, fix = "this torch is a CPU build", "install torch's CUDA build to use a GPU"
    else:
        reason = f"torch is built for CUDA {build}, and sees no device"
        driver = shutil.which("nvidia-smi")
        fix = "see nvidia-smi and CUDA_VISIBLE_DEVICES" if driver else "install the GPU's driver"
    yield Finding("device", "cuda", "note", f"none: {reason}", fix)
    threads = f"{torch.get_num_threads()} torch threads, {torch.backends.cpu.get_cpu_capability()}"
    yield Finding("device", "cpu", "ok", threads)


def kernels() -> Iterator[Finding]:
    """Which kernels of the loss, and which decoder layers, run on each device."""
    import rlvr_kernels
    import torch

    from azr.model.fused import FAMILIES, describe_layers

    for name, detail in rlvr_kernels.doctor().items():
        if name in ("torch", "triton"):  # their versions stand under packages
            continue
        yield Finding("kernels", name, "ok", detail)
        if name == "cpu" or name.startswith("cuda"):
            families = list(FAMILIES)
            layers = describe_layers("auto", families[0], torch.device(name))
            yield Finding("kernels", f"{name} layers", "ok", f"{layers} ({', '.join(families)})")


def attention() -> Iterator[Finding]:
    """The attention backends, the first usable one being what "auto" takes."""
    from azr.model.attention import backends

    is_taken = False
    for probe in backends():
        taken = " (taken by auto)" if probe.usable and not is_taken else ""
        is_taken = is_taken or probe.usable
        status: Status = "ok" if probe.usable else "note"
        yield Finding("attention", probe.name, status, f"{probe.reason}{taken}")


def sandbox() -> Iterator[Finding]:
    """The layers between a program and this machine."""
    try:
        from azr.sandbox import Sandbox

        with Sandbox(workers=1) as box:
            layers = box.layers()
            result = box.run("def f(x):\n    return x + 1", "41")
    except (ImportError, OSError, RuntimeError) as error:
        fix = "pip install -e . in the checkout builds it (Linux, a C compiler)"
        yield Finding("sandbox", "azr.sandbox", "missing", f"not built: {error}", fix)
        return
    works = result.status == "ok" and result.value == 42
    detail = "runs a program" if works else f"a program that adds 1 ended as {result.status}"
    yield Finding("sandbox", "azr.sandbox", "ok" if works else "broken", detail)
    for name, value in layers.items():
        yield Finding("sandbox", name, "ok" if value else "note", _layer(name, value))


def _layer(name: str, value: bool | int | str) -> str:
    if not value:
        return "off: this host does not allow it"
    if name == "landlock":
        return f"ABI {value}"
    return "on" if value is True else str(value)


def arithmetic() -> Iterator[Finding]:
    """Numba's compiled loops, run once."""
    from azr import modular

    right = modular.invert(3, 7) == 5
    detail = "3 * 5 = 1 (mod 7), compiled" if right else "the inverse of 3 modulo 7 is not 5"
    fix = "" if right else "report it with this output"
    yield Finding("arithmetic", "azr.modular", "ok" if right else "broken", detail, fix)


def families() -> Iterator[Finding]:
    """The task families that are installed as plug-ins."""
    for point in importlib.metadata.entry_points(group="azr.environments"):
        yield Finding("families", point.name, "ok", point.value)


def variables() -> Iterator[Finding]:
    """Environment variables that change a run; of secrets only whether they are set."""
    for name in (*VARIABLES, *SECRETS):
        if name in os.environ:
            shown = "is set" if name in SECRETS else os.environ[name]
            yield Finding("variables", name, "note", shown)


_LOOKS = (
    system, packages, device, kernels, attention, sandbox, arithmetic, families, variables
)  # fmt: skip
PARTS: dict[str, Callable[[], Iterator[Finding]]] = {look.__name__: look for look in _LOOKS}


def table(found: Sequence[Finding]) -> str:
    """Returns the findings as plain text, with what to do at the end."""
    marks = {"ok": " ", "note": "·", "missing": "!", "broken": "x"}
    width = max(len(f.name) for f in found)
    lines = [f"AZR {__version__}"]
    for part in dict.fromkeys(f.part for f in found):
        lines += ["", part]
        lines += [
            f" {marks[f.status]} {f.name:{width}s}  {f.detail}" for f in found if f.part == part
        ]
    lines.append("")
    if all(f.status in ("ok", "note") for f in found):
        lines.append("Nothing is broken and nothing is missing.")
    titles = {"broken": "Broken:", "missing": "Missing:", "note": "To have more:"}
    for status, title in titles.items():
        group = [f for f in found if f.status == status and (f.fix or status != "note")]
        lines += [title] if group else []
        lines += [f"   {f.name}: {f.fix or f.detail}" for f in group]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, 1 where something is broken, 2 bad usage."""
    open_standard_streams()
    parser = argparse.ArgumentParser(
        prog="python -m azr.doctor",
        description="Says what is here, which backends run and why, and what mends the rest.",
    )
    parser.add_argument("--json", action="store_true", help="the findings as a JSON list")
    arguments = parser.parse_args(argv)
    try:
        check_process()
    except ConfigError as error:
        print(f"azr: {error}", file=sys.stderr)
        return 2
    found = examine()
    if arguments.json:
        print(json.dumps([dataclasses.asdict(f) for f in found], indent=1))
    else:
        print(table(found))
    return int(any(f.status == "broken" for f in found))


if __name__ == "__main__":
    sys.exit(main())
