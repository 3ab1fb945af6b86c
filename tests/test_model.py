"""Models and tokenizers: made, saved, loaded, refused by name; a warm-up that learns form alone."""

import json
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import FAMILIES, azr_model, plain_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CohereConfig,
    DiffLlamaConfig,
    DogeConfig,
    Gemma3TextConfig,
    GPT2Config,
    GraniteConfig,
    JetMoeConfig,
    LlamaConfig,
    MistralConfig,
    MptConfig,
    NemotronConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    StableLmConfig,
)

from azr.config import ConfigError, ModelConfig, OptimConfig, TaskConfig, WarmupConfig
from azr.keys import generator
from azr.learner.optim import AdamW
from azr.learner.warmup import format_warmup
from azr.model.attention import arange_positions, head_weight, hidden_states, use_azr_attention
from azr.model.load import (
    ALIGNMENT,
    check_words,
    load_architecture,
    load_model,
    load_tokenizer,
    make_tiny_model,
    make_tokenizer,
    parameter_count,
    save_model,
    tiny_config,
)
from azr.tasks.prime import PrimeEnvironment

SMALL = ModelConfig(hidden=32, layers=2, heads=4, kv_heads=2, ffn=48)
WORDS = ("P", "S", "=", ";", *map(str, range(12)))
CHARS = ("P", "=", " ", "\n", *"0123456789")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def word_tokenizer():
    return make_tokenizer(WORDS, "word")


@pytest.fixture(scope="module")
def char_tokenizer():
    return make_tokenizer(CHARS, "char")


