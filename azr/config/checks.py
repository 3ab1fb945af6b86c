"""What can be said of a configuration before a model is there: errors, and warnings."""

import os
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from azr.config.options import (
    DASHBOARDS,
    NAME_BYTES,
    TEMPERATURE_MAX,
    TEMPERATURE_MIN,
    TEMPERATURES,
    Config,
    differences,
    fields_of,
    value_of,
)
from azr.errors import ConfigError


def check_process() -> None:
    """Raises ConfigError where the process itself was started in a way that nothing can run in."""
    try:
        os.getcwd()
    except OSError as error:
        raise ConfigError(
            f"the working directory is gone ({error.strerror}): cd to one that is there"
        ) from error
    if sys.flags.optimize > 1:
        raise ConfigError(
            f"Python optimises at level {sys.flags.optimize} and drops the docstrings that "
            "transformers reads: unset PYTHONOPTIMIZE and leave out -OO (-O is fine)"
        )


LARGEST_FLOAT, LARGEST_INT = 1e15, 2**63 - 1
"""The largest values of any option: sums of squares of the one fit fp32, the other 64 bits."""

_INSTEAD_OF_INFINITY = {
    "loss.tis_cap": "0 turns it off",
    "loss.dual_clip": "0 turns it off",
    "rollout.cache_gib": "0 takes what is free",
    "loss.clip_high": "1e9 clips nothing",
    "optim.grad_clip": "1e9 clips nothing",
    "reward.novelty_cap": "1e9 caps nothing",
}


def fault_of(value: Any, hint: Any, name: str) -> str:
    """Returns in what a value is none of its field's type, "" where it is one."""
    origin = typing.get_origin(hint)
    if origin is Literal:
        allowed = typing.get_args(hint)
        if any(type(value) is type(a) and value == a for a in allowed):
            return ""
        return f"must be one of {list(allowed)}"
    if origin is tuple:
        if type(value) is not tuple or not all(type(v) is str for v in value):
            return "must be a list of strings (in Python a tuple)"
        return next((fault for v in value if (fault := fault_of(v, str, name))), "")
    if type(value) is not hint and (hint is not float or type(value) is not int):
        return f"must be of type {hint.__name__}"
    if hint is int and abs(value) > LARGEST_INT:
        return f"must be at most {LARGEST_INT} either way"
    if hint is float and not abs(value) <= LARGEST_FLOAT:  # a NaN as well
        instead = f"; {_INSTEAD_OF_INFINITY[name]}" if name in _INSTEAD_OF_INFINITY else ""
        return f"must be a finite number, at most 1e15 either way{instead}"
    if hint is str and any(c == "\0" or "\ud800" <= c <= "\udfff" for c in str(value)):
        return "must be text without NUL and unpaired surrogates"
    return ""


def shown(value: Any) -> str:
    """Returns the value as a message shows it; a very long number is cut, and shown in hex."""
    if isinstance(value, int) and abs(value) > LARGEST_INT:
        value = hex(value)  # Python refuses decimals of so many digits
    try:
        text = repr(value).replace("\n", " ")
    except ValueError:  # such a number deeper inside
        text = f"a {type(value).__name__} with a number of too many digits"
    return text if len(text) <= 80 else f"{text[:60]}..."


