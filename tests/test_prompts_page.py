"""docs/prompts.md is what its script writes, and what it shows is right."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "docs" / "prompts.py"


@pytest.fixture(scope="module")
def prompts():
    spec = importlib.util.spec_from_file_location("prompts_page", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules["prompts_page"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["prompts_page"]


def test_the_page_is_current(prompts):
    assert prompts.PAGE.read_text(encoding="utf-8") == prompts.page(), "run python docs/prompts.py"


def test_every_cell_is_there_and_every_response_is_right(prompts):
    page = prompts.PAGE.read_text(encoding="utf-8")
    outcomes = re.findall(r"^A response that is (.*):$", page, re.MULTILINE)
    # Six cells in three styles for each family.
    assert len(outcomes) == 18 * len(prompts.FAMILIES)
    assert set(outcomes) == {"valid", "correct"}
