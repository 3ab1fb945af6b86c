"""What a run runs on: versions, hardware, commit. Imports torch only where it is described."""

import os
import platform
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from azr import __version__


def describe_machine() -> dict:
    """Returns versions and hardware, for env.json and the banner. Imports torch."""
    import numba
    import numpy
    import torch
    import transformers

    return {
        "azr": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        **{m.__name__: m.__version__ for m in (torch, transformers, numpy, numba)},
        "platform": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "command": sys.argv,
    }


def commit() -> str:
    """Returns the commit of the checkout this runs from, "+" where it was changed, or ""."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return ""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
            cwd=here, capture_output=True, text=True, check=True, timeout=10,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""


def processor() -> str:
    """Returns the name of the processor."""
    with suppress(OSError):  # not Linux
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
