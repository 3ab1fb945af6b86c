"""Evaluates a model on a suite: samples, grades, keeps what is done, and sums up."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from azr.accuracy import Interval, pass_at_k, wilson, wilson_clustered
from azr.config import Config, ConfigError
from azr.evaluation.journal import Journal, Line
from azr.evaluation.suite import Item, Kind, Suite
from azr.evaluation.suite_grading import Graded, Runner, grade_answers
from azr.evaluation.suite_prompts import (
    COMPLETION,
    STYLES,
    Extract,
    extract,
    instruction,
    stop_strings,
)
from azr.keys import make_key
from azr.rollout import Request, RolloutEngine, Sampling
from azr.text import end_ids, prompt_ids, response_texts

GREEDY = -1
"""Index of the greedy answer among an item's samples."""

GRADED_TOGETHER = 128
"""Finished samples that are graded and put on the disk together."""

DEFAULT_MAX_NEW_TOKENS = 1024

KS = (1, 2, 5, 10, 20, 50, 100, 200, 500)


@dataclass(frozen=True, slots=True)
class KindResult:
    """How a model did on the items of one kind."""

    kind: Kind
    items: int
    samples: int
    """Sampled answers to each item."""
    greedy: Interval
    greedy_format_rate: float
    sampled: Interval | None
    """Accuracy of the sampled answers, which is pass@1."""
    sampled_format_rate: float | None
    pass_at: dict[int, float]
    """k -> mean over items of the unbiased estimate of pass@k, for each k up to the samples."""
    reasons: dict[str, int]
    """Why answers, greedy and sampled, were not correct."""


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
    wanted = [
        (item, index) for index in (GREEDY, *range(n)) for item in suite.items
    ]  # the greedy answers first
    total, done = len(wanted), sum(_place(item, index) in journal.lines for item, index in wanted)
    on_progress(done, total)
    drawn = _draw(config, suite, style, engine, tokenizer, journal)
    while batch := list(islice(drawn, GRADED_TOGETHER)):
        journal.add(_graded(batch, style, sandbox))
        done += len(batch)
        on_progress(done, total)
    kinds = dict.fromkeys(item.kind for item in suite.items)
    return [_sum_up(kind, suite, n, journal.lines) for kind in kinds]


@dataclass(frozen=True, slots=True)
class _Drawn:
    """One response, not yet graded."""

    item: Item
    index: int
    text: str
    finished: bool
    fits: bool = True
    """False where the prompt alone fills the model's context: the text is empty then."""


def _draw(
    config: Config,
    suite: Suite,
    style: str,
    engine: RolloutEngine,
    tokenizer: PreTrainedTokenizerBase,
    journal: Journal,
) -> Iterator[_Drawn]:
    """Yields every sample that the journal lacks."""
    prompts = prompt_ids(tokenizer, [instruction(i, style) for i in suite.items], style)
    ends = end_ids(tokenizer, engine.model)
    context = engine.model.config.get_text_config().max_position_embeddings
    requests: list[Request] = []
    asked: list[tuple[Item, tuple[int, ...]]] = []
    for indices in ((GREEDY,), tuple(range(config.eval.samples))):
        for item, prompt in zip(suite.items, prompts, strict=True):
            if all(_place(item, index) in journal.lines for index in indices):
                continue
            room = context - len(prompt)
            if room < 1:
                yield from (_Drawn(item, i, "", False, fits=False) for i in indices)
                continue
            sampling = _sampling(config, item, style, ends, room, is_greedy=indices == (GREEDY,))
            key = make_key(config.run.seed, "suite", item.id, item.kind)
            n = len(indices)
            requests.append(Request(token_ids=prompt, sampling=sampling, key=key, n=n))
            asked.append((item, indices))
    for sample in engine.generate(requests):
        item, indices = asked[sample.request]
        index = indices[sample.index]
        if _place(item, index) not in journal.lines:
            stops = stop_strings(item, style)
            (text,) = response_texts(tokenizer, [sample.token_ids], ends, stops)
            yield _Drawn(item, index, text, sample.finish_reason == "stop")


def _sampling(
    config: Config, item: Item, style: str, ends: tuple[int, ...], room: int, *, is_greedy: bool
) -> Sampling:
    r = config.rollout
    greedy = Sampling(
        max_new_tokens=min(r.max_new_tokens or DEFAULT_MAX_NEW_TOKENS, room),
        temperature=0.0,
        stop_token_ids=ends,
        stop_strings=stop_strings(item, style),
    )
    if is_greedy:
        return greedy
    return replace(greedy, temperature=r.temperature, top_p=r.top_p, top_k=r.top_k, min_p=r.min_p)


def _graded(batch: Sequence[_Drawn], style: str, sandbox: Runner) -> list[Line]:
    extracts = [
        extract(d.item, style, d.text, d.finished) if d.fits else Extract(None, "prompt_too_long")
        for d in batch
    ]
    pairs = list(zip(batch, extracts, strict=True))
    grades = iter(
        grade_answers(sandbox, [(d.item, e.answer) for d, e in pairs if e.answer is not None])
    )
    lines = []
    for d, e in pairs:
        grade = Graded("malformed", e.reason or "") if e.answer is None else next(grades)
        lines.append(Line(*_place(d.item, d.index), grade.outcome, grade.reason, d.text))
    return lines


def _place(item: Item, index: int) -> tuple[str, str, int]:
    return (item.id, item.kind, index)


def _sum_up(
    kind: Kind, suite: Suite, n: int, lines: Mapping[tuple[str, str, int], Line]
) -> KindResult:
    items = [item for item in suite.items if item.kind == kind]
    greedy = [lines[_place(item, GREEDY)] for item in items]
    sampled = [[lines[_place(item, index)] for index in range(n)] for item in items]
    right = [sum(line.outcome == "correct" for line in of_item) for of_item in sampled]
    flat = [line for of_item in sampled for line in of_item]
    reasons = Counter(line.reason for line in (*greedy, *flat) if line.outcome != "correct")
    ks = [k for k in KS if k < n] + ([n] if n else [])
    return KindResult(
        kind=kind,
        items=len(items),
        samples=n,
        greedy=wilson(sum(g.outcome == "correct" for g in greedy) / len(items), len(items)),
        greedy_format_rate=1 - sum(g.outcome == "malformed" for g in greedy) / len(items),
        sampled=wilson_clustered(right, n) if n else None,
        sampled_format_rate=1 - sum(x.outcome == "malformed" for x in flat) / len(flat)
        if n
        else None,
        pass_at={k: sum(pass_at_k(n, c, k) for c in right) / len(items) for k in ks},
        reasons=dict(sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0]))),
    )


def item_results(suite: Suite, n: int, journal: Journal) -> list[dict[str, Any]]:
    """Returns, item by item, the greedy outcome and how many of n sampled answers were right."""
    return [
        {
            "id": item.id,
            "kind": item.kind,
            "greedy": journal.lines[_place(item, GREEDY)].outcome,
            "correct": sum(
                journal.lines[_place(item, index)].outcome == "correct" for index in range(n)
            ),
        }
        for item in suite.items
    ]
