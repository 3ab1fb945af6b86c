"""Prime inversion, x * y = 1 (mod p): solve for y (deduction), x (abduction) or p (induction)."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from azr import modular
from azr.config import ConfigError, TaskConfig
from azr.keys import generator, make_key
from azr.tasks.envelope import COMPACT, TEXT_STYLES
from azr.tasks.environment import Environment, Role, Vocabulary, done, remembered
from azr.tasks.prime import compact_format, text_format
from azr.tasks.records import Answer, Grade, Pending, Proposal, Task, Verdict, mark_held_out

MAX_NUMBER_TOKENS = 100_000
"""Above this, one token per integer is no sensible vocabulary."""

ENUMERATION_LIMIT = 20_000
"""Families with more triples than this are evaluated on a fixed stratified sample."""

SAMPLED_PRIMES, SAMPLED_PER_SPLIT = 256, 640
"""Primes of that sample, and tasks of each split; small primes have fewer than their share."""

LISTED_PRIMES, BANDS = 12, 8
"""Up to so many primes are reported one by one, more of them in so many bands of p."""

_REASONS = {
    modular.Status.WRONG: "wrong",
    modular.Status.OUT_OF_RANGE: "out_of_range",
    modular.Status.NOT_PRIME: "not_prime",
}


@dataclass(frozen=True, slots=True, order=True)
class PrimeProblem:
    """A triple with x * y = 1 (mod p) and 1 <= x, y < p."""

    p: int
    x: int
    y: int


class PrimeEnvironment(Environment):
    """The task family `prime`.

    Induction accepts any prime up to `max_p` that divides x*y - 1 and exceeds both x and y.
    There is only one such prime unless x = y = 1, where x*y - 1 = 0 and every prime is right:
    two of them, both above x and y, would have a product above x*y. An answer must lie in the
    canonical range [1, p): y + p is wrong.

    Two hold-outs never become training tasks, among p > 5 and x != y: 10% of the unordered pairs
    {x, y} under p ("heldout_pair"), and 10% in one orientation only ("heldout_orientation"),
    whose mirror image (p, y, x) may be trained on. Membership is a hash of the triple, the same
    in every run.
    """

    task_types = ("deduction", "abduction", "induction")
    styles = (COMPACT, *TEXT_STYLES)

    def __init__(self, config: TaskConfig):
        self.max_p = config.prime.max_p
        self.number_tokens = config.prime.number_tokens
        self.references = config.references
        self._format = _form(config.style)
        if not 7 <= self.max_p < 2**31:
            raise ConfigError(
                f"--task.prime.max-p {self.max_p}: must be in [7, 2^31); up to 5 there is "
                "nothing to hold out"
            )
        is_compact = self._format is compact_format
        if self.number_tokens == "number" and is_compact and self.max_p > MAX_NUMBER_TOKENS:
            raise ConfigError(
                f"--task.prime.max-p {self.max_p}: one token per integer goes up to "
                f"{MAX_NUMBER_TOKENS}; use --task.prime.number-tokens digit"
            )

    def vocabulary(self) -> Vocabulary:
        marks = ("P", "S", "D", "A", "I", "=", ";")
        if self.number_tokens == "number":
            return Vocabulary(marks + tuple(str(n) for n in range(self.max_p + 1)), "word")
        return Vocabulary((*marks, " ", *"0123456789"), "char")

    def max_response_words(self, role: Role, task_type: str) -> int:
        numbers = 2 if role == "propose" else 1
        if self.number_tokens == "number":
            return numbers
        return numbers * len(str(self.max_p)) + numbers - 1

    def warmup_rows(self, rng: np.random.Generator, n: int) -> list[tuple[str, str]]:
        """Returns rows of all six kinds, every number uniform on 1..max_p.

        Prompts are random numbers, mostly no valid tasks at all, and responses ignore them: the
        format can be learned from these rows, arithmetic cannot.
        """
        numbers = rng.integers(1, self.max_p + 1, size=(n, 4 + 3 * self.references)).tolist()
        shown = rng.integers(0, self.references + 1, size=n).tolist()
        rows = []
        for i, (a, b, c, d, *rest) in enumerate(numbers):
            task_type = self.task_types[i // 2 % 3]
            if i % 2 == 0:
                prompt = self._format.solve_prompt(task_type, a, b, self.max_p)
                letters, answer = text_format.ASKED[task_type], [c]
            else:
                triples = [tuple(rest[3 * k : 3 * k + 3]) for k in range(shown[i])]
                prompt = self._format.propose_prompt(task_type, triples, self.max_p)
                letters, answer = text_format.PROPOSED, [c, d]
            rows.append((prompt, self._format.write_reply(letters, answer)))
        return rows

    def seed_tasks(self, rng: np.random.Generator, n: int) -> dict[str, list[Task]]:
        """Returns at most n distinct training tasks per type; fewer where there are no more."""
        found: dict[str, dict[str, Task]] = {t: {} for t in self.task_types}
        sizes = {t: self.universe_size(t) for t in self.task_types}
        wanted = {t: n if size is None else min(n, size) for t, size in sizes.items()}
        for _ in range(64):
            if all(len(tasks) >= wanted[t] for t, tasks in found.items()):
                break
            seed = int(rng.integers(2**62))
            for task_type, tasks in found.items():
                drawn = modular.sample(4 * n, self.max_p, seed=make_key(seed, task_type) >> 2)
                for p, x, y in zip(*(a.tolist() for a in (drawn.p, drawn.x, drawn.y)), strict=True):
                    task = Task(task_type, PrimeProblem(p, x, y))
                    if len(tasks) < n and self.split(task) == "train":
                        tasks.setdefault(self.key(task), task)
        return {task_type: list(tasks.values()) for task_type, tasks in found.items()}

    def propose_prompt(
        self, task_type: str, references: Sequence[Task[PrimeProblem]], style: str
    ) -> str:
        triples = [(q.p, q.x, q.y) for q in (task.problem for task in references)]
        return _form(style).propose_prompt(task_type, triples, self.max_p)

    def solve_prompt(self, task: Task[PrimeProblem], style: str) -> str:
        q = task.problem
        first, second = {
            "deduction": (q.p, q.x),
            "abduction": (q.p, q.y),
            "induction": (q.x, q.y),
        }[task.type]
        return _form(style).solve_prompt(task.type, first, second, self.max_p)

    def submit_validate(self, proposals: Sequence[Proposal]) -> Pending[list[Verdict]]:
        """Returns verdicts: p must be a prime up to max_p, 1 <= x < p; y is computed here.

        Reasons: malformed, unfinished or another of the envelope's, p_out_of_range, not_prime,
        x_out_of_range, held_out.
        """
        verdicts: list[Verdict] = []
        tried: list[tuple[int, int, int]] = []
        for i, proposal in enumerate(proposals):
            numbers, reason = self._format.parse_reply(
                proposal.text, text_format.PROPOSED, proposal.finished
            )
            status = "malformed" if numbers is None else "invalid"
            verdicts.append(Verdict(task=None, status=status, reason=reason or "p_out_of_range"))
            if numbers and 2 <= numbers[0] <= self.max_p:
                # An x that no machine word holds is as far out of range as max_p.
                tried.append((i, numbers[0], min(numbers[1], self.max_p)))
        _, ps, xs = np.array(tried, np.int64).reshape(-1, 3).T
        is_prime = modular.is_prime(ps)
        fits = is_prime & (xs >= 1) & (xs < ps)
        ys = iter(_inverses(xs[fits], ps[fits]))
        for (i, p, x), prime, fit in zip(tried, is_prime, fits, strict=True):
            if fit:
                task = Task(proposals[i].type, PrimeProblem(p, x, next(ys)))
                verdicts[i] = Verdict(task=task, status="valid")
            else:
                reason = "x_out_of_range" if prime else "not_prime"
                verdicts[i] = Verdict(task=None, status="invalid", reason=reason)
        return done(mark_held_out(verdicts, self.split))

    def submit_grade(self, answers: Sequence[Answer]) -> Pending[list[Grade]]:
        """Returns grades.

        Reasons: malformed, unfinished or another of the envelope's, wrong, out_of_range, not_prime.
        """
        grades: list[Grade] = []
        by_type: dict[str, list[tuple[int, int]]] = {t: [] for t in self.task_types}
        for i, answer in enumerate(answers):
            letters = text_format.ASKED[answer.task.type]
            numbers, reason = self._format.parse_reply(answer.text, letters, answer.finished)
            outcome = "malformed" if numbers is None else "wrong"
            grades.append(Grade(outcome=outcome, reason=reason or "out_of_range"))
            if numbers and numbers[0] <= modular.MAX_P:
                by_type[answer.task.type].append((i, numbers[0]))
        for task_type, items in by_type.items():
            if items:
                statuses = self._verify(task_type, [answers[i].task for i, _ in items], items)
                for (i, _), status in zip(items, statuses, strict=True):
                    grades[i] = (
                        Grade(outcome="correct")
                        if status == modular.Status.OK
                        else Grade(outcome="wrong", reason=_REASONS[modular.Status(status)])
                    )
        return done(grades)

    def _verify(
        self, task_type: str, tasks: list[Task[PrimeProblem]], items: list[tuple[int, int]]
    ) -> list[int]:
        given = np.array([value for _, value in items], dtype=np.int64)
        p, x, y = np.array([(t.problem.p, t.problem.x, t.problem.y) for t in tasks], np.int64).T
        if task_type == "deduction":
            return modular.verify_y(p, x, given).tolist()
        if task_type == "abduction":
            return modular.verify_x(p, y, given).tolist()
        return modular.verify_p(x, y, given, max_p=self.max_p).tolist()

    def key(self, task: Task[PrimeProblem]) -> str:
        return self.solve_prompt(task, "compact")

    def split(self, task: Task[PrimeProblem]) -> str:
        return _split(task.problem)

    def splits(self) -> tuple[str, ...]:
        return ("train", "heldout_pair", "heldout_orientation")

    @functools.cached_property
    def _is_enumerated(self) -> bool:
        # The number of triples is the sum of p - 1; the bound on max_p avoids a huge sieve.
        if self.max_p > ENUMERATION_LIMIT:
            return False
        return int((modular.primes_upto(self.max_p) - 1).sum(dtype=np.int64)) <= ENUMERATION_LIMIT

    @functools.cached_property
    def _problems(self) -> list[PrimeProblem]:
        if self._is_enumerated:
            primes = np.repeat(ps := modular.primes_upto(self.max_p), ps - 1)
            xs = np.concatenate([np.arange(1, p) for p in ps])
        else:
            primes, xs = self._stratified()
        primes, xs = primes.astype(np.int64), xs.astype(np.int64)
        triples = zip(primes.tolist(), xs.tolist(), _inverses(xs, primes), strict=True)
        return [PrimeProblem(*triple) for triple in triples]

    def _stratified(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns (p, x): distinct x for primes spread evenly over the range, split by split.

        x = 1 is left out: its induction prompt says nothing of p.
        """
        primes = []
        for center in np.linspace(7, self.max_p, SAMPLED_PRIMES).astype(np.int64).tolist():
            # The nearest prime at or below an evenly spaced point; 7 is one, so it ends.
            candidates = np.arange(center, max(center - 2048, 6), -1, dtype=np.int64)
            primes.append(int(candidates[modular.is_prime(candidates)][0]))
        primes = list(dict.fromkeys(primes))
        wanted = -(-SAMPLED_PER_SPLIT // len(primes))
        sampled: list[tuple[int, int]] = []
        for p in primes:
            rng = generator("prime-eval", p)
            # A hold-out is at least a twentieth of the problems: so many draws nearly always do.
            drawn = np.unique(rng.integers(2, p, size=64 * wanted))
            rng.shuffle(drawn)
            kept = dict.fromkeys(self.splits(), 0)
            for x, y in zip(drawn.tolist(), _inverses(drawn, np.full_like(drawn, p)), strict=True):
                split = _split(PrimeProblem(p, x, y))
                kept[split] += 1
                if kept[split] <= wanted:
                    sampled.append((p, x))
        ps, xs = zip(*sampled, strict=True)
        return np.array(ps), np.array(xs)

    @remembered
    def eval_tasks(self, split: str, task_type: str) -> list[Task]:
        """Returns every distinct task of the split, or a fixed sample stratified by p.

        Distinct means a distinct prompt: induction has a single task for x = y = 1.
        """
        tasks: dict[str, Task] = {}
        for problem in self._problems:
            if _split(problem) == split:
                task = Task(task_type, problem)
                tasks.setdefault(self.key(task), task)
        return list(tasks.values())

    def stratum(self, task: Task[PrimeProblem]) -> str:
        """Returns the prime, or where there are many the band of width max_p / 8 that it is in."""
        p = task.problem.p
        if (
            self.max_p <= ENUMERATION_LIMIT
            and len(modular.primes_upto(self.max_p)) <= LISTED_PRIMES
        ):
            return f"p = {p}"
        width = -(-self.max_p // BANDS)
        first = (p - 1) // width * width + 1
        return f"p {first} to {min(first + width - 1, self.max_p)}"

    def universe_size(self, task_type: str) -> int | None:
        return len(self.eval_tasks("train", task_type)) if self._is_enumerated else None

    def chance(self, task_type: str, split: str) -> float:
        """Returns the accuracy of answers uniform on 1..max_p over `eval_tasks`."""
        tasks = self.eval_tasks(split, task_type)
        if not tasks:
            return float("nan")
        right = len(tasks)
        if task_type == "induction" and any(t.problem.x == t.problem.y == 1 for t in tasks):
            right += len(modular.primes_upto(self.max_p)) - 1
        return right / (len(tasks) * self.max_p)

    def to_json(self, task: Task[PrimeProblem]) -> dict[str, Any]:
        q = task.problem
        return {"type": task.type, "p": q.p, "x": q.x, "y": q.y}

    def from_json(self, data: dict[str, Any]) -> Task:
        try:
            task_type, (p, x, y) = data["type"], (data[k] for k in "pxy")
            in_range = 2 <= p <= self.max_p and 1 <= x < p and 1 <= y < p
            is_task = in_range and x * y % p == 1 and bool(modular.is_prime(np.array([p]))[0])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a prime-inversion task: {data!r}") from error
        if task_type not in self.task_types or not is_task:
            raise ValueError(f"not a prime-inversion task with p up to {self.max_p}: {data!r}")
        return Task(task_type, PrimeProblem(p, x, y))


def _form(style: str) -> ModuleType:
    return text_format if style in TEXT_STYLES else compact_format


def _inverses(xs: np.ndarray, ps: np.ndarray) -> list[int]:
    return np.asarray(modular.invert(xs, ps)).tolist()


HOLDOUT_FRACTION = 0.1

# One of many salts, chosen because its share is near 10% also for the few pairs of a small max_p.
HOLDOUT_SALT = "prime-holdout-2074"


@functools.lru_cache(maxsize=1 << 20)
def _split(problem: PrimeProblem) -> str:
    if problem.p <= 5 or problem.x == problem.y:
        return "train"
    low, high = sorted((problem.x, problem.y))
    key = make_key(HOLDOUT_SALT, problem.p, low, high)
    fraction = (key >> 1) / 2**63
    if fraction < HOLDOUT_FRACTION:
        return "heldout_pair"
    if fraction < 2 * HOLDOUT_FRACTION and (key & 1) == (problem.x < problem.y):
        return "heldout_orientation"
    return "train"
