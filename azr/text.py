"""Between text and token ids, many at a time: prompts in, responses out."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[tuple[int, ...]]:
    """Returns the token ids of each prompt; equal prompts are encoded once."""
    distinct = list(dict.fromkeys(prompts))
    if not distinct:
        return []
    encoded = tokenizer(distinct, add_special_tokens=False)["input_ids"]
    ids = {prompt: tuple(i) for prompt, i in zip(distinct, encoded, strict=True)}
    return [ids[prompt] for prompt in prompts]


def response_texts(
    tokenizer: PreTrainedTokenizerBase, responses: Sequence[tuple[int, ...]]
) -> list[str]:
    """Returns the text of each response without its end-of-text token; equal ones decoded once.

    Any other special token stays visible in the text, so that no parser takes it for nothing.
    """
    eos = tokenizer.eos_token_id
    distinct = list(dict.fromkeys(responses))
    bodies = [ids[:-1] if ids and ids[-1] == eos else ids for ids in distinct]
    decoded = tokenizer.batch_decode([list(ids) for ids in bodies], skip_special_tokens=False)
    texts = dict(zip(distinct, decoded, strict=True))
    return [texts[ids] for ids in responses]
