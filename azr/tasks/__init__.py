"""Task families: what is proposed, how it is checked, and how an answer is graded."""

from azr.tasks.environment import Environment, Vocabulary, load_environment
from azr.tasks.family import TaskFamily
from azr.tasks.records import Answer, Grade, Proposal, Task, Verdict

__all__ = [
    "Answer",
    "Environment",
    "Grade",
    "Proposal",
    "Task",
    "TaskFamily",
    "Verdict",
    "Vocabulary",
    "load_environment",
]
