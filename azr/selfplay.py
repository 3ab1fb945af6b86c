"""One step of Absolute Zero self-play: propose, validate, estimate, solve, whiten.

The same model plays both roles; only the prompt differs. Every completion goes to the rollout
engine in one of two large batches, first all proposals, then all solutions, and is verified while
the rest is still being generated.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal

import torch
from transformers import PreTrainedTokenizerBase

from azr.advantage import CellStatistics, task_relative_advantages
from azr.buffer import Entry, TaskBuffer
from azr.config import Config, ConfigError
from azr.keys import generator, make_key
from azr.learner import Experience
from azr.log.run_db import SampleRow
from azr.reward import proposer_reward, solver_reward
from azr.rollout import Request, RolloutEngine, Sample, Sampling
from azr.tasks import Answer, Environment, Grade, Proposal, Task, Verdict

Role = Literal["propose", "solve"]
ROLES: tuple[Role, Role] = ("propose", "solve")

VERIFY_CHUNK = 256
"""Finished samples that are handed to the environment together."""


@dataclass(slots=True, kw_only=True)
class Episode:
    """One completion with everything that became of it."""

    role: Role
    type: str
    prompt: str
    text: str
    sample: Sample
    prompt_ids: tuple[int, ...]
    task: Task | None = None
    """The task proposed, or solved."""
    key: str = ""
    """What makes that task distinct."""
    verdict: Verdict | None = None
    grade: Grade | None = None
    is_estimate: bool = False
    """Sampled to estimate a solve rate; trained on only if so configured."""
    solve_rate: float | None = None
    """Of a valid proposal."""
    reward: float | None = None
    """None where the sample enters no statistic: held-out proposals, untrained estimates."""
    advantage: float | None = None

    def row(self) -> SampleRow:
        """Returns what run.db keeps of it."""
        judged = self.verdict or self.grade
        return SampleRow(
            role=self.role,
            type=self.type,
            prompt=self.prompt,
            task_key=self.key or None,
            text=self.text,
            outcome=judged.status if self.verdict else judged.outcome,
            reason=judged.reason,
            solve_rate=self.solve_rate,
            reward=self.reward,
            advantage=self.advantage,
            tokens=len(self.sample.token_ids),
            finish=self.sample.finish_reason,
            is_estimate=self.is_estimate,
        )


@dataclass(slots=True, kw_only=True)
class Seconds:
    """Where the time of a step's phases went."""

    rollout: float = 0.0
    verify: float = 0.0


@dataclass(slots=True, kw_only=True)
class Seeding:
    """What filled the buffers before the first update."""

    episodes: list[Episode]
    new_tasks: dict[str, list[Entry]]
    added: dict[str, int]
    """By type, the tasks that the environment had to add."""

    @property
    def tasks(self) -> list[tuple[str, str, Task]]:
        """(type, key, task) of every seed."""
        return _flat(self.new_tasks)

    @property
    def rows(self) -> list[SampleRow]:
        """The seeding proposals as run.db keeps them."""
        return [e.row() for e in self.episodes]

    @property
    def metrics(self) -> dict[str, float]:
        """The start model's validity, over all seeding proposals."""
        return {
            f"propose/{t}/{name}": value
            for t in self.new_tasks
            for name, value in _proposal_rates([e for e in self.episodes if e.type == t]).items()
        }


