"""The sandbox as the reward function of any trainer: answers in, rewards out.

    python examples/sandbox_reward.py

Takes completions that contain a Python function `f`, runs each on test inputs in `azr.sandbox`, and
pays the share of inputs on which it returns what is expected. Expected outputs stay outside: a
program cannot read what it is to return. No torch is loaded; the signature is the one that several
trainers call (a list of completions, one list per column of the data set, a list of floats back).
"""

import re
from collections.abc import Sequence

from azr.sandbox import Job, Sandbox

FENCE = re.compile(r"```(?:python)?\n(.*?)```", re.DOTALL)


class SandboxReward:
    """A callable reward; open it once, for starting the sandbox takes longer than using it."""

    def __init__(self, sandbox: Sandbox):
        self.sandbox = sandbox

    def __call__(
        self,
        completions: Sequence[str],
        inputs: Sequence[Sequence[str]],
        outputs: Sequence[Sequence[object]],
    ) -> list[float | None]:
        """Returns a reward from 0 to 1 per completion; None where the sandbox itself failed.

        inputs: argument texts, such as "[3, 1], reverse=True". outputs: the values expected.
        """
        jobs = [
            Job(self.code(text), texts) for text, texts in zip(completions, inputs, strict=True)
        ]
        results = iter(self.sandbox.run_batch(jobs))
        return [self.share([next(results) for _ in expected], expected) for expected in outputs]

    @staticmethod
    def code(completion: str) -> str:
        """The last fenced block of a completion, or all of it."""
        blocks = FENCE.findall(completion)
        return blocks[-1] if blocks else completion

    @staticmethod
    def share(results: list, expected: Sequence[object]) -> float | None:
        if any(result.status == "sandbox_failure" for result in results):
            return None  # says nothing about the program: leave the sample out
        # A plain value is compared with a plain value: no method of the program's is called.
        right = sum(r.ok and r.value == e for r, e in zip(results, expected, strict=True))
        return right / len(expected)


COMPLETIONS = {
    "right": "```python\ndef f(items, **how):\n    return sorted(items, **how)\n```",
    "half right": "```python\ndef f(items, reverse=False):\n    return sorted(items)\n```",
    "endless": "```python\ndef f(items, reverse=False):\n    while True: pass\n```",
    "equal to all": """```python
class Any:
    def __eq__(self, other): return True
def f(items, reverse=False): return Any()
```""",
    "breaks out": "```python\nimport os\ndef f(items, reverse=False): os.abort()\n```",
    "no program": "I would sort the list.",
}


def main() -> None:
    inputs = ["[3, 1, 2]", "[3, 1, 2], reverse=True"]
    outputs = [[1, 2, 3], [3, 2, 1]]
    count = len(COMPLETIONS)
    with Sandbox() as sandbox:
        reward = SandboxReward(sandbox)
        rewards = reward(list(COMPLETIONS.values()), [inputs] * count, [outputs] * count)
    for name, value in zip(COMPLETIONS, rewards, strict=True):
        print(f"{name:13} {value:.2f}")


if __name__ == "__main__":
    main()
