"""`python tests/kernels/launches.py [all] CHIP ...`: every kernel, on GPUs that are not there.

Calls the public functions as a user does, forward and backward, and prints a line a case: "ok" with
the kernels and the bytes of shared memory that they take, or "FAIL" and the error. Without `all`
the cases that the suite has time for.
"""

import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import product
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from launcher import pretend
from rlvr_kernels import (
    GroupStatistics,
    accumulate_,
    adamw,
    adamw_,
    add_rms_norm,
    backend,
    combine_partials,
    copy_pages,
    group_normalize,
    linear_logprob,
    linear_logprob_triton,
    linear_token_logprob_partials,
    linear_token_logprobs,
    logprob,
    loss,
    norm,
    pages,
    policy_loss,
    rms_norm,
    rotary,
    rotary_qkv,
    sample_tokens,
    square_sum,
    swiglu,
    token_logprobs,
    vocab_parallel,
)
from rlvr_kernels.configs import TileConfig

from bench.aot import CHIPS

# The function `swiglu` hides its module.
LAYERS = norm, rotary, sys.modules["rlvr_kernels.swiglu"], pages
QWEN, ODD = 151936, 151667  # vocabularies, the second one that 16 does not divide
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# Multiprocessors of a card of each chip: A100, RTX 3090, RTX 4090, H100, RTX 5090.
PROCESSORS = {80: 108, 86: 82, 89: 128, 90: 132, 120: 170}


class Case(NamedTuple):
    name: str
    call: Callable[[], None]
    waits: bool = False
    """Whether the call may read a count on the host: the rows that a mask leaves."""
    refusal: str | None = None
    """What the error says that has to come."""


def launch_on(capability: int, cases: Iterable[Case]) -> int:
    """Return how many of the cases failed on a chip."""
    chip = CHIPS[capability] | {"processors": PROCESSORS[capability]}
    modules = (backend, adamw, logprob, linear_logprob, vocab_parallel, loss, *LAYERS)
    n_failed = 0
    with pretend(capability, chip, modules) as (driver, bodies):
        for case in cases:
            driver.launches.clear()
            bodies.waits = case.waits
            try:
                case.call()
                error = None if case.refusal is None else f"not refused: {case.refusal}"
            except Exception as raised:
                is_right = case.refusal is not None and case.refusal in str(raised)
                error = None if is_right else traceback.format_exc()
            kernels = ", ".join(
                f"{launch.kernel.removesuffix('_kernel')} {launch.shared_bytes}"
                for launch in dict.fromkeys(driver.launches)
            )
            end = f": {kernels}" if error is None else f"\n{error}"
            print("FAIL" if error else "ok  ", f"sm_{capability} {case.name}{end}", flush=True)
            n_failed += error is not None
    return n_failed


NAN = tl.constexpr(float("nan"))
NOT_FAKE = torch.zeros(16)


@triton.jit
def with_a_nan_kernel(x_ptr):
    tl.store(x_ptr, NAN)


@triton.jit
def fill_kernel(x_ptr):
    tl.store(x_ptr, 1.0)


def refusals() -> Iterator[Case]:
    """What CUDA or Triton's launcher refuses has to be refused here too."""

    def launch(kernel, grid=1, x=None):
        with torch.cuda.device(0):
            kernel[(grid,)](torch.zeros(16) if x is None else x)

    def tiles_that_fit_no_chip():
        fitting = linear_logprob_triton.LINEAR_FORWARD
        large = dict.fromkeys(fitting, TileConfig(64, 64, 128, num_warps=4, num_stages=8))
        linear_logprob_triton.LINEAR_FORWARD = large
        try:
            linear("bf16", 64, 1024, 256)
        finally:
            linear_logprob_triton.LINEAR_FORWARD = fitting

    yield Case("a global NaN", partial(launch, with_a_nan_kernel), refusal="NAN has changed since")
    yield Case("an empty grid", partial(launch, fill_kernel, 0), refusal="invalid grid")
    yield Case("a grid too large", partial(launch, fill_kernel, 2**31), refusal="invalid grid")
    yield Case(
        "memory of the host", partial(launch, fill_kernel, x=NOT_FAKE), refusal="tensor of the CPU"
    )
    yield Case(
        "another device than the tensor's",
        lambda: fill_kernel[(1,)](torch.zeros(16)),
        refusal="not on that of the tensors",
    )
    yield Case("too much shared memory", tiles_that_fit_no_chip, refusal="out of resource: shared")
    masked = partial(linear, "bf16", 64, 64, 256, mask=True)
    yield Case("a wait for the device", masked, refusal="aten.nonzero")
    yield Case("an item", lambda: torch.zeros(()).item(), refusal="_local_scalar_dense")


