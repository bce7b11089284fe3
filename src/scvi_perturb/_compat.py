"""The only file that touches private or version-dependent names of scvi-tools."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from scvi.data._constants import _MODEL_NAME_KEY, _SETUP_METHOD_NAME
from scvi.model._utils import parse_device_args
from scvi.model.base._save_load import _load_saved_files
from scvi.train import TrainingPlan

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch
    from scvi.module.base import LossOutput

__all__ = [
    "SETUP_METHOD_NAME",
    "log_loss_components",
    "read_pickled_model",
    "torch_device",
    "without_tips",
]

#: Key of a registry under which the method stands that registers new data when a model is loaded.
SETUP_METHOD_NAME = _SETUP_METHOD_NAME


def log_loss_components(
    plan: TrainingPlan, output: LossOutput, metrics: dict[str, Any], mode: str
) -> None:
    """Log reconstruction, divergence and extra metrics of a batch.

    scvi-tools' method runs under `inference_mode`, in which the in-place synchronisation of
    distributed training on CPU fails as soon as there are extra metrics; the function it wraps
    does not.
    """
    method = TrainingPlan.compute_and_log_metrics
    getattr(method, "__wrapped__", method)(plan, output, metrics, mode)


@contextmanager
def without_tips() -> Iterator[None]:
    """Keep Lightning's advertisements, and nothing else, out of the log inside the block."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")

    def is_no_tip(record: logging.LogRecord) -> bool:
        return "Tip:" not in record.getMessage()

    logger.addFilter(is_no_tip)
    try:
        yield
    finally:
        logger.removeFilter(is_no_tip)


def torch_device(accelerator: str, device: int | str) -> torch.device:
    """Return the device of scvi-tools' arguments."""
    _, _, found = parse_device_args(
        accelerator=accelerator,
        devices=device,
        return_device="torch",
        validate_single_device=True,
    )
    return found


def read_pickled_model(folder: Path) -> tuple[str, dict[str, Any], dict[str, torch.Tensor]]:
    """Return class, attributes and weights of a model that scvi-tools wrote; this runs its code."""
    attributes, _, weights, _ = _load_saved_files(str(folder), load_adata=False, map_location="cpu")
    weights.pop("pyro_param_store", None)
    return str(attributes["registry_"][_MODEL_NAME_KEY]), attributes, weights
