"""Suites of other people's tasks: layouts, prompts, grading in the sandbox, pass@k, resuming."""

import itertools
import json
import re
import signal
import subprocess
import sys
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
from folders import bpe_tokenizer, make_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import SMALL, ScriptedEngine, changed

from azr.config import ConfigError
from azr.errors import RunError
from azr.evaluate import main
from azr.evaluation.journal import Journal
from azr.evaluation.suite import Completion, Prediction, load_suite
from azr.evaluation.suite_grading import MODULES, failing_references, grade_answers
from azr.evaluation.suite_prompts import STYLES, extract, instruction
from azr.evaluation.suite_run import item_results, run_suite, settle_style
from azr.sandbox import Limits, Result, Sandbox

pytest.importorskip("azr._sandbox", reason="the sandbox is not built here")

CRUX = [
    {"id": name, "code": code, "input": given, "output": output}
    for name, code, given, output in (
        ("a", "def f(xs):\n    return sorted(xs)", "[3, 1, 2]", "[1, 2, 3]"),
        ("b", "def f(s, n):\n    return s * n", "'xy', 2", "'xyxy'"),
        ("c", "def f(d):\n    return len(d)", "{'k': {}}", "1"),
    )
]

PROMPT = '''from typing import List


def helper(n):
    return n + 1


def triple(n: int) -> int:
    """ Three times n """
'''
TEST = """
def check(candidate):
    import math
    assert candidate(5) == 15
    assert abs(candidate(2) - 6) < 1e-6
    assert math.fabs(candidate(1) - 3) < 1e-6
    assert helper(1) == 2
"""
DOUBLE = 'def double(n):\n    """ Twice n """\n'
HUMAN = [
    {"task_id": "T/0", "prompt": PROMPT, "entry_point": "triple", "test": TEST},
    {"task_id": "T/1", "prompt": DOUBLE, "entry_point": "double",
     "canonical_solution": "    return n + n\n",
     "test": "import random\n\ndef check(candidate):\n    n = random.Random(1).randint(0, 9)\n"
             "    assert candidate(n) == 2 * n\n"},
]  # fmt: skip


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(workers=1, limits=Limits(cpu_s=0.5), modules=MODULES) as sandbox:
        yield sandbox


# Layouts


def test_layouts_are_told_apart_by_their_fields(tmp_path):
    crux = load_suite(write(tmp_path / "crux.jsonl", CRUX))
    assert (crux.name, crux.layout) == ("crux", "CRUXEval")
    assert [(i.id, i.kind) for i in crux.items] == list(
        itertools.product("abc", ("output", "input"))
    )
    assert crux.items[0].expected() == [1, 2, 3]
    human = load_suite(write(tmp_path / "human.jsonl", HUMAN))
    assert human.layout == "HumanEval" and [i.id for i in human.items] == ["T/0", "T/1"]
    nameless = [{k: v for k, v in row.items() if k != "id"} for row in CRUX]
    assert {i.id for i in load_suite(write(tmp_path / "n.jsonl", nameless)).items} == {
        "row_0", "row_1", "row_2",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"code": "x", "input": "1"}], "in no layout that is known.*has code, input"),
        ([CRUX[0], {"code": "x", "input": "1"}], "line 2: output must be a string"),
        ([CRUX[0] | {"input": 3}], "line 1: input must be a string"),
        ([CRUX[0] | {"output": "f(3)"}], "line 1: output is no Python literal"),
        ([CRUX[0], CRUX[0]], "two rows have one id"),
        ([HUMAN[0] | {"test": "assert triple(1) == 3"}], "no function check"),
        ([HUMAN[0] | {"test": "def check("}], "test is no Python"),
        ([HUMAN[0] | {"entry_point": "f()"}], "entry_point is no name"),
        ([[1, 2]], "needs one JSON object a line"),
        ([], "at least one"),
    ],
)
def test_a_file_in_no_layout_is_refused_by_line_and_field(tmp_path, rows, message):
    with pytest.raises(ConfigError, match=message):
        load_suite(write(tmp_path / "x.jsonl", rows))


def test_a_file_that_is_no_json_is_refused(tmp_path):
    for data in (b"{", b"\xff\xfe", b"[" * 100_000):
        (tmp_path / "x.jsonl").write_bytes(data)
        with pytest.raises(ConfigError, match="not JSON lines"):
            load_suite(tmp_path / "x.jsonl")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_suite(tmp_path / "nothing.jsonl")


