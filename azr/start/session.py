"""A run under way: its trainee begun or restored, its record opened, watched, saved and closed."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from transformers import PreTrainedModel

from azr.config import Config, load_toml, weak_signals
from azr.errors import RunError, naming_disk_errors, naming_memory_errors
from azr.evaluation import evaluate
from azr.learner import TrainingDiverged
from azr.memory import give_back
from azr.report import Refresher
from azr.resume import describe_rate, restore, save_start, settle_schedule, snapshot
from azr.run.checkpoint import CheckpointWriter
from azr.run.log import RunLog
from azr.run.stopping import StopRequest
from azr.run.watchdog import Watchdog
from azr.selfplay import seeding_metrics, write_seeds
from azr.start.model import build_model
from azr.start.prepare import Prepared, prepare
from azr.start.trainee import Trainee, assemble, frozen_copy, is_warmed_up, warm_up
from azr.tasks import Environment


@dataclass(slots=True)
class Session:
    """What the loop works with."""

    config: Config
    environment: Environment
    trainee: Trainee
    log: RunLog
    step: int
    """The last one that was begun."""
    writer: CheckpointWriter
    refresh: Refresher
    watchdog: Watchdog

    def begin_step(self) -> int:
        """Returns the number of the step that begins; raises RunError where a save has failed."""
        self.writer.check()
        self.watchdog.rearm()
        self.step += 1
        return self.step

    def save(self) -> None:
        """Starts writing a checkpoint, and draws the report where it is time to."""
        self.writer.save(snapshot(self.trainee, self.log, self.step))
        self.refresh(partial(self.log.warn, self.step))
        give_back()

    def finish(self, stop: StopRequest) -> Path:
        """Saves, shows the result and returns the checkpoint.

        Raises RunError for a run that ends before its last step and was not asked to.
        """
        saved = self.writer.save(snapshot(self.trainee, self.log, self.step))
        self.writer.wait()
        self.refresh(partial(self.log.warn, self.step), is_over=True)
        self.log.finish(self.step, saved)
        if self.step < self.config.steps and not stop.signal:
            run_dir = self.log.run_dir
            raise RunError(
                f"{run_dir / 'run.db'} was locked by another process for too long; the run is "
                f"saved at step {self.step}: close what holds the file, then --resume {run_dir}"
            )
        return saved


@contextmanager
def open_session(
    config: Config, resume: Path | None, started: float, notes: Sequence[tuple[str, str]]
) -> Iterator[Session]:
    """Within it a run, or the rest of the run in the folder `resume`, can be trained.

    `started` and `notes`: see `azr.train.run`. Nothing is written before all is known to fit and
    the model is there.
    """
    saved = load_toml(resume / "config.toml") if resume else None
    ready = prepare(settle_schedule(config, saved), resume)
    config, environment, checkpoint = ready.config, ready.environment, ready.checkpoint
    trainee = restore(ready, checkpoint, resume) if checkpoint and resume else None
    model = trainee.model if trainee else build_model(config, environment, ready.tokenizer)
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
    step = checkpoint.step if checkpoint else 0
    watchdog = Watchdog(log.run_dir / "stacks.txt")
    refresh = Refresher(log.run_dir, log.keep_series, started)
    writer = CheckpointWriter(
        log.run_dir,
        keep_last=config.save.keep_last,
        keep_every=config.save.keep_every,
        saved_step=step if checkpoint else -1,
    )
    try:
        log.banner([*notes, *ready.facts], ready.plan)
        for message in ready.warnings + weak_signals(config):
            log.warn(step, message)
        if checkpoint:
            log.console.print(f"going on after step {step}, from {checkpoint.path}")
        if rate := describe_rate(config, saved, step):
            log.console.print(f"learning rate  {rate}")
        trainee = trainee or _begin(ready, model, log)
        trainee.engine.on_progress = log.console.print
        session = Session(config, environment, trainee, log, step, writer, refresh, watchdog)
        try:
            yield session
        except TrainingDiverged as error:
            path = log.save_bad_batch(session.step, [dataclasses.asdict(e) for e in error.batch])
            refresh(partial(log.warn, session.step), is_over=True)
            raise RunError(f"{error}. The batch is in {path}") from error
    finally:
        watchdog.close()
        writer.join()
        environment.close()
        log.close()


def _begin(ready: Prepared, model: PreTrainedModel, log: RunLog) -> Trainee:
    """Returns the trainee of a new run, warmed up, measured, and with its seeds."""
    config, environment, tokenizer = ready.config, ready.environment, ready.tokenizer
    if is_warmed_up(config):
        budget = "--optim.micro-batch-tokens"
        with log.stage("format warm-up") as stage, naming_memory_errors("the warm-up", budget):

            def warmed(steps: float, loss: float) -> None:
                stage.tell(f"{steps:.1f} of {config.warmup.steps} steps, loss {loss:.3f}")

            warm_up(config, environment, model, tokenizer, warmed)
    save_start(model, tokenizer, log.run_dir)
    reference = frozen_copy(model) if config.loss.kl != "none" else None
    trainee = assemble(config, environment, model, tokenizer, reference)
    engine = trainee.engine
    with naming_memory_errors("rollouts", "--rollout.slots"):
        with log.stage("evaluation of the start") as stage, engine.reporting(stage.tell):
            before = evaluate(config, environment, engine, tokenizer, 0)
        log.eval_s = stage.seconds
        with log.stage("seeding") as stage, engine.reporting(stage.tell):
            seeding = trainee.selfplay.seed(ready.seeds, log.seeding_round)
    log.start(before, seeding_metrics(seeding))
    log.samples(0, seeding.tasks, seeding.episodes)
    write_seeds(log.run_dir / "seeds.jsonl", environment, [task for _, _, task in seeding.tasks])
    if config.selfplay.seed_source == "model" and any(seeding.added.values()):
        log.warn(
            0,
            f"the model proposed too few valid seeds in {config.selfplay.seed_rounds} "
            f"rounds (--selfplay.seed-rounds); the environment added {seeding.added}",
        )
    return trainee
