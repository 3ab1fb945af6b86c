"""The trainee: a model with everything that plays and trains it, and its format warm-up."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from azr.config import Config
from azr.keys import generator
from azr.learner import Learner, micro_batches
from azr.learner.packing import pack
from azr.learner.warmup import format_warmup, warmup_samples
from azr.memory import PackedTokens
from azr.model.attention import choose, head_shape
from azr.model.fused import merge_projections
from azr.rollout import RolloutEngine
from azr.selfplay import SelfPlay
from azr.start.model import DTYPES, make_engine, naming_attention
from azr.tasks import Environment
from azr.text import prompt_ids


@dataclass(frozen=True, slots=True)
class Trainee:
    """A model with everything that plays and trains it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    engine: RolloutEngine
    selfplay: SelfPlay
    learner: Learner


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
    reference = copy.deepcopy(model).eval().requires_grad_(False)
    merge_projections(reference)
    return reference


def warm_up(
    config: Config,
    environment: Environment,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    on_progress: Callable[[float, float], None] = lambda steps, loss: None,
) -> float:
    """Teaches a model the format of responses; returns the last loss in nats per token."""
    with naming_attention():
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
    config: Config,
    environment: Environment,
    tokenizer: PreTrainedTokenizerBase,
    architecture: PretrainedConfig,
) -> list[PackedTokens]:
    """Returns the sizes of the micro-batches of the warm-up's first step."""
    samples = warmup_samples(
        tokenizer,
        _warmup_rows(config, environment, 0, config.warmup.batch_size),
        partial(prompt_ids, tokenizer, style=config.task.style),
    )
    device, dtype = torch.device(config.run.device), DTYPES[config.run.dtype]
    with naming_attention():
        backend = choose(config.rollout.attention, device, dtype, head_shape(architecture)[1])
    parts = micro_batches(samples, range(len(samples)), config.optim.micro_batch_tokens, backend)
    sizes = []
    for part in parts:
        packed = pack([samples[i] for i in part], torch.device("cpu"))
        rows = packed.rows
        pads = backend.cache == "rows"
        full = len(rows.lengths) * rows.longest if pads else sum(rows.lengths)
        sizes.append(PackedTokens(packed.ids.numel(), full))
    return sizes
