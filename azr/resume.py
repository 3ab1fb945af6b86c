"""What a checkpoint holds of a run, and how a run goes on from one, exactly.

Every random draw is keyed by what it is for, so there is no generator to save but torch's own,
which a model with dropout would use. Verdicts and grades are saved with their tasks: nothing is
executed twice.
"""

from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from azr.checkpoint import Checkpoint, Snapshot
from azr.config import Config
from azr.log import RunLog
from azr.model.load import load_model, save_model
from azr.start import DTYPES, Trainee, assemble
from azr.tasks import Environment

START = "start"
"""Folder of the model that self-play started from, in the run directory."""


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


def restore(
    config: Config, environment: Environment, checkpoint: Checkpoint, run_dir: Path
) -> Trainee:
    """Returns the trainee as it was when the checkpoint was made."""
    device = torch.device(config.run.device)
    dtype = DTYPES[config.run.dtype]
    model, tokenizer = load_model(str(checkpoint.path / "hf"), dtype, device)
    reference = None
    if config.loss.kl != "none":
        reference = load_model(str(run_dir / START / "hf"), dtype, device)[0]
        reference.eval().requires_grad_(False)
    trainee = assemble(config, environment, model, tokenizer, reference)
    trainee.selfplay.load_state(checkpoint.state["selfplay"])
    trainee.learner.load_state(checkpoint.tensors, **checkpoint.state["learner"])
    torch.set_rng_state(checkpoint.tensors["rng/torch"])
    if "rng/cuda" in checkpoint.tensors and device.type == "cuda":
        torch.cuda.set_rng_state(checkpoint.tensors["rng/cuda"])
    return trainee


def save_start(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, run_dir: Path) -> None:
    """Keeps the start model: the KL term's reference, and what a result is compared with."""
    folder = run_dir / START / "hf"
    folder.mkdir(parents=True)
    save_model(model, tokenizer, folder)


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
