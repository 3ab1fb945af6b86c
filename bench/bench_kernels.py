"""`rlvr_kernels` beside eager torch and the libraries that solve the same problem.

On the CPU: the torch paths. On a GPU: the Triton kernels against the chip's own copy and matmul
rate, measured in the same rounds, with peak memory. T tokens, H hidden units, V vocabulary.
"""

import pytest
import torch
import torch.nn.functional as F
from rlvr_kernels import linear_token_logprobs, policy_loss, reference, token_logprobs

from bench.peers import optional

V = 151936  # Qwen2.5

# Peers warn, and so does what compiles them: as errors, warnings would fail their rows.
pytestmark = pytest.mark.filterwarnings("default")


def backward_of(outputs, inputs, upstream):
    return torch.autograd.grad(outputs, inputs, upstream[: len(outputs)])


def with_backward(function, inputs, upstream):
    """Call `function` (a tuple of outputs) and differentiate it by the inputs."""

    def call():
        outputs = function()
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return backward_of(outputs, inputs, upstream)

    return call


def without_grad(function):
    def call():
        with torch.no_grad():
            return function()

    return call


def eager_logprobs(logits, ids):
    return torch.log_softmax(logits.float(), -1).gather(-1, ids[:, None])[:, 0]


def eager_with_entropy(logits, ids):
    logp = torch.log_softmax(logits.float(), -1)
    return logp.gather(-1, ids[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


def trl_selective_log_softmax(logits, ids):
    """TRL's formula for 16-bit logits: a loop over rows, log-probs in the logits' dtype."""
    rows = zip(logits, ids, strict=True)
    return torch.stack([F.log_softmax(row, -1).gather(-1, id[None])[0] for row, id in rows])


def upstream_of(n_tokens, device, count=2):
    generator = torch.Generator(device).manual_seed(1)
    return [torch.randn(n_tokens, device=device, generator=generator) for _ in range(count)]


def logits_and_ids(n_tokens, n_vocab, device, dtype):
    generator = torch.Generator(device).manual_seed(0)
    logits = torch.empty(n_tokens, n_vocab, device=device, dtype=dtype)
    logits.normal_(0, 3, generator=generator).requires_grad_()
    ids = torch.randint(0, n_vocab, (n_tokens,), device=device, generator=generator)
    return logits, ids


def hidden_weight_ids(n_tokens, n_hidden, n_vocab, device, dtype):
    generator = torch.Generator(device).manual_seed(0)
    hidden = torch.empty(n_tokens, n_hidden, device=device, dtype=dtype)
    weight = torch.empty(n_vocab, n_hidden, device=device, dtype=dtype)
    hidden.normal_(0, 1, generator=generator).requires_grad_()
    weight.normal_(0, 3 / n_hidden**0.5, generator=generator).requires_grad_()
    ids = torch.randint(0, n_vocab, (n_tokens,), device=device, generator=generator)
    return hidden, weight, ids


# ------------------------------------------------------------------------------------------ CPU


@pytest.mark.parametrize(("n_tokens", "n_vocab"), [(4096, 128), (64, V)])
def bench_cpu_token_logprobs(compare, n_tokens, n_vocab):
    logits, ids = logits_and_ids(n_tokens, n_vocab, "cpu", torch.float32)
    upstream = upstream_of(n_tokens, "cpu")

    def both(function):
        return with_backward(function, logits, upstream)

    result = compare.with_options(items=n_tokens, unit="token", rounds=15, warmup=2)(
        f"log-probs T={n_tokens} V={n_vocab} forward+backward",
        both(lambda: token_logprobs(logits, ids).logprobs),
        eager=both(lambda: eager_logprobs(logits, ids)),
        cross_entropy=both(lambda: -F.cross_entropy(logits, ids, reduction="none")),
    )
    if n_vocab == V:  # a small vocabulary leaves nothing to gain over log_softmax and gather
        result.bar("eager", must=1.05)
    result = compare.with_options(items=n_tokens, unit="token", rounds=15, warmup=2)(
        f"log-probs and entropy T={n_tokens} V={n_vocab} forward+backward",
        both(lambda: token_logprobs(logits, ids, return_entropy=True)[:2]),
        eager=both(lambda: eager_with_entropy(logits, ids)),
    )
    if n_vocab == V:
        result.bar("eager", must=2)


@pytest.mark.parametrize(("n_tokens", "n_hidden", "n_vocab"), [(4096, 64, 128), (128, 256, 32768)])
def bench_cpu_linear(compare, n_tokens, n_hidden, n_vocab):
    hidden, weight, ids = hidden_weight_ids(n_tokens, n_hidden, n_vocab, "cpu", torch.float32)
    upstream = upstream_of(n_tokens, "cpu")

    def both(function):
        return with_backward(function, (hidden, weight), upstream)

    result = compare.with_options(items=n_tokens, unit="token", rounds=9, warmup=2)(
        f"linear T={n_tokens} H={n_hidden} V={n_vocab} forward+backward",
        both(lambda: linear_token_logprobs(hidden, weight, ids).logprobs),
        eager=both(lambda: eager_logprobs(hidden @ weight.T, ids)),
        linear_cross_entropy=both(torch_linear_cross_entropy(hidden, weight, ids)),
        **linear_peers(hidden, weight, ids, both),
    )
    result.bar("verl_512_token_chunks", must=1.2)
    # A third of all tokens trained on, as after a prompt: masked rows leave before the product.
    mask = torch.arange(n_tokens) % 3 == 0

    def masked_eager():
        return eager_logprobs(hidden @ weight.T, ids) * mask

    result = compare.with_options(items=n_tokens, unit="token", rounds=9, warmup=2)(
        f"linear T={n_tokens} H={n_hidden} V={n_vocab}, a third unmasked, forward+backward",
        both(lambda: linear_token_logprobs(hidden, weight, ids, mask=mask).logprobs),
        eager=both(masked_eager),
    )
    result.bar("eager", must=1.5)


def torch_linear_cross_entropy(hidden, weight, ids, **options):
    """torch's own fused loss, where the installed torch has it; chunked by its options."""

    def call():
        chunked = torch.nn.LinearCrossEntropyOptions(**options)
        return -F.linear_cross_entropy(hidden, weight, ids, reduction="none", options=chunked)

    return call


def linear_peers(hidden, weight, ids, both):
    def liger_scaled(module):
        function = module.LigerFusedLinearScaledCrossEntropyFunction
        return both(lambda: function.apply(hidden, weight, ids, 1.0, -100, 1, True)[0])

    def verl_formula(module):
        """verl's 512-token chunks, as Liger carries them for chips without its CuTe kernel."""
        function = module._FusedLinearPPOFallbackFunction
        return both(lambda: function.apply(hidden, weight, ids, 1.0, -100, True)[0])

    def cce(module):
        kind = "cce" if hidden.is_cuda else "torch_compile"
        return both(
            lambda: -module.linear_cross_entropy(hidden, weight, ids, reduction="none", impl=kind)
        )

    name = "liger_kernel.ops.fused_linear_scaled_cross_entropy"
    return {
        "liger_scaled": optional(name, liger_scaled),
        "verl_512_token_chunks": optional(name, verl_formula),
        "cut_cross_entropy": optional("cut_cross_entropy", cce),
    }


# ------------------------------------------------------------------------------------------ GPU


@pytest.mark.gpu
def bench_gpu_row_forward(compare):
    """Bars as ratios to copying the logits, which moves twice the bytes that one read does."""
    from bench.measure import l2_flush

    n_tokens = 8192
    logits, ids = logits_and_ids(n_tokens, V, "cuda", torch.bfloat16)
    target = torch.empty_like(logits)
    size = logits.numel() * 2
    rows = ("ours", "eager", "compiled", "trl", "flash_attn", "liger_forward_only")
    options = compare.with_options(
        device="cuda", rounds=60, before=l2_flush(), memory=True, unit="B",
        items={"copy": 2 * size} | dict.fromkeys(rows, size),
    )  # fmt: skip
    compiled = torch.compile(eager_with_entropy, mode="max-autotune-no-cudagraphs", dynamic=False)

    def flash(module):
        return without_grad(lambda: module.cross_entropy_loss(logits, ids)[0])

    def liger(module):
        shifted = torch.cat([logits, logits[:1]])[None]
        return lambda: module.fused_selective_log_softmax(shifted, ids[None], 1.0, None)

    result = options(
        f"row forward with entropy T={n_tokens} V={V} bf16",
        without_grad(lambda: token_logprobs(logits, ids, return_entropy=True)),
        copy=without_grad(lambda: target.copy_(logits)),
        eager=without_grad(lambda: eager_with_entropy(logits, ids)),
        compiled=without_grad(lambda: compiled(logits, ids)),
        trl=without_grad(lambda: trl_selective_log_softmax(logits, ids)),
        flash_attn=optional("flash_attn.ops.triton.cross_entropy", flash),
        liger_forward_only=optional("liger_kernel.ops.grpo_loss", liger),
    )
    result.bar("copy", must=2 * 0.85, reach=2 * 0.95)
    result.bar("eager", must=8, reach=12)
    result.bar("compiled", must=1.0, reach=1.5)
    result.bar("flash_attn", must=0.95)


@pytest.mark.gpu
def bench_gpu_row_backward(compare):
    """One read and one write: the bytes of a copy."""
    from bench.measure import l2_flush

    n_tokens = 8192
    logits, ids = logits_and_ids(n_tokens, V, "cuda", torch.bfloat16)
    target, upstream = torch.empty_like(logits), upstream_of(n_tokens, "cuda")
    found = token_logprobs(logits, ids, return_entropy=True)[:2]
    result = compare.with_options(
        device="cuda", rounds=60, before=l2_flush(), memory=True, unit="B",
        items=4 * logits.numel(),
    )(
        f"row backward with entropy T={n_tokens} V={V} bf16",
        lambda: torch.autograd.grad(found, logits, upstream, retain_graph=True),
        copy=without_grad(lambda: target.copy_(logits)),
    )  # fmt: skip
    result.bar("copy", must=0.85, reach=0.95)


@pytest.mark.gpu
def bench_gpu_row_both(compare):
    n_tokens = 4096
    logits, ids = logits_and_ids(n_tokens, V, "cuda", torch.bfloat16)
    upstream = upstream_of(n_tokens, "cuda")
    compiled = torch.compile(eager_with_entropy, mode="max-autotune-no-cudagraphs", dynamic=False)

    def both(function):
        return with_backward(function, logits, upstream)

    result = compare.with_options(device="cuda", rounds=60, memory=True)(
        f"row forward+backward with entropy T={n_tokens} V={V} bf16",
        both(lambda: token_logprobs(logits, ids, return_entropy=True)[:2]),
        eager=both(lambda: eager_with_entropy(logits, ids)),
        compiled=both(lambda: compiled(logits, ids)),
    )
    result.bar("eager", must=4)
    result.bar("compiled", must=1.3)


@pytest.mark.gpu
@pytest.mark.parametrize("n_hidden", [2048, 3584])
def bench_gpu_linear_forward(compare, n_hidden):
    n_tokens = 8192
    hidden, weight, ids = hidden_weight_ids(n_tokens, n_hidden, V, "cuda", torch.bfloat16)
    out = torch.empty(n_tokens, V, device="cuda", dtype=torch.bfloat16)
    peers = linear_peers(hidden, weight, ids, lambda function: without_grad(function))
    result = compare.with_options(
        device="cuda", rounds=60, budget_s=60, memory=True, unit="FLOP",
        items=2 * n_tokens * n_hidden * V,
    )(
        f"linear forward with entropy T={n_tokens} H={n_hidden} V={V} bf16",
        without_grad(lambda: linear_token_logprobs(hidden, weight, ids, return_entropy=True)),
        matmul=without_grad(lambda: torch.mm(hidden, weight.T, out=out)),
        linear_cross_entropy=without_grad(torch_linear_cross_entropy(hidden, weight, ids)),
        **peers,
    )  # fmt: skip
    result.bar("matmul", must=0.75, reach=0.85)


@pytest.mark.gpu
@pytest.mark.parametrize("n_hidden", [2048, 3584])
def bench_gpu_linear_both(compare, n_hidden):
    """Four products: forward, its recomputation, and one for each gradient."""
    n_tokens = 8192
    hidden, weight, ids = hidden_weight_ids(n_tokens, n_hidden, V, "cuda", torch.bfloat16)
    upstream = upstream_of(n_tokens, "cuda")
    out = torch.empty(n_tokens, V, device="cuda", dtype=torch.bfloat16)

    def both(function):
        return with_backward(function, (hidden, weight), upstream)

    def four_products():
        with torch.no_grad():
            for _ in range(4):
                torch.mm(hidden, weight.T, out=out)

    def liger_flce(module):
        function = module.LigerFusedLinearCrossEntropyFunction
        arguments = (None, None, -100, 0.0, 0.0, "none")
        return both(lambda: function.apply(hidden, weight, ids, *arguments)[0])

    def cce_unfiltered(module):
        def call():
            return -module.linear_cross_entropy(
                hidden, weight, ids, reduction="none", filter_eps=None
            )

        return both(call)

    result = compare.with_options(
        device="cuda", rounds=60, budget_s=120, memory=True, unit="FLOP",
        items=8 * n_tokens * n_hidden * V,
    )(
        f"linear forward+backward T={n_tokens} H={n_hidden} V={V} bf16",
        both(lambda: linear_token_logprobs(hidden, weight, ids, return_entropy=True)[:2]),
        four_matmuls=four_products,
        linear_cross_entropy=both(torch_linear_cross_entropy(hidden, weight, ids)),
        linear_cross_entropy_1024=both(
            torch_linear_cross_entropy(
                hidden, weight, ids, batch_chunk_size=1024, acc_policy="accurate"
            )
        ),
        liger_flce=optional("liger_kernel.ops", liger_flce),
        cut_cross_entropy_unfiltered=optional("cut_cross_entropy", cce_unfiltered),
        **linear_peers(hidden, weight, ids, both),
    )  # fmt: skip
    result.bar("four_matmuls", must=0.70, reach=0.80)
    result.bar("verl_512_token_chunks", must=2.0)
    result.bar("liger_flce", must=3.0)
    result.bar("linear_cross_entropy", must=1.5)


@pytest.mark.gpu
def bench_gpu_policy_loss(compare):
    """Bound by launches: 32768 tokens are 0.8 MB."""
    shape = (32, 1024)
    logprobs = (-torch.rand(shape, device="cuda")).requires_grad_()
    old = logprobs.detach() + 0.1 * torch.randn(shape, device="cuda")
    advantages = torch.randn(32, 1, device="cuda")
    mask = torch.rand(shape, device="cuda") > 0.3
    arguments = (logprobs, old, advantages, mask)
    kl = dict(ref_logprobs=old, kl="k2", kl_coef=0.1)
    compiled = torch.compile(reference.policy_loss)
    upstream = [torch.ones((), device="cuda")]

    def both(function):
        return with_backward(function, logprobs, upstream)

    result = compare.with_options(device="cuda", rounds=60)(
        "policy loss, 32768 tokens, forward+backward",
        both(lambda: policy_loss(*arguments, **kl)[0]),
        eager=both(lambda: reference.policy_loss(*arguments, **kl)[0]),
        compiled=both(lambda: compiled(*arguments, **kl)[0]),
    )
    result.bar("eager", must=5, reach=10)
    result.bar("compiled", must=1.2)
