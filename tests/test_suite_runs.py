"""A suite's evaluation as a whole: pass@k, going on after a kill, the command with a model."""

import itertools
import json
import re
import signal
import time
from types import SimpleNamespace

import processes
import pytest
from folders import bpe_tokenizer, make_folder
from scripted import SMALL, ScriptedEngine, changed
from suites import CRUX, HUMAN, PROMPT, TEST, wrapped, write

from azr.config import ConfigError
from azr.evaluate import main
from azr.evaluation.suite.grading import MODULES, grade_answers
from azr.evaluation.suite.items import Completion, load_suite
from azr.evaluation.suite.journal import Journal
from azr.evaluation.suite.prompts import STYLES, extract, instruction
from azr.evaluation.suite.run import item_results, run_suite, suite_style
from azr.sandbox import Limits, Sandbox

pytest.importorskip("azr._sandbox", reason="the sandbox is not built here")


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(workers=1, limits=Limits(cpu_s=0.5), modules=MODULES) as sandbox:
        yield sandbox


# The whole evaluation, by a scripted policy


TEXTS = ["def f(x): return [1, 2]\n", "assert f([3]) ==", "0123456789", PROMPT, TEST]


class Script(ScriptedEngine):
    model = SimpleNamespace(
        generation_config=None,
        config=SimpleNamespace(
            get_text_config=lambda: SimpleNamespace(max_position_embeddings=4096)
        ),
    )


def right_answer(prompt):
    if "def triple" in prompt:
        return "\n    return n + n + n\n"
    if "def double" in prompt:
        return "\n    return n + n\n"
    row = next(row for row in CRUX if row["code"] in prompt)
    return f"{row['input']})\n" if prompt.endswith("f(") else f" {row['output']}\n"


def play(tmp_path, suite, sandbox, is_right, samples, name="j", stop_after=None):
    """Runs a suite in which sample i of an item is right where is_right(prompt, i) says so."""
    tokenizer = bpe_tokenizer("qwen2", TEXTS, template=False)

    def policy(prompt, index, request):
        index = index if request.sampling.temperature else -1
        return right_answer(prompt) if is_right(prompt, index) else " 0)\n"

    engine = Script(tokenizer, policy)
    config = changed(SMALL, eval__samples=samples, rollout__max_new_tokens=64)
    journal = Journal(tmp_path / f"{name}.samples.jsonl", {"suite": suite.digest})
    done = []

    def on_progress(count, total):
        done.append((count, total))
        if stop_after is not None and count >= stop_after:
            raise KeyboardInterrupt

    try:
        results = run_suite(
            config, suite, "completion", engine, tokenizer, sandbox, journal, on_progress
        )
    finally:
        journal.close()
    return results, item_results(suite, samples, journal), engine, done


@pytest.mark.parametrize("rows", [CRUX, HUMAN])
def test_pass_at_k_is_the_share_of_draws_of_k_samples_with_a_right_one(tmp_path, sandbox, rows):
    suite = load_suite(write(tmp_path / "s.jsonl", rows))
    n = 6

    def is_right(prompt, index):
        return index >= 0 and index % (2 + len(prompt) % 3) == 1

    results, per_item, _, done = play(tmp_path, suite, sandbox, is_right, n)
    assert done[-1] == (len(suite.items) * (n + 1),) * 2
    for result in results:
        items = [i for i in suite.items if i.kind == result.kind]
        flags = [[is_right(instruction(i, "completion"), s) for s in range(n)] for i in items]
        assert set(result.pass_at) == {1, 2, 5, 6}
        for k, value in result.pass_at.items():
            draws = [list(itertools.combinations(f, k)) for f in flags]
            expected = sum(sum(map(any, d)) / len(d) for d in draws) / len(draws)
            assert value == pytest.approx(expected)
        assert result.score.sampled == pytest.approx(result.pass_at[1])
        assert result.score.greedy == 0.0 and result.score.tasks == len(items)
        assert [r["correct"] for r in per_item if r["kind"] == result.kind] == list(map(sum, flags))
        assert sum(result.reasons.values()) == len(items) * (n + 1) - sum(map(sum, flags))