# Prompts and answers


@pytest.mark.parametrize("style", STYLES)
def test_a_prompt_shows_what_is_given_and_hides_what_is_asked(style):
    code = "def f(x):\n    return x[::-1]"
    for kind in ("output", "input"):
        item = Prediction("a", kind, code, "'{0}given'", "'nevig}0{'")
        text = instruction(item, style)
        shown, hidden = item.input, item.output
        if kind == "input":
            shown, hidden = hidden, shown
        assert shown in text and hidden not in text and code in text
    item = Completion("T", PROMPT, "triple", TEST)
    text = instruction(item, style)
    assert "Three times n" in text and "candidate" not in text


def wrapped(body, tag):
    return f"thinking </think> <answer>\n```{tag}\n{body}\n```\n</answer>"


OUT, IN = (Prediction("a", kind, "def f(x): return x", "1", "1") for kind in ("output", "input"))
WHOLE = Completion("T", DOUBLE, "double", "")


@pytest.mark.parametrize(
    ("item", "style", "text", "finished", "answer", "reason"),
    [
        (OUT, "r1", wrapped("[1]", "output"), True, "[1]", None),
        (OUT, "chat", wrapped("[1]", "output"), False, None, "unfinished"),
        (OUT, "r1", wrapped("[1]", "input"), True, None, "output_block"),
        (OUT, "r1", "[1]", True, None, "no_answer_end"),
        (IN, "chat", wrapped("1, [2]", "input"), True, "1, [2]", None),
        (WHOLE, "r1", wrapped("def double(n):\n  return 1", "python"), True,
         "def double(n):\n  return 1", None),
        (WHOLE, "r1", wrapped("def double(n): 1", ""), True, None, "python_block"),
        (OUT, "completion", " [1]\nassert", True, "[1]", None),
        (OUT, "completion", " [1", False, None, "unfinished"),
        (OUT, "completion", " [1]", True, "[1]", None),
        (IN, "completion", "1, [2])\n", True, "1, [2]", None),
        (IN, "completion", "1, [2]\n", True, None, "no_parenthesis"),
        (IN, "completion", "1) or (True)\n", True, "1) or (True", None),
        (WHOLE, "completion", "\n    return 1\n\nprint(2)", True,
         DOUBLE.rstrip() + "\n    return 1\n", None),
        (WHOLE, "completion", "\n    return 1", False, DOUBLE.rstrip() + "\n    return 1", None),
    ],
)  # fmt: skip
def test_answers_are_found_or_refused_with_a_reason(item, style, text, finished, answer, reason):
    got = extract(item, style, text, finished)
    assert (got.answer, got.reason) == (answer, reason)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60) | st.sampled_from(["(" * 4000, "-" * 9000 + "1", "9" * 9000, "{1: []"]))
def test_no_text_raises(text):
    for item, style, finished in itertools.product((OUT, IN, WHOLE), STYLES, (True, False)):
        got = extract(item, style, text, finished)
        assert (got.answer is None) != (got.reason is None)
        envelope = extract(item, style, wrapped(text, "output"), finished)
        assert (envelope.answer is None) != (envelope.reason is None)


# Grading


