"""`python -m azr.train`: Absolute Zero self-play, the whole loop on one screen.

    config -> environment -> model -> format warm-up -> seeds -> [propose -> validate -> estimate ->
    solve -> whiten -> update -> evaluate -> record -> save]

Heavy imports come after the command line is read, so that `--help` and a wrong flag answer at once.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from azr.config import (
    Config,
    ConfigError,
    check_process,
    check_resumable,
    load_toml,
    parse_command_line,
    to_toml,
    validate,
)
from azr.errors import RunError, naming_memory_errors
from azr.run.checkpoint import newest_marked_step
from azr.run.directory import find_resumable
from azr.run.stopping import StoppedEarly, StopRequest, leave
from azr.streams import open_standard_streams

EXIT_ERROR, EXIT_USAGE = 1, 2


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What a run left; `before` and `after` map (split, task type) to its `azr.accuracy.Score`."""

    run_dir: Path
    checkpoint: Path
    step: int
    """The last finished step: below `config.steps` where the run was asked to stop."""
    seconds: float
    before: dict
    after: dict


def run(
    config: Config,
    *,
    resume: Path | None = None,
    stop: StopRequest | None = None,
    started: float | None = None,
    notes: Sequence[tuple[str, str]] = (),
) -> RunSummary:
    """Trains as configured; everything it writes is in the run directory.

    `resume` is a run to go on with from its last checkpoint; `stop` ends this one after the step
    in which a signal comes; time counts from `started`; `notes` are further lines of the banner.
    Raises ConfigError for what cannot be run, where possible before anything is written, and
    RunError for what ends a run on its way.
    """
    started, stop = started or time.monotonic(), stop or StopRequest()
    _check(config, resume)
    from azr.evaluation import evaluate
    from azr.start.session import open_session

    with open_session(config, resume, started, notes) as session:
        config, log, trainee = session.config, session.log, session.trainee
        stop.first_step()
        while session.step < config.steps and not stop.signal and not log.is_stuck:
            step = session.begin_step()
            with naming_memory_errors("rollouts", "--rollout.slots"):
                result = trainee.selfplay.play(step)
            trainee.engine.release()  # the update needs the KV cache's memory
            with naming_memory_errors("the update", "--optim.micro-batch-tokens"):
                batch = result.experience(config.selfplay.roles)
                update = trainee.learner.update(batch, step)
            result.clock.lap("update")
            accuracy = None
            if step % config.eval.every == 0 or step == config.steps:
                with naming_memory_errors("evaluation", "--rollout.slots"):
                    accuracy = evaluate(
                        config, session.environment, trainee.engine, trainee.tokenizer, step
                    )
            result.clock.lap("eval")
            log.samples(step, result.tasks, result.episodes)
            log.step(step, result.metrics | update | result.clock.metrics(update), accuracy)
            if config.save.every and step % config.save.every == 0 and step < config.steps:
                session.save()
        saved = session.finish(stop)
    took = time.monotonic() - started
    return RunSummary(log.run_dir, saved, session.step, took, dict(log.before), dict(log.latest))


def _check(config: Config, resume: Path | None = None) -> None:
    """Raises ConfigError for what can be told without torch."""
    open_standard_streams()  # for callers from Python
    check_process()
    validate(config)
    if resume:
        check_resumable(config, load_toml(resume / "config.toml"), resume)
    else:
        from azr.model.path import check_model_path

        check_model_path(config.model.path)


def _dry_run(config: Config) -> int:
    """Prints the resolved configuration and the memory plan."""
    _check(config)
    from azr.plan import by_phase, peak_bytes, readable
    from azr.start.prepare import prepare

    ready = prepare(config, is_dry=True)
    print(to_toml(ready.config))
    print(f"# {ready.model}; memory plan:")
    for phase, parts in by_phase(ready.plan).items():
        for part in parts:
            print(f"#   {phase:9s}  {part.name:22s} {readable(part.bytes):>10s}   {part.option}")
    print(f"#   {'most at once':33s} {readable(peak_bytes(ready.plan)):>10s}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code.

    0 done, 1 error, 2 bad usage or configuration; stopped, and saved if there was a step, 75 by
    SIGTERM or SIGHUP, 130 by Ctrl-C.
    """
    open_standard_streams()
    started, stop = time.monotonic(), StopRequest()
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        check_process()
        with stop:
            command = parse_command_line(arguments)
            if command.dry_run:
                return _dry_run(command.config)
            config, run_dir = command.config, None
            if command.resume and (run_dir := find_resumable(command.resume, config)):
                check_resumable(config, load_toml(run_dir / "config.toml"), run_dir)
                if (done := newest_marked_step(run_dir)) >= config.steps:
                    more = f"--steps {done + 1} or more goes on"
                    print(f"{run_dir} is at step {done} already; {more}")
                    return 0
            preset = Path(command.preset)
            here = preset.is_relative_to(Path.cwd())
            notes = [("preset", str(preset.relative_to(Path.cwd()) if here else preset))]
            run(config, resume=run_dir, stop=stop, started=started, notes=notes)
            return stop.exit_code
    except StoppedEarly:
        print("azr: stopped before the first step", file=sys.stderr)
        sys.stdout.flush()
        leave(stop.exit_code)
    except ConfigError as error:
        print(f"azr: {error}", file=sys.stderr)
        return EXIT_USAGE
    except RunError as error:
        print(f"azr: {error}", file=sys.stderr)
        return EXIT_ERROR


if __name__ == "__main__":
    sys.exit(main())
