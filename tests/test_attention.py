"""Attention backends: one meaning, whoever computes it; probed with a reason; packed rows."""

import importlib.util
import sys
import types

import numpy as np
import pytest
import torch
from flash_reference import attend, flash_attn, torch_aten, torch_varlen, varlen_attn_211
from hypothesis import given, settings
from hypothesis import strategies as st
from models import FAMILIES, azr_model, plain_model

from azr.errors import RunError
from azr.model import attention
from azr.model.attention import (
    PackedAttend,
    PackedRows,
    backends,
    choose,
    described,
    hidden_states,
)
from azr.model.attention import probe as probing
from azr.model.attention.packed import gathered
from azr.model.attention.sdpa import Sdpa, merged
from azr.model.attention.trial import decode_problem
from azr.model.transfer import Parcel

CPU = torch.device("cpu")
PAGE = 4


@pytest.fixture(params=["flash-attn", "torch-varlen", "torch-aten", "sdpa"])
def backend(request, monkeypatch):
    """Each backend, the FlashAttention ones on operators in float64."""
    monkeypatch.setattr(attention.flash, "PAGE_TOKENS", PAGE)
    made = {
        "flash-attn": lambda: flash_attn(PAGE),
        "torch-varlen": lambda: torch_varlen(PAGE),
        "torch-aten": lambda: torch_aten(monkeypatch),
        "sdpa": Sdpa,
    }[request.param]()
    assert made.name == request.param
    return made


def packed(lengths, heads=4, kv_heads=2, size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (sum(lengths), heads, size)
    q = torch.randn(shape, generator=generator, requires_grad=True)
    k, v = (
        torch.randn((sum(lengths), kv_heads, size), generator=generator, requires_grad=True)
        for _ in range(2)
    )
    return q, k, v


def expected_varlen(q, k, v, lengths, scale):
    out, at = [], 0
    for length in lengths:
        part = slice(at, at + length)
        out.append(attend(q[part], k[part], v[part], scale, True))
        at += length
    return torch.cat(out)


@pytest.mark.parametrize("lengths", [[5], [3, 3, 3], [1, 7, 2, 7], [1, 1]])
def test_packed_rows_attend_to_themselves_alone(backend, lengths):
    q, k, v = packed(lengths)
    out = backend.varlen(q, k, v, PackedRows.of(lengths, Parcel(CPU)), 0.3)
    expected = expected_varlen(q, k, v, lengths, 0.3)
    assert (out - expected).abs().max() < 1e-6
    upstream = torch.randn(out.shape)
    found = torch.autograd.grad(out, (q, k, v), upstream)
    wanted = torch.autograd.grad(expected, (q, k, v), upstream.double())
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).abs().max() < 1e-5


def test_shared_tokens_are_seen_by_every_row(backend):
    # Three rows: 0 1 2, 0 1 3 4, 5; the full rows have 8 tokens, the stretch six.
    rows, first = [[0, 1, 2], [0, 1, 3, 4], [5]], [0, 1, 2, 5, 6, 7]
    lengths = [len(r) for r in rows]
    token_of_full = np.array(sum(rows, []))
    layout = PackedRows.of(lengths, Parcel(CPU), token_of_full, np.array(first))
    q, k, v = packed([6])
    out = backend.varlen(q, k, v, layout, 0.3)
    expected = expected_varlen(*(x[token_of_full] for x in (q, k, v)), lengths, 0.3)[first]
    assert (out - expected).abs().max() < 1e-6
    upstream = torch.randn(out.shape)
    found = torch.autograd.grad(out, (q, k, v), upstream)
    wanted = torch.autograd.grad(expected, (q, k, v), upstream.double())
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).abs().max() < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_give_the_hidden_states_of_rows_alone(family):
    model = azr_model(plain_model(family))
    lengths = [4, 9, 1, 6]
    rows = [torch.randint(2, 48, (n,)) for n in lengths]
    positions = torch.cat([torch.arange(n) for n in lengths])
    layout = PackedAttend(Sdpa(), PackedRows.of(lengths, Parcel(CPU)))
    with torch.no_grad():
        together = hidden_states(model, torch.cat(rows)[None], positions[None], layout)[0]
        for row, part in zip(rows, together.split(lengths), strict=True):
            alone = hidden_states(model, row[None], torch.arange(len(row))[None])[0]
            assert (part - alone).abs().max() < 1e-5 * alone.abs().max()


def test_dropout_of_packed_rows_is_refused():
    model = azr_model(plain_model("llama", attention_dropout=0.5)).train()
    layout = PackedAttend(Sdpa(), PackedRows.of([3], Parcel(CPU)))
    with pytest.raises(ValueError, match="attention_dropout 0.5: packed rows attend without"):
        hidden_states(model, torch.tensor([[3, 4, 5]]), torch.arange(3)[None], layout)


