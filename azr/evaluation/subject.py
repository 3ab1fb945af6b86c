"""What is evaluated: a model folder or hub id, a run, or one of a run's checkpoints."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from azr.config import Config, ConfigError, load_toml
from azr.run.checkpoint import START, find_damage, find_newest, find_start_damage, is_step, step_of


@dataclass(frozen=True, slots=True)
class Subject:
    """A model and where it comes from."""

    model: str
    """HF folder or hub id."""
    step: int
    """Training step of the checkpoint; 0 for a start model and for a model of no run."""
    run_dir: Path | None = None
    start: "Subject | None" = None
    """The model that self-play started from, unless this is it."""

    def config(self) -> Config:
        """Returns the configuration of the run, or the defaults, with this model in it."""
        config = load_toml(self.run_dir / "config.toml") if self.run_dir else Config()
        return replace(config, model=replace(config.model, path=self.model))

    def folder(self, root: str) -> Path:
        """Returns where its results are kept: in the run, else in `<root>/evaluations`."""
        if self.run_dir:
            return self.run_dir / "evaluations" / f"step_{self.step:06d}"
        name = self.model.strip("/").replace("/", "--") or "model"
        return Path(root) / "evaluations" / name.lstrip(".-")


def find_subject(target: str, warn: Callable[[str], None]) -> Subject:
    """Returns what `target` means.

    A run directory means its newest whole checkpoint; a checkpoint, its `hf` folder, or the
    run's `start` mean themselves; anything else is a model folder or hub id. What is passed over
    is named to `warn`. Raises ConfigError for a damaged checkpoint, RunError for a run without a
    whole one.
    """
    path = Path(target)
    if (path / "config.toml").is_file():
        path = find_newest(path.resolve(), warn)
    elif path.is_dir():
        path = path.resolve()
        path = path.parent if path.name == "hf" else path
    is_start = path.name == START
    run_dir = path.parent if is_start else path.parent.parent
    if not (path / "hf").is_dir() or not (run_dir / "config.toml").is_file():
        return Subject(model=target, step=0)
    if not is_start and not is_step(path):
        raise ConfigError(f"{path}: a checkpoint's folder is named step_ and its number; rename it")
    start = run_dir / START
    problem = find_start_damage(run_dir) if start.is_dir() else None
    if is_start and problem:
        raise ConfigError(f"{path}: not a whole model: {problem}; name another, or the run")
    beginning = Subject(model=str(start / "hf"), step=0, run_dir=run_dir)
    if is_start:
        return beginning
    if problem:
        warn(f"{start} is not compared with: {problem}")
    if damage := find_damage(path):
        raise ConfigError(f"{path}: not a whole checkpoint: {damage}; name another, or the run")
    has_start = (start / "hf").is_dir() and not problem
    return Subject(str(path / "hf"), step_of(path), run_dir, beginning if has_start else None)
