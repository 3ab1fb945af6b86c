"""`python -m azr.train`: Absolute Zero self-play, the whole loop on one screen.

    config -> environment -> model -> format warm-up -> seeds -> [propose -> validate -> estimate ->
    solve -> whiten -> update -> evaluate -> record] -> save

Heavy imports come after the command line is read, so that `--help` and a wrong flag answer at once.
"""

import dataclasses
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from azr.config import Config, ConfigError, differences, parse_command_line, to_toml, validate

EXIT_ERROR, EXIT_USAGE = 1, 2


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What a finished run left; `before` and `after` map (split, task type) to its Accuracy."""

    run_dir: Path
    checkpoint: Path
    steps: int
    seconds: float
    before: dict
    after: dict


def run(
    config: Config, *, started: float | None = None, notes: Sequence[tuple[str, str]] = ()
) -> RunSummary:
    """Trains as configured; everything it writes is in the run directory.

    `started` is the time.monotonic() from which time is counted, `notes` are further lines of the
    banner. Raises ConfigError for what cannot be run, where possible before anything is written.
    """
    started = time.monotonic() if started is None else started
    validate(config)
    from azr import start
    from azr.checkpoint import save_checkpoint
    from azr.evaluate import evaluate
    from azr.learner import Learner
    from azr.log import RunLog
    from azr.model.load import save_model
    from azr.rollout import RolloutEngine
    from azr.selfplay import SelfPlay
    from azr.step_metrics import seeding_metrics
    from azr.tasks import load_environment

    device = start.prepare_device(config)
    environment = load_environment(config.task)
    architecture, parameters, plan = start.plan_memory(config, environment)
    model, tokenizer = start.build_model(config, environment, device)
    universe = {t: n for t in config.task.types if (n := environment.universe_size(t)) is not None}
    log = RunLog(config, started=started, to_json=environment.to_json, universe=universe)
    try:
        log.banner([*notes, *_facts(config, architecture, parameters)], plan)
        if not config.model.path:
            start.warm_up(config, environment, model, tokenizer)
        reference = start.frozen_copy(model) if config.loss.kl != "none" else None
        engine = RolloutEngine(model, slots=config.rollout.slots, pad_id=tokenizer.pad_token_id)
        selfplay = SelfPlay(config, environment, engine, tokenizer)
        learner = Learner(
            model,
            reference,
            loss=config.loss,
            optim=config.optim,
            temperature=config.rollout.temperature,
            total_steps=config.steps,
            seed=config.run.seed,
            pad_id=tokenizer.pad_token_id,
        )
        before = after = evaluate(config, environment, engine, tokenizer, 0)
        seeding = selfplay.seed()
        log.start(before, seeding_metrics(seeding))
        log.samples(0, seeding.tasks, seeding.rows)
        if config.selfplay.seed_source == "model" and any(seeding.added.values()):
            log.console.warn(
                f"the model proposed too few valid seeds in {config.selfplay.seed_rounds} rounds "
                f"(--selfplay.seed-rounds); the environment added {seeding.added}"
            )

        for step in range(1, config.steps + 1):
            clock = _Clock(engine)
            result = selfplay.play(step)
            clock.split("play")
            update = learner.update(result.experience(config.selfplay.roles), step)
            clock.split("update")
            is_evaluated = step % config.eval.every == 0 or step == config.steps
            if is_evaluated:
                after = evaluate(config, environment, engine, tokenizer, step)
            clock.split("eval")
            log.samples(step, result.tasks, result.rows)
            clock.split("log")
            metrics = result.metrics | update | clock.metrics(result.seconds, update)
            log.step(step, metrics, after if is_evaluated else None)

        checkpoint = save_checkpoint(
            log.run_dir, config.steps, lambda folder: save_model(model, tokenizer, folder)
        )
        log.finish(before, checkpoint)
    finally:
        log.close()
    seconds = time.monotonic() - started
    return RunSummary(log.run_dir, checkpoint, config.steps, seconds, before, after)


class _Clock:
    """Splits a step's wall time; what no phase claims is "other"."""

    def __init__(self, engine):
        self._engine = engine
        self._tokens = engine.generated_tokens
        self._start = self._last = time.perf_counter()
        self._spent: dict[str, float] = {}

    def split(self, name: str) -> None:
        now = time.perf_counter()
        self._spent[name], self._last = now - self._last, now

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
        return {
            **{f"time/{name}_s": seconds for name, seconds in named.items()},
            "time/other_s": total - sum(named.values()),
            "time/step_s": total,
            "perf/gen_tok_s": (tokens - self._tokens) / max(phases.rollout + spent["eval"], 1e-9),
            "perf/train_tok_s": trained / max(spent["update"], 1e-9),
        }


def _facts(config: Config, architecture, parameters: int) -> list[tuple[str, str]]:
    """Returns lines of the banner on device, model and settings."""
    import torch
    from rlvr_kernels import doctor

    reason = "as asked by --device"
    if config.run.device == "cpu" and torch.cuda.is_available():
        reason = "as asked; a GPU is here too: --device cuda uses it"
    elif config.run.device == "cpu":
        reason = f"{config.run.threads} torch thread" + "s" * (config.run.threads > 1)
    where = config.model.path or "from scratch"
    usual = dataclasses.replace(Config(), steps=config.steps, run=config.run)
    changed = differences(config, usual)
    return [
        ("device", f"{config.run.device}, {config.run.dtype} ({reason})"),
        ("loss kernels", doctor()[config.run.device]),
        ("model", f"{architecture.model_type}, {parameters:,} parameters, {where}"),
        ("task family", f"{config.task.family}: {', '.join(config.task.types)}"),
        ("seed", str(config.run.seed)),
        ("not default", ", ".join(f"{name}={value}" for name, value, _ in changed)),
    ]


def _dry_run(config: Config) -> int:
    """Prints the resolved configuration and the memory plan."""
    from azr import start
    from azr.memory import readable
    from azr.tasks import load_environment

    start.prepare_device(config)
    architecture, parameters, plan = start.plan_memory(config, load_environment(config.task))
    print(to_toml(config))
    print(f"# {architecture.model_type}, {parameters:,} parameters; memory plan:")
    for part in plan:
        print(f"#   {part.name:22s} {readable(part.bytes):>10s}   {part.option}")
    print(f"#   {'total':22s} {readable(sum(part.bytes for part in plan)):>10s}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0 done, 1 error, 2 bad usage or config."""
    started = time.monotonic()
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        command = parse_command_line(arguments)
        if command.dry_run:
            return _dry_run(command.config)
        run(command.config, started=started, notes=[("preset", command.preset)])
    except ConfigError as error:
        print(f"azr: {error}", file=sys.stderr)
        return EXIT_USAGE
    return 0


if __name__ == "__main__":
    sys.exit(main())
