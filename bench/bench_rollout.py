"""The rollout engine beside transformers' `generate` and its continuous batching.

Ragged: 32 prompts of 34 to 64 tokens, 8 samples each, planned lengths (exponential, mean 33, at
most 96), the same for all, sampled at temperature 1, with the log-prob of every token. `generate`
gets `num_return_sequences=8` and ends a row by a stopping criterion after its planned length; what
it computes for rows that have ended is not counted. Fixed: 256 prompts of 16 tokens, 32 new ones.
Rollouts on a GPU: bench/gpu_model.py.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    Qwen2Config,
    StoppingCriteria,
    StoppingCriteriaList,
)

from azr.model.attention import use_azr_attention
from azr.model.fused import fuse_layers
from azr.rollout import Request, RolloutEngine, Sampling
from bench.peers import Absent, absent

# transformers warns of what it does not need here: as errors, warnings would fail its rows.
pytestmark = pytest.mark.filterwarnings("default")

NEVER = 1  # the end-of-text token: planned lengths end rows, not the models' own


@dataclass(frozen=True)
class Work:
    """Prompts and the planned lengths of their samples."""

    prompts: list[tuple[int, ...]]
    lengths: np.ndarray
    """[prompts, samples]"""

    @classmethod
    def ragged(
        cls, prompts: int, samples: int, prompt_tokens: tuple[int, int], mean: int, most: int
    ) -> "Work":
        rng = np.random.default_rng(0)
        widths = rng.integers(prompt_tokens[0], prompt_tokens[1] + 1, size=prompts)
        ids = [tuple(rng.integers(2, 512, size=n).tolist()) for n in widths]
        lengths = np.ceil(rng.exponential(mean, size=(prompts, samples))).clip(1, most)
        return cls(ids, lengths.astype(np.int64))

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())

    def requests(self) -> list[Request]:
        """One request a sample: engines that share prompts find that they are equal."""
        return [
            Request(token_ids=ids, sampling=Sampling(max_new_tokens=int(n)), key=i * 1000 + j)
            for i, ids in enumerate(self.prompts)
            for j, n in enumerate(self.lengths[i])
        ]


def qwen2(**sizes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = Qwen2Config(
        tie_word_embeddings=True, pad_token_id=0, eos_token_id=NEVER, bos_token_id=None, **sizes
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


def tiny(hidden: int) -> PreTrainedModel:
    return qwen2(
        vocab_size=512, hidden_size=hidden, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=3 * hidden, max_position_embeddings=512,
    ).float()  # fmt: skip


class Planned(StoppingCriteria):
    """Ends each row after its planned number of tokens."""

    def __init__(self, width: int, lengths: torch.Tensor):
        self.width, self.lengths = width, lengths

    def __call__(self, input_ids, scores, **_) -> torch.Tensor:
        return input_ids.shape[1] - self.width >= self.lengths


def generate(model: PreTrainedModel, work: Work) -> Callable[[], torch.Tensor]:
    """The peer: prompts padded on the left, every row decoded until the longest has ended."""
    return lambda: generate_all(model, work)


def generated(model, ids, **options):
    """What `generate` returns, sampled from the model's own distribution, with all logits."""
    return model.generate(
        ids, do_sample=True, temperature=1.0, top_k=0, pad_token_id=0, output_logits=True,
        return_dict_in_generate=True, **options,
    )  # fmt: skip


def generate_all(model: PreTrainedModel, work: Work) -> torch.Tensor:
    width, device = max(map(len, work.prompts)), model.device
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in work.prompts], device=device)
    stop = Planned(width, torch.tensor(work.lengths.reshape(-1), device=device))
    out = generated(
        model, ids, attention_mask=(ids != 0).long(), top_p=1.0,
        num_return_sequences=work.lengths.shape[1], max_new_tokens=int(work.lengths.max()),
        stopping_criteria=StoppingCriteriaList([stop]), eos_token_id=NEVER,
        suppress_tokens=[NEVER],
    )  # fmt: skip
    new = out.sequences[:, width:]
    # A step at a time, as they lie: stacked, they would be copied once more.
    steps = [
        torch.log_softmax(logits.float(), dim=-1).gather(1, new[:, i : i + 1])
        for i, logits in enumerate(out.logits)
    ]
    return torch.cat(steps, dim=1)


