"""Evaluates a model on a suite: samples, grades, keeps what is done, and sums up."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from azr.accuracy import Answers, Score, pass_at_k, score
from azr.config import Config, ConfigError
from azr.evaluation.answers import GREEDY, Response, ask
from azr.evaluation.journal import Journal, Line
from azr.evaluation.suite import Item, Kind, Suite
from azr.evaluation.suite_grading import Runner, grade_answers
from azr.evaluation.suite_prompts import (
    COMPLETION,
    STYLES,
    extract,
    instruction,
    stop_strings,
)
from azr.keys import make_key
from azr.rollout import Request, RolloutEngine, Sampling
from azr.tasks import Grade
from azr.tasks.program.records import FormatError
from azr.text import end_ids, prompt_ids

GRADED_TOGETHER = 128
"""Finished samples that are graded and put on the disk together."""

KS = (1, 2, 5, 10, 20, 50, 100, 200, 500)


@dataclass(frozen=True, slots=True)
class KindResult:
    """How a model did on the items of one kind."""

    kind: Kind
    score: Score
    pass_at: dict[int, float]
    """k -> mean over items of the unbiased estimate of pass@k, for each k up to the samples."""
    reasons: dict[str, int]
    """Why answers, greedy and sampled, were not correct."""

    def to_json(self) -> dict[str, Any]:
        """Returns the result as its file holds it; what is left are records of `azr.accuracy`."""
        s = self.score
        return {
            "kind": self.kind,
            "items": s.tasks,
            "samples": s.samples,
            "greedy": s.greedy_interval,
            "greedy_format_rate": s.greedy_format_rate,
            "sampled": s.sampled_interval,
            "sampled_format_rate": s.sampled_format_rate,
            "pass_at": self.pass_at,
            "reasons": self.reasons,
        }


def suite_style(style: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns the style that suits the tokenizer where none of a suite's styles was asked for.

    Raises ConfigError for a style that there is not.
    """
    if style in ("auto", "compact"):  # compact: words of a family's own, none of a suite's
        return "chat" if tokenizer.chat_template else COMPLETION
    if style not in STYLES:
        raise ConfigError(f"--task.style {style!r}: suites are asked in {', '.join(STYLES)}, auto")
    return style


def fingerprint(model: PreTrainedModel) -> str:
    """Returns a hash of the head of every weight: of one training no two checkpoints share it."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        head = parameter.detach().flatten()[:64].float().cpu().numpy()
        digest.update(f"{name} {tuple(parameter.shape)}".encode() + head.tobytes())
    return digest.hexdigest()


def run_suite(
    config: Config,
    suite: Suite,
    style: str,
    engine: RolloutEngine,
    tokenizer: PreTrainedTokenizerBase,
    sandbox: Runner,
    journal: Journal,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[KindResult]:
    """Samples and grades what the journal lacks; returns a result per kind of item.

    Each item is answered once greedily and `eval.samples` times as `rollout` says (temperature,
    top-p, top-k, min-p), with noise keyed by (seed, item, kind, index): a journal that was cut
    short is completed to the one that would have been.
    """
    n = config.eval.samples
    places = [place(item, index) for item in suite.items for index in range(GREEDY, n)]
    done, total = sum(p in journal.lines for p in places), len(places)
    on_progress(done, total)
    for lines in _answered(config, suite, style, engine, tokenizer, sandbox, journal):
        journal.add(lines)
        done += len(lines)
        on_progress(done, total)
    kinds = dict.fromkeys(item.kind for item in suite.items)
    return [_sum_up(kind, suite, n, journal) for kind in kinds]


def _answered(
    config: Config,
    suite: Suite,
    style: str,
    engine: RolloutEngine,
    tokenizer: PreTrainedTokenizerBase,
    sandbox: Runner,
    journal: Journal,
) -> Iterator[list[Line]]:
    """Yields the graded samples that the journal lacks, as they finish."""
    r, n = config.rollout, config.eval.samples
    prompts = prompt_ids(tokenizer, [instruction(i, style) for i in suite.items], style)
    context = engine.model.config.get_text_config().max_position_embeddings
    items: list[Item] = []
    questions: list[Request] = []
    too_long: list[Item] = []
    for item, prompt in zip(suite.items, prompts, strict=True):
        room = context - len(prompt)
        if room < 1:
            too_long.append(item)
            continue
        sampling = Sampling(
            max_new_tokens=min(r.max_new_tokens, room),
            temperature=r.temperature,
            top_p=r.top_p,
            top_k=r.top_k,
            min_p=r.min_p,
            stop_token_ids=end_ids(tokenizer, engine.model),
            stop_strings=stop_strings(suite, style),
        )
        key = make_key(config.run.seed, "suite", item.id, item.kind)
        items.append(item)
        questions.append(Request(token_ids=prompt, sampling=sampling, key=key, n=n))

    def is_wanted(question: int, index: int) -> bool:
        return place(items[question], index) not in journal.lines

    if left_out := [
        Line(*p, "malformed", "prompt_too_long", "")
        for item in too_long
        for index in range(GREEDY, n)
        if (p := place(item, index)) not in journal.lines
    ]:
        yield left_out
    for batch in ask(engine, tokenizer, questions, is_wanted, GRADED_TOGETHER):
        yield _graded([(items[r.question], r) for r in batch], style, sandbox)


def _graded(answered: Sequence[tuple[Item, Response]], style: str, sandbox: Runner) -> list[Line]:
    answers: dict[int, tuple[Item, str]] = {}
    grades: dict[int, Grade] = {}
    for number, (item, response) in enumerate(answered):
        try:
            answer = extract(item, style, response.text, response.finished)
            answers[number] = (item, answer)
        except FormatError as error:
            grades[number] = Grade(outcome="malformed", reason=str(error))
    grades |= zip(answers, grade_answers(sandbox, list(answers.values())), strict=True)
    return [
        Line(*place(item, r.index), grades[number].outcome, grades[number].reason, r.text)
        for number, (item, r) in enumerate(answered)
    ]


def place(item: Item, index: int) -> tuple[str, str, int]:
    """Returns where the journal has an item's answer."""
    return (item.id, item.kind, index)


def _answers(item: Item, n: int, journal: Journal) -> Answers:
    greedy, *sampled = (journal.lines[place(item, i)].outcome for i in range(GREEDY, n))
    return Answers(greedy, tuple(sampled))


def _sum_up(kind: Kind, suite: Suite, n: int, journal: Journal) -> KindResult:
    items = [item for item in suite.items if item.kind == kind]
    answers = [_answers(item, n, journal) for item in items]
    lines = [journal.lines[place(item, index)] for item in items for index in range(GREEDY, n)]
    reasons = Counter(line.reason for line in lines if line.outcome != "correct")
    ks = [k for k in KS if k < n] + ([n] if n else [])
    return KindResult(
        kind=kind,
        score=score(answers),
        pass_at={k: sum(pass_at_k(n, a.right, k) for a in answers) / len(items) for k in ks},
        reasons=dict(sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0]))),
    )


def item_results(suite: Suite, n: int, journal: Journal) -> list[dict[str, Any]]:
    """Returns, item by item, the greedy outcome and how many of n sampled answers were right."""
    return [
        {"id": item.id, "kind": item.kind, "greedy": answers.greedy, "correct": answers.right}
        for item in suite.items
        for answers in [_answers(item, n, journal)]
    ]
