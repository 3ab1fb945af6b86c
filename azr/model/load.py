"""Models and tokenizers: made from scratch for a family's vocabulary, loaded, and saved."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from safetensors import safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import logging as transformers_logging

from azr.config import ModelConfig
from azr.errors import ModelError, in_one_line
from azr.model.attention import embedding_weight, head_weight, use_azr_attention
from azr.model.fused import Mode, fuse_layers
from azr.model.path import check_model_path

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
TINY_CONTEXT = 512

_QUANTISED_SETTINGS = ("quantization_config", "compression_config", "quantization")
"""Entries of a config.json that tell how weights were quantised; the last is MLX's."""

_QUANTISED_WEIGHTS = (
    ".qweight", ".qzeros", ".scales", ".weight_scale", ".weight_scale_inv", ".weight_packed",
    ".weight_format", ".SCB", ".absmax", ".g_idx",
)  # fmt: skip
"""Ends of the names of what stands beside quantised weights, or for them."""

HUB_TIMEOUT_S = 5.0
"""How long the hub may take to answer whether it has a model."""

ALIGNMENT = 64
"""Bytes that torch's own allocator aligns tensors to."""


def make_tokenizer(
    words: tuple[str, ...], split: Literal["word", "char"]
) -> PreTrainedTokenizerFast:
    """Returns a tokenizer with one token per word, an ordinary HF fast tokenizer.

    `split` "word" takes text apart at white space and joins it with one space; "char" takes it
    apart into single characters and joins it with nothing. A text of known words survives
    encoding and decoding unchanged. No text encodes to padding or end of text, their names
    included: what is no known word becomes the unknown token.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    if len(set(words)) != len(words) or any(w in (PAD, EOS, UNKNOWN) or not w for w in words):
        raise ValueError("the words of a vocabulary must be distinct, non-empty and not special")
    vocabulary = {word: i for i, word in enumerate((PAD, EOS, UNKNOWN, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    if split == "word":
        # A special token's name, standing alone, would be looked up as a word: it is broken in two.
        names = "|".join(name[1:] for name in (PAD, EOS, UNKNOWN))
        broken = pre_tokenizers.Split(Regex(f"<(?={names})"), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), broken]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )


def tiny_config(config: ModelConfig, tokens: int) -> Qwen2Config:
    """Returns the Qwen2 architecture of the tiny model for a vocabulary of `tokens`."""
    return Qwen2Config(
        vocab_size=tokens,
        hidden_size=config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        intermediate_size=config.ffn,
        max_position_embeddings=TINY_CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        use_sliding_window=False,
    )


def make_tiny_model(config: ModelConfig, tokens: int, seed: int) -> Qwen2ForCausalLM:
    """Returns a fresh Qwen2 in fp32 whose weights are a function of `seed`.

    Linear layers start at a deviation of 0.5 / sqrt(D) (D the hidden size), embeddings at
    1 / sqrt(D), the layers that write into the residual stream smaller by sqrt(2 * layers).
    transformers' own 0.02 is meant for wide models.
    """
    model = Qwen2ForCausalLM(tiny_config(config, tokens)).float()
    generator = torch.Generator().manual_seed(seed)
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            std = 1 / math.sqrt(config.hidden)
        elif isinstance(module, nn.Linear):
            std = 0.5 / math.sqrt(config.hidden)
            if name.endswith(("o_proj", "down_proj")):
                std /= math.sqrt(2 * config.layers)
        else:
            continue
        if module is not model.lm_head:  # tied to the embedding
            with torch.no_grad():
                module.weight.normal_(0.0, std, generator=generator)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    use_azr_attention(model)
    return model


def load_architecture(path: str) -> PretrainedConfig:
    """Returns the configuration of an HF folder or hub id, without its weights.

    Raises ModelError that says what is missing.
    """
    _reach(path)
    try:
        config = AutoConfig.from_pretrained(path)
    except Exception as error:  # see load_model
        raise _unreadable(path, error) from error
    for part in (config, config.get_text_config()):
        for name in _QUANTISED_SETTINGS:
            if settings := getattr(part, name, None):
                is_named = isinstance(settings, dict) and "quant_method" in settings
                method = settings["quant_method"] if is_named else settings
                raise _quantised(path, f"{name} of its config.json: {method}")
    return config


def load_model(
    path: str, dtype: torch.dtype, device: torch.device, fused_layers: Mode = "auto"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Returns (model, tokenizer) of an HF folder or hub id.

    Raises ModelError, with what to do, for a missing or broken folder, one that holds another
    kind of model than a causal language model, quantised weights, weights that lack a part of it, a
    tokenizer that was not made for it, or layers that our attention does not serve.
    """
    load_architecture(path)  # names what cannot be trained
    tokenizer = load_tokenizer(path)
    return load_weights(path, tokenizer, dtype, device, fused_layers), tokenizer


