"""`python -m azr.train`: Absolute Zero self-play, the whole loop on one screen.

    config -> environment -> model -> format warm-up -> seeds -> [propose -> validate -> estimate ->
    solve -> whiten -> update -> evaluate -> record -> save]

Heavy imports come after the command line is read, so that `--help` and a wrong flag answer at once.
"""

import dataclasses
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from azr.config import (
    CommandLine,
    Config,
    ConfigError,
    check_process,
    check_resumable,
    differences,
    load_toml,
    parse_command_line,
    to_toml,
    validate,
    weak_signals,
)
from azr.errors import RunError
from azr.run.stopping import StoppedEarly, StopRequest, leave
from azr.run.watchdog import Watchdog
from azr.streams import open_standard_streams

EXIT_ERROR, EXIT_USAGE = 1, 2


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What a run left; `before` and `after` map (split, task type) to its Accuracy."""

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

    `resume` is the directory of a run to go on with from its last checkpoint; `stop` ends the run
    after the step in which a signal comes; `started` is the time.monotonic() from which time is
    counted; `notes` are further lines of the banner. Raises ConfigError for what cannot be run,
    where possible before anything is written, and for other options than those of the run that is
    resumed, and RunError for what ends a run on its way.
    """
    started = time.monotonic() if started is None else started
    open_standard_streams()  # for callers from Python
    check_process()
    validate(config)
    saved_config = load_toml(resume / "config.toml") if resume else None
    if resume:
        check_resumable(config, saved_config, resume)
    else:
        from azr.model.path import check_model_path

        check_model_path(config.model.path)
    from azr import resume as resuming
    from azr import start
    from azr.errors import naming_disk_errors, naming_memory_errors
    from azr.evaluation import evaluate
    from azr.learner import TrainingDiverged
    from azr.memory import give_back
    from azr.report import Refresher
    from azr.run.checkpoint import CheckpointWriter, load_newest
    from azr.run.dashboards import check_installed
    from azr.run.log import RunLog
    from azr.selfplay import read_seeds
    from azr.tasks import check_family, load_environment
    from azr.text import renew_chat

    check_installed(config)
    device = start.prepare_device(config)
    config = resuming.settle_schedule(config, saved_config)
    config, style_reason = start.settle_style(config, resume)
    environment = load_environment(config.task)
    environment.open()
    check_family(environment, config.task.types)
    given = []
    if config.selfplay.seed_file and not resume:
        # Read now, as long as runs/latest is an earlier run.
        path = Path(config.selfplay.seed_file)
        given = read_seeds(path, environment)
        notes = [*notes, ("seed file", f"{len(given)} tasks, {path.resolve()}")]
    damaged: list[str] = []
    checkpoint = load_newest(resume, damaged.append) if resume else None
    architecture, parameters, plan = start.plan_memory(
        config, environment, checkpoint.path if checkpoint else None
    )
    attention = start.describe_attention(config, architecture)
    if checkpoint:
        trainee = resuming.restore(config, environment, checkpoint, resume, damaged.append)
    else:
        model, tokenizer = start.build_model(config, environment, device)
        renew_chat(tokenizer, config.task.style)
    universe = {t: n for t in config.task.types if (n := environment.universe_size(t)) is not None}
    with naming_disk_errors(resume or Path(config.run.root)):
        log = RunLog(
            config,
            started=started,
            to_json=environment.to_json,
            universe=universe,
            resumed=resume,
            state=checkpoint.state["log"] if checkpoint else None,
        )
    watchdog = Watchdog(log.run_dir / "stacks.txt", config.run.watchdog_s)
    refresh = Refresher(log.run_dir, log.keep_series, started)
    step = checkpoint.step if checkpoint else 0
    writer = CheckpointWriter(
        log.run_dir,
        keep_last=config.save.keep_last,
        keep_every=config.save.keep_every,
        saved_step=step if checkpoint else -1,
    )
    try:
        choices = [
            ("attention", attention),
            ("prompts", f"{config.task.style} ({style_reason})"),
        ]
        log.banner([*notes, *_facts(config, architecture, parameters), *choices], plan)
        for message in damaged + weak_signals(config):
            log.warn(step, message)
        if checkpoint:
            log.console.print(f"going on after step {step}, from {checkpoint.path}")
        if rate := resuming.describe_rate(config, saved_config, step):
            log.console.print(f"learning rate  {rate}")
        if not checkpoint:
            trainee = _begin(config, environment, model, tokenizer, log, given)
        engine, selfplay, learner = trainee.engine, trainee.selfplay, trainee.learner
        engine.on_progress = log.console.print
        if stop:
            stop.first_step()

        while step < config.steps and not (stop and stop.signal) and not log.is_stuck:
            step += 1
            watchdog.rearm()
            clock = _Clock(engine, config.run.device)
            with naming_memory_errors("rollouts", "--rollout.slots"):
                result = selfplay.play(step)
            clock.split("play")
            engine.release()  # the update needs the KV cache's memory
            with naming_memory_errors("the update", "--optim.micro-batch-tokens"):
                update = learner.update(result.experience(config.selfplay.roles), step)
            clock.split("update")
            accuracy = None
            if step % config.eval.every == 0 or step == config.steps:
                with naming_memory_errors("evaluation", "--rollout.slots"):
                    accuracy = evaluate(config, environment, engine, trainee.tokenizer, step)
            clock.split("eval")
            log.samples(step, result.tasks, result.rows)
            metrics = result.metrics | update | clock.metrics(result.seconds, update)
            log.step(step, metrics, accuracy)
            writer.check()
            if config.save.every and step % config.save.every == 0 and step < config.steps:
                writer.save(resuming.snapshot(trainee, log, step))
                refresh(partial(log.warn, step))
                give_back()

        saved = writer.save(resuming.snapshot(trainee, log, step))
        writer.wait()
        refresh(partial(log.warn, step), is_over=True)
        log.finish(step, saved)
        if step < config.steps and not (stop and stop.signal):
            raise RunError(
                f"{log.run_dir / 'run.db'} was locked by another process for too long; the run is "
                f"saved at step {step}: close what holds the file, then --resume {log.run_dir}"
            )
    except TrainingDiverged as error:
        path = log.save_bad_batch(step, [dataclasses.asdict(e) for e in error.batch])
        refresh(partial(log.warn, step), is_over=True)
        raise RunError(f"{error}. The batch is in {path}") from error
    finally:
        watchdog.close()
        writer.join()
        environment.close()
        log.close()
    seconds = time.monotonic() - started
    return RunSummary(log.run_dir, saved, step, seconds, dict(log.before), dict(log.latest))


