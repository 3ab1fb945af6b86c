"""Rollouts: prompts in; token ids, log-probs and finish reasons out."""

from azr.rollout.engine import RolloutEngine
from azr.rollout.request import Progress, Request, RequestError, Sample
from azr.rollout.sampler import Sampling

__all__ = ["Progress", "Request", "RequestError", "RolloutEngine", "Sample", "Sampling"]