def encode(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@given(st.lists(st.sampled_from(WORDS)))
def test_a_text_of_known_words_survives(word_tokenizer, words):
    ids = encode(word_tokenizer, " ".join(words))
    assert ids == [3 + WORDS.index(word) for word in words]
    assert word_tokenizer.decode(ids) == " ".join(words)


@given(st.lists(st.sampled_from(CHARS)))
def test_a_text_of_known_characters_survives(char_tokenizer, chars):
    ids = encode(char_tokenizer, "".join(chars))
    assert ids == [3 + CHARS.index(char) for char in chars]
    assert char_tokenizer.decode(ids) == "".join(chars)


pieces = st.lists(
    st.one_of(st.sampled_from(["<pad>", "<eos>", "<unk>", " ", "P", "=", "1"]), st.text(max_size=3))
)


@pytest.mark.parametrize("kind", ["word", "char"])
@given(pieces=pieces)
def test_no_text_encodes_to_padding_or_end_of_text(kind, pieces, word_tokenizer, char_tokenizer):
    tokenizer = {"word": word_tokenizer, "char": char_tokenizer}[kind]
    ids = encode(tokenizer, "".join(pieces))
    assert tokenizer.pad_token_id not in ids and tokenizer.eos_token_id not in ids


def test_special_tokens_have_the_ids_of_the_tiny_architecture(word_tokenizer):
    config = tiny_config(SMALL, len(word_tokenizer))
    assert (config.pad_token_id, config.eos_token_id) == (0, 1)
    assert (word_tokenizer.pad_token_id, word_tokenizer.eos_token_id) == (0, 1)
    assert len(word_tokenizer) == 3 + len(WORDS)
    assert encode(word_tokenizer, "P never = 12") == [3, 2, 5, 2]


@pytest.mark.parametrize("words", [("a", "a"), ("a", ""), ("a", "<eos>")])
def test_a_vocabulary_of_other_than_distinct_words_is_refused(words):
    with pytest.raises(ValueError, match="distinct, non-empty and not special"):
        make_tokenizer(words, "word")


def test_check_words_names_the_word_that_is_no_token(word_tokenizer):
    check_words(word_tokenizer, WORDS, "a/model")
    for word in ("12", "1 1"):
        with pytest.raises(ConfigError, match=f"--model a/model: .* no token for '{word}'"):
            check_words(word_tokenizer, ("P", word), "a/model")


def test_a_tiny_model_is_a_function_of_its_seed():
    def weights(seed):
        # Whatever the global generator is at.
        torch.manual_seed(random.randrange(2**32))
        return make_tiny_model(SMALL, 19, seed).state_dict()

    first, again, other = weights(3), weights(3), weights(4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(
        not torch.equal(first[name], other[name])
        for name in first
        if "norm" not in name and "bias" not in name
    )


def test_a_tiny_model_has_the_sizes_and_deviations_asked_for():
    config = ModelConfig(hidden=64, layers=3, heads=8, kv_heads=2, ffn=96)
    model = make_tiny_model(config, 40, 0)
    layer = model.model.layers[1]
    assert layer.self_attn.q_proj.weight.shape == (64, 64)
    assert layer.self_attn.k_proj.weight.shape == (16, 64)
    assert layer.mlp.up_proj.weight.shape == (96, 64)
    assert len(model.model.layers) == 3
    assert model.lm_head.weight is model.model.embed_tokens.weight
    for weight, std in (
        (model.model.embed_tokens.weight, 1 / 8),
        (layer.self_attn.q_proj.weight, 0.5 / 8),
        (layer.mlp.up_proj.weight, 0.5 / 8),
        (layer.self_attn.o_proj.weight, 0.5 / 8 / 6**0.5),
        (layer.mlp.down_proj.weight, 0.5 / 8 / 6**0.5),
    ):
        # A sample deviation strays by std / sqrt(2 n).
        assert abs(float(weight.detach().std()) / std - 1) < 5 / (2 * weight.numel()) ** 0.5
    assert layer.self_attn.q_proj.bias.abs().max() == 0


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_counted_without_making_them(tied):
    config = tiny_config(SMALL, 40)
    config.tie_word_embeddings = tied
    model = AutoModelForCausalLM.from_config(config)
    assert parameter_count(config) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_and_head_make_the_logits_of_the_untouched_model(family):
    plain = plain_model(family, attention="eager")
    model = azr_model(plain)
    ids = torch.randint(2, 48, (5, 17), generator=torch.Generator().manual_seed(0))
    hidden = hidden_states(model, ids, arange_positions(ids))
    with torch.no_grad():
        assert (hidden @ head_weight(model).T - plain(input_ids=ids).logits).abs().max() < 1e-5


def test_padding_on_the_right_is_seen_by_no_real_token():
    model = azr_model(plain_model())
    ids = torch.randint(2, 48, (1, 9), generator=torch.Generator().manual_seed(0))
    padded = torch.cat([ids, torch.zeros((1, 6), dtype=torch.int64)], dim=1)
    with torch.no_grad():
        short = hidden_states(model, ids, arange_positions(ids))
        long = hidden_states(model, padded, arange_positions(padded))
    assert (long[:, :9] - short).abs().max() < 1e-6 * short.abs().max()


TINY = dict(
    vocab_size=32,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    intermediate_size=16,
    pad_token_id=0,
    bos_token_id=None,
    eos_token_id=1,
)
LONGROPE = dict(
    rope_type="longrope",
    rope_theta=10000.0,
    factor=2.0,
    original_max_position_embeddings=16,
    short_factor=[1.0] * 4,
    long_factor=[4.0] * 4,
)
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=10000.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            Qwen2Config(**TINY, use_sliding_window=True, sliding_window=4, max_window_layers=1),
            r"qwen2: layers of kind \['sliding_attention'\] are not supported",
        ),
        (
            MistralConfig(**TINY, sliding_window=4),
            r"mistral: layers of kind \['sliding_attention'\] are not supported",
        ),
        (GraniteConfig(**TINY, logits_scaling=8.0), "granite: logits_scaling=8.0 is not supported"),
        (CohereConfig(**TINY, logit_scale=0.0625), "cohere: logit_scale=0.0625 is not supported"),
        # Attention in code of their own; two calls a layer; a mask learned from the values.
        (NemotronConfig(**TINY), "nemotron: 2 layers call .* attention interface 0 times"),
        (StableLmConfig(**TINY), "stablelm: 2 layers call .* attention interface 0 times"),
        (
            DiffLlamaConfig(**(TINY | dict(num_key_value_heads=2))),
            "diffllama: 2 layers call .* attention interface 4 times",
        ),
        (
            MptConfig(vocab_size=32, d_model=16, n_heads=2, n_layers=2),
            "mpt: 2 layers call .* attention interface 0 times",
        ),
        (
            JetMoeConfig(**TINY, kv_channels=8),
            r"jetmoe: keys and values have .* \[\(2, 8\)\], .* says \(1, 8\)",
        ),
        (DogeConfig(**TINY), "DogeAttention makes a mask of its own"),
        (LlamaConfig(**TINY, rope_parameters=LONGROPE), "llama: rope_type 'longrope'"),
        (
            LlamaConfig(**TINY, rope_scaling={"type": "dynamic", "factor": 2.0}),
            "llama: rope_type 'dynamic' .* depend on the longest row of a batch",
        ),
        (
            Gemma3TextConfig(
                **TINY,
                head_dim=8,
                layer_types=["full_attention"] * 2,
                rope_parameters={"full_attention": LONGROPE},
            ),
            "gemma3_text: rope_type 'longrope'",
        ),
    ],
)
def test_a_model_that_would_be_computed_wrongly_is_refused_by_name(config, message):
    model = AutoModelForCausalLM.from_config(config)
    before = model.config._attn_implementation
    with pytest.raises(ValueError, match=message):
        use_azr_attention(model)
    assert model.config._attn_implementation == before


