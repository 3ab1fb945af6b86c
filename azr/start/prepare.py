"""A run before anything is built or written: its options are settled, and it fits."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rlvr_kernels import doctor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from azr.config import Config, ConfigError, differences, load_toml
from azr.keys import generator
from azr.memory import available_bytes, memory_plan
from azr.model.attention import described, head_shape
from azr.model.fused import describe_layers
from azr.model.load import load_architecture, load_tokenizer, parameter_count, tiny_config
from azr.plan import Part, check_fit, resident_bytes
from azr.run.checkpoint import Checkpoint, load_newest
from azr.run.dashboards import check_installed
from azr.selfplay import ROLES, prompt_limit, read_seeds
from azr.start.model import (
    DTYPES,
    make_family_tokenizer,
    naming_attention,
    prepare_device,
    settle_style,
)
from azr.start.trainee import is_warmed_up, warmup_tokens
from azr.tasks import Environment, Task, check_family, load_environment
from azr.tasks.envelope import TEXT_STYLES
from azr.text import prompt_ids, renew_chat, response_tokens


@dataclass(frozen=True, slots=True)
class Prepared:
    """A run that may begin, or go on."""

    config: Config
    """With the prompt style named."""
    environment: Environment
    tokenizer: PreTrainedTokenizerBase
    model: str
    """Its architecture and size in words."""
    plan: list[Part]
    """What the run will hold of memory."""
    facts: list[tuple[str, str]]
    """Lines of the banner: what runs, where and why."""
    seeds: list[Task]
    """Tasks of a seed file."""
    checkpoint: Checkpoint | None
    """What a resumed run goes on from."""
    warnings: list[str]


def prepare(config: Config, resume: Path | None = None, *, is_dry: bool = False) -> Prepared:
    """Returns what a run, or the rest of the run in the folder `resume`, begins with.

    The task family is opened, except for a dry run, which asks it for nothing but texts. Raises
    ConfigError for what cannot be run, RunError for a run without a whole checkpoint.
    """
    check_installed(config)
    prepare_device(config)
    warnings: list[str] = []
    checkpoint = load_newest(resume, warnings.append) if resume else None
    saved = load_toml(resume / "config.toml") if resume else None
    path = str(checkpoint.path / "hf") if checkpoint else config.model.path  # which may be gone
    tokenizer = load_tokenizer(path) if path else None
    config, reason = settle_style(config, tokenizer, saved)
    environment = load_environment(config.task)
    facts, seeds = [], []
    if not is_dry:
        environment.open()
        check_family(environment, config.task.types)
        if config.selfplay.seed_file and not resume:
            # Read now, as long as runs/latest is an earlier run.
            seed_file = Path(config.selfplay.seed_file)
            seeds = read_seeds(seed_file, environment)
            facts.append(("seed file", f"{len(seeds)} tasks, {seed_file.resolve()}"))
    if tokenizer is None:
        tokenizer = make_family_tokenizer(environment)
    elif not resume:
        renew_chat(tokenizer, config.task.style)
    if config.model.path:
        architecture = load_architecture(path)
    else:
        architecture = tiny_config(config.model, len(tokenizer))
    parameters = parameter_count(architecture)
    check_rate(config, parameters)
    is_warmed = is_warmed_up(config) and not resume
    plan = _plan_memory(config, environment, tokenizer, architecture, parameters, is_warmed)
    model = f"{architecture.model_type}, {parameters:,} parameters"
    facts += _facts(config, architecture, model)
    facts.append(("prompts", f"{config.task.style} ({reason})"))
    return Prepared(config, environment, tokenizer, model, plan, facts, seeds, checkpoint, warnings)


def _plan_memory(
    config: Config,
    environment: Environment,
    tokenizer: PreTrainedTokenizerBase,
    architecture: PretrainedConfig,
    parameters: int,
    is_warmed: bool,
) -> list[Part]:
    """Returns the memory plan; raises ConfigError where it, or the longest prompt, does not fit."""
    limit = None
    if config.task.style in TEXT_STYLES:
        room = architecture.get_text_config().max_position_embeddings
        limit = prompt_limit(config, room)
        _check_evaluation(config, environment, tokenizer, room)
    context = _longest_context(config, environment, tokenizer, limit)
    warmup = ()
    if is_warmed:
        warmup = warmup_tokens(config, environment, tokenizer, architecture)
    # What is held already is in the plan as well, so that it tells what a monitor will show.
    resident = resident_bytes() if config.run.device == "cpu" else 0
    available = available_bytes(config.run.device)
    if available is not None:
        available += resident
    plan = memory_plan(
        config, architecture, parameters, context, available, warmup=warmup, resident=resident
    )
    check_fit(plan, available, config.run.device)
    return plan


LOADED_PARAMETERS, LOADED_RATE = 20_000_000, 1e-4
"""From so many loaded weights on, a higher rate than this is the tiny presets', left by mistake."""


