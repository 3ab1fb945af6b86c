"""What stands in the buffers before the first update, and the files that keep it."""

import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from azr.buffer import TaskBuffer
from azr.config import Config, ConfigError, utf8_text
from azr.errors import naming_disk_errors
from azr.keys import generator
from azr.selfplay.episode import Proposed, Seeding
from azr.tasks import Environment, Task


def fill_buffers(
    config: Config,
    environment: Environment,
    buffers: dict[str, TaskBuffer],
    fits: Callable[[Sequence[Task]], list[bool]],
    propose: Callable[[int, list[str]], list[Proposed]],
    given: Sequence[Task] = (),
) -> Seeding:
    """Returns what filled the buffers, with `seed_tasks` tasks each, before the first update.

    In this order: the family's first tasks, those `given` (of a seed file), what the model proposes
    in at most `seed_rounds` rounds without any update (`propose(round, types)`; with `seed_source =
    "model"`), and what the environment draws for what is still missing. `fits` tells the tasks
    whose prompts are short enough.
    """
    c = config.selfplay
    seeding = Seeding(episodes=[], tasks=[], added=dict.fromkeys(buffers, 0))

    def add(task: Task, key: str) -> bool:
        buffer = buffers[task.type]
        is_new = len(buffer) < c.seed_tasks and buffer.add(key, task, 0)
        if is_new:
            seeding.tasks.append((task.type, key, task))
        return is_new

    def short() -> list[str]:
        return [t for t, buffer in buffers.items() if len(buffer) < c.seed_tasks]

    first = [t for tasks in environment.first_tasks().values() for t in tasks]
    first = [task for task in (*first, *given) if task.type in buffers]
    for task in itertools.compress(first, fits(first)):
        add(task, environment.key(task))
    for number in range(1, (c.seed_rounds if c.seed_source == "model" else 0) + 1):
        if not short():
            break
        proposals = propose(number, short())
        for episode in proposals:
            if episode.is_valid:
                add(episode.task, episode.key)
        seeding.episodes += proposals
    if short():
        drawn = environment.seed_tasks(generator(config.run.seed, 0, "seed"), c.seed_tasks)
        for task_type in buffers:
            for task in itertools.compress(drawn[task_type], fits(drawn[task_type])):
                seeding.added[task_type] += add(task, environment.key(task))
    for task_type, buffer in buffers.items():
        if not len(buffer):
            raise ConfigError(f"--env: no seed task of type {task_type!r} could be found")
    seeding.tasks.sort(key=lambda task: list(buffers).index(task[0]))
    return seeding


def write_seeds(path: Path, environment: Environment, tasks: Iterable[Task]) -> None:
    """Writes tasks as JSON Lines that `read_seeds`, and so `--selfplay.seed-file`, reads back."""
    lines = [json.dumps(environment.to_json(task), ensure_ascii=False) for task in tasks]
    text = "".join(line + "\n" for line in lines)
    with naming_disk_errors(path):
        # An unpaired surrogate as \udXXX, which JSON reads back.
        path.write_text(text, encoding="utf-8", errors="backslashreplace")


def read_seeds(path: Path, environment: Environment) -> list[Task]:
    """Returns the training tasks of a seed file; held-out ones are left out.

    Outputs are taken as they stand in the file: it is one that a run wrote, or that you checked.
    Raises ConfigError naming the line that holds no task of the family.
    """
    try:
        lines = utf8_text(path.read_bytes()).split("\n")
    except (OSError, ValueError) as error:
        raise ConfigError(f"--selfplay.seed-file {path}: {error}") from error
    tasks = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            tasks.append(environment.from_json(json.loads(line)))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ConfigError(
                f"--selfplay.seed-file {path}, line {number}: no task of this family: {error}"
            ) from error
    return [task for task in tasks if environment.split(task) == "train"]
