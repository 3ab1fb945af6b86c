"""What stands before the first step and may take long: it says how far it is, all the while."""

import threading
import time
from types import TracebackType

from rich.live import Live
from rich.text import Text

from azr.run.console import RunConsole

EVERY_S = 1.5
"""Between two lines where they cannot be redrawn; a torch call may hold up the next one a while."""


class Stage:
    """A context that shows "name: how far, seconds": redrawn on a terminal, else in lines.

    A thread shows it, since a forward or backward pass of a real model takes longer than anybody
    waits. The last line goes to the log as well, where the stage took longer than one line.
    """

    def __init__(self, console: RunConsole, name: str):
        self._console, self._name, self._text = console, name, ""
        self._is_over = threading.Event()
        self._live: Live | None = None

    @property
    def seconds(self) -> float:
        """How long the stage has lasted."""
        return time.monotonic() - self._started

    def tell(self, text: object) -> None:
        """Says how far it is."""
        self._text = str(text)

    def __enter__(self) -> "Stage":
        self._started = time.monotonic()
        if self._console.is_live:
            self._live = Live(
                console=self._console.console, get_renderable=self._line, transient=True
            )
            self._live.start()
        else:
            self._thread = threading.Thread(target=self._show, name="azr-stage", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: object, trace: TracebackType | None) -> None:
        self._is_over.set()
        if self._live:
            self._live.stop()
        else:
            self._thread.join()
        if kind is None and self.seconds > EVERY_S:
            self._console.print(self._line())

    def _line(self) -> Text:
        told = f"{self._text}, " if self._text else ""
        return Text(f"{self._name}: {told}{self.seconds:.0f} s")

    def _show(self) -> None:
        while not self._is_over.wait(EVERY_S):
            self._console.console.print(self._line(), soft_wrap=True)
