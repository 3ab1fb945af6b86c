"""What a checkpoint holds of a run, and how a run goes on from one, exactly.

Every random draw is keyed by what it is for, so there is no generator to save but torch's own,
which a model with dropout would use. Verdicts and grades are saved with their tasks: nothing is
executed twice.
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from azr.config import Config
from azr.errors import RunError
from azr.learner import scheduled_rate
from azr.model.load import load_weights, save_model
from azr.run.checkpoint import MARKER, START, Checkpoint, Snapshot, find_start_damage, write_marked
from azr.run.log import RunLog
from azr.start.model import DTYPES
from azr.start.prepare import Prepared
from azr.start.trainee import Trainee, assemble


def settle_schedule(config: Config, saved: Config | None) -> Config:
    """Returns the configuration with the steps of the rate's schedule named.

    Where none are asked for they are those of `saved`, the configuration that a resumed run has.
    """
    steps = config.optim.schedule_steps
    if not steps:
        steps = settle_schedule(saved, None).optim.schedule_steps if saved else config.steps
    return replace(config, optim=replace(config.optim, schedule_steps=steps))


def describe_rate(config: Config, saved: Config | None, step: int) -> str:
    """Returns what the learning rate does after `step`; "" where its schedule runs as it began.

    `config` is settled; `saved` is what a resumed run was configured as before.
    """
    before = settle_schedule(saved or config, None)
    end, first, last = config.optim.schedule_steps, step + 1, config.steps
    is_constant = config.optim.decay_start_frac == 1 or config.optim.final_lr_frac == 1
    is_as_begun = end == before.optim.schedule_steps
    is_usual = last == before.steps if saved else is_constant or last == end
    if first > last or (is_as_begun and is_usual):
        return ""
    then, now, at_last = (
        f"{scheduled_rate(optim, at):.1e}"
        for optim, at in ((before.optim, step), (config.optim, first), (config.optim, last))
    )
    words = f"{now} from step {first} to {last}" if first < last else f"{now} at step {first}"
    if now != at_last:
        words = f"{now} at step {first}, {at_last} at step {last}"
    if is_constant:
        return words
    if not is_as_begun:
        return f"{words}: --optim.schedule-steps is {end}; at step {step} it was {then}"
    words += f": the schedule {'ended' if end < first else 'ends'} at step {end}"
    return words + (f"; --optim.schedule-steps {last} draws it anew" if end < last else "")


def snapshot(trainee: Trainee, log: RunLog, step: int) -> Snapshot:
    """Returns a copy of everything that the next step depends on."""
    model, tokenizer = trainee.model, trainee.tokenizer
    weights = _copied(model.state_dict())
    tensors = trainee.learner.state_tensors() | {"rng/torch": torch.get_rng_state()}
    if model.device.type == "cuda":
        tensors["rng/cuda"] = torch.cuda.get_rng_state()
    return Snapshot(
        step=step,
        tensors=tensors,
        state={
            "selfplay": trainee.selfplay.state(),
            "learner": {
                "skipped": trainee.learner.skipped_updates,
                "bad_in_a_row": trainee.learner.bad_in_a_row,
            },
            "log": log.state(step),
        },
        write_model=lambda folder: save_model(model, tokenizer, folder, weights),
    )


def restore(ready: Prepared, checkpoint: Checkpoint, run_dir: Path) -> Trainee:
    """Returns the trainee as it was when the checkpoint was made.

    Raises RunError where the KL term's reference is damaged; one without a fingerprint is named
    among the warnings.
    """
    config, tokenizer = ready.config, ready.tokenizer
    device, dtype = torch.device(config.run.device), DTYPES[config.run.dtype]
    fused_layers = config.model.fused_layers
    model = load_weights(str(checkpoint.path / "hf"), tokenizer, dtype, device, fused_layers)
    reference = None
    if config.loss.kl != "none":
        start = run_dir / START
        if problem := find_start_damage(run_dir):
            raise RunError(
                f"{start} cannot be used: {problem}; the KL term (--loss.kl) refers to it: put the "
                "folder back from a copy, or start a new run"
            )
        if not (start / MARKER).exists():
            ready.warnings.append(
                f"{start} has no {MARKER} file, as older runs have none: taken as it is"
            )
        reference = load_weights(str(start / "hf"), tokenizer, dtype, device, fused_layers)
        reference.eval().requires_grad_(False)
    trainee = assemble(config, ready.environment, model, tokenizer, reference)
    trainee.selfplay.load_state(checkpoint.state["selfplay"])
    trainee.learner.load_state(checkpoint.tensors, **checkpoint.state["learner"])
    torch.set_rng_state(checkpoint.tensors["rng/torch"])
    if "rng/cuda" in checkpoint.tensors and device.type == "cuda":
        torch.cuda.set_rng_state(checkpoint.tensors["rng/cuda"])
    return trainee


def save_start(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, run_dir: Path) -> None:
    """Keeps the start model: the KL term's reference, and what a result is compared with."""
    write_marked(run_dir / START, lambda folder: save_model(model, tokenizer, folder / "hf"))


def _copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns copies on the CPU; tensors that share their memory still do."""
    copies: dict[tuple, Tensor] = {}
    copied = {}
    for name, t in state.items():
        place = (t.data_ptr(), t.shape, t.stride())
        if place not in copies:
            copies[place] = t.detach().to("cpu", copy=True)
        copied[name] = copies[place]
    return copied