@settings(deadline=None, max_examples=30)
@given(split=st.integers(1, 8), scale=st.floats(0.05, 5), seed=st.integers(0, 99))
def test_two_parts_of_the_keys_merge_to_the_whole(split, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(3, 2, 5, 8, generator=generator)
    k, v = (torch.randn(3, 2, 9, 8, generator=generator) for _ in range(2))
    sdpa = Sdpa()
    parts = [
        sdpa.decode(q, k[:, :, part], v[:, :, part], None, scale)
        for part in (slice(0, split), slice(split, 9))
    ]
    whole = ((q @ k.transpose(2, 3)).double() * scale).softmax(-1) @ v.double()
    assert (merged(*parts, q.dtype) - whole).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_devices_without_the_cpu_kernel_get_the_same(monkeypatch, dtype):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 6, 8, generator=generator).to(dtype) for _ in range(3))
    mask = torch.zeros(2, 1, 1, 6, dtype=dtype)
    mask[1, ..., 4:] = -torch.inf
    here = Sdpa().decode(q, k, v, mask, 0.4)
    monkeypatch.setattr(attention.sdpa, "_has_cpu_kernel", lambda q: False)
    there = Sdpa().decode(q, k, v, mask, 0.4)
    tolerance = 1e-6 if dtype == torch.float32 else 0.02
    assert (here[0].float() - there[0].float()).abs().max() < tolerance
    assert (here[1] - there[1]).abs().max() < tolerance * 3


