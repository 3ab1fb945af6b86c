"""Evaluation: a family's own tasks, during training and after it, and suites in JSONL files."""

from azr.evaluation.family import GradedTask, evaluate, grade_tasks, scores

__all__ = ["GradedTask", "evaluate", "grade_tasks", "scores"]
