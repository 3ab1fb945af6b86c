"""A process that was started without standard streams."""

import subprocess
import sys

import pytest

CODE = """
import sys
from azr.streams import open_standard_streams
open_standard_streams()
file = open(sys.argv[1], "w")
print("out", flush=True)
print("err", file=sys.stderr, flush=True)
assert sys.stdin.read() == ""
child = __import__("subprocess").run([sys.executable, "-c", "print(1)"])
file.write(f"{file.fileno()} {child.returncode}")
"""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_what_is_printed_meets_no_file(closed, tmp_path):
    command = f'exec "$0" -c "$1" "$2" {closed}'
    if "<" not in closed:
        command += " </dev/null"
    file = tmp_path / "file"
    subprocess.run(["bash", "-c", command, sys.executable, CODE, file], check=True, timeout=60)
    number, status = map(int, file.read_text().split())
    assert number > 2 and status == 0
