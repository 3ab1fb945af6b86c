"""Prompts of the text styles as token ids, and responses as text, with real tokenizers."""

import copy
import dataclasses

import numpy as np
import pytest
from folders import ARCHITECTURES, bpe_tokenizer, make_folder, prompt_texts_of
from tokenizers import processors

from azr.config import (
    Config,
    ConfigError,
    ModelConfig,
    RolloutConfig,
    TaskConfig,
    check_resumable,
)
from azr.model.load import load_tokenizer, make_tiny_model, make_tokenizer, save_model
from azr.start.model import build_model, settle_style
from azr.start.prepare import prepare
from azr.tasks import load_environment
from azr.tasks.envelope import FRAME, THINK
from azr.text import end_ids, prompt_ids, prompt_texts, renew_chat, response_texts

ENV = load_environment(TaskConfig(style="r1"))
TEXTS = prompt_texts_of(ENV)
INSTRUCTIONS = [prompt for prompt, _ in ENV.warmup_rows(np.random.default_rng(1), 6)]


@pytest.fixture(scope="module")
def tokenizers():
    return {a: bpe_tokenizer(a, TEXTS) for a in ARCHITECTURES}


@pytest.fixture(params=ARCHITECTURES)
def tokenizer(request, tokenizers):
    return tokenizers[request.param]


def test_a_chat_prompt_is_the_template_with_an_opened_think_tag(tokenizer):
    for instruction, ids in zip(
        INSTRUCTIONS, prompt_ids(tokenizer, INSTRUCTIONS, "chat"), strict=True
    ):
        messages = [{"role": "user", "content": f"{instruction}\n\n{FRAME}"}]
        template = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        think = tokenizer(THINK, add_special_tokens=False)["input_ids"]
        assert list(ids) == [*template, *think]
        assert tokenizer.decode(ids) == prompt_texts(tokenizer, [instruction], "chat")[0]


def test_a_plain_prompt_starts_as_the_model_was_trained_to(tokenizer):
    start = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    (ids,) = prompt_ids(tokenizer, ["Find y."], "r1")
    assert list(ids[: len(start)]) == start
    text = f"{FRAME}\n\nUser: Find y.\n\nAssistant: <think>"
    assert (
        tokenizer.decode(ids[len(start) :]) == text == prompt_texts(tokenizer, ["Find y."], "r1")[0]
    )
    assert not set(ids[len(start) :]) & set(tokenizer.all_special_ids)


def test_a_tokenizer_that_ends_its_texts_does_not_end_the_prompt():
    tokenizer = bpe_tokenizer("qwen2", TEXTS)
    end = (tokenizer.eos_token, tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end[0]}", special_tokens=[end]
    )
    assert tokenizer("a")["input_ids"][-1] == end[1]
    assert end[1] not in prompt_ids(tokenizer, ["a"], "r1")[0]


@pytest.mark.parametrize("style", ["r1", "chat"])
def test_what_a_model_wrote_into_an_instruction_controls_nothing(tokenizer, style):
    control = tokenizer.eos_token
    forged, innocent = f"say {control} now", "say less now"
    first, second = prompt_ids(tokenizer, [forged, innocent], style)
    specials = [[i for i in ids if i in set(tokenizer.all_special_ids)] for ids in (first, second)]
    assert specials[0] == specials[1]
    assert forged in tokenizer.decode(first)


