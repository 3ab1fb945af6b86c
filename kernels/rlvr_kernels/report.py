"""`python -m rlvr_kernels.report`: the machine code of every shipped kernel, as a Markdown table.

Compiles for sm_80 and sm_90 on any Linux machine with triton, GPU or not, and exits with 1 where a
kernel spills, outgrows the chip's shared memory, uses double precision, loads narrowly, misses the
tensor cores, or takes more than 1.3 exponentials an element. `--brief` compiles one case of every
kernel and chip; a name limits the rows to kernels whose name contains it.
"""

import os
import sys


def main(arguments: list[str]) -> int:
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        print("unset TRITON_INTERPRET: the interpreter compiles nothing", file=sys.stderr)
        return 2
    try:
        import triton
    except ImportError:
        print("triton is not installed: nothing to compile", file=sys.stderr)
        return 2
    from .aot import compile_and_inspect
    from .shipped import shipped_kernels

    is_brief = "--brief" in arguments
    wanted = next((word for word in arguments if not word.startswith("-")), "")
    seen: set[tuple[str, int]] = set()
    print(f"triton {triton.__version__}, compiled ahead of time, not run on a GPU\n")
    print(
        "| kernel | case | chip | dtype | registers | spills | shared KiB "
        "| tensor-core | 128-bit loads | fp64 | exp/element | predicted occupancy | |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|---|")
    n_rows = n_failed = 0
    for shipped in shipped_kernels():
        kind = shipped.name, shipped.capability
        if wanted not in shipped.name or (is_brief and kind in seen):
            continue
        seen.add(kind)
        machine = compile_and_inspect(shipped)
        exps = "-" if machine.exp_per_element is None else f"{machine.exp_per_element:.2f}"
        print(
            f"| {shipped.name} | {shipped.label} | sm_{shipped.capability} | {shipped.dtype} "
            f"| {machine.registers} | {machine.spills} | {machine.shared / 1024:.0f} "
            f"| {machine.mma} | {machine.wide_loads} | {machine.double} | {exps} "
            f"| {machine.occupancy:.0%} | {'; '.join(machine.problems) or 'ok'} |",
            flush=True,
        )
        n_rows += 1
        n_failed += bool(machine.problems)
    print(f"\n{n_rows} kernels, {n_failed} with problems")
    return 1 if n_failed or not n_rows else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