def _begin(config: Config, environment, model, tokenizer, log, given: list):
    """Returns the trainee of a new run, warmed up, measured, and with its seeds."""
    from azr import resume as resuming
    from azr import start
    from azr.errors import naming_memory_errors
    from azr.evaluation import evaluate
    from azr.selfplay import seeding_metrics, write_seeds

    if start.is_warmed_up(config):
        budget = "--optim.micro-batch-tokens"
        with log.stage("format warm-up") as stage, naming_memory_errors("the warm-up", budget):

            def warmed(steps: float, loss: float) -> None:
                stage.tell(f"{steps:.1f} of {config.warmup.steps} steps, loss {loss:.3f}")

            start.warm_up(config, environment, model, tokenizer, warmed)
    resuming.save_start(model, tokenizer, log.run_dir)
    reference = start.frozen_copy(model) if config.loss.kl != "none" else None
    trainee = start.assemble(config, environment, model, tokenizer, reference)
    engine = trainee.engine
    with naming_memory_errors("rollouts", "--rollout.slots"):
        with log.stage("evaluation of the start") as stage, engine.reporting(stage.tell):
            before = evaluate(config, environment, engine, tokenizer, 0)
        log.eval_s = stage.seconds
        with log.stage("seeding") as stage, engine.reporting(stage.tell):
            seeding = trainee.selfplay.seed(given, partial(log.early_samples, 0))
    log.start(before, seeding_metrics(seeding))
    log.samples(0, seeding.tasks, seeding.rows)
    write_seeds(log.run_dir / "seeds.jsonl", environment, [task for _, _, task in seeding.tasks])
    if config.selfplay.seed_source == "model" and any(seeding.added.values()):
        log.warn(
            0,
            f"the model proposed too few valid seeds in {config.selfplay.seed_rounds} "
            f"rounds (--selfplay.seed-rounds); the environment added {seeding.added}",
        )
    return trainee


