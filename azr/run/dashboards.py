"""Dashboards beside metrics.jsonl, under the same metric names: TensorBoard, wandb, Trackio.

`log.to` names them, and each is an extra of the package. metrics.jsonl stays the record: a
dashboard that fails in the middle of a run is given up with a warning, and the run goes on.
"""

import dataclasses
import importlib.util
import math
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from azr.config import DASHBOARDS, Config, ConfigError


class Dashboard(NamedTuple):
    """One of them, open for one run."""

    write: Callable[[int, Mapping[str, float]], None]
    """Adds a step; every value is finite."""
    close: Callable[[], None]
    """Hands over what is left, and ends."""


def open_tensorboard(config: Config, run_dir: Path, first_step: int) -> Dashboard:
    """Returns event files in the run directory's `tensorboard/`."""
    from torch.utils.tensorboard import SummaryWriter

    # A resumed run writes a file of its own; what the earlier ones hold after it is hidden.
    purge = first_step + 1 if first_step else None
    writer = SummaryWriter(run_dir / "tensorboard", purge_step=purge)

    def write(step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return Dashboard(write, writer.close)


def open_wandb(config: Config, run_dir: Path, first_step: int) -> Dashboard:
    """Returns a wandb run whose id stays in the run directory, so that a resumed run goes on in it.

    WANDB_MODE, WANDB_PROJECT and the login are wandb's own. wandb keeps the steps that it has:
    those between the last checkpoint and a kill are not replaced.
    """
    import wandb

    kept = run_dir / "wandb_id"
    if not kept.exists():
        kept.write_text(secrets.token_hex(4))
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "azr"),
        name=run_dir.name,
        id=kept.read_text(),
        resume="allow",
        dir=run_dir,
        config=dataclasses.asdict(config),
        settings=wandb.Settings(console="off"),  # it would break into the live table
    )
    return Dashboard(lambda step, metrics: run.log(dict(metrics), step=step), run.finish)


def open_trackio(config: Config, run_dir: Path, first_step: int) -> Dashboard:
    """Returns a Trackio run: a local data base, without an account. See TRACKIO_DIR."""
    import trackio

    run = trackio.init(
        project="azr",
        name=run_dir.name,
        config=dataclasses.asdict(config),
        resume="allow",
        embed=False,
        auto_log_cpu=False,
        auto_log_gpu=False,
    )
    return Dashboard(lambda step, metrics: run.log(dict(metrics), step=step), run.finish)


KINDS = dict(zip(DASHBOARDS, (open_tensorboard, open_wandb, open_trackio), strict=True))


class Dashboards:
    """Those that a run writes to."""

    def __init__(
        self, config: Config, run_dir: Path, first_step: int, warn: Callable[[int, str], None]
    ):
        """`first_step` is the step that a resumed run goes on from, 0 for a new one.

        Raises ConfigError where one cannot be opened, no account for it say.
        """
        check_installed(config)
        self._warn = warn
        self._open: dict[str, Dashboard] = {}
        for name in config.log.to:
            try:
                self._open[name] = KINDS[name](config, run_dir, first_step)
            except Exception as error:  # each library raises kinds of its own
                self.close(first_step)
                raise ConfigError(f"--log.to {name}: it cannot be opened: {error}") from error

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a step to each; what is not finite is left out."""
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        for name in list(self._open):
            self._try(step, name, lambda dashboard: dashboard.write(step, finite))

    def close(self, step: int) -> None:
        """Ends each."""
        for name in list(self._open):
            self._try(step, name, lambda dashboard: dashboard.close())
        self._open.clear()

    def _try(self, step: int, name: str, call: Callable[[Dashboard], None]) -> None:
        try:
            call(self._open[name])
        except Exception as error:  # no run is worth a dashboard
            del self._open[name]
            self._warn(step, f"{name} is given up ({type(error).__name__}: {error})")


def check_installed(config: Config) -> None:
    """Raises ConfigError for a dashboard that is not installed, with the line that installs it."""
    for name in config.log.to:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"--log.to {name}: it is not installed; pip install 'azr[{name}]', in a checkout "
                f"pip install -e '.[{name}]'"
            )
