"""Tiny random models of several families, each beside an untouched copy to compare with."""

import copy

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from azr.learner import Experience
from azr.model.attention import use_azr_attention

_SIZES = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=48,
    max_position_embeddings=96,
    pad_token_id=0,
    bos_token_id=None,
    eos_token_id=1,
)

# Biases on queries, keys and values; a head size of its own; neither. Tied and untied heads.
_CONFIGS = {
    "qwen2": lambda **kw: Qwen2Config(tie_word_embeddings=True, **kw),
    "qwen3": lambda **kw: Qwen3Config(tie_word_embeddings=False, head_dim=16, **kw),
    "llama": lambda **kw: LlamaConfig(tie_word_embeddings=False, **kw),
    "llama-tied": lambda **kw: LlamaConfig(tie_word_embeddings=True, **kw),
    "mistral": lambda **kw: MistralConfig(tie_word_embeddings=False, sliding_window=None, **kw),
}
FAMILIES = tuple(_CONFIGS)


def plain_model(
    family: str = "qwen2",
    *,
    vocab: int = 48,
    seed: int = 0,
    sharpness: float = 1.0,
    attention: str = "sdpa",
    **sizes,
) -> PreTrainedModel:
    """A model with transformers' own attention; every parameter random, norms and biases too.

    `sharpness` widens the gaps between logits, so that no two are nearly equal. Embeddings are
    small: a large one would make a tied head repeat its own input for ever.
    """
    config = _CONFIGS[family](vocab_size=vocab, **(_SIZES | sizes))
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.copy_(0.2 * noise + ("norm" in name))
            else:
                parameter.copy_(noise / parameter.shape[1] ** 0.5)
        model.get_input_embeddings().weight.mul_(0.1)
        model.base_model.norm.weight.mul_(sharpness * (10 if config.tie_word_embeddings else 1))
    return model


def azr_model(plain: PreTrainedModel) -> PreTrainedModel:
    """A copy of the model that attends through our attention function."""
    model = copy.deepcopy(plain)
    use_azr_attention(model)
    return model


def experience_of(
    prompts: int, samples: int, *, prompt_tokens, response_tokens, vocab: int = 900, seed: int = 0
) -> list[Experience]:
    """Random samples, several of each prompt; numbers of tokens are (least, most)."""
    rng = np.random.default_rng(seed)
    batch = []
    for _ in range(prompts):
        prompt = tuple(rng.integers(3, vocab, rng.integers(*prompt_tokens)).tolist())
        for _ in range(samples):
            response = tuple(rng.integers(3, vocab, rng.integers(*response_tokens)).tolist())
            batch.append(
                Experience(
                    prompt_ids=prompt,
                    response_ids=response,
                    rollout_logprobs=np.full(len(response), -6.0, dtype=np.float32),
                    advantage=float(rng.normal()),
                )
            )
    return batch


@torch.no_grad()
def full_forward_logprobs(
    plain: PreTrainedModel, prompts, responses, temperature: float = 1.0
) -> list[np.ndarray]:
    """Log-probs of the responses from one full forward of the model, no cache."""
    rows = [[*p, *r] for p, r in zip(prompts, responses, strict=True)]
    width = max(map(len, rows))
    # Padding stands on the right, where no real token looks.
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    logits = plain(input_ids=ids, use_cache=False).logits
    logprobs = torch.log_softmax(logits / temperature, dim=-1).numpy()
    return [
        logprobs[i, np.arange(len(p) - 1, len(p) + len(r) - 1), list(r)]
        for i, (p, r) in enumerate(zip(prompts, responses, strict=True))
    ]