class _Clock:
    """Splits a step's wall time; what no phase claims is "other"."""

    def __init__(self, engine, device: str):
        self._engine = engine
        self._on_cpu, self._cpu = device == "cpu", -time.process_time()
        self._tokens = engine.generated_tokens
        self._start = self._last = time.perf_counter()
        self._spent: dict[str, float] = {}

    def split(self, name: str) -> None:
        now = time.perf_counter()
        self._spent[name], self._last = now - self._last, now
        if name == "update":  # evaluation, which some steps have, comes next
            self._cpu += time.process_time()

    def metrics(self, phases, update: dict[str, float]) -> dict[str, float]:
        """Returns `time/*` in seconds and `perf/*` in tokens per second."""
        total = time.perf_counter() - self._start
        spent = self._spent
        named = {
            "rollout": phases.rollout,
            "verify": phases.verify,
            "update": spent["update"],
            "eval": spent["eval"],
        }
        trained, tokens = update.get("policy/tokens", 0.0), self._engine.generated_tokens
        shares = {
            "perf/decode_roofline_frac": self._engine.decode_roofline_frac(),
            "perf/rollout_roofline_frac": self._engine.rollout_roofline_frac(),
        }
        return {
            **{f"time/{name}_s": seconds for name, seconds in named.items()},
            "time/other_s": total - sum(named.values()),
            "time/step_s": total,
            **({"time/step_cpu_s": self._cpu} if self._on_cpu else {}),
            **{name: share for name, share in shares.items() if share is not None},
            "perf/gen_tok_s": (tokens - self._tokens) / max(phases.rollout + spent["eval"], 1e-9),
            "perf/train_tok_s": trained / max(spent["update"], 1e-9),
        }


def _facts(config: Config, architecture, parameters: int) -> list[tuple[str, str]]:
    """Returns lines of the banner on device, model and settings."""
    import torch
    from rlvr_kernels import doctor

    # Where several GPUs are, "cuda" is the current one.
    on_cuda = config.run.device == "cuda"
    device = f"cuda:{torch.cuda.current_device()}" if on_cuda else config.run.device
    reason = "as asked by --device"
    if config.run.device == "cpu" and torch.cuda.is_available():
        reason = (
            "as asked; a GPU is here too: --device cuda uses it, and "
            "--config a100-qwen2.5-3b-prime.toml trains a real model on it"
        )
    elif config.run.device == "cpu":
        reason = f"{config.run.threads} torch thread" + "s" * (config.run.threads > 1)
    where = config.model.path or "from scratch"
    optim = dataclasses.replace(Config().optim, schedule_steps=config.steps)
    usual = dataclasses.replace(Config(), steps=config.steps, run=config.run, optim=optim)
    changed = differences(config, usual)
    return [
        ("device", f"{config.run.device}, {config.run.dtype} ({reason})"),
        ("loss kernels", doctor()[device]),
        ("model", f"{architecture.model_type}, {parameters:,} parameters, {where}"),
        ("task family", f"{config.task.family}: {', '.join(config.task.types)}"),
        ("seed", str(config.run.seed)),
        ("not default", ", ".join(f"{name}={value}" for name, value, _ in changed)),
    ]


def _dry_run(config: Config) -> int:
    """Prints the resolved configuration and the memory plan."""
    from azr.model.path import check_model_path

    check_model_path(config.model.path)
    from azr import start
    from azr.plan import by_phase, peak_bytes, readable
    from azr.run.dashboards import check_installed
    from azr.tasks import load_environment

    check_installed(config)
    start.prepare_device(config)
    config, _ = start.settle_style(config)
    architecture, parameters, plan = start.plan_memory(config, load_environment(config.task))
    print(to_toml(config))
    print(f"# {architecture.model_type}, {parameters:,} parameters; memory plan:")
    for phase, parts in by_phase(plan).items():
        for part in parts:
            print(f"#   {phase:9s}  {part.name:22s} {readable(part.bytes):>10s}   {part.option}")
    print(f"#   {'most at once':33s} {readable(peak_bytes(plan)):>10s}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code.

    0 done, 1 error, 2 bad usage or configuration; stopped, and saved if there was a step, 75 by
    SIGTERM or SIGHUP, 130 by Ctrl-C.
    """
    open_standard_streams()
    started = time.monotonic()
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        check_process()
        with StopRequest() as stop:
            command = parse_command_line(arguments)
            if command.dry_run:
                return _dry_run(command.config)
            config, run_dir = command.config, _resumable(command)
            if run_dir and (done := _last_step(run_dir)) >= config.steps:
                print(f"{run_dir} is at step {done} already; --steps {done + 1} or more goes on")
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


def _resumable(command: CommandLine) -> Path | None:
    """Returns the run to go on with, None for a new one; refuses other options than its own."""
    if not command.resume:
        return None
    from azr.run.directory import find_resumable

    run_dir = find_resumable(command.resume, command.config)
    if run_dir:
        check_resumable(command.config, load_toml(run_dir / "config.toml"), run_dir)
    return run_dir


def _last_step(run_dir: Path) -> int:
    """Returns the step of the newest checkpoint that has its marker, -1 where there is none."""
    from azr.run.checkpoint import newest_marked_step

    return newest_marked_step(run_dir)


if __name__ == "__main__":
    sys.exit(main())