def core_cases() -> Iterator[Case]:
    """One real call of each function, and what is special: sizes of one, odd ones, every option."""
    yield Case("rows bf16 of a batch", partial(rows, "bf16", (8, 512), QWEN, "slice", lse=True))
    yield Case("rows bf16 odd", partial(rows, "bf16", (65,), ODD))
    yield Case("rows fp32 1 x 1", partial(rows, "fp32", (1,), 1))
    yield Case("linear bf16", partial(linear, "bf16", 8192, 2048, QWEN))
    yield Case("linear fp32 1 x 1 x 1", partial(linear, "fp32", 1, 1, 1))
    yield Case("linear fp16 odd", partial(linear, "fp16", 300, 896, ODD))
    yield Case(
        "linear bf16 bias, softcap, mask",
        partial(
            linear, "bf16", 4096, 2048, QWEN, bias=True, softcap=30.0, mask=True, wide_grad=True
        ),
        waits=True,
    )
    yield Case("partials bf16", partial(partials, "bf16", 512, 2048, QWEN))
    yield Case("loss plain", partial(losses, (8, 512), is_per_sequence=True))
    yield Case("loss full", partial(losses, (8, 512), kl="k2", full=True, denom="tensor"))
    yield Case("loss of one token", partial(losses, (1, 1), reduction="seq-mean"))
    yield Case("sample bf16", partial(sample, "bf16", 256, QWEN))
    yield Case("sample fp32 one row, odd", partial(sample, "fp32", 1, ODD))
    yield Case("groups", partial(groups, 4096, 6))
    yield Case("update", partial(update, (11008, 2048)))
    yield Case("update of one element", partial(update, (1,), key=1, first=1))
    yield Case("norms bf16", partial(norms, "bf16", 8192, 2048))
    yield Case("rotary bf16", partial(rotaries, "bf16", 8192, 16, 2, 128))
    yield Case("rotary bf16 norms, cache", partial(rotaries, "bf16", 8, 32, 8, 128, is_normed=True))
    yield Case("swiglu bf16", partial(swiglus, "bf16", 8192, 11008))
    yield Case("pages bf16", partial(page_copies, "bf16", 72, 100_000, 4096))


