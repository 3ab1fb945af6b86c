"""The task family `prime`: inversion modulo a prime, verified by arithmetic."""

from azr.tasks.prime.environment import PrimeEnvironment, PrimeProblem

__all__ = ["PrimeEnvironment", "PrimeProblem"]
