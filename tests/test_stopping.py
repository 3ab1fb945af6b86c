"""Signals: before the first step they end a run within two seconds, after it they wait for it."""

import signal
import subprocess
import sys
import time

import pytest

# A call that keeps the main thread and lets other threads run, as a backward pass does.
BUSY = "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"
PROGRAM = """
import hashlib, signal, sys, time
from azr.run.stopping import StoppedEarly, StopRequest
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
{before}
with StopRequest() as stop:
    {begin}
    print("ready", flush=True)
    {work}
"""
FIRST_STEP = "stop.first_step()"


def start(work, begin="pass", before=""):
    code = PROGRAM.format(work=work, begin=begin, before=before)
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


def finish(process):
    said, _ = process.communicate(timeout=60)
    return process.returncode, said


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGHUP, 75)]
)
def test_a_signal_ends_a_busy_run_that_has_nothing_to_save(number, code):
    process = start(BUSY)
    time.sleep(0.2)  # into the call
    sent = time.monotonic()
    process.send_signal(number)
    status, said = finish(process)
    assert time.monotonic() - sent < 2
    assert status == code and "nothing to save yet" in said


def test_before_the_first_step_the_main_thread_hears_of_it_and_closes_its_files():
    process = start("""
    try:
        time.sleep(60)
    except StoppedEarly:
        print("closed", stop.exit_code)
""")
    time.sleep(0.2)  # into the block
    process.send_signal(signal.SIGTERM)
    status, said = finish(process)
    assert status == 0 and "closed 75\n" in said  # before or after what the thread says


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_ctrl_c_after_any_of_them_ends_at_once(number):
    process = start(BUSY, FIRST_STEP)
    time.sleep(0.2)
    process.send_signal(number)
    assert "finishing the step and saving" in process.stdout.readline()
    time.sleep(0.2)
    assert process.poll() is None
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 130 and time.monotonic() - sent < 2


def test_a_second_sigterm_does_not_cut_the_save_short():
    process = start("time.sleep(1); print('saved'); sys.exit(stop.exit_code)", FIRST_STEP)
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    status, said = finish(process)
    assert status == 75 and said.endswith("saved\n")


def test_a_run_under_nohup_outlives_its_terminal():
    ignored = "signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    process = start("time.sleep(0.5); print('done', stop.signal)", before=ignored)
    process.send_signal(signal.SIGHUP)
    assert finish(process) == (0, "done None\n")


def test_handlers_are_put_back():
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    from azr.run.stopping import StopRequest

    with StopRequest() as stop:
        assert [signal.getsignal(number) for number in numbers] != before
    assert [signal.getsignal(number) for number in numbers] == before
    assert stop.exit_code == 0 and signal.set_wakeup_fd(-1) == -1
