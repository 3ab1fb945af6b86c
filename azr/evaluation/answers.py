"""Answers of a model, greedy and sampled, and their grading where the verifier fails at first."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from azr.rollout import Request, RolloutEngine
from azr.text import response_texts

T = TypeVar("T")
R = TypeVar("R")

GREEDY = -1
"""Index of the greedy answer among those to a question; the sampled ones count from 0."""

RETRIES = 2
"""Times that the verifier is asked again about what it failed on."""


@dataclass(frozen=True, slots=True)
class Response:
    """An answer as text."""

    question: int
    """Index of the request."""
    index: int
    text: str
    finished: bool
    """False where it ran into the length limit."""


def ask(
    engine: RolloutEngine,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Request],
    answered: Collection[tuple[int, int]] = (),
    together: int | None = None,
) -> Iterator[list[Response]]:
    """Yields the answers, as they finish, to questions that all end by the same tokens and strings.

    Each is asked once greedily and n times as it says; answers (question, index) that are there
    already are left out. `together` of them make a list; with None all do.
    """
    greedy = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
    rounds = [
        (GREEDY, [replace(q, n=1, sampling=replace(q.sampling, **greedy)) for q in questions]),
        (0, questions),
    ]
    asked = [
        (number, first, request)
        for first, requests in rounds
        for number, request in enumerate(requests)
        if any((number, first + i) not in answered for i in range(request.n))
    ]
    samples = engine.generate([request for _, _, request in asked])
    while batch := list(islice(samples, together)):
        ends = questions[0].sampling
        texts = response_texts(
            tokenizer, [s.token_ids for s in batch], ends.stop_token_ids, ends.stop_strings
        )
        responses = []
        for sample, text in zip(batch, texts, strict=True):
            number, first, _ = asked[sample.request]
            responses.append(Response(number, first + sample.index, text, sample.is_finished))
        yield [r for r in responses if (r.question, r.index) not in answered]


def insist(
    verify: Callable[[list[T]], list[R]], asked: Sequence[T], is_failure: Callable[[R], bool]
) -> list[R]:
    """Returns what `verify` makes of each; what it fails on it is handed again, `RETRIES` times."""
    results = verify(list(asked))
    for _ in range(RETRIES):
        left = [i for i, result in enumerate(results) if is_failure(result)]
        if not left:
            break
        for i, result in zip(left, verify([asked[i] for i in left]), strict=True):
            results[i] = result
    return results
