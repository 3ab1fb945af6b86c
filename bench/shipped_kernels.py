"""The shipped kernels as lists of `aot.Shipped`: what the launchers compile, for every chip."""

from collections.abc import Iterator, Mapping
from itertools import product

from rlvr_kernels import adamw_triton as adamw
from rlvr_kernels import linear_logprob_triton as linear
from rlvr_kernels import logprob_triton as row
from rlvr_kernels import loss_triton as loss
from rlvr_kernels import norm_triton as norm
from rlvr_kernels import pages_triton as pages
from rlvr_kernels import rotary_triton as rotary
from rlvr_kernels import sample_triton as sampling
from rlvr_kernels import swiglu_triton as gated
from rlvr_kernels.configs import (
    ADAMW,
    LINEAR_DLOGITS,
    LINEAR_FORWARD,
    LINEAR_WITH_EPILOGUE,
    LOSS,
    PAGES,
    ROW_BACKWARD,
    ROW_FORWARD,
    SAMPLE,
    SQUARE_SUM,
    SWIGLU,
    TileConfig,
    generation,
)

from bench.aot import CHIPS, Shipped

# Names in Triton's signatures, with the bytes of an element.
DTYPES = {"bf16": 2, "fp16": 2, "fp32": 4}


def shipped_kernels() -> Iterator[Shipped]:
    """Every kernel, for every chip and dtype that it ships for, with the options of a real call."""
    yield from row_kernels()
    yield from linear_kernels()
    yield from loss_kernels()
    yield from sample_kernels()
    yield from adamw_kernels()
    for capability in CHIPS:
        for dtype in DTYPES:
            yield from norm_kernels(capability, dtype)
            yield from swiglu_kernels(capability, dtype)
            yield from rotary_kernels(capability, dtype)
            yield page_kernel(capability, dtype)


def row_kernels() -> Iterator[Shipped]:
    for capability in CHIPS:
        for dtype in DTYPES:
            for with_entropy, is_odd in ((False, False), (True, False), (True, True)):
                yield from _row_pair(capability, dtype, with_entropy, is_odd)


def _row_pair(capability: int, dtype: str, with_entropy: bool, is_odd: bool) -> Iterator[Shipped]:
    """Forward and backward; `is_odd`: a vocabulary, and so a stride, that 16 does not divide."""
    aligned = "" if is_odd else " 16"
    strides = {"n_vocab": f"i32{aligned}", "inner": "i32"}
    strides |= dict.fromkeys(["outer_stride", "inner_stride"], f"i64{aligned}")
    to_strides = dict.fromkeys(["d_outer_stride", "d_inner_stride"], f"i64{aligned}")
    data = {"logits_ptr": f"*{dtype}", "ids_ptr": "*i64", "valid_ptr": "*i1"}
    label = ", ".join(["entropy"] * with_entropy + ["odd V"] * is_odd)
    yield Shipped(
        name="row_logprob_fwd",
        label=label,
        kernel=row.row_logprob_fwd_kernel,
        capability=capability,
        dtype=dtype,
        arguments=data
        | dict.fromkeys(["logprobs_ptr", "entropy_ptr", "lse_ptr"], "*fp32")
        | strides
        | {"scale": "fp32"},
        constants=dict(
            WITH_ENTROPY=with_entropy,
            ALIGNED=not is_odd,
            BLOCK=ROW_FORWARD.block,
            LANE=16 // DTYPES[dtype],
            STAGES=ROW_FORWARD.num_stages,
        ),
        num_warps=ROW_FORWARD.num_warps,
        num_stages=3,
        elements=ROW_FORWARD.block,
        needs_wide_loads=not is_odd,
    )
    saved = ["logprobs_ptr", "entropy_ptr", "lse_ptr", "g_logprobs_ptr"]
    absent = {"g_lse_ptr": None}
    if with_entropy:
        saved.append("g_entropy_ptr")
    else:
        absent["g_entropy_ptr"] = None
    yield Shipped(
        name="row_logprob_bwd",
        label=label,
        kernel=row.row_logprob_bwd_kernel,
        capability=capability,
        dtype=dtype,
        arguments=data
        | dict.fromkeys(saved, "*fp32")
        | {"dlogits_ptr": f"*{dtype}"}
        | strides
        | {"d_inner": "i32"}
        | to_strides
        | {"scale": "fp32", "inv_temperature": "fp32"},
        constants=absent
        | dict(
            HAS_LOGPROBS=True,
            HAS_ENTROPY=with_entropy,
            HAS_LSE=False,
            BLOCK=ROW_BACKWARD.block,
        ),
        num_warps=ROW_BACKWARD.num_warps,
        num_stages=3,
        needs_wide_loads=not is_odd,
    )


