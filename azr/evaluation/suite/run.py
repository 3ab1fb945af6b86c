"""Evaluates a model on a suite: samples, grades, keeps what is done, and sums up."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from azr.accuracy import Answers, Score, pass_at_k, score
from azr.config import Config, ConfigError
from azr.evaluation.answers import GREEDY, Response, ask
from azr.evaluation.suite.grading import Runner, grade_answers
from azr.evaluation.suite.items import Item, Kind, Suite
from azr.evaluation.suite.journal import Journal, Line
from azr.evaluation.suite.prompts import (
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
        result = {"kind": self.kind, "items": self.score.tasks, "samples": self.score.samples}
        for way, accuracy, format_rate in self.score.ways():
            result |= {way: accuracy, f"{way}_format_rate": format_rate}
        return result | {"pass_at": self.pass_at, "reasons": self.reasons}


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
    r, n = config.rollout, config.eval.samples
    context = engine.model.config.get_text_config().max_position_embeddings
    sampling = Sampling(
        max_new_tokens=r.max_new_tokens,
        temperature=r.temperature,
        top_p=r.top_p,
        top_k=r.top_k,
        min_p=r.min_p,
        stop_token_ids=end_ids(tokenizer, engine.model),
        stop_strings=stop_strings(suite, style),
    )
    questions = []
    prompts = prompt_ids(tokenizer, [instruction(i, style) for i in suite.items], style)
    for item, prompt in zip(suite.items, prompts, strict=True):
        room = max(1, min(r.max_new_tokens, context - len(prompt)))
        fitting = replace(sampling, max_new_tokens=room)
        key = make_key(config.run.seed, "suite", item.id, item.kind)
        questions.append(Request(token_ids=prompt, sampling=fitting, key=key, n=n))
    places = {
        (number, index): _place(item, index)
        for number, item in enumerate(suite.items)
        for index in range(GREEDY, n)
    }
    done = {answer for answer, place in places.items() if place in journal.lines}
    too_long = [
        (number, index)
        for number, index in places
        if (number, index) not in done and questions[number].most_tokens > context
    ]
    reason = "prompt_too_long"
    journal.add([Line(*places[a], outcome="malformed", reason=reason, text="") for a in too_long])
    done.update(too_long)
    count = len(done)
    on_progress(count, len(places))
    for batch in ask(engine, tokenizer, questions, done, GRADED_TOGETHER):
        journal.add(_graded(suite, style, sandbox, batch))
        count += len(batch)
        on_progress(count, len(places))
    kinds = dict.fromkeys(item.kind for item in suite.items)
    return [_sum_up(kind, suite, n, journal) for kind in kinds]


def _place(item: Item, index: int) -> tuple[str, str, int]:
    """Returns where the journal has an item's answer."""
    return (item.id, item.kind, index)


def _graded(suite: Suite, style: str, sandbox: Runner, batch: Sequence[Response]) -> list[Line]:
    answers: dict[int, tuple[Item, str]] = {}
    grades: dict[int, Grade] = {}
    for number, r in enumerate(batch):
        item = suite.items[r.question]
        try:
            answers[number] = (item, extract(item, style, r.text, r.finished))
        except FormatError as error:
            grades[number] = Grade(outcome="malformed", reason=str(error))
    grades |= zip(answers, grade_answers(sandbox, list(answers.values())), strict=True)
    return [
        Line(
            *_place(suite.items[r.question], r.index),
            outcome=grades[number].outcome,
            reason=grades[number].reason,
            text=r.text,
        )
        for number, r in enumerate(batch)
    ]


def _answers(item: Item, n: int, journal: Journal) -> Answers:
    greedy, *sampled = (journal.lines[_place(item, i)].outcome for i in range(GREEDY, n))
    return Answers(greedy, tuple(sampled))


def _sum_up(kind: Kind, suite: Suite, n: int, journal: Journal) -> KindResult:
    items = [item for item in suite.items if item.kind == kind]
    answers = [_answers(item, n, journal) for item in items]
    lines = [journal.lines[_place(item, index)] for item in items for index in range(GREEDY, n)]
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
    answers = [_answers(item, n, journal) for item in suite.items]
    return [
        {"id": item.id, "kind": item.kind, "greedy": a.greedy, "correct": a.right}
        for item, a in zip(suite.items, answers, strict=True)
    ]
