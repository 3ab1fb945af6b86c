"""The names and numbers of metrics, evaluations and suites stay as they are: others read them.

Whole commands, in which a policy written here takes the place of the sampling: it answers by each
request's key alone, so that every number is the same on every machine. A name that goes or changes
stands in CHANGELOG.md; then `PYTHONPATH=tests python -m tests.test_golden` writes the files anew.
"""

import contextlib
import functools
import io
import json
import os
import re
import tempfile
from pathlib import Path
from random import Random
from unittest import mock

import numpy as np
import pytest
from folders import make_folder
from suites import CRUX, HUMAN, PROMPT, TEST, write

from azr import evaluate
from azr.config import Config, parse_command_line
from azr.rollout import RolloutEngine, Sample
from azr.run.metrics import read_metrics
from azr.start.model import make_family_tokenizer
from azr.tasks import load_environment
from azr.train import run

pytest.importorskip("azr._sandbox", reason="the sandbox is not built here")

FOLDER = Path(__file__).with_name("golden")
SCRIPTED = ("buffer/", "completions/", "eval/", "propose/", "reward/", "solve/", "step")
"""Metrics whose numbers follow from what the policy says; of others the names alone are kept."""
SMALL = [
    "--steps", "2", "--warmup.steps", "1", "--selfplay.proposals-per-type", "6",
    "--selfplay.estimate-samples", "4", "--selfplay.solver-tasks-per-type", "8",
    "--selfplay.seed-tasks", "8", "--selfplay.seed-rounds", "2", "--eval.every", "2",
    "--eval.samples", "3", "--log.samples", "True", "--device", "cpu",
]  # fmt: skip
FAMILIES = {"prime": ["--task.prime.max-p", "13"], "program": ["--config", "cpu-program.toml"]}


def family_policy(config: Config):
    """Returns a policy that writes the family's warm-up responses, and often the right answer."""
    environment = load_environment(config.task)
    rows = environment.warmup_rows(np.random.default_rng(7), 600)
    with contextlib.closing(environment):
        known = {
            environment.solve_prompt(task, "compact"): environment.answer(task)
            for split in environment.splits()
            for task in environment.eval_tasks(split, "deduction")
        }
    tokenizer = make_family_tokenizer(environment)
    kinds: dict[str, list[str]] = {}
    for prompt, response in rows:
        kinds.setdefault(prompt[:3], []).append(response)

    def answer(prompt: str, random: Random) -> str:
        if prompt in known and random.random() < 0.6:
            text = known[prompt] or str(pow(int(prompt.split()[3]), -1, int(prompt.split()[2])))
            return text.replace(",", " ,").replace("[", "[ ").replace("]", " ]")
        return random.choice([*kinds[prompt[:3]], ""] if random.random() < 0.9 else [""])

    return tokenizer, answer


def scripted(tokenizer, answer):
    """Returns a `RolloutEngine.generate` of a policy; the samples come out in reverse."""

    def generate(engine, requests):
        for number, request in reversed(list(enumerate(requests))):
            prompt = tokenizer.decode(list(request.token_ids))
            for index in reversed(range(request.n)):
                random = Random(f"{request.key} {index} {request.sampling.temperature}")
                is_cut = random.random() < 0.05
                ids = tokenizer(answer(prompt, random))["input_ids"]
                ids = ids[: request.sampling.max_new_tokens - 1] or [tokenizer.eos_token_id]
                ids = ids if is_cut else [*ids, tokenizer.eos_token_id]
                engine.generated_tokens += len(ids)
                yield Sample(
                    request=number,
                    index=index,
                    token_ids=tuple(ids),
                    logprobs=np.full(len(ids), -1.0, np.float32),
                    finish_reason="length" if is_cut else "stop",
                )

    return mock.patch.object(RolloutEngine, "generate", generate)


