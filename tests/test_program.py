"""The task family `program`: what is a task, what is right, and what nobody is shown."""

import gc
import json
import time
import tracemalloc
import warnings
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from azr.config import ConfigError, ProgramConfig, TaskConfig
from azr.errors import RunError
from azr.keys import generator
from azr.selfplay.seeding import read_seeds, write_seeds
from azr.tasks import Answer, Proposal, Task, load_environment
from azr.tasks.program import ProgramProblem, compact, compact_format, grammar, measures
from azr.tasks.program.execution import Executor
from azr.tasks.program.measures import ast_distance, complexity, lines
from azr.tasks.program.normal import digest

pytest.importorskip("azr._sandbox", reason="the sandbox extension is not built")

TYPES = ("deduction", "abduction", "induction")
ADD = "def f(a, b=0):\n    return a + b"


def family(style, inputs=4):
    config = TaskConfig(
        family="program", style=style, program=ProgramConfig(inputs=inputs, cpu_s=0.25)
    )
    return load_environment(config)


@pytest.fixture(scope="module")
def text():
    environment = family("r1")
    yield environment
    environment.close()


@pytest.fixture(scope="module")
def tiny():
    environment = family("compact")
    yield environment
    environment.close()


def envelope(answer):
    return f"I think.</think>\n<answer>\n{answer}\n</answer>"


def block(tag, content):
    return f"```{tag}\n{content}\n```"


def proposal(code, given, task_type="deduction"):
    answer = block("python", code) + "\n" + block("input", given)
    return Proposal(type=task_type, text=envelope(answer), finished=True)


def verdicts(environment, proposals):
    found = environment.submit_validate(proposals).result()
    return [(v.status, v.reason) for v in found]


def task(task_type, code, inputs, outputs, message="m"):
    return Task(task_type, ProgramProblem(code, tuple(inputs), tuple(outputs), message))


def grades(environment, task, answers):
    found = environment.submit_grade(
        [Answer(task=task, text=a, finished=True) for a in answers]
    ).result()
    return [(g.outcome, g.reason) for g in found]


def test_tasks_share_their_texts(tiny):
    """The buffers hold tens of thousands."""
    made = task("induction", "def f(a):\n    return a\n", ["[1, 2]", "3"] * 2, ["[1, 2]", "3"] * 2)
    data = json.dumps(tiny.to_json(task(made.type, made.problem.code, *[["4"] * 4] * 2, "[::-1]")))
    one, two = (tiny.from_json(json.loads(data)).problem for _ in range(2))
    assert one.code is two.code is made.problem.code and one.message is two.message
    assert {id(text) for q in (one, two) for text in q.inputs + q.outputs} == {id(one.inputs[0])}


# What is a task


def test_a_proposal_becomes_a_task_with_the_output_that_was_run(text):
    code = "def f(a, b):\n    # adds\n    return [a + b, {'s': {b, a}}]"
    (verdict,) = text.submit_validate([proposal(code, "1 ,b = 2")]).result()
    q = verdict.task.problem
    assert (verdict.status, q.inputs, q.outputs) == ("valid", ("1, b=2",), ("[3, {'s': {1, 2}}]",))
    assert q.code == code  # comments stay, as in the paper


@pytest.mark.parametrize(
    ("code", "given", "status", "reason"),
    [
        ("def f(a): return 1 / a", "0", "invalid", "exception"),
        ("def f(a): return None if a else 1", "1", "invalid", "none_result"),
        ("def f(a): return 'x' * a", "500", "invalid", "too_large"),
        ("def f(a): return float('nan')", "1", "invalid", "unsupported_value"),
        ("def f(a): return 1e999", "1", "invalid", "unsupported_value"),
        ("def f(a): return lambda: a", "1", "invalid", "unsupported_value"),
        ("def f(a): return frozenset([a])", "1", "invalid", "unsupported_value"),
        ("def f(a):\n    while a: pass\n    return a", "1", "invalid", "timeout_cpu"),
        ("def f(a): return [str(x) for x in set('abcdefgh')][a]", "0", "invalid",
         "nondeterministic"),
        ("def f(a): return id(object()) + a", "1", "invalid", "nondeterministic"),
        ("import random\ndef f(a): return random.random()", "1", "invalid", "forbidden_import"),
        ("def f(a): return __import__('os').getpid()", "1", "invalid", "forbidden_import"),
        ("def f(a): print(a)", "1", "invalid", "no_return"),
        ("def g(a): return a", "1", "invalid", "no_function"),
        ("def f(a) return a", "1", "invalid", "syntax_error"),
        ("def f(a): return a", "x", "malformed", "input_no_literal"),
        ("def f(a): return a", "1) or (True", "malformed", "input_no_literal"),
    ],
)  # fmt: skip
def test_what_is_no_task_says_why(text, code, given, status, reason):
    assert verdicts(text, [proposal(code, given)]) == [(status, reason)]


