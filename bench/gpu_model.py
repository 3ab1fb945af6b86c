"""Stage `model` of `make gpu`: rollouts and an update at the shapes of Qwen2.5-3B.

    python -m bench.gpu_model --device cuda --findings FILE --folder DIR [--toy]

Random weights, made on the device in bf16. Decode steps of 128 and 256 rows are timed with the
layers of transformers and with fused ones. The engine runs 64 prompts x 8 samples at 256 slots
twice, once to capture its graphs and once for the clock; its log-probs are held against a forward
in training; then comes one update on 256 of the samples, as configs/a100-qwen2.5-3b-prime.toml has
it, and the same with the layers of transformers. Profiles of decode steps and of an update go to
DIR/profile.txt. Every figure is written as soon as it is known.
"""

import gc
import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Read when torch and OpenMP load.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from rlvr_kernels import linear_token_logprobs
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config

from azr.config import load_toml, preset_path
from azr.learner import Experience, Learner, micro_batches
from azr.learner.packing import pack
from azr.memory import memory_plan
from azr.model.attention import (
    PackedAttend,
    choose,
    embedding_weight,
    head_shape,
    head_weight,
    hidden_states,
    use_azr_attention,
)
from azr.model.fused import exchange_classes, fuse_layers, restore_classes
from azr.plan import by_phase, readable
from azr.rollout import Request, RolloutEngine, Sample, Sampling
from azr.rollout.graphs import side_stream
from bench.bench_rollout import NEVER, Work
from bench.gpu_record import Findings, stage_parser

PRESET = "a100-qwen2.5-3b-prime.toml"
QWEN_3B = dict(
    vocab_size=151936, hidden_size=2048, num_hidden_layers=36, num_attention_heads=16,
    num_key_value_heads=2, intermediate_size=11008, max_position_embeddings=4096,
)  # fmt: skip
TINY = dict(
    vocab_size=512, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, intermediate_size=96, max_position_embeddings=128,
)  # fmt: skip
GIB = 2**30
TOP = 25  # rows of a profile


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much work."""

    architecture: dict[str, Any]
    slots: int = 256
    few_rows: int = 8
    prompts: int = 64
    samples: int = 8
    prompt_tokens: tuple[int, int] = (150, 250)
    mean: int = 300
    most: int = 800
    compared: int = 32
    updated: int = 256
    profiled_steps: int = 6
    profiled_context: int = 500
    profiled_samples: int = 32
    rated_rows: dict[int, int] = field(default_factory=lambda: {128: 128, 256: 256})
    """By the name of the figure, since a rehearsal has fewer."""
    rated_steps: int = 64


FULL = Sizes(architecture=QWEN_3B)
TOY = Sizes(
    architecture=TINY, slots=16, prompts=4, samples=4, prompt_tokens=(8, 12), mean=8, most=24,
    compared=4, updated=16, profiled_context=16, profiled_samples=8,
    rated_rows={128: 8, 256: 16}, rated_steps=4,
)  # fmt: skip


class Device:
    """The device's clock and memory."""

    def __init__(self, name: str):
        self.on_cuda = name == "cuda"
        self.torch = torch.device(name)

    def sync(self) -> float:
        """Returns the time in seconds at which the device is done with all it was given."""
        if self.on_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def held_bytes(self) -> int:
        """Returns what tensors hold; on the CPU what the process has ever held."""
        return torch.cuda.memory_allocated() if self.on_cuda else _process_peak()

    def peak_bytes(self) -> int:
        """Returns the most that tensors held since `forget_peak`."""
        return torch.cuda.max_memory_allocated() if self.on_cuda else _process_peak()

    def forget_peak(self) -> None:
        if self.on_cuda:
            torch.cuda.reset_peak_memory_stats()

    def settle_libraries(self) -> None:
        """Lets cuBLAS make the workspaces that it keeps for the streams of a rollout."""
        if self.on_cuda:
            for stream in (torch.cuda.current_stream(), side_stream()):
                with torch.cuda.stream(stream):
                    x = torch.ones((64, 64), dtype=torch.bfloat16, device="cuda")
                    torch.mm(x, x, out_dtype=torch.float32)
            torch.cuda.synchronize()

    def clean(self) -> None:
        """Gives back what nothing refers to."""
        gc.collect()
        if self.on_cuda:
            torch.cuda.empty_cache()


def _process_peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def make_model(sizes: Sizes, device: torch.device) -> PreTrainedModel:
    """Returns the model with random weights, made where it lives."""
    torch.manual_seed(0)
    config = Qwen2Config(
        tie_word_embeddings=True, pad_token_id=0, eos_token_id=NEVER, bos_token_id=None,
        **sizes.architecture,
    )  # fmt: skip
    with device:
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, attn_implementation="sdpa"
        )
    use_azr_attention(model)
    fuse_layers(model, "on")
    return model.eval()