@pytest.mark.parametrize(
    "config",
    [
        MistralConfig(**TINY, sliding_window=None),
        GraniteConfig(**TINY, logits_scaling=1.0),
        Qwen2Config(**TINY, use_sliding_window=False, sliding_window=4),
        LlamaConfig(**TINY, rope_parameters=LLAMA3),
        LlamaConfig(**TINY, rope_scaling={"type": "linear", "factor": 2.0}),
        LlamaConfig(
            **TINY, max_position_embeddings=64, rope_scaling={"rope_type": "yarn", "factor": 4.0}
        ),
    ],
)
def test_the_same_families_without_those_options_are_served(config):
    plain = AutoModelForCausalLM.from_config(config).eval()
    model = azr_model(plain)
    ids = torch.tensor([[3, 4, 5, 6, 7, 8, 9]])
    with torch.no_grad():
        hidden = hidden_states(model, ids, arange_positions(ids))
        assert (hidden @ head_weight(model).T - plain(input_ids=ids).logits).abs().max() < 1e-5


def test_a_model_that_attends_by_itself_is_not_computed():
    ids = torch.tensor([[3, 4, 5]])
    with pytest.raises(ValueError, match="Qwen2ForCausalLM attends by 'sdpa'; call azr.model"):
        hidden_states(plain_model(), ids, arange_positions(ids))


def test_preparing_a_model_leaves_its_mode_and_the_random_numbers_alone():
    config = GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=1)
    model = AutoModelForCausalLM.from_config(config).train()
    before = torch.get_rng_state()
    use_azr_attention(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in model.modules())


def test_a_head_with_a_bias_is_refused():
    model = AutoModelForCausalLM.from_config(
        GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=1)
    )
    assert head_weight(model).shape == (8, 8)
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(8))
    with pytest.raises(ValueError, match="GPT2LMHeadModel: a language-model head with a bias"):
        head_weight(model)


@pytest.fixture
def saved(tmp_path, word_tokenizer):
    """A saved tiny model: (folder, model)."""
    model = make_tiny_model(SMALL, len(word_tokenizer), 1)
    save_model(model, word_tokenizer, tmp_path / "hf")
    return tmp_path / "hf", model


def test_a_saved_folder_opens_in_plain_transformers(saved):
    folder, model = saved
    config = json.loads((folder / "config.json").read_text())
    assert "azr" not in json.dumps(config)
    assert config["architectures"] == ["Qwen2ForCausalLM"]
    again = AutoModelForCausalLM.from_pretrained(folder)
    assert again.config._attn_implementation == "sdpa"
    ids = torch.randint(3, 19, (3, 11), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        hidden = hidden_states(model, ids, arange_positions(ids))
        assert (hidden @ head_weight(model).T - again(ids).logits).abs().max() < 1e-5
    assert not [p for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pkl")]


def test_a_saved_folder_comes_back_whole(saved, word_tokenizer):
    folder, model = saved
    again, tokenizer = load_model(str(folder), torch.float32, CPU)
    assert again.config._attn_implementation == "azr"
    state = again.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    text = "P 1 2 = <eos> 11 nothing"
    assert encode(tokenizer, text) == encode(word_tokenizer, text)
    assert tokenizer.eos_token_id == 1
    assert tokenizer.decode([3, 5, 8], skip_special_tokens=False) == "P = 1"
    assert parameter_count(load_architecture(str(folder))) == sum(
        p.numel() for p in model.parameters()
    )


def test_a_character_tokenizer_comes_back_whole(tmp_path, char_tokenizer):
    char_tokenizer.save_pretrained(tmp_path)
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    text = "P 10\n<eos>=7 \n\n0x"
    assert encode(again, text) == encode(char_tokenizer, text)
    assert again.decode(encode(again, "P 10\n\n = 7")) == "P 10\n\n = 7"


def test_loaded_weights_lie_where_those_of_a_straight_run_do(saved):
    """A mapped file's tensors lie anywhere, and products of few rows may round by that."""
    folder, model = saved
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert {p.data_ptr() % ALIGNMENT for p in plain.parameters()} != {0}
    again, _ = load_model(str(folder), torch.float32, CPU)
    for tensors in (again.parameters(), again.buffers(), model.parameters()):
        assert {t.data_ptr() % ALIGNMENT for t in tensors} == {0}
    assert head_weight(again) is again.get_input_embeddings().weight


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            "quantization_config .*gptq",
        ),
        ({"quantization_config": {"quant_method": "awq"}}, "awq"),
        ({"quantization_config": {"quant_method": "fp8"}}, "fp8"),
        ({"quantization_config": {"load_in_4bit": True}}, "load_in_4bit"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "bitsandbytes"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "'bits': 4"),
    ],
)
def test_a_quantised_folder_is_refused_for_what_it_is(saved, settings, said):
    folder, _ = saved
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    for load in (load_architecture, lambda p: load_model(p, torch.float32, CPU)):
        with pytest.raises(ConfigError, match=f"{folder}: a quantised model .*{said}.*bf16") as why:
            load(str(folder))
        assert "\n" not in str(why.value)


