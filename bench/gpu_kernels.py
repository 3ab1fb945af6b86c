"""Stage `kernels` of `make gpu`: the kernels and the sampler beside the chip's own rates.

    python -m bench.gpu_kernels --device cuda --findings FILE [--toy]

Qwen2.5's vocabulary in bf16. Each kernel takes turns with the ceiling that bounds it and with eager
torch (`bench.measure`); bench_kernels.py has the other libraries. Every figure is written as soon
as it is known, the ceilings and the largest kernels first.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

# Read when torch and OpenMP load.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from rlvr_kernels import (
    linear_token_logprobs,
    policy_loss,
    reference,
    sample_tokens,
    token_logprobs,
)

from bench.bench_kernels import (
    LAYERS,
    Scale,
    adamw_call,
    backward_of,
    copy_of,
    eager_with_entropy,
    hidden_weight_ids,
    logits_and_ids,
    upstream_of,
    with_backward,
    without_grad,
)
from bench.gpu_record import Findings, stage_parser
from bench.measure import Call, CpuClock, CudaClock, Options, Result, l2_flush, measure

FULL = Scale("cuda", torch.bfloat16, 151936, 8192, 1024)
TOY = Scale("cpu", torch.bfloat16, 257, 64, 8)
SAMPLED_ROWS = 256


@dataclass(frozen=True)
class Setting:
    """How large and where, and where the figures go."""

    findings: Findings
    scale: Scale
    hidden: int = 2048
    matrix: int = 8192
    copied: int = 2**30
    rounds: int = 20

    @property
    def on_cuda(self) -> bool:
        return self.scale.device == "cuda"

    def timed(self, name: str, ours: Call, *, cold: bool = False, **peers: Call) -> Result:
        """Returns the rows of ours and of what takes turns with it; `cold` empties the cache."""
        options = Options(
            device=self.scale.device, rounds=self.rounds, warmup=2,
            before=l2_flush() if cold and self.on_cuda else None,
        )  # fmt: skip
        result = measure("gpu_kernels", name, ours, peers, options)
        for row in result.rows.values():
            took = row.reason if row.median_s is None else f"{row.median_s * 1e3:.4g} ms"
            self.findings.note(f"{name}, {row.name}", took)
            print(f"{name}: {row.name} {took}", flush=True)
        return result

    def ratio(self, figure: str, result: Result, peer: str, share: float = 1.0) -> None:
        """Writes `share` times the peer's time over ours; nothing where the peer failed."""
        found = result.ratio(peer)
        if found is not None:
            self.findings.figure(figure, share * found)

    def extra(self, figure: str, call: Call, but_bytes: int = 0) -> None:
        """Writes the most memory that a call takes, `but_bytes` left out; the CPU does not tell."""
        if self.on_cuda:
            taken = CudaClock().peak_extra_bytes(call) - but_bytes
            self.findings.figure(figure, taken / 2**20)


