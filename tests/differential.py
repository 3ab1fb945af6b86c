"""The sandbox against plain CPython: random programs, and what each says of them.

A program that CPython runs is run by the sandbox, or refused by a status that says why: never
another value with `ok`, never `syntax_error` for what compiles.

    python -m tests.differential --count 2000 --seed 1

prints how many agree, and every disagreement. The programs come from `tests/generated.py`, what
CPython says of them from `tests/oracle.py`, under two hash seeds.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from azr.sandbox import Job, Limits, Result, Sandbox
from azr.sandbox.modules import ALLOWED, FACADES
from tests.generated import SHOW, Program, draw

ORACLE = Path(__file__).with_name("oracle.py")
LIMITS = Limits(cpu_s=5.0, wall_s=60.0)
"""Well above the oracle's, so that a slow program is no disagreement."""

REFUSALS = (
    "forbidden_import",
    "too_large",
    "unsupported_value",
    "memory",
    "timeout_cpu",
    "timeout_wall",
)
"""Statuses that say why a program was not run as CPython runs it."""

Outcome = tuple[str, str]
Case = tuple[Program, Outcome, Outcome]
"""A program, what CPython says, what the sandbox says."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Programs by what the sandbox made of them; `refused` and `wrong` with what each side said."""

    agreed: int
    left_out: int
    refused: list[Case]
    wrong: list[Case]

    @property
    def share(self) -> float:
        """Of the programs with one right outcome, those that agree."""
        return self.agreed / max(1, self.agreed + len(self.refused) + len(self.wrong))


def consult(programs: Sequence[Program], hash_seed: int) -> list[Outcome]:
    """Returns what CPython says of the programs; ("none", "") where it does not come to an end."""
    request = {
        "modules": [*ALLOWED, *FACADES],
        "programs": [(program.code, program.args_text) for program in programs],
    }
    with tempfile.TemporaryDirectory() as folder:
        # As `-I` does, but for the hash seed.
        done = subprocess.run(
            [sys.executable, "-P", "-s", ORACLE],
            input=json.dumps(request),
            env={"PYTHONHASHSEED": str(hash_seed)},
            cwd=folder,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def settled(
    programs: Sequence[Program], hash_seeds: Sequence[int] = (0, 1)
) -> list[tuple[Program, Outcome]]:
    """Returns those of which CPython says the same under all hash seeds, and what it says."""
    runs = zip(*(consult(programs, hash_seed) for hash_seed in hash_seeds), strict=True)
    return [
        (program, said[0])
        for program, said in zip(programs, runs, strict=True)
        if len({*said}) == 1 and said[0][0] != "none"
    ]


def outcome_of(result: Result) -> Outcome:
    """Returns a result in the oracle's words."""
    return result.status, result.repr if result.ok else result.error


def verdict(right: Outcome, got: Outcome) -> str:
    """Returns "agreed", "refused" or "wrong"."""
    if got == right or (got[0] == right[0] and right[0] in ("syntax_error", "unsupported")):
        return "agreed"
    if right == ("exception", "MemoryError") and got[0] == "memory":
        return "agreed"
    if right[0] == "unsupported" and got[0] in ("unsupported_value", "too_large"):
        return "agreed"
    return "refused" if got[0] in REFUSALS else "wrong"


def compare(sandbox: Sandbox, programs: Sequence[Program]) -> Comparison:
    """Runs the programs on both sides."""
    pairs = settled(programs)
    results = sandbox.run_batch([Job(program.code, program.args_text) for program, _ in pairs])
    cases = [
        (program, right, outcome_of(result))
        for (program, right), result in zip(pairs, results, strict=True)
    ]
    doubtful = [case for case in cases if verdict(*case[1:]) != "agreed"]
    # Two runs can agree by chance on the order of a set or a bit of an address.
    certain = dict(settled([program for program, _, _ in doubtful], range(2, 10)))
    kept = [case for case in doubtful if certain.get(case[0]) == case[1]]
    return Comparison(
        agreed=len(cases) - len(doubtful),
        left_out=len(programs) - len(cases) + len(doubtful) - len(kept),
        refused=[case for case in kept if verdict(*case[1:]) == "refused"],
        wrong=[case for case in kept if verdict(*case[1:]) == "wrong"],
    )


def generate(count: int, seed: int) -> list[Program]:
    rng = random.Random(seed)
    return [draw(rng) for _ in range(count)]


def report(comparison: Comparison, *, with_code: bool = True) -> str:
    """Returns the counts, and the disagreements by kind."""
    kept = comparison.agreed + len(comparison.refused) + len(comparison.wrong)
    lines = [
        f"{kept} programs, {comparison.left_out} left out: {comparison.agreed} agree "
        f"({comparison.share:.2%}), {len(comparison.refused)} refused, "
        f"{len(comparison.wrong)} wrong"
    ]
    for name in ("refused", "wrong"):
        cases = sorted(getattr(comparison, name), key=lambda case: case[0].kind)
        counts = Counter(got[0] for _, _, got in cases)
        lines.append(f"{name}: " + ", ".join(f"{n} {status}" for status, n in counts.most_common()))
        for program, right, got in cases:
            lines.append(f"-- {name}, {program.kind}\n   CPython {right}\n   sandbox {got}")
            if with_code:
                lines.append(f"{program.code.replace(SHOW, '')}# f({program.args_text})")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--brief", action="store_true", help="without the programs' text")
    asked = parser.parse_args()
    with Sandbox(workers=1, limits=LIMITS) as sandbox:
        comparison = compare(sandbox, generate(asked.count, asked.seed))
    text = report(comparison, with_code=not asked.brief)
    print(text.encode("utf-8", "backslashreplace").decode())


if __name__ == "__main__":
    main()
