"""Suites: other people's tasks in JSONL files, asked, graded in the sandbox, and kept."""
