"""Ctrl-C, SIGTERM and SIGHUP: what is under way is finished and saved, and the exit code tells.

Before the first step there is nothing to save, and a signal ends the process within GRACE_S.
Afterwards the step is finished and saved. Ctrl-C after any of them ends the process at once; the
last checkpoint stands.

Python runs a signal's handler between two instructions of the main thread, which a backward pass of
a real model keeps in one call for minutes. So the signals are read by a thread.
"""

import os
import signal
import sys
import threading
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 75, signal.SIGHUP: 75}

GRACE_S = 1.0
"""Seconds in which a run that has nothing to save may close its files and its sandbox."""


class StoppedEarly(KeyboardInterrupt):
    """A signal that came before the first step."""


class StopRequest:
    """A context that notes the first signal of EXIT_CODES.

    Until `first_step` it raises StoppedEarly in the main thread as well, and ends the process where
    that thread does not leave the context soon.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._is_early = True
        self._is_heard = self._is_raised = False
        self._is_over = threading.Event()
        self._before: dict[signal.Signals, Any] = {}

    @property
    def exit_code(self) -> int:
        """The exit code that belongs to the signal, 0 where none came."""
        return EXIT_CODES[self.signal] if self.signal else 0

    def first_step(self) -> None:
        """From here on a signal waits for the end of the step."""
        self._is_early = False

    def __enter__(self) -> "StopRequest":
        read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        for number in EXIT_CODES:
            # nohup starts a process with SIGHUP ignored, and means it.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._interrupt)
        self._woken_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(read,), name="azr-signals", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        signal.set_wakeup_fd(self._woken_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._write)  # the thread reads to the end

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or signal.Signals(number)
        if self._is_early and not self._is_raised:
            self._is_raised = True
            raise StoppedEarly

    def _listen(self, read: int) -> None:
        """Reads the numbers of the signals as they come."""
        with open(read, "rb", buffering=0) as numbers:
            while number := numbers.read(1):
                if number[0] in EXIT_CODES:
                    self._hear(number[0])

    def _hear(self, number: int) -> None:
        if self._is_heard:
            if number == signal.SIGINT:
                leave(EXIT_CODES[signal.SIGINT])
            return
        self._is_heard = True
        self.signal = self.signal or signal.Signals(number)
        if self._is_early:
            _say("stopping before the first step; there is nothing to save yet\n")
            threading.Thread(target=self._leave_soon, daemon=True).start()
        else:
            _say("finishing the step and saving; Ctrl-C again ends at once without\n")

    def _leave_soon(self) -> None:
        if not self._is_over.wait(GRACE_S) and self._is_early:
            leave(self.exit_code)


def _say(text: str) -> None:
    with suppress(OSError):  # nobody reads it any more
        os.write(2, text.encode())


def leave(code: int) -> NoReturn:
    """Ends the process now, whatever its other threads do.

    Taking an interpreter with a real model apart takes longer than a second.
    """
    if sys.stderr.isatty():
        _say("\x1b[?25h\n")  # a live table hides the cursor
    os._exit(code)
