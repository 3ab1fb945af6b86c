"""Evaluation: a family's own tasks, during training and after it, and suites in JSONL files."""

from azr.evaluation.family import GradedTask, accuracies, evaluate, grade_tasks

__all__ = ["GradedTask", "accuracies", "evaluate", "grade_tasks"]
