"""Between text and token ids, many at a time: prompts in, responses out.

A family writes instructions; a prompt of a text style (`azr.tasks.envelope`) is an instruction in
a dressing, which needs the tokenizer:

    compact     the instruction as it stands
    r1          FRAME, `User: ` instruction, `Assistant: <think>`
    chat        the tokenizer's chat template around instruction and FRAME, then `<think>`
    completion  the text as it stands behind the model's start of text; suites only

The dressings r1 and chat end in the opened think tag, and the response goes on from there.

A chat template is a program: it may write the date, or draw at random. It is rendered once, and
what it wrote is kept with the tokenizer, which every saved model has beside it: all prompts of a
run are alike, and so are those of a resumed run and of an evaluation of its checkpoints.
"""

import hashlib
import re
from collections.abc import Sequence
from functools import partial

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from azr.config import Config, ConfigError
from azr.errors import in_one_line
from azr.tasks import Environment, Role
from azr.tasks.envelope import CHAT, FRAME, R1, THINK

COMPLETION = "completion"

_CONTENT = "AZR INSTRUCTION"
"""Stands for the instruction while the chat template is rendered."""

_KEPT = "azr_chat_parts"
"""Entry of a tokenizer's settings, and so of tokenizer_config.json: [template's digest, head,
tail]."""

_OPENED_THINK = re.compile(r"<think>(?:(?!</?think>).)*\Z", re.DOTALL)
_CLOSED_THINK = re.compile(r"(?:<think>(?:(?!</?think>).)*)?</think>\s*\Z", re.DOTALL)


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, instructions: Sequence[str], style: str = "compact"
) -> list[tuple[int, ...]]:
    """Returns the token ids of each dressed instruction; equal ones are encoded once.

    A control token's name inside an instruction is plain text, never that token: instructions may
    show what a model wrote. Raises ConfigError for a chat template that cannot be used.
    """
    distinct = list(dict.fromkeys(instructions))
    if not distinct:
        return []
    start, head, tail = _dressing(tokenizer, style)
    control = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
    plain = [i for i in distinct if not any(name in i for name in control)]
    encode = partial(tokenizer, add_special_tokens=False)
    ids = {}
    if plain:
        encoded = encode([f"{head}{i}{tail}" for i in plain])["input_ids"]
        ids = {i: (*start, *e) for i, e in zip(plain, encoded, strict=True)}
    for i in distinct:
        if i not in ids:
            parts = encode(head), encode(i, split_special_tokens=True), encode(tail)
            ids[i] = (*start, *(token for part in parts for token in part["input_ids"]))
    return [ids[i] for i in instructions]


def prompt_texts(
    tokenizer: PreTrainedTokenizerBase, instructions: Sequence[str], style: str = "compact"
) -> list[str]:
    """Returns the text of each dressed instruction, as viewers show it.

    A start-of-text token that the ids have in front and no template wrote is not shown.
    """
    _, head, tail = _dressing(tokenizer, style)
    return [f"{head}{i}{tail}" for i in instructions]


def _dressing(tokenizer: PreTrainedTokenizerBase, style: str) -> tuple[tuple[int, ...], str, str]:
    """Returns token ids before all text, and what stands before and after an instruction."""
    head = tail = ""
    if style == R1:
        head, tail = f"{FRAME}\n\nUser: ", f"\n\nAssistant: {THINK}"
    elif style == CHAT:
        head, tail = _chat_parts(tokenizer)
    # A chat template writes a start-of-text token itself, where the model wants one.
    return (_start_ids(tokenizer) if style in (R1, COMPLETION) else ()), head, tail


def _start_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Returns what the tokenizer puts before a text: Llama's start of text, nothing for Qwen.

    What it would put after a text is left out, since the response goes on there.
    """
    whole = tokenizer("a")["input_ids"]
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    for count in range(len(whole)):
        if whole[count : count + len(bare)] == bare:
            return tuple(whole[:count])
    return ()


def renew_chat(tokenizer: PreTrainedTokenizerBase, style: str) -> None:
    """Renders the chat template for a run that begins, whatever an earlier one has kept.

    Raises ConfigError for a template that cannot be used; other styles need none.
    """
    tokenizer.init_kwargs.pop(_KEPT, None)
    if style == CHAT:
        _chat_parts(tokenizer)


def _chat_parts(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Returns what the chat template writes before and after an instruction."""
    template = hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()
    kept = tokenizer.init_kwargs.get(_KEPT)
    if not kept or kept[0] != template:
        kept = tokenizer.init_kwargs[_KEPT] = [template, *_render_parts(tokenizer)]
    return kept[1], kept[2]


