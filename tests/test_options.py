"""The flags of the commands stay as they are: scripts and kept configurations name them.

`python -m tests.test_options` writes options.txt anew. One line more is a new option, which has to
be worth a user's while; one that goes or changes stands in CHANGELOG.md, with what to use instead.
"""

import contextlib
import importlib
import io
import os
import re
from pathlib import Path
from unittest import mock

LIST = Path(__file__).with_name("options.txt")
COMMANDS = ("azr.train", "azr.evaluate", "azr.report.__main__", "azr.doctor")


def flags(command: str) -> set[str]:
    """Returns what a command's help names."""
    said = io.StringIO()
    wide = mock.patch.dict(os.environ, COLUMNS="300")  # no flag is broken at the end of a line
    with wide, contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        importlib.import_module(command).main(["--help"])
    return set(re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", said.getvalue()))


def options() -> list[str]:
    return [
        f"{command.removesuffix('.__main__')} {flag}"
        for command in COMMANDS
        for flag in sorted(flags(command))
    ]


def test_the_options_are_those_of_the_list():
    listed = LIST.read_text().splitlines()
    changed = sorted({*listed} ^ {*options()})
    assert not changed, (
        f"{changed}: meant so? then `python -m tests.test_options`, see its beginning"
    )


if __name__ == "__main__":
    LIST.write_text("".join(f"{option}\n" for option in options()))
