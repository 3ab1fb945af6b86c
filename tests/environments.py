"""The kinds of host that a sandbox must hold on, made here out of the one that runs the tests.

    python -m tests.environments docker tests/some_script.py    (or -c CODE, or -m MODULE)

becomes root with all capabilities ("root"), root as in an unprivileged Docker container ("docker":
14 capabilities, Docker's seccomp filter), an ordinary user ("user"), or a host that allows no
filters ("weak"); then becomes Python with the rest of the command. Ends with code 77 and a reason
where this host forbids to make that environment.
"""

import ctypes
import ctypes.util
import errno
import os
import platform
import struct
import subprocess
import sys
from pathlib import Path

UNAVAILABLE = 77
NAMES = ("root", "docker", "user", "weak")
USER = 65534

libc = ctypes.CDLL(None, use_errno=True)

PR_CAPBSET_READ, PR_CAPBSET_DROP, PR_SET_SECCOMP = 23, 24, 22
CLONE_NEWNS, MS_REC, MS_PRIVATE, MS_BIND, MS_MOVE = 0x20000, 0x4000, 1 << 18, 4096, 8192

# What Docker grants by default (moby, profiles and oci/caps defaults).
DOCKER_CAPABILITIES = {
    "CHOWN": 0,
    "DAC_OVERRIDE": 1,
    "FOWNER": 3,
    "FSETID": 4,
    "KILL": 5,
    "SETGID": 6,
    "SETUID": 7,
    "SETPCAP": 8,
    "NET_BIND_SERVICE": 10,
    "NET_RAW": 13,
    "SYS_CHROOT": 18,
    "MKNOD": 27,
    "AUDIT_WRITE": 29,
    "SETFCAP": 31,
}

# (x86-64, aarch64) numbers of calls that Docker's filter refuses without CAP_SYS_ADMIN and others.
DOCKER_REFUSES = {
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "unshare": (272, 97),
    "setns": (308, 268),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "pidfd_getfd": (438, 438),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "open_by_handle_at": (304, 265),
    "kexec_load": (246, 104),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "quotactl": (179, 60),
    "acct": (163, 89),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
}


class CannotMake(Exception):
    """This host forbids the environment; says which step."""


def check(result: int, step: str) -> None:
    if result < 0:
        raise CannotMake(f"{step}: {os.strerror(ctypes.get_errno())}")


def install_docker_filter() -> None:
    """Docker's filter in short: the calls above EPERM, clone3 ENOSYS, new namespaces EPERM."""
    column = {"x86_64": 0, "aarch64": 1}[platform.machine()]
    clone = (56, 220)[column]
    give = 0x06  # BPF_RET | BPF_K
    refuse, no_such = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
    allow, load, equal, any_bit = 0x7FFF0000, 0x20, 0x15, 0x45
    code = [(load, 0, 0, 0)]
    for numbers in DOCKER_REFUSES.values():
        code += [(equal, 0, 1, numbers[column]), (give, 0, 0, refuse)]
    code += [(equal, 0, 1, 435), (give, 0, 0, no_such)]
    code += [(equal, 0, 3, clone), (load, 0, 0, 16), (any_bit, 0, 1, 0x7E020000)]
    code += [(give, 0, 0, refuse), (give, 0, 0, allow)]
    install(code)


def forbid_seccomp() -> None:
    """A filter that refuses further filters: a host on which the sandbox's own does not install."""
    prctl, seccomp = {"x86_64": (157, 317), "aarch64": (167, 277)}[platform.machine()]
    refuse = 0x00050000 | errno.EPERM
    code = [(0x20, 0, 0, 0), (0x15, 0, 1, seccomp), (0x06, 0, 0, refuse), (0x15, 0, 3, prctl)]
    code += [(0x20, 0, 0, 16), (0x15, 0, 1, PR_SET_SECCOMP), (0x06, 0, 0, refuse)]
    install([*code, (0x06, 0, 0, 0x7FFF0000)])


def install(code: list[tuple[int, int, int, int]]) -> None:
    """Installs a filter given as (operation, jump if true, jump if false, constant)."""
    packed = b"".join(struct.pack("<HBBI", *instruction) for instruction in code)
    buffer = ctypes.create_string_buffer(packed)
    program = struct.pack("<HxxxxxxQ", len(code), ctypes.addressof(buffer))
    check(libc.prctl(PR_SET_SECCOMP, 2, ctypes.c_char_p(program), 0, 0), "seccomp filter")


def keep_capabilities(kept: set[int]) -> None:
    for number in range(64):
        if libc.prctl(PR_CAPBSET_READ, number, 0, 0, 0) < 0:
            break
        if number not in kept:
            check(libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0), "dropping capabilities")
    mask = sum(1 << number for number in kept)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    header = struct.pack("<Ii", 0x20080522, 0)
    data = struct.pack("<6I", low, low, 0, high, high, 0)
    capset = {"x86_64": 126, "aarch64": 91}[platform.machine()]
    done = libc.syscall(capset, ctypes.c_char_p(header), ctypes.c_char_p(data))
    check(done, "setting capabilities")


def needed_paths() -> list[Path]:
    root = Path(__file__).resolve().parent.parent
    return [Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve(), root]


def closed_ancestor(path: Path) -> Path | None:
    """Returns the first folder on the way that an ordinary user may not enter."""
    for folder in [*reversed(path.parents), path]:
        if not folder.stat().st_mode & 0o001:
            return folder
    return None


def open_way_to(path: Path) -> None:
    """Lets an ordinary user reach an interpreter in a closed home, in a mount namespace of ours:
    an empty folder that is open stands before the closed one, with the needed part inside."""
    closed = closed_ancestor(path)
    if closed is None:
        return
    hold = b"/mnt"
    check(libc.unshare(CLONE_NEWNS), f"{closed} is closed to users, and a mount namespace")
    check(libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None), "private mounts")
    check(libc.mount(os.fsencode(path), hold, None, MS_BIND | MS_REC, None), "bind mount")
    check(libc.mount(b"none", os.fsencode(closed), b"tmpfs", 0, b"mode=755"), "tmpfs")
    path.mkdir(parents=True, mode=0o755)
    check(libc.mount(hold, os.fsencode(path), None, MS_MOVE, None), "moved mount")


def become(name: str) -> None:
    """Makes this process one of that environment."""
    if name not in NAMES:
        raise ValueError(f"environment {name!r} is none of {', '.join(NAMES)}")
    if os.getuid() != 0:
        if name == "user":
            return  # already one
        raise CannotMake("not root")
    if name == "docker":
        install_docker_filter()
        keep_capabilities(set(DOCKER_CAPABILITIES.values()))
    elif name == "weak":
        forbid_seccomp()
    elif name == "user":
        for path in needed_paths():
            open_way_to(path)
        os.setgroups([])
        os.setresgid(USER, USER, USER)
        os.setresuid(USER, USER, USER)


def run_in(name: str, *command: str, timeout_s: float = 300) -> str:
    """Returns what Python prints with such a rest of the command, there; skips the test that asks
    where the environment cannot be made, and fails it where the command fails."""
    import pytest

    done = subprocess.run(
        [sys.executable, "-m", "tests.environments", name, *command],
        cwd=Path(__file__).resolve().parent.parent,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    if done.returncode == UNAVAILABLE:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    return done.stdout


def main() -> None:
    name, *command = sys.argv[1:]
    try:
        become(name)
    except CannotMake as error:
        print(f"cannot make the environment {name!r} here: {error}", file=sys.stderr)
        sys.exit(UNAVAILABLE)
    os.execv(sys.executable, [sys.executable, *command])


if __name__ == "__main__":
    main()