def test_every_right_answer_is_correct_in_every_style(tmp_path, sandbox):
    for rows in (CRUX, HUMAN):
        suite = load_suite(write(tmp_path / "s.jsonl", rows))
        for item in suite.items:
            for style in STYLES:
                if style == "completion":
                    text = right_answer(instruction(item, style))
                elif isinstance(item, Completion):
                    name = item.entry_point
                    body = f"def {name}(n):\n    return n * {3 if name == 'triple' else 2}"
                    text = wrapped(body, "python")
                else:
                    hidden = item.output if item.kind == "output" else item.input
                    text = wrapped(hidden, item.kind)
                answer = extract(item, style, text, True)
                assert grade_answers(sandbox, [(item, answer)])[0].outcome == "correct", style


def test_an_interrupted_evaluation_goes_on_to_the_same_result(tmp_path, sandbox):
    rows = [row | {"id": f"{row['id']}{i}"} for i in range(6) for row in CRUX]
    suite = load_suite(write(tmp_path / "s.jsonl", rows))

    def is_right(prompt, index):
        return (len(prompt) + index) % 3 == 0

    whole = play(tmp_path, suite, sandbox, is_right, 5, "whole")
    with pytest.raises(KeyboardInterrupt):
        play(tmp_path, suite, sandbox, is_right, 5, "cut", stop_after=100)
    path = tmp_path / "cut.samples.jsonl"
    kept = path.read_bytes().splitlines(keepends=True)
    assert 100 < len(kept) < 217
    path.write_bytes(b"".join(kept)[:-7])  # as if it had been killed while writing
    again = play(tmp_path, suite, sandbox, is_right, 5, "cut")
    assert again[:2] == whole[:2]
    asked = sum(request.n for request in again[2].calls[0])
    assert 0 < asked < 216 and again[3][0] == (len(kept) - 2, 216)
    lines = [
        set((tmp_path / f"{n}.samples.jsonl").read_text().splitlines()) for n in ("cut", "whole")
    ]
    assert lines[0] == lines[1]
    # Nothing is asked of the model once all is there, and more samples go on from what is there.
    done = play(tmp_path, suite, sandbox, is_right, 5, "cut")
    assert done[:2] == whole[:2] and done[2].calls == [[]]
    more = play(tmp_path, suite, sandbox, is_right, 7, "cut")
    assert more[0][0].score.samples == 7 and more[3][0] == (216, 36 * 8)
    fewer = play(tmp_path, suite, sandbox, is_right, 5, "cut")
    assert fewer[:2] == whole[:2]


def test_the_samples_of_another_evaluation_are_not_mixed_in(tmp_path):
    Journal(tmp_path / "j", {"suite": "a", "seed": 1}).close()
    Journal(tmp_path / "j", {"suite": "a", "seed": 1}).close()
    with pytest.raises(ConfigError, match=r"another evaluation \(seed differ\)"):
        Journal(tmp_path / "j", {"suite": "a", "seed": 2})
    (tmp_path / "other").write_text("[5]\n")  # JSON lines, and nobody's journal
    with pytest.raises(ConfigError, match=r"another evaluation \(suite differ\)"):
        Journal(tmp_path / "other", {"suite": "a"})
    (tmp_path / "j").write_text('{"suite": "a", "se')  # cut short in its first line
    Journal(tmp_path / "j", {"suite": "b"}).close()
    assert (tmp_path / "j").read_text() == '{"suite": "b"}\n'


def test_the_style_is_the_tokenizers_unless_one_of_a_suite_is_asked_for():
    plain, chatty = (bpe_tokenizer("qwen2", TEXTS, template=t) for t in (False, True))
    for asked in ("auto", "compact"):
        assert suite_style(asked, plain) == "completion" and suite_style(asked, chatty) == "chat"
    assert suite_style("r1", chatty) == "r1"
    with pytest.raises(ConfigError, match="suites are asked in r1, chat, completion"):
        suite_style("poem", plain)


# The command, with a model


@pytest.mark.parametrize("style", ["r1", "chat"])
def test_the_command_asks_in_words_too(tmp_path, style, capsys):
    chatty = make_folder(tmp_path / "hf", "llama", TEXTS, template=style == "chat", context=2048)
    for name, rows in (("crux", CRUX[:1]), ("human", HUMAN[:1])):
        suite = write(tmp_path / f"{name}.jsonl", rows)
        out = tmp_path / f"{name}.json"
        arguments = ["--suite", str(suite), "--out", str(out), "--eval.samples", "1"]
        options = [
            "--rollout.max-new-tokens",
            "4",
            "--task.style",
            "auto" if style == "chat" else "r1",
        ]
        assert main([str(chatty), *arguments, *options]) == 0
        got = json.loads(out.read_text())
        assert got["style"] == style and set(got["results"][0]["reasons"]) <= {
            "unfinished", "no_answer_end",
        }  # fmt: skip
        assert got["results"][0]["pass_at"] == {"1": 0.0}
    assert "not correct" in capsys.readouterr().out


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("toy") / "hf", "qwen2", TEXTS, template=False)


