"""Standard streams that are closed from the start, and such as fail on the way."""

import os
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


FAILING = """
import os, sys
from azr.streams import open_standard_streams, take_losses
stream = getattr(sys, sys.argv[1])
open_standard_streams()
open_standard_streams()
assert getattr(sys, sys.argv[1]) is not stream
for _ in range(3):
    print("lost \\udcff", file=getattr(sys, sys.argv[1]), flush=True)
losses = take_losses()
assert len(losses) == 1 and sys.argv[2] in losses[0] and not take_losses(), losses
os.write(1, b"to nobody")
print("lost at the end", file=getattr(sys, sys.argv[1]), end="")
sys.exit(7)
"""


@pytest.fixture(autouse=True)
def buffered(monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)


def broken_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "wb")


def full_disk():
    return open("/dev/full", "wb")  # noqa: SIM115


@pytest.mark.parametrize("flags", [[], ["-u"]], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize(
    ("name", "words", "make"),
    [("stdout", "standard output is gone (Broken pipe)", broken_pipe),
     ("stderr", "standard error is gone (Broken pipe)", broken_pipe),
     ("stdout", "standard output is gone (No space left on device)", full_disk)],
)  # fmt: skip
def test_a_stream_that_fails_costs_what_it_would_have_shown(name, words, make, flags):
    with make() as stream:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | {name: stream}
        command = [sys.executable, *flags, "-c", FAILING, name, words]
        done = subprocess.run(command, text=True, timeout=60, **streams)
    assert done.returncode == 7, done.stderr
    if make is full_disk:
        assert done.stderr == f"azr: {words}: what follows is not shown there\n"
    else:
        assert not done.stderr


@pytest.mark.parametrize(
    "arguments",
    [["azr.train", "--help"], ["azr.train", "--steps", "0"], ["azr.report", "--help"],
     ["azr.evaluate", "--help"], ["azr.doctor", "--help"], ["azr.sandbox", "--help"]],
    ids=" ".join,
)  # fmt: skip
def test_no_command_complains_of_readers_that_are_gone(arguments):
    code = 2 if "--steps" in arguments else 0
    with broken_pipe() as stream:
        command = [sys.executable, "-m", *arguments]
        done = subprocess.run(command, stdout=stream, stderr=subprocess.PIPE, text=True, timeout=60)
        assert done.returncode == code and done.stderr.count("\n") == (code == 2), done.stderr
        if code:
            assert subprocess.run(command, stdout=stream, stderr=stream, timeout=60).returncode == 2


@pytest.mark.parametrize("flags", [[], ["-u"]], ids=["buffered", "unbuffered"])
def test_a_pipe_that_does_not_block_is_waited_for(flags):
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    code = (
        "from azr.streams import open_standard_streams, take_losses; open_standard_streams()\n"
        "print('x' * 10**6, flush=True)\n"
        "assert not take_losses()"
    )
    with subprocess.Popen([sys.executable, *flags, "-c", code], stdout=writer) as process:
        os.close(writer)
        with os.fdopen(reader, "rb") as stream:
            assert len(stream.read()) == 10**6 + 1
    assert process.returncode == 0


RUN = """
import os, sys
from azr.config import parse_command_line
from azr.train import run
config = parse_command_line(sys.argv[1:]).config
os.write(2, str(run(config).step).encode())
"""


def test_a_run_from_python_outlives_its_reader(tmp_path):
    options = "--steps 1 --warmup.steps 1 --model.hidden 16 --model.ffn 16 --eval.samples 0 "
    options += f"--selfplay.seed-source environment --run.root {tmp_path}"
    with broken_pipe() as stream:
        done = subprocess.run(
            [sys.executable, "-c", RUN, *options.split()], stdout=stream, stderr=subprocess.PIPE
        )
    assert done.returncode == 0 and done.stderr == b"1", done.stderr
    assert (tmp_path / "latest" / "checkpoints" / "step_000001").is_dir()
