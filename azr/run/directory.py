"""The run directory: where it is, and what is written to it at the start of a run."""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from azr.config import Config, ConfigError, load_toml, to_toml
from azr.run.checkpoint import newest_marked_step, remove_tree
from azr.run.files import write_whole


def create_run_dir(config: Config) -> Path:
    """Returns a new folder `<root>/<date>-<name>`, to which `<root>/latest` then points.

    Raises ConfigError where it cannot be made.
    """
    root = Path(config.run.root)
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{config.run.name}"
    folder = None
    try:
        root.mkdir(parents=True, exist_ok=True)
        folder = _new_folder(root, stem)
        write_whole(folder / "config.toml", to_toml(config))
        link = root / "latest"
        if link.is_symlink() or not link.exists():
            # Made beside and moved: at no moment is there none, whoever else starts a run.
            (folder / "latest").symlink_to(folder.name, target_is_directory=True)
            os.replace(folder / "latest", link)
    except OSError as error:
        if folder:
            with suppress(OSError):
                remove_tree(folder)
        raise ConfigError(
            f"--run.root {config.run.root}: cannot write there: {error.strerror}; make room, or "
            "name another folder"
        ) from error
    return folder


def _new_folder(root: Path, stem: str) -> Path:
    folder, number = root / stem, 1
    while True:
        try:
            folder.mkdir()
            return folder
        except FileExistsError:  # another run of this second
            number += 1
            folder = root / f"{stem}-{number}"


def find_resumable(resume: str, config: Config) -> Path | None:
    """Returns the run directory that `--resume` means.

    For "auto" that is the newest one of this name that has a checkpoint, or None where there is
    none yet: a run that was killed before its first checkpoint has nothing to go on from. Raises
    ConfigError where it is this name's by the name of its folder and its config.toml cannot be
    read.
    """
    if resume != "auto":
        return Path(resume).resolve()
    runs = (f for f in _newest_first(Path(config.run.root)) if newest_marked_step(f) >= 0)
    return next((f.resolve() for f in runs if _is_named(f, config.run.name)), None)


def _newest_first(root: Path) -> Iterator[Path]:
    with suppress(OSError):
        folders = [f for f in root.iterdir() if re.match(r"[0-9]{8}-[0-9]{6}-", f.name)]
        # Runs of one second: -10 comes after -2.
        yield from sorted(folders, key=lambda f: (f.name[:15], len(f.name), f.name), reverse=True)


def _is_named(folder: Path, name: str) -> bool:
    """Whether a run has this name, which may be another than its folder has: --run.name is free."""
    try:
        return load_toml(folder / "config.toml").run.name == name
    except ConfigError:
        if re.fullmatch(re.escape(name) + r"(-[0-9]+)?", folder.name[16:]):
            raise
        return False


class RunLock:
    """Keeps other processes from writing into a run directory."""

    def __init__(self, folder: Path):
        """Raises ConfigError where another process holds it."""
        while True:
            # Held as long as the run lasts.
            self._file = open(folder / "lock", "a+", encoding="utf-8", errors="replace")  # noqa: SIM115
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                self._file.seek(0)
                owner = self._file.read(20).strip() or "another"
                self._file.close()
                raise ConfigError(
                    f"--resume {folder}: process {owner} is writing to it; stop that one first"
                ) from error
            if self._is_in_place():
                break
            self._file.close()  # a run that ended has removed it since
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def _is_in_place(self) -> bool:
        with suppress(FileNotFoundError):
            return os.path.samestat(os.stat(self._file.name), os.fstat(self._file.fileno()))
        return False

    def release(self) -> None:
        """Lets go."""
        with suppress(OSError):  # what is left of it locks nothing
            Path(self._file.name).unlink()
        self._file.close()