def all_cases() -> Iterator[Case]:
    """Dtypes, sizes, layouts and options: what makes another kernel of the same source."""
    for dtype, n_vocab in product(DTYPES, (100, 257, QWEN, ODD)):
        yield Case(f"rows {dtype} {n_vocab}", partial(rows, dtype, (4, 33), n_vocab))
        yield Case(f"sample {dtype} {n_vocab}", partial(sample, dtype, 8, n_vocab))
    for layout, n_vocab in product(("slice", "unaligned", "transposed"), (QWEN, ODD)):
        yield Case(f"rows {layout} {n_vocab}", partial(rows, "bf16", (4, 33), n_vocab, layout))
        yield Case(f"sample {layout} {n_vocab}", partial(sample, "fp32", 8, n_vocab, layout))
    for names in (["logprobs"], ["entropy"], ["lse"], ["logprobs", "lse"], ["entropy", "lse"]):
        gradients = partial(rows, "bf16", (4096,), QWEN, lse=True, upstream=names)
        yield Case(f"rows gradients of {names}", gradients)
    yield Case("rows one of a batch", partial(rows, "bf16", (1, 4096), QWEN, "slice"))
    yield Case("rows in place", partial(rows, "bf16", (4096,), QWEN, inplace=True))
    yield Case("rows beyond 2^31 elements", partial(rows, "bf16", (20000,), QWEN))
    masked = partial(rows, "bf16", (64,), QWEN, ids=torch.int32, mask=True)
    yield Case("rows int32 ids, mask", masked)

    yield Case("linear one token", partial(linear, "bf16", 1, 2048, QWEN, entropy=False))
    for dtype, size in product(DTYPES, ((16, 896, 257), (4096, 2048, ODD))):
        for options in (dict(), dict(bias=True), dict(softcap=30.0)):
            name = " ".join(map(str, (dtype, *size, *options)))
            yield Case(f"linear {name}", partial(linear, dtype, *size, **options))
    for dtype in DTYPES:
        real = partial(linear, dtype, 512, 2048, QWEN)
        yield Case(f"linear {dtype} mask", partial(real, mask=True), waits=True)
        yield Case(f"linear {dtype} wide grad", partial(real, wide_grad=True))
        shards = partial(partials, dtype, 65, 896, ODD, bias=True, mask=True)
        yield Case(f"partials {dtype} odd, bias, mask", shards, waits=True)
    yield Case("linear odd hidden", partial(linear, "bf16", 130, 73, 1000))
    yield Case("linear slice", partial(linear, "bf16", 512, 2048, QWEN, layout="slice"))
    yield Case("linear unaligned", partial(linear, "bf16", 512, 72, QWEN, layout="unaligned"))
    yield Case("linear tf32", partial(linear, "fp32", 512, 2048, QWEN, tf32=True))

    for dtype, n_columns in product(DTYPES, (1, 897, 3584, 8192)):
        yield Case(f"norms {dtype} {n_columns}", partial(norms, dtype, 9, n_columns))
        yield Case(f"swiglu {dtype} {n_columns}", partial(swiglus, dtype, 9, n_columns))
    for dtype, size, is_normed in product(DTYPES, (64, 80, 128, 256), (False, True)):
        name = f"rotary {dtype} {size}{' norms' * is_normed}"
        yield Case(name, partial(rotaries, dtype, 9, 14, 2, size, is_normed=is_normed))
    for layout in ("slice", "unaligned", "transposed"):
        yield Case(f"norms {layout}", partial(norms, "bf16", 64, 2048, layout))
        yield Case(f"swiglu {layout}", partial(swiglus, "bf16", 64, 4864, layout))
        yield Case(f"rotary {layout}", partial(rotaries, "bf16", 64, 14, 2, 64, layout))
    yield Case("norms beyond 2^31 elements", partial(norms, "bf16", 600_000, 4096))
    refusal = "x: expected at most 8192 columns for backend 'triton'"
    yield Case("norms of too long a row", partial(norms, "bf16", 4, 8193), refusal=refusal)

    divisions = ("token", None), ("token", "float"), ("seq-mean", "tensor"), ("sum", None)
    for kl, full, (reduction, denom) in product((None, "k1", "k2", "k3"), (False, True), divisions):
        options = dict(kl=kl, full=full, reduction=reduction, denom=denom)
        each = partial(losses, (16, 1030), is_per_sequence=not full, **options)
        yield Case(f"loss {options}", each)

    for shape in ((2048,), (QWEN, 2048), (ODD, 3), (2**20, 2**11 + 1)):
        yield Case(f"update {shape}", partial(update, shape, key=-(2**63), first=2**20))


def rows(
    dtype, shape, n_vocab, layout="dense", lse=False, inplace=False, upstream=(), ids=torch.int64,
    mask=False,
):  # fmt: skip
    logits = laid_out((*shape, n_vocab), DTYPES[dtype], layout)
    found = token_logprobs(
        logits if not inplace else logits * 1,
        torch.randint(0, n_vocab, shape, dtype=ids),
        mask=torch.ones(shape, dtype=torch.bool) if mask else None,
        temperature=0.7, return_entropy=True, return_lse=lse, inplace_grad=inplace,
        backend="triton",
    )  # fmt: skip
    backward(v for k, v in found._asdict().items() if not upstream or k in upstream)


