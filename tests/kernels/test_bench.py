"""The GPU benches on the CPU, small and untimed: every row is built, and its gradient is ours."""

import pytest
import torch

import bench.measure
from bench import bench_kernels
from bench.bench_kernels import Scale
from bench.measure import Options, changed, smoke
from bench.peers import Absent

# Rows that measure the chip, not the problem.
CEILINGS = {"copy", "matmul", "four_matmuls"}
# The gradient of a sum, not of random upstream gradients: the same work, another result.
OTHERS = {"quack_summed"}
# Where ours differentiates the entropy too, which no peer gives: the peers agree among themselves.
WITHOUT_ENTROPY = {"linear_both": "linear_cross_entropy"}
BENCHES = {
    "row_forward": (),
    "row_backward": (),
    "row_both": (),
    "row_in_place": (),
    "row_and_loss": (),
    "linear_forward": (48,),
    "linear_both": (48,),
    "policy_loss": (),
    "layers": ("norm",),
    "layers swiglu": ("swiglu",),
    "layers rotary": ("rotary",),
    "adamw": (),
}


class Compare:
    """Stands in for the fixture: calls every row once and keeps what it returned."""

    def __init__(self, options=None):
        self.options, self.seen = options or Options(), {}

    def with_options(self, **changes):
        assert changes["device"] == "cuda" and changes["rounds"] >= 50
        made = Compare(changed(self.options, **changes))
        made.seen = self.seen
        return made

    def __call__(self, name, ours, /, **peers):
        values = {}

        def keep(row, call):
            def kept():
                if self.options.before:
                    self.options.before()
                value = call()
                value = value if isinstance(value, tuple) else (value,)
                values[row] = [x.detach().clone() for x in value if isinstance(x, torch.Tensor)]

            return kept

        calls = {
            row: call if isinstance(call, Absent) else keep(row, call)
            for row, call in peers.items()
        }
        result = smoke("bench_kernels", name, keep("ours", ours), calls, self.options)
        self.seen[name] = result, values
        return result


@pytest.mark.filterwarnings("ignore")  # those of the peers
@pytest.mark.parametrize("name", BENCHES)
def test_every_row_computes_what_ours_does(place, name, monkeypatch):
    """Under the interpreter Liger's Triton kernels run too; CUDA-only peers may fail, not err."""
    if place.device == "cuda":
        pytest.skip("there the benches themselves run")
    monkeypatch.setattr(bench_kernels, "GPU", Scale("cpu", torch.float32, 130, 8, 4))
    monkeypatch.setattr(bench.measure, "l2_flush", lambda: None)
    monkeypatch.setattr(torch, "compile", lambda f=None, **_: f or (lambda function: function))
    compare = Compare()
    getattr(bench_kernels, f"bench_gpu_{name.split()[0]}")(compare, *BENCHES[name])
    assert compare.seen
    for result, values in compare.seen.values():
        for row in result.rows.values():
            mistake = ("TypeError", "ValueError", "AttributeError", "NameError", "IndexError")
            assert row.status != "failed" or not row.reason.startswith(mistake), row
        same = WITHOUT_ENTROPY.get(name, "ours")
        for row in set(values) - CEILINGS - OTHERS - ({"ours"} - {same}):
            got, want = values[row][0], values[same][0]
            torch.testing.assert_close(
                got.reshape(want.shape),
                want,
                rtol=1e-3,
                atol=1e-4,
                msg=lambda m, r=row: f"{r}: {m}",
            )
