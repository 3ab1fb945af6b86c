"""The standard streams of a process that was started without one of them."""

import os
import sys


def open_standard_streams() -> None:
    """Gives the null device to each standard stream that is closed.

    Otherwise the next file that is opened takes its number, and what is printed, or handed to a
    child in its place, meets that file; and Python has None where a stream is written to.
    """
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != fd:
                os.dup2(null, fd)
                os.close(null)
        if getattr(sys, name) is None:
            setattr(sys, name, open(fd, "w" if fd else "r", encoding="utf-8"))
