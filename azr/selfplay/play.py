"""One step of Absolute Zero self-play: propose, validate, estimate, solve, whiten.

The same model plays both roles; only the prompt differs. Every completion goes to the rollout
engine in one of two large batches, first all proposals, then all solutions, and is verified while
the rest is still being generated.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from transformers import PreTrainedTokenizerBase

from azr.advantage import CellStatistics, task_relative_advantages
from azr.buffer import Entry, TaskBuffer
from azr.config import Config
from azr.keys import generator, make_key
from azr.reward import Novelty, proposer_reward, solver_reward
from azr.rollout import Request, RolloutEngine, Sample, Sampling
from azr.selfplay.clock import Clock
from azr.selfplay.episode import ROLES, Answered, Episode, Proposed, Seeding, StepResult
from azr.selfplay.metrics import mean, step_metrics
from azr.selfplay.prompts import Prompts
from azr.selfplay.references import draw_references
from azr.selfplay.seeding import fill_buffers
from azr.tasks import Environment, Role, Task, Verdict
from azr.tasks.envelope import stop_strings
from azr.tasks.records import Pending
from azr.text import end_ids, response_texts, response_tokens

E = TypeVar("E", bound=Episode)
J = TypeVar("J")
Known = Entry | Proposed
"""What has a task, and the key that makes it distinct."""

COMPLEXITY_SCALE = 10.0
"""Cyclomatic complexity that counts as full novelty."""

RECENT = 900
"""Valid proposals over which distinct ones are counted."""

VERIFY_CHUNKS, SMALLEST_CHUNK, LARGEST_CHUNK = 8, 32, 256
"""A phase's finished samples go to the environment in about so many chunks, within these sizes."""


