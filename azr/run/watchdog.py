"""Where a step that takes too long stands: the stacks of all threads, in a file.

A thread reads them under the interpreter's lock. `faulthandler.dump_traceback_later` reads them
without it, while they change, and now and then that ends the process (docs/notes.md). The price:
a call in C that keeps the lock for good leaves no stacks; `py-spy dump` shows such a one.
"""

import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path

PERIOD_S = 900.0


class Watchdog:
    """Appends to `path` whenever `seconds` pass without a `rearm`.

    It never ends or delays a run. Where no step took that long, there is no file.
    """

    def __init__(self, path: Path, seconds: float | None = None):
        self._path = path
        self._seconds = PERIOD_S if seconds is None else seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="azr-watchdog", daemon=True)
        self.rearm()
        self._thread.start()

    def close(self) -> None:
        """Ends the thread; may be called twice."""
        self._over.set()
        self._thread.join()

    def rearm(self) -> None:
        """Begins a new period; called at the start of every step."""
        self._due_s = time.monotonic() + self._seconds

    def _watch(self) -> None:
        while not self._over.wait(max(self._due_s - time.monotonic(), 0.0)):
            if time.monotonic() >= self._due_s:
                self._write()
                self.rearm()

    def _write(self) -> None:
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        lines = [f"{time.strftime('%F %T')}: no step finished in {self._seconds:g} s\n"]
        for number, frame in sys._current_frames().items():
            if number != threading.get_ident():
                lines += [f"\nThread {names.get(number, number)}:\n"]
                lines += traceback.format_stack(frame)
        # No run is worth its stacks: a full disk goes without them.
        with suppress(OSError), open(self._path, "a") as file:
            file.write("".join(lines) + "\n")