_RANGES: tuple[tuple[str, Callable[[Any], object], str], ...] = (
    (
        "steps run.threads model.hidden model.layers model.heads model.kv_heads model.ffn "
        "warmup.batch_size rollout.slots selfplay.proposals_per_type selfplay.estimate_samples "
        "selfplay.solver_tasks_per_type selfplay.solver_samples_per_task selfplay.buffer_size "
        "selfplay.seed_tasks selfplay.seed_rounds optim.epochs optim.minibatches "
        "optim.micro_batch_tokens eval.every log.every save.keep_last",
        lambda value: value >= 1,
        "must be at least 1",
    ),
    (
        "run.seed task.references warmup.steps rollout.top_k rollout.max_new_tokens "
        "rollout.max_prompt_tokens eval.samples optim.warmup_steps optim.schedule_steps "
        "optim.weight_decay loss.entropy_coef loss.kl_coef loss.clip_high reward.complexity_coef "
        "reward.distance_coef reward.answer_coef reward.novelty_cap loss.tis_cap save.every "
        "save.keep_every rollout.cache_gib task.program.sandbox_workers",
        lambda value: value >= 0,
        "must not be negative",
    ),
    (
        "rollout.temperature selfplay.estimate_temperature",
        lambda value: TEMPERATURE_MIN <= value <= TEMPERATURE_MAX,
        f"must be {TEMPERATURES}: training samples from the policy (greedy answers belong to eval)",
    ),
    ("run.threads task.program.sandbox_workers", lambda n: n <= 1024, "must be at most 1024"),
    ("task.program.cpu_s", lambda s: 1e-6 <= s <= 3600, "must be in [1e-6, 3600]"),
    ("warmup.lr optim.lr", lambda rate: 0 < rate <= 10, "must be in (0, 10]"),
    ("optim.grad_clip", lambda norm: norm > 0, "must be above 0"),
    ("optim.beta1 optim.beta2 loss.clip_low", lambda b: 0 <= b < 1, "must be in [0, 1)"),
    ("optim.decay_start_frac optim.final_lr_frac", lambda f: 0 <= f <= 1, "must be in [0, 1]"),
    ("rollout.top_p", lambda p: 0 < p <= 1, "must be in (0, 1]; 1 is off"),
    ("rollout.min_p", lambda p: 0 <= p < 1, "must be in [0, 1); 0 is off"),
    ("loss.dual_clip", lambda c: c == 0 or c > 1, "must be above 1, or 0 for off"),
    ("task.types", len, "needs at least one task type"),
    ("task.types", lambda names: len(set(names)) == len(names), "names a type twice"),
    ("log.to", lambda names: {*names} <= {*DASHBOARDS}, f"known are {', '.join(DASHBOARDS)}"),
    ("log.to", lambda names: len(set(names)) == len(names), "names one twice"),
    (
        "run.name",
        lambda name: (
            name.isprintable()
            and "/" not in name
            and (not name or name.strip(". "))
            and len(name.encode()) <= NAME_BYTES
        ),
        f"must do as a folder's name: printable, without /, at most {NAME_BYTES} bytes",
    ),
)
"""(options, what each of their values must fulfil, that in words)"""