def check_rate(config: Config, parameters: int) -> None:
    """Raises ConfigError for a trained model that the rate of a tiny one would ruin."""
    if config.model.path and parameters >= LOADED_PARAMETERS and config.optim.lr > LOADED_RATE:
        raise ConfigError(
            f"--optim.lr {config.optim.lr}: the rate of a tiny model from scratch, and "
            f"{config.model.path} has {parameters:,} trained weights; give a preset for it "
            "(--config a100-...), or --optim.lr 1e-6 as in the paper"
        )


def _check_evaluation(
    config: Config, environment: Environment, tokenizer: PreTrainedTokenizerBase, room: int
) -> None:
    """Raises ConfigError where the longest task of the evaluation, which leaves out none, does not
    fit a model with room for `room` tokens: found after the warm-up, that would come late."""
    style, new = config.task.style, config.rollout.max_new_tokens
    prompts = [
        environment.solve_prompt(task, style)
        for split in environment.splits()
        for task_type in config.task.types
        for task in environment.eval_tasks(split, task_type)
    ]
    longest = max(map(len, prompt_ids(tokenizer, prompts, style)), default=0)
    if longest + new > room:
        raise ConfigError(
            f"--rollout.max-new-tokens {new}: the longest prompt of the evaluation has {longest} "
            f"tokens, and the model has room for {room}, prompt and response together; give "
            "fewer, or another --model"
        )


def _longest_context(
    config: Config,
    environment: Environment,
    tokenizer: PreTrainedTokenizerBase,
    limit: int | None,
) -> int:
    """Returns the tokens of the longest prompt with its longest response.

    Compact prompts are those of the family's own rows. Text prompts are those of its seed tasks,
    the longest references together, up to the limit; tasks that a model proposes later may have
    longer ones, up to the limit. Raises ConfigError where no prompt is short enough.
    """
    cells = ((role, task_type) for role in ROLES for task_type in config.task.types)
    response = max(response_tokens(config, environment, *cell) for cell in cells)
    if config.task.style in TEXT_STYLES:
        prompts = prompt_ids(tokenizer, _long_prompts(config, environment), config.task.style)
    else:
        rows = environment.warmup_rows(generator("longest-context"), 512)
        prompts = tokenizer([prompt for prompt, _ in rows])["input_ids"]
    lengths = [len(prompt) for prompt in prompts]
    if limit and min(lengths) > limit:
        raise ConfigError(
            f"--rollout.max-prompt-tokens {limit}: the shortest prompt has {min(lengths)} tokens; "
            "allow more, or fewer --rollout.max-new-tokens"
        )
    return min(max(lengths), limit or max(lengths)) + response


def _long_prompts(config: Config, environment: Environment) -> list[str]:
    """Returns instructions of seed tasks, the proposer's with the longest of them as references."""
    style = config.task.style
    seeds = environment.seed_tasks(generator("longest-context"), 256)
    solving = {t: [environment.solve_prompt(task, style) for task in seeds[t]] for t in seeds}
    proposing = []
    for task_type in config.task.types:
        source = environment.reference_source(task_type)
        shown = [pair for t in source.types for pair in zip(solving[t], seeds[t], strict=True)]
        shown.sort(key=lambda pair: len(pair[0]), reverse=True)
        count = config.task.references if source.count is None else source.count
        references = [task for _, task in shown[:count]]
        proposing.append(environment.propose_prompt(task_type, references, style))
    return proposing + [text for t in config.task.types for text in solving[t]]


def _facts(config: Config, architecture: PretrainedConfig, model: str) -> list[tuple[str, str]]:
    """Returns lines of the banner on device, model and settings.

    Raises ConfigError for an attention backend that is asked for and cannot run here.
    """
    # Where several GPUs are, "cuda" is the current one.
    on_cuda = config.run.device == "cuda"
    device = f"cuda:{torch.cuda.current_device()}" if on_cuda else config.run.device
    reason = "as asked by --device"
    if config.run.device == "cpu" and torch.cuda.is_available():
        reason = (
            "as asked; a GPU is here too: --device cuda uses it, and "
            "--config a100-qwen2.5-3b-prime.toml trains a real model on it"
        )
    elif config.run.device == "cpu":
        reason = f"{config.run.threads} torch thread" + "s" * (config.run.threads > 1)
    optim = replace(Config().optim, schedule_steps=config.steps)
    usual = replace(Config(), steps=config.steps, run=config.run, optim=optim)
    changed = differences(config, usual)
    torch_device = torch.device(config.run.device)
    with naming_attention():
        attention = described(
            config.rollout.attention,
            torch_device,
            DTYPES[config.run.dtype],
            head_shape(architecture)[1],
        )
    layers = describe_layers(config.model.fused_layers, architecture.model_type, torch_device)
    return [
        ("device", f"{config.run.device}, {config.run.dtype} ({reason})"),
        ("loss kernels", doctor()[device]),
        ("model", f"{model}, {config.model.path or 'from scratch'}"),
        ("task family", f"{config.task.family}: {', '.join(config.task.types)}"),
        ("seed", str(config.run.seed)),
        ("not default", ", ".join(f"{name}={value}" for name, value, _ in changed)),
        ("attention", attention),
        ("layers", layers),
    ]
