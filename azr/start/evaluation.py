"""An evaluation as a whole: a model asked and graded, its table printed, its result written."""

from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from azr.accuracy import as_metrics
from azr.config import Config
from azr.errors import RunError, naming_model
from azr.evaluation import family
from azr.evaluation.cells import make_cells
from azr.evaluation.family import GradedTask
from azr.evaluation.subject import Subject
from azr.evaluation.suite.grading import LIMITS, MODULES, failing_references
from azr.evaluation.suite.items import load_suite
from azr.evaluation.suite.journal import Journal
from azr.evaluation.suite.run import fingerprint, item_results, run_suite, suite_style
from azr.evaluation.table import (
    check_writable,
    print_family,
    print_suite,
    show_progress,
    write_result,
)
from azr.model.load import load_architecture, load_model, load_tokenizer
from azr.sandbox import Sandbox, SandboxError
from azr.start.model import DTYPES, build_model, make_engine, prepare_device, settle_style
from azr.tasks import Environment, check_family, load_environment
from azr.text import prompt_texts

SUITE_TOKENS = 1024
"""Tokens of a response to an item where `rollout.max_new_tokens` says none."""

SAMPLING = ("max_new_tokens", "temperature", "top_p", "top_k", "min_p")
"""Options of `rollout` that are part of what a suite's samples are."""


def evaluate_family(config: Config, subject: Subject, baseline: Subject | None, out: str) -> None:
    """Grades the family's tasks, prints the table and writes the result."""
    prepare_device(config)
    config, tokenizer = _opened(config, subject.model)
    with naming_model("--baseline "):  # now, and not after hours with the first model
        other = _opened(config, baseline.model) if baseline else None
    path = Path(out) if out else subject.folder(config.run.root) / f"{config.task.family}.json"
    environment = load_environment(config.task)
    environment.open()
    with closing(environment):
        check_writable(path)
        check_family(environment, config.task.types)
        after = _graded(config, tokenizer, environment, subject.step)
        before = None
        if baseline and other:
            with naming_model("--baseline "):
                before = _graded(*other, environment, baseline.step)
        cells = make_cells(environment, after, before)
        metrics = as_metrics(family.scores(environment, after))
        metrics_before = as_metrics(family.scores(environment, before)) if before else None
    print_family(cells, subject.model, baseline.model if baseline else None)
    result = {
        "model": subject.model,
        "step": subject.step,
        "baseline": {"model": baseline.model, "step": baseline.step} if baseline else None,
        "task": asdict(config.task),
        "seed": config.run.seed,
        "samples": config.eval.samples,
        "metrics": metrics,
        "baseline_metrics": metrics_before,
        "cells": [cell.to_json() for cell in cells],
    }
    write_result(path, result)


def _opened(config: Config, model: str) -> tuple[Config, PreTrainedTokenizerBase]:
    """Returns the configuration with a model in it and its style named, and its tokenizer."""
    load_architecture(model)
    tokenizer = load_tokenizer(model)
    config = replace(config, model=replace(config.model, path=model))
    return settle_style(config, tokenizer)[0], tokenizer


def _graded(
    config: Config, tokenizer: PreTrainedTokenizerBase, environment: Environment, step: int
) -> list[GradedTask]:
    engine = make_engine(config, build_model(config, environment, tokenizer), tokenizer)
    return family.grade_tasks(config, environment, engine, tokenizer, step)


def evaluate_suite(config: Config, subject: Subject, suite_path: Path, out: str) -> None:
    """Samples and grades a suite, prints the table and writes the result.

    Goes on from samples that are there.
    """
    suite = load_suite(suite_path)
    device = prepare_device(config)
    model, tokenizer = load_model(
        subject.model, DTYPES[config.run.dtype], device, config.model.fused_layers
    )
    path = Path(out) if out else subject.folder(config.run.root) / f"{suite.name}.json"
    check_writable(path)
    style = suite_style(config.task.style, tokenizer)
    r = replace(config.rollout, max_new_tokens=config.rollout.max_new_tokens or SUITE_TOKENS)
    config = replace(config, rollout=r)
    identity = {
        "suite": suite.digest,
        "weights": fingerprint(model),
        "style": style,
        "dressing": prompt_texts(tokenizer, [""], style)[0],  # a chat template may write the date
        "seed": config.run.seed,
        **{name: getattr(r, name) for name in SAMPLING},
    }
    journal = Journal(path.with_suffix(".samples.jsonl"), identity)
    engine = make_engine(config, model, tokenizer)
    try:
        with closing(journal), Sandbox(limits=LIMITS, modules=MODULES) as sandbox:
            failing = failing_references(sandbox, suite.items)
            results = run_suite(
                config, suite, style, engine, tokenizer, sandbox, journal, show_progress
            )
    except SandboxError as error:
        raise RunError(f"--suite needs the sandbox: {error}; see `python -m azr.doctor`") from error
    print_suite(results, subject.model, suite, failing)
    result = {
        "model": subject.model,
        "step": subject.step,
        "suite_name": suite.name,
        "layout": suite.layout,
        **identity,
        "results": [r.to_json() for r in results],
        "failing_references": failing,
        "items": item_results(suite, config.eval.samples, journal),
    }
    write_result(path, result)
    print(f"samples         {journal.path}")
