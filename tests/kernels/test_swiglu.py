"""SwiGLU of merged projections, against float64 and transformers."""

import pytest
import torch
from layers import DTYPES, assert_rounded_once, assert_same_bits, wide
from rlvr_kernels import reference, swiglu
from rlvr_kernels.swiglu import swiglu_backward, swiglu_op


def assert_swiglu(place, gate_up):
    found = swiglu(gate_up, backend=place.backend)
    (exact_inputs,) = wide(gate_up)
    exact = reference.swiglu(exact_inputs)
    assert found.dtype == gate_up.dtype
    # Both paths take silu to a few units in the last place of float32, its exponential's.
    assert_rounded_once(place, found, exact)
    upstream = torch.randn_like(found)
    (got,) = torch.autograd.grad(found, gate_up, upstream)
    (want,) = torch.autograd.grad(exact, exact_inputs, upstream.double())
    assert_rounded_once(place, got, want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n_columns", [1, 3, 128, 1000, 9001])
def test_values_and_gradients(place, n_columns, dtype):
    place.skip_interpreted(
        dtype != torch.float32 and n_columns != 3, "every size in fp32, every dtype at one size"
    )
    gate_up = 2 * torch.randn(2, 3, 2 * n_columns, device=place.device)
    assert_swiglu(place, gate_up.to(dtype).requires_grad_())


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # the interpreter's numpy
@pytest.mark.parametrize("gate", [-1e4, -100.0, -20.0, 0.0, 20.0, 1e4])
def test_gates_far_from_zero(place, gate):
    """The exponential of a gate of -1e4 overflows; its product is 0, no NaN."""
    gate_up = torch.randn(2, 66, device=place.device)
    gate_up[:, :33] = gate
    assert_swiglu(place, gate_up.requires_grad_())


def test_rows_that_lie_apart(place):
    rows = torch.randn(3, 4, 80, device=place.device)
    for gate_up in (rows[:, :, :60], rows[:, :, 7:71], rows[:, 1:], rows[..., ::2]):
        assert_swiglu(place, gate_up.detach().requires_grad_())
    gate_up = rows.detach().requires_grad_()
    found = swiglu(gate_up, backend=place.backend)
    (got,) = torch.autograd.grad(found.sum(), gate_up, retain_graph=True)
    (want,) = torch.autograd.grad(found, gate_up, torch.ones_like(found))
    assert torch.equal(got, want)


def test_no_rows(place):
    gate_up = torch.zeros(2, 0, 8, device=place.device, requires_grad=True)
    found = swiglu(gate_up, backend=place.backend)
    (grad,) = torch.autograd.grad(found, gate_up, torch.ones_like(found))
    assert found.shape == (2, 0, 4) and grad.shape == gate_up.shape


def test_same_bits_every_time(place):
    gate_up = torch.randn(9, 500, device=place.device).bfloat16().requires_grad_()
    upstream = torch.randn(9, 250, device=place.device).bfloat16()

    def run():
        found = swiglu(gate_up, backend=place.backend)
        return [found, *torch.autograd.grad(found, gate_up, upstream)]

    assert_same_bits(place, run)


def test_opcheck(place):
    gate_up = torch.randn(3, 16, device=place.device, requires_grad=True)
    torch.library.opcheck(swiglu_op, (gate_up, place.backend))
    grad = torch.randn(3, 8, device=place.device)
    torch.library.opcheck(swiglu_backward, (gate_up.detach(), grad, place.backend))


def test_the_definition_is_that_of_transformers():
    """Qwen2's MLP around it, in float64, with both projections merged."""
    pytest.importorskip("transformers")
    from transformers import Qwen2Config
    from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

    mlp = Qwen2MLP(Qwen2Config(hidden_size=12, intermediate_size=20)).double()
    x = torch.randn(5, 12, dtype=torch.float64)
    gate_up = x @ torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]).T
    found = mlp.down_proj(reference.swiglu(gate_up))
    torch.testing.assert_close(found, mlp(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("gate_up", "message"),
    [
        (torch.zeros(2, 4).double(), "gate_up: expected dtype float32, .* got float64"),
        (torch.zeros(2, 5), r"gate_up: expected shape \[..., 2F\] with F >= 1; got \[2, 5\]"),
        (torch.zeros(2, 0), r"gate_up: expected shape .* got \[2, 0\]"),
        (torch.zeros(()), r"gate_up: expected shape .* got \[\]"),
    ],
)
def test_wrong_arguments_are_named(gate_up, message):
    with pytest.raises((TypeError, ValueError), match=message):
        swiglu(gate_up)