def test_quantised_weights_without_a_word_in_the_configuration_are_refused(saved):
    folder, _ = saved
    state = load_file(folder / "model.safetensors")
    state["model.layers.0.self_attn.q_proj.weight_scale"] = torch.ones(1)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="a quantised model .it holds model.+q_proj.weight_scale"):
        load_model(str(folder), torch.float32, CPU)
    del state["model.layers.0.self_attn.q_proj.weight_scale"]
    for kind, said in ((torch.int8, "I8"), (torch.float8_e4m3fn, "F8_E4M3")):
        for name in [n for n in state if "mlp" in n]:
            state[name] = state[name].to(kind)
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ConfigError, match=f"a quantised model .*mlp.* is stored as {said}"):
            load_model(str(folder), torch.float32, CPU)
    (folder / "model.safetensors").rename(folder / "model-q4_k_m.gguf")
    with pytest.raises(ConfigError, match="a quantised model .its weights are GGUF files"):
        load_model(str(folder), torch.float32, CPU)


def test_weights_are_loaded_in_the_type_asked_for(saved):
    model, _ = load_model(str(saved[0]), torch.bfloat16, CPU)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_a_missing_folder_is_said_to_be_missing(tmp_path):
    path = str(tmp_path / "absent")
    for load in (load_architecture, lambda p: load_model(p, torch.float32, CPU)):
        with pytest.raises(ConfigError, match=f"--model {path}: no such folder"):
            load(path)


@pytest.mark.parametrize(
    "path", ["runs", "runs/none", "exp/none", "./x", "../x", "~/x", "/x", "a/b/c", "a--b", "a b"]
)
def test_what_looks_like_a_path_is_not_asked_of_the_hub(path, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "azr.model.load.get_hf_file_metadata", lambda *_, **__: pytest.fail("asked")
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "exp" / "20260101-run").mkdir(parents=True)
    (tmp_path / "exp" / "20260101-run" / "config.toml").touch()
    with pytest.raises(ConfigError, match=f"--model {path}: no such folder$"):
        load_tokenizer(path)


