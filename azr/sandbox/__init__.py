"""Runs untrusted Python, model-written programs `f(*args)`, fast and with nothing let out.

    from azr.sandbox import Sandbox

    with Sandbox() as sandbox:
        sandbox.run("def f(x, y=1): return [x] * y", "'a', y=2").value    # ['a', 'a']

Loads no torch, numpy or numba. What is protected and what is not: `docs/sandbox.md`; how it works:
`csrc/sandbox.h`.
"""

from azr.sandbox.client import Sandbox
from azr.sandbox.records import (
    STATUSES,
    Job,
    Label,
    Limits,
    Result,
    SandboxError,
    Status,
    Value,
    canonical_text,
)

__all__ = [
    "STATUSES",
    "Job",
    "Label",
    "Limits",
    "Result",
    "Sandbox",
    "SandboxError",
    "Status",
    "Value",
    "canonical_text",
]
