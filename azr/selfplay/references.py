"""Which tasks a proposer is shown."""

import numpy as np

from azr.buffer import TaskBuffer, draw_entries
from azr.config import Config
from azr.tasks import Environment, Task


class ReferencePool:
    """The tasks that the proposers of one type draw their references from in one step.

    They come from the buffers that the family names, taken together; where the run has none of
    these types, or they are empty, from the type's own buffer.
    """

    def __init__(
        self,
        config: Config,
        environment: Environment,
        buffers: dict[str, TaskBuffer],
        task_type: str,
    ):
        source = environment.reference_source(task_type)
        self._count = config.task.references if source.count is None else source.count
        self._recency = config.selfplay.sampling == "recency"
        named = [buffers[t] for t in source.types if t in buffers]
        self._buffers = named if any(map(len, named)) else [buffers[task_type]]

    def draw(self, rng: np.random.Generator) -> tuple[Task, ...]:
        """Returns the references of one proposal, distinct entries in random order."""
        drawn = draw_entries(self._buffers, rng, self._count, recency=self._recency)
        return tuple(e.task for e in drawn)
