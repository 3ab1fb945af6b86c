"""Rollouts: prompts in; token ids, log-probs and finish reasons out."""

from azr.rollout.engine import Request, RolloutEngine, Sample
from azr.rollout.sampler import Sampling

__all__ = ["Request", "RolloutEngine", "Sample", "Sampling"]