def load_weights(
    path: str,
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype,
    device: torch.device,
    fused_layers: Mode = "auto",
) -> PreTrainedModel:
    """Returns the model of `load_model`, whose architecture and tokenizer were loaded before."""
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, output_loading_info=True
        )
    except Exception as error:  # for a damaged file each library raises a kind of its own
        raise _unreadable(path, error) from error
    _check_kind(path, model)
    for name in sorted(report["unexpected_keys"]):
        if name.endswith(_QUANTISED_WEIGHTS):
            raise _quantised(path, f"it holds {name}")
    for name, kind in _kinds_of_weights(path):
        # transformers takes them for numbers of full width, without the scales they lack.
        if kind not in ("F64", "F32", "F16", "BF16"):
            raise _quantised(path, f"{name} is stored as {kind}")
    if report["missing_keys"]:  # transformers fills them with random numbers
        missing = sorted(report["missing_keys"])
        raise ModelError(
            f"{path}: not a complete HF model folder: {len(missing)} weights are missing, "
            f"{missing[0]} first"
        )
    rows = embedding_weight(model).shape[0]
    if len(tokenizer) > rows:
        raise ModelError(
            f"{path}: its tokenizer has {len(tokenizer)} tokens and its embedding {rows} "
            "rows: they were not made for one another; take both from one place"
        )
    model = model.to(device)  # first, since the check of its attention computes
    _align(model)
    try:
        use_azr_attention(model)
        head_weight(model)
    except ValueError as error:
        raise ModelError(f"{path}: {error}") from error
    fuse_layers(model, fused_layers)
    return model


