"""The whole configuration of a run: frozen dataclasses, TOML files, command-line overrides.

Imports no torch, so that `--help` answers at once. A value comes from the defaults below, then
from `--config FILE.toml`, then from the command line, the last one winning. The defaults are the
paper's (arXiv:2505.03335); each preset in `configs/` says in comments where it departs from them.
"""

import codecs
import dataclasses
import difflib
import os
import sys
import tomllib
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

try:
    import tyro
except ModuleNotFoundError:  # rollouts, updates and `azr.train.run` read no command line
    tyro = None

DEFAULT_PRESET = "cpu-prime.toml"

TEMPERATURE_MIN, TEMPERATURE_MAX = 1e-5, 1e5
"""Between them a logit over the temperature is a number in fp32."""

NAME_BYTES = 200
"""Longest run.name: a folder's name is this with a date and a number, in 255 bytes."""

DASHBOARDS = ("tensorboard", "wandb", "trackio")
"""What `log.to` may name."""


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names the field, the value and the fix."""


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


def _short_name(flag: str) -> object:
    """Returns what makes `flag` a second name of the option that it annotates."""
    return tyro.conf.arg(aliases=[flag]) if tyro else flag


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Where and how the process runs."""

    name: str = ""
    """Name in the run directory; empty means the name of the preset."""
    root: str = "runs"
    """Folder that holds the run directories."""
    seed: Annotated[int, _short_name("--seed")] = 0
    """Seed of every random stream. On the CPU two runs with one seed on one machine are
    bit-equal; on a GPU they draw the same noise, and gradients differ in their last bits."""
    device: Annotated[Literal["cpu", "cuda"], _short_name("--device")] = "cpu"
    """Where the model lives."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights and of the forward pass. bfloat16 is for GPUs; on a CPU it is slower."""
    threads: int = 1
    """Torch threads on the CPU. On a shared two-core machine two threads ran 3x slower than one."""
    watchdog_s: float = 900.0
    """Seconds without a finished step after which all stacks go to stacks.txt; 0 turns it off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrimeConfig:
    """Options of the task family `prime`."""

    max_p: int = 23
    """Difficulty: the largest number a prime may be. 23 is learned in minutes by a tiny model."""
    number_tokens: Literal["number", "digit"] = "number"
    """Tokens of the tiny model: one per integer, or decimal digits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramConfig:
    """Options of the task family `program`."""

    inputs: int = 10
    """N: inputs of an induction task, of which the solver sees the first half."""
    cpu_s: float = 2.0
    """CPU seconds that a program may take on one input."""
    max_output_chars: int = 400
    """A program with a longer output is no task; the official code cuts the output instead."""
    sandbox_workers: int = 0
    """Programs that run at the same time; 0 is one for each core of this process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskConfig:
    """What is proposed and solved."""

    family: Annotated[str, _short_name("--env")] = "prime"
    """Task family: a name registered under the entry point `azr.environments`."""
    types: tuple[str, ...] = ("deduction", "abduction", "induction")
    """Task types that take part; a subset is the paper's ablation."""
    references: int = 6
    """K: tasks from the buffer shown to the proposer."""
    style: str = "auto"
    """How prompts are dressed: `compact` for a tiny model's own vocabulary, `r1` in plain text,
    `chat` in the tokenizer's chat template. `auto` is settled at start by the model."""
    prime: PrimeConfig = field(default_factory=PrimeConfig)
    program: ProgramConfig = field(default_factory=ProgramConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Which model is trained."""

    path: Annotated[str, _short_name("--model")] = ""
    """HF model folder or hub id; empty makes a tiny Qwen2 from scratch with the sizes below."""
    hidden: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    ffn: int = 160


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmupConfig:
    """Format warm-up: well-formed text, uniformly random answers."""

    steps: int = 100
    """0 turns it off."""
    loaded: bool = False
    """Warm up a model given by --model as well: one that cannot keep to the answer format. Give a
    `lr` of its size then."""
    batch_size: int = 256
    lr: float = 3e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutConfig:
    """How completions are sampled."""

    temperature: float = 1.0
    """Temperature of proposals and solutions, and of every log-prob in the loss."""
    top_p: float = 1.0
    top_k: int = 0
    """0 is off."""
    min_p: float = 0.0
    max_new_tokens: int = 0
    """0 takes the environment's own length for each role and type; text prompts need a number."""
    max_prompt_tokens: int = 0
    """Longest prompt; 0 is what `max_new_tokens` leaves of the model's context. A longer one drops
    references until it fits; a task whose own prompt is longer is no valid task."""
    slots: int = 1024
    """Completions that are decoded together; bounds the KV cache."""
    cache_gib: float = 0.0
    """Bound on the KV cache; 0 takes what is free. What does not fit waits its turn."""
    attention: Literal["auto", "flash-attn", "torch-varlen", "torch-aten", "sdpa"] = "auto"
    """Attention backend of rollouts and training; `auto` takes the first that can run here."""

    @property
    def is_truncated(self) -> bool:
        """Whether some tokens cannot be drawn."""
        return self.top_p < 1 or self.top_k > 0 or self.min_p > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfPlayConfig:
    """One step's propose, estimate and solve phases (paper, Algorithm 1)."""

    proposals_per_type: int = 64
    """B proposals for each task type."""
    estimate_samples: int = 8
    """G: solver samples that estimate a valid proposal's solve rate."""
    estimate_temperature: float = 1.0
    """Temperature of those samples, always given explicitly: greedy samples would all agree."""
    solver_tasks_per_type: int = 64
    """B tasks solved for each type: this step's valid ones first, then drawn from the buffer."""
    solver_samples_per_task: int = 1
    """Trained solver samples for each of these tasks."""
    solver_samples: Literal["fresh", "estimate"] = "fresh"
    """`fresh`: sample this step's tasks anew (paper). `estimate`: train on the estimate's own
    samples too, and sample anew only tasks drawn from the buffer."""
    solve_lag: Literal[0, 1] = 0
    """0: solve this step's proposals (paper). 1: those of the step before (official code)."""
    sampling: Literal["uniform", "recency"] = "uniform"
    """How references and buffer tasks are drawn; `recency` weighs by step of insertion."""
    roles: Literal["both", "solver", "proposer"] = "both"
    """Whose samples are trained on. `solver` is the paper's ablation: proposals still come."""
    buffer_size: int = 16384
    """Tasks kept for each type; the oldest leave first."""
    seed_tasks: int = 256
    """Tasks for each type that fill the buffer before the first update."""
    seed_source: Literal["model", "environment"] = "model"
    """Seeds proposed by the model itself without updates (paper), or drawn by the environment."""
    seed_rounds: int = 50
    """Rounds after which the environment tops up a buffer that the model could not fill."""
    seed_file: str = ""
    """Seeds to begin with: a run's seeds.jsonl, or tasks of yours in the same form."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardConfig:
    """Values of the reward table (paper, Eq. 4 to 6)."""

    malformed: float = -1.0
    """An answer or proposal that does not parse."""
    wrong: float = -0.5
    """A well-formed but wrong answer."""
    invalid_proposal: float = -1.0
    """A well-formed proposal that is no task. -1 in the paper: validity is part of the format."""
    zero_learnability: float = 0.0
    """A valid proposal that is always or never solved: 0 in the paper, -0.5 in official code."""
    complexity_coef: float = 0.0
    """Weight of a proposal's cyclomatic complexity; the three weights are off in the paper."""
    distance_coef: float = 0.0
    """Weight of its distance from the references that its proposer saw."""
    answer_coef: float = 0.0
    """Weight of how rare its answer is in the buffer."""
    novelty_cap: float = 0.5
    """Most that each of the three may add to a reward."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """Advantage and policy loss."""

    whiten: Literal["sequence", "token"] = "sequence"
    """Statistics of a (role, type) cell over samples (paper, Eq. 8) or tokens (official code)."""
    reduction: Literal["token", "seq-mean"] = "token"
    """Mean over all tokens of the batch, or mean over samples of their token means."""
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float = 0.0
    """Bound on ratio times negative advantage; 0 is off, 3 in official code."""
    entropy_coef: float = 0.001
    kl: Literal["none", "k1", "k2", "k3"] = "none"
    """KL to the frozen start model. k2's gradient is the reverse KL's; k1 has none on average."""
    kl_coef: float = 0.0
    tis_cap: float = 2.0
    """Cap of the truncated importance weight against rollout log-probs; 0 turns it off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimConfig:
    """AdamW and its schedule, counted in training steps."""

    lr: float = 1e-6
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    warmup_steps: int = 0
    schedule_steps: int = 0
    """Steps over which the rate's schedule runs; 0 takes --steps. A run that goes on keeps the one
    that it began with, and stays at the last rate after it."""
    decay_start_frac: float = 1.0
    """Fraction of the schedule after which the rate falls linearly; 1 keeps it constant."""
    final_lr_frac: float = 0.1
    """Fraction of the rate at the schedule's last step, where it decays."""
    epochs: int = 1
    """Passes over a step's samples."""
    minibatches: int = 1
    """Updates in a pass. With one update a step the ratio is 1 and the clip cannot act."""
    micro_batch_tokens: int = 16384
    """Tokens in one forward pass; bounds the activations, changes nothing else."""
    bf16_update: Literal["master", "stochastic"] = "master"
    """How bfloat16 weights take updates smaller than their own precision: through fp32 copies
    (18 bytes a parameter in all), or by stochastic rounding (8 bytes). Idle for float32."""
    recompute: bool = False
    """Compute each layer's activations again in the backward pass instead of keeping them."""
    max_bad_updates: int = 5
    """Updates in a row with a NaN or Inf that are skipped before the run stops."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalConfig:
    """Evaluation during training, on every distinct task of the family (or a fixed sample)."""

    every: int = 10
    samples: int = 8
    """Samples per task at temperature 1, beside the greedy answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveConfig:
    """Checkpoints, each of which a run can go on from exactly."""

    every: int = 100
    """Steps between two checkpoints; 0 saves at the end and when stopped only."""
    keep_last: int = 2
    """Newest checkpoints that are kept."""
    keep_every: int = 0
    """Checkpoints at multiples of so many steps are kept for good; 0 keeps none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    """What is shown and kept."""

    every: int = 1
    """Steps between two lines on a terminal that cannot redraw."""
    plain: bool = False
    """Plain lines even where the terminal can redraw."""
    samples: bool = True
    """Write every task and sample to run.db."""
    to: tuple[str, ...] = ()
    """Dashboards that get the metrics too: tensorboard, wandb, trackio."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A run of `python -m azr.train`."""

    steps: int = 500
    """Training steps, as an absolute target."""
    run: RunConfig = field(default_factory=RunConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    warmup: WarmupConfig = field(default_factory=WarmupConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    selfplay: SelfPlayConfig = field(default_factory=SelfPlayConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    save: SaveConfig = field(default_factory=SaveConfig)
    log: LogConfig = field(default_factory=LogConfig)


@dataclass(frozen=True, slots=True)
class CommandLine:
    """What `python -m azr.train` was asked to do."""

    config: Config
    preset: str
    """File the configuration started from."""
    dry_run: bool
    resume: str = ""
    """Run directory to go on with, or "auto"; empty for a new run."""


def preset_path(name: str) -> Path:
    """Returns the file meant by `--config name`: a path, or a preset of this package by its name.

    Raises ConfigError naming the presets where there is no such file.
    """
    path = Path(name)
    if path.is_file():
        return path
    presets = _presets_folder()
    candidate = presets / (path.name if path.suffix else path.name + ".toml")
    if candidate.is_file() and path.parent.name in ("", "configs"):
        return candidate
    known = ", ".join(sorted(p.name for p in presets.glob("*.toml")))
    raise ConfigError(f"--config {name}: no such file; presets that come with azr: {known}")


def _presets_folder() -> Path:
    """Installed, the presets stand inside the package; in a checkout, beside it."""
    package = Path(__file__).resolve().parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def load_toml(path: Path) -> Config:
    """Returns the configuration in a TOML file over the defaults.

    Raises ConfigError for a file that is no TOML, an unknown key (with the nearest known one) or
    a value that is none of the field's type.
    """
    try:
        table = tomllib.loads(utf8_text(path.read_bytes()))
    except (OSError, ValueError, RecursionError) as error:  # no TOML, or not even text
        raise ConfigError(f"{path}: {error}") from error
    return _from_table(Config, table, where="", source=str(path))


_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # before UTF-16's, which it begins with
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def utf8_text(data: bytes) -> str:
    """Returns the text of a file without its byte-order mark.

    Raises ValueError for another encoding, and names it where its own mark does.
    """
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if data.startswith(mark):
            raise ValueError(f"the file is {encoding}: save it as UTF-8")
    if b"\0" in data:
        raise ValueError("the file holds NUL bytes, as UTF-16 does: save it as UTF-8 text")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"the file is not UTF-8 ({error}): save it as UTF-8") from error


def _from_table(cls: type, table: dict[str, Any], *, where: str, source: str):
    hints = typing.get_type_hints(cls)
    values = {}
    for key, value in table.items():
        name = f"{where}{key}"
        if key not in hints:
            raise ConfigError(f"{source}: unknown key {name}{_nearest(name)}")
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, dict):
                raise ConfigError(f"{source}: {name} is a table of options, got {value!r}")
            values[key] = _from_table(hints[key], value, where=f"{name}.", source=source)
        else:
            values[key] = _checked(value, hints[key], name, source)
    return cls(**values)


def _checked(value: Any, hint: Any, name: str, source: str) -> Any:
    if typing.get_origin(hint) is tuple and type(value) is list:
        value = tuple(value)
    if fault := _fault(value, hint, name):
        raise ConfigError(f"{source}: {name} {fault}, got {shown(value)}")
    return float(value) if hint is float else value


LARGEST_FLOAT, LARGEST_INT = 1e15, 2**63 - 1
"""The largest values of any option: sums of squares of the one fit fp32, the other 64 bits."""

_INSTEAD_OF_INFINITY = {
    "loss.tis_cap": "0 turns it off",
    "loss.dual_clip": "0 turns it off",
    "run.watchdog_s": "0 turns it off",
    "rollout.cache_gib": "0 takes what is free",
    "loss.clip_high": "1e9 clips nothing",
    "optim.grad_clip": "1e9 clips nothing",
    "reward.novelty_cap": "1e9 caps nothing",
}


def _fault(value: Any, hint: Any, name: str) -> str:
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
        return next((fault for v in value if (fault := _fault(v, str, name))), "")
    if type(value) is not hint and (hint is not float or type(value) is not int):
        return f"must be of type {hint.__name__}"
    if hint is int and abs(value) > LARGEST_INT:
        return f"must be at most {LARGEST_INT} either way"
    if hint is float and not abs(value) <= LARGEST_FLOAT:  # a NaN as well
        instead = f"; {_INSTEAD_OF_INFINITY[name]}" if name in _INSTEAD_OF_INFINITY else ""
        return f"must be a finite number, at most 1e15 either way{instead}"
    if hint is str and any(c == "\0" or "\ud800" <= c <= "\udfff" for c in value):
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


def field_names() -> list[str]:
    """Returns the dotted names of all options."""
    return [name for name, _ in _fields()]


def _fields(cls: type = Config, where: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the dotted name and the type of every option."""
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from _fields(hint, f"{where}{name}.")
        else:
            yield where + name, hint


def _nearest(name: str) -> str:
    names = field_names()
    # Of several options with one last word the shortest name is meant: steps, not warmup.steps.
    by_tail = {n.rsplit(".", 1)[-1]: n for n in sorted(names, key=len, reverse=True)}
    tail = name.rsplit(".", 1)[-1]
    if tail in by_tail:
        return f"; did you mean {by_tail[tail]}?"
    for wanted, known in ((name, names), (tail, by_tail)):
        match = difflib.get_close_matches(wanted, known, n=1, cutoff=0.6)
        if match:
            return f"; did you mean {by_tail.get(match[0], match[0])}?"
    return "; see --help for the options"


def to_toml(config: Any) -> str:
    """Returns the resolved configuration as TOML text that `load_toml` reads back to itself."""
    lines: list[str] = []

    def emit(part: Any, where: str) -> None:
        tables = []
        for f in dataclasses.fields(part):
            value = getattr(part, f.name)
            if dataclasses.is_dataclass(value):
                tables.append((f"{where}{f.name}", value))
            else:
                lines.append(f"{f.name} = {_toml_value(value)}")
        for name, value in tables:
            lines.extend(["", f"[{name}]"])
            emit(value, f"{name}.")

    emit(config, "")
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in escaped) + '"'
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml_value(v) for v in value) + "]"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, int):
        return str(value)
    raise TypeError(f"no TOML form for {value!r}")


def validate(config: Config) -> None:
    """Checks every range and combination that can be checked without a model.

    Raises ConfigError that names the field, its value and what to do.
    """

    def need(ok: bool, name: str, rule: str) -> None:
        if not ok:
            raise ConfigError(f"--{name} {shown(_get(config, name))}: {rule}")

    # A configuration that is made in Python has met no parser.
    for name, hint in _fields():
        try:
            fault = _fault(_get(config, name), hint, name)
        except AttributeError as error:
            raise ConfigError(f"{name}: its section is no section of a Config: {error}") from error
        need(not fault, name, fault)
    for name in (
        "steps run.threads model.hidden model.layers model.heads model.kv_heads model.ffn "
        "warmup.batch_size rollout.slots selfplay.proposals_per_type selfplay.estimate_samples "
        "selfplay.solver_tasks_per_type selfplay.solver_samples_per_task selfplay.buffer_size "
        "selfplay.seed_tasks selfplay.seed_rounds optim.epochs optim.minibatches "
        "optim.micro_batch_tokens optim.max_bad_updates eval.every log.every save.keep_last "
        "task.program.max_output_chars"
    ).split():
        need(_get(config, name) >= 1, name, "must be at least 1")
    for name in (
        "run.seed task.references warmup.steps rollout.top_k rollout.max_new_tokens "
        "rollout.max_prompt_tokens eval.samples optim.warmup_steps optim.schedule_steps "
        "optim.weight_decay loss.entropy_coef loss.kl_coef reward.complexity_coef "
        "reward.distance_coef reward.answer_coef reward.novelty_cap loss.tis_cap save.every "
        "save.keep_every run.watchdog_s rollout.cache_gib task.program.sandbox_workers"
    ).split():
        need(_get(config, name) >= 0, name, "must not be negative")
    need(config.optim.grad_clip > 0, "optim.grad_clip", "must be above 0")
    for name in ("warmup.lr", "optim.lr"):
        need(0 < _get(config, name) <= 10, name, "must be in (0, 10]")
    for name in ("rollout.temperature", "selfplay.estimate_temperature"):
        need(
            TEMPERATURE_MIN <= _get(config, name) <= TEMPERATURE_MAX,
            name,
            "must be from 1e-5 to 1e5: training samples from the policy (greedy answers belong to "
            "eval)",
        )
    for name, most in (
        ("run.threads", 1024),
        ("run.watchdog_s", 10**9),
        ("task.program.sandbox_workers", 1024),
        ("task.program.max_output_chars", 10**6),
    ):
        need(_get(config, name) <= most, name, f"must be at most {most}")
    need(1e-6 <= config.task.program.cpu_s <= 3600, "task.program.cpu_s", "must be in [1e-6, 3600]")
    need(
        config.optim.lr * config.optim.weight_decay < 1,
        "optim.weight_decay",
        f"times --optim.lr {config.optim.lr:g} must be below 1: 1 leaves nothing of the weights",
    )
    for name in ("optim.beta1", "optim.beta2"):
        need(0 <= _get(config, name) < 1, name, "must be in [0, 1)")
    for name in ("optim.decay_start_frac", "optim.final_lr_frac"):
        need(0 <= _get(config, name) <= 1, name, "must be in [0, 1]")
    need(0 < config.rollout.top_p <= 1, "rollout.top_p", "must be in (0, 1]; 1 is off")
    need(0 <= config.rollout.min_p < 1, "rollout.min_p", "must be in [0, 1); 0 is off")
    need(0 <= config.loss.clip_low < 1, "loss.clip_low", "must be in [0, 1)")
    need(config.loss.clip_high >= 0, "loss.clip_high", "must not be negative")
    need(
        config.loss.dual_clip == 0 or config.loss.dual_clip > 1,
        "loss.dual_clip",
        "must be above 1, or 0 for off",
    )
    need(
        (config.loss.kl == "none") == (config.loss.kl_coef == 0),
        "loss.kl_coef",
        f"does not go with --loss.kl {config.loss.kl}: set both or neither",
    )
    need(
        not config.rollout.is_truncated or config.loss.tis_cap > 0,
        "loss.tis_cap",
        "truncated sampling (top-p, top-k, min-p) needs the mismatch correction: give a cap, say 2",
    )
    need(
        config.selfplay.solver_samples == "fresh" or config.selfplay.solve_lag == 0,
        "selfplay.solve_lag",
        "the estimate's samples are this step's: use --selfplay.solver-samples fresh with a lag",
    )
    need(
        config.selfplay.solver_samples == "fresh"
        or config.selfplay.estimate_temperature == config.rollout.temperature,
        "selfplay.estimate_temperature",
        "must equal --rollout.temperature where the estimate's samples are trained on",
    )
    need(
        config.selfplay.seed_tasks <= config.selfplay.buffer_size,
        "selfplay.seed_tasks",
        "must fit in --selfplay.buffer-size",
    )
    idle = idle_cells(config)
    if len(idle) == (2 if config.selfplay.roles == "both" else 1):
        raise ConfigError("; ".join(idle))
    need(len(config.task.types) > 0, "task.types", "needs at least one task type")
    need(len(set(config.task.types)) == len(config.task.types), "task.types", "names a type twice")
    to = config.log.to
    need(set(to) <= set(DASHBOARDS), "log.to", f"known are {', '.join(DASHBOARDS)}")
    need(len(set(to)) == len(to), "log.to", "names one twice")
    name = config.run.name
    need(
        name.isprintable()
        and "/" not in name
        and (not name or name.strip(". ") != "")
        and len(name.encode()) <= NAME_BYTES,
        "run.name",
        f"must do as a folder's name: printable, without /, at most {NAME_BYTES} bytes",
    )
    model = config.model
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


def _get(config: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        config = getattr(config, part)
    return config


USAGE = """Absolute Zero self-play: one model proposes tasks and learns to solve them.

With no argument: a tiny model teaches itself modular inverses on the CPU in minutes.
  --config FILE.toml   start from a preset (configs/*.toml) or from a file of yours; without it
                       from the CPU preset of the family that --env names
  --resume RUN         go on with a run exactly where its last checkpoint is, with its options;
                       `auto`: with the newest run of this name, or start one
  --dry-run            print the resolved configuration and the memory plan, then stop"""

FREE_ON_RESUME = (
    "steps", "eval.every", "save.", "log.", "run.name", "run.root", "run.device", "run.watchdog_s",
    "optim.schedule_steps", "optim.micro_batch_tokens", "optim.recompute", "rollout.slots",
    "rollout.cache_gib",
)  # fmt: skip
"""Options that may differ from those of the run that is resumed: those of the last two lines that
bound memory change nothing but rounding, and a run that ran out of it goes on with less."""


def parse_command_line(argv: Sequence[str]) -> CommandLine:
    """Returns the validated configuration for the arguments of `python -m azr.train`.

    Raises ConfigError for a bad value; leaves through SystemExit(2) for an unknown flag and
    SystemExit(0) for --help.
    """
    if tyro is None:
        raise ConfigError("tyro, which reads the command line, is not here: pip install tyro")
    rest: list[str] = []
    preset, resume, dry_run = "", "", False
    arguments = iter(argv)
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if flag == "--config":
            preset = value if equals else next(arguments, "")
            if not preset:
                raise ConfigError("--config needs a TOML file, e.g. --config cpu-prime.toml")
        elif flag == "--resume":
            resume = value if equals else next(arguments, "")
            if not resume:
                raise ConfigError("--resume needs a run directory, e.g. runs/latest, or auto")
        elif argument in ("--dry-run", "--dry_run"):
            dry_run = True
        else:
            rest.append(argument)
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
    return name if (_presets_folder() / name).is_file() else DEFAULT_PRESET


def differences(config: Any, other: Any, where: str = "") -> list[tuple[str, Any, Any]]:
    """Returns (dotted name, value, other value) for every option in which two configs differ."""
    found: list[tuple[str, Any, Any]] = []
    for f in dataclasses.fields(config):
        a, b = getattr(config, f.name), getattr(other, f.name)
        if dataclasses.is_dataclass(a):
            found += differences(a, b, f"{where}{f.name}.")
        elif a != b:
            found.append((where + f.name, a, b))
    return found


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
            "bounds memory (rollout.slots, rollout.cache_gib, optim.micro_batch_tokens, "
            "optim.recompute) may differ"
        )
