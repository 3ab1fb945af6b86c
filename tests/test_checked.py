"""What a task family returns: converted where it is clear, else refused in a line that names it."""

import json
import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from azr.config import ConfigError, TaskConfig
from azr.errors import RunError
from azr.selfplay import Answered, Proposed
from azr.tasks import (
    Answer,
    Grade,
    Proposal,
    Task,
    Traits,
    Verdict,
    check_family,
    load_environment,
)
from azr.tasks.checked import CheckedFamily
from azr.tasks.environment import done
from azr.tasks.records import Deferred, References

TASK = Task("add", (1, 2))


class Family:
    """Returns from each method what the test gives."""

    task_types = ("add",)
    styles = ("compact",)

    def __init__(self, **returned):
        self.__dict__.update({name: lambda *_, v=value: v for name, value in returned.items()})


def checked(**returned) -> CheckedFamily:
    return CheckedFamily(Family(**returned), "toy")


NUMBERS = [3, 3.0, np.int64(3), np.float32(3), np.array(3), torch.tensor(3), torch.tensor(3.0),
           torch.tensor(3.0).bfloat16(), Decimal(3), Fraction(3), np.float16(3)]  # fmt: skip
NO_NUMBERS = ["3", b"3", 10**400, -(10**400), 10**5000, [3], np.array([3]), torch.ones(2), {}, 3j,
              Decimal("sNaN"), object()]  # fmt: skip


@pytest.mark.parametrize("value", NUMBERS, ids=repr)
def test_numbers_of_any_kind_are_converted(value):
    family = checked(
        verifier_metrics={"toy/checks": value}, max_response_words=value, universe_size=value,
        chance=value / 4, traits=Traits(length=value, complexity=value, distance=value),
        to_json={"a": value, "b": [value, (value,)]},
    )  # fmt: skip
    assert (metric := family.verifier_metrics()["toy/checks"]) == 3 and type(metric) is float
    assert (words := family.max_response_words("solve", "add")) == 3 and type(words) is int
    assert (size := family.universe_size("add")) == 3 and type(size) is int
    assert (chance := family.chance("add", "train")) == 0.75 and type(chance) is float
    assert family.traits(TASK, ()) == Traits(length=3.0, complexity=3.0, distance=3.0)
    assert json.loads(json.dumps(family.to_json(TASK))) == {"a": 3, "b": [3, [3]]}


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: type(value).__name__)
def test_what_is_no_number_is_refused_by_name(value):
    family = checked(
        verifier_metrics={"toy/checks": value}, max_response_words=value, universe_size=value,
        chance=value, traits=Traits(length=1.0, complexity=value, distance=1.0),
    )  # fmt: skip
    for error, name, call in (
        (RunError, r"verifier_metrics\(\)\['toy/checks'\]", family.verifier_metrics),
        (RunError, r"traits\(...\).complexity", lambda: family.traits(TASK, ())),
        (ConfigError, r"max_response_words\('solve', 'add'\)",
         lambda: family.max_response_words("solve", "add")),
        (ConfigError, r"universe_size\('add'\)", lambda: family.universe_size("add")),
        (ConfigError, r"chance\('add', 'train'\)", lambda: family.chance("add", "train")),
    ):  # fmt: skip
        with pytest.raises(error, match=rf"task family toy: {name} is .*: must be ") as info:
            call()
        assert len(str(info.value)) < 300 and "\n" not in str(info.value)


def test_none_and_truth_where_they_have_a_meaning():
    metrics = checked(verifier_metrics={"a": None, "b": True, "c": math.inf}).verifier_metrics()
    assert math.isnan(metrics["a"]) and (metrics["b"], metrics["c"]) == (1.0, math.inf)
    assert math.isnan(checked(chance=None).chance("add", "train"))
    assert checked(universe_size=None).universe_size("add") is None
    assert checked(traits=None).traits(TASK, ()) is None
    for wrong in (None, True, 0, -1, 2.5, math.nan, math.inf, 2**63):
        with pytest.raises(ConfigError, match="must be a whole number of at least 1"):
            checked(max_response_words=wrong).max_response_words("solve", "add")
        if wrong is not None:
            with pytest.raises(ConfigError, match="whole number of at least 1, or None"):
                checked(universe_size=wrong).universe_size("add")
    for wrong in (-0.1, 1.1, math.inf):
        with pytest.raises(ConfigError, match="must be from 0 to 1, or NaN"):
            checked(chance=wrong).chance("add", "train")