def _kinds_of_weights(path: str) -> Iterator[tuple[str, str]]:
    """Yields (name, kind of number) of the weights in a folder's safetensors files."""
    for file in sorted(Path(path).glob("model*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is no mapping
                if name.endswith("weight"):
                    yield name, tensors.get_slice(name).get_dtype()


def _align(model: PreTrainedModel) -> None:
    """Moves tensors from where a file was mapped to memory of torch's own.

    A file has them at any address, and products may round by it: a resumed run would part from
    the run that it goes on with.
    """
    for tensor in (*model.parameters(), *model.buffers()):  # each once, tied or not
        if tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()


def _check_kind(path: str, model: PreTrainedModel) -> None:
    """Raises ModelError where the folder holds another kind of model than was loaded from it."""
    held = model.config.architectures or []
    loaded = type(model).__name__
    if model.config.is_encoder_decoder or (held and loaded not in held):
        kind = ", ".join(held) or loaded
        raise ModelError(
            f"{path}: holds {kind}, which is no causal language model; give one whose "
            "config.json names a class like Qwen2ForCausalLM under architectures"
        )


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Returns the tokenizer of an HF folder or hub id.

    One saved as plain `tokenizer.json` is taken as it is. AutoTokenizer would put the family's own
    rules in place of it for some architectures, Qwen2 among them, and number tokens would fall
    apart into digits (huggingface/transformers#45920 tells of others).

    Raises ModelError, with what to do, where there is none, or none with an end-of-text token.
    """
    _reach(path)
    try:
        declared = get_tokenizer_config(path).get("tokenizer_class")
        tokenizer: PreTrainedTokenizerBase | None
        if declared in ("TokenizersBackend", "PreTrainedTokenizerFast"):
            tokenizer = PreTrainedTokenizerFast.from_pretrained(path)
        else:
            tokenizer = AutoTokenizer.from_pretrained(path)
    except Exception as error:  # see load_model
        raise _unreadable(path, error) from error
    if tokenizer is None:
        raise ModelError(f"{path}: transformers lacks a library that its tokenizer needs")
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"{path}: its tokenizer has no end-of-text token; name one as eos_token in "
            "tokenizer_config.json"
        )
    return tokenizer


def _reach(path: str) -> None:
    """Raises ModelError where a path is neither a folder nor a hub id that can be had.

    transformers looks for many files in turn, and each look waits long and asks again where there
    is no network: this one short look tells as much.
    """
    check_model_path(path)
    if Path(path).is_dir():
        return
    try:
        get_hf_file_metadata(hf_hub_url(path, "config.json"), timeout=HUB_TIMEOUT_S)
    except Exception as error:  # see load_model
        if not isinstance(try_to_load_from_cache(path, "config.json"), str):
            raise _unreadable(path, error) from error


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns the token that fills up rows: the tokenizer's, else (Llama has none) end of text.

    Filling is masked wherever it stands, so any known token does; the tokenizer stays as it is.
    """
    pad = tokenizer.pad_token_id
    return tokenizer.eos_token_id if pad is None else pad


def _unreadable(path: str, error: Exception) -> ModelError:
    first_line = in_one_line(error)
    if "trust_remote_code" in str(error):
        return ModelError(
            f"{path}: its code comes with it (trust_remote_code), and is not run; give a "
            "model of an architecture that transformers has itself"
        )
    folder = Path(path)
    if folder.is_dir():
        needed = {
            "config.json": ("config.json",),
            "weights (*.safetensors)": ("*.safetensors", "*.bin"),
            "tokenizer.json": ("tokenizer.json", "tokenizer.model", "vocab.json"),
        }
        if any(folder.glob("*.gguf")) and not any(folder.glob("*.safetensors")):
            return _quantised(path, "its weights are GGUF files")
        lacking = [
            name for name, kinds in needed.items() if not any(any(folder.glob(k)) for k in kinds)
        ]
        if (folder / "checkpoints").is_dir():
            lacking.append("a model of its own: it is a run; give its checkpoints/step_.../hf")
        what = f"it lacks {' and '.join(lacking)}; " if lacking else ""
        return ModelError(f"{path}: not a complete HF model folder: {what}{first_line}")
    return ModelError(
        f"{path}: no such folder, and as a hub id it cannot be had: {first_line}. Without "
        f"a network, fetch it elsewhere (hf download {path} --local-dir FOLDER) and give ",
        "FOLDER; a gated model needs its licence accepted and `hf auth login`",
    )


def _quantised(path: str, sign: str) -> ModelError:
    return ModelError(
        f"{path}: a quantised model ({sign}), which cannot be trained; give the model it "
        "was made from, in bf16 or fp32"
    )


def check_words(tokenizer: PreTrainedTokenizerBase, words: tuple[str, ...], path: str) -> None:
    """Raises ModelError unless the tokenizer takes each word as one token and gives it back."""
    for word in words:
        ids = tokenizer(word, add_special_tokens=False)["input_ids"]
        if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
            raise ModelError(
                f"{path}: its tokenizer has no token for {word!r}, which prompts of the "
                "compact style need; use a model that was trained on the same task options"
            )


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Writes an HF folder that `AutoModelForCausalLM.from_pretrained` opens.

    `weights` is a copy of the model's state to write instead of its state of the moment.

    The attention implementation is ours, not the model's: it is not part of what is saved. The
    tokenizer of a tiny model opens with `PreTrainedTokenizerFast.from_pretrained` (see
    `load_tokenizer`).
    """
    transformers_logging.disable_progress_bar()  # it would break into the table on the screen
    model.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)


def parameter_count(config: PretrainedConfig) -> int:
    """Returns the number of parameters of an architecture, tied weights counted once."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(p.numel() for p in model.parameters())
