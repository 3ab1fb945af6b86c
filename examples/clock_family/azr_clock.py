"""Clock arithmetic, hour + shift = end (mod 12), as a task family of a package of its own.

pip install ./examples/clock_family
python -m azr.train --env clock --task.references 0

role      type        prompt            response
propose   any         P D [h s e ;]...  h s
solve     deduction   S D h s =         e
solve     abduction   S A s e =         h
solve     induction   S I h e =         s
"""

from collections.abc import Sequence

import numpy as np

from azr.config import TaskConfig
from azr.tasks import Answer, Grade, Proposal, Task, TaskFamily, Verdict, Vocabulary

HOURS = 12
LETTERS = {"deduction": "D", "abduction": "A", "induction": "I"}
SEEN = {"deduction": (0, 1), "abduction": (1, 2), "induction": (0, 2)}
"""Which two of (hour, shift, end) the solver is shown."""
HIDDEN = {"deduction": 2, "abduction": 0, "induction": 1}


class ClockFamily(TaskFamily):
    """A problem is (hour, shift, end); each of the three follows from the other two."""

    task_types = ("deduction", "abduction", "induction")

    def __init__(self, config: TaskConfig):
        self.references = config.references

    def vocabulary(self) -> Vocabulary:
        marks = ("P", "S", *LETTERS.values(), "=", ";")
        return Vocabulary(marks + tuple(str(n) for n in range(HOURS)), "word")

    def universe(self, task_type: str) -> Sequence[Task]:
        pairs = [(hour, shift) for hour in range(HOURS) for shift in range(HOURS)]
        return [Task(task_type, _problem(hour, shift)) for hour, shift in pairs]

    def warmup_rows(self, rng: np.random.Generator, n: int) -> list[tuple[str, str]]:
        rows = []
        for i in range(n):
            task_type = self.task_types[i // 2 % 3]
            # Random numbers, mostly no problems at all: there is no arithmetic to be learned here.
            numbers = rng.integers(0, HOURS, size=(self.references + 2, 3)).tolist()
            task, response, *others = (Task(task_type, tuple(three)) for three in numbers)
            if i % 2:
                shown = others[: int(rng.integers(0, self.references + 1))]
                prompt, words = self.propose_prompt(task_type, shown, "compact"), 2
            else:
                prompt, words = self.solve_prompt(task, "compact"), 1
            rows.append((prompt, " ".join(map(str, response.problem[:words]))))
        return rows

    def propose_prompt(self, task_type: str, references: Sequence[Task], style: str) -> str:
        shown = "".join("{} {} {} ; ".format(*task.problem) for task in references)
        return f"P {LETTERS[task_type]} {shown}="

    def solve_prompt(self, task: Task, style: str) -> str:
        first, second = (task.problem[i] for i in SEEN[task.type])
        return f"S {LETTERS[task.type]} {first} {second} ="

    def max_response_words(self, role: str, task_type: str) -> int:
        return 2 if role == "propose" else 1

    def validate(self, proposal: Proposal) -> Verdict:
        numbers = _hours(proposal.text, 2)
        if numbers is None:
            return Verdict(task=None, status="malformed", reason="malformed")
        return Verdict(task=Task(proposal.type, _problem(*numbers)), status="valid")

    def grade(self, answer: Answer) -> Grade:
        number = _hours(answer.text, 1)
        if number is None:
            return Grade(outcome="malformed", reason="malformed")
        if number[0] != answer.task.problem[HIDDEN[answer.task.type]]:
            return Grade(outcome="wrong", reason="wrong")
        return Grade(outcome="correct")

    def chance(self, task_type: str, split: str) -> float:
        return 1 / HOURS


def _problem(hour: int, shift: int) -> tuple[int, int, int]:
    return (hour, shift, (hour + shift) % HOURS)


def _hours(text: str, count: int) -> tuple[int, ...] | None:
    known = {str(n): n for n in range(HOURS)}
    words = text.split(" ")
    if len(words) != count or not all(word in known for word in words):
        return None
    return tuple(known[word] for word in words)