def linear(
    dtype, n_tokens, n_hidden, n_vocab, bias=False, softcap=None, mask=False, entropy=True,
    wide_grad=False, layout="dense", tf32=False,
):  # fmt: skip
    shape = (2, n_tokens // 2) if layout == "slice" else (n_tokens,)
    hidden = laid_out((*shape, n_hidden), DTYPES[dtype], layout)
    weight = laid_out((n_vocab, n_hidden), DTYPES[dtype], "dense")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else before)
    found = linear_token_logprobs(
        hidden, weight, torch.randint(0, n_vocab, shape),
        bias=laid_out((n_vocab,), DTYPES[dtype], "dense") if bias else None,
        mask=torch.ones(shape, dtype=torch.bool) if mask else None,
        softcap=softcap, return_entropy=entropy, return_lse=True,
        grad_weight_dtype=torch.float32 if wide_grad else None, backend="triton",
    )  # fmt: skip
    backward(found)
    torch.set_float32_matmul_precision(before)


def partials(dtype, n_tokens, n_hidden, n_vocab, bias=False, mask=False):
    half = n_vocab // 2
    hidden = laid_out((n_tokens, n_hidden), DTYPES[dtype], "dense")
    shards = [
        linear_token_logprob_partials(
            hidden, laid_out((count, n_hidden), DTYPES[dtype], "dense"),
            torch.randint(0, n_vocab, (n_tokens,)), vocab_start=start, n_vocab=n_vocab,
            bias=laid_out((count,), DTYPES[dtype], "dense") if bias else None,
            mask=torch.ones(n_tokens, dtype=torch.bool) if mask else None, backend="triton",
        )
        for start, count in ((0, half), (half, n_vocab - half))
    ]  # fmt: skip
    backward(combine_partials(torch.stack(shards))[:2])


def losses(
    shape, reduction="token", kl=None, full=False, denom=None, is_per_sequence=False
):  # fmt: skip
    """With one advantage a sequence or a token; `full`: with all that is optional but the KL."""
    logprobs = torch.randn(shape, requires_grad=True)
    advantages = (shape[0], 1) if is_per_sequence else shape
    options = {}
    if full:
        options = dict(
            rollout_logprobs=torch.randn(shape), tis_cap=2.0, dual_clip=3.0,
            entropy=torch.randn(shape, requires_grad=True), entropy_coef=0.001,
            group_ids=torch.zeros(advantages, dtype=torch.int64),
            group_stats=GroupStatistics(*torch.ones(3, 6).unbind()),
        )  # fmt: skip
    if kl:
        options |= dict(ref_logprobs=torch.randn(shape), kl=kl, kl_coef=0.1)
    denoms = {None: None, "float": 1000.0, "tensor": torch.ones(())}
    value, _ = policy_loss(
        logprobs, torch.randn(shape), torch.randn(advantages), torch.ones(shape, dtype=torch.bool),
        reduction=reduction, denom=denoms[denom], backend="triton", **options,
    )  # fmt: skip
    backward([value])


def groups(n_values, n_groups):
    """No kernel of ours, and no wait either: its path for devices other than the CPU."""
    values, mask = torch.empty((2, n_values), device="meta").unbind()
    ids = torch.empty(n_values, dtype=torch.int64, device="meta")
    group_normalize(values, mask > 0, ids, n_groups)


def sample(dtype, n_rows, n_vocab, layout="dense"):
    logits = laid_out((n_rows, n_vocab), DTYPES[dtype], layout).detach()
    keys, positions = torch.zeros(2, n_rows + 1, dtype=torch.int64)[:, 1:]
    sample_tokens(logits, keys, positions, torch.ones(n_rows), backend="triton")