def test_small_gradients_of_a_16_bit_gather_are_not_lost():
    """400 gradients of 1 beside one of 256: in bf16 each of them alone would be rounded away."""
    x = torch.zeros((3, 2), dtype=torch.bfloat16, requires_grad=True)
    upstream = torch.ones((401, 2), dtype=torch.bfloat16)
    upstream[0] = 256
    (grad,) = torch.autograd.grad(gathered(x, torch.ones(401, dtype=torch.int64)), x, upstream)
    assert grad.tolist() == [[0, 0], [656, 656], [0, 0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_gathered_many_times_adds_up_its_gradients(dtype):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((5, 3, 4), generator=generator).to(dtype).requires_grad_()
    index = torch.tensor([4, 0, 0, 2, 4, 4, 1])
    upstream = torch.randn((7, 3, 4), generator=generator).to(dtype)
    out = gathered(x, index)
    assert torch.equal(out, x.detach()[index])
    (grad,) = torch.autograd.grad(out, x, upstream)
    wanted = torch.zeros((5, 3, 4), dtype=torch.float64).index_add_(0, index, upstream.double())
    assert (grad.double() - wanted).abs().max() <= (1e-6 if dtype == torch.float32 else 0.05)
    assert not grad[3].any()


# --- probing ---


def test_every_backend_is_reported_with_its_reason():
    report = backends(CPU)
    assert [name for name, _, _ in report] == list(attention.NAMES)
    assert [usable for _, usable, _ in report] == [False, False, False, True]
    assert all("needs a CUDA device" in reason for _, usable, reason in report if not usable)
    assert choose("auto", CPU, torch.float32, 64).name == "sdpa"
    if not torch.cuda.is_available():
        assert backends() == report


def test_a_backend_that_cannot_run_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="'torch-varlen' cannot run here: needs a CUDA device"):
        choose("torch-varlen", CPU, torch.float32, 64)
    with pytest.raises(ValueError, match="'flash': use one of auto, flash-attn, torch-varlen"):
        choose("flash", CPU, torch.float32, 64)


@pytest.fixture
def a100(monkeypatch):
    """As on an A100, as far as probing looks, where every backend decodes rightly."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(probing, "decode_problem", lambda *args: None)
    return torch.device("cuda:0")


@pytest.mark.parametrize(
    ("dtype", "head_size", "capability", "reason"),
    [
        (torch.float32, 64, (8, 0), "needs bfloat16 or float16, the model is float32"),
        (torch.bfloat16, 320, (9, 0), "a multiple of 8 up to 256, the model's is 320"),
        (torch.bfloat16, 20, (9, 0), "a multiple of 8 up to 256, the model's is 20"),
        (torch.bfloat16, 64, (7, 5), "needs compute capability 8.0, this device has 7.5"),
    ],
)
def test_what_flash_attention_cannot_do_is_named(monkeypatch, dtype, head_size, capability, reason):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    device = torch.device("cuda:0")
    for name, usable, said in backends(device, dtype, head_size)[:-1]:
        assert not usable and reason in said, name
    assert choose("auto", device, dtype, head_size).name == "sdpa"


def test_the_order_of_preference(monkeypatch, a100):
    def taken():
        return choose("auto", a100, torch.bfloat16, 128).name

    fake = types.ModuleType("flash_attn")
    fake.flash_attn_varlen_func = fake.flash_attn_with_kvcache = lambda: None
    monkeypatch.setitem(sys.modules, "flash_attn", fake)
    assert taken() == "flash-attn"
    del fake.flash_attn_with_kvcache  # as a package of the same name without it
    found = {p.name: p for p in backends(a100, torch.bfloat16, 128)}
    assert not found["flash-attn"].usable and "with_kvcache" in found["flash-attn"].reason
    assert found["torch-aten"].usable
    if found["torch-varlen"].usable:
        assert taken() == "torch-varlen"
    monkeypatch.setattr(probing, "torch_varlen", lambda: varlen_attn_211)
    found = {p.name: p for p in backends(a100, torch.bfloat16, 128)}
    assert "takes no page table" in found["torch-varlen"].reason
    assert taken() == "torch-aten"

    def absent():
        raise ImportError("no varlen_attn")

    monkeypatch.setattr(probing, "torch_varlen", absent)
    assert taken() == "sdpa"


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="it is installed")
def test_a_missing_package_is_said_to_be_missing(a100):
    probe = backends(a100, torch.bfloat16, 128)[0]
    assert not probe.usable and "is not installed" in probe.reason


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_size", [64, 128, 256])
@pytest.mark.parametrize("name", ["flash-attn", "torch-varlen", "torch-aten"])
def test_a_backend_that_decodes_rightly_has_no_problem(monkeypatch, name, head_size, dtype):
    page = attention.flash.PAGE_TOKENS
    made = {
        "flash-attn": lambda: flash_attn(page),
        "torch-varlen": lambda: torch_varlen(page),
        "torch-aten": lambda: torch_aten(monkeypatch),
    }[name]()
    assert decode_problem(made, CPU, dtype, head_size) is None


@pytest.mark.parametrize("head_size", [16, 64, 128, 256])
def test_every_page_and_the_end_of_a_row_are_looked_at(head_size):
    """In the trial of a backend: a page read for another, rows of one token more or less."""
    page = attention.flash.PAGE_TOKENS
    decode = torch_varlen(page)._attend

    def problem(change):
        def astray(*args, block_table, seqused_k, **options):
            table, lengths = change(block_table.clone(), seqused_k.clone())
            return decode(*args, block_table=table, seqused_k=lengths, **options)

        backend = torch_varlen(page)
        backend._attend = astray
        return decode_problem(backend, CPU, torch.bfloat16, head_size)

    def second_page(number):
        def change(table, lengths):
            table[1, 1] = number
            return table, lengths

        return change

    assert problem(lambda table, lengths: (table, lengths)) is None
    for wrong in (0, 1, 3):
        assert problem(second_page(wrong)), wrong
    assert problem(lambda table, lengths: (table, lengths + 1))
    assert problem(lambda table, lengths: (table, lengths.clamp(max=page)))


def test_a_backend_that_breaks_the_device_ends_the_run_by_name():
    backend = torch_varlen(attention.flash.PAGE_TOKENS)

    def broken(*args, **options):
        raise torch.AcceleratorError("an illegal memory access was encountered", 700)

    backend._attend = broken
    with pytest.raises(RunError, match="torch-varlen broke the device .* --rollout.attention"):
        decode_problem(backend, CPU, torch.bfloat16, 64)


def test_a_backend_is_tried_before_it_is_relied_on(monkeypatch, a100):
    """One whose kernel refuses, or reads other pages than it should, is passed over and named."""
    page = attention.flash.PAGE_TOKENS
    broken, shifted = flash_attn(page), torch_varlen(page)
    decode = shifted._attend

    def refused(*args, **options):
        raise RuntimeError("cu_seqlens_k must have shape (batch_size + 1)\nand more")

    def astray(*args, block_table, **options):
        return decode(*args, block_table=block_table.clamp(max=1), **options)

    broken._decode = refused
    shifted._attend = astray
    made = {"flash-attn": broken, "torch-varlen": shifted, "torch-aten": torch_aten(monkeypatch)}
    for name, backend in made.items():
        monkeypatch.setitem(probing._PROBES, name, lambda: None)
        monkeypatch.setitem(probing._MAKERS, name, lambda backend=backend: backend)
    monkeypatch.setattr(
        probing, "decode_problem", lambda backend, _, *rest: decode_problem(backend, CPU, *rest)
    )

    found = {p.name: p for p in backends(a100, torch.bfloat16, 64)}
    said = "a tiny decode fails: RuntimeError: cu_seqlens_k must have shape (batch_size + 1)"
    assert not found["flash-attn"].usable and found["flash-attn"].reason == said
    assert not found["torch-varlen"].usable
    assert found["torch-varlen"].reason.startswith("a tiny decode is off by ")
    assert choose("auto", a100, torch.bfloat16, 64).name == "torch-aten"
    line = described("auto", a100, torch.bfloat16, 64)
    assert line.startswith("torch-aten: torch's flash-attention operator takes row lengths; not ")
    assert f"not flash-attn: {said}; not torch-varlen: a tiny decode is off by " in line
    assert described("sdpa", a100, torch.bfloat16, 64) == "sdpa: as asked by --rollout.attention"
    assert described("auto", CPU, torch.float32, 64) == "sdpa: runs everywhere"
    with pytest.raises(ValueError, match="'torch-varlen' cannot run here: a tiny decode is off"):
        choose("torch-varlen", a100, torch.bfloat16, 64)
    tried = []
    monkeypatch.setattr(probing, "decode_problem", lambda b, *rest: tried.append(b.name))
    assert choose("torch-aten", a100, torch.bfloat16, 64).name == "torch-aten"
    assert tried == ["torch-aten"], "a kernel that nobody asked for can take the device with it"
