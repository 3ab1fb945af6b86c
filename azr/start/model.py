"""A model that can be asked, as training and evaluation use it: device, style, weights, engine."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from azr.config import Config, ConfigError
from azr.keys import make_key
from azr.model.fused import fuse_layers
from azr.model.load import check_words, load_weights, make_tiny_model, make_tokenizer, pad_id
from azr.plan import GIB
from azr.rollout import RolloutEngine
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


def settle_style(
    config: Config, tokenizer: PreTrainedTokenizerBase | None, saved: Config | None = None
) -> tuple[Config, str]:
    """Returns (configuration with the prompt style named, why it is that one).

    `tokenizer` is None for a model from scratch; `saved` is what a resumed run was configured as.
    Raises ConfigError for a style that the model or its tokenizer cannot do.
    """
    style, reason = config.task.style, "as asked by --task.style"
    if saved and saved.task.style != "auto" and style in ("auto", saved.task.style):
        style, reason = saved.task.style, "as the run began"  # which is when it was checked
    elif not config.model.path or tokenizer is None:
        if style in TEXT_STYLES:
            raise ConfigError(
                f"--task.style {style}: a model from scratch knows the words of the compact style "
                "only; give --model, or use --task.style compact"
            )
        if style == "auto":
            style, reason = COMPACT, "the vocabulary of a model from scratch"
    else:
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
                    f"--rollout.max-new-tokens 0: prompts of style {style} ({reason}) have no "
                    "longest response; give the most tokens that a response may have, say 1024"
                )
    return replace(config, task=replace(config.task, style=style)), reason


def make_family_tokenizer(environment: Environment) -> PreTrainedTokenizerBase:
    """Returns the tokenizer of a model from scratch: the family's own words."""
    vocabulary = environment.vocabulary()
    return make_tokenizer(vocabulary.words, vocabulary.split)


def build_model(
    config: Config, environment: Environment, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """Returns the model: loaded, or made from scratch for the words of the tokenizer."""
    device, dtype = torch.device(config.run.device), DTYPES[config.run.dtype]
    if config.model.path:
        if config.task.style not in TEXT_STYLES:
            check_words(tokenizer, environment.vocabulary().words, config.model.path)
        return load_weights(config.model.path, tokenizer, dtype, device, config.model.fused_layers)
    model = make_tiny_model(config.model, len(tokenizer), make_key(config.run.seed, "init") >> 1)
    for parameter in model.parameters():
        # Buffers stay as they are: rotary frequencies in bf16 would be another model's.
        parameter.data = parameter.data.to(dtype)
    # What transformers wraps `to` in hides from a type checker that it is a method.
    model.to(device)  # pyrefly: ignore[bad-argument-type]
    fuse_layers(model, config.model.fused_layers)
    return model


@contextmanager
def naming_attention() -> Iterator[None]:
    """Lets an error in choosing the attention backend name its option."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"--rollout.attention: {error}") from error


def make_engine(
    config: Config, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> RolloutEngine:
    """Returns the rollout engine around a model, as training and evaluation use it.

    Raises ConfigError for an attention backend that cannot run here.
    """
    with naming_attention():
        return RolloutEngine(
            model,
            slots=config.rollout.slots,
            pad_id=pad_id(tokenizer),
            decode=lambda ids: str(tokenizer.decode(ids)),  # for stop strings
            attention=config.rollout.attention,
            cache_bytes=int(config.rollout.cache_gib * GIB) or None,
        )
