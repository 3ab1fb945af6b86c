"""`rlvr_kernels` beside eager torch and the libraries that solve the same problem.

On the CPU: the torch paths. On a GPU: the Triton kernels against the chip's own copy and matmul
rate, measured in the same rounds, with peak memory. T tokens, H hidden units, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from rlvr_kernels import (
    adamw_,
    add_rms_norm,
    linear_token_logprobs,
    policy_loss,
    reference,
    rotary_qkv,
    swiglu,
    token_logprobs,
)

from bench.peers import optional

V = 151936  # Qwen2.5


@dataclass(frozen=True)
class Scale:
    """Where the GPU benches run and how large; a test runs them small on the CPU."""

    device: Literal["cpu", "cuda"]
    dtype: torch.dtype
    n_vocab: int
    n_tokens: int
    length: int  # tokens of a sequence, where a peer wants a batch of them


GPU = Scale("cuda", torch.bfloat16, V, 8192, 1024)

# Peers warn, and so does what compiles them: as errors, warnings would fail their rows.
pytestmark = pytest.mark.filterwarnings("default")


def backward_of(outputs, inputs, upstream, **options):
    return torch.autograd.grad(outputs, inputs, upstream[: len(outputs)], **options)


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


def trl_formula(logits, ids):
    """TRL's for 16-bit logits [B, L, V]: a sequence at a time, log-probs in the logits' dtype."""
    rows = zip(logits, ids, strict=True)
    return torch.stack([F.log_softmax(row, -1).gather(-1, id[:, None])[:, 0] for row, id in rows])


def trl_rows(logits, ids, wrap):
    """TRL's own function where it is installed, and its formula in any case."""

    def batched(function):
        def call():
            view = logits.view(-1, GPU.length, logits.shape[-1])
            return function(view, ids.view(-1, GPU.length)).view(-1)

        return wrap(call)

    return {
        "trl": optional("trl.trainer.utils", lambda trl: batched(trl.selective_log_softmax)),
        "trl_formula": batched(trl_formula),
    }


def cross_entropy_rows(logits, ids, wrap, inplace=False):
    """Kernels of the row's cross-entropy, without entropy; every default that matters is passed."""

    def flash(module):
        options = dict(
            label_smoothing=0.0, logit_scale=1.0, lse_square_scale=0.0, ignore_index=-100,
            inplace_backward=inplace,
        )  # fmt: skip
        return wrap(lambda: -module.cross_entropy_loss(logits, ids, **options)[0])

    def quack(module):
        options = dict(ignore_index=-100, reduction="none", inplace_backward=inplace)
        return wrap(lambda: -module.cross_entropy(logits, ids, **options))

    return {
        "flash_attn": optional("flash_attn.ops.triton.cross_entropy", flash),
        "quack": optional("quack.cross_entropy", quack),
    }


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


@dataclass(frozen=True)
class Layer:
    """A layer of Qwen2.5-3B at a scale; each call returns the tuple of results that ours does."""

    inputs: tuple[torch.Tensor, ...]
    upstream: list[torch.Tensor]
    ours: Callable[[], tuple[torch.Tensor, ...]]
    peers: dict[str, Callable[[], tuple[torch.Tensor, ...]]]
    """In torch: the formula of transformers, and torch's own function if there is one."""
    liger: dict[str, tuple[str, Callable[[ModuleType], Callable]]]
    """The module of each of Liger's, and what makes the call of it."""
    forward_bytes: int
    """Least that has to be moved; backward, with a gradient of each result, likewise."""
    backward_bytes: int

    def liger_rows(self, wrap: Callable) -> dict:
        def row(module: str, build: Callable):
            return optional(module, lambda found: wrap(build(found)))

        return {name: row(*made) for name, made in self.liger.items()}


