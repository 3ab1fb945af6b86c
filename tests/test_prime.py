"""The prime family against brute force in Python integers."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from azr.config import ConfigError, PrimeConfig, TaskConfig
from azr.tasks import Answer, Proposal, Task, load_environment
from azr.tasks.prime import PrimeEnvironment, PrimeProblem
from azr.tasks.prime.compact_format import parse_integers

TYPES = ("deduction", "abduction", "induction")


def environment(max_p=23, **task):
    tokens = task.pop("number_tokens", "number")
    return PrimeEnvironment(
        TaskConfig(**{"references": 0} | task, prime=PrimeConfig(max_p=max_p, number_tokens=tokens))
    )


ENV = environment()
PRIMES = [p for p in range(2, 24) if all(p % q for q in range(2, p))]
TRIPLES = [(p, x, y) for p in PRIMES for x in range(1, p) for y in range(1, p) if x * y % p == 1]


def validate(text, task_type="deduction", finished=True, env=ENV):
    proposal = Proposal(type=task_type, text=text, finished=finished)
    return env.submit_validate([proposal]).result()[0]


def grade(task_type, triple, text, finished=True, env=ENV):
    answer = Answer(task=Task(task_type, PrimeProblem(*triple)), text=text, finished=finished)
    return env.submit_grade([answer]).result()[0]


def test_every_pair_of_numbers_gets_the_verdict_of_brute_force():
    pairs = list(itertools.product(range(30), repeat=2))
    for task_type in TYPES:
        proposals = [Proposal(type=task_type, text=f"{p} {x}", finished=True) for p, x in pairs]
        for (p, x), verdict in zip(pairs, ENV.submit_validate(proposals).result(), strict=True):
            if not 2 <= p <= 23:
                expected = "p_out_of_range"
            elif p not in PRIMES:
                expected = "not_prime"
            elif not 1 <= x < p:
                expected = "x_out_of_range"
            else:
                task = Task(task_type, PrimeProblem(p, x, pow(x, -1, p)))
                assert verdict.task == task
                expected = "" if ENV.split(task) == "train" else "held_out"
            assert verdict.reason == expected
            kind = {"": "valid", "held_out": "held_out"}.get(expected, "invalid")
            assert verdict.status == kind
            assert (verdict.task is None) == (kind == "invalid")


def test_every_answer_to_every_task_gets_the_grade_of_brute_force():
    for task_type in TYPES:
        items = [(triple, answer) for triple in TRIPLES for answer in range(28)]
        answers = [
            Answer(task=Task(task_type, PrimeProblem(*t)), text=str(a), finished=True)
            for t, a in items
        ]
        for ((p, x, y), a), got in zip(items, ENV.submit_grade(answers).result(), strict=True):
            if task_type == "deduction":
                right = 1 <= a < p and x * a % p == 1
            elif task_type == "abduction":
                right = 1 <= a < p and a * y % p == 1
            else:
                right = a in PRIMES and a > max(x, y) and (x * y - 1) % a == 0
            assert (got.outcome == "correct") == right, (task_type, (p, x, y), a, got)
            assert got.outcome in ("correct", "wrong") and bool(got.reason) == (not right)


def test_induction_accepts_another_prime_than_the_one_proposed():
    # x = y = 1: every prime divides 0. This is the only prompt with more than one right answer.
    assert grade("induction", (7, 1, 1), "23").outcome == "correct"
    assert grade("induction", (7, 1, 1), "1").outcome == "wrong"
    assert grade("induction", (7, 1, 1), "29").reason == "out_of_range"
    several = [
        (x, y)
        for x, y in {(x, y) for _, x, y in TRIPLES}
        if sum(q > max(x, y) and (x * y - 1) % q == 0 for q in PRIMES) > 1
    ]
    assert several == [(1, 1)]


MALFORMED = [
    "", " ", "7 ", " 7", "7  3", "7 3 1", "07", "+7", "-7", "7.0", "1e3", "٣", "７", "seven",
    "7\n", "7,3", "<pad>", "7 <eos>", "0x7", "7_0", "9" * 20, "9" * 4000, "7 3\x00", "1" * 70,
]  # fmt: skip


@pytest.mark.parametrize("text", MALFORMED)
def test_malformed_text_is_malformed_in_both_roles(text):
    assert validate(text).status == "malformed"
    if text != "7":
        assert grade("deduction", (7, 3, 5), text).outcome == "malformed"


def test_what_the_model_did_not_end_itself_is_malformed():
    assert validate("7 3", finished=False).reason == "unfinished"
    assert grade("deduction", (7, 3, 5), "5", finished=False).reason == "unfinished"


def test_a_long_integer_is_wrong_and_never_raises():
    assert grade("deduction", (7, 3, 5), "9" * 19).outcome == "wrong"
    assert grade("induction", (7, 3, 5), "9" * 19).outcome == "wrong"
    assert validate("9" * 19 + " 3").reason == "p_out_of_range"
    assert validate("7 " + "9" * 19).reason == "x_out_of_range"


@given(st.text(max_size=80), st.sampled_from(TYPES))
def test_no_text_raises(text, task_type):
    validate(text, task_type)
    grade(task_type, (7, 3, 5), text)


@given(st.lists(st.integers(0, 10**19 - 1), min_size=1, max_size=3))
def test_the_parser_reads_what_python_writes(numbers):
    text = " ".join(map(str, numbers))
    assert parse_integers(text, len(numbers)) == tuple(numbers)
    assert parse_integers(text, len(numbers) + 1) is None


def test_hold_outs_are_ten_percent_each_and_symmetric_where_they_must_be():
    env = environment(max_p=199)
    pairs = {}
    for problem in env._problems:
        if problem.p > 5 and problem.x != problem.y:
            key = (problem.p, min(problem.x, problem.y), max(problem.x, problem.y))
            split = env.split(Task("deduction", problem))
            pairs.setdefault(key, []).append(split)
        else:
            assert env.split(Task("deduction", problem)) == "train"
    kinds = [tuple(sorted(splits)) for splits in pairs.values()]
    assert set(kinds) == {
        ("train", "train"), ("heldout_pair", "heldout_pair"), ("heldout_orientation", "train"),
    }  # fmt: skip
    # 2,044 pairs: 10% within 4 deviations.
    margin = 4 * (0.1 * 0.9 / len(kinds)) ** 0.5
    for kind in (("heldout_pair",) * 2, ("heldout_orientation", "train")):
        assert abs(kinds.count(kind) / len(kinds) - 0.1) < margin


def test_a_split_is_the_same_for_all_three_types_and_small_universes_have_hold_outs():
    for max_p in (23, 31):
        env = environment(max_p)
        for problem in env._problems:
            assert len({env.split(Task(t, problem)) for t in TYPES}) == 1
        for split in env.splits()[1:]:
            assert len(env.eval_tasks(split, "deduction")) >= 3


def test_splits_partition_the_distinct_prompts():
    for task_type in TYPES:
        tasks = [t for split in ENV.splits() for t in ENV.eval_tasks(split, task_type)]
        keys = [ENV.key(t) for t in tasks]
        prompts = {
            "deduction": {(p, x) for p, x, _ in TRIPLES},
            "abduction": {(p, y) for p, _, y in TRIPLES},
            "induction": {(x, y) for _, x, y in TRIPLES},
        }[task_type]
        assert len(keys) == len(set(keys)) == len(prompts)
        assert ENV.universe_size(task_type) == len(ENV.eval_tasks("train", task_type))


def test_chance_is_the_exact_accuracy_of_uniform_answers():
    for task_type, split in itertools.product(TYPES, ENV.splits()):
        tasks = ENV.eval_tasks(split, task_type)
        answers = [Answer(task=t, text=str(a), finished=True) for t in tasks for a in range(1, 24)]
        grades = ENV.submit_grade(answers).result()
        exact = sum(g.outcome == "correct" for g in grades) / len(grades)
        assert ENV.chance(task_type, split) == pytest.approx(exact)


def test_prompts_show_the_two_knowns_and_never_the_unknown():
    task = {t: Task(t, PrimeProblem(23, 5, 14)) for t in TYPES}
    assert ENV.solve_prompt(task["deduction"], "compact") == "S D 23 5 ="
    assert ENV.solve_prompt(task["abduction"], "compact") == "S A 23 14 ="
    assert ENV.solve_prompt(task["induction"], "compact") == "S I 5 14 ="
    for problem in ENV._problems:
        others = [q for q in ENV._problems if dataclasses.replace(problem, y=q.y) == q]
        prompts = {ENV.solve_prompt(Task("deduction", q), "compact") for q in others}
        assert len(prompts) == 1  # the prompt does not depend on y


def test_references_are_shown_as_triples():
    references = [
        Task("deduction", PrimeProblem(7, 2, 4)),
        Task("deduction", PrimeProblem(5, 3, 2)),
    ]
    assert ENV.propose_prompt("abduction", references, "compact") == "P A 7 2 4 ; 5 3 2 ; ="
    assert ENV.propose_prompt("abduction", [], "compact") == "P A ="


@pytest.mark.parametrize("number_tokens", ["number", "digit"])
def test_warmup_rows_are_well_formed_uniform_and_independent_of_their_prompts(number_tokens):
    env = environment(references=3, number_tokens=number_tokens)
    rows = env.warmup_rows(np.random.default_rng(0), 24_000)
    first = {}
    for prompt, response in rows:
        role, letter = prompt.split(" ")[:2]
        numbers = parse_integers(response, 1 if role == "S" else 2)
        assert numbers is not None and all(1 <= n <= 23 for n in numbers)
        first.setdefault((role, letter), []).append((prompt.split(" ")[2], numbers[-1]))
    assert set(first) == set(itertools.product("SP", "DAI"))
    solver = [pair for (role, _), pairs in first.items() if role == "S" for pair in pairs]
    table = np.zeros((23, 23))
    for shown, answer in solver:
        table[int(shown) - 1, answer - 1] += 1
    expected = len(solver) / 23**2
    chi_square = ((table - expected) ** 2 / expected).sum()
    # 528 degrees of freedom: mean 528, deviation 32.5; five deviations.
    assert abs(chi_square - 528) < 5 * 32.5


def test_prompts_and_responses_are_made_of_the_vocabulary():
    from azr.model.load import make_tokenizer

    for number_tokens in ("number", "digit"):
        env = environment(references=2, number_tokens=number_tokens)
        vocabulary = env.vocabulary()
        tokenizer = make_tokenizer(vocabulary.words, vocabulary.split)
        for prompt, response in env.warmup_rows(np.random.default_rng(1), 300):
            for text in (prompt, response):
                ids = tokenizer(text)["input_ids"]
                assert tokenizer.unk_token_id not in ids
                assert tokenizer.decode(ids) == text
            role = "propose" if prompt.startswith("P") else "solve"
            limit = env.max_response_words(role, "deduction")
            assert len(tokenizer(response)["input_ids"]) <= limit


def test_seed_tasks_are_distinct_training_tasks_and_stop_at_the_universe():
    seeds = ENV.seed_tasks(np.random.default_rng(0), 16)
    for task_type in TYPES:
        keys = {ENV.key(t) for t in seeds[task_type]}
        assert len(keys) == 16
        assert all(ENV.split(t) == "train" and t.type == task_type for t in seeds[task_type])
    everything = ENV.seed_tasks(np.random.default_rng(0), 10_000)
    assert {t: len(v) for t, v in everything.items()} == {t: ENV.universe_size(t) for t in TYPES}


def test_tasks_survive_json_and_nothing_else_becomes_one():
    for problem in ENV._problems:
        task = Task("induction", problem)
        assert ENV.from_json(ENV.to_json(task)) == task
    good = {"type": "deduction", "p": 7, "x": 2, "y": 4}
    bad_values = (
        {"y": 5},
        {"p": 8},
        {"x": 0},
        {"type": "no"},
        {"p": 29, "x": 1, "y": 1},
        {"x": "2"},
    )
    for change in bad_values:
        with pytest.raises(ValueError, match="not a prime-inversion task"):
            ENV.from_json(good | change)
    with pytest.raises(ValueError, match="not a prime-inversion task"):
        ENV.from_json({"p": 7})


@pytest.mark.parametrize("max_p", [617, 1_000_003, 2**31 - 1])
def test_large_universes_are_evaluated_on_a_fixed_stratified_sample(max_p):
    env = environment(max_p=max_p, number_tokens="digit")
    tasks = env.eval_tasks("train", "deduction")
    for split in env.splits():
        assert all(len(env.eval_tasks(split, t)) >= 500 for t in TYPES)
    assert tasks == environment(max_p=max_p, number_tokens="digit").eval_tasks("train", "deduction")
    for task in tasks[:50]:
        q = task.problem
        assert q.x * q.y % q.p == 1 and 0 < q.x < q.p
    above = sum(t.problem.p > max_p // 2 for t in tasks) / len(tasks)
    assert 0.3 < above < 0.9
    # Answers are uniform on 1..max_p and each task of the sample has a single right one.
    assert env.chance("induction", "train") == pytest.approx(1 / max_p, rel=0.02)


def test_strata_are_primes_where_they_are_few_and_bands_where_they_are_many():
    few, many = environment(max_p=13), environment(max_p=80)
    task = Task("deduction", PrimeProblem(7, 3, 5))
    assert few.stratum(task) == "p = 7" and many.stratum(task) == "p 1 to 10"
    assert many.stratum(Task("deduction", PrimeProblem(79, 1, 1))) == "p 71 to 80"
    bands = {many.stratum(t) for t in many.eval_tasks("train", "deduction")}
    assert bands == {f"p {10 * i + 1} to {10 * i + 10}" for i in range(8)}


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (TaskConfig(family="prim"), "did you mean prime"),
        (TaskConfig(types=("deduction", "x")), "'x'.*deduction"),
        (TaskConfig(style="haiku"), "'haiku'.*compact"),
        (TaskConfig(prime=PrimeConfig(max_p=5)), "must be in"),
        (TaskConfig(prime=PrimeConfig(max_p=200_000)), "use --task.prime.number-tokens digit"),
    ],
)
def test_what_the_family_cannot_do_is_refused_by_name(task, message):
    with pytest.raises(ConfigError, match=message):
        load_environment(task)
