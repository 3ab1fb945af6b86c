"""One process of the sandbox: started, fed with frames, listened to, ended."""

import fcntl
import functools
import json
import marshal
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Literal, TypeVar

from azr.sandbox import modules
from azr.sandbox.records import STATUSES, Limits, SandboxError

try:
    from azr import _sandbox
except ImportError as error:
    _sandbox = None
    WHY_NOT = (
        f"the sandbox is not built ({error}): it needs Linux on x86-64 or aarch64, a C compiler "
        "and the headers of Python; then `pip install` this package again"
    )

RUN = struct.Struct("<6I")
REPORT = struct.Struct("<IIIiIIqq")
SOURCE = struct.Struct("<4I")
COMPILED = struct.Struct("<6I")
LENGTH = struct.Struct("<I")
HEAD = struct.Struct("<3I")
"""Length, id and outcome: how a report and what the compiler made both begin."""
ENTRY = struct.Struct("<IIq")
"""What stands before the payload of one result in a report."""

RECEIVE_BYTES = 1 << 18
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def extension():
    """Returns the C module; SandboxError says why it is not there."""
    if _sandbox is None:
        raise SandboxError(WHY_NOT)
    return _sandbox


class BadFrame(Exception):
    """A process sent what no sound one sends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all processes of a sandbox have in common."""

    limits: Limits
    workers: int
    tokens_fd: int
    held_fd: int
    protected: bool = True
    modules: tuple[str, ...] = ()
    """What programs may import beside `modules.ALLOWED`."""
    extra: Mapping[str, str] = field(default_factory=dict)
    """Further extension modules, name -> file: how the tests get at raw system calls."""
    floor: int = 0
    """Bare children that a zygote forks before it serves, for the benches."""

    @property
    def inputs(self) -> int:
        """Inputs of one run: a label repeats one."""
        return self.limits.inputs + 1

    @property
    def code_bytes(self) -> int:
        """The longest compiled program."""
        return 8 * self.limits.source_bytes + 4096

    @property
    def run_bytes(self) -> int:
        """Room for the code and the arguments of one run."""
        return (self.code_bytes + self.inputs * (self.limits.args_bytes + 4) + 7) // 8 * 8

    @property
    def frame_bytes(self) -> dict[str, range]:
        """How long a frame of a process may be, by its role."""
        entry = (ENTRY.size + self.limits.output_bytes + 7) // 8 * 8
        return {
            "zygote": range(REPORT.size, REPORT.size + entry * self.inputs + 1),
            "compiler": range(COMPILED.size, COMPILED.size + self.code_bytes + 9),
        }

    @property
    def importable(self) -> tuple[str, ...]:
        """Modules that programs may import."""
        return (*modules.ALLOWED, *modules.FACADES, *self.modules, *self.extra)

    def config(self, role: str, seed: int, socket_fd: int) -> str:
        """Returns the argument of zygote.py."""
        limits = self.limits
        return json.dumps(
            {
                "role": role,
                "parent": os.getpid(),
                "extension": extension().__file__,
                "seed": seed,
                "allowed": (*modules.ALLOWED, *self.modules),
                "extra": self.extra,
                "facades": {name: sorted(names) for name, names in modules.FACADES.items()},
                "internal": modules.INTERNAL,
                "forgotten": [name for name in modules.FORGOTTEN if name not in self.modules],
                "insiders": modules.INSIDERS,
                "pure_calls": modules.PURE_CALLS,
                **(modules.scan_lists(self.importable) if role == "compiler" else {}),
                "limits": [
                    round(limits.cpu_s * 1e9),
                    round(limits.wall_s * 1e9),
                    limits.memory_bytes,
                    self.run_bytes,
                    limits.output_bytes,
                    self.inputs,
                    limits.depth,
                    limits.nodes,
                ],
                "memory_bytes": limits.memory_bytes,
                "source_bytes": limits.source_bytes,
                "code_bytes": self.code_bytes,
                "recursion": limits.recursion,
                "slots": self.workers,
                "socket_fd": socket_fd,
                "tokens_fd": self.tokens_fd,
                "held_fd": self.held_fd,
                "protected": self.protected,
                "floor": self.floor,
            }
        )


BOOT = "import marshal, posix, sys; exec(marshal.loads(posix.read(*map(int, sys.argv[2:]))))"
"""What a process begins with: it reads its program from the socket."""


@functools.cache
def program() -> bytes:
    """Returns zygote.py compiled. The memory of a parser would stay with every child."""
    path = Path(__file__).with_name("zygote.py")
    return marshal.dumps(compile(path.read_bytes(), str(path), "exec", optimize=2))


def environment(seed: int) -> dict[str, str]:
    """Returns the whole environment of a sandbox process: nothing of the caller's secrets."""
    env = {
        "PYTHONHASHSEED": str(1 + seed * 7919),
        # One heap in one piece, which huge pages can hold (residence.c).
        "PYTHONMALLOC": "malloc",
        # UTF-8 without the tables of a locale.
        "LC_ALL": "C",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONUTF8": "1",
        "TZ": "UTC",
        "PATH": os.defpath,
    }
    for name in ("LD_LIBRARY_PATH", "PYTHONHOME"):  # without which some interpreters do not start
        if name in os.environ:
            env[name] = os.environ[name]
    return env