def random_layer_inputs(scale, *shapes):
    generator = torch.Generator(scale.device).manual_seed(3)
    options = dict(device=scale.device, generator=generator)
    return [torch.randn(shape, **options).to(scale.dtype).requires_grad_() for shape in shapes]


def norm_layer(scale, n_columns=2048, eps=1e-6) -> Layer:
    """The residual added, and the sum normalised."""
    shape = (scale.n_tokens, n_columns)
    x, residual, weight, *upstream = random_layer_inputs(
        scale, shape, shape, shape[1:], *2 * [shape]
    )

    def eager():
        total = x + residual
        wide = total.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        return total, weight * normed.to(total.dtype)

    def of_torch():
        total = x + residual
        return total, F.rms_norm(total, weight.shape, weight, eps)

    def liger_fused(module):
        # Returns the sum second.
        return lambda: module.LigerFusedAddRMSNormFunction.apply(x, residual, weight, eps)[::-1]

    def liger(module):
        def call():
            total = x + residual
            # Not in place: that would write over the upstream gradient.
            options = (0.0, "llama", False)
            return total, module.LigerRMSNormFunction.apply(total, weight, eps, *options)

        return call

    size = x.numel() * x.element_size()
    return Layer(
        (x, residual, weight), upstream,
        lambda: add_rms_norm(x, residual, weight, eps=eps), dict(eager=eager, rms_norm=of_torch),
        dict(
            liger_fused=("liger_kernel.ops.fused_add_rms_norm", liger_fused),
            liger=("liger_kernel.ops.rms_norm", liger),
        ),
        forward_bytes=4 * size, backward_bytes=4 * size,
    )  # fmt: skip


def swiglu_layer(scale, n_columns=11008) -> Layer:
    shape = (scale.n_tokens, n_columns)
    gate_up, *upstream = random_layer_inputs(scale, (scale.n_tokens, 2 * n_columns), shape)

    def eager():
        gate, up = gate_up.chunk(2, -1)
        return (F.silu(gate) * up,)

    def liger(module):
        return lambda: (module.LigerFusedGateUpSiLUMulFunction.apply(gate_up),)

    def liger_apart(module):
        """Of two tensors, which it writes the gradient over: here copies of the halves."""
        return lambda: (module.LigerSiLUMulFunction.apply(*gate_up.chunk(2, -1)),)

    size = gate_up.numel() * gate_up.element_size() // 2
    return Layer(
        (gate_up,), upstream,
        lambda: (swiglu(gate_up),), dict(eager=eager),
        dict(
            liger=("liger_kernel.ops.swiglu", liger),
            liger_apart=("liger_kernel.ops.swiglu", liger_apart),
        ),
        forward_bytes=3 * size, backward_bytes=5 * size,
    )  # fmt: skip