# What a call may ask of the tile kernels beside the plain case, and the dtypes it is checked for.
_VARIANTS = {
    "": dict(),
    "H not a multiple": dict(EVEN_K=False),
    "bias, softcap": dict(HAS_BIAS=True, HAS_CAP=True, EVEN_K=False),
    "odd V": dict(),
    "tf32": dict(PRECISION="tf32"),
}
_VARIANTS_OF = {
    "bf16": ["", "H not a multiple", "bias, softcap", "odd V"],
    "fp16": ["", "bias, softcap", "odd V"],
    "fp32": ["", "tf32", "odd V"],
}


def linear_kernels() -> Iterator[Shipped]:
    forward = linear.linear_logprob_fwd_kernel, LINEAR_FORWARD, dict(WITH_ENTROPY=True)
    dlogits = linear.linear_dlogits_kernel, LINEAR_DLOGITS, dict(GROUP_M=linear.GROUP_M)
    for capability in CHIPS:
        for dtype, variants in _VARIANTS_OF.items():
            for variant in variants:
                yield _tile_kernel("linear_logprob_fwd", *forward, capability, dtype, variant)
                yield _tile_kernel("linear_dlogits", *dlogits, capability, dtype, variant)
        yield Shipped(
            name="merge_splits",
            kernel=linear.merge_splits_kernel,
            capability=capability,
            dtype="fp32",
            arguments={
                "partials_ptr": "*fp32",
                "ids_ptr": "*i64",
                "result_ptr": "*fp32",
                "n_rows": "i32",
                "n_vocab": "i32",
                "n_splits": "i32",
            },
            constants=dict(FINISH=True, BLOCK=linear.MERGE_BLOCK),
            num_warps=4,
            num_stages=3,
            needs_wide_loads=False,  # one number a thread
        )