def test_the_hub_is_asked_once_and_not_for_long(monkeypatch):
    asked = []

    def silent(url, timeout):
        asked.append((url, timeout))
        raise TimeoutError("no answer")

    monkeypatch.setattr("azr.model.load.get_hf_file_metadata", silent)
    with pytest.raises(ConfigError, match="nobody/nothing: no such folder, and as a hub id"):
        load_architecture("nobody/nothing")
    ((url, timeout),) = asked
    assert url.endswith("nobody/nothing/resolve/main/config.json") and timeout <= 5
    # A model that was fetched before needs no network.
    monkeypatch.setattr("azr.model.load.try_to_load_from_cache", lambda *_: "config.json")
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda path: Qwen2Config(**TINY))
    assert load_architecture("nobody/nothing").hidden_size == 16


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", None),
        ("model.safetensors", b"short"),
        ("model.safetensors", "half"),
        ("config.json", None),
        ("config.json", b"{not json"),
        ("config.json", b'{"model_type": "no-such-family"}'),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", "half"),
        ("tokenizer.json", None),
        ("tokenizer_config.json", b"[]"),
    ],
)
def test_a_broken_folder_is_a_config_error_that_names_it(saved, name, damage):
    folder, _ = saved
    file = folder / name
    whole = file.read_bytes()
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(whole[: len(whole) // 2] if damage == "half" else damage)
    with pytest.raises(ConfigError, match=f"--model {folder}: not a complete HF model folder: .+"):
        load_model(str(folder), torch.float32, CPU)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state, key: state.pop(key), "1 weights are missing, model.layers.0.+q_proj.weight"),
        (lambda state, key: state.update({key: state[key][1:].clone()}), "RuntimeError: .+"),
    ],
)
def test_weights_that_do_not_fill_the_model_are_refused(saved, change, message):
    folder, _ = saved
    state = load_file(folder / "model.safetensors")
    change(state, "model.layers.0.self_attn.q_proj.weight")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=f"not a complete HF model folder: {message}"):
        load_model(str(folder), torch.float32, CPU)


def test_a_tokenizer_without_an_end_of_text_is_refused(saved):
    folder, _ = saved
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=f"--model {folder}: its tokenizer has no end-of-text"):
        load_model(str(folder), torch.float32, CPU)


def test_a_model_that_our_attention_does_not_serve_is_a_config_error(tmp_path, word_tokenizer):
    config = MistralConfig(**(TINY | dict(vocab_size=len(word_tokenizer))), sliding_window=4)
    save_model(AutoModelForCausalLM.from_config(config), word_tokenizer, tmp_path)
    with pytest.raises(ConfigError, match=f"--model {tmp_path}: mistral: layers of kind"):
        load_model(str(tmp_path), torch.float32, CPU)


# --- format warm-up ---

MAX_P = 11


@pytest.fixture(scope="module")
def warmed():
    """A tiny model after its format warm-up on `prime`: (model, tokenizer, environment, losses)."""
    import dataclasses

    task = TaskConfig(references=2)
    task = dataclasses.replace(task, prime=dataclasses.replace(task.prime, max_p=MAX_P))
    environment = PrimeEnvironment(task)
    vocabulary = environment.vocabulary()
    tokenizer = make_tokenizer(vocabulary.words, vocabulary.split)
    model = make_tiny_model(ModelConfig(hidden=32, layers=1, ffn=48), len(tokenizer), 0)
    losses = []
    last = format_warmup(
        model,
        tokenizer,
        lambda step, n: environment.warmup_rows(generator(0, "warmup", step), n),
        WarmupConfig(steps=120, batch_size=128, lr=5e-3),
        on_progress=lambda steps, loss: losses.append((steps, loss)),
    )
    assert losses[-1] == (120, last) and [steps for steps, _ in losses] == list(range(1, 121))
    return model, tokenizer, environment, [loss for _, loss in losses]


@torch.no_grad()
def next_token_probs(model, tokenizer, text):
    ids = torch.tensor([encode(tokenizer, text)])
    hidden = hidden_states(model, ids, arange_positions(ids))[0, -1]
    return torch.softmax(head_weight(model) @ hidden, dim=-1)


def test_warm_up_learns_the_form_of_a_response(warmed):
    model, tokenizer, environment, losses = warmed
    numbers = [tokenizer.convert_tokens_to_ids(str(n)) for n in range(1, MAX_P + 1)]
    for task_type in environment.task_types:
        for task in environment.eval_tasks("train", task_type)[::9]:
            prompt = environment.solve_prompt(task, "compact")
            assert next_token_probs(model, tokenizer, prompt)[numbers].sum() > 0.95
            after = next_token_probs(model, tokenizer, f"{prompt} 5")
            assert after[tokenizer.eos_token_id] > 0.95
            proposal = environment.propose_prompt(task_type, [task], "compact")
            assert next_token_probs(model, tokenizer, f"{proposal} 7")[numbers].sum() > 0.95
            after = next_token_probs(model, tokenizer, f"{proposal} 7 3")
            assert after[tokenizer.eos_token_id] > 0.95
    # Half of the rows have one free number among 2 tokens, half two among 3: the entropy of those
    # is what is left to lose.
    floor = 1.5 * np.log(MAX_P) / 2.5
    assert losses[0] > 1.5 * floor
    assert floor - 0.05 < np.mean(losses[-10:]) < floor + 0.1


