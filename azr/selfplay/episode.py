"""The records of self-play: a completion with what became of it, the seeds, and a step."""

from dataclasses import dataclass, field

from azr.advantage import CellStatistics
from azr.buffer import Entry
from azr.learner import Experience
from azr.reward import Novelty
from azr.rollout import Sample
from azr.selfplay.clock import Clock
from azr.tasks import Grade, Role, Task, Traits, Verdict

ROLES: tuple[Role, Role] = ("propose", "solve")


@dataclass(slots=True, kw_only=True)
class Episode:
    """One completion with everything that became of it."""

    role: Role
    type: str
    prompt: str
    text: str
    sample: Sample
    prompt_ids: tuple[int, ...]
    dropped_references: int = 0
    """References that its prompt had no room for."""
    task: Task | None = None
    """The task proposed, or solved."""
    key: str = ""
    """What makes that task distinct."""
    references: tuple[Task, ...] = ()
    """The tasks that a proposer was shown."""
    traits: Traits | None = None
    novelty: Novelty | None = None
    """Both of a valid proposal, where its family tells."""
    verdict: Verdict | None = None
    grade: Grade | None = None
    is_estimate: bool = False
    """Sampled to estimate a solve rate; trained on only if so configured."""
    solve_rate: float | None = None
    """Of a valid proposal."""
    reward: float | None = None
    """None where the sample enters no statistic: held-out proposals, untrained estimates, and what
    the verifier failed to judge."""
    advantage: float | None = None

    @property
    def outcome(self) -> str:
        """The verdict's status, or the grade's outcome."""
        return self.verdict.status if self.verdict else self.grade.outcome if self.grade else ""

    @property
    def reason(self) -> str:
        """The verdict's, or the grade's."""
        judged = self.verdict or self.grade
        return judged.reason if judged else ""


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


@dataclass(slots=True, kw_only=True)
class StepResult:
    """What a step of self-play brought."""

    episodes: list[Episode]
    new_tasks: dict[str, list[Entry]]
    """Tasks that entered the buffers, by type."""
    cells: CellStatistics
    clock: Clock
    """It goes on: what follows the play are phases of the step as well."""
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def tasks(self) -> list[tuple[str, str, Task]]:
        """(type, key, task) of every task that entered a buffer."""
        return _flat(self.new_tasks)

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


def _flat(tasks: dict[str, list[Entry]]) -> list[tuple[str, str, Task]]:
    return [(t, e.key, e.task) for t, entries in tasks.items() for e in entries]
