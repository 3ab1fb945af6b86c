"""Task families: what is proposed, how it is checked, and how an answer is graded."""

from azr.tasks.checked import check_family
from azr.tasks.environment import Environment, Role, Vocabulary, load_environment
from azr.tasks.family import TaskFamily
from azr.tasks.records import Answer, Grade, Proposal, References, Task, Traits, Verdict

FamilyDefaults = Environment  # an older name

__all__ = [
    "Answer",
    "Environment",
    "FamilyDefaults",
    "Grade",
    "Proposal",
    "References",
    "Role",
    "Task",
    "TaskFamily",
    "Traits",
    "Verdict",
    "Vocabulary",
    "check_family",
    "load_environment",
]
