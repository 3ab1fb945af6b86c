"""The whole configuration of a run: options, TOML files, the command line, and what is refused.

Imports no torch, so that `--help` answers at once. A value comes from the defaults in options.py,
then from `--config FILE.toml`, then from the command line, the last one winning. Each preset in
`configs/` says in comments where it departs from the defaults, which are the paper's.
"""

from azr.config.checks import (
    LARGEST_FLOAT,
    check_process,
    check_resumable,
    shown,
    validate,
    weak_signals,
)
from azr.config.command_line import CommandLine, parse_command_line
from azr.config.options import (
    DASHBOARDS,
    TEMPERATURE_MAX,
    TEMPERATURE_MIN,
    TEMPERATURES,
    Config,
    EvalConfig,
    LogConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    PrimeConfig,
    ProgramConfig,
    RewardConfig,
    RolloutConfig,
    RunConfig,
    SaveConfig,
    SelfPlayConfig,
    TaskConfig,
    WarmupConfig,
    differences,
    field_names,
)
from azr.config.toml import load_toml, preset_path, to_toml, utf8_text
from azr.errors import ConfigError

__all__ = [
    "CommandLine", "Config", "ConfigError", "DASHBOARDS", "EvalConfig", "LARGEST_FLOAT",
    "LogConfig", "LossConfig", "ModelConfig", "OptimConfig", "PrimeConfig", "ProgramConfig",
    "RewardConfig", "RolloutConfig", "RunConfig", "SaveConfig", "SelfPlayConfig", "TEMPERATURES",
    "TEMPERATURE_MAX", "TEMPERATURE_MIN", "TaskConfig", "WarmupConfig", "check_process",
    "check_resumable", "differences", "field_names", "load_toml", "parse_command_line",
    "preset_path", "shown", "to_toml", "utf8_text", "validate", "weak_signals",
]  # fmt: skip