@dataclass(slots=True, kw_only=True)
class StepResult:
    """What a step of self-play brought."""

    episodes: list[Episode]
    new_tasks: dict[str, list[Entry]]
    """Tasks that entered the buffers, by type."""
    cells: CellStatistics
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: Seconds = field(default_factory=Seconds)

    @property
    def tasks(self) -> list[tuple[str, str, Task]]:
        """(type, key, task) of every task that entered a buffer."""
        return _flat(self.new_tasks)

    @property
    def rows(self) -> list[SampleRow]:
        """The samples as run.db keeps them."""
        return [e.row() for e in self.episodes]

    def experience(self, roles: str) -> list[Experience]:
        """Returns the samples to train on: those with an advantage, of the roles asked for."""
        wanted = {"both": ROLES, "solver": ("solve",), "proposer": ("propose",)}[roles]
        return [
            Experience(
                prompt_ids=e.prompt_ids,
                response_ids=e.sample.token_ids,
                rollout_logprobs=e.sample.logprobs,
                advantage=e.advantage,
            )
            for e in self.episodes
            if e.advantage is not None and e.role in wanted
        ]


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
        self.types = config.task.types
        self.buffers = {t: TaskBuffer(config.selfplay.buffer_size) for t in self.types}
        self.cells = {
            (r, t): i for i, (r, t) in enumerate((r, t) for r in ROLES for t in self.types)
        }
        self.previous_tasks: dict[str, list[Entry]] = {t: [] for t in self.types}
        """Valid tasks of the step before, for solving with a lag."""
        self.recent_keys: list[str] = []
        """Keys of the last RECENT valid proposals of all types, oldest first."""

    # Seeding

    def seed(self) -> Seeding:
        """Fills the buffers before the first update.

        With `seed_source = "model"` the model proposes, without any update, for at most
        `seed_rounds` rounds; what is still missing then is drawn by the environment.
        """
        c = self.config.selfplay
        seeding = Seeding(
            episodes=[],
            new_tasks={t: [] for t in self.types},
            added=dict.fromkeys(self.types, 0),
        )

        def add(task_type: str, key: str, task: Task) -> bool:
            buffer = self.buffers[task_type]
            is_new = len(buffer) < c.seed_tasks and buffer.add(key, task, 0)
            if is_new:
                seeding.new_tasks[task_type].append(Entry(key, task, 0))
            return is_new

        rounds = c.seed_rounds if c.seed_source == "model" else 0
        for number in range(1, rounds + 1):
            short = [t for t in self.types if len(self.buffers[t]) < c.seed_tasks]
            if not short:
                break
            # Round r of seeding is step -r: its draws are nobody else's.
            proposals = self._propose(-number, short, Seconds())
            for task_type, entries in _valid_tasks(proposals, 0).items():
                for entry in entries:
                    add(task_type, entry.key, entry.task)
            seeding.episodes += proposals
        if any(len(self.buffers[t]) < c.seed_tasks for t in self.types):
            rng = generator(self.config.run.seed, 0, "seed")
            drawn = self.environment.seed_tasks(rng, c.seed_tasks)
            for task_type in self.types:
                for task in drawn[task_type]:
                    key = self.environment.key(task)
                    seeding.added[task_type] += add(task_type, key, task)
        for task_type, buffer in self.buffers.items():
            if not len(buffer):
                raise ConfigError(f"--env: no seed task of type {task_type!r} could be found")
        return seeding

    # One step

    def play(self, step: int) -> StepResult:
        """Plays step 1, 2, ...; the buffers gain this step's valid tasks."""
        c = self.config.selfplay
        seconds = Seconds()
        proposals = self._propose(step, self.types, seconds)
        valid = _valid_tasks(proposals, step)

        new_tasks: dict[str, list[Entry]] = {t: [] for t in self.types}
        for task_type, entries in valid.items():
            for e in entries:
                if self.buffers[task_type].add(e.key, e.task, step):
                    new_tasks[task_type].append(e)

        temperature = self.config.rollout.temperature
        solved_first = valid if c.solve_lag == 0 else self.previous_tasks
        requests: list[_Solve] = []
        for task_type in self.types:
            for index, entry in enumerate(valid[task_type]):
                requests.append(
                    _Solve(entry, "estimate", index, c.estimate_samples, c.estimate_temperature)
                )
            chosen = self._solver_tasks(step, task_type, solved_first[task_type])
            # With "estimate", the samples of this step's tasks are those of their estimates.
            reused = len(solved_first[task_type]) if c.solver_samples == "estimate" else 0
            for index, entry in list(enumerate(chosen))[reused:]:
                requests.append(
                    _Solve(entry, "solve", index, c.solver_samples_per_task, temperature)
                )
        solutions = self._solve(step, requests, seconds)
        self.previous_tasks = valid

        rates = _solve_rates(solutions)
        for episode in proposals:
            if episode.verdict.status == "held_out":
                continue
            if episode.verdict.status == "valid":
                episode.solve_rate = rates[episode.key]
                self._remember(episode.key)
            episode.reward = proposer_reward(
                episode.verdict, episode.solve_rate, self.config.reward
            )
        trained = self._trained_estimates(solved_first)
        for episode in solutions:
            if not episode.is_estimate or episode.key in trained:
                episode.reward = solver_reward(episode.grade, self.config.reward)

        episodes = proposals + solutions
        cells = self._whiten(episodes)
        result = StepResult(episodes=episodes, new_tasks=new_tasks, cells=cells, seconds=seconds)
        result.metrics = self._metrics(result, proposals, solutions, valid)
        return result

    def _trained_estimates(self, solved: dict[str, list[Entry]]) -> set[str]:
        """Returns the keys of tasks whose estimate samples are solver samples as well."""
        c = self.config.selfplay
        if c.solver_samples == "fresh":
            return set()
        return {e.key for entries in solved.values() for e in entries[: c.solver_tasks_per_type]}

    def _solver_tasks(self, step: int, task_type: str, first: Sequence[Entry]) -> list[Entry]:
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

    def _propose(self, step: int, types: Sequence[str], seconds: Seconds) -> list[Episode]:
        c, task = self.config.selfplay, self.config.task
        requests, prompts, shown = [], [], []
        for task_type in types:
            sampling = self._sampling("propose", task_type, self.config.rollout.temperature)
            for index in range(c.proposals_per_type):
                rng = generator(self.config.run.seed, step, "references", task_type, index)
                drawn = self.buffers[task_type].draw(
                    rng, task.references, recency=c.sampling == "recency"
                )
                references = tuple(e.task for e in drawn)
                prompt = self.environment.propose_prompt(task_type, references, task.style)
                key = make_key(self.config.run.seed, step, "propose", task_type, index)
                prompts.append(prompt)
                shown.append((task_type, references))
                requests.append(make_request(self.tokenizer, prompt, sampling, key, 1))

        def submit(samples: list[Sample]) -> Future[list[Verdict]]:
            return self.environment.submit_validate(
                [
                    Proposal(
                        type=shown[s.request][0],
                        text=self._text(s),
                        finished=s.finish_reason == "stop",
                        references=shown[s.request][1],
                    )
                    for s in samples
                ]
            )

        episodes = []
        for sample, verdict in self._generate(requests, submit, seconds):
            episodes.append(
                Episode(
                    role="propose",
                    type=shown[sample.request][0],
                    prompt=prompts[sample.request],
                    text=self._text(sample),
                    sample=sample,
                    prompt_ids=requests[sample.request].token_ids,
                    task=verdict.task,
                    key=self.environment.key(verdict.task) if verdict.task else "",
                    verdict=verdict,
                )
            )
        return episodes

    def _solve(self, step: int, wanted: list["_Solve"], seconds: Seconds) -> list[Episode]:
        requests, prompts = [], []
        for w in wanted:
            prompt = self.environment.solve_prompt(w.entry.task, self.config.task.style)
            key = make_key(self.config.run.seed, step, w.phase, w.entry.task.type, w.index)
            sampling = self._sampling("solve", w.entry.task.type, w.temperature)
            prompts.append(prompt)
            requests.append(make_request(self.tokenizer, prompt, sampling, key, w.samples))

        def submit(samples: list[Sample]) -> Future[list[Grade]]:
            return self.environment.submit_grade(
                [
                    Answer(
                        task=wanted[s.request].entry.task,
                        text=self._text(s),
                        finished=s.finish_reason == "stop",
                    )
                    for s in samples
                ]
            )

        episodes = []
        for sample, grade in self._generate(requests, submit, seconds):
            w = wanted[sample.request]
            episodes.append(
                Episode(
                    role="solve",
                    type=w.entry.task.type,
                    prompt=prompts[sample.request],
                    text=self._text(sample),
                    sample=sample,
                    prompt_ids=requests[sample.request].token_ids,
                    task=w.entry.task,
                    key=w.entry.key,
                    grade=grade,
                    is_estimate=w.phase == "estimate",
                )
            )
        return episodes

    def _generate(
        self,
        requests: list[Request],
        submit: Callable[[list[Sample]], Future[list]],
        seconds: Seconds,
    ) -> Iterator[tuple[Sample, object]]:
        """Yields (sample, what became of it) in the order of the requests.

        Finished samples are submitted in chunks while the rest is still being generated.
        """
        start = perf_counter()
        chunks: list[tuple[list[Sample], Future[list]]] = []
        waiting: list[Sample] = []
        verify = 0.0
        for sample in self.engine.generate(requests):
            waiting.append(sample)
            if len(waiting) == VERIFY_CHUNK:
                before = perf_counter()
                chunks.append((waiting, submit(waiting)))
                verify += perf_counter() - before
                waiting = []
        rollout_end = perf_counter()
        if waiting:
            chunks.append((waiting, submit(waiting)))
        results = [
            (sample, outcome)
            for samples, future in chunks
            for sample, outcome in zip(samples, future.result(), strict=True)
        ]
        seconds.rollout += rollout_end - start - verify
        seconds.verify += perf_counter() - rollout_end + verify
        # Everything after this is in the order of the requests, whatever finished first.
        return iter(sorted(results, key=lambda r: (r[0].request, r[0].index)))

    def _sampling(self, role: Role, task_type: str, temperature: float) -> Sampling:
        r = self.config.rollout
        return Sampling(
            temperature=temperature,
            top_p=r.top_p,
            top_k=r.top_k,
            min_p=r.min_p,
            max_new_tokens=response_tokens(self.config, self.environment, role, task_type),
            stop_token_ids=(self.tokenizer.eos_token_id,),
        )

    def _text(self, sample: Sample) -> str:
        return response_text(self.tokenizer, sample)

    def _remember(self, key: str) -> None:
        self.recent_keys.append(key)
        del self.recent_keys[:-RECENT]

    def _whiten(self, episodes: list[Episode]) -> CellStatistics:
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

    def _metrics(
        self,
        result: StepResult,
        proposals: list[Episode],
        solutions: list[Episode],
        valid: dict[str, list[Entry]],
    ) -> dict[str, float]:
        """Returns the step's metrics; docs/metrics.md explains each."""
        m: dict[str, float] = {}
        rewards = [e.reward for e in result.episodes if e.reward is not None]
        m["reward/mean"] = _mean(rewards)
        m["reward/frac_zero_std"] = _mean(result.cells.is_flat.float().tolist())
        for (role, task_type), cell in self.cells.items():
            m[f"reward/{role}/{task_type}/mean"] = float(result.cells.mean[cell])
            m[f"reward/{role}/{task_type}/std"] = float(result.cells.std[cell])
        for task_type in self.types:
            mine = [e for e in proposals if e.type == task_type]
            good = [e for e in mine if e.verdict.status == "valid"]
            name = f"propose/{task_type}"
            m |= {f"{name}/{k}": v for k, v in _proposal_rates(mine).items()}
            m[f"{name}/learnability"] = _mean([e.reward for e in good])
            m[f"{name}/learnable_frac"] = _mean([0 < e.solve_rate < 1 for e in good])
            m[f"{name}/unique_rate"] = len(valid[task_type]) / len(good) if good else float("nan")
            answers = [e for e in solutions if e.type == task_type]
            name = f"solve/{task_type}"
            m[f"{name}/accuracy"] = _mean([e.grade.outcome == "correct" for e in answers])
            m[f"{name}/format_rate"] = _mean([e.grade.outcome != "malformed" for e in answers])
            reasons = Counter(e.grade.reason for e in answers if e.grade.reason)
            m |= {f"{name}/failed/{r}": float(n) for r, n in sorted(reasons.items())}
            m[f"buffer/{task_type}/size"] = float(len(self.buffers[task_type]))
            m[f"buffer/{task_type}/new"] = float(len(result.new_tasks[task_type]))
        lengths = [len(e.sample.token_ids) for e in result.episodes]
        m["completions/mean_length"] = _mean(lengths)
        m["completions/clipped_ratio"] = _mean(
            [e.sample.finish_reason == "length" for e in result.episodes]
        )
        m["completions/samples"] = float(len(result.episodes))
        m["propose/distinct_recent"] = float(len(set(self.recent_keys)))
        m["propose/recent"] = float(len(self.recent_keys))
        return m


