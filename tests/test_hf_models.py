"""Real architectures with their own tokenizers: six cells, training, export, resume, refusals."""

import dataclasses
import json
import shutil
import sqlite3
from datetime import datetime
from pathlib import Path

import pytest
import torch
from folders import bpe_tokenizer, make_folder, prompt_texts_of
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    Qwen2Config,
    T5Config,
)

from azr.config import ConfigError, TaskConfig, load_toml, parse_command_line, preset_path
from azr.evaluate import main as evaluate
from azr.memory import memory_plan
from azr.model.attention import arange_positions, head_weight, hidden_states
from azr.model.load import load_architecture, load_model, load_tokenizer, pad_id, parameter_count
from azr.plan import peak_bytes
from azr.run.metrics import read_metrics
from azr.tasks import load_environment
from azr.tasks.envelope import FRAME
from azr.text import prompt_ids
from azr.train import main, run

TYPES = ("deduction", "abduction", "induction")
CPU = torch.device("cpu")
ENV = load_environment(TaskConfig(style="r1", references=2))
TEXTS = prompt_texts_of(ENV)

FLAGS = [
    "--rollout.max-new-tokens", "40", "--task.references", "2", "--task.prime.max-p", "13",
    "--warmup.loaded", "True", "--warmup.steps", "80", "--warmup.batch-size", "8",
    "--warmup.lr", "1e-2", "--selfplay.proposals-per-type", "6", "--selfplay.estimate-samples",
    "2", "--selfplay.solver-tasks-per-type", "8", "--selfplay.seed-tasks", "4",
    "--selfplay.seed-rounds", "1", "--eval.every", "20", "--eval.samples", "1", "--optim.lr",
    "5e-4", "--loss.kl", "none", "--loss.kl-coef", "0",
]  # fmt: skip


def config(folder, root, *flags):
    return parse_command_line(
        [*FLAGS, "--model", str(folder), "--run.root", str(root), *flags]
    ).config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Twenty steps of a Qwen2 whose chat template writes the time, saved at step 18 too:
    (summary, config)."""
    root = tmp_path_factory.mktemp("qwen2")
    folder = make_folder(root / "model", "qwen2", TEXTS)
    template = folder / "chat_template.jinja"
    template.write_text("{{ strftime_now('%d %b %Y %H:%M:%S.%f') }}\n" + template.read_text())
    c = config(folder, root, "--steps", "20", "--save.every", "9")

    class Clock(datetime):
        """The run's start, for ever: another time has other tokens, and another run."""

        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 2, 3, 4, 5, 678)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.utils.chat_template_utils.datetime", Clock)
        return run(c), c


def check_six_cells(summary, valid_at_least):
    """All six cells were well formed, proposals were valid, and rewards told samples apart."""
    rows = read_metrics(summary.run_dir / "metrics.jsonl")[1:]
    with sqlite3.connect(summary.run_dir / "run.db") as db:
        counts = dict(
            db.execute("select type, sum(count) from samples where outcome = 'valid' group by type")
        )
    assert set(counts) == set(TYPES) and sum(counts.values()) >= valid_at_least, counts
    for task_type in TYPES:
        for role in ("propose", "solve"):
            assert max(row[f"{role}/{task_type}/format_rate"] for row in rows) > 0.5
            assert max(row[f"reward/{role}/{task_type}/std"] for row in rows) > 0
    for row in rows:
        assert abs(row["mismatch/ratio_max"] - 1) < 1e-3


def check_export(summary):
    """The checkpoint is what plain transformers loads; its logits are those of our forward."""
    folder = summary.checkpoint / "hf"
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    ours, tokenizer = load_model(str(folder), torch.float32, CPU)
    ids = torch.tensor([prompt_ids(tokenizer, ["Find y for p = 7."], "r1")[0]])
    with torch.no_grad():
        expected = plain(input_ids=ids).logits
        got = hidden_states(ours, ids, arange_positions(ids)) @ head_weight(ours).T
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert not torch.equal(load_file(folder / "model.safetensors")["model.norm.weight"],
                           torch.ones(ours.config.hidden_size))  # fmt: skip


def test_a_chat_model_trains_in_all_six_cells(trained):
    summary, _ = trained
    assert summary.step == 20
    check_six_cells(summary, valid_at_least=50)
    written = (summary.run_dir / "config.toml").read_text()
    assert 'style = "chat"' in written
    assert "chat (the tokenizer has a chat template)" in (summary.run_dir / "log.txt").read_text()
    tasks = {t: summary.after["train", t].tasks for t in TYPES}
    assert min(tasks.values()) >= 25
    assert all(summary.after["train", t].greedy_format_rate > 0.5 for t in TYPES)


