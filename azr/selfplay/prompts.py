"""The prompts of self-play: a family's instructions, dressed, encoded, and short enough."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from azr.config import Config, ConfigError
from azr.tasks import Environment, Task
from azr.tasks.envelope import TEXT_STYLES
from azr.text import prompt_ids, prompt_texts


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as the model reads it."""

    text: str
    token_ids: tuple[int, ...]
    references: tuple[Task, ...] = ()
    """Tasks that a proposer's prompt shows."""
    dropped: int = 0
    """References that were left out because the prompt was too long."""


def prompt_limit(config: Config, context: int) -> int:
    """Returns the most tokens of a prompt, for a model with room for `context` tokens.

    Raises ConfigError where prompt and response would not fit together.
    """
    rollout = config.rollout
    room = context - rollout.max_new_tokens
    if room < 1:
        raise ConfigError(
            f"--rollout.max-new-tokens {rollout.max_new_tokens}: the model has room for {context} "
            "tokens, prompt and response together; give fewer"
        )
    if rollout.max_prompt_tokens > room:
        raise ConfigError(
            f"--rollout.max-prompt-tokens {rollout.max_prompt_tokens}: with "
            f"{rollout.max_new_tokens} new tokens the model has room for prompts of {room}; "
            "give fewer of either"
        )
    return rollout.max_prompt_tokens or room


class Prompts:
    """Makes prompts of the run's style; no prompt is ever cut.

    A proposer's prompt that is too long shows fewer references, the last ones left out first. A
    task `fits` only if its solver prompt is short enough, and every proposer's prompt that shows
    it alone; else it is no valid task. Compact prompts have no limit here: the context of a model
    from scratch is made for them.
    """

    def __init__(
        self,
        config: Config,
        environment: Environment,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel | None,
    ):
        self.environment, self.tokenizer = environment, tokenizer
        self.style = config.task.style
        self.sources = {t: environment.reference_source(t) for t in config.task.types}
        self.references = config.task.references
        self.limit: int | None = None
        if model is not None and self.style in TEXT_STYLES:
            context = model.config.get_text_config().max_position_embeddings
            self.limit = prompt_limit(config, context)

    def solve(self, tasks: Sequence[Task]) -> list[Prompt]:
        """Returns the solver's prompt of each task."""
        return self._dressed(
            [self.environment.solve_prompt(task, self.style) for task in tasks], [()] * len(tasks)
        )

    def fits(self, tasks: Sequence[Task]) -> list[bool]:
        """Returns whether each task is short enough to be solved, and shown as a reference."""
        if self.limit is None:
            return [True] * len(tasks)
        fitting = [len(prompt.token_ids) <= self.limit for prompt in self.solve(tasks)]
        for task_type, source in self.sources.items():
            if not (self.references if source.count is None else source.count):
                continue
            shown = [i for i, task in enumerate(tasks) if task.type in source.types]
            prompts = self._propose([(task_type, (tasks[i],)) for i in shown])
            for j in self._too_long(prompts):
                fitting[shown[j]] = False
        return fitting

    def propose(self, wanted: Sequence[tuple[str, tuple[Task, ...]]]) -> list[Prompt]:
        """Returns the proposer's prompt for each (task type, references).

        Raises ConfigError where a prompt is too long even with the fewest references.
        """
        prompts = self._propose(wanted)
        too_long = self._too_long(prompts)
        while too_long:
            shorter = []
            for i in too_long:
                task_type, references = wanted[i][0], prompts[i].references
                if len(references) <= (self.sources[task_type].count or 0):
                    raise ConfigError(
                        f"--rollout.max-prompt-tokens {self.limit}: the proposer's prompt of type "
                        f"{task_type!r} has {len(prompts[i].token_ids)} tokens with "
                        f"{len(references)} references; allow more, or fewer "
                        "--rollout.max-new-tokens"
                    )
                shorter.append((task_type, references[:-1]))
            for i, prompt in zip(too_long, self._propose(shorter), strict=True):
                dropped = prompts[i].dropped + 1
                prompts[i] = Prompt(prompt.text, prompt.token_ids, prompt.references, dropped)
            too_long = self._too_long(prompts)
        return prompts

    def _too_long(self, prompts: Sequence[Prompt]) -> list[int]:
        if self.limit is None:
            return []
        return [i for i, prompt in enumerate(prompts) if len(prompt.token_ids) > self.limit]

    def _propose(self, wanted: Sequence[tuple[str, tuple[Task, ...]]]) -> list[Prompt]:
        instructions = [
            self.environment.propose_prompt(task_type, references, self.style)
            for task_type, references in wanted
        ]
        return self._dressed(instructions, [references for _, references in wanted])

    def _dressed(
        self, instructions: list[str], references: Sequence[tuple[Task, ...]]
    ) -> list[Prompt]:
        texts = prompt_texts(self.tokenizer, instructions, self.style)
        ids = prompt_ids(self.tokenizer, instructions, self.style)
        return list(map(Prompt, texts, ids, references))