def _render_parts(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    advice = "use --task.style r1, which needs no template"
    if not tokenizer.chat_template:
        raise ConfigError(f"--task.style chat: the tokenizer has no chat template; {advice}")
    messages = [{"role": "user", "content": f"{_CONTENT}\n\n{FRAME}"}]
    try:
        text, before_turn = (
            str(
                tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asked)
            )
            for asked in (True, False)
        )
    except Exception as error:  # a template is a program of somebody else's
        raise ConfigError(
            f"--task.style chat: the tokenizer's chat template fails on one user message: "
            f"{in_one_line(error)}; {advice}"
        ) from error
    head, found, tail = text.partition(_CONTENT)
    if not found or _CONTENT in tail or FRAME not in tail:
        raise ConfigError(
            f"--task.style chat: the tokenizer's chat template does not keep a user message as it "
            f"is; {advice}"
        )
    behind = tail.partition(FRAME)[2]
    # Some templates open the turn of the assistant whether asked or not.
    turn = text.removeprefix(before_turn) if text.startswith(before_turn) else ""
    turn = turn if turn and behind.endswith(turn) else behind
    return head, tail.removesuffix(turn) + _open_think(turn)


def _open_think(turn: str) -> str:
    """Returns the beginning of the assistant's turn with one opened think tag.

    Templates of reasoning models may write the tag, or, to have no reasoning, a closed block or
    its end alone, which would contradict FRAME.
    """
    if _OPENED_THINK.search(turn):
        return turn
    return _CLOSED_THINK.sub("", turn) + THINK


def end_ids(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None = None
) -> tuple[int, ...]:
    """Returns the tokens that end a response: the tokenizer's, and those the model is shipped with.

    Instruct models often have several (end of turn, end of text), listed in generation_config.
    """
    shipped = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    more = shipped if isinstance(shipped, list | tuple) else [shipped]
    return tuple(dict.fromkeys(i for i in (tokenizer.eos_token_id, *more) if i is not None))


def response_tokens(config: Config, environment: Environment, role: Role, task_type: str) -> int:
    """Returns the most tokens a response may have, its end-of-text token included."""
    return config.rollout.max_new_tokens or environment.max_response_words(role, task_type) + 1


def response_texts(
    tokenizer: PreTrainedTokenizerBase,
    responses: Sequence[tuple[int, ...]],
    ends: Sequence[int] = (),
    stops: Sequence[str] = (),
) -> list[str]:
    """Returns the text of each response without its end-of-text token; equal ones decoded once.

    `ends` are the tokens of `end_ids`; without them, the tokenizer's own. Any other special token
    stays visible in the text, so that no parser takes it for nothing; so does an id that is no
    token (embeddings are often padded to more rows than there are tokens), as U+FFFD.

    `stops` are the stop strings under which the responses were drawn. A text ends with the first
    of them: what the token that completed it holds behind it, as `>.` does behind `</answer`, was
    never asked for, and no verdict may hang on how a tokenizer cuts a text.
    """
    last = set(ends or (tokenizer.eos_token_id,))
    distinct = list(dict.fromkeys(responses))
    bodies = [ids[:-1] if ids and ids[-1] in last else ids for ids in distinct]
    decoded = _decode(tokenizer, bodies)
    known = len(tokenizer)
    for i, ids in enumerate(bodies):
        if ids and max(ids) >= known:
            decoded[i] = _with_unknown(tokenizer, ids, known)
    texts = {ids: _until_stop(text, stops) for ids, text in zip(distinct, decoded, strict=True)}
    return [texts[ids] for ids in responses]


def _until_stop(text: str, stops: Sequence[str]) -> str:
    """Returns the text up to the end of the stop string that is complete first, if any is."""
    found = [at + len(stop) for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(found, default=len(text))]


def _with_unknown(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], known: int) -> str:
    """Returns the text with U+FFFD for each id that is no token."""
    pieces: list[list[int]] = [[]]
    for i in ids:
        if i < known:
            pieces[-1].append(i)
        else:
            pieces.append([])
    return "\ufffd".join(_decode(tokenizer, pieces))


def _decode(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[int]]) -> list[str]:
    # Llama 3's tokenizer says to tidy spaces before punctuation, which would alter programs.
    return tokenizer.batch_decode(
        [list(ids) for ids in rows],
        skip_special_tokens=False,
        clean_up_tokenization_spaces=False,
    )
