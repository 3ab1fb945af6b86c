"""Ctrl-C and SIGTERM: the step is finished, the state saved, and the exit code says which it was.

A second Ctrl-C ends the process at once; the last checkpoint stands.
"""

import os
import signal
import sys
from types import FrameType

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 75}


class StopRequest:
    """A context that notes the first SIGINT or SIGTERM instead of letting it interrupt."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}

    @property
    def exit_code(self) -> int:
        """The exit code that belongs to the signal, 0 where none came."""
        return EXIT_CODES[self.signal] if self.signal else 0

    def __enter__(self) -> "StopRequest":
        for number in EXIT_CODES:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            if sys.stderr.isatty():
                os.write(2, b"\x1b[?25h\n")  # a live table hides the cursor
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        if self.signal is None:
            self.signal = signal.Signals(number)
            message = "finishing the step and saving; Ctrl-C again ends at once without\n"
            os.write(2, message.encode())
