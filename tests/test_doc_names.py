"""The tour and the paper map name functions and tests: each of them is where they say."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("tour.md", "paper-map.md")
NAMED = re.compile(r"`([\w/]+\.py): ([\w.]+)`")


def defined(path: Path) -> set[str]:
    """Functions, classes and methods of a file, as `name` and `Class.method`."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = (n for n in node.body if isinstance(n, ast.FunctionDef))
            names |= {f"{node.name}.{method.name}" for method in methods}
    return names


@pytest.mark.parametrize("page", PAGES)
def test_every_name_is_where_the_page_says(page):
    named = NAMED.findall((ROOT / "docs" / page).read_text())
    assert len(named) > 20
    missing = [(file, name) for file, name in named if name not in defined(ROOT / file)]
    assert missing == []


def test_every_row_of_the_map_has_a_function_a_test_and_its_differences():
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (ROOT / "docs" / "paper-map.md").read_text().splitlines()
        if line.startswith("| ") and not line.startswith("| paper |")
    ]
    assert len(rows) > 25
    for idea, function, test, difference in rows:
        assert idea and difference
        assert NAMED.search(function), idea
        assert re.search(r"`tests/[\w/]+\.py(: test_\w+)?`", test), idea


def test_the_tour_passes_through_every_package():
    tour = (ROOT / "docs" / "tour.md").read_text()
    packages = {p.parent.relative_to(ROOT).as_posix() for p in (ROOT / "azr").glob("*/__init__.py")}
    assert {package for package in packages if f"{package}/" not in tour} == set()
    # Ten minutes at 200 words a minute, half of them for the code.
    assert len(tour.split()) < 1100


def test_a_wrong_name_would_be_found():
    assert "run" in defined(ROOT / "azr" / "train.py")
    assert {"TaskBuffer", "TaskBuffer.add"} <= defined(ROOT / "azr" / "buffer.py")
    assert "nothing" not in defined(ROOT / "azr" / "train.py")
