"""Self-play: one step's propose, estimate and solve phases, their records and their metrics."""

from azr.selfplay.episode import ROLES, Answered, Episode, Proposed, Seeding, StepResult
from azr.selfplay.metrics import seeding_metrics
from azr.selfplay.play import SelfPlay
from azr.selfplay.prompts import prompt_limit
from azr.selfplay.seeding import read_seeds, write_seeds

__all__ = [
    "ROLES",
    "Answered",
    "Episode",
    "Proposed",
    "Seeding",
    "SelfPlay",
    "StepResult",
    "prompt_limit",
    "read_seeds",
    "seeding_metrics",
    "write_seeds",
]
