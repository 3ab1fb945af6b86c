"""docs/metrics.md names what there is: no metric of an older day, no gap in its tables."""

import re
from pathlib import Path

from azr.tasks.checked import LOG_GROUPS

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "metrics.md").read_text()


def rows(text):
    """The cells of every table row but its head."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if row[0] not in ("metric", "warning", "here")]


def names(cell):
    return re.findall(r"`([^`]+)`", cell)


BEFORE, _, AFTER = TEXT.partition("## Names in other trainers")
DOCUMENTED = {n for row in rows(BEFORE) for n in names(row[0]) if "/" in n}


def test_every_row_says_what_its_metric_means():
    assert len(DOCUMENTED) > 50
    assert [row for row in rows(BEFORE) if not row[1]] == []
    listed = [n for row in rows(BEFORE) for n in names(row[0])]
    assert len(listed) == len(set(listed)), "explained twice"


def test_every_metric_that_is_explained_is_one_that_is_written():
    source = "\n".join(
        p.read_text() for p in (ROOT / "azr").rglob("*.py") if "report" not in p.parts
    )
    for name in DOCUMENTED:
        last = [level for level in name.split("/") if "{" not in level][-1]
        literals = (f'/{last}"', f'"{last}"', f"/{last}/", f'"{last}/')
        # Others are built of a phase or a quantity and its unit: "rollout" and _s.
        parts = [f'"{part}"' in source or f'_{part}"' in source for part in last.split("_")]
        assert any(literal in source for literal in literals) or all(parts), name


def test_names_of_other_trainers_stand_beside_our_own():
    compared = [row for row in rows(AFTER) if len(row) == 3]
    assert len(compared) > 20
    for ours, trl, verl in compared:
        assert set(names(ours)) <= DOCUMENTED, ours
        assert names(trl) or names(verl), ours


def test_a_table_row_of_an_older_day_would_be_found():
    assert rows("| metric | meaning |\n|---|---|\n| `a/b` | x |\n| `c` | |") == [
        ["`a/b`", "x"],
        ["`c`", ""],
    ]


def test_no_family_can_take_a_name_of_the_log():
    groups = {name.partition("/")[0] for name in DOCUMENTED}
    assert groups - {"sandbox"} | {"step"} == LOG_GROUPS
