"""What `--model` may name. Needs no torch, so that a wrong one is told at once."""

from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from azr.config import RunConfig
from azr.errors import ModelError


def check_model_path(path: str) -> None:
    """Raises ModelError where a path is neither a folder nor what could be a hub id.

    An empty one stands for a model from scratch.
    """
    local = Path(path)
    if not path or local.is_dir():
        return
    is_run = "/" in path and any(local.parent.glob("*/config.toml"))
    is_run |= local.is_relative_to(RunConfig().root)
    if is_run or local.exists() or not _is_hub_id(path):
        raise ModelError(f"{path}: no such folder")


def _is_hub_id(path: str) -> bool:
    try:
        validate_repo_id(path)
    except HFValidationError:
        return False
    return path.isascii()
