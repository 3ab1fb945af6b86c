"""HF folders of real architectures at toy width, with a byte-level BPE tokenizer of their own."""

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM as CausalLM
from transformers import (
    GenerationConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# What each family ships: control tokens, end of text, padding, start of text, template.
_TOKENS = {
    "qwen2": dict(
        special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        eos="<|im_end|>", pad="<|endoftext|>", bos=None, template=_CHATML,
    ),
    "llama": dict(
        special=(
            "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>",
            "<|end_header_id|>",
        ),
        eos="<|eot_id|>", pad=None, bos="<|begin_of_text|>", template=_LLAMA,
    ),
}  # fmt: skip
_TOKENS["qwen3"] = _TOKENS["qwen2"]
_CONFIGS = {"qwen2": Qwen2Config, "qwen3": Qwen3Config, "llama": LlamaConfig}
ARCHITECTURES = tuple(_CONFIGS)


def bpe_tokenizer(
    architecture: str, texts: Sequence[str], vocabulary: int = 512, template: bool = True
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the texts, digits apart as Qwen's are."""
    tokens = _TOKENS[architecture]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(tokens["special"]),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokens["bos"]:
        start = (tokens["bos"], tokenizer.token_to_id(tokens["bos"]))
        single = f"{tokens['bos']} $A"
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[start]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=tokens["eos"],
        pad_token=tokens["pad"],
        bos_token=tokens["bos"],
        clean_up_tokenization_spaces=False,
    )
    if template:
        fast.chat_template = tokens["template"]
    return fast


def make_folder(
    folder: Path,
    architecture: str,
    texts: Sequence[str],
    *,
    template: bool = True,
    hidden: int = 48,
    heads: int = 4,
    vocabulary: int = 512,
    context: int = 1024,
    seed: int = 0,
) -> Path:
    """Writes model and tokenizer as a hub repository has them; returns the folder.

    As in real ones, the embedding has a few more rows than the tokenizer has tokens, and the
    generation config names a second token that ends a text.
    """
    tokenizer = bpe_tokenizer(architecture, texts, vocabulary, template)
    sizes = dict(head_dim=16) if architecture == "qwen3" else {}
    config = _CONFIGS[architecture](
        vocab_size=(len(tokenizer) // 64 + 1) * 64,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        max_position_embeddings=context,
        tie_word_embeddings=architecture != "llama",
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        **sizes,
    )
    torch.manual_seed(seed)
    model = CausalLM.from_config(config).float()
    # transformers' own deviation of 0.02 is meant for wide models: a narrow one learns slowly.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                scale = 1.0 if "embed" in name else 0.5
                parameter.normal_(0.0, scale / hidden**0.5)
    other_end = _TOKENS[architecture]["special"][1 if architecture == "llama" else 0]
    model.generation_config = GenerationConfig(
        eos_token_id=[tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(other_end)],
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def prompt_texts_of(environment, n: int = 64) -> list[str]:
    """Instructions and responses of a family in plain language, to train a tokenizer on."""
    import numpy as np

    from azr.tasks.envelope import FRAME

    rows = environment.warmup_rows(np.random.default_rng(0), n)
    return [FRAME, *(text for row in rows for text in row)]
