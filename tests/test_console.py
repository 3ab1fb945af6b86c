"""What is shown stands as it is."""

import pytest
from rich.table import Table

from azr.errors import RunError
from azr.evaluation.table import make_console
from azr.run.console import RunConsole

NAMES = ["runs/[x]/a", "runs/[/x]", "[bold]b[/bold]", ":smile:", "[link=file]", r"\[x]", "a\udcff"]


def test_names_that_look_like_markup_are_shown_as_they_are(tmp_path, capsys):
    console = RunConsole(tmp_path / "log.txt", every=1)
    table = Table("column", title="[x] title")
    for name in NAMES[:-1]:
        table.add_row(name)
    console.print(table)
    for name in NAMES[:-1]:
        console.print(f"going on from {name}")
        console.warn(name)
    console.proposals([("deduction", name, name, "1") for name in NAMES[:-1]])
    make_console().print(*NAMES[:-1])
    shown = capsys.readouterr().out
    console.console.quiet = True  # pytest's stream takes no surrogate
    console.print(NAMES[-1])
    console.proposals([("deduction", "\x1b[2Jgone\ttab\nline", "é", "1")])
    console.close()
    kept = (tmp_path / "log.txt").read_text()
    assert "a\\udcff" in kept and "\\x1b[2Jgone\\ttab" in kept and "\x1b" not in kept
    for name in (*NAMES[:-1], "[x] title"):
        assert name in shown and name in kept
        assert shown.count(name) >= 5 or name == "[x] title"


def test_a_log_that_cannot_be_written_ends_the_run_in_one_line(tmp_path):
    (tmp_path / "log.txt").symlink_to("/dev/full")
    console = RunConsole(tmp_path / "log.txt", every=1)
    with pytest.raises(
        RunError, match="cannot write .*log.txt: No space left on device; free some"
    ):
        console.print("a line")
    console.close()