class Stage:
    """The parts of the stage, in the order of what their figures are worth."""

    def __init__(self, sizes: Sizes, device: Device, findings: Findings, folder: Path):
        self.sizes, self.device, self.findings = sizes, device, findings
        self.profile_file = folder / "profile.txt"
        self.model = make_model(sizes, device.torch)
        self.config = load_toml(preset_path(PRESET))
        device.clean()
        device.settle_libraries()
        self.weights_bytes = device.held_bytes()
        self.engine = RolloutEngine(self.model, slots=sizes.slots)
        head_size = head_shape(self.model.config)[1]
        self.backend = choose("auto", device.torch, torch.bfloat16, head_size)
        work = Work.ragged(
            sizes.prompts, sizes.samples, sizes.prompt_tokens, mean=sizes.mean, most=sizes.most
        )
        self.requests = work.requests()
        self.samples: list[Sample] = []
        parameters = sum(p.numel() for p in self.model.parameters())
        print(f"{parameters:,} parameters, attention {self.engine.backend.name}", flush=True)
        findings.note("attention backend", self.engine.backend.name)

    def decode_rates(self) -> None:
        """Decode steps beside their floor, on one prompt that all rows share: the layers of
        transformers, and then the fused ones that all other parts have."""
        prompt = tuple(range(2, 2 + self.sizes.profiled_context))
        sampling = Sampling(max_new_tokens=self.sizes.rated_steps)
        for layers, change in (("_unfused", restore_classes), ("", exchange_classes)):
            self.engine.release()  # graphs hold the kernels that they were captured with
            change(self.model)
            for name, rows in self.sizes.rated_rows.items():
                request = Request(token_ids=prompt, sampling=sampling, key=0, n=rows)
                list(self.engine.generate([request]))
                before = self._metered()
                list(self.engine.generate([request]))
                floor_s, step_s, _ = self._metered() - before
                if step_s:  # the CPU has no meter
                    self.findings.figure(f"decode_3b_{name}_rows{layers}_frac", floor_s / step_s)

    def rollouts(self) -> None:
        """Tokens a second and the share of the roofline, on a second call with graphs captured."""
        figure = self.findings.figure
        started = self.device.sync()
        list(self.engine.generate(self.requests))
        figure("rollout_3b_first_call_s", self.device.sync() - started)
        meter_before = self._metered()
        started = self.device.sync()
        self.samples = list(self.engine.generate(self.requests))
        took = self.device.sync() - started
        tokens = sum(len(sample.token_ids) for sample in self.samples)
        assert tokens == sum(r.sampling.max_new_tokens for r in self.requests)
        figure("decode_3b_256_tok_s", tokens / took)
        floor_s, step_s, phase_s = self._metered() - meter_before
        if step_s:  # the CPU has no meter
            figure("decode_3b_256_roofline_frac", floor_s / step_s)
            figure("rollout_3b_256_roofline_frac", floor_s / phase_s)
            figure("rollout_3b_256_decode_frac", step_s / took)
        self.findings.note("rollout", f"{tokens} tokens, {len(self.samples)} samples, {took:.2f} s")
        figure("engine_3b_held_gib", (self.device.held_bytes() - self.weights_bytes) / GIB)

    def _metered(self) -> np.ndarray:
        """Returns the floor of all decode steps so far, their time on the device, and the wall time
        of the rollouts without the capture of graphs, in seconds."""
        meter = self.engine.meter
        if meter is None:
            return np.zeros(3)
        self.engine.decode_roofline_frac()  # adds up the steps that are noted
        return np.array([meter.floor_s, meter.step_s, meter.phase_s])

    def mismatch(self) -> None:
        """Log-probs of the rollout beside those of the learner's own forward."""
        batch = self._experience(self.sizes.compared)
        packed = pack(batch, self.device.torch)
        with torch.no_grad():
            hidden = hidden_states(
                self.model, packed.ids, packed.positions, PackedAttend(self.backend, packed.rows)
            )[0]
            found = linear_token_logprobs(
                hidden.index_select(0, packed.token_of_pair),
                head_weight(self.model),
                packed.target_of_pair,
            ).logprobs[packed.pair_of_sample]
        difference: Tensor = (packed.rollout_logprobs - found)[packed.mask]
        size = difference.abs()
        self.findings.figure("logprob_3b_mean_abs_diff_nats", float(size.mean()))
        self.findings.figure("logprob_3b_p99_abs_diff_nats", float(size.quantile(0.99)))
        self.findings.figure("logprob_3b_mean_diff_nats", float(difference.mean()))

    def _experience(self, count: int) -> list[Experience]:
        """Returns the first samples in the requests' order, with advantages of both signs."""
        chosen = sorted(self.samples, key=lambda sample: sample.request)[:count]
        return [
            Experience(
                prompt_ids=self.requests[sample.request].token_ids,
                response_ids=sample.token_ids,
                rollout_logprobs=sample.logprobs,
                advantage=float((-1) ** i),
            )
            for i, sample in enumerate(chosen)
        ]

    def decode_profiles(self) -> None:
        """Decode steps of all slots and of a few, on one prompt that all rows share."""
        prompt = tuple(range(2, 2 + self.sizes.profiled_context))
        sampling = Sampling(max_new_tokens=self.sizes.profiled_steps)
        for rows in (self.sizes.slots, self.sizes.few_rows):
            request = Request(token_ids=prompt, sampling=sampling, key=0, n=rows)

            def call(request: Request = request) -> None:
                list(self.engine.generate([request]))

            call()  # captures, where its size was not met before
            self._profile(
                f"{rows} rows: a prompt of {len(prompt)} tokens, {sampling.max_new_tokens} steps",
                call,
            )

    def release(self) -> None:
        """What the engine gives back before an update."""
        self.engine.release()
        left = self.device.held_bytes() - self.weights_bytes
        self.findings.figure("engine_3b_left_gib", left / GIB)
        self.device.clean()

    def update(self) -> None:
        """One update: the first compiles, the second is timed, a small third is profiled."""
        sizes, config = self.sizes, self.config
        self.plan()
        learner = Learner(
            self.model, None, loss=config.loss, optim=config.optim,
            temperature=config.rollout.temperature, seed=0,
        )  # fmt: skip
        small, batch = (self._experience(n) for n in (sizes.profiled_samples, sizes.updated))
        learner.update(small, 1)
        self.device.clean()
        self.device.forget_peak()
        started = self.device.sync()
        metrics = learner.update(batch, 2)
        took = self.device.sync() - started
        tokens = sum(len(e.prompt_ids) + len(e.response_ids) for e in batch)
        figure = self.findings.figure
        figure("update_3b_s", took)
        figure("update_3b_tok_s", tokens / took)
        figure("update_3b_trained_tok_s", metrics["policy/tokens"] / took)
        figure("update_3b_peak_gib", self.device.peak_bytes() / GIB)
        figure("mismatch_3b_kl_nats", metrics["mismatch/kl"])
        self.findings.note("update", {k: v for k, v in metrics.items() if np.isfinite(v)})
        if self.engine.meter:
            rate = self.engine.meter.floor.rates.flop_per_s
            figure("update_3b_matmul_frac", self._update_flop(batch) / took / rate)
        self._profile(f"update on {len(small)} samples", lambda: learner.update(small, 3))
        restore_classes(self.model)
        started = self.device.sync()
        learner.update(batch, 4)
        figure("update_3b_unfused_s", self.device.sync() - started)
        exchange_classes(self.model)

    def _update_flop(self, batch: list[Experience]) -> float:
        """Returns the operations of an update's matrix products: a forward pass and a backward of
        twice as many. What is computed again does not count, nor does attention."""
        head = head_weight(self.model).numel()
        used = (
            sum(p.numel() for p in self.model.parameters()) - embedding_weight(self.model).numel()
        )
        flop = 0.0
        budget = self.config.optim.micro_batch_tokens
        for part in micro_batches(batch, range(len(batch)), budget, self.backend):
            packed = pack([batch[i] for i in part], torch.device("cpu"))
            flop += 6.0 * (used * packed.ids.numel() + head * packed.token_of_pair.numel())
        return flop

    def plan(self) -> None:
        """What azr.memory says that the update will hold."""
        longest = max(request.most_tokens for request in self.requests)
        parameters = sum(p.numel() for p in self.model.parameters())
        parts = memory_plan(self.config, self.model.config, parameters, longest)
        phases = by_phase(parts)
        held = ("always", "self-play", "update")
        planned = [part for phase in held for part in phases[phase]]
        self.findings.figure("update_3b_planned_gib", sum(part.bytes for part in planned) / GIB)
        self.findings.note("memory plan", [f"{p.name}: {readable(p.bytes)}" for p in planned])

    def _profile(self, title: str, call: Callable[[], object]) -> None:
        """Adds the call's kernels by time to the profile's file."""
        activity = torch.profiler.ProfilerActivity
        activities = [activity.CUDA if self.device.on_cuda else activity.CPU]
        with torch.profiler.profile(activities=activities) as profile:
            call()
            self.device.sync()
        key = "self_device_time_total" if self.device.on_cuda else "self_cpu_time_total"
        table = sorted(profile.key_averages(), key=lambda e: getattr(e, key), reverse=True)
        total_us = sum(getattr(e, key) for e in table) or 1.0
        lines = [title, f"{total_us / 1e3:.2f} ms in {sum(e.count for e in table)} calls"]
        for e in table[:TOP]:
            us = getattr(e, key)
            lines.append(f"{us / 1e3:10.3f} ms {us / total_us:6.1%} {e.count:7d}x  {e.key[:120]}")
        with self.profile_file.open("a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n\n")
        print(f"profile: {title}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Runs every part."""
    options = stage_parser("bench.gpu_model", keeps="the profile goes").parse_args(arguments)
    torch.set_num_threads(1)
    sizes = TOY if options.toy else FULL
    findings = Findings(options.findings)
    stage = Stage(sizes, Device(options.device), findings, options.folder)
    parts = (
        stage.decode_rates,
        stage.rollouts,
        stage.mismatch,
        stage.decode_profiles,
        stage.release,
        stage.update,
    )
    return findings.run({part.__name__: part for part in parts})


if __name__ == "__main__":
    raise SystemExit(main())