def update(shape, key=2**64 - 1, first=0):
    """A sum of two gradients, and updates by the first alone and by the sum."""
    weight, grad, exp_avg, exp_avg_sq = torch.zeros((4, *shape), dtype=torch.bfloat16)
    low = torch.zeros(shape, dtype=torch.uint8)
    noise = dict(key=key, first=first, backend="triton")
    for bits in (None, low):
        scale = square_sum(grad, bits, backend="triton")
        adamw_(
            weight, grad, exp_avg, exp_avg_sq, grad_low=bits, scale=scale, lr=1, beta1=0.9,
            beta2=0.999, eps=1e-8, weight_decay=0, step=1, **noise,
        )  # fmt: skip
        accumulate_(grad, low, weight, **noise)


def norms(dtype, n_rows, n_columns, layout="dense"):
    """With the gradient of the weight and without one, and of each result alone."""
    x, residual = (laid_out((n_rows, n_columns), DTYPES[dtype], layout) for _ in range(2))
    weight = laid_out((n_columns,), DTYPES[dtype], "dense")
    options = dict(eps=1e-6, backend="triton")
    backward([rms_norm(x, weight, **options)])
    backward([rms_norm(x, weight.detach(), **options)])
    backward(add_rms_norm(x, residual, weight, **options))
    for only in range(2):
        backward([add_rms_norm(x, residual, weight, **options)[only]])


def rotaries(dtype, n_tokens, n_heads, n_kv_heads, size, layout="dense", is_normed=False):
    """Without a cache, forward and backward, then with one."""
    qkv = laid_out((n_tokens, (n_heads + 2 * n_kv_heads) * size), DTYPES[dtype], layout)
    cos, sin = torch.randn(2, n_tokens, size).unbind()
    options = dict(heads=n_heads, kv_heads=n_kv_heads, backend="triton")
    if is_normed:
        for name in ("q_weight", "k_weight"):
            options[name] = laid_out((size,), DTYPES[dtype], "dense")
    for names in ((0, 1, 2), (0,), (1,), (2,)):
        found = rotary_qkv(qkv, cos, sin, **options)
        backward(found[at] for at in names)
    keys, values = torch.zeros(2, 100_000, n_kv_heads, size, dtype=DTYPES[dtype]).unbind()
    places = torch.zeros(n_tokens, dtype=torch.int64)
    with torch.no_grad():
        rotary_qkv(qkv, cos, sin, keys=keys, values=values, places=places, **options)


def swiglus(dtype, n_rows, n_columns, layout="dense"):
    gate_up = laid_out((n_rows, 2 * n_columns), DTYPES[dtype], layout)
    backward([swiglu(gate_up, backend="triton")])


def page_copies(dtype, n_tensors, n_pages, page_size):
    memory = torch.zeros(n_tensors, n_pages, page_size, dtype=DTYPES[dtype])
    source, target = torch.zeros(2, 33, dtype=torch.int64).unbind()
    copy_pages(memory, source, target, backend="triton")


def laid_out(shape, dtype, layout):
    """A tensor that needs a gradient and lies as named."""
    new = partial(torch.randn, dtype=dtype, requires_grad=True)
    match layout:
        case "dense":
            return new(shape)
        case "slice" if len(shape) == 3:
            return new(shape[0], shape[1] + 1, shape[2])[:, :-1]
        case "slice":
            return new(shape[0], shape[1] + 7)[:, : shape[1]]
        case "unaligned":
            return new(torch.Size(shape).numel() + 1)[1:].view(shape)
        case "transposed":
            return new(shape[::-1]).permute(*range(len(shape))[::-1])


def backward(values):
    sum(value.sum() for value in values if value is not None).backward()


def main(words: list[str]) -> int:
    chips = [int(word) for word in words if word != "all"]
    # What is refused does not depend on the chip.
    n_failed = launch_on(chips[0], refusals())
    for chip in chips:
        n_failed += launch_on(chip, core_cases())
        n_failed += launch_on(chip, all_cases() if "all" in words else ())
    return 1 if n_failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
