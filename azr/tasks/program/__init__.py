"""The task family `program`: Python programs, verified by the sandbox."""

from azr.tasks.program.environment import ProgramEnvironment
from azr.tasks.program.records import ProgramProblem

__all__ = ["ProgramEnvironment", "ProgramProblem"]