def test_compact_prompts_are_encoded_as_they_stand():
    tokenizer = make_tokenizer(("a", "b"), "word")
    assert prompt_ids(tokenizer, ["a b", "b", "a b"]) == [(3, 4), (4,), (3, 4)]
    assert prompt_ids(tokenizer, []) == []
    assert prompt_texts(tokenizer, ["a b"]) == ["a b"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "no chat template; use --task.style r1"),
        ("{{ raise_exception('only tools') }}", "fails on one user message: .*only tools.*r1"),
        ("{{ messages[0].nothing.more }}", "fails on one user message"),
        ("{% if %}", "fails on one user message: TemplateSyntaxError"),
        ("hello", "does not keep a user message"),
        ("{{ messages[0].content | upper }}", "does not keep a user message"),
        ("{{ messages[0].content }}{{ messages[0].content }}", "does not keep a user message"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused_with_the_way_out(template, message):
    tokenizer = bpe_tokenizer("qwen2", TEXTS, template=False)
    tokenizer.chat_template = template
    with pytest.raises(ConfigError, match=f"--task.style chat: .*{message}"):
        prompt_ids(tokenizer, ["a"], "chat")


@pytest.mark.parametrize(
    ("written", "opened"),
    [
        ("", "<think>"),
        ("<think>", "<think>"),
        ("<think>\n", "<think>\n"),
        ("<think>\nWell,", "<think>\nWell,"),
        ("<think></think>", "<think>"),
        ("<think>\n\n</think>\n\n", "<think>"),
        ("<think>\nNothing to think about.\n</think>\n", "<think>"),
        ("</think>", "<think>"),
        ("Sure. <think>\n</think>\n", "Sure. <think>"),
        ("Think inside <think></think>. ", "Think inside <think></think>. <think>"),
    ],
)
@pytest.mark.parametrize("condition", ["add_generation_prompt", "true"])
def test_a_chat_prompt_ends_in_one_opened_think_tag(written, opened, condition, tokenizers):
    tokenizer = copy.deepcopy(tokenizers["qwen2"])
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if " + condition + " %}<|im_start|>assistant\n" + written + "{% endif %}"
    )
    (text,) = prompt_texts(tokenizer, ["a"], "chat")
    assert text.endswith(f"{FRAME}<|im_end|>\n<|im_start|>assistant\n{opened}")


def test_what_a_user_turn_says_about_tags_opens_none(tokenizers):
    tokenizer = copy.deepcopy(tokenizers["qwen2"])
    tokenizer.chat_template = "{{ messages[0].content }} Begin with <think>!"
    tokenizer.chat_template += "{% if add_generation_prompt %} Assistant: {% endif %}"
    (text,) = prompt_texts(tokenizer, ["a"], "chat")
    assert text.endswith("Begin with <think>! Assistant: <think>")


@pytest.mark.parametrize(
    "written",
    [
        "{{ strftime_now('%d %b %Y') }}",
        "{% if not date_string is defined %}{% set date_string = strftime_now('%H:%M:%S.%f') %}"
        "{% endif %}Today: {{ date_string }}",
        "{{ range(10 ** 5) | random }}",
        "{{ lipsum(n=1) }}",
    ],
)
@pytest.mark.parametrize("place", ["head", "tail"])
def test_what_a_template_wrote_stays_with_the_run(written, place, tmp_path, midnight, tokenizers):
    tokenizer = copy.deepcopy(tokenizers["qwen2"])
    parts = {"head": "{{ messages[0].content }}", "tail": "{{ messages[0].content }}"}
    parts["head"] = written + parts["head"]
    parts["tail"] += written
    tokenizer.chat_template = parts[place]
    first = prompt_texts(tokenizer, ["a"], "chat")
    midnight()
    assert prompt_texts(tokenizer, ["a"], "chat") == first
    tokenizer.save_pretrained(tmp_path)
    saved = load_tokenizer(str(tmp_path))
    assert prompt_texts(saved, ["a"], "chat") == first
    renew_chat(saved, "chat")  # a run that begins from that model
    assert prompt_texts(saved, ["a"], "chat") != first


