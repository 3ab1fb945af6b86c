"""What stands before the first step: device, model, tokenizer, and the memory plan."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from azr.config import Config, ConfigError, load_toml
from azr.keys import generator, make_key
from azr.learner import Learner, micro_batches
from azr.learner.packing import pack
from azr.learner.warmup import format_warmup, warmup_samples
from azr.memory import PackedTokens, available_bytes, memory_plan
from azr.model.attention import described, head_shape
from azr.model.load import (
    check_words,
    load_architecture,
    load_model,
    load_tokenizer,
    make_tiny_model,
    make_tokenizer,
    pad_id,
    parameter_count,
    tiny_config,
)
from azr.plan import GIB, Part, check_fit, resident_bytes
from azr.rollout import RolloutEngine
from azr.selfplay import ROLES, SelfPlay, prompt_limit, response_tokens
from azr.tasks import Environment
from azr.tasks.envelope import CHAT, COMPACT, R1, TEXT_STYLES
from azr.text import prompt_ids

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def prepare_device(config: Config) -> torch.device:
    """Pins the threads, seeds torch, returns the device; raises ConfigError where it is absent."""
    if config.run.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no CUDA device here; use --device cpu")
    torch.set_num_threads(config.run.threads)
    # Every draw here has a keyed generator; only a model's own dropout would use torch's.
    torch.manual_seed(make_key(config.run.seed, "torch") >> 1)
    return torch.device(config.run.device)


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


def settle_style(config: Config, resumed: Path | None = None) -> tuple[Config, str]:
    """Returns (configuration with the prompt style named, why it is that one).

    Raises ConfigError for a style that the model or its tokenizer cannot do.
    """
    style, reason = config.task.style, "as asked by --task.style"
    if resumed:  # checked when the run began; the model of then may be gone
        saved = load_toml(resumed / "config.toml").task.style
        if style in ("auto", saved) and saved != "auto":
            return replace(config, task=replace(config.task, style=saved)), "as the run began"
    if style == "auto" and not config.model.path:
        style, reason = COMPACT, "the vocabulary of a model from scratch"
    if style == COMPACT or not config.model.path:
        if style in TEXT_STYLES:
            raise ConfigError(
                f"--task.style {style}: a model from scratch knows the words of the compact style "
                "only; give --model, or use --task.style compact"
            )
        return replace(config, task=replace(config.task, style=style)), reason
    tokenizer = load_tokenizer(config.model.path)
    if style == "auto":
        if tokenizer.unk_token_id in tokenizer("Plain text: a < 2.")["input_ids"]:
            style, reason = COMPACT, "the tokenizer has no tokens for plain text"
        elif tokenizer.chat_template:
            style, reason = CHAT, "the tokenizer has a chat template"
        else:
            style, reason = R1, "the tokenizer has no chat template"
    if style in TEXT_STYLES:
        prompt_ids(tokenizer, ["a"], style)  # raises where the template does not do
        if not config.rollout.max_new_tokens:
            raise ConfigError(
                f"--rollout.max-new-tokens 0: prompts of style {style} ({reason}) have no longest "
                "response; give the most tokens that a response may have, say 1024"
            )
    return replace(config, task=replace(config.task, style=style)), reason


def plan_memory(
    config: Config, environment: Environment, checkpoint: Path | None = None
) -> tuple[PretrainedConfig, int, list[Part]]:
    """Returns (architecture, number of parameters, memory plan); raises where it does not fit.

    A `checkpoint` to go on from stands for --model, which may be gone.
    """
    if checkpoint and config.model.path:
        config = replace(config, model=replace(config.model, path=str(checkpoint / "hf")))
    limit = None
    if config.model.path:
        architecture = load_architecture(config.model.path)
        tokenizer = load_tokenizer(config.model.path)
        if config.task.style in TEXT_STYLES:
            room = architecture.get_text_config().max_position_embeddings
            limit = prompt_limit(config, room)
            check_evaluation(config, environment, tokenizer, room)
    else:
        vocabulary = environment.vocabulary()
        tokenizer = make_tokenizer(vocabulary.words, vocabulary.split)
        architecture = tiny_config(config.model, len(tokenizer))
    parameters = parameter_count(architecture)
    check_rate(config, parameters)
    context = longest_context(config, environment, tokenizer, limit)
    is_warmed = is_warmed_up(config) and not checkpoint
    warmup = warmup_tokens(config, environment, tokenizer) if is_warmed else ()
    # What is held already is in the plan as well, so that it tells what a monitor will show.
    resident = resident_bytes() if config.run.device == "cpu" else 0
    available = available_bytes(config.run.device)
    if available is not None:
        available += resident
    plan = memory_plan(
        config, architecture, parameters, context, available, warmup=warmup, resident=resident
    )
    check_fit(plan, available, config.run.device)
    return architecture, parameters, plan


def check_evaluation(
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


def longest_context(
    config: Config,
    environment: Environment,
    tokenizer: PreTrainedTokenizerBase,
    limit: int | None = None,
) -> int:
    """Returns the tokens of the longest prompt with its longest response.

    Compact prompts are those of the family's own rows. Text prompts are those of its seed tasks,
    the longest references together, up to the limit; tasks that a model proposes later may have
    longer ones, up to the limit. Raises ConfigError where no prompt is short enough.
    """
    responses = [
        response_tokens(config, environment, role, task_type)
        for role in ROLES
        for task_type in config.task.types
    ]
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
    return min(max(lengths), limit or max(lengths)) + max(responses)


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


def build_model(
    config: Config, environment: Environment, device: torch.device
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Returns (model, tokenizer): loaded, or made from scratch for the family's vocabulary."""
    if config.model.path:
        model, tokenizer = load_model(config.model.path, DTYPES[config.run.dtype], device)
        if config.task.style not in TEXT_STYLES:
            check_words(tokenizer, environment.vocabulary().words, config.model.path)
        return model, tokenizer
    vocabulary = environment.vocabulary()
    tokenizer = make_tokenizer(vocabulary.words, vocabulary.split)
    model = make_tiny_model(config.model, len(tokenizer), make_key(config.run.seed, "init") >> 1)
    for parameter in model.parameters():
        # Buffers stay as they are: rotary frequencies in bf16 would be another model's.
        parameter.data = parameter.data.to(DTYPES[config.run.dtype])
    return model.to(device), tokenizer