def test_an_induction_is_proposed_on_the_program_that_was_shown(text):
    shown = task("deduction", ADD, ["1"], ["1"])
    inputs = ["1", "2, 3", "b=1, a=0", "-1"]

    def propose(inputs, message="adds"):
        blocks = [*(block("input", i) for i in inputs), block("message", message)]
        return Proposal(
            type="induction", text=envelope("\n".join(blocks)), finished=True, references=(shown,)
        )

    (verdict,) = text.submit_validate([propose(inputs)]).result()
    q = verdict.task.problem
    assert (q.code, q.outputs, q.message) == (ADD, ("1", "5", "1", "-1"), "adds")
    assert q.shown_pairs == (("1", "1"), ("2, 3", "5"))
    assert verdicts(
        text,
        [
            propose(inputs[:3]),
            propose([*inputs, "9"]),
            propose(["1", "2", "3", "3"]),
            propose(["1", "2", "3", "'a'"]),
            propose(inputs, ""),
            propose(inputs, "x" * 2_000),
        ],
    ) == [
        ("malformed", "input_count"),
        ("malformed", "input_count"),
        ("invalid", "input_repeated"),
        ("invalid", "exception"),
        ("malformed", "message_block"),
        ("malformed", "message_too_long"),
    ]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (block("input", "1"), "python_block"),
        (block("python", ADD), "input_block"),
        (block("", ADD) + "\n" + block("input", "1"), "python_block"),
        (block("Python", ADD) + "\n" + block("input", "1"), "python_block"),
        (block("python", ADD) * 1 + "\n" + block("python", ADD) + "\n" + block("input", "1"),
         "python_block"),
        (block("python", ADD) + "\n" + block("input", "1") + "\n" + block("input", "2"),
         "input_block"),
        (ADD, "python_block"),
        ("", "python_block"),
    ],
)  # fmt: skip
def test_only_exactly_tagged_blocks_count(text, answer, reason):
    p = Proposal(type="deduction", text=envelope(answer), finished=True)
    assert verdicts(text, [p]) == [("malformed", reason)]


def test_an_unfinished_or_bare_response_is_malformed(text):
    answer = block("python", ADD) + "\n" + block("input", "1")
    responses = [
        Proposal(type="deduction", text=envelope(answer), finished=False),
        Proposal(type="deduction", text=answer, finished=True),
    ]
    assert [status for status, _ in verdicts(text, responses)] == ["malformed"] * 2


def test_programs_are_held_out_in_every_type_whatever_their_names(text):
    code = next(
        c
        for n in range(99)
        if text.split(task("deduction", c := f"def f(a):\n    return [a, {n}]", ["1"], ["1"]))
        != "train"
    )
    renamed = code.replace("f(a)", "f(other)").replace("[a,", "[other,") + "  # renamed"
    for t in TYPES:
        assert text.split(task(t, code, ["1"], ["1"])) == "heldout_program"
    assert text.split(task("deduction", renamed, ["2"], ["1"])) == "heldout_program"
    assert verdicts(text, [proposal(code, "1")]) == [("held_out", "held_out")]