def test_warm_up_learns_no_arithmetic(warmed):
    model, tokenizer, environment, _ = warmed
    numbers = [tokenizer.convert_tokens_to_ids(str(n)) for n in range(1, MAX_P + 1)]
    for task_type, answer in (("deduction", "y"), ("abduction", "x"), ("induction", "p")):
        right, rows = [], []
        for task in environment.eval_tasks("train", task_type):
            prompt = environment.solve_prompt(task, "compact")
            probs = next_token_probs(model, tokenizer, prompt)
            right.append(float(probs[tokenizer.convert_tokens_to_ids(
                str(getattr(task.problem, answer)))]))  # fmt: skip
            rows.append(probs[numbers])
        assert np.mean(right) == pytest.approx(1 / MAX_P, rel=0.15)
        # The response does not depend on the prompt: every row is near the mean of all of them,
        # and that is near the uniform distribution.
        rows = torch.stack(rows)
        spread = (rows - rows.mean(0)).abs().sum(1) / 2
        assert float(spread.mean()) < 0.1
        assert float((rows.mean(0) - 1 / MAX_P).abs().sum() / 2) < 0.1


def test_warm_up_trains_on_responses_alone_at_a_rate_that_rises_and_falls(
    monkeypatch, word_tokenizer
):
    model = make_tiny_model(SMALL, len(word_tokenizer), 0)
    rates, real = [], AdamW.step

    def step(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return real(self, *args, **kwargs)

    monkeypatch.setattr(AdamW, "step", step)
    config = WarmupConfig(steps=40, batch_size=3, lr=1e-3)
    rows = [("P 1 =", "2"), ("S 3 4 5 =", "6 7"), ("S =", "1")]
    seen = []

    def first_step(steps, loss):
        if steps == 1:
            seen.append(loss)

    copy = make_tiny_model(SMALL, len(word_tokenizer), 0)
    format_warmup(model, word_tokenizer, lambda step, n: rows[:n], config, on_progress=first_step)
    assert rates == pytest.approx(
        [1e-3 * min(1, (i + 1) / 20) * (1 - i / 40) for i in range(40)], rel=1e-9
    )
    # Mean over response tokens and the end of text.
    total = count = 0
    for prompt, response in rows:
        p, r = encode(word_tokenizer, prompt), [*encode(word_tokenizer, response), 1]
        with torch.no_grad():
            logprobs = copy(input_ids=torch.tensor([p + r])).logits[0].log_softmax(-1)
        total -= sum(float(logprobs[len(p) - 1 + i, t]) for i, t in enumerate(r))
        count += len(r)
    assert seen == pytest.approx([total / count], rel=1e-5)


def test_micro_batches_of_the_warm_up_add_up_to_the_whole(word_tokenizer):
    rows = [("P 1 =", "2"), ("S 3 4 5 =", "6 7"), ("S =", "1"), ("S 3 4 5 =", "6 1")]

    def warmed(budget):
        model, told = make_tiny_model(SMALL, len(word_tokenizer), 0), []
        format_warmup(
            model,
            word_tokenizer,
            lambda step, n: rows,
            WarmupConfig(steps=3, batch_size=4),
            optim=OptimConfig(micro_batch_tokens=budget, recompute=budget == 1),
            on_progress=lambda steps, loss: told.append((steps, loss)),
        )
        return model.state_dict(), told

    (whole, once), (apart, often) = warmed(10**6), warmed(1)
    for name in whole:
        torch.testing.assert_close(apart[name], whole[name], rtol=1e-4, atol=1e-6)
    # Ten response tokens a step: 2, 2, 3 and 3 with the end of text, in the order of the prompts.
    assert [steps for steps, _ in often[:5]] == pytest.approx([0.2, 0.4, 0.7, 1.0, 1.2])
    assert [loss for _, loss in often[3::4]] == pytest.approx([loss for _, loss in once], rel=1e-5)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**32))
def test_warm_up_is_deterministic(word_tokenizer, seed):
    def run():
        model = make_tiny_model(SMALL, len(word_tokenizer), seed)
        rows = [("P 1 =", "2"), ("S 3 4 5 =", "6 7")]
        format_warmup(model, word_tokenizer, lambda s, n: rows, WarmupConfig(steps=3, batch_size=2))
        return model.state_dict()

    first, second = run(), run()
    assert all(torch.equal(first[name], second[name]) for name in first)
