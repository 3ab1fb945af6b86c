"""Writes docs/prompts.md: every prompt of every family in every style, encoded and decoded again.

    python docs/prompts.py

Responses on the page are given to the family itself; what it makes of them stands beside them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from azr.config import PrimeConfig, ProgramConfig, TaskConfig
from azr.keys import generator
from azr.model.load import make_tokenizer
from azr.tasks import Answer, Environment, Proposal, Task, load_environment
from azr.tasks.envelope import END_ANSWER, FRAME, REASONS, write_envelope
from azr.tasks.prime.text_format import ASKED
from azr.tasks.program import compact_format, text_format
from azr.text import prompt_ids

PAGE = Path(__file__).with_name("prompts.md")

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

STYLES = {
    "compact": "the words of a tiny model made for the family",
    "r1": "plain text, for base models",
    "chat": "the tokenizer's own chat template, here ChatML as Qwen's",
}


@dataclass(frozen=True, slots=True)
class Example:
    """One cell: what the proposer or solver is shown, and a response that is right."""

    role: str
    type: str
    task: Task
    """The task proposed, or solved."""
    references: tuple[Task, ...]
    """Shown to a proposer."""
    response: str


def prime_examples(environment: Environment, style: str) -> Iterator[Example]:
    """Yields the six cells of prime inversion."""
    seeds = environment.seed_tasks(generator("prompts"), 4)
    for task_type in environment.task_types:
        *references, task = seeds[task_type][:3]
        q = task.problem
        values = {"p": q.p, "x": q.x, "y": q.y}
        for role, letters in (("propose", ("p", "x")), ("solve", ASKED[task_type])):
            if style == "compact":
                response = " ".join(str(values[a]) for a in letters)
            else:
                answer = ", ".join(f"{a}={values[a]}" for a in letters)
                response = write_envelope(answer, "Some reasoning.")
            yield Example(role, task_type, task, tuple(references), response)


def program_examples(environment: Environment, style: str) -> Iterator[Example]:
    """Yields the six cells of programs."""
    form = compact_format if style == "compact" else text_format
    seeds = environment.seed_tasks(generator("prompts"), 4)
    for task_type in environment.task_types:
        *references, task = seeds[task_type][:3]
        q = task.problem
        if task_type == "induction":
            # One program of the other types is shown.
            references = [seeds["deduction"][2]]
        first = q.message if task_type == "induction" else q.code
        response = form.write_proposal(task_type, first, q.inputs)
        yield Example("propose", task_type, task, tuple(references), response)
        answer = {
            "deduction": q.outputs[0],
            "abduction": q.inputs[0],
            "induction": q.code,
        }[task_type]
        yield Example("solve", task_type, task, (), form.write_answer(task_type, answer))


FAMILIES = {
    "prime": (lambda style: TaskConfig(style=style, prime=PrimeConfig(max_p=97)), prime_examples),
    "program": (
        lambda style: TaskConfig(
            family="program", style=style, program=ProgramConfig(inputs=4, sandbox_workers=1)
        ),
        program_examples,
    ),
}
"""Name -> (configuration by style, examples)."""


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Returns a tokenizer with one token per byte and a chat template."""
    alphabet = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")
    fast.chat_template = CHATML
    return fast


def tokenizer_of(environment: Environment, style: str) -> PreTrainedTokenizerBase:
    """Returns a tokenizer for prompts of the style."""
    if style == "compact":
        vocabulary = environment.vocabulary()
        return make_tokenizer(vocabulary.words, vocabulary.split)
    return byte_tokenizer()


def judged(environment: Environment, example: Example) -> str:
    """Returns what the family makes of the response."""
    if example.role == "propose":
        proposal = Proposal(
            type=example.type,
            text=example.response,
            finished=True,
            references=example.references,
        )
        (verdict,) = environment.submit_validate([proposal]).result()
        return f"{verdict.status} {verdict.reason}".strip()
    answer = Answer(task=example.task, text=example.response, finished=True)
    (grade,) = environment.submit_grade([answer]).result()
    return f"{grade.outcome} {grade.reason}".strip()


def fenced(text: str) -> str:
    """Returns the text as a block of a page, whatever fences it holds itself."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text}\n{fence}"


def family_part(name: str) -> Iterator[str]:
    """Yields the paragraphs of one family."""
    settings, examples = FAMILIES[name]
    yield f"## Family `{name}`"
    for style, what in STYLES.items():
        environment = load_environment(settings(style))
        try:
            tokenizer = tokenizer_of(environment, style)
            yield f"### `{name}`, style `{style}`: {what}"
            for e in examples(environment, style):
                if e.role == "propose":
                    text = environment.propose_prompt(e.type, e.references, style)
                else:
                    text = environment.solve_prompt(e.task, style)
                (ids,) = prompt_ids(tokenizer, [text], style)
                yield f"**{e.role}, {e.type}.** The model reads:"
                yield fenced(tokenizer.decode(list(ids)))
                yield f"A response that is {judged(environment, e)}:"
                yield fenced(e.response.strip("\n"))
        finally:
            environment.close()


def page() -> str:
    """Returns the whole page."""
    reasons = ", ".join(f"`{reason}`" for reason in REASONS)
    parts = [
        "# Prompts and answers",
        "Written by `python docs/prompts.py`; a test keeps it current. Prompts are shown as the "
        "model reads them, encoded and decoded again.",
        "A run has one style (`--task.style`). `auto` takes `compact` for a model made from "
        "scratch, `chat` where the tokenizer has a chat template, else `r1`; the choice and its "
        "reason stand in the banner, and the resolved style in the run's `config.toml`. Text "
        "styles need `--rollout.max-new-tokens`. A prompt is never cut: one that is longer than "
        "`--rollout.max-prompt-tokens`, or than the model's context leaves room for, shows fewer "
        "references (`propose/dropped_references`), and a task whose own prompt is longer is "
        "invalid (`prompt_too_long`).",
        "## The envelope of the text styles",
        "One sentence tells the format in both:",
        fenced(FRAME),
        "The prompt ends with an opened think tag: the chat template's own, where it opens one. A "
        "block that the template has closed already, as some do to switch reasoning off, is opened "
        "again. A response goes on from there:",
        fenced("reasoning </think> <answer> ... </answer>"),
        "White space may stand between `</think>` and `<answer>` and after `</answer>`; nothing "
        "else may. What comes before the last `</think>` is never read, whatever tags or answers "
        "it holds: the last answer wins. None of the four tags may stand in the answer. "
        f"Generation stops at the first `{END_ANSWER}`, or at an end-of-text token of the model. "
        f"Whatever is not of this form is malformed, with one of these reasons: {reasons}.",
        *(paragraph for name in FAMILIES for paragraph in family_part(name)),
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
