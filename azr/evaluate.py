"""`python -m azr.evaluate`: how good a model is, on its task family or on a suite in a JSONL file.

    python -m azr.evaluate runs/latest                      newest checkpoint beside the start model
    python -m azr.evaluate MODEL --env prime                a model folder or hub id
    python -m azr.evaluate MODEL --suite cruxeval.jsonl     a suite: greedy and pass@k

Heavy imports come after the command line is read, so that `--help` and a wrong flag answer at once.
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from azr.config import (
    Config,
    ConfigError,
    EvalConfig,
    RolloutConfig,
    RunConfig,
    TaskConfig,
    check_process,
    load_toml,
    preset_path,
    validate,
)
from azr.errors import RunError, naming_model
from azr.streams import open_standard_streams

EXIT_ERROR, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """Evaluates a model: on every task of its family beside the model that a run started from,
    or on a suite."""

    target: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="MODEL_OR_RUN")]]
    """A run directory (its newest checkpoint), a checkpoint, an HF model folder, or a hub id."""
    suite: str = ""
    """JSONL file in the layout of CRUXEval (code, input, output) or of HumanEval (prompt,
    entry_point, test)."""
    out: str = ""
    """JSON file for the result; by default it is kept with the run, or in <root>/evaluations."""
    baseline: str = ""
    """Another model to compare with, on the same tasks; for a run, by default, its start model."""
    config: str = ""
    """TOML file or preset to take options from, for a model that is of no run."""
    run: RunConfig = field(default_factory=RunConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    eval: Annotated[EvalConfig, tyro.conf.arg(name="eval")] = field(default_factory=EvalConfig)


def _parse(argv: Sequence[str], base: Config) -> Arguments:
    return tyro.cli(
        Arguments,
        args=list(argv),
        default=Arguments(
            target=tyro.MISSING,
            run=base.run,
            task=base.task,
            rollout=base.rollout,
            eval=base.eval,
        ),
        prog="python -m azr.evaluate",
        config=(tyro.conf.FlagConversionOff,),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code.

    0 done, 1 error, 2 bad usage or options, 130 stopped by Ctrl-C.
    """
    open_standard_streams()
    try:
        check_process()
        with naming_model(""):  # here it is the first argument
            _evaluate(sys.argv[1:] if argv is None else argv)
    except ConfigError as error:
        _warn(str(error))
        return EXIT_USAGE
    except RunError as error:
        _warn(str(error))
        return EXIT_ERROR
    except KeyboardInterrupt:
        _warn("interrupted; the same command goes on with a suite, and starts anew with a family")
        return EXIT_INTERRUPTED
    return 0


def _evaluate(argv: Sequence[str]) -> None:
    """Reads the command line twice: the target says where options come from that it leaves out."""
    first = _parse(argv, Config())
    from azr.model.path import check_model_path

    check_model_path(first.target)
    with naming_model("--baseline "):
        check_model_path(first.baseline)
    from azr.evaluation.subject import find_subject

    subject = find_subject(first.target, _warn)
    base = subject.config()
    if first.config:
        if subject.run_dir:
            raise ConfigError(f"--config {first.config}: a run has options of its own")
        loaded = load_toml(preset_path(first.config))
        base = dataclasses.replace(loaded, model=base.model)
    asked = _parse(argv, base)
    config = dataclasses.replace(
        base, run=asked.run, task=asked.task, rollout=asked.rollout, eval=asked.eval
    )
    validate(config)
    if asked.suite and asked.baseline:
        raise ConfigError(
            f"--baseline {asked.baseline}: a suite is asked of one model; give the command "
            "once for each"
        )
    from azr.start.evaluation import evaluate_family, evaluate_suite

    if asked.suite:
        evaluate_suite(config, subject, Path(asked.suite), asked.out)
    else:
        baseline = find_subject(asked.baseline, _warn) if asked.baseline else subject.start
        evaluate_family(config, subject, baseline, asked.out)


def _warn(message: str) -> None:
    print(f"azr: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
