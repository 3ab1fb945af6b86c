"""The oldest versions that we support have what we call: read from their sources, not run."""

import inspect
import json
from pathlib import Path

import pytest
import signatures
import torch
import transformers
import triton
from signatures import CALLS, Call, Source, bind, read
from torch.nn.attention.varlen import varlen_attn

DATA = json.loads(signatures.DATA.read_text())
OLDEST = {"torch": "2.11.0", "triton": "3.6.0", "transformers": "5.17.0"}
INSTALLED = {package.__name__: package for package in (torch, triton, transformers)}


def calls_of(package):
    kinds = (f"{package}.", "aten::") if package == "torch" else (f"{package}.",)
    return [call for call in CALLS if call.name.startswith(kinds)]


def problems(package, found):
    """What we call of a package and its signatures do not allow."""
    wrong = []
    for call in calls_of(package):
        text = found.get(call.name, "")
        if call.name not in found:
            wrong.append(f"{call.name} is not there")
        elif all(name in text for name in call.only_if):
            try:
                bind(text, call)
            except TypeError as error:
                wrong.append(f"{call.name}: {error}")
    return wrong


def test_the_oldest_versions_are_kept():
    assert {package: min(versions) for package, versions in DATA.items()} == OLDEST
    stated = Path(__file__).resolve().parents[2] / "pyproject.toml"
    for package, version in OLDEST.items():
        assert f"{package}>={version.removesuffix('.0')}" in stated.read_text()


@pytest.mark.parametrize(("package", "version"), [(p, v) for p in DATA for v in DATA[p]])
def test_our_calls_fit(package, version):
    assert problems(package, DATA[package][version]) == []


@pytest.mark.parametrize("package", DATA)
def test_the_installed_version_is_as_it_was_read(package):
    source = Source(Path(INSTALLED[package].__file__).parents[1])
    version = INSTALLED[package].__version__.split("+")[0]
    found = read(package, source)
    assert problems(package, found) == []
    if version in DATA[package]:
        assert found == DATA[package][version]


def test_a_call_that_does_not_fit_would_be_found():
    varlen = DATA["torch"]["2.11.0"][signatures.VARLEN]
    with pytest.raises(TypeError, match="block_table"):
        bind(varlen, Call(signatures.VARLEN, 7, ("scale", "block_table")))
    with pytest.raises(TypeError, match="max_k"):
        bind(varlen, Call(signatures.VARLEN, 6))
    with pytest.raises(TypeError, match="too many positional"):
        bind(varlen, Call(signatures.VARLEN, 8))
    assert "is not there" in problems("triton", {})[0]


def test_what_is_read_is_what_python_sees():
    """The reading of sources against the imported functions themselves."""
    functions = {
        signatures.VARLEN: varlen_attn,
        "torch.nn.utils.clip_grad.clip_grad_norm_": torch.nn.utils.clip_grad_norm_,
        "torch.optim.adamw.AdamW.__init__": torch.optim.AdamW.__init__,
        "torch.utils.checkpoint.checkpoint": torch.utils.checkpoint.checkpoint,
        "transformers.models.qwen2.modeling_qwen2.Qwen2Model.forward": (
            transformers.Qwen2Model.forward
        ),
    }
    for name, function in functions.items():
        package = name.partition(".")[0]
        root = Path(INSTALLED[package].__file__).parents[1]
        seen = list(inspect.signature(inspect.unwrap(function)).parameters)
        text = Source(root).signature(name).replace("*, ", "").replace("*", "")
        assert [part.partition("=")[0] for part in text.split(", ")] == seen, name
