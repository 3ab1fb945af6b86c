"""The records of self-play: a completion with what became of it, the seeds, and a step."""

from dataclasses import dataclass, field
from typing import ClassVar

from azr.advantage import CellStatistics
from azr.learner import Experience
from azr.reward import Novelty
from azr.rollout import Sample
from azr.selfplay.clock import Clock
from azr.selfplay.prompts import Prompt
from azr.tasks import Answer, Grade, Proposal, Role, Task, Traits, Verdict

ROLES: tuple[Role, Role] = ("propose", "solve")


@dataclass(slots=True, kw_only=True, eq=False)
class Proposed(Proposal):
    """A proposal with everything that became of it."""

    role: ClassVar[Role] = "propose"
    is_estimate: ClassVar[bool] = False
    prompt: Prompt
    sample: Sample
    verdict: Verdict = Verdict(task=None, status="unjudged")
    """Until there is one, as where the verifier has failed."""
    key: str = ""
    """What makes its task distinct, where it has become one."""
    traits: Traits | None = None
    novelty: Novelty | None = None
    """Both of a valid proposal, where its family tells."""
    solve_rate: float | None = None
    """Of a valid proposal."""
    reward: float | None = None
    """None where it enters no statistic: held out, or not judged."""
    advantage: float | None = None

    @property
    def task(self) -> Task:
        """The task that a valid or held-out proposal has become."""
        assert self.verdict.task is not None
        return self.verdict.task

    @property
    def is_valid(self) -> bool:
        """Whether it has become a task to train on."""
        return self.verdict.status == "valid"

    @property
    def outcome(self) -> str:
        """The verdict's status."""
        return self.verdict.status

    @property
    def reason(self) -> str:
        """The verdict's."""
        return self.verdict.reason


@dataclass(slots=True, kw_only=True, eq=False)
class Answered(Answer):
    """An answer with everything that became of it."""

    role: ClassVar[Role] = "solve"
    solve_rate: ClassVar[None] = None
    prompt: Prompt
    sample: Sample
    grade: Grade = Grade(outcome="unjudged")
    """Until there is one, as where the verifier has failed."""
    key: str
    """What makes its task distinct."""
    is_estimate: bool
    """Sampled to estimate a solve rate; trained on only if so configured."""
    reward: float | None = None
    """None where it enters no statistic: an estimate that is not trained on, or not judged."""
    advantage: float | None = None

    @property
    def type(self) -> str:
        """The task's."""
        return self.task.type

    @property
    def outcome(self) -> str:
        """The grade's."""
        return self.grade.outcome

    @property
    def reason(self) -> str:
        """The grade's."""
        return self.grade.reason


Episode = Proposed | Answered
"""One completion with everything that became of it."""


NewTasks = list[tuple[str, str, Task]]
"""(type, key, task) of what entered the buffers, type by type."""


@dataclass(slots=True, kw_only=True)
class Seeding:
    """What filled the buffers before the first update."""

    episodes: list[Proposed]
    tasks: NewTasks
    added: dict[str, int]
    """By type, the tasks that the environment had to add."""


@dataclass(slots=True, kw_only=True)
class StepResult:
    """What a step of self-play brought."""

    proposals: list[Proposed]
    answers: list[Answered]
    tasks: NewTasks
    cells: CellStatistics
    clock: Clock
    """It goes on: what follows the play are phases of the step as well."""
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def episodes(self) -> list[Episode]:
        """The proposals, then the answers."""
        return [*self.proposals, *self.answers]

    def experience(self, roles: str) -> list[Experience]:
        """Returns the samples to train on: those with an advantage, of the roles asked for."""
        wanted = {"both": ROLES, "solver": ("solve",), "proposer": ("propose",)}[roles]
        return [
            Experience(
                prompt_ids=e.prompt.token_ids,
                response_ids=e.sample.token_ids,
                rollout_logprobs=e.sample.logprobs,
                advantage=e.advantage,
            )
            for e in self.episodes
            if e.advantage is not None and e.role in wanted
        ]