def validate(config: Config) -> None:
    """Checks every range and combination that can be checked without a model.

    Raises ConfigError that names the field, its value and what to do.
    """

    def need(ok: object, name: str, rule: str) -> None:
        if not ok:
            raise ConfigError(f"--{name} {shown(value_of(config, name))}: {rule}")

    # A configuration that is made in Python has met no parser.
    for name, hint in fields_of():
        try:
            fault = fault_of(value_of(config, name), hint, name)
        except AttributeError as error:
            raise ConfigError(f"{name}: its section is no section of a Config: {error}") from error
        need(not fault, name, fault)
    for names, holds, rule in _RANGES:
        for name in names.split():
            need(holds(value_of(config, name)), name, rule)
    play, loss, optim, model = config.selfplay, config.loss, config.optim, config.model
    need(
        optim.lr * optim.weight_decay < 1,
        "optim.weight_decay",
        f"times --optim.lr {optim.lr:g} must be below 1: 1 leaves nothing of the weights",
    )
    need(
        (loss.kl == "none") == (loss.kl_coef == 0),
        "loss.kl_coef",
        f"does not go with --loss.kl {loss.kl}: set both or neither",
    )
    need(
        not config.rollout.is_truncated or loss.tis_cap > 0,
        "loss.tis_cap",
        "truncated sampling (top-p, top-k, min-p) needs the mismatch correction: give a cap, say 2",
    )
    if play.solver_samples == "estimate":
        need(
            play.solve_lag == 0,
            "selfplay.solve_lag",
            "the estimate's samples are this step's: use --selfplay.solver-samples fresh with a "
            "lag",
        )
        need(
            play.estimate_temperature == config.rollout.temperature,
            "selfplay.estimate_temperature",
            "must equal --rollout.temperature where the estimate's samples are trained on",
        )
    fits = "must fit in --selfplay.buffer-size"
    need(play.seed_tasks <= play.buffer_size, "selfplay.seed_tasks", fits)
    idle = idle_cells(config)
    if len(idle) == (2 if play.roles == "both" else 1):
        raise ConfigError("; ".join(idle))
    need(model.hidden % model.heads == 0, "model.hidden", "must be a multiple of --model.heads")
    need(model.heads % model.kv_heads == 0, "model.heads", "must be a multiple of model.kv_heads")
    need((model.hidden // model.heads) % 2 == 0, "model.hidden", "needs an even size per head")


def idle_cells(config: Config) -> list[str]:
    """Returns why the advantage of a trained role is 0 in every step, for each role where it is."""
    c = config.selfplay
    samples = c.solver_samples_per_task
    if c.solver_samples == "estimate":
        samples = max(samples, c.estimate_samples)
    sizes = {
        "propose": (c.proposals_per_type, "--selfplay.proposals-per-type 1"),
        "solve": (
            c.solver_tasks_per_type * samples,
            "--selfplay.solver-tasks-per-type 1 with one sample a task",
        ),
    }
    untrained = {"both": "", "solver": "propose", "proposer": "solve"}[c.roles]
    return [
        f"{role}/*: {option} leaves a cell one sample, whose advantage is always 0: the role "
        "learns nothing; give 2 or more"
        for role, (size, option) in sizes.items()
        if size == 1 and role != untrained
    ]


def weak_signals(config: Config) -> list[str]:
    """Returns warnings on what can be trained and is not worth it."""
    found = idle_cells(config)
    c = config.selfplay
    alike = ""
    if c.estimate_samples == 1:
        alike = "--selfplay.estimate-samples 1"
    elif c.estimate_temperature < 0.01:
        alike = f"--selfplay.estimate-temperature {c.estimate_temperature:g}"
    if alike and c.roles != "solver":
        found.append(
            f"propose/*: {alike} makes every solve rate 0 or 1, so that no proposal is paid for "
            "being learnable; give several samples at a temperature of 1"
        )
    for name in ("wrong", "malformed", "invalid_proposal"):
        value = getattr(config.reward, name)
        if value >= 1:
            found.append(f"--reward.{name} {value:g} pays as much as a right answer, which has 1")
    return found


FREE_ON_RESUME = (
    "steps", "eval.every", "save.", "log.", "run.name", "run.root", "run.device",
    "optim.schedule_steps", "optim.micro_batch_tokens", "optim.recompute", "rollout.slots",
    "rollout.cache_gib", "model.fused_layers",
)  # fmt: skip
"""Options that may differ from those of the run that is resumed: those of the last two lines change
nothing but rounding, and a run that ran out of memory goes on with less."""


def check_resumable(config: Config, saved: Config, run_dir: Path) -> None:
    """Raises ConfigError listing the options that would make a resumed run another run."""
    changed = [
        f"--{name} is {value!r}, was {before!r}"
        for name, value, before in differences(config, saved)
        if not name.startswith(FREE_ON_RESUME)
        and (name, value) != ("task.style", "auto")  # the run has settled it
    ]
    if changed:
        raise ConfigError(
            f"--resume {run_dir}: other options than those of the run: {'; '.join(changed)}. Only "
            "steps, optim.schedule_steps, the cadence of eval, save and log, name, device and what "
            "bounds memory or changes rounding alone (rollout.slots, rollout.cache_gib, "
            "optim.micro_batch_tokens, optim.recompute, model.fused_layers) may differ"
        )