def above_standard(fd: int) -> int:
    """Returns a descriptor of the same above 2; one below is closed.

    A process that was started with a standard stream closed gets its number for the next file, and
    a child that is given null devices in their places would lose it."""
    if fd > 2:
        return fd
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(fd)
    return moved


def _above_standard(end: socket.socket) -> socket.socket:
    return socket.socket(fileno=above_standard(end.detach()))


Work = TypeVar("Work")
"""What a process is sent: a zygote runs, a compiler programs."""


class Process(Generic[Work]):
    """A zygote or a compiler, as the client's thread sees it."""

    def __init__(self, setting: Setting, role: Literal["zygote", "compiler"], seed: int):
        self.role = role
        self.seed = seed
        """Of a zygote: of its hashes, and its place (in C `held_index`) in the shared page."""
        self.sent: dict[int, Work] = {}
        self.sent_bytes = 0
        self.layers: dict[str, int] | None = None
        self.floor: tuple[int, int] | None = None
        """CPU nanoseconds and page faults of the bare children of `Setting.floor`."""
        self.error = ""
        self.has_answered = False
        self._begun = 0.0, 0.0
        """Elapsed and CPU time at which it began what it works at."""
        self._out = bytearray()
        self._in = bytearray()
        self._sound_bytes = setting.frame_bytes[role]
        # Kept, for a new one of this size is mapped and unmapped at every call.
        self._room = memoryview(bytearray(RECEIVE_BYTES))
        ours, theirs = map(_above_standard, socket.socketpair())
        with theirs:
            config = setting.config(role, seed, theirs.fileno())
            shared = (setting.tokens_fd, setting.held_fd) if role == "zygote" else ()
            flags = ("-S", "-s", "-P", "-B", "-W", "ignore", "-c", BOOT)
            boot = config, str(theirs.fileno()), str(len(program()))
            try:
                ours.sendall(program())
                self._popen = subprocess.Popen(
                    [sys.executable, *flags, *boot],
                    env=environment(seed),
                    cwd="/",
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(), *shared),
                )
            except BaseException:
                ours.close()
                raise
        ours.setblocking(False)
        self.socket = ours

    @property
    def pid(self) -> int:
        return self._popen.pid

    def begin(self) -> None:
        """Notes that the process begins something."""
        self._begun = self._clocks()

    def busy(self) -> tuple[float, float]:
        """Returns the elapsed and the CPU seconds since `begin`."""
        now, begun = self._clocks(), self._begun
        return now[0] - begun[0], now[1] - begun[1]

    def _clocks(self) -> tuple[float, float]:
        try:
            cpu_s = time.clock_gettime(~self.pid << 3 | 2)  # as clock_getcpuclockid() makes it
        except OSError:  # it has gone
            cpu_s = 0.0
        return time.monotonic(), cpu_s

    @property
    def has_output(self) -> bool:
        """Whether bytes wait for the socket to take them."""
        return bool(self._out)

    def send(self, frames: bytes) -> None:
        """Sends what the socket takes now, keeps the rest; reading finds out who is dead."""
        self._out += frames
        self.flush()

    def flush(self) -> None:
        while self._out:
            try:
                del self._out[: self.socket.send(self._out)]
            except BlockingIOError:
                return
            except OSError:
                self._out.clear()
                return

    def receive(self) -> bool:
        """Reads what is there; False when the process has gone."""
        while True:
            try:
                count = self.socket.recv_into(self._room)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not count:
                return False
            self._in += self._room[:count]
            if count < RECEIVE_BYTES:
                return True

    def frames(self) -> Iterator[bytes]:
        """Yields the frames that are complete and answer something that was sent, and takes the
        greeting for itself; BadFrame for any other."""
        data, at = self._in, 0
        if self.layers is None and not self.error and len(data) >= LENGTH.size:
            end = LENGTH.size + LENGTH.unpack_from(data)[0]
            if len(data) < end:
                return
            try:
                hello = json.loads(bytes(data[LENGTH.size : end]))
            except ValueError:
                raise BadFrame from None
            self.layers, self.error = hello.get("layers"), hello.get("error", "")
            self.floor = hello.get("floor")
            self.begin()
            at = end
        while len(data) - at >= HEAD.size:
            frame_bytes, number, outcome = HEAD.unpack_from(data, at)
            is_sound = frame_bytes in self._sound_bytes and outcome < len(STATUSES)
            if not is_sound or number not in self.sent:
                raise BadFrame
            end = at + frame_bytes
            if len(data) < end:
                break
            self.has_answered = True
            yield bytes(data[at:end])
            at = end
        del data[:at]

    def rss_bytes(self) -> int:
        """Returns the resident memory, 0 where it cannot be read."""
        try:
            text = Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii")
        except OSError:
            return 0
        return int(text.split()[1]) * PAGE_BYTES

    def end(self, deadline_s: float) -> None:
        """Closes the socket, which ends the process and its children; kills it after a while."""
        self.socket.close()
        try:
            self._popen.wait(max(0.0, deadline_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> int:
        """Kills the process if it still lives, children and all; returns how it ended."""
        self.socket.close()
        self._popen.kill()
        return self._popen.wait()
