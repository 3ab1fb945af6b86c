"""`python -m azr.report RUN [RUN...]`: writes report.html, of one run or several."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from azr.config import ConfigError, check_process
from azr.report.page import write_report
from azr.streams import open_standard_streams


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0 done, 1 error, 2 bad usage."""
    open_standard_streams()
    parser = argparse.ArgumentParser(
        prog="python -m azr.report",
        description="Writes one self-contained report.html of a run, or of several laid over "
        "each other. The runs may still be going.",
    )
    parser.add_argument("run", nargs="+", type=Path, help="run directory, e.g. runs/latest")
    parser.add_argument(
        "--out", type=Path, help="file to write; without it, report.html of the first run, or "
        "report.html here where there are several",
    )  # fmt: skip
    arguments = parser.parse_args(argv)
    runs = arguments.run
    out = arguments.out or (Path("report.html") if len(runs) > 1 else None)
    try:
        check_process()
        print(write_report(runs, out))
    except ConfigError as error:
        print(f"azr: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where = error.filename or out
        print(f"azr: cannot write {where}: {error.strerror}; use --out FILE", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