@pytest.mark.parametrize(
    "name", ["step", "time/step_s", "policy/loss", "eval/train/add/chance", "time", 3, None, "",
             " ", "a\nb", ("a", "b")],
)  # fmt: skip
def test_no_metric_takes_a_name_of_the_log(name):
    with pytest.raises(RunError, match="a name in verifier_metrics") as info:
        checked(verifier_metrics={name: 1.0}).verifier_metrics()
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    "data", [{"a": b"1"}, {"a": {1}}, {"a": 3j}, [1], None, "text", {"a": object()}, {(1, 2): 3},
             {"a": Decimal("sNaN")}, {"a": Fraction(10**400)}, {"a": [10**5000]},
             {"a": {"b": np.ones((9, 9)), "c": {1}}}],
)  # fmt: skip
def test_a_task_is_a_json_object(data):
    with pytest.raises(
        RunError, match=r"task family toy: to_json\(...\) is .*: must be a JSON"
    ) as info:
        checked(to_json=data).to_json(TASK)
    assert "\n" not in str(info.value)


def test_arrays_in_a_task_become_lists():
    data = {"a": np.arange(3), "b": torch.arange(2), "c": np.bool_(True), "d": 10**400}
    told = checked(to_json=data).to_json(TASK)
    assert told == {"a": [0, 1, 2], "b": [0, 1], "c": True, "d": 10**400}


@pytest.mark.parametrize(
    ("verdict", "message"),
    [
        (Verdict(task=None, status="valid"), "the task of a valid verdict is None"),
        (Verdict(task=(1, 2), status="valid"), "the task of a verdict is .* must be a add Task"),
        (Verdict(task=Task("subtract", 1), status="valid"), "must be a add Task as proposed"),
        (Verdict(task=None, status="bad"), "the status of a verdict is 'bad': must be one of"),
        (Verdict(task=None, status="invalid", reason=3), "the reason of a verdict is 3"),
        (None, r"a result of submit_validate\(...\) is None: must be a Verdict"),
    ],
)
def test_a_verdict_is_one(verdict, message):
    family = checked(submit_validate=done([verdict]))
    with pytest.raises(RunError, match=message):
        family.submit_validate([Proposal(type="add", text="", finished=True)]).result()


@pytest.mark.parametrize(
    ("grades", "message"),
    [
        ([Grade(outcome="right")], "the outcome of a grade is 'right': must be one of"),
        ([Grade(outcome="wrong", reason=b"x")], "the reason of a grade is"),
        ([], r"submit_grade\(...\) is \[\]: must be a list of 1 results"),
        (None, "must be a list of 1 results"),
        ([True], "must be a Grade"),
    ],
)
def test_a_grade_is_one(grades, message):
    with pytest.raises(RunError, match=message):
        checked(submit_grade=done(grades)).submit_grade(
            [Answer(task=TASK, text="", finished=True)]
        ).result()


def test_a_batch_comes_as_a_future():
    with pytest.raises(RunError, match=r"submit_grade\(...\) is \[\]: must be a Future"):
        checked(submit_grade=[]).submit_grade([])


