"""The example of the kernels in a foreign loop runs and learns."""

import importlib.util
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "kernels_in_a_loop.py"


def test_the_loop_learns(capsys):
    spec = importlib.util.spec_from_file_location("kernels_in_a_loop", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    curve = module.main(steps=45)
    assert sum(curve[:5]) / 5 < 0.58  # chance is one half
    assert sum(curve[-5:]) / 5 > 0.65
    assert "step  44" in capsys.readouterr().out
