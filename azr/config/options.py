"""The options of a run: frozen dataclasses whose defaults are the paper's (arXiv:2505.03335)."""

import dataclasses
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

try:
    import tyro
except ModuleNotFoundError:  # rollouts, updates and `azr.train.run` read no command line
    tyro = None

TEMPERATURE_MIN, TEMPERATURE_MAX = 1e-5, 1e5
"""Between them a logit over the temperature is a number in fp32."""
TEMPERATURES = "from 1e-5 to 1e5"
"""The same for people."""

NAME_BYTES = 200
"""Longest run.name: a folder's name is this with a date and a number, in 255 bytes."""

DASHBOARDS = ("tensorboard", "wandb", "trackio")
"""What `log.to` may name."""


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
    fused_layers: Literal["auto", "on", "off"] = "auto"
    """Norms, rotary embedding, SwiGLU and projections of Qwen2, Qwen3 and Llama in few kernels.
    `auto`: on a GPU with Triton; `on`: elsewhere too, where it is no faster; `off`: never."""


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
    """Tokens in one forward pass; bounds the activations, changes nothing else. With FlashAttention
    those count that really run: what samples share counts once."""
    bf16_update: Literal["master", "stochastic"] = "master"
    """How bfloat16 weights take updates smaller than their own precision: through fp32 copies
    (18 bytes a parameter in all), or by stochastic rounding (9 bytes). Idle for float32."""
    recompute: bool = False
    """Compute each layer's activations again in the backward pass instead of keeping them."""


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


def field_names() -> list[str]:
    """Returns the dotted names of all options."""
    return [name for name, _ in fields_of()]


def fields_of(cls: type = Config, where: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the dotted name and the type of every option."""
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from fields_of(hint, f"{where}{name}.")
        else:
            yield where + name, hint


def value_of(config: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        config = getattr(config, part)
    return config


def differences(config: Config, other: Config) -> list[tuple[str, Any, Any]]:
    """Returns (dotted name, value, other value) for every option in which two configs differ."""
    both = ((name, value_of(config, name), value_of(other, name)) for name in field_names())
    return [(name, a, b) for name, a, b in both if a != b]
