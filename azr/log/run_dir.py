"""The run directory: where it is, and what is written to it at the start of a run."""

import fcntl
import json
import os
from datetime import datetime
from pathlib import Path

from azr.checkpoint import newest_marked_step
from azr.config import Config, ConfigError, to_toml


def create_run_dir(config: Config) -> Path:
    """Returns a new folder `<root>/<date>-<name>`, to which `<root>/latest` then points.

    Raises ConfigError where it cannot be made.
    """
    root = Path(config.run.root)
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{config.run.name}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        for number in range(1, 1000):
            folder = root / (stem if number == 1 else f"{stem}-{number}")
            try:
                folder.mkdir()
                break
            except FileExistsError:
                continue  # another run of this second
        link = root / "latest"
        if link.is_symlink():
            link.unlink()
        if not link.exists():
            link.symlink_to(folder.name, target_is_directory=True)
    except OSError as error:
        raise ConfigError(f"--run.root {config.run.root}: cannot write there: {error}") from error
    (folder / "config.toml").write_text(to_toml(config))
    return folder


def find_resumable(resume: str, config: Config) -> Path | None:
    """Returns the run directory that `--resume` means.

    For "auto" that is the newest one of this name that has a checkpoint, or None where there is
    none yet: a run that was killed before its first checkpoint has nothing to go on from.
    """
    if resume != "auto":
        return Path(resume).resolve()
    found = sorted(Path(config.run.root).glob(f"????????-??????-{config.run.name}*/config.toml"))
    folders = [path.parent.resolve() for path in found]
    return next((f for f in reversed(folders) if newest_marked_step(f) >= 0), None)


class RunLock:
    """Keeps other processes from writing into a run directory."""

    def __init__(self, folder: Path):
        """Raises ConfigError where another process holds it."""
        self._file = open(folder / "lock", "a+")  # noqa: SIM115 - held as long as the run lasts
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.seek(0)
            owner = self._file.read().strip() or "another"
            self._file.close()
            raise ConfigError(
                f"--resume {folder}: process {owner} is writing to it; stop that one first"
            ) from error
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def release(self) -> None:
        """Lets go."""
        Path(self._file.name).unlink(missing_ok=True)
        self._file.close()


def write_json(path: Path, data: dict) -> None:
    """Writes a JSON object, indented."""
    path.write_text(json.dumps(data, indent=2) + "\n")