def rotary_layer(scale, heads=16, kv_heads=2, size=128) -> Layer:
    """Queries and keys rotated, values copied: what attention reads, as tensors of their own."""
    n_tokens, counts = scale.n_tokens, (heads, kv_heads, kv_heads)
    shapes = [(n_tokens, count, size) for count in counts]
    qkv, *upstream = random_layer_inputs(scale, (n_tokens, sum(counts) * size), *shapes)
    angles = torch.rand(n_tokens, size // 2, device=scale.device).repeat(1, 2)
    cos, sin = angles.cos().to(scale.dtype), angles.sin().to(scale.dtype)

    def parts():
        return qkv.view(n_tokens, sum(counts), size).split(counts, 1)

    def turned(x):
        first, second = x.chunk(2, -1)
        return x * cos[:, None] + torch.cat([-second, first], -1) * sin[:, None]

    def eager():
        q, k, v = parts()
        return turned(q), turned(k), v.contiguous()

    def liger(module):
        def call():
            q, k, v = parts()
            heads_first = (q.transpose(0, 1)[None], k.transpose(0, 1)[None])
            q, k = module.LigerRopeFunction.apply(*heads_first, cos[None], sin[None])
            return q[0].transpose(0, 1), k[0].transpose(0, 1), v.contiguous()

        return call

    moved = 2 * qkv.numel() * qkv.element_size()
    return Layer(
        (qkv,), upstream,
        lambda: rotary_qkv(qkv, cos, sin, heads=heads, kv_heads=kv_heads), dict(eager=eager),
        dict(liger=("liger_kernel.ops.rope", liger)),
        forward_bytes=moved, backward_bytes=moved,
    )  # fmt: skip


LAYERS = {"norm": norm_layer, "swiglu": swiglu_layer, "rotary": rotary_layer}


def copy_of(n_bytes, device):
    """Moves that many bytes: half of them read, half written."""
    source = torch.zeros(n_bytes // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return without_grad(lambda: target.copy_(source))


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


@pytest.mark.parametrize("name", LAYERS)
def bench_cpu_layers(compare, name):
    """At the width of a model that a CPU trains; no bars: torch's own operators are good there."""
    scale = Scale("cpu", torch.float32, 128, 2048, 128)
    sizes = {"norm": (256,), "swiglu": (512,), "rotary": (4, 2, 64)}[name]
    layer = LAYERS[name](scale, *sizes)

    def both(function):
        return with_backward(function, layer.inputs, layer.upstream)

    compare.with_options(items=scale.n_tokens, unit="token", rounds=15, warmup=2)(
        f"layer {name} T={scale.n_tokens}, {sizes}, forward+backward",
        both(layer.ours),
        **{peer: both(call) for peer, call in layer.peers.items()},
    )


def torch_linear_cross_entropy(hidden, weight, ids, **options):
    """torch's own fused loss, where the installed torch has it; chunked by its options."""

    def call():
        chunked = torch.nn.LinearCrossEntropyOptions(**options)
        return -F.linear_cross_entropy(hidden, weight, ids, reduction="none", options=chunked)

    return call


def linear_peers(hidden, weight, ids, both):
    def liger_scaled(module):
        function = module.LigerFusedLinearScaledCrossEntropyFunction
        return both(lambda: -function.apply(hidden, weight, ids, 1.0, -100, 1, True)[0])

    def verl_formula(module):
        """verl's 512-token chunks, as Liger carries them for chips without its CuTe kernel."""
        function = module._FusedLinearPPOFallbackFunction
        return both(lambda: -function.apply(hidden, weight, ids, 1.0, -100, True)[0])

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


def adamw_call(n_weights, device):
    """An update that takes a backend and returns the weights; a rate of 0 leaves them as they are.

    The work is that of any other rate.
    """
    generator = torch.Generator(device).manual_seed(0)
    weight, grad, exp_avg = (
        torch.randn(n_weights, device=device, generator=generator).bfloat16() for _ in range(3)
    )
    exp_avg_sq, scale = torch.ones_like(weight), torch.ones((), device=device)
    low = torch.zeros_like(weight, dtype=torch.uint8)

    def call(backend):
        adamw_(
            weight, grad, exp_avg, exp_avg_sq, grad_low=low, scale=scale, lr=0.0, beta1=0.9,
            beta2=0.999, eps=1e-8, weight_decay=0.0, step=2, key=1, backend=backend,
        )  # fmt: skip
        return weight

    return call


def bench_cpu_adamw(compare):
    """Beside torch's own in bf16, which rounds to nearest and so loses small updates."""
    n_weights = 2**20
    weight = torch.randn(n_weights).bfloat16().requires_grad_()
    weight.grad = torch.randn(n_weights).bfloat16()
    optimizer = torch.optim.AdamW([weight], lr=0.0, fused=True)
    compare.with_options(items=n_weights, unit="weight", rounds=9, warmup=2)(
        f"stochastic AdamW of {n_weights} weights",
        partial(adamw_call(n_weights, "cpu"), "auto"),
        rounded_to_nearest=optimizer.step,
    )


# ------------------------------------------------------------------------------------------ GPU


def compiled_with_entropy():
    return torch.compile(eager_with_entropy, mode="max-autotune-no-cudagraphs", dynamic=False)


@pytest.mark.gpu
def bench_gpu_row_forward(compare):
    """Bars as ratios to copying the logits, which moves twice the bytes that one read does."""
    from bench.measure import l2_flush

    logits, ids = logits_and_ids(GPU.n_tokens, GPU.n_vocab, GPU.device, GPU.dtype)
    target = torch.empty_like(logits)
    size = logits.numel() * logits.element_size()
    compiled = compiled_with_entropy()

    def liger(module):
        # One more position than ids, as a model gives them; it is not read.
        shifted = torch.cat([logits.detach(), logits.detach()[:1]])[None]
        return lambda: module.fused_selective_log_softmax(shifted, ids[None], 1.0, None)

    peers = dict(
        eager=without_grad(lambda: eager_with_entropy(logits, ids)),
        compiled=without_grad(lambda: compiled(logits, ids)),
        **trl_rows(logits, ids, without_grad),
        **cross_entropy_rows(logits, ids, without_grad),
        liger_forward_only=optional("liger_kernel.ops.grpo_loss", liger),
    )
    result = compare.with_options(
        device="cuda", rounds=60, before=l2_flush(), memory=True, unit="B",
        items={"copy": 2 * size} | dict.fromkeys(["ours", *peers], size),
    )(
        f"row forward with entropy T={GPU.n_tokens} V={GPU.n_vocab} bf16",
        without_grad(lambda: token_logprobs(logits, ids, return_entropy=True)),
        copy=without_grad(lambda: target.copy_(logits)),
        **peers,
    )  # fmt: skip
    result.bar("copy", must=2 * 0.85, reach=2 * 0.95)
    result.bar("eager", must=8, reach=12)
    result.bar("compiled", must=1.0, reach=1.5)
    result.bar("flash_attn", must=0.95)


@pytest.mark.gpu
def bench_gpu_row_backward(compare):
    """One read and one write: the bytes of a copy."""
    from bench.measure import l2_flush

    logits, ids = logits_and_ids(GPU.n_tokens, GPU.n_vocab, GPU.device, GPU.dtype)
    target, upstream = torch.empty_like(logits), upstream_of(GPU.n_tokens, GPU.device)
    found = token_logprobs(logits, ids, return_entropy=True)[:2]
    result = compare.with_options(
        device="cuda", rounds=60, before=l2_flush(), memory=True, unit="B",
        items=2 * logits.numel() * logits.element_size(),
    )(
        f"row backward with entropy T={GPU.n_tokens} V={GPU.n_vocab} bf16",
        lambda: backward_of(found, logits, upstream, retain_graph=True),
        copy=without_grad(lambda: target.copy_(logits)),
    )  # fmt: skip
    result.bar("copy", must=0.85, reach=0.95)


@pytest.mark.gpu
def bench_gpu_row_both(compare):
    n_tokens = GPU.n_tokens // 2
    logits, ids = logits_and_ids(n_tokens, GPU.n_vocab, GPU.device, GPU.dtype)
    upstream = upstream_of(n_tokens, GPU.device)
    compiled = compiled_with_entropy()

    def both(function):
        return with_backward(function, logits, upstream)

    options = compare.with_options(device="cuda", rounds=60, memory=True)
    result = options(
        f"row forward+backward with entropy T={n_tokens} V={GPU.n_vocab} bf16",
        both(lambda: token_logprobs(logits, ids, return_entropy=True)[:2]),
        eager=both(lambda: eager_with_entropy(logits, ids)),
        compiled=both(lambda: compiled(logits, ids)),
    )
    result.bar("eager", must=4)
    result.bar("compiled", must=1.3)
    options(
        f"row forward+backward without entropy T={n_tokens} V={GPU.n_vocab} bf16",
        both(lambda: token_logprobs(logits, ids).logprobs),
        eager=both(lambda: eager_logprobs(logits, ids)),
        **trl_rows(logits, ids, both),
        **cross_entropy_rows(logits, ids, both),
    )


@pytest.mark.gpu
def bench_gpu_row_in_place(compare):
    """Gradient over the logits, which are restored before every call: no tensor of their size."""
    n_tokens = GPU.n_tokens // 2
    logits, ids = logits_and_ids(n_tokens, GPU.n_vocab, GPU.device, GPU.dtype)
    kept, upstream = logits.detach().clone(), upstream_of(n_tokens, GPU.device)

    def both(function):
        return with_backward(function, logits, upstream)

    def liger(module):
        # weight, ignore_index, lse_square_scale, label_smoothing, reduction, softcap
        arguments = (None, -100, 0.0, 0.0, "none", None)
        function = module.LigerCrossEntropyFunction
        return both(lambda: -function.apply(logits, ids, *arguments)[0])

    compare.with_options(
        device="cuda", rounds=60, memory=True, before=without_grad(lambda: logits.copy_(kept))
    )(
        f"row forward+backward in place T={n_tokens} V={GPU.n_vocab} bf16",
        both(lambda: token_logprobs(logits, ids, inplace_grad=True).logprobs),
        liger=optional("liger_kernel.ops.cross_entropy", liger),
        **cross_entropy_rows(logits, ids, both, inplace=True),
    )


@pytest.mark.gpu
def bench_gpu_row_and_loss(compare):
    """From the logits of a batch to the gradient of the clipped loss with a k3 penalty."""
    shape = (GPU.n_tokens // GPU.length, GPU.length)
    batch = (shape[0], GPU.length + 1, GPU.n_vocab)
    rows, _ = logits_and_ids(batch[0] * batch[1], GPU.n_vocab, GPU.device, GPU.dtype)
    logits = rows.detach().view(batch).requires_grad_()
    generator = torch.Generator(GPU.device).manual_seed(2)
    random = dict(device=GPU.device, generator=generator)
    ids = torch.randint(0, GPU.n_vocab, shape, **random)
    mask = torch.rand(shape, **random) > 0.3
    advantages = torch.randn(shape[0], **random)
    # The last position predicts nothing. Masked, it costs less than a slice, whose gradient
    # autograd pads with zeros to a second tensor of the logits' size.
    padded = F.pad(ids, (0, 1), value=-100)
    padded_mask = F.pad(mask, (0, 1))
    with torch.no_grad():
        now = token_logprobs(logits, padded).logprobs[:, :-1]
        old = now + 0.2 * torch.randn(shape, **random)
        ref = now + 0.2 * torch.randn(shape, **random)
    inputs = (old, advantages[:, None], mask)
    options = dict(clip_low=0.2, clip_high=0.28, ref_logprobs=ref, kl="k3", kl_coef=0.04)

    def ours():
        found = token_logprobs(logits, padded, mask=padded_mask).logprobs[:, :-1]
        return policy_loss(found, *inputs, **options)[0]

    def eager():
        logp = torch.log_softmax(logits[:, :-1].float(), -1)
        chosen = logp.gather(-1, ids[..., None])[..., 0]
        return reference.policy_loss(chosen, *inputs, **options)[0]

    def liger(module):
        int_mask = mask.int()

        def call():
            return module.triton_grpo_loss(
                logits, old, ref, ids, advantages, int_mask, temperature=1.0, beta=0.04,
                eps_low=0.2, eps_high=0.28, inplace=False, loss_type="dapo",
                max_completion_length=None, importance_sampling_level="token", reduce=True,
                sapo_temperature_pos=1.0, sapo_temperature_neg=1.05, vllm_is_ratio=None,
                delta=None, use_bias_correction_kl=False, num_items_in_batch=None,
            )[0]  # fmt: skip

        return both(call)

    def both(function):
        return with_backward(function, logits, [torch.ones((), device=GPU.device)])

    compare.with_options(device="cuda", rounds=60, memory=True)(
        f"row and policy loss forward+backward T={GPU.n_tokens} V={GPU.n_vocab} bf16",
        both(ours),
        eager=both(eager),
        liger_grpo=optional("liger_kernel.transformers.grpo_loss", liger),
    )


@pytest.mark.gpu
@pytest.mark.parametrize("n_hidden", [2048, 3584])
def bench_gpu_linear_forward(compare, n_hidden):
    hidden, weight, ids = hidden_weight_ids(
        GPU.n_tokens, n_hidden, GPU.n_vocab, GPU.device, GPU.dtype
    )
    out = torch.empty(GPU.n_tokens, GPU.n_vocab, device=GPU.device, dtype=GPU.dtype)
    peers = linear_peers(hidden, weight, ids, without_grad)
    result = compare.with_options(
        device="cuda", rounds=60, budget_s=60, memory=True, unit="FLOP",
        items=2 * GPU.n_tokens * n_hidden * GPU.n_vocab,
    )(
        f"linear forward with entropy T={GPU.n_tokens} H={n_hidden} V={GPU.n_vocab} bf16",
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
    hidden, weight, ids = hidden_weight_ids(
        GPU.n_tokens, n_hidden, GPU.n_vocab, GPU.device, GPU.dtype
    )
    upstream = upstream_of(GPU.n_tokens, GPU.device)
    out = torch.empty(GPU.n_tokens, GPU.n_vocab, device=GPU.device, dtype=GPU.dtype)

    def both(function):
        return with_backward(function, (hidden, weight), upstream)

    def four_products():
        with torch.no_grad():
            for _ in range(4):
                torch.mm(hidden, weight.T, out=out)

    def liger_flce(chunk_mem_const):
        def build(module):
            function = module.LigerFusedLinearCrossEntropyFunction
            # bias, ce_weight, ignore_index, lse_square_scale, label_smoothing, reduction, softcap,
            # return_z_loss, accum_dtype, use_token_scaling, return_token_accuracy,
            # return_predicted_tokens, ce_impl, ce_mode. A chunk holds about chunk_mem_const x T x H
            # logits: with its default of 1 a few tokens of a large vocabulary.
            arguments = (None, None, -100, 0.0, 0.0, "none", None, False, None, False, False)
            arguments += (False, None, None, chunk_mem_const)
            return both(lambda: -function.apply(hidden, weight, ids, *arguments)[0])

        return optional("liger_kernel.ops.fused_linear_cross_entropy", build)

    def quack_summed(module):
        function = module.chunked_linear_cross_entropy
        return both(lambda: -function(hidden, weight, ids, reduction="sum").expand(ids.shape))

    def cce_unfiltered(module):
        def call():
            return -module.linear_cross_entropy(
                hidden, weight, ids, reduction="none", filter_eps=None
            )

        return both(call)

    result = compare.with_options(
        device="cuda", rounds=60, budget_s=120, memory=True, unit="FLOP",
        items=8 * GPU.n_tokens * n_hidden * GPU.n_vocab,
    )(
        f"linear forward+backward T={GPU.n_tokens} H={n_hidden} V={GPU.n_vocab} bf16",
        both(lambda: linear_token_logprobs(hidden, weight, ids, return_entropy=True)[:2]),
        four_matmuls=four_products,
        linear_cross_entropy=both(torch_linear_cross_entropy(hidden, weight, ids)),
        linear_cross_entropy_1024=both(
            torch_linear_cross_entropy(
                hidden, weight, ids, batch_chunk_size=1024, acc_policy="accurate"
            )
        ),
        liger_flce=liger_flce(1),
        liger_flce_larger_chunks=liger_flce(16),
        quack_summed=optional("quack.linear_cross_entropy", quack_summed),
        cut_cross_entropy_unfiltered=optional("cut_cross_entropy", cce_unfiltered),
        **linear_peers(hidden, weight, ids, both),
    )  # fmt: skip
    result.bar("four_matmuls", must=0.70, reach=0.80)
    result.bar("verl_512_token_chunks", must=2.0)
    result.bar("liger_flce", must=3.0)
    result.bar("linear_cross_entropy", must=1.5)


@pytest.mark.gpu
def bench_gpu_adamw(compare):
    """Three bf16 tensors are read and written and 24 bits of gradient read: 15 bytes a weight."""
    from bench.measure import l2_flush

    n_weights = 2**15 * GPU.n_tokens
    call = adamw_call(n_weights, GPU.device)
    source = torch.empty(15 * n_weights // 2, dtype=torch.uint8, device=GPU.device)
    target = torch.empty_like(source)
    result = compare.with_options(
        device="cuda", rounds=60, before=l2_flush(), memory=True, unit="B", items=15 * n_weights
    )(
        f"stochastic AdamW of {n_weights} weights",
        partial(call, "auto"),
        copy=without_grad(lambda: target.copy_(source)),
        chunked_torch=partial(call, "torch"),
    )
    result.bar("copy", must=0.85, reach=0.95)
    result.bar("chunked_torch", must=8)


@pytest.mark.gpu
def bench_gpu_policy_loss(compare):
    """Bound by launches: 32768 tokens are 0.8 MB."""
    shape = (32, GPU.length)
    logprobs = (-torch.rand(shape, device=GPU.device)).requires_grad_()
    old = logprobs.detach() + 0.1 * torch.randn(shape, device=GPU.device)
    advantages = torch.randn(32, 1, device=GPU.device)
    mask = torch.rand(shape, device=GPU.device) > 0.3
    arguments = (logprobs, old, advantages, mask)
    kl = dict(ref_logprobs=old, kl="k2", kl_coef=0.1)
    compiled = torch.compile(reference.policy_loss)
    upstream = [torch.ones((), device=GPU.device)]

    def both(function):
        return with_backward(function, logprobs, upstream)

    result = compare.with_options(device="cuda", rounds=60)(
        f"policy loss, {32 * GPU.length} tokens, forward+backward",
        both(lambda: policy_loss(*arguments, **kl)[0]),
        eager=both(lambda: reference.policy_loss(*arguments, **kl)[0]),
        compiled=both(lambda: compiled(*arguments, **kl)[0]),
    )
    result.bar("eager", must=5, reach=10)
    result.bar("compiled", must=1.2)


@pytest.mark.gpu
@pytest.mark.parametrize("name", LAYERS)
def bench_gpu_layers(compare, name):
    """Each direction against a copy of as many bytes, both against the other libraries."""
    from bench.measure import l2_flush

    layer = LAYERS[name](GPU)
    found = layer.ours()
    label = f"layer {name} T={GPU.n_tokens} bf16"

    def both(function):
        return with_backward(function, layer.inputs, layer.upstream)

    for direction, ours, moved in (
        ("forward", without_grad(layer.ours), layer.forward_bytes),
        (
            "backward",
            lambda: backward_of(found, layer.inputs, layer.upstream, retain_graph=True),
            layer.backward_bytes,
        ),
    ):
        result = compare.with_options(
            device="cuda", rounds=60, before=l2_flush(), memory=True, unit="B", items=moved
        )(f"{label} {direction}", ours, copy=copy_of(moved, GPU.device))
        result.bar("copy", must=0.80, reach=0.90)
    result = compare.with_options(device="cuda", rounds=60, before=l2_flush(), memory=True)(
        f"{label} forward+backward",
        both(layer.ours),
        **{peer: both(call) for peer, call in layer.peers.items()},
        **layer.liger_rows(both),
    )
    result.bar("eager", must=2)
