"""Compile the shipped kernels ahead of time and read their machine code: no GPU needed.

Triton carries ptxas, cuobjdump and nvdisasm, so what a chip would run can be inspected anywhere:
registers, spills, shared memory, the width of loads, tensor-core and double-precision instructions,
exponentials an element. Run it in a process of its own without TRITON_INTERPRET.
"""

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import compiler as nvidia_compiler
from triton.compiler import ASTSource

# Compute capability -> what one multiprocessor has.
CHIPS = {
    80: dict(shared_block=166912, shared=167936, registers=65536, threads=2048, blocks=32),
    86: dict(shared_block=101376, shared=102400, registers=65536, threads=1536, blocks=16),
    89: dict(shared_block=101376, shared=102400, registers=65536, threads=1536, blocks=24),
    90: dict(shared_block=232448, shared=233472, registers=65536, threads=2048, blocks=32),
    120: dict(shared_block=101376, shared=102400, registers=65536, threads=1536, blocks=24),
}
_TOOLS = Path(nvidia_compiler.__file__).parent / "bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipped:
    """One kernel as the launcher would compile it for one chip and dtype.

    arguments   run-time arguments and their types ("*bf16", "i32", "fp32"); those divisible by 16
                are marked "i32 16" (pointers always are: torch aligns allocations)
    constants   compile-time arguments
    elements    elements a program handles in one pass, where the exponentials are counted
    """

    name: str
    kernel: Any
    capability: int
    dtype: str
    arguments: dict[str, str]
    constants: Mapping[str, object]
    num_warps: int
    num_stages: int
    label: str = ""
    elements: int | None = None
    needs_wide_loads: bool = True
    needs_tensor_cores: bool = False


@dataclass(frozen=True, slots=True)
class Machine:
    """What the compiled kernel is made of, and which gates it fails."""

    registers: int
    stack: int
    spills: int
    shared: int
    double: int
    wide_loads: int
    mma: int
    exp_per_element: float | None
    occupancy: float
    problems: list[str] = field(default_factory=list)


def compile_and_inspect(shipped: Shipped) -> Machine:
    """Compile for the chip and return its figures; `problems` is empty where all gates pass."""
    names = shipped.kernel.arg_names
    signature, attributes = {}, {}
    for index, name in enumerate(names):
        if name in shipped.constants:
            signature[name] = "constexpr"
            continue
        kind, _, aligned = shipped.arguments[name].partition(" ")
        signature[name] = kind
        # Without these marks every load is 16 bits wide: another binary than the launcher's.
        if aligned or kind.startswith("*"):
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(
        fn=shipped.kernel, signature=signature, constexprs=shipped.constants, attrs=attributes
    )
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", shipped.capability, 32),
        options=dict(num_warps=shipped.num_warps, num_stages=shipped.num_stages),
    )
    usage, sass = _disassemble(compiled.asm["cubin"])
    return _judge(shipped, compiled.metadata.shared, usage, sass)


def _disassemble(cubin: bytes) -> tuple[str, str]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, sass = (
            subprocess.run(
                [_TOOLS / tool, option, file.name], capture_output=True, text=True, check=True
            ).stdout
            for tool, option in (("cuobjdump", "-res-usage"), ("nvdisasm", "-c"))
        )
    return usage, sass


def _judge(shipped: Shipped, shared: int, usage: str, sass: str) -> Machine:
    chip = CHIPS[shipped.capability]
    registers = int(re.findall(r"REG:(\d+)", usage)[0])
    stack = int(re.findall(r"STACK:(\d+)", usage)[0])

    def count(pattern: str) -> int:
        return len(re.findall(pattern, sass))

    # Spills show as a stack and as STL / LDL; the LOCAL figure of cuobjdump stays 0.
    spills = count(r"\bSTL\b|\bSTL\.|\bLDL\b|\bLDL\.")
    # Arithmetic in double is a Python float that reached the kernel as float64: 25 times slower.
    double = count(
        r"\b(?:DADD|DMUL|DFMA|DSETP|DMNMX|F2F\.F64\S*|F2F\.\S*\.F64|I2F\.F64|MUFU\S*64H)\b"
    )
    wide = count(r"\bLDG\S*\.128\b|\bLDGSTS\S*\.128\b|\bUBLKCP|\bUTMALDG")
    # Warp-group products are Hopper's alone; the chips before and 12.0 have those of a warp.
    mma = count(r"\bHGMMA\b|\bHGMMA\." if shipped.capability == 90 else r"\bHMMA\.")
    exps = None
    if shipped.elements is not None:
        exps = _in_main_loop(sass, "MUFU.EX2") / (shipped.elements / (32 * shipped.num_warps))
    problems = []
    if spills or stack:
        problems.append(f"spills: {spills} instructions, {stack} B of stack")
    if shared > chip["shared_block"]:
        problems.append(f"shared memory {shared} B > {chip['shared_block']} B")
    if double:
        problems.append(f"{double} double-precision instructions")
    if shipped.needs_wide_loads and not wide:
        problems.append("no 128-bit loads")
    if shipped.needs_tensor_cores and not mma:
        problems.append("no tensor-core instructions")
    if exps is not None and exps > 1.3:
        problems.append(f"{exps:.2f} exponentials an element > 1.3")
    return Machine(
        registers, stack, spills, shared, double, wide, mma, exps,
        _occupancy(registers, shared, shipped.num_warps, chip), problems,
    )  # fmt: skip


def _in_main_loop(sass: str, instruction: str) -> int:
    """Occurrences in the loop that holds most of them: from a label to a jump back to it."""
    lines = sass.splitlines()
    labels = {line.strip()[:-1]: at for at, line in enumerate(lines) if line.strip().endswith(":")}
    most = 0
    for at, line in enumerate(lines):
        jump = re.search(r"\bBRA\b.*`\((\S+)\)", line)
        start = labels.get(jump[1], at) if jump else at
        most = max(most, sum(instruction in inside for inside in lines[start:at]))
    return most


def _occupancy(registers: int, shared: int, num_warps: int, chip: dict[str, int]) -> float:
    """Fraction of the chip's resident threads that the block's resources allow."""
    per_warp = -(-registers * 32 // 256) * 256  # the register file is handed out in 256s
    blocks = min(
        chip["registers"] // (per_warp * num_warps),
        chip["shared"] // (shared + 1024),  # the driver keeps 1 KiB a block
        chip["threads"] // (32 * num_warps),
        chip["blocks"],
    )
    return blocks * 32 * num_warps / chip["threads"]