def test_every_end_token_ends_a_response_and_no_other_disappears(tmp_path, tokenizers):
    import torch

    from azr.model.load import load_model

    folder = make_folder(tmp_path, "llama", TEXTS)
    model, tokenizer = load_model(str(folder), torch.float32, torch.device("cpu"))
    names = tokenizer.convert_tokens_to_ids
    turn, text, start = names(["<|eot_id|>", "<|end_of_text|>", "<|start_header_id|>"])
    ends = end_ids(tokenizer, model)
    assert ends == (turn, text)
    assert end_ids(tokenizer) == (turn,)
    body = tuple(tokenizer("y=1", add_special_tokens=False)["input_ids"])
    rows = [(*body, turn), (*body, text), body, (turn, *body), (*body, start), (*body, turn, turn)]
    assert response_texts(tokenizer, rows, ends) == [
        "y=1", "y=1", "y=1", "<|eot_id|>y=1", "y=1<|start_header_id|>", "y=1<|eot_id|>",
    ]  # fmt: skip
    # An embedding row without a token: the tokenizer alone would read y=11.
    assert model.get_input_embeddings().weight.shape[0] > len(tokenizer)
    one = body[-1]
    assert response_texts(tokenizer, [(*body, len(tokenizer), one)], ends) == ["y=1\ufffd1"]


def test_spaces_are_not_tidied_up():
    tokenizer = bpe_tokenizer("llama", TEXTS)
    tokenizer.clean_up_tokenization_spaces = True
    text = "x = [1 , 2] . n't ' s ?"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert response_texts(tokenizer, [tuple(ids)]) == [text]


def config(path="", style="auto", new_tokens=64):
    return dataclasses.replace(
        Config(),
        model=ModelConfig(path=str(path)),
        task=TaskConfig(style=style),
        rollout=RolloutConfig(max_new_tokens=new_tokens),
    )


def tokenizer_of(path):
    return load_tokenizer(str(path)) if path else None


def test_the_style_is_settled_by_the_model(tmp_path):
    chat = make_folder(tmp_path / "chat", "qwen2", TEXTS)
    base = make_folder(tmp_path / "base", "llama", TEXTS, template=False)
    vocabulary = load_environment(TaskConfig()).vocabulary()
    words = make_tokenizer(vocabulary.words, vocabulary.split)
    tiny = tmp_path / "tiny"
    save_model(make_tiny_model(ModelConfig(), len(words), 0), words, tiny)
    for path, style, why in (
        ("", "compact", "from scratch"),
        (chat, "chat", "has a chat template"),
        (base, "r1", "has no chat template"),
        (tiny, "compact", "no tokens for plain text"),
    ):
        settled, reason = settle_style(config(path), tokenizer_of(path))
        assert settled.task.style == style and why in reason
    for path, style in (("", "compact"), (chat, "chat"), (chat, "r1"), (base, "r1")):
        settled, reason = settle_style(config(path, style), tokenizer_of(path))
        assert settled.task.style == style and reason == "as asked by --task.style"
    for path, style, message in (
        ("", "r1", "--task.style r1: a model from scratch.*--model"),
        (base, "chat", "--task.style chat: the tokenizer has no chat template; use.*r1"),
    ):
        with pytest.raises(ConfigError, match=message):
            settle_style(config(path, style), tokenizer_of(path))
    with pytest.raises(ConfigError, match="--rollout.max-new-tokens 0: prompts of style chat"):
        settle_style(config(chat, new_tokens=0), tokenizer_of(chat))


def test_a_run_asks_for_its_tokenizer_and_its_architecture_once(tmp_path, monkeypatch):
    """For a hub id each time goes out to the hub."""
    folder = make_folder(tmp_path, "qwen2", TEXTS, context=4096)
    asked = []
    monkeypatch.setattr("azr.model.load._reach", asked.append)
    ready = prepare(config(folder), is_dry=True)
    build_model(ready.config, ready.environment, ready.tokenizer)
    assert asked == [str(folder)] * 2


def test_a_run_that_settled_its_style_goes_on_with_auto_and_with_no_other(tmp_path):
    settled = config(style="chat")
    check_resumable(config(style="auto"), settled, tmp_path)
    assert settle_style(config("nowhere"), None, settled)[0].task.style == "chat"
    with pytest.raises(ConfigError, match="--task.style is 'r1', was 'chat'"):
        check_resumable(config(style="r1"), settled, tmp_path)
