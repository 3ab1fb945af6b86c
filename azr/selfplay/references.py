"""Which tasks a proposer is shown."""

import numpy as np

from azr.buffer import TaskBuffer, draw_entries
from azr.config import Config
from azr.tasks import References, Task


def draw_references(
    config: Config,
    source: References,
    buffers: dict[str, TaskBuffer],
    task_type: str,
    rng: np.random.Generator,
) -> tuple[Task, ...]:
    """Returns the references of one proposal of a type, distinct entries in random order.

    They come from the buffers that the family names as their source, taken together; where the run
    has none of these types, or they are empty, from the type's own buffer.
    """
    count = config.task.references if source.count is None else source.count
    named = [buffers[t] for t in source.types if t in buffers]
    drawn_from = named if any(map(len, named)) else [buffers[task_type]]
    recency = config.selfplay.sampling == "recency"
    return tuple(e.task for e in draw_entries(drawn_from, rng, count, recency=recency))
