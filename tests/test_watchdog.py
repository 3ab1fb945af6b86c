"""The watchdog's file, beside threads that are at work."""

import threading
import time

from azr.run.watchdog import Watchdog

BUSY = """
def busy(n):
    return busy(n - 1) + 1 if n else 0
while not over.is_set():
    busy(30)
"""


def test_stacks_are_read_from_threads_at_work(tmp_path):
    path, over = tmp_path / "stacks.txt", threading.Event()
    worker = threading.Thread(target=exec, args=(BUSY, {"over": over}), name="worker")
    worker.start()
    watchdog = Watchdog(path, 1e-4)
    try:
        deadline_s = time.monotonic() + 60
        while not path.exists() or path.stat().st_size < 100_000:
            assert time.monotonic() < deadline_s and worker.is_alive()
            time.sleep(0.01)
    finally:
        over.set()
        watchdog.close()
    text = path.read_text()
    watchdog.close()
    assert "Thread worker:" in text and "in busy" in text and "in test_stacks_are_read" in text
    assert "azr-watchdog" not in text and path.read_text() == text


def test_stacks_are_added_to_those_of_an_earlier_run(tmp_path):
    path = tmp_path / "stacks.txt"
    path.write_text("before\n")
    watchdog = Watchdog(path, 0.05)
    time.sleep(0.5)
    watchdog.close()
    text = path.read_text()
    assert text.startswith("before\n") and text.count("no step finished in 0.05 s") > 1


def test_a_rearmed_watchdog_stays_silent(tmp_path):
    watchdog = Watchdog(tmp_path / "stacks.txt", 2.0)
    deadline_s = time.monotonic() + 2.5
    while time.monotonic() < deadline_s:
        watchdog.rearm()
        time.sleep(0.01)
    watchdog.close()
    assert not (tmp_path / "stacks.txt").exists()