def test_prompts_are_kept_as_the_model_read_them(trained):
    with sqlite3.connect(trained[0].run_dir / "run.db") as db:
        prompts = [row[0] for row in db.execute("select text from prompts")]
    assert len(prompts) > 50
    heads = {prompt.partition("<|im_start|>user\n")[0] for prompt in prompts}
    assert len(heads) == 1 and "20" in heads.pop()  # the time of the run's start
    for prompt in prompts:
        assert prompt.count(FRAME) == 1
        assert prompt.endswith("<|im_end|>\n<|im_start|>assistant\n<think>")


def test_a_trained_model_is_exported_for_plain_transformers(trained):
    check_export(trained[0])


def test_a_run_with_text_prompts_resumes_exactly(trained, tmp_path, midnight):
    midnight()
    summary, c = trained
    copy = tmp_path / summary.run_dir.name
    shutil.copytree(summary.run_dir, copy, symlinks=True)
    shutil.rmtree(copy / "checkpoints" / summary.checkpoint.name)
    here = dataclasses.replace(c, run=dataclasses.replace(c.run, root=str(tmp_path)))
    model = Path(c.model.path)
    away = model.rename(model.with_name("away"))  # what it was loaded from is not needed again
    again = run(here, resume=copy)
    away.rename(model)
    assert (summary.step, again.step) == (20, 20)
    first, second = (load_file(s.checkpoint / "hf" / "model.safetensors") for s in (summary, again))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_with_text_prompts_is_evaluated_as_it_was_in_training(trained, tmp_path, midnight):
    midnight()
    summary, _ = trained
    out = tmp_path / "result.json"
    assert evaluate([str(summary.run_dir), "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    last = read_metrics(summary.run_dir / "metrics.jsonl")[-1]
    same = {k: v for k, v in result["metrics"].items() if k.endswith("accuracy")}
    assert same and all(last[name] == value for name, value in same.items())
    assert result["task"]["style"] == "chat"


@pytest.mark.parametrize(
    ("architecture", "template", "style"), [("llama", False, "r1"), ("qwen3", True, "chat")]
)
def test_other_architectures_train_and_come_back(architecture, template, style, tmp_path):
    folder = make_folder(tmp_path / "model", architecture, TEXTS, template=template)
    flags = ["--steps", "3", "--save.every", "0", "--warmup.steps", "60"]
    flags += ["--selfplay.proposals-per-type", "12", "--selfplay.solver-tasks-per-type", "16"]
    if architecture == "qwen3":  # room for the instruction and one reference, not for two
        tokenizer = load_tokenizer(str(folder))
        lengths = []
        for shown in (1, 2):
            tasks = ENV.eval_tasks("train", "deduction")[-shown:]
            text = ENV.propose_prompt("deduction", tasks, "chat")
            lengths.append(len(prompt_ids(tokenizer, [text], "chat")[0]))
        flags += ["--rollout.max-prompt-tokens", str(sum(lengths) // 2)]
    summary = run(config(folder, tmp_path, *flags))
    check_six_cells(summary, valid_at_least=3)
    check_export(summary)
    assert f'style = "{style}"' in (summary.run_dir / "config.toml").read_text()
    dropped = [
        r["propose/dropped_references"] for r in read_metrics(summary.run_dir / "metrics.jsonl")[1:]
    ]
    assert (min(dropped) > 0) == (architecture == "qwen3")
    saved = json.loads((summary.checkpoint / "hf" / "tokenizer_config.json").read_text())
    assert saved.get("pad_token") == (None if architecture == "llama" else "<|endoftext|>")


# --- what cannot be trained, and what to do about it ---


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "model", "qwen2", TEXTS)


def refused(path, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_model(str(path), torch.float32, CPU)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "lacking"),
    [
        ("config.json", "it lacks config.json; "),
        ("model.safetensors", r"it lacks weights \(\*.safetensors\); "),
        ("tokenizer.json", "it lacks tokenizer.json; "),
    ],
)
def test_a_folder_that_lacks_a_file_says_which(folder, name, lacking):
    (folder / name).unlink()
    refused(folder, f"not a complete HF model folder: {lacking}")


def test_a_run_given_as_a_model_is_told_where_its_models_are(trained):
    with pytest.raises(ConfigError, match="it is a run; give its checkpoints/step_.../hf"):
        load_tokenizer(str(trained[0].run_dir))


def test_a_hub_id_without_a_network_says_how_to_bring_the_model(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for load in (load_architecture, load_tokenizer):
        with pytest.raises(ConfigError, match="no such folder, and as a hub id") as caught:
            load("nobody/nothing-0b")
        assert "hf download nobody/nothing-0b --local-dir FOLDER" in str(caught.value)
    with pytest.raises(ConfigError, match="--model ./models/a/b: no such folder$"):
        load_tokenizer("./models/a/b")


def test_the_command_line_says_it_in_one_line(tmp_path, capsys):
    assert main(["--model", str(tmp_path / "absent"), "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"--model {tmp_path / 'absent'}: no such folder" in said


@pytest.mark.parametrize(
    "config",
    [
        BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                   vocab_size=600, architectures=["BertForMaskedLM"]),
        T5Config(d_model=16, num_layers=1, num_heads=2, d_ff=16, d_kv=8, vocab_size=600),
    ],
    ids=["bert", "t5"],
)  # fmt: skip
def test_another_kind_of_model_is_refused(folder, config, tmp_path):
    other = tmp_path / "other"
    kind = config.architectures or ["T5Model"]
    model = AutoModel.from_config(config)
    model.save_pretrained(other)
    saved = AutoConfig.from_pretrained(other)
    saved.architectures = kind
    saved.save_pretrained(other)
    bpe_tokenizer("qwen2", TEXTS).save_pretrained(other)
    refused(other, "no causal language model|Unrecognized configuration class|not a complete")


def test_a_classifier_of_a_known_architecture_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["Qwen2ForSequenceClassification"]
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, "holds Qwen2ForSequenceClassification, which is no causal language model")


def test_a_tokenizer_of_another_model_is_refused(folder):
    tokenizer = bpe_tokenizer("qwen2", TEXTS)
    tokenizer.add_tokens([f"<extra_{i}>" for i in range(100)])
    tokenizer.save_pretrained(folder)
    refused(folder, "its tokenizer has 5.. tokens and its embedding 512 rows")


def test_code_that_comes_with_a_model_is_not_run(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "new", "auto_map": {"AutoConfig": "new.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "new.py").write_text("raise SystemExit('run!')")
    with pytest.raises(ConfigError, match="trust_remote_code.*is not run"):
        load_architecture(str(folder))


def test_a_tokenizer_without_padding_stays_as_it_is(tmp_path):
    make_folder(tmp_path, "llama", TEXTS)
    _, tokenizer = load_model(str(tmp_path), torch.float32, CPU)
    assert tokenizer.pad_token is None and pad_id(tokenizer) == tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rollout.max-new-tokens", "0"], "--rollout.max-new-tokens 0: prompts of style chat"),
        (["--rollout.max-new-tokens", "2000"], "has room for 1024 tokens"),
        (["--rollout.max-new-tokens", "950"], "longest prompt of the evaluation has .* room"),
        (["--rollout.max-prompt-tokens", "1000"], "has room for prompts of 984; give fewer"),
        (
            ["--rollout.max-prompt-tokens", "20"],
            "max-prompt-tokens 20: the shortest prompt has 1..",
        ),
        (["--task.style", "haiku"], "'haiku'.*compact"),
        (["--task.style", "compact"], "has no token for"),
    ],
)
def test_options_that_do_not_go_with_the_model_are_refused_before_a_step(
    folder, tmp_path, flags, message
):
    with pytest.raises(ConfigError, match=message):
        run(config(folder, tmp_path, "--warmup.steps", "0", *flags))
    assert not list(tmp_path.glob("*/metrics.jsonl"))


# --- presets ---

QWEN25_3B = Qwen2Config(
    hidden_size=2048, intermediate_size=11008, num_hidden_layers=36, num_attention_heads=16,
    num_key_value_heads=2, vocab_size=151936, max_position_embeddings=32768,
    tie_word_embeddings=True,
)  # fmt: skip


def test_the_prime_preset_runs_dry_on_a_folder_of_its_architecture(tmp_path, capsys):
    folder = make_folder(tmp_path, "qwen2", TEXTS, context=4096)
    flags = ["--config", "a100-qwen2.5-3b-prime.toml", "--model", str(folder), "--device", "cpu"]
    assert main([*flags, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert 'style = "chat"' in said and "max_p = 617" in said and "memory plan" in said


def test_the_prime_preset_fits_the_gpu_it_names():
    config = load_toml(preset_path("a100-qwen2.5-3b-prime.toml"))
    parameters = parameter_count(QWEN25_3B)
    assert 3.0e9 < parameters < 3.2e9
    plan = memory_plan(config, QWEN25_3B, parameters, 1450)
    # An 80 GB card shows 79 GiB; 5 are left to the CUDA context and the allocator.
    assert peak_bytes(plan) < 74 * 2**30
