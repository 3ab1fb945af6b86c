"""`python -m bench.kernels_report`: the machine code of every shipped kernel, as a Markdown table.

Compiles for every chip of `aot.CHIPS` on any Linux machine with triton, GPU or not, on all of its
cores. Exits with 1 where a kernel spills, outgrows the chip's shared memory, uses double precision,
loads narrowly, misses the tensor cores, or takes more than 1.3 exponentials an element. `--brief`
compiles one case of every kernel for sm_80 and sm_90; a name limits the rows to kernels whose name
contains it.
"""

import os
import sys
from itertools import islice
from multiprocessing import get_context

BRIEF_CHIPS = (80, 90)


def main(arguments: list[str]) -> int:
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        print("unset TRITON_INTERPRET: the interpreter compiles nothing", file=sys.stderr)
        return 2
    try:
        import triton
    except ImportError:
        print("triton is not installed: nothing to compile", file=sys.stderr)
        return 2
    from bench.shipped_kernels import shipped_kernels

    is_brief = "--brief" in arguments
    wanted = next((word for word in arguments if not word.startswith("-")), "")
    seen: set[tuple[str, int]] = set()
    rows = []
    for at, shipped in enumerate(shipped_kernels()):
        kind = shipped.name, shipped.capability
        is_left_out = is_brief and (kind in seen or shipped.capability not in BRIEF_CHIPS)
        if wanted in shipped.name and not is_left_out:
            seen.add(kind)
            rows.append((at, shipped))
    print(f"triton {triton.__version__}, compiled ahead of time, not run on a GPU\n")
    print(
        "| kernel | case | chip | dtype | registers | spills | shared KiB "
        "| tensor-core | 128-bit loads | fp64 | exp/element | predicted occupancy | |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|---|")
    n_failed = 0
    # Forked, since a kernel cannot be pickled: workers are told which row it is.
    with get_context("fork").Pool() as pool:
        found = pool.imap(_inspect, [at for at, _ in rows])
        for (_, shipped), machine in zip(rows, found, strict=True):
            print(_line(shipped, machine), flush=True)
            n_failed += bool(machine.problems)
    print(f"\n{len(rows)} kernels, {n_failed} with problems")
    return 1 if n_failed or not rows else 0


def _inspect(at: int):
    """The `aot.Machine` of the row at this place of `shipped_kernels`."""
    from bench.aot import compile_and_inspect
    from bench.shipped_kernels import shipped_kernels

    return compile_and_inspect(next(islice(shipped_kernels(), at, None)))


def _line(shipped, machine) -> str:
    exps = "-" if machine.exp_per_element is None else f"{machine.exp_per_element:.2f}"
    return (
        f"| {shipped.name} | {shipped.label} | sm_{shipped.capability} | {shipped.dtype} "
        f"| {machine.registers} | {machine.spills} | {machine.shared / 1024:.0f} "
        f"| {machine.mma} | {machine.wide_loads} | {machine.double} | {exps} "
        f"| {machine.occupancy:.0%} | {'; '.join(machine.problems) or 'ok'} |"
    )


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
