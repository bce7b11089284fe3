"""The only file that touches private or version-dependent names of scvi-tools."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from scvi.data._constants import _SCVI_UUID_KEY, _SETUP_ARGS_KEY, _SETUP_METHOD_NAME
from scvi.train import TrainingPlan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData
    from scvi.module.base import LossOutput

__all__ = ["SETUP_METHOD_NAME", "log_loss_components", "setup_arguments", "without_tips"]

#: Key of a registry under which the method stands that registers new data when a model is loaded.
SETUP_METHOD_NAME = _SETUP_METHOD_NAME


def setup_arguments(adata: AnnData) -> dict[str, Any] | None:
    """Return the arguments of the last `setup_anndata` of ours that this object went through."""
    if _SCVI_UUID_KEY not in adata.uns:
        return None
    from scvi.model.base import BaseModelClass

    classes, found = [BaseModelClass], None
    while classes:
        one = classes.pop()
        classes += one.__subclasses__()
        manager = vars(one).get("_setup_adata_manager_store", {}).get(adata.uns[_SCVI_UUID_KEY])
        if manager is not None and "context_keys" in (own := manager.registry[_SETUP_ARGS_KEY]):
            found = own
    return found


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