def test_a_key_tells_program_and_inputs_and_nothing_else(text):
    one = task("deduction", "def f(a):\n    return a", ["1"], ["1"])
    same = task("deduction", "def f(b): return b  # x", ["1"], ["1"])
    others = [
        task("abduction", one.problem.code, ["1"], ["1"]),
        task("deduction", one.problem.code, ["2"], ["2"]),
        task("deduction", "def f(a):\n    return a + 0", ["1"], ["1"]),
    ]
    assert text.key(one) == text.key(same)
    assert len({text.key(t) for t in (one, *others)}) == 4
    # Named inputs tell parameters apart.
    pair = [
        task("deduction", f"def f({a}, {b}): return {a} - {b}", ["a=1, b=2"], [output])
        for a, b, output in (("a", "b", "-1"), ("b", "a", "1"))
    ]
    assert text.key(pair[0]) != text.key(pair[1])
    quoted = [task("deduction", f"def f({name}): return {name}", ["'='"], ["'='"]) for name in "ab"]
    assert text.key(quoted[0]) == text.key(quoted[1])


# What is right


def test_answers_are_graded_by_value(text):
    deduce = task("deduction", ADD, ["1, 2"], ["3"])
    listed = task("deduction", "def f(a): return [a]", ["1"], ["[1]"])
    answers = ["3", "3.0", " 3 ", "0x3", "4", "(3)", "'3'", "[3]"]
    found = grades(text, deduce, [envelope(block("output", a)) for a in answers])
    assert [o for o, _ in found] == ["correct"] * 4 + ["wrong", "correct", "wrong", "wrong"]
    found = grades(text, listed, [envelope(block("output", a)) for a in ("[1]", "[1.0]", "(1,)")])
    assert [o for o, _ in found] == ["correct", "correct", "wrong"]


def test_any_input_that_gives_the_output_is_right(text):
    abduce = task("abduction", ADD, ["1, 2"], ["3"])
    answers = ["1, 2", "0, 3", "b=1, a=2", "3.0", "1", "'a', 'b'", "1, 2, 3", "[3]"]
    found = grades(text, abduce, [envelope(block("input", a)) for a in answers])
    assert [o for o, _ in found] == ["correct"] * 4 + ["wrong"] * 4
    assert [r for _, r in found[4:]] == ["wrong", "wrong", "exception", "exception"]


def test_an_induced_program_must_be_right_on_every_hidden_pair(text):
    induce = task("induction", ADD, ["1", "2", "3, 4", "5, 6"], ["1", "2", "7", "11"])
    answers = [
        "def f(a, b=0):\n    return b + a",
        "def f(*x): return float(sum(x))",
        "def f(a, b=0): return 7",
        "def f(a, b=0): return {3: 7}.get(a, 12)",
        "def f(a): return a",
        "import os\ndef f(a, b=0): return a + b",
        "def f(a, b=0)",
        "def f(a, b=0):\n    while True: pass\n    return 1",
    ]
    found = grades(text, induce, [envelope(block("python", a)) for a in answers])
    assert [o for o, _ in found] == ["correct"] * 2 + ["wrong"] * 6
    assert [r for _, r in found[4:]] == [
        "exception", "forbidden_import", "syntax_error", "timeout_cpu",
    ]  # fmt: skip


FORGED_VALUES = [
    "1) or (True",
    "3 if True else 4",
    "True or 4",
    "type('E', (), {'__eq__': lambda s, o: True})()",
    "__import__('os')._exit(0)",
    "(lambda: 3)()",
    "f'{3}'",
    "3; 3",
    "3 == 3",
]
EQUAL = "class E:\n    def __eq__(self, other): return True\n    def __hash__(self): return 0\n"
FORGED_PROGRAMS = [
    EQUAL + "def f(a, b=0): return E()",
    "class I(int):\n    def __eq__(self, other): return True\ndef f(a, b=0): return I(3)",
    "import builtins\ndef f(a, b=0): return 3",
    "def f(a, b=0):\n    __builtins__['repr'] = lambda x: '7'\n    return 3",
    "import sys\ndef f(a, b=0):\n    sys.exit(0)\n    return 3",
    "import os\ndef f(a, b=0):\n    os._exit(0)\n    return 3",
    "def f(a, b=0):\n    raise SystemExit(0)\n    return 3",
    "def f(a, b=0):\n    import gc\n    return [o for o in gc.get_objects() if o == 7][0]",
    "def f(a, b=0):\n    return f.__globals__['expected']",
]