BODIES = {
    "right": ("return 3 * n", "correct"),
    "right, by a helper": ("return sum(map(one, [n]))\n\none = lambda n: n * 3", "correct"),
    "right, a subclass": ("class N(int):\n        pass\n    return N(3 * n)", "correct"),
    "wrong": ("return 2 * n", "AssertionError"),
    "no value": ("pass", "AssertionError"),
    "syntax": ("return 3 *", "SyntaxError"),
    "exit": ("raise SystemExit", "SystemExit"),
    "exit by sys": ("import sys\n    sys.exit(0)", "SystemExit"),
    "exit by os": ("import os\n    os._exit(0)", "forbidden_import"),
    "equal to all": (
        "class E:\n        __eq__ = __lt__ = lambda s, o: True\n        __sub__ = lambda s, o: 0\n"
        "    return E()", "TypeError"),
    "an int equal to all": (
        "class E(int):\n        __eq__ = __lt__ = lambda s, o: True\n"
        "        __sub__ = lambda s, o: 0\n    return E(7)", "AssertionError"),
    "a list equal to all": (
        "class L(list):\n        __eq__ = lambda s, o: True\n    return L()", "AssertionError"),
    "a class equal to all": (
        "class M(type):\n        __eq__ = lambda s, o: True\n        __hash__ = lambda s: 1\n"
        "    class E(metaclass=M):\n        __eq__ = __lt__ = lambda s, o: True\n"
        "        __sub__ = lambda s, o: 0\n    return E()", "TypeError"),
    "its own check": ("return 0\n\ndef check(candidate):\n    return None", "AssertionError"),
    "its own abs": ("return 0\n\nabs = lambda x: 0", "AssertionError"),
    "its own helper": ("return 3 * n\n\ndef helper(n):\n    return 0", "correct"),
    "another module's function": (
        "return 15 if n == 5 else 6\n\nimport math\nmath.fabs = lambda x: 0", "AssertionError"),
    "patched builtins": ("return 0\n\nimport builtins\nbuiltins.abs = abs", "forbidden_import"),
    "builtins by name": ("return 0\n\n__builtins__['abs'] = lambda x: 0", "forbidden_name"),
    "frames": ("g = (0 for _ in ())\n    g.gi_frame.f_back\n    return 0", "forbidden_name"),
    "never ends": ("while True: pass", "timeout_cpu"),
    "memory": ("return [0] * 10 ** 12", "memory"),
    "calls itself": ("return triple(n)", "RecursionError"),
    "deletes its name": ("return 0\n\ndel triple", "KeyError"),
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_only_a_function_that_passes_its_test_is_correct(sandbox, name):
    body, expected = BODIES[name]
    item = Completion("T", PROMPT, "triple", TEST)
    (got,) = grade_answers(sandbox, [(item, f"{PROMPT}    {body}\n")])
    assert (got.reason or got.outcome) == expected


@pytest.mark.parametrize(
    ("answer", "as_input", "as_output"),
    [
        ("1, 2", "correct", "wrong"),
        ("b=4, a=-1", "correct", "no_literal"),
        ("1.5, 1.5", "correct", "wrong"),
        ("3", "TypeError", "correct"),
        ("3.0", "TypeError", "correct"),
        ("[1], [2]", "wrong", "wrong"),
        ("1) or (True", "no_literal", "no_literal"),
        ("type('E', (), {'__eq__': 1})(), 2", "no_literal", "no_literal"),
        ("", "TypeError", "no_literal"),
        ("[" * 3000, "no_literal", "no_literal"),
    ],
)
def test_predictions_are_values_compared_outside(sandbox, answer, as_input, as_output):
    code = "def f(a, b):\n    return a + b"
    got = grade_answers(
        sandbox,
        [(Prediction("x", kind, code, "1, 2", "3"), answer) for kind in ("input", "output")],
    )
    assert [g.reason or g.outcome for g in got] == [as_input, as_output]


def test_a_program_that_returns_what_equals_everything_is_wrong(sandbox):
    code = "class E:\n    __eq__ = lambda s, o: True\n\ndef f(a):\n    return E()"
    (got,) = grade_answers(sandbox, [(Prediction("x", "input", code, "1", "3"), "1")])
    assert got.reason == "unsupported_value"


def test_items_whose_own_answer_fails_here_are_named(tmp_path, sandbox):
    rows = [
        HUMAN[0] | {"canonical_solution": "    import numpy\n    return 3 * n\n"},
        HUMAN[1],
        HUMAN[0] | {"task_id": "T/2", "canonical_solution": "    return 4 * n\n"},
    ]
    suite = load_suite(write(tmp_path / "s.jsonl", rows))
    assert failing_references(sandbox, suite.items) == {
        "T/0": "forbidden_import",
        "T/2": "AssertionError",
    }
    rows = [CRUX[0], CRUX[1] | {"output": "'xy'"}, CRUX[2] | {"input": "object()"}]
    suite = load_suite(write(tmp_path / "s.jsonl", rows))
    assert failing_references(sandbox, suite.items) == {"b": "wrong", "c": "no_literal"}


class Failing:
    """A sandbox that fails itself so many times before it gives a result."""

    def __init__(self, times):
        self.times, self.calls = times, 0

    def submit_batch(self, jobs):
        self.calls += 1
        futures = [Future() for _ in jobs]
        for future in futures:
            broken = self.calls <= self.times
            future.set_result(Result("sandbox_failure") if broken else Result("ok", 3))
        return futures


def test_a_failure_of_the_sandbox_is_tried_again_and_never_a_grade():
    item = Prediction("x", "input", "def f(a): return a", "3", "3")
    assert grade_answers(Failing(2), [(item, "3")])[0].outcome == "correct"
    with pytest.raises(RunError, match="failed 3 times on an answer to x"):
        grade_answers(Failing(3), [(item, "3")])
    assert grade_answers(Failing(0), []) == []


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
        assert result.sampled.value == pytest.approx(result.pass_at[1])
        assert result.greedy.value == 0.0 and result.items == len(items)
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
                answer = extract(item, style, text, True).answer
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
    assert more[0][0].samples == 7 and more[3][0] == (216, 36 * 8)
    fewer = play(tmp_path, suite, sandbox, is_right, 5, "cut")
    assert fewer[:2] == whole[:2]


def test_the_samples_of_another_evaluation_are_not_mixed_in(tmp_path):
    Journal(tmp_path / "j", {"suite": "a", "seed": 1}).close()
    Journal(tmp_path / "j", {"suite": "a", "seed": 1}).close()
    with pytest.raises(ConfigError, match=r"another evaluation \(seed differ\)"):
        Journal(tmp_path / "j", {"suite": "a", "seed": 2})
    (tmp_path / "j").write_text('{"suite": "a", "se')  # cut short in its first line
    Journal(tmp_path / "j", {"suite": "b"}).close()
    assert (tmp_path / "j").read_text() == '{"suite": "b"}\n'


def test_the_style_is_the_tokenizers_unless_one_of_a_suite_is_asked_for():
    plain, chatty = (bpe_tokenizer("qwen2", TEXTS, template=t) for t in (False, True))
    for asked in ("auto", "compact"):
        assert settle_style(asked, plain) == "completion" and settle_style(asked, chatty) == "chat"
    assert settle_style("r1", chatty) == "r1"
    with pytest.raises(ConfigError, match="suites are asked in r1, chat, completion"):
        settle_style("poem", plain)


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
    with subprocess.Popen(
        [sys.executable, "-m", "azr.evaluate", *arguments, "--out", str(out)],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    ) as child:  # fmt: skip
        for line in child.stderr:
            if re.search(r"(128|256) of 768", line):
                child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL and not out.exists()
    samples = out.with_suffix(".samples.jsonl")
    before = samples.read_bytes()
    assert 128 <= before.count(b"\n") - 1 < 768
    assert main([*arguments, "--out", str(out)]) == 0
    assert samples.read_bytes().startswith(before[: before.rindex(b"\n") + 1])
    assert json.loads(out.read_text()) == whole
    assert set(samples.read_bytes().splitlines()) == set(
        (folder / "suite.samples.jsonl").read_bytes().splitlines()
    )


def test_another_model_or_seed_is_another_evaluation(tmp_path, toy, capsys):
    suite = write(tmp_path / "suite.jsonl", HUMAN)
    arguments = ["--suite", str(suite), *OPTIONS, "--out", str(tmp_path / "x.json")]
    assert main([str(toy), *arguments]) == 0
    assert main([str(toy), *arguments, "--seed", "1"]) == 2
    assert "seed differ" in capsys.readouterr().err
    other = make_folder(tmp_path / "other", "qwen2", TEXTS, template=False, seed=1)
    assert main([str(other), *arguments]) == 2
    assert "weights differ" in capsys.readouterr().err
    assert main([str(toy), "--suite", str(tmp_path / "no.jsonl")]) == 2
    assert main([str(toy), "--suite", str(suite), "--task.style", "poem"]) == 2
    assert "suites are asked in" in capsys.readouterr().err


def test_a_prompt_that_does_not_fit_is_counted_and_stops_nothing(tmp_path, toy):
    long = HUMAN[1] | {"task_id": "T/2", "prompt": "x = 1\n" * 3000 + HUMAN[1]["prompt"]}
    suite = write(tmp_path / "suite.jsonl", [HUMAN[0], long])
    out = tmp_path / "x.json"
    assert main([str(toy), "--suite", str(suite), *OPTIONS, "--out", str(out)]) == 0
    lines = [json.loads(x) for x in out.with_suffix(".samples.jsonl").read_text().splitlines()[1:]]
    assert json.loads(out.read_text())["failing_references"] == {}
    assert {x["reason"] for x in lines if x["item"] == "T/2"} == {"prompt_too_long"}
    assert len([x for x in lines if x["item"] == "T/2"]) == 8
