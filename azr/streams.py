"""The standard streams: closed from the start, or with a reader that goes away."""

import errno
import io
import os
import select
import sys
from contextlib import suppress


def open_standard_streams() -> None:
    """Gives the null device to each standard stream that is closed, or that fails later.

    Otherwise the next file that is opened takes the number of a closed one, and what is printed, or
    handed to a child in its place, meets that file; and Python has None where a stream is written
    to. And a reader that goes away, a terminal that hangs up or a full disk would end a run.
    """
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
        except OSError:
            _give_null(fd)
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(fd, "w" if fd else "r", encoding="utf-8"))
        elif fd and stream is getattr(sys, f"__{name}__"):  # not one of a test or a notebook
            setattr(sys, name, _outliving(stream, fd))


def take_losses() -> list[str]:
    """Returns a line for each stream that has failed since the last call."""
    taken = _losses.copy()
    _losses.clear()
    return taken


_losses: list[str] = []


class _Outliving(io.FileIO):
    """A stream that goes on into the null device where it fails."""

    def write(self, data) -> int:
        left = memoryview(data).cast("B")
        try:
            while left:
                count = super().write(left)
                if count is None:  # a full pipe that does not block
                    select.select([], [self], [])
                left = left[count or 0 :]
        except OSError as error:
            name = "standard output" if self.fileno() == 1 else "standard error"
            loss = f"{name} is gone ({error.strerror}): what follows is not shown there"
            _give_null(self.fileno())
            _losses.append(loss)
            if error.errno != errno.EPIPE:  # a reader that has enough, `| head`, asks for no word
                with suppress(OSError):
                    os.write(2, f"azr: {loss}\n".encode())
        return len(data)


def _outliving(stream: io.TextIOWrapper, fd: int) -> io.TextIOWrapper:
    stream.flush()
    raw = _Outliving(fd, "w", closefd=False)
    return io.TextIOWrapper(
        raw if stream.write_through else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors="backslashreplace",  # names of files may be in another encoding
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _give_null(fd: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    if null != fd:
        os.dup2(null, fd)
        os.close(null)