def test_answers_that_beat_the_official_executor_are_not_right(text):
    deduce = task("deduction", ADD, ["1, 2"], ["3"])
    abduce = task("abduction", ADD, ["1, 2"], ["3"])
    for t, tag in ((deduce, "output"), (abduce, "input")):
        found = grades(text, t, [envelope(block(tag, a)) for a in FORGED_VALUES])
        assert {o for o, _ in found} == {"malformed"}
    induce = task("induction", ADD, ["1", "2", "3, 4", "5, 6"], ["1", "2", "7", "11"])
    found = grades(text, induce, [envelope(block("python", p)) for p in FORGED_PROGRAMS])
    assert {o for o, _ in found} == {"wrong"}


def bombs(random, count):
    """Malformed answers of many kinds: long, deep, cut, nested, of other tags, of other types."""
    pieces = [
        "<answer>", "</answer>", "</think>", "<think>", "```output\n", "```input\n", "```python\n",
        "```", "\n", "3", "[", "(", "{", "]", "def f(a):", "return a", "'", '"""', "\\", "\x00",
        "\ud800", "𝔘", "Assistant:", "f(", "lambda: 3", "-", "9" * 5_000, "[" * 3_000, "'a' " * 400,
    ]  # fmt: skip
    long_numbers = ["0x" + "f" * 5_000, "9" * 400 + "+1j", "[-0o" + "7" * 6_000 + "]"]
    for n in range(count):
        number = random.choice(long_numbers)
        blocks = [block("output", number), block("input", number), block("message", "m")]
        blocks.append(block("python", f"def f(a, b=0): return {number}"))
        body = "".join(random.choices(pieces, k=random.choice((0, 1, 3, 9, 30))))
        wrapped = [body, envelope(body), envelope(block("output", body + "[")), body * 40]
        wrapped += [envelope(blocks[n // 8 % 2]), envelope("\n".join(random.sample(blocks, 3)))]
        yield wrapped[n % 6]


def test_a_thousand_malformed_answers_crash_nothing_and_pay_nothing(text, tiny):
    random = Random(7)
    texts = list(bombs(random, 1_000))
    tasks = {
        "deduction": task("deduction", ADD, ["1, 2"], ["'no'"]),
        "abduction": task("abduction", ADD, ["1, 2"], ["'no'"]),
        "induction": task("induction", ADD, ["1", "2", "3", "4"], ["1", "2", "3", "'no'"]),
    }
    for environment in (text, tiny):
        for t in tasks.values():
            outcomes = {o for o, _ in grades(environment, t, texts)}
            assert outcomes <= {"malformed", "wrong"}, outcomes
        for t in TYPES:
            proposals = [
                Proposal(type=t, text=x, finished=True, references=(tasks["deduction"],))
                for x in texts
            ]
            assert {s for s, _ in verdicts(environment, proposals)} <= {"malformed", "invalid"}


RESPONSES = st.text(max_size=80) | st.lists(
    st.sampled_from([*compact_format.WORDS, "\n", "</think><answer>", "</answer>", "```output"]),
    max_size=24,
).map(" ".join)


@settings(max_examples=150)
@given(RESPONSES, st.booleans())
def test_no_response_raises(tiny, text, response, finished):
    t = task("induction", "def f(a):\n    return a\n", ["1", "2", "3", "4"], ["1", "2", "3", "4"])
    for environment in (tiny, text):
        for task_type in TYPES:
            p = Proposal(type=task_type, text=response, finished=finished, references=(t,))
            environment.submit_validate([p]).result()
        answer = Answer(task=t, text=response, finished=finished)
        environment.submit_grade([answer]).result()


# What nobody is shown


@pytest.mark.parametrize("style", ["compact", "r1"])
def test_a_solver_prompt_does_not_change_with_what_is_hidden(style, text, tiny):
    environment = tiny if style == "compact" else text
    drawn = tiny.seed_tasks(generator("leak", style), 40)
    for tasks in drawn.values():
        for t in tasks:
            q = t.problem
            hidden = {
                "deduction": ProgramProblem(q.code, q.inputs, ("[0, 0, 0, 0, 0]",)),
                "abduction": ProgramProblem(q.code, ("[0, 0, 0, 0, 0]",), q.outputs),
                "induction": ProgramProblem(
                    "def f(a):\n    return 4\n",
                    (*q.inputs[:2], "[0, 0, 0]", "'eee'"),
                    (*q.outputs[:2], "4", "4"),
                    q.message,
                ),
            }[t.type]
            shown = environment.solve_prompt(t, style)
            assert shown == environment.solve_prompt(Task(t.type, hidden), style)


def test_references_and_the_rules_stand_in_the_proposers_prompt(text):
    shown = [task("deduction", ADD, ["1, 2"], ["3"]), task("deduction", ADD, ["4"], ["4"])]
    prompt = text.propose_prompt("deduction", shown, "chat")
    assert prompt == text.propose_prompt("deduction", shown, "r1")
    assert prompt.count(ADD) == 2 and "```input\n1, 2\n```" in prompt and "differ" in prompt
    assert "```input" in text.propose_prompt("induction", shown[:1], "r1")
    assert text.propose_prompt("induction", (), "r1").count("def f") == 1
    source = text.reference_source("induction")
    assert (source.types, source.count) == (("abduction", "deduction"), 1)


# The compact style and the grammar


def test_compact_programs_and_values_are_one_to_one():
    random, codes = Random(1), set()
    for _ in range(3_000):
        kind = grammar.draw_kind(random)
        code = grammar.draw_program(random, kind)
        words = compact.write_program(code)
        assert compact.read_program(words) == code
        assert set(words.split(" ")) <= set(compact.WORDS)
        value = grammar.draw_value(random)
        assert compact.read_value(compact.write_value(value)) == repr(value)
        codes.add(digest(code))
    assert len(codes) > 700


@pytest.mark.soak
def test_the_grammar_has_more_than_ten_thousand_programs():
    random = Random(0)
    kinds = (grammar.draw_kind(random) for _ in range(200_000))
    codes = {grammar.draw_program(random, kind) for kind in kinds}
    assert len({digest(code) for code in codes}) > 10_000
    assert {code.count("\n") - 1 for code in codes} == {1, 2, 3}


@pytest.mark.parametrize(
    "words",
    [
        "",
        "return",
        "return c",
        "b = a ; b = a ; return a",
        "c = a ; return c",
        "return a ;",
        "return a [0",
        "return [ a",
        "return max( )",
        "return a  [0]",
        "return a [0] ; return a",
        "b = a",
        "return 7",
        "return " + "[ " * 30 + "] " * 29 + "]",
        "return " + "max( " * 6 + "a" + " )" * 6,
        "return f( a )",
        "return [0]",
    ],
)
def test_other_words_are_no_compact_program(words):
    assert compact.read_program(words) is None


def test_warm_up_rows_show_no_label_and_no_held_out_program(tiny):
    rows = tiny.warmup_rows(generator("rows"), 3_000)
    known = set(tiny.vocabulary().words)
    right = total = 0
    for prompt, response in rows:
        assert set(f"{prompt} {response}".split(" ")) <= known
        role, letter, *rest = prompt.split(" ")
        if (role, letter) == ("S", "D"):
            words, _, given = " ".join(rest[:-1]).partition(" : ")
            code = compact.read_program(words)
            assert tiny.split(task("deduction", code, ["1"], ["1"])) == "train"
            t = task("deduction", code, [compact.read_value(given)], [compact.read_value(response)])
            abduced = Task("abduction", t.problem)
            (grade,) = tiny.submit_grade([Answer(task=abduced, text=given, finished=True)]).result()
            right, total = right + (grade.outcome == "correct"), total + 1
    # As often as answers that know nothing of the prompt.
    assert total == 500 and right / total < 0.12


def test_evaluation_tasks_are_fixed_in_their_split_and_expressible(tiny):
    again = family("compact")
    for split in tiny.splits():
        for t in TYPES:
            tasks = tiny.eval_tasks(split, t)
            assert tasks == again.eval_tasks(split, t)
            assert len({tiny.key(x) for x in tasks}) == len(tasks) == 150
            assert all(tiny.split(x) == split for x in tasks)
            assert all(compact_format.is_expressible(x.problem) for x in tasks)
            assert {tiny.stratum(x) for x in tasks} == {
                "1 statement", "2 statements", "3 statements",
            }  # fmt: skip
            assert 0.03 < tiny.chance(t, split) < 0.25
    again.close()


def test_tasks_survive_their_json_and_wrong_json_is_refused(tiny, text, tmp_path):
    for tasks in tiny.seed_tasks(generator("json"), 5).values():
        for t in tasks:
            assert tiny.from_json(json.loads(json.dumps(tiny.to_json(t)))) == t
    for t in [x for tasks in text.first_tasks().values() for x in tasks]:
        assert text.from_json(json.loads(json.dumps(text.to_json(t)))) == t
    good = {"type": "deduction", "code": ADD, "inputs": ["1"], "outputs": ["1"]}
    assert text.from_json(good)
    odd = [
        task("deduction", f"def f(a): return '{c}', {n}", ["1"], ["1"], "")
        for n, c in enumerate("\u2028\x85\x1e" * 3)
    ]
    write_seeds(tmp_path / "seeds.jsonl", text, odd)  # none of them ends a line
    assert read_seeds(tmp_path / "seeds.jsonl", text) == [
        t for t in odd if text.split(t) == "train"
    ]
    for wrong in (
        {"type": "x"}, {"inputs": []}, {"inputs": ["x"]}, {"outputs": ["f(1)"]},
        {"outputs": ["None"]}, {"code": "def g(): pass"}, {"code": "import os\n" + ADD},
        {"inputs": 3}, {"inputs": "1"}, {"outputs": "1"}, {"outputs": ["1", "2"]}, {"message": 4},
        {"code": None},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="not a program task"):
            text.from_json(good | wrong)
    with pytest.raises(ValueError, match="not a program task"):
        tiny.from_json(good)  # two parameters: no words for them


def test_the_zero_triplet_is_the_identity_of_hello_world(text, tiny):
    for environment, word in ((text, "'Hello World'"), (tiny, "'hello'")):
        first = environment.first_tasks()
        assert set(first) == set(TYPES)
        q = first["deduction"][0].problem
        assert (q.code, q.inputs, q.outputs) == ("def f(a):\n    return a\n", (word,), (word,))
        for (t,) in first.values():
            pairs = [Answer(task=t, text="", finished=True)]
            assert environment.submit_grade(pairs).result()[0].outcome == "malformed"
            assert environment.solve_prompt(
                t, environment.styles[0] if environment is tiny else "r1"
            )


def test_induction_needs_two_inputs():
    with pytest.raises(ConfigError, match="task.program.inputs 1"):
        family("compact", inputs=1)


# Description, state, rechecks


def test_a_sandbox_that_has_given_up_ends_a_run_in_one_line():
    executor = Executor(cpu_s=1.0, output_bytes=4096, workers=1)
    assert executor.run([("def f(a): return a", "1")])[0].result().value == 1
    executor._sandbox._engine.broken = "a zygote does not start"
    for ask in (executor.run, executor.label):
        with pytest.raises(RunError, match="has given up: a zygote does not start.*--resume"):
            ask([("def f(a): return a", "2")])
    executor.close()


def test_a_remembered_result_is_small():
    # Thousands live for hundreds of steps; a future with its lock and callbacks takes 1,500 bytes.
    executor = Executor(cpu_s=1.0, output_bytes=4096, workers=1)

    def run_and_count(numbers: range) -> int:
        runs = executor.run([("def f(a): return a", str(n)) for n in numbers])
        assert [run.result().value for run in runs] == [*numbers]
        del runs
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    run_and_count(range(500))  # the sandbox's own figures of its last calls, say
    tracemalloc.start()
    try:
        before = run_and_count(range(500, 1500))
        grown = run_and_count(range(1500, 2500)) - before
    finally:
        tracemalloc.stop()
        executor.close()
    assert grown / 1000 < 700


def test_measures_of_programs():
    branch = (
        "def f(a):\n    if a:\n        return 1\n    for i in a:\n        a = i\n    return 2\n"
    )
    assert complexity("def f(a):\n    return a\n") == 1
    assert complexity(branch) == 3
    assert lines(branch) == 6
    assert ast_distance(branch, branch.replace("i", "i")) == 0.0
    assert 0 < ast_distance("def f(a): return a[0]", "def f(a): return a[1]") < 0.5
    assert ast_distance(branch, "def f(a): return a") >= 0.5
    line = "def f({0}):\n    {1} = {0} + 1\n    return {1} * {2}"
    first = line.format("a", "b", 2)
    assert 0 < ast_distance(first, line.format("a", "b", 3)) < 0.5
    assert ast_distance(first, line.format("a", "b", 3)) == ast_distance(
        first, line.format("x", "y", 3)
    )


def common_subsequence(left, right):
    """By the table of the textbooks."""
    row = [0] * (len(right) + 1)
    for a in left:
        before = row
        row = [0]
        for at, b in enumerate(right):
            row.append(before[at] + 1 if a == b else max(row[-1], before[at + 1]))
    return row[-1]


@given(st.lists(st.sampled_from("abcd")), st.lists(st.sampled_from("abcd")))
def test_the_common_part_of_two_trees_is_the_longest(left, right):
    assert measures._common(left, right) == common_subsequence(left, right)


def test_long_programs_of_equal_parts_are_compared_at_once():
    ones, more = ("def f(a):\n    return [" + f"{n}, " * 1300 + "]" for n in (1, 22))
    begun_s = time.thread_time()
    assert 0.9 < ast_distance(ones, more) < 1
    assert ast_distance(ones, ones.replace("1, 1, ", "1, 2, ")) < 0.6
    assert time.thread_time() - begun_s < 2


def test_a_strange_program_says_nothing_on_the_screen(recwarn):
    warnings.simplefilter("always")
    digest("def f(a): return '\\d' is 1")
    assert not recwarn.list


CONTEXT = """
from decimal import *
def f(x):
    setcontext(Context(prec=getcontext().prec + 1))
    return x * 2 if getcontext().prec < 30 else 42
"""
MODULES = """
import collections
def f(x):
    table = collections._sys.modules
    table['k'] = n = table.get('k', 0) + 1
    return x * 2 if n < 2 else 42
"""
COUNTER = "n = [0]\ndef f(x):\n    n[0] += 1\n    return x * 2 if n[0] < 2 else 42"
STATEFUL = {
    "a decimal context": CONTEXT,
    "the table of modules": MODULES,
    "a global list": COUNTER,
    "a default": "def f(x, n=[]):\n    n.append(x)\n    return x * 2 if len(n) < 2 else 42",
    "a function's attribute": "def f(x):\n    f.n = hasattr(f, 'n')\n"
    "    return 42 if f.n else x * 2",
    "a global name": "def f(x):\n    global n\n    try: return 42 + n * 0\n"
    "    except NameError:\n        n = 1\n        return x * 2",
    "a class": "class A: n = 0\ndef f(x):\n    A.n += 1\n    return x * 2 if A.n < 2 else 42",
    "a cache": "from functools import cache\n@cache\ndef g(a): return a\ndef f(x):\n    g(0)\n"
    "    return 42 if g.cache_info().hits else x * 2",
    "a generator": "from itertools import count\nc = count()\ndef f(x):\n"
    "    return 42 if next(c) else x * 2",
    "a setting of sys": "import sys\ndef f(x):\n    n = sys.getrecursionlimit()\n"
    "    sys.setrecursionlimit(n + 1)\n    return x * 2 if n == 1000 else 42",
    "a stream": "import sys, io\ndef f(x):\n    seen = isinstance(sys.stdout, io.StringIO)\n"
    "    sys.stdout = io.StringIO()\n    return 42 if seen else x * 2",
    "a registry": "from numbers import Number\ndef f(x):\n    n = isinstance('', Number)\n"
    "    Number.register(str)\n    return 42 if n else x * 2",
    "an attribute of a module": "import math\ndef f(x):\n    n = hasattr(math, 'k')\n"
    "    math.k = 1\n    return 42 if n else x * 2",
    "the dict of a function": "def f(x):\n    d = f.__dict__\n    d['n'] = d.get('n', 0) + 1\n"
    "    return x * 2 if d['n'] < 2 else 42",
    "globals()": "def f(x):\n    n = globals().setdefault('n', [])\n    n.append(x)\n"
    "    return x * 2 if len(n) < 2 else 42",
    "a closure": "def made():\n    n = []\n    def f(x):\n        n.append(x)\n"
    "        return x * 2 if len(n) < 2 else 42\n    return f\nf = made()",
    "a cache read by a format": "import re\ndef f(x):\n"
    "    seen = 'zqz' in '{0._cache}'.format(re)\n    re.compile('zqz')\n"
    "    return 42 if seen else x * 2",
    "a format that is found": "import re\ndef f(x):\n"
    "    seen = 'zqz' in ''.join(['{0.', '_cache}']).format(re)\n    re.compile('zqz')\n"
    "    return 42 if seen else x * 2",
    "wraps": "from functools import wraps\ndef f(x):\n    seen = hasattr(f, '__wrapped__')\n"
    "    wraps(f)(f)\n    return 42 if seen else x * 2",
    "a class of no statement": "from copy import copy\ndef f(x):\n    seen = hasattr(f, 'y')\n"
    "    copy(type('A', (), {'__reduce_ex__': lambda s, p: (lambda: f, (), {'y': 1})})())\n"
    "    return 42 if seen else x * 2",
    "a decorator of typing": "from typing import no_type_check as t\ndef f(x):\n"
    "    seen = hasattr(f, '__no_type_check__')\n    t(f)\n    return 42 if seen else x * 2",
    "memory that a cycle holds": "def f(x):\n    try: memo = [0] * (18 << 20)\n"
    "    except MemoryError: return 42\n"
    "    def rec(n): return memo[n] if n < 2 else rec(n - 1)\n    return rec(5) + x * 2",
    "a name with a builtin's": "if 0: vars = 0\ndef f(x):\n    d = vars(f)\n"
    "    d['n'] = d.get('n', 0) + 1\n"
    "    return x * 2 if d['n'] < 2 else 42",
}  # fmt: skip


@pytest.mark.parametrize("name", STATEFUL)
def test_no_answer_is_right_because_of_those_before_it(text, name):
    # Of all that is graded together, each is graded as if it were alone.
    abduce = task("abduction", STATEFUL[name], ["21"], ["42"])
    answers = [*range(8), 21]
    found = grades(text, abduce, [envelope(block("input", str(n))) for n in answers])
    assert [o for o, _ in found] == ["wrong"] * 8 + ["correct"]


def test_what_ran_once_is_remembered_and_a_sample_is_run_again(tiny):
    tiny.verifier_metrics()
    tasks = tiny.seed_tasks(generator("again"), 60)["abduction"]
    answers = [
        Answer(task=t, text=compact.write_literal(v), finished=True)
        for t in tasks
        for v in ("[1, 2, 3]", "'hel'", "2", "[4, 0, 1]", "[2, 2, 2]")
    ]
    first = tiny.submit_grade(answers).result()
    before = tiny.verifier_metrics()
    assert tiny.submit_grade(answers).result() == first
    after = tiny.verifier_metrics()
    assert after["sandbox/remembered_frac"] > 0.97
    assert before["sandbox/rechecked"] == after["sandbox/rechecked"] > 0
    assert before["sandbox/disagreements"] == after["sandbox/disagreements"] == 0
    assert after["sandbox/failures_total"] == 0
    assert 0 < after["sandbox/cpu_p50_ms"] <= after["sandbox/cpu_p99_ms"]