class SelfPlay:
    """Holds the buffers and plays steps with an engine and an environment."""

    def __init__(
        self,
        config: Config,
        environment: Environment,
        engine: RolloutEngine,
        tokenizer: PreTrainedTokenizerBase,
    ):
        self.config, self.environment = config, environment
        self.engine, self.tokenizer = engine, tokenizer
        self.ends = end_ids(tokenizer, engine.model)
        self.stops = stop_strings(config.task.style)
        self.prompts = Prompts(config, environment, tokenizer, engine.model)
        self.types = config.task.types
        size = config.selfplay.buffer_size
        self.buffers = {t: TaskBuffer(size, environment.answer) for t in self.types}
        self.cells = {
            (r, t): i for i, (r, t) in enumerate((r, t) for r in ROLES for t in self.types)
        }
        self.previous_tasks: dict[str, list[Entry]] = {t: [] for t in self.types}
        """Valid tasks of the step before, for solving with a lag."""
        self.recent_keys: list[str] = []
        """Keys of the last RECENT valid proposals of all types, oldest first."""

    def seed(
        self,
        given: Sequence[Task] = (),
        on_round: Callable[[list[Proposed]], None] = lambda proposals: None,
    ) -> Seeding:
        """Fills the buffers before the first update, with the tasks of a seed file if given.

        `on_round` sees the proposals of each round.
        """

        def propose(number: int, types: list[str]) -> list[Proposed]:
            # Round r of seeding is step -r: its draws are nobody else's.
            proposals = self._propose(-number, types, Clock(self.engine))
            on_round(proposals)
            return proposals

        return fill_buffers(
            self.config, self.environment, self.buffers, self.prompts.fits, propose, given
        )

    # State for an exact resume

    def state(self) -> dict:
        """Returns a copy of everything that a step depends on but the weights.

        JSON values; the buffers, large ones, as iterators over theirs.
        """
        return {
            "buffers": {t: map(self._entry, b.entries()) for t, b in self.buffers.items()},
            "previous_tasks": {
                t: [self._entry(e) for e in entries] for t, entries in self.previous_tasks.items()
            },
            "recent_keys": list(self.recent_keys),
        }

    def load_state(self, state: dict) -> None:
        """Takes back what `state` returned, into a fresh object."""
        for task_type, entries in state["buffers"].items():
            for key, task, step in entries:
                self.buffers[task_type].add(key, self.environment.from_json(task), step)
        self.previous_tasks = {
            t: [Entry(key, self.environment.from_json(task), step) for key, task, step in entries]
            for t, entries in state["previous_tasks"].items()
        }
        self.recent_keys = list(state["recent_keys"])

    def _entry(self, entry: Entry) -> list:
        return [entry.key, self.environment.to_json(entry.task), entry.step]

    # One step

    def play(self, step: int) -> StepResult:
        """Plays step 1, 2, ...; the buffers gain this step's valid tasks."""
        c = self.config.selfplay
        clock = Clock(self.engine)
        proposals = self._propose(step, self.types, clock)
        self._describe(proposals)
        valid = {t: _distinct([e for e in proposals if e.type == t]) for t in self.types}
        tasks = [
            (t, e.key, e.task)
            for t, distinct in valid.items()
            for e in distinct
            if self.buffers[t].add(e.key, e.task, step)
        ]
        solved_first: Mapping[str, Sequence[Known]] = self.previous_tasks if c.solve_lag else valid
        answers = self._solve(step, self._wanted(step, valid, solved_first), clock)
        if c.solve_lag:
            self.previous_tasks = {
                t: [Entry(e.key, e.task, step) for e in valid[t]] for t in self.types
            }
        self._reward(proposals, answers, self._trained_estimates(solved_first))
        cells = self._whiten([*proposals, *answers])
        result = StepResult(
            proposals=proposals, answers=answers, tasks=tasks, cells=cells, clock=clock
        )
        told = step_metrics(self.environment, result, self.cells, self.config.reward)
        result.metrics = told | {
            "propose/distinct_recent": float(len(set(self.recent_keys))),
            "propose/recent": float(len(self.recent_keys)),
            **{f"buffer/{t}/size": float(len(b)) for t, b in self.buffers.items()},
            **self.environment.verifier_metrics(),
        }
        clock.lap("other")
        return result

    def _describe(self, proposals: Sequence[Proposed]) -> None:
        """Sets `traits` and `novelty` of the valid proposals, where the family tells.

        The buffers are those before these proposals enter.
        """
        for e in proposals:
            traits = self.environment.traits(e.task, e.references) if e.is_valid else None
            if traits is None:
                continue
            buffer = self.buffers[e.type]
            same = buffer.answers[self.environment.answer(e.task)]
            e.traits = traits
            e.novelty = Novelty(
                complexity=min(traits.complexity / COMPLEXITY_SCALE, 1.0),
                distance=traits.distance,
                answer=1 - (same / len(buffer) if len(buffer) else float("nan")),
            )

    def _wanted(
        self,
        step: int,
        valid: Mapping[str, Sequence[Known]],
        solved_first: Mapping[str, Sequence[Known]],
    ) -> list["_Solve"]:
        """Returns what is asked of the solver: estimates of valid proposals, and the B tasks."""
        c = self.config.selfplay
        wanted = []
        for t in self.types:
            for index, e in enumerate(valid[t]):
                wanted.append(
                    _Solve(e, "estimate", index, c.estimate_samples, c.estimate_temperature)
                )
            chosen = self._solver_tasks(step, t, solved_first[t])
            # With "estimate", the samples of this step's tasks are those of their estimates.
            reused = len(solved_first[t]) if c.solver_samples == "estimate" else 0
            temperature = self.config.rollout.temperature
            for index, e in list(enumerate(chosen))[reused:]:
                wanted.append(_Solve(e, "solve", index, c.solver_samples_per_task, temperature))
        return wanted

    def _reward(
        self, proposals: Sequence[Proposed], answers: Sequence[Answered], trained: set[str]
    ) -> None:
        """Sets rewards; what is held out or could not be judged has none."""
        rates = _solve_rates(answers)
        for e in proposals:
            if e.is_valid:
                e.solve_rate = rates.get(e.key)
                self._remember(e.key)
            if e.outcome in ("malformed", "invalid") or e.solve_rate is not None:
                e.reward = proposer_reward(e.verdict, e.solve_rate, self.config.reward, e.novelty)
        for e in answers:
            if e.outcome != "unjudged" and (not e.is_estimate or e.key in trained):
                e.reward = solver_reward(e.grade, self.config.reward)

    def _trained_estimates(self, solved: Mapping[str, Sequence[Known]]) -> set[str]:
        """Returns the keys of tasks whose estimate samples are solver samples as well."""
        c = self.config.selfplay
        if c.solver_samples == "fresh":
            return set()
        return {e.key for tasks in solved.values() for e in tasks[: c.solver_tasks_per_type]}

    def _solver_tasks(self, step: int, task_type: str, first: Sequence[Known]) -> list[Known]:
        """Returns B tasks: `first` in order, then others drawn from the buffer.

        Where the buffer has too few distinct tasks the draw starts over, so that every cell has
        its size.
        """
        c = self.config.selfplay
        chosen = list(first[: c.solver_tasks_per_type])
        rng = generator(self.config.run.seed, step, "solver_tasks", task_type)
        recency = c.sampling == "recency"
        exclude = {e.key for e in chosen}
        while len(chosen) < c.solver_tasks_per_type:
            missing = c.solver_tasks_per_type - len(chosen)
            drawn = self.buffers[task_type].draw(rng, missing, recency=recency, exclude=exclude)
            chosen += drawn
            if not drawn and not exclude:
                break
            exclude = set()
        return chosen

    def _propose(self, step: int, types: Sequence[str], clock: Clock) -> list[Proposed]:
        c = self.config.selfplay
        wanted, keys = [], []
        for task_type in types:
            source = self.prompts.sources[task_type]
            for index in range(c.proposals_per_type):
                rng = generator(self.config.run.seed, step, "references", task_type, index)
                drawn = draw_references(self.config, source, self.buffers, task_type, rng)
                wanted.append((task_type, drawn))
                keys.append(make_key(self.config.run.seed, step, "propose", task_type, index))
        prompts = self.prompts.propose(wanted)
        sampling = {t: self._sampling("propose", t, self.config.rollout.temperature) for t in types}
        requests = [
            Request(token_ids=prompt.token_ids, sampling=sampling[task_type], key=key)
            for prompt, (task_type, _), key in zip(prompts, wanted, keys, strict=True)
        ]

        def made(sample: Sample, text: str) -> Proposed:
            prompt = prompts[sample.request]
            return Proposed(
                type=wanted[sample.request][0],
                text=text,
                finished=sample.is_finished,
                references=prompt.references,
                prompt=prompt,
                sample=sample,
            )

        proposals = []
        judged = self._generate(requests, made, self.environment.submit_validate, clock)
        for e, verdict in judged:
            e.verdict = verdict
            proposals.append(e)
        valid = [e for e in proposals if e.is_valid]
        for e, fits in zip(valid, self.prompts.fits([e.task for e in valid]), strict=True):
            if not fits:
                e.verdict = Verdict(task=None, status="invalid", reason="prompt_too_long")
        for e in proposals:
            if e.verdict.task:
                e.key = self.environment.key(e.task)
        return proposals

    def _solve(self, step: int, wanted: list["_Solve"], clock: Clock) -> list[Answered]:
        prompts = self.prompts.solve([w.known.task for w in wanted])
        sampling = {
            (t, temperature): self._sampling("solve", t, temperature)
            for t, temperature in dict.fromkeys((w.known.task.type, w.temperature) for w in wanted)
        }
        requests = [
            Request(
                token_ids=prompt.token_ids,
                sampling=sampling[w.known.task.type, w.temperature],
                key=make_key(self.config.run.seed, step, w.phase, w.known.task.type, w.index),
                n=w.samples,
            )
            for prompt, w in zip(prompts, wanted, strict=True)
        ]

        def made(sample: Sample, text: str) -> Answered:
            w = wanted[sample.request]
            return Answered(
                task=w.known.task,
                text=text,
                finished=sample.is_finished,
                prompt=prompts[sample.request],
                sample=sample,
                key=w.known.key,
                is_estimate=w.phase == "estimate",
            )

        answers = []
        for e, grade in self._generate(requests, made, self.environment.submit_grade, clock):
            e.grade = grade
            answers.append(e)
        return answers

    def _generate(
        self,
        requests: list[Request],
        made: Callable[[Sample, str], E],
        submit: Callable[[Sequence[E]], Pending[list[J]]],
        clock: Clock,
    ) -> list[tuple[E, J]]:
        """Returns (what was `made` of a sample and its text, what became of it) for all requests.

        Finished samples are submitted in chunks while the rest is still being generated.
        """
        chunks: list[tuple[list[E], Pending[list[J]]]] = []
        waiting: list[Sample] = []

        def hand_over() -> None:
            clock.lap("rollout")
            responses = [s.token_ids for s in waiting]
            texts = response_texts(self.tokenizer, responses, self.ends, self.stops)
            batch = list(map(made, waiting, texts))
            chunks.append((batch, submit(batch)))
            waiting.clear()
            clock.lap("verify")

        expected = sum(request.n for request in requests)
        chunk = min(max(expected // VERIFY_CHUNKS, SMALLEST_CHUNK), LARGEST_CHUNK)
        clock.lap("other")
        for sample in self.engine.generate(requests):
            waiting.append(sample)
            if len(waiting) == chunk:
                hand_over()
        if waiting:
            hand_over()
        clock.lap("rollout")
        results = [pair for batch, p in chunks for pair in zip(batch, p.result(), strict=True)]
        clock.lap("verify")
        # Everything after this is in the order of the requests, whatever finished first.
        return sorted(results, key=lambda pair: (pair[0].sample.request, pair[0].sample.index))

    def _sampling(self, role: Role, task_type: str, temperature: float) -> Sampling:
        r = self.config.rollout
        return Sampling(
            temperature=temperature,
            top_p=r.top_p,
            top_k=r.top_k,
            min_p=r.min_p,
            max_new_tokens=response_tokens(self.config, self.environment, role, task_type),
            stop_token_ids=self.ends,
            stop_strings=self.stops,
        )

    def _remember(self, key: str) -> None:
        self.recent_keys.append(key)
        del self.recent_keys[:-RECENT]

    def _whiten(self, episodes: Sequence[Episode]) -> CellStatistics:
        counted = [e for e in episodes if e.reward is not None]
        advantages, cells = task_relative_advantages(
            torch.tensor([e.reward for e in counted]),
            torch.tensor([self.cells[e.role, e.type] for e in counted], dtype=torch.int64),
            len(self.cells),
            lengths=torch.tensor([len(e.sample.token_ids) for e in counted], dtype=torch.int64),
            weighting=self.config.loss.whiten,
        )
        for episode, advantage in zip(counted, advantages.tolist(), strict=True):
            episode.advantage = advantage
        return cells


@dataclass(frozen=True, slots=True)
class _Solve:
    known: Known
    phase: Literal["estimate", "solve"]
    index: int
    samples: int
    temperature: float


def _distinct(proposals: Sequence[Proposed]) -> list[Proposed]:
    """Returns the first proposal of each valid task."""
    found: dict[str, Proposed] = {}
    for e in proposals:
        if e.is_valid:
            found.setdefault(e.key, e)
    return list(found.values())


def _solve_rates(answers: Sequence[Answered]) -> dict[str, float]:
    """Returns the mean correctness of each task's judged estimate samples, by the task's key."""
    outcomes: dict[str, list[bool]] = {}
    for e in answers:
        if e.is_estimate and e.outcome != "unjudged":
            outcomes.setdefault(e.key, []).append(e.outcome == "correct")
    return {key: mean(correct) for key, correct in outcomes.items()}