def ceilings(setting: Setting) -> None:
    """What bounds every other figure, by the clock that times them."""
    device, dtype = setting.scale.device, setting.scale.dtype
    clock = CudaClock() if setting.on_cuda else CpuClock()
    source = torch.empty(setting.copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    a = torch.randn(setting.matrix, setting.matrix, device=device).to(dtype)
    out = torch.empty_like(a)
    with torch.no_grad():
        copy_s, mm_s = (
            min(clock.time(call, 1, None) for _ in range(8))
            for call in (lambda: target.copy_(source), lambda: torch.mm(a, a, out=out))
        )
    setting.findings.figure("copy_gb_s", 2 * setting.copied / copy_s / 1e9)
    setting.findings.figure("matmul_tflop_s", 2 * setting.matrix**3 / mm_s / 1e12)


def rows(setting: Setting) -> None:
    """Row log-probs: a forward reads the logits once, a backward reads and writes them."""
    scale = setting.scale
    logits, ids = logits_and_ids(scale.n_tokens, scale.n_vocab, scale.device, scale.dtype)
    target, upstream = torch.empty_like(logits), upstream_of(scale.n_tokens, scale.device)
    copy = without_grad(lambda: target.copy_(logits))

    def ours(logits=logits, ids=ids):
        return token_logprobs(logits, ids, return_entropy=True)[:2]

    forward = setting.timed(
        "row forward", without_grad(ours), cold=True, copy=copy,
        eager=without_grad(lambda: eager_with_entropy(logits, ids)),
    )  # fmt: skip
    setting.ratio("row_logprob_fwd_copy_frac", forward, "copy", share=0.5)
    setting.ratio("row_logprob_fwd_eager_ratio", forward, "eager")
    found = ours()
    backward = setting.timed(
        "row backward",
        lambda: backward_of(found, logits, upstream, retain_graph=True),
        cold=True, copy=copy,
    )  # fmt: skip
    setting.ratio("row_logprob_bwd_copy_frac", backward, "copy")
    half, half_ids = logits.detach()[: scale.n_tokens // 2].requires_grad_(), ids[: len(ids) // 2]
    upstream = [part[: len(half)] for part in upstream]
    both = setting.timed(
        "row forward+backward",
        with_backward(lambda: ours(half, half_ids), half, upstream),
        eager=with_backward(lambda: eager_with_entropy(half, half_ids), half, upstream),
    )
    setting.ratio("row_logprob_both_eager_ratio", both, "eager")


def linear(setting: Setting) -> None:
    """The fused head: one product forward, four with the backward that computes it again."""
    scale = setting.scale
    hidden, weight, ids = hidden_weight_ids(
        scale.n_tokens, setting.hidden, scale.n_vocab, scale.device, scale.dtype
    )
    upstream = upstream_of(scale.n_tokens, scale.device)
    out = torch.empty(scale.n_tokens, scale.n_vocab, device=scale.device, dtype=scale.dtype)

    def ours():
        return linear_token_logprobs(hidden, weight, ids, return_entropy=True)[:2]

    def eager():
        return eager_with_entropy(hidden @ weight.T, ids)

    def products(count: int) -> Call:
        def call():
            for _ in range(count):
                torch.mm(hidden, weight.T, out=out)

        return without_grad(call)

    both = with_backward(ours, (hidden, weight), upstream)
    forward_row = setting.timed("linear forward", without_grad(ours), matmul=products(1))
    setting.ratio("linear_fwd_matmul_frac", forward_row, "matmul")
    both_row = setting.timed("linear forward+backward", both, four_matmuls=products(4))
    setting.ratio("linear_both_matmul_frac", both_row, "four_matmuls")
    setting.extra("linear_fwd_extra_mib", without_grad(ours))
    gradients_bytes = (hidden.numel() + weight.numel()) * hidden.element_size()
    setting.extra("linear_both_extra_mib", both, but_bytes=gradients_bytes)
    few = replace(setting, rounds=min(setting.rounds, 5))
    forward_row = few.timed("linear forward, eager", without_grad(ours), eager=without_grad(eager))
    setting.ratio("linear_fwd_eager_ratio", forward_row, "eager")
    both_row = few.timed(
        "linear forward+backward, eager", both,
        eager=with_backward(eager, (hidden, weight), upstream),
    )  # fmt: skip
    setting.ratio("linear_both_eager_ratio", both_row, "eager")


def loss(setting: Setting) -> None:
    """The policy loss: bound by launches on a GPU."""
    scale = setting.scale
    shape = (32, scale.length)
    logprobs = (-torch.rand(shape, device=scale.device)).requires_grad_()
    old = logprobs.detach() + 0.1 * torch.randn(shape, device=scale.device)
    advantages = torch.randn(32, 1, device=scale.device)
    mask = torch.rand(shape, device=scale.device) > 0.3
    options = dict(ref_logprobs=old, kl="k2", kl_coef=0.1)
    upstream = [torch.ones((), device=scale.device)]

    def both(function: Callable) -> Call:
        return with_backward(
            lambda: function(logprobs, old, advantages, mask, **options)[0], logprobs, upstream
        )

    result = setting.timed(
        "policy loss forward+backward", both(policy_loss), eager=both(reference.policy_loss)
    )
    setting.ratio("policy_loss_eager_ratio", result, "eager")


def sampler(setting: Setting) -> None:
    """One draw of every row."""
    device, n_vocab = setting.scale.device, setting.scale.n_vocab
    logits = 3 * torch.randn(SAMPLED_ROWS, n_vocab, device=device)
    target = torch.empty_like(logits)
    keys = torch.arange(SAMPLED_ROWS, device=device) * 0x9E3779B97F4A7C1
    positions = torch.arange(SAMPLED_ROWS, device=device)
    temperature = torch.ones(SAMPLED_ROWS, device=device)

    def eager():
        logprobs = torch.log_softmax(logits, -1)
        drawn = torch.multinomial(logprobs.exp(), 1)
        return drawn, logprobs.gather(1, drawn)

    result = setting.timed(
        f"sampler, {SAMPLED_ROWS} rows",
        without_grad(lambda: sample_tokens(logits, keys, positions, temperature)),
        cold=True,
        copy=without_grad(lambda: target.copy_(logits)),
        eager=without_grad(eager),
    )
    assert result.ours.median_s is not None  # ours raises where it fails
    setting.findings.figure("sampler_256_us", result.ours.median_s * 1e6)
    setting.ratio("sampler_256_copy_frac", result, "copy", share=0.5)
    setting.ratio("sampler_256_eager_ratio", result, "eager")


def layers(setting: Setting) -> None:
    """A norm, a SwiGLU and a rotation, each direction beside a copy of as many bytes."""
    device = setting.scale.device
    for name, build in LAYERS.items():
        layer = build(setting.scale)
        forward = setting.timed(
            f"{name} forward", without_grad(layer.ours), cold=True,
            copy=copy_of(layer.forward_bytes, device),
        )  # fmt: skip
        setting.ratio(f"{name}_fwd_copy_frac", forward, "copy")
        backward = setting.timed(
            f"{name} backward",
            partial(backward_of, layer.ours(), layer.inputs, layer.upstream, retain_graph=True),
            cold=True, copy=copy_of(layer.backward_bytes, device),
        )  # fmt: skip
        setting.ratio(f"{name}_bwd_copy_frac", backward, "copy")


def optimiser(setting: Setting) -> None:
    """The stochastic AdamW, which moves 15 bytes a weight, beside a copy of as many."""
    weights, device = 2**15 * setting.scale.n_tokens, setting.scale.device
    update = setting.timed(
        "stochastic AdamW", partial(adamw_call(weights, device), "auto"), cold=True,
        copy=copy_of(15 * weights, device),
    )  # fmt: skip
    setting.ratio("adamw_copy_frac", update, "copy")


def main(arguments: list[str] | None = None) -> int:
    """Runs every part; 1 where one failed."""
    options = stage_parser("bench.gpu_kernels").parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    findings = Findings(options.findings)
    setting = Setting(findings, replace(FULL, device=options.device))
    if options.toy:
        toy = replace(TOY, device=options.device)
        setting = Setting(findings, toy, hidden=32, matrix=128, copied=2**20, rounds=3)

    def run(part: Callable[[Setting], None]) -> None:
        try:
            part(setting)
        finally:
            if setting.on_cuda:
                torch.cuda.empty_cache()

    parts = (ceilings, rows, linear, loss, sampler, layers, optimiser)
    return findings.run({part.__name__: partial(run, part) for part in parts})


if __name__ == "__main__":
    raise SystemExit(main())