RECENT = 900
"""Valid proposals over which distinct ones are counted."""


@dataclass(frozen=True, slots=True)
class _Solve:
    entry: Entry
    phase: Literal["estimate", "solve"]
    index: int
    samples: int
    temperature: float


def response_tokens(config: Config, environment: Environment, role: Role, task_type: str) -> int:
    """Returns the most tokens a response may have, its end-of-text token included."""
    return config.rollout.max_new_tokens or environment.max_response_words(role, task_type) + 1


def make_request(
    tokenizer: PreTrainedTokenizerBase, prompt: str, sampling: Sampling, key: int, n: int
) -> Request:
    """Returns the rollout request for a prompt given as text."""
    ids = tuple(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    return Request(token_ids=ids, sampling=sampling, key=key, n=n)


def response_text(tokenizer: PreTrainedTokenizerBase, sample: Sample) -> str:
    """Returns a completion's text without its end-of-text token.

    Any other special token stays visible in the text, so that no parser takes it for nothing.
    """
    ids = list(sample.token_ids)
    if ids and ids[-1] == tokenizer.eos_token_id:
        ids.pop()
    return tokenizer.decode(ids, skip_special_tokens=False)


def _proposal_rates(proposals: list[Episode]) -> dict[str, float]:
    """Returns the rates of one type's proposals; held-out ones are counted apart."""
    counted = [e for e in proposals if e.verdict.status != "held_out"]
    rates = {
        "valid_rate": _mean([e.verdict.status == "valid" for e in counted]),
        "format_rate": _mean([e.verdict.status != "malformed" for e in counted]),
        "held_out": float(len(proposals) - len(counted)),
    }
    reasons = Counter(e.verdict.reason for e in counted if e.verdict.reason)
    return rates | {f"rejected/{r}": float(n) for r, n in sorted(reasons.items())}


def _flat(tasks: dict[str, list[Entry]]) -> list[tuple[str, str, Task]]:
    return [(t, e.key, e.task) for t, entries in tasks.items() for e in entries]


def _valid_tasks(proposals: list[Episode], step: int) -> dict[str, list[Entry]]:
    """Returns the distinct valid tasks by type, in the order of the proposals."""
    found: dict[str, dict[str, Entry]] = {e.type: {} for e in proposals}
    for e in proposals:
        if e.verdict.status == "valid":
            found[e.type].setdefault(e.key, Entry(e.key, e.task, step))
    return {task_type: list(entries.values()) for task_type, entries in found.items()}


def _solve_rates(solutions: list[Episode]) -> dict[str, float]:
    """Returns the mean correctness of each task's estimate samples, by the task's key."""
    outcomes: dict[str, list[bool]] = {}
    for e in solutions:
        if e.is_estimate:
            outcomes.setdefault(e.key, []).append(e.grade.outcome == "correct")
    return {key: _mean(correct) for key, correct in outcomes.items()}


def _mean(values: Sequence[float]) -> float:
    return float(sum(values) / len(values)) if len(values) else float("nan")