OPTIONS = ["--rollout.max-new-tokens", "6", "--eval.samples", "7", "--rollout.slots", "64"]


def test_the_command_evaluates_and_goes_on_after_a_kill(tmp_path, toy, capsys):
    rows = [row | {"id": f"{row['id']}{i}"} for i in range(16) for row in CRUX]
    suite = write(tmp_path / "suite.jsonl", rows)
    arguments = [str(toy), "--suite", str(suite), *OPTIONS, "--run.root", str(tmp_path)]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "pass@5" in text and "suite (CRUXEval layout)" in text and "…" not in text
    folder = tmp_path / "evaluations" / str(toy).strip("/").replace("/", "--")
    whole = json.loads((folder / "suite.json").read_text())
    assert {r["kind"]: r["items"] for r in whole["results"]} == {"output": 48, "input": 48}
    assert whole["style"] == "completion" and len(whole["items"]) == 96

    out = tmp_path / "killed.json"
    output = tmp_path / "killed.output"
    child = processes.start(processes.EVALUATE, [*arguments, "--out", out], output)
    while not (output.exists() and re.search(r"(128|256) of 768", output.read_text())):
        assert child.exitcode is None, output.read_text()
        time.sleep(0.01)
    child.kill()
    assert processes.finish(child, 60) == -signal.SIGKILL and not out.exists()
    samples = out.with_suffix(".samples.jsonl")
    before = samples.read_bytes()
    assert 128 <= before.count(b"\n") - 1 < 768
    assert main([*arguments, "--out", str(out)]) == 0
    assert samples.read_bytes().startswith(before[: before.rindex(b"\n") + 1])
    assert json.loads(out.read_text()) == whole
    assert set(samples.read_bytes().splitlines()) == set(
        (folder / "suite.samples.jsonl").read_bytes().splitlines()
    )


def test_another_model_seed_or_date_is_another_evaluation(tmp_path, toy, capsys, midnight):
    suite = write(tmp_path / "suite.jsonl", HUMAN)
    arguments = ["--suite", str(suite), *OPTIONS, "--out", str(tmp_path / "x.json")]
    assert main([str(toy), *arguments]) == 0
    assert main([str(toy), *arguments, "--seed", "1"]) == 2
    assert "seed differ" in capsys.readouterr().err
    other = make_folder(tmp_path / "other", "qwen2", TEXTS, template=False, seed=1)
    assert main([str(other), *arguments]) == 2
    assert "weights differ" in capsys.readouterr().err
    dated = {"chat_template": "{{ strftime_now('%d %b') }} {{ messages[0].content }}"}
    settings = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps(settings | dated))
    arguments = ["--suite", str(suite), *OPTIONS, "--out", str(tmp_path / "y.json")]
    assert main([str(other), *arguments]) == 0
    midnight()
    assert main([str(other), *arguments]) == 2
    assert "(dressing differ)" in capsys.readouterr().err
    assert main([str(toy), "--suite", str(tmp_path / "no.jsonl")]) == 2
    assert main([str(toy), "--suite", str(suite), "--task.style", "poem"]) == 2
    assert "suites are asked in" in capsys.readouterr().err
    assert main([str(toy), "--suite", str(suite), "--baseline", str(toy)]) == 2
    assert "a suite is asked of one model" in capsys.readouterr().err


def test_a_prompt_that_does_not_fit_is_counted_and_stops_nothing(tmp_path, toy):
    long = HUMAN[1] | {"task_id": "T/2", "prompt": "x = 1\n" * 3000 + HUMAN[1]["prompt"]}
    suite = write(tmp_path / "suite.jsonl", [HUMAN[0], long])
    out = tmp_path / "x.json"
    assert main([str(toy), "--suite", str(suite), *OPTIONS, "--out", str(out)]) == 0
    lines = [json.loads(x) for x in out.with_suffix(".samples.jsonl").read_text().splitlines()[1:]]
    assert json.loads(out.read_text())["failing_references"] == {}
    assert {x["reason"] for x in lines if x["item"] == "T/2"} == {"prompt_too_long"}
    assert len([x for x in lines if x["item"] == "T/2"]) == 8