def rounded(value):
    """Returns JSON values with numbers of six digits, as far as all machines agree."""
    if isinstance(value, dict):
        return {name: rounded(v) for name, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def evaluated(*arguments) -> str:
    """Returns what the command prints, paths and what follows from them left out."""
    said = io.StringIO()
    wide = mock.patch.dict(os.environ, COLUMNS="120")
    with wide, contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
        assert evaluate.main([str(a) for a in arguments]) == 0
    named = re.compile(r"^(model|baseline|result|samples) .*$", re.MULTILINE)
    return "\n".join(line.rstrip() for line in named.sub(r"\1", said.getvalue()).splitlines())


def family_files(family: str, folder: Path) -> dict[str, str]:
    config = parse_command_line([*FAMILIES[family], *SMALL, "--run.root", str(folder)]).config
    with (
        mock.patch("azr.tasks.program.environment.EVAL_TASKS", 12),
        scripted(*family_policy(config)),
    ):
        with contextlib.redirect_stdout(io.StringIO()):
            run_dir = run(config).run_dir
        table = evaluated(run_dir, "--out", folder / "result.json")
    rows = read_metrics(run_dir / "metrics.jsonl")
    metrics = [
        {name: value if name.startswith(SCRIPTED) else "" for name, value in row.items()}
        for row in rows
    ]
    result = json.loads((folder / "result.json").read_text())
    result["model"] = result["baseline"]["model"] = ""
    saved = json.loads(next(run_dir.glob("checkpoints/*/state.json")).read_text())
    log = {name: saved["log"][name] for name in ("before", "latest", "proposals")}
    return {
        f"{family}_metrics.json": as_text(metrics),
        f"{family}_evaluation.json": as_text(result),
        f"{family}_evaluation.txt": table + "\n",
        f"{family}_state.json": as_text(log),
    }


def as_text(value) -> str:
    return json.dumps(rounded(value), indent=1) + "\n"


def suite_answer(prompt: str, random: Random) -> str:
    """Returns a right continuation, a wrong one, or none of the form."""
    if random.random() < 0.5:
        return random.choice(
            [" 0)\n", "\n    return None\n", " no idea", "\n    return gi_frame\n"]
        )
    if "def triple" in prompt:
        return "\n    return n + n + n\n"
    if "def double" in prompt:
        return "\n    return n + n\n"
    row = next((row for row in CRUX if row["code"] in prompt), {"input": "1", "output": "1"})
    return f"{row['input']})\n" if prompt.endswith("f(") else f" {row['output']}\n"


def suite_files(layout: str, folder: Path) -> dict[str, str]:
    texts = ["def f(x): return [1, 2]\n", "assert f([3]) ==", "0123456789", PROMPT, TEST]
    model = make_folder(folder / "hf", "qwen2", texts, template=False)
    rows = CRUX + [{"code": "def f(x): return x", "input": "1 /", "output": "1"}]
    suite = write(folder / f"{layout}.jsonl", rows if layout == "cruxeval" else HUMAN)
    from transformers import AutoTokenizer

    with scripted(AutoTokenizer.from_pretrained(model), suite_answer):
        table = evaluated(
            model, "--suite", suite, "--out", folder / "result.json", "--eval.samples", 10,
            "--device", "cpu",
        )  # fmt: skip
    result = json.loads((folder / "result.json").read_text())
    result["model"] = result["weights"] = ""
    lines = (folder / "result.samples.jsonl").read_text().splitlines()[1:]
    return {
        f"{layout}_result.json": as_text(result),
        f"{layout}_result.txt": table + "\n",
        f"{layout}_samples.json": as_text(sorted(map(json.loads, lines), key=json.dumps)),
    }


MADE = {
    **{family: functools.partial(family_files, family) for family in FAMILIES},
    **{layout: functools.partial(suite_files, layout) for layout in ("cruxeval", "humaneval")},
}


@pytest.mark.parametrize("name", MADE)
def test_names_and_numbers_are_those_that_are_kept(name, tmp_path):
    for file, text in MADE[name](tmp_path).items():
        assert text == (FOLDER / file).read_text(), f"{file}: see the beginning of this test"


if __name__ == "__main__":
    for make in MADE.values():
        with tempfile.TemporaryDirectory() as folder:
            for file, text in make(Path(folder)).items():
                (FOLDER / file).write_text(text)