def warm_up(
    config: Config,
    environment: Environment,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    on_progress: Callable[[float, float], None] = lambda steps, loss: None,
) -> float:
    """Teaches a model the format of responses; returns the last loss in nats per token."""

    with _naming_attention():
        return format_warmup(
            model,
            tokenizer,
            partial(_warmup_rows, config, environment),
            config.warmup,
            optim=config.optim,
            attention=config.rollout.attention,
            encode=partial(prompt_ids, tokenizer, style=config.task.style),
            on_progress=on_progress,
        )


def _warmup_rows(
    config: Config, environment: Environment, step: int, n: int
) -> list[tuple[str, str]]:
    return environment.warmup_rows(generator(config.run.seed, "warmup", step), n)


def is_warmed_up(config: Config) -> bool:
    """Returns whether a new run begins with a format warm-up."""
    return config.warmup.steps > 0 and (config.warmup.loaded or not config.model.path)


def warmup_tokens(
    config: Config, environment: Environment, tokenizer: PreTrainedTokenizerBase
) -> list[PackedTokens]:
    """Returns the micro-batches of the format warm-up's first step."""
    samples = warmup_samples(
        tokenizer,
        _warmup_rows(config, environment, 0, config.warmup.batch_size),
        partial(prompt_ids, tokenizer, style=config.task.style),
    )
    found = []
    for micro in micro_batches(samples, range(len(samples)), config.optim.micro_batch_tokens):
        packed = pack([samples[i] for i in micro], torch.device("cpu"))
        padded = len(packed.rows.lengths) * packed.rows.longest
        found.append(PackedTokens(packed=packed.ids.numel(), padded=padded))
    return found


@dataclass(frozen=True, slots=True)
class Trainee:
    """A model with everything that plays and trains it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    engine: RolloutEngine
    selfplay: SelfPlay
    learner: Learner


@contextmanager
def _naming_attention() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"--rollout.attention: {error}") from error


def describe_attention(config: Config, architecture: PretrainedConfig) -> str:
    """Returns which attention backend will run, and why.

    Raises ConfigError for one that is asked for and cannot run here.
    """
    _, head_size = head_shape(architecture)
    device, dtype = torch.device(config.run.device), DTYPES[config.run.dtype]
    with _naming_attention():
        return described(config.rollout.attention, device, dtype, head_size)


def make_engine(
    config: Config, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> RolloutEngine:
    """Returns the rollout engine around a model, as training and evaluation use it.

    Raises ConfigError for an attention backend that cannot run here.
    """
    with _naming_attention():
        return RolloutEngine(
            model,
            slots=config.rollout.slots,
            pad_id=pad_id(tokenizer),
            decode=tokenizer.decode,  # for stop strings
            attention=config.rollout.attention,
            cache_bytes=int(config.rollout.cache_gib * GIB) or None,
        )


def assemble(
    config: Config,
    environment: Environment,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    reference: PreTrainedModel | None,
) -> Trainee:
    """Puts engine, self-play and learner around a model; `reference` is None without a KL term."""
    engine = make_engine(config, model, tokenizer)
    learner = Learner(
        model,
        reference,
        loss=config.loss,
        optim=config.optim,
        temperature=config.rollout.temperature,
        seed=config.run.seed,
        attention=config.rollout.attention,
    )
    selfplay = SelfPlay(config, environment, engine, tokenizer)
    return Trainee(model, tokenizer, engine, selfplay, learner)


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Returns the start model that the KL term refers to."""
    return copy.deepcopy(model).eval().requires_grad_(False)
