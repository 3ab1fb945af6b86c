"""The command line of `python -m azr.train`."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from azr.config.checks import validate
from azr.config.options import Config, tyro
from azr.config.toml import DEFAULT_PRESET, load_toml, preset_path, presets_folder
from azr.errors import ConfigError


@dataclass(frozen=True, slots=True)
class CommandLine:
    """What `python -m azr.train` was asked to do."""

    config: Config
    preset: str
    """File the configuration started from."""
    dry_run: bool
    resume: str = ""
    """Run directory to go on with, or "auto"; empty for a new run."""


USAGE = """Absolute Zero self-play: one model proposes tasks and learns to solve them.

With no argument: a tiny model teaches itself modular inverses on the CPU in minutes.
  --config FILE.toml   start from a preset (configs/*.toml) or from a file of yours; without it
                       from the CPU preset of the family that --env names
  --resume RUN         go on with a run exactly where its last checkpoint is, with its options;
                       `auto`: with the newest run of this name, or start one
  --dry-run            print the resolved configuration and the memory plan, then stop"""

_NEEDS = {
    "--config": "a TOML file, e.g. --config cpu-prime.toml",
    "--resume": "a run directory, e.g. runs/latest, or auto",
}


def parse_command_line(argv: Sequence[str]) -> CommandLine:
    """Returns the validated configuration for the arguments of `python -m azr.train`.

    Raises ConfigError for a bad value; leaves through SystemExit(2) for an unknown flag and
    SystemExit(0) for --help.
    """
    if tyro is None:
        raise ConfigError("tyro, which reads the command line, is not here: pip install tyro")
    rest: list[str] = []
    given, dry_run = dict.fromkeys(_NEEDS, ""), False
    arguments = iter(argv)
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if flag in given:
            given[flag] = value if equals else next(arguments, "")
            if not given[flag]:
                raise ConfigError(f"{flag} needs {_NEEDS[flag]}")
        elif argument in ("--dry-run", "--dry_run"):
            dry_run = True
        else:
            rest.append(argument)
    preset, resume = given["--config"], given["--resume"]
    if resume and resume != "auto":
        path = Path(resume) / "config.toml"
        if not path.is_file():
            raise ConfigError(f"--resume {resume}: no run directory (it has no config.toml)")
        if preset:
            path = preset_path(preset)
    else:
        path = preset_path(preset or _preset_of_family(rest))
    base = load_toml(path)
    config = tyro.cli(
        Config,
        args=rest,
        default=base,
        prog="python -m azr.train",
        description=USAGE,
        config=(tyro.conf.FlagConversionOff,),
    )
    if not config.run.name:
        # That of a run's config.toml is the run's own, not "config".
        name = base.run.name or path.stem
        config = dataclasses.replace(config, run=dataclasses.replace(config.run, name=name))
    validate(config)
    return CommandLine(config=config, preset=str(path), dry_run=dry_run, resume=resume)


def _preset_of_family(arguments: Sequence[str]) -> str:
    """Returns the CPU preset of the family that `--env` names, else the default preset."""
    family = ""
    for argument, after in zip(arguments, [*arguments, ""][1:], strict=True):
        flag, equals, value = argument.partition("=")
        if flag in ("--env", "--task.family"):
            family = value if equals else after
    name = f"cpu-{family}.toml"
    return name if (presets_folder() / name).is_file() else DEFAULT_PRESET
