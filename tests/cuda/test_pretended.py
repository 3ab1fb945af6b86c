"""The commands with `--device cuda`, as far as a machine without one can go: all of their own code
on the way to the first memory of the device, and beyond it with a model that stays on the CPU."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from folders import make_folder

from azr.config import load_toml

ROOT = Path(__file__).resolve().parents[2]
H100 = "NVIDIA H100 80GB HBM3"
GPU_PRESETS = sorted(
    path.name for path in ROOT.glob("configs/*.toml") if load_toml(path).run.device == "cuda"
)
assert GPU_PRESETS, "no preset for a GPU"


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What each command said, with its exit code; long lines as one."""
    root = str(tmp_path_factory.mktemp("runs"))
    on_cuda = ["--device", "cuda", "--run.root", root]
    commands = {
        "train": [
            "azr.train", *on_cuda, "--run.dtype", "bfloat16", "--steps", "2",
            "--warmup.steps", "3", "--warmup.batch-size", "8", "--eval.samples", "1",
        ],
        "evaluate": ["azr.evaluate", f"{root}/latest", "--device", "cuda"],
        "plan": ["azr.train", *on_cuda, "--dry-run"],
        "too large": [
            "azr.train", *on_cuda, "--dry-run", "--model.hidden", "16384", "--model.layers", "64"
        ],
        "doctor": ["azr.doctor"],
    }  # fmt: skip
    texts = ["def f(a):\n    return a[0]\n", "User: What does this Python program return?"]
    folders = tmp_path_factory.mktemp("models")
    for preset in GPU_PRESETS:
        kind = "llama" if "llama" in preset else "qwen2"
        model = folders / kind
        if not model.exists():
            make_folder(model, kind, texts, heads=2, context=16_384)
        commands[preset] = ["azr.train", "--config", preset, "--model", str(model), "--dry-run"]
    script = str(Path(__file__).parent / "pretended.py")
    done = subprocess.run(
        [sys.executable, script, "h100", json.dumps(list(commands.values()))],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    text = re.sub(r"\s*\n {10,}|(?<=\S) +", " ", done.stdout)
    parts = re.split(r"^azr\.\w+ ended with (\d+)$", text, flags=re.MULTILINE)
    return dict(zip(commands, zip(parts[::2], map(int, parts[1::2]), strict=False), strict=True))


def test_training_names_the_device_and_what_runs_on_it(said):
    text, code = said["train"]
    assert code == 0, text[-3000:]
    assert "device cuda, bfloat16 (as asked by --device)" in text
    assert f"loss kernels triton: compute capability 9.0 ({H100})" in text
    assert "step 2/2" in text


def test_a_backend_that_fails_is_named_with_its_error(said):
    """FlashAttention is what the card would take; here its first memory is refused."""
    text, _ = said["train"]
    attention = re.search(r"^attention (.*)$", text, re.MULTILINE)[1]
    assert attention.startswith("sdpa: runs everywhere; not flash-attn: flash-attn 2 is not")
    assert "not torch-aten: a tiny decode fails: AssertionError: Torch not compiled" in attention


def test_a_run_can_be_evaluated_there(said):
    text, code = said["evaluate"]
    assert code == 0 and "deduction" in text and "induction" in text, text[-3000:]


def test_the_plan_is_held_against_the_memory_of_the_card(said):
    text, code = said["plan"]
    assert code == 0 and "most at once" in text
    text, code = said["too large"]
    assert code == 2 and "on cuda, and 78.0 GiB are free" in text


@pytest.mark.parametrize("preset", GPU_PRESETS)
def test_the_presets_for_a_gpu_run_dry(said, preset):
    text, code = said[preset]
    assert code == 0 and 'device = "cuda"' in text and "most at once" in text, text[-2000:]


def test_the_doctor_reports_the_card(said):
    text, code = said["doctor"]
    assert f"cuda:0 {H100}, 79 GiB, capability 9.0, 132 multiprocessors, CUDA 13.0" in text
    assert f"cuda:0 triton: compute capability 9.0 ({H100})" in text
    assert re.search(r"torch-aten a tiny decode fails: .*\n.* sdpa runs everywhere \(taken", text)
    assert code == 0, text