def _tile_kernel(
    name: str,
    kernel: object,
    table: dict[tuple[int, int], TileConfig],
    own: Mapping[str, object],
    capability: int,
    dtype: str,
    variant: str,
) -> Shipped:
    usual = dict(HAS_BIAS=False, HAS_CAP=False, EVEN_K=True, UPCAST=False, PRECISION="ieee")
    constants: dict[str, object] = {**own, **usual, **_VARIANTS[variant]}
    if not constants["HAS_BIAS"]:
        constants["bias_ptr"] = None
    slab = "fp32" if dtype == "fp16" else dtype
    if constants["HAS_BIAS"] or (name == "linear_dlogits" and slab != dtype):
        table = LINEAR_WITH_EPILOGUE
    tiles = generation(capability // 10, CHIPS[capability]["shared_block"])
    tile = table[tiles, DTYPES[dtype]]
    vocabulary = "i32" if variant == "odd V" else "i32 16"
    return Shipped(
        name=name,
        label=f"{tile.block_m}x{tile.block_n}x{tile.block_k} {variant}".strip(),
        kernel=kernel,
        capability=capability,
        dtype=dtype,
        arguments=dict.fromkeys(["hidden_ptr", "weight_ptr", "bias_ptr"], f"*{dtype}")
        | dict.fromkeys(["partials_ptr", "coefficients_ptr"], "*fp32")
        | dict.fromkeys(["n_vocab", "n_columns"], vocabulary)
        | dict.fromkeys(["n_hidden", "split_size"], "i32 16")
        | dict.fromkeys(["stride_hidden", "stride_weight", "stride_dlogits"], "i32 16")
        | dict.fromkeys(["scale", "inv_temperature", "cap"], "fp32")
        | {"ids_ptr": "*i64", "n_rows": "i32", "first_column": "i32 16"}
        | {"dlogits_ptr": f"*{slab}"},
        constants=constants
        | dict(BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        # A float32 product that may not round to TF32 runs outside the tensor cores.
        needs_tensor_cores=dtype != "fp32" or variant == "tf32",
    )


def loss_kernels() -> Iterator[Shipped]:
    pointers = [
        *("logprobs_ptr", "old_ptr", "advantages_ptr", "ref_ptr", "rollout_ptr", "entropy_ptr"),
        *("group_mean_ptr", "group_std_ptr", "group_count_ptr"),
        *("d_logprobs_ptr", "d_entropy_ptr", "records_ptr", "denom_ptr"),
        *("loss_ptr", "scale_ptr", "metrics_ptr", "upstream_ptr"),
        *("logprobs_grad_ptr", "entropy_grad_ptr"),
    ]
    sizes = ["n_tokens", "row_size", "advantage_span", "group_span", "n_groups", "n_records"]
    numbers = [
        *("clip_low", "clip_high", "dual_clip", "kl_coef", "tis_cap", "entropy_coef"),
        *("limit", "group_eps", "denom"),
    ]
    arguments = (
        dict.fromkeys(pointers, "*fp32")
        | dict.fromkeys(sizes, "i32")
        | dict.fromkeys(numbers, "fp32")
        | {"mask_ptr": "*i1", "group_ids_ptr": "*i64", "n_tokens": "i32 16"}
    )
    every = dict.fromkeys(
        ["HAS_REF", "HAS_ROLLOUT", "HAS_TIS", "HAS_ENTROPY", "HAS_DUAL", "HAS_GROUPS"], True
    )
    for capability in CHIPS:
        for name, kernel, constants, label in (
            ("policy_loss", loss.policy_loss_kernel, every | dict(KL=2, SEQ_MEAN=False), "token"),
            ("policy_loss", loss.policy_loss_kernel, every | dict(KL=3, SEQ_MEAN=True), "seq-mean"),
            (
                "policy_reduce",
                loss.policy_reduce_kernel,
                dict(DENOM=loss.DENOM_TENSOR.value, SEQ_MEAN=False),
                "",
            ),
            ("policy_scale", loss.scale_kernel, dict(HAS_ENTROPY=True), ""),
        ):
            block = loss.REDUCE_BLOCK if name == "policy_reduce" else LOSS.block
            yield Shipped(
                name=name,
                label=label,
                kernel=kernel,
                capability=capability,
                dtype="fp32",
                arguments=arguments,
                constants=constants | {"BLOCK": block},
                num_warps=LOSS.num_warps,
                num_stages=3,
                # Loads per sequence start anywhere, and the kernel is bound by its launch.
                needs_wide_loads=False,
            )


def sample_kernels() -> Iterator[Shipped]:
    for capability in CHIPS:
        for dtype, is_odd in product(DTYPES, (False, True)):
            aligned = "" if is_odd else " 16"
            yield Shipped(
                name="sample",
                label="odd V" if is_odd else "",
                kernel=sampling.sample_kernel,
                capability=capability,
                dtype=dtype,
                arguments={
                    "logits_ptr": f"*{dtype}",
                    "keys_ptr": "*i64",
                    "positions_ptr": "*i64",
                    "temperature_ptr": "*fp32",
                    "ids_ptr": "*i64",
                    "logprobs_ptr": "*fp32",
                    "n_vocab": f"i32{aligned}",
                    "stride": f"i32{aligned}",
                },
                constants=dict(
                    BLOCK=SAMPLE.block, LANE=16 // DTYPES[dtype], STAGES=SAMPLE.num_stages
                ),
                num_warps=SAMPLE.num_warps,
                num_stages=3,
                needs_wide_loads=not is_odd,
            )


def adamw_kernels() -> Iterator[Shipped]:
    of_bf16 = ["weight_ptr", "exp_avg_ptr", "exp_avg_sq_ptr", "grad_ptr", "total_ptr"]
    numbers = ["fresh1", "beta2", "fresh2", "correction", "eps", "rate", "decay"]
    without, with_low = {"low_ptr": None, "HAS_LOW": False}, {"HAS_LOW": True}
    kernels = (
        ("adamw", "", adamw.adamw_kernel, ADAMW, without),
        ("adamw", "24 bits", adamw.adamw_kernel, ADAMW, with_low),
        ("accumulate", "24 bits", adamw.accumulate_kernel, ADAMW, {}),
        ("square_sum", "", adamw.square_sum_kernel, SQUARE_SUM, without),
        ("square_sum", "24 bits", adamw.square_sum_kernel, SQUARE_SUM, with_low),
    )
    for capability in CHIPS:
        for (name, label, kernel, config, constants), is_odd in product(kernels, (False, True)):
            yield Shipped(
                name=name,
                label=", ".join(filter(None, [label, "odd size" * is_odd])),
                kernel=kernel,
                capability=capability,
                dtype="bf16",
                arguments=dict.fromkeys(of_bf16, "*bf16")
                | dict.fromkeys(["scale_ptr", "sums_ptr"], "*fp32")
                | dict.fromkeys(numbers, "fp32")
                | {"low_ptr": "*u8", "key": "i64", "first": "i64"}
                | {"n_elements": "i32" if is_odd else "i32 16"},
                constants=constants | {"BLOCK": config.block},
                num_warps=config.num_warps,
                num_stages=3,
                needs_wide_loads=not is_odd,
            )


def norm_kernels(capability: int, dtype: str) -> Iterator[Shipped]:
    """Forward and backward with all that is optional, for a usual row and the longest."""
    for n_columns in (2048, 8192):
        block, num_warps = norm.block_of(n_columns)
        common = dict(
            label=f"D {n_columns}",
            capability=capability,
            dtype=dtype,
            num_warps=num_warps,
            num_stages=3,
        )
        sizes = dict.fromkeys(["n_columns", "x_stride"], "i32 16") | {"eps": "fp32"}
        pointers = ["x_ptr", "residual_ptr", "weight_ptr", "sum_ptr", "normed_ptr"]
        yield Shipped(
            name="rms_norm_fwd",
            kernel=norm.rms_norm_fwd_kernel,
            arguments=dict.fromkeys(pointers, f"*{dtype}") | sizes | {"residual_stride": "i32 16"},
            constants=dict(HAS_RESIDUAL=True, BLOCK=block),
            **common,
        )
        pointers = ["x_ptr", "weight_ptr", "g_normed_ptr", "g_sum_ptr", "dx_ptr"]
        yield Shipped(
            name="rms_norm_bwd",
            kernel=norm.rms_norm_bwd_kernel,
            arguments=dict.fromkeys(pointers, f"*{dtype}")
            | sizes
            | dict.fromkeys(["g_normed_stride", "g_sum_stride"], "i32 16")
            | {"partials_ptr": "*fp32", "n_rows": "i32"},
            constants=dict(HAS_SUM=True, NEEDS_WEIGHT=True, BLOCK=block),
            **common,
        )


def swiglu_kernels(capability: int, dtype: str) -> Iterator[Shipped]:
    common = dict(
        capability=capability,
        dtype=dtype,
        constants=dict(BLOCK=SWIGLU.block),
        num_warps=SWIGLU.num_warps,
        num_stages=3,
    )
    sizes = dict.fromkeys(["n_columns", "stride", "grad_stride"], "i32 16")
    for name, kernel, pointers in (
        ("swiglu_fwd", gated.swiglu_fwd_kernel, ["gate_up_ptr", "out_ptr"]),
        ("swiglu_bwd", gated.swiglu_bwd_kernel, ["gate_up_ptr", "grad_ptr", "d_gate_up_ptr"]),
    ):
        arguments = dict.fromkeys(pointers, f"*{dtype}") | sizes
        yield Shipped(name=name, kernel=kernel, arguments=arguments, **common)


def rotary_kernels(capability: int, dtype: str) -> Iterator[Shipped]:
    """Heads of every size in bf16, of the usual one in each dtype; with and without norms."""
    weights = ["q_weight_ptr", "k_weight_ptr"]
    inputs = ["qkv_ptr", *weights]
    grads = ["g_q_ptr", "g_k_ptr", "g_v_ptr"]
    strided = product(("q", "k", "v", "keys", "values"), ("", "_head"))
    steps = ["qkv_stride", *(f"{name}{level}_stride" for name, level in strided)]
    sizes = dict.fromkeys(["n_tokens", "n_heads", "n_kv_heads", "n_places"], "i32")
    common = sizes | dict.fromkeys(steps, "i32 16") | {"eps": "fp32"}
    common |= dict.fromkeys(["cos_ptr", "sin_ptr"], f"*{dtype}") | {"places_ptr": "*i64"}
    for size, has_norm in product((64, 80, 128, 256) if dtype == "bf16" else (128,), (False, True)):
        block_heads, block_half, _ = rotary.blocks_of(size, 20)
        absent = {} if has_norm else dict.fromkeys(weights)
        blocks = dict(HALF=size // 2, BLOCK_HEADS=block_heads, BLOCK_HALF=block_half)
        label = f"K {size}{', norms' * has_norm}"
        pointers = [*inputs, "q_ptr", "k_ptr", "v_ptr", "keys_ptr", "values_ptr"]
        yield Shipped(
            name="rotary_fwd",
            label=label,
            kernel=rotary.rotary_fwd_kernel,
            capability=capability,
            dtype=dtype,
            arguments=common | dict.fromkeys(pointers, f"*{dtype}"),
            constants=absent | blocks | dict(HAS_NORM=has_norm, HAS_CACHE=True),
            num_warps=1,
            num_stages=3,
        )
        if not has_norm:
            absent |= dict.fromkeys(["qkv_ptr", "partials_ptr"])
        options = dict(HAS_NORM=has_norm, NEEDS_WEIGHTS=has_norm)
        yield Shipped(
            name="rotary_bwd",
            label=label,
            kernel=rotary.rotary_bwd_kernel,
            capability=capability,
            dtype=dtype,
            arguments=common
            | dict.fromkeys([*inputs, *grads, "d_qkv_ptr"], f"*{dtype}")
            | {"partials_ptr": "*fp32"},
            constants=absent | blocks | options | dict(HAS_Q=True, HAS_K=True, HAS_V=True),
            num_warps=1,
            num_stages=3,
        )


def page_kernel(capability: int, dtype: str) -> Shipped:
    return Shipped(
        name="copy_pages",
        kernel=pages.copy_pages_kernel,
        capability=capability,
        dtype=dtype,
        arguments=dict.fromkeys(["source_ptr", "target_ptr"], "*i64")
        | dict.fromkeys(["n_pages", "n_copies"], "i32")
        | dict.fromkeys(["page_size", "tensor_stride", "page_stride"], "i32 16")
        | {"memory_ptr": f"*{dtype}"},
        constants=dict(BLOCK=PAGES.block),
        num_warps=PAGES.num_warps,
        num_stages=3,
    )
