"""The doctor: right about what is here, clear about what is not, and standing when parts fall."""

import dataclasses
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import azr
from azr import doctor
from azr.doctor import PARTS, Finding, examine, main, table

ROOT = Path(__file__).resolve().parent.parent


def of(part, found):
    return {f.name: f for f in found if f.part == part}


def run_doctor(code):
    """Runs the doctor in a fresh interpreter, after some code."""
    return subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys, azr.doctor; sys.exit(azr.doctor.main({[]}))"],
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_every_part_is_there_and_versions_are_those_installed(capsys):
    assert main(["--json"]) == 0
    found = [Finding(**row) for row in json.loads(capsys.readouterr().out)]
    assert {f.part for f in found} | {"variables", "families"} == set(PARTS)
    packages = of("packages", found)
    for name in ("torch", "transformers", "numpy", "numba", "tyro"):
        assert packages[name].status == "ok"
        assert packages[name].detail == importlib.metadata.version(name)
    assert of("arithmetic", found)["azr.modular"].status == "ok"
    assert {"cpu", "RLVR_KERNELS"} <= set(of("kernels", found))
    assert of("attention", found) and of("sandbox", found)
    # Whatever is missing or broken says what to do.
    assert all(f.fix or f.detail.startswith("not built") for f in found if f.status == "missing")


def test_the_table_is_what_a_bug_report_pastes(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"AZR {azr.__version__}") and "\x1b" not in text
    assert [line for line in text.splitlines() if line in PARTS]
    assert f"torch {importlib.metadata.version('torch')}" in " ".join(text.split())


def test_without_torch_the_rest_still_stands():
    done = run_doctor("import sys; sys.modules['torch'] = None")
    assert done.returncode == 1, done.stderr
    assert "ModuleNotFoundError: import of torch halted" in done.stdout
    assert f"AZR {azr.__version__}" in done.stdout and "3 * 5 = 1 (mod 7), compiled" in done.stdout
    assert "Broken:" in done.stdout


def test_no_secret_is_printed(monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    monkeypatch.setenv("WANDB_API_KEY", "alsosecret")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert "secret" not in printed and "HF_TOKEN" in printed and "WANDB_API_KEY" in printed
    assert "HF_HUB_OFFLINE" in printed


@pytest.mark.parametrize("version", ["0.1", None])
def test_an_old_or_absent_package_is_broken_with_its_fix(monkeypatch, capsys, version):
    real = importlib.metadata.version

    def fake(name):
        if name != "tyro":
            return real(name)
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", fake)
    monkeypatch.setattr(doctor, "PARTS", {"packages": doctor.packages})
    assert main([]) == 1
    text = capsys.readouterr().out
    assert "pip install 'tyro>=0.9.5'" in text.partition("Broken:")[2]
    assert ("not installed" if version is None else "0.1, which is not >=0.9.5") in text


def test_a_part_that_raises_is_a_line(monkeypatch):
    def fall():
        raise ZeroDivisionError("the driver\nfell over")
        yield

    monkeypatch.setitem(doctor.PARTS, "device", fall)
    found = examine()
    assert of("device", found)["device"].detail == "ZeroDivisionError: the driver"
    assert of("packages", found)["torch"].status == "ok"


def test_the_first_usable_attention_backend_is_the_one_taken(monkeypatch):
    import azr.model.attention as attention

    probes = [("flash", False, "not installed"), ("varlen", True, "here"), ("sdpa", True, "always")]
    found = [SimpleNamespace(name=n, usable=u, reason=r) for n, u, r in probes]
    monkeypatch.setattr(attention, "backends", lambda: found, raising=False)
    lines = {f.name: (f.status, f.detail) for f in doctor.attention()}
    assert lines == {
        "flash": ("note", "not installed"),
        "varlen": ("ok", "here (taken by auto)"),
        "sdpa": ("ok", "always"),
    }


class FakeBox:
    """A sandbox that answers as told."""

    def __init__(self, value=42, **layers):
        self._value, self._layers = value, layers

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def layers(self):
        return self._layers

    def run(self, code, args_text):
        return SimpleNamespace(status="ok", value=self._value)


def sandbox_lines(monkeypatch, make):
    monkeypatch.setattr("azr.sandbox.Sandbox", lambda workers: make())
    return {f.name: (f.status, f.detail, f.fix) for f in doctor.sandbox()}


def test_sandbox_layers_are_told_one_by_one(monkeypatch):
    lines = sandbox_lines(
        monkeypatch, lambda: FakeBox(seccomp=True, landlock=7, namespaces="", uid=False)
    )
    assert lines["azr.sandbox"][:2] == ("ok", "runs a program")
    assert lines["seccomp"][1] == "on" and lines["landlock"][1] == "ABI 7"
    assert lines["namespaces"][:2] == ("note", "off: this host does not allow it")
    assert lines["uid"][0] == "note"
    lines = sandbox_lines(monkeypatch, lambda: FakeBox(namespaces="mount net"))
    assert lines["namespaces"][:2] == ("ok", "mount net")
    assert sandbox_lines(monkeypatch, lambda: FakeBox(value=0))["azr.sandbox"][0] == "broken"


def test_a_sandbox_that_is_not_built_says_so(monkeypatch):
    def refuse():
        raise RuntimeError("no extension azr._sandbox")

    status, detail, fix = sandbox_lines(monkeypatch, refuse)["azr.sandbox"]
    assert status == "missing" and "no extension" in detail and "pip install" in fix


def test_gpus_are_described(monkeypatch):
    import torch

    chip = SimpleNamespace(
        name="Chip", total_memory=80 * 2**30, major=9, minor=0, multi_processor_count=132
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: chip)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    lines = [dataclasses.astuple(f) for f in doctor.device()]
    detail = "Chip, 80 GiB, capability 9.0, 132 multiprocessors, CUDA 13.0"
    assert lines == [("device", f"cuda:{i}", "ok", detail, "") for i in range(2)]


def test_a_gpu_that_torch_cannot_see_has_a_reason(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    first = next(doctor.device())
    assert "built for CUDA 13.0, and sees no device" in first.detail and first.fix


def test_the_table_ends_with_what_to_do():
    found = [
        Finding("a", "one", "broken", "bad", "mend it"),
        Finding("a", "two", "missing", "gone", "get it"),
        Finding("b", "three", "note", "could be", "take it"),
        Finding("b", "four", "ok", "fine"),
    ]
    lines = table(found).splitlines()
    assert lines[lines.index("Broken:") + 1].strip() == "one: mend it"
    assert lines[lines.index("Missing:") + 1].strip() == "two: get it"
    assert lines[lines.index("To have more:") + 1].strip() == "three: take it"
    assert "Nothing is broken" in table(found[3:])
