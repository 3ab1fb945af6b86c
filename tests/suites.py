"""Two tiny suites, one in each layout, and what writes files and answers of theirs."""

import json

CRUX = [
    {"id": name, "code": code, "input": given, "output": output}
    for name, code, given, output in (
        ("a", "def f(xs):\n    return sorted(xs)", "[3, 1, 2]", "[1, 2, 3]"),
        ("b", "def f(s, n):\n    return s * n", "'xy', 2", "'xyxy'"),
        ("c", "def f(d):\n    return len(d)", "{'k': {}}", "1"),
    )
]

PROMPT = '''from typing import List


def helper(n):
    return n + 1


def triple(n: int) -> int:
    """ Three times n """
'''
TEST = """
def check(candidate):
    import math
    assert candidate(5) == 15
    assert abs(candidate(2) - 6) < 1e-6
    assert math.fabs(candidate(1) - 3) < 1e-6
    assert helper(1) == 2
"""
DOUBLE = 'def double(n):\n    """ Twice n """\n'
HUMAN = [
    {"task_id": "T/0", "prompt": PROMPT, "entry_point": "triple", "test": TEST},
    {"task_id": "T/1", "prompt": DOUBLE, "entry_point": "double",
     "canonical_solution": "    return n + n\n",
     "test": "import random\n\ndef check(candidate):\n    n = random.Random(1).randint(0, 9)\n"
             "    assert candidate(n) == 2 * n\n"},
]  # fmt: skip


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def wrapped(body, tag):
    return f"thinking </think> <answer>\n```{tag}\n{body}\n```\n</answer>"
