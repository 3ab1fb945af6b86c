"""`python -m azr.sandbox --self-test`: whether the sandbox holds on this host."""

import argparse
import sys

from azr.sandbox import corpus
from azr.sandbox.client import Sandbox
from azr.sandbox.records import SandboxError
from azr.streams import open_standard_streams


def self_test() -> int:
    """Prints the layers, runs the corpus, and returns 0 if nothing has escaped, else 1."""
    programs = corpus.load()
    try:
        with Sandbox(limits=corpus.LIMITS) as sandbox:
            for name, state in sandbox.layers().items():
                print(f"{name:14} {state if state else 'no'}")
            results, complaints = corpus.run(sandbox, programs)
    except SandboxError as error:
        print(f"no sandbox here: {error}", file=sys.stderr)
        return 1
    for program, result in zip(programs, results, strict=True):
        print(f"{program.row:3} {program.name:46} {result.status} {result.error}".rstrip())
    for complaint in complaints:
        print(f"WRONG: {complaint}", file=sys.stderr)
    print(f"{len(programs)} hostile programs, {len(complaints)} complaints")
    return 1 if complaints else 0


def main() -> None:
    open_standard_streams()
    parser = argparse.ArgumentParser(prog="python -m azr.sandbox", description=__doc__)
    parser.add_argument(
        "--self-test", action="store_true", required=True, help="print the layers, run the corpus"
    )
    parser.parse_args()
    sys.exit(self_test())


if __name__ == "__main__":
    main()