def test_what_is_right_passes_unchanged():
    verdict, grade = Verdict(task=TASK, status="valid"), Grade(outcome="wrong", reason=None)
    family = checked(submit_validate=done([verdict]), submit_grade=done([grade]), key="1+2",
                     open=None, to_json={"a": [1, "x", None]})  # fmt: skip
    assert family.submit_validate([Proposal(type="add", text="", finished=True)]).result() == [
        verdict
    ]
    graded = family.submit_grade([Answer(task=TASK, text="", finished=True)]).result()
    assert graded == [Grade(outcome="wrong")]
    assert (family.key(TASK), family.open(), family.task_types) == ("1+2", None, ("add",))
    assert family.to_json(TASK) == {"a": [1, "x", None]}
    with pytest.raises(RunError, match=r"solve_prompt\(...\) is None: must be a text"):
        checked(solve_prompt=None).solve_prompt(TASK, "compact")
    with pytest.raises(RunError, match=r"key\(...\) is '.ud800': .* without unpaired surrogates"):
        checked(key="\ud800").key(TASK)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({"splits": "train"}, r"splits\(\) is 'train': must be a tuple of names"),
        ({"splits": ("heldout", "train")}, '"train" first'),
        ({"eval_tasks": None}, r"eval_tasks\('train', 'add'\) is None: must be a list"),
        ({"eval_tasks": [Task("x", 1)]}, r"one of eval_tasks\('train', 'add'\) is .*add Task"),
        ({"chance": "no"}, r"chance\('add', 'train'\) is 'no'"),
        ({"to_json": {"a": {1}}}, "must be a JSON object"),
    ],
)
def test_what_is_needed_late_is_asked_for_at_the_start(returned, message):
    usual = {"splits": ("train",), "eval_tasks": [TASK], "chance": 0.5, "to_json": {}}
    check_family(checked(**usual), ("add",))
    with pytest.raises((ConfigError, RunError), match=message):
        check_family(checked(**usual | returned), ("add",))


@pytest.mark.parametrize(
    ("call", "returned", "message"),
    [
        (
            ("seed_tasks", None, 9),
            None,
            r"seed_tasks\(...\) is None: must be a dict of tasks by type",
        ),
        (("seed_tasks", None, 9), {"add": ["x"]}, r"one of seed_tasks\(...\)\['add'\] is 'x'"),
        (("first_tasks",), [TASK], r"first_tasks\(\) is .*: must be a dict"),
        (("first_tasks",), {"add": TASK}, r"first_tasks\(\)\['add'\] is .*: must be a list"),
        (("warmup_rows", None, 9), [], r"warmup_rows\(...\) is \[\]: must be a list of rows"),
        (
            ("warmup_rows", None, 9),
            [("a", 1)],
            r"one of warmup_rows\(...\) is \('a', 1\): must be a p",
        ),
        (("reference_source", "add"), None, r"reference_source\('add'\) is None: must be Ref"),
        (
            ("reference_source", "add"),
            References(types=("x",)),
            r"\.types is .*types of the family",
        ),
        (("vocabulary",), ("a", "b"), r"vocabulary\(\) is .*: must be a Vocabulary"),
    ],
)
def test_what_a_run_begins_with_is_what_it_says(call, returned, message):
    name, *arguments = call
    with pytest.raises(ConfigError, match="^task family toy: .*" + message):
        getattr(checked(**{name: returned}), name)(*arguments)


def test_a_type_without_seeds_has_none():
    assert checked(seed_tasks={}).seed_tasks(None, 9) == {"add": []}


def test_names_of_types_and_styles_are_checked():
    for attribute, wrong in (("task_types", "add"), ("styles", ()), ("task_types", ("a", 1))):
        family = Family()
        setattr(family, attribute, wrong)
        with pytest.raises(ConfigError, match=f"task family toy: {attribute} is .*tuple of names"):
            CheckedFamily(family, "toy")


def test_proposals_and_answers_are_hashed_as_what_they_say():
    said = {"type": "add", "text": "1", "finished": True}
    assert len({Proposal(**said), Proposal(**said), Proposal(**said | {"text": "2"})}) == 2
    sampled = [Proposed(**said, prompt=n, sample=n, reward=n) for n in (1.0, 2.0)]
    assert len({*sampled}) == 1
    answers = [Answered(task=TASK, text=text, finished=True, prompt=None, sample=None, key="",
                        is_estimate=False) for text in "ab"]  # fmt: skip
    assert len({*answers}) == 2 and answers[0].type == "add"


def test_what_is_deferred_is_worked_out_once_and_methods_take_names():
    calls = []
    deferred = Deferred(lambda: calls.append(1) or "made")
    assert deferred.result() == deferred.result() == "made" and len(calls) == 1
    environment = load_environment(TaskConfig())
    task = environment.eval_tasks("train", "deduction")[0]
    assert environment.key(task=task) == environment.key(task)
