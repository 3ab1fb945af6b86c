"""What the documents name is there: files, headings, modules, options, make targets, names."""

import importlib.util
import re
from pathlib import Path

import pytest

from azr.config import field_names

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(
    p
    for p in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md"))
    if p.name != "CHANGELOG.md"
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)

by_name = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))


def anchors(path: Path) -> set[str]:
    """The anchors that a viewer makes of a document's headings."""
    headings = re.findall(r"^#+ +(.+)$", FENCE.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


@by_name
def test_links_lead_somewhere(path):
    for target in LINK.findall(FENCE.sub("", path.read_text())):
        if re.match(r"https?://|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


@by_name
def test_modules_that_are_run_exist(path):
    for name in re.findall(r"python3? -m ((?:azr|rlvr_kernels|bench)[\w.]*)", path.read_text()):
        spec = importlib.util.find_spec(name)
        assert spec is not None, name
        if spec.submodule_search_locations is not None:
            assert importlib.util.find_spec(name + ".__main__") is not None, name


@by_name
def test_files_that_are_named_exist(path):
    named = re.findall(
        r"\b((?:azr|configs|bench|tests|docs|examples|csrc)/[\w./-]+)", path.read_text()
    )
    for name in named:
        name = name.rstrip("./")
        if "." in Path(name).name and "*" not in name:
            assert (ROOT / name).exists(), name


@by_name
def test_training_options_that_are_named_exist(path):
    known = {name.replace("_", "-") for name in field_names()}
    sections = {name.split(".")[0] for name in known if "." in name}
    for flag in re.findall(r"--([a-z0-9_-]+(?:\.[a-z0-9_-]+)+)", path.read_text()):
        if flag.split(".")[0] in sections:
            assert flag.replace("_", "-") in known, flag
    for option in re.findall(r"`([a-z]+(?:\.[a-z0-9_]+)+)`", path.read_text()):
        if option.split(".")[0] in sections - {"run", "log"}:  # run.db, log.txt are files
            assert option.replace("_", "-") in known, option


@by_name
def test_make_targets_that_are_named_exist(path):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for code in re.findall(r"`make ([a-z-]+)", path.read_text()):
        assert code in targets, code