def continuous(model, work: Work) -> Callable[[], object] | Absent:
    """transformers' continuous batching, equal lengths (it takes one limit for all): the mean."""
    if not hasattr(model, "generate_batch"):
        return absent("this transformers has no generate_batch")
    try:
        from transformers import ContinuousBatchingConfig
    except ImportError as error:
        return absent(f"no ContinuousBatchingConfig: {error}")
    samples = work.lengths.shape[1]
    config = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, eos_token_id=-1, pad_token_id=0,
        max_new_tokens=max(1, round(work.tokens / work.lengths.size)),
    )  # fmt: skip
    # Its defaults plan for a GPU's memory.
    settings = ContinuousBatchingConfig(
        return_logprobs=True, page_size=64, num_blocks=512, max_batch_tokens=1024
    )
    inputs = [list(p) for p in work.prompts for _ in range(samples)]

    def call() -> object:
        out = model.generate_batch(
            inputs, generation_config=config, continuous_batching_config=settings,
            progress_bar=False,
        )  # fmt: skip
        assert len(out) == len(inputs), "some requests failed"
        return out

    return call


class Rollout:
    """Ours: the engine, one request a sample, log-probs always."""

    def __init__(self, model: PreTrainedModel, work: Work, slots: int):
        self.engine, self.work = RolloutEngine(model, slots=slots), work

    def __call__(self) -> None:
        tokens = sum(len(s.logprobs) for s in self.engine.generate(self.work.requests()))
        assert tokens == self.work.tokens


def pair(make: Callable[[], PreTrainedModel]) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The same weights twice: with our attention, and untouched."""
    ours, theirs = make(), make()
    use_azr_attention(ours)
    fuse_layers(ours)
    return ours, theirs


@pytest.fixture(autouse=True)
def threads():
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


@pytest.mark.parametrize("hidden", [128, 256])
def bench_ragged(compare, hidden):
    """The workload of a training step: one prompt, several samples, all lengths."""
    work = Work.ragged(32, 8, (34, 64), mean=33, most=96)
    ours, theirs = pair(lambda: tiny(hidden))
    timed = compare.with_options(items=work.tokens, unit="token", rounds=3, warmup=1)
    result = timed(
        f"ragged, hidden {hidden}",
        Rollout(ours, work, slots=256),
        hf_generate=generate(theirs, work),
    )
    must, reach = (3.0, 5.0) if hidden == 128 else (2.5, None)
    result.bar("hf_generate", must=must, reach=reach)


def bench_ragged_continuous(compare):
    """The same beside continuous batching, slow on a CPU: at a quarter of the prompts."""
    work = Work.ragged(8, 8, (34, 64), mean=33, most=96)
    ours, theirs = pair(lambda: tiny(128))
    equal = work.lengths.size * max(1, round(work.tokens / work.lengths.size))
    timed = compare.with_options(
        items={"ours": work.tokens, "hf_generate_batch": equal}, unit="token", rounds=3, warmup=1
    )
    timed(
        "ragged, continuous batching",
        Rollout(ours, work, slots=256),
        hf_generate_batch=continuous(theirs, work),
    )


@pytest.mark.parametrize("hidden", [128, 256])
def bench_fixed(compare, hidden):
    """Nothing to gain by design: no row ends early, no prompt is shared."""
    rng = np.random.default_rng(1)
    prompts = [tuple(rng.integers(2, 512, size=16).tolist()) for _ in range(256)]
    work = Work(prompts, np.full((256, 1), 32))
    ours, theirs = pair(lambda: tiny(hidden))
    timed = compare.with_options(items=work.tokens, unit="token", rounds=3, warmup=1)
    result = timed(
        f"fixed length, hidden {hidden}",
        Rollout(ours, work, slots=256),
        hf_generate=generate(theirs, work),
    )
    result.bar("hf_generate", must=1.0)
