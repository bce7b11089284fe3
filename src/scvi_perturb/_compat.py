"""The only file that touches private or version-dependent names of other packages."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

# scvi-tools is imported where it is used: the numerics, which know nothing of it, draw from here.
if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from anndata import AnnData
    from scvi.model.base import BaseModelClass
    from torch import Generator, Tensor

__all__ = [
    "forget_data",
    "layer_names",
    "quiet_lightning",
    "quiet_zarr",
    "read_pickled_model",
    "setup_arguments",
    "setup_method_name",
    "standard_gamma",
    "torch_device",
]


def layer_names(adata: AnnData) -> list[str]:
    """Return the sorted names of the layers; anndata 0.13 counts X among them, as None."""
    # `keys()`: the layers of a collection of files cannot be iterated.
    return sorted(name for name in adata.layers.keys() if name is not None)  # noqa: SIM118


def standard_gamma(shape: Tensor, *, generator: Generator | None) -> Tensor:
    """Draw gamma variables of scale one; torch's public functions take no generator."""
    drawn: Tensor = torch._standard_gamma(shape, generator=generator)
    return drawn


def setup_method_name() -> str:
    """Return the key of a registry that names the method which registers new data in `load`."""
    from scvi.data._constants import _SETUP_METHOD_NAME

    return str(_SETUP_METHOD_NAME)


def setup_arguments(adata: AnnData) -> dict[str, Any] | None:
    """Return the arguments of the last `setup_anndata` of ours that this object went through."""
    from scvi.data._constants import _SCVI_UUID_KEY, _SETUP_ARGS_KEY

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


def forget_data(model: BaseModelClass) -> None:
    """Free the data of a model, which scvi-tools keeps by the model's class."""
    held = model._per_instance_manager_store.pop(model.id, {})
    for key, manager in held.items():
        if model._setup_adata_manager_store.get(key) is manager:
            del model._setup_adata_manager_store[key]
    model._adata = model._adata_manager = None


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep advertisements and uses of deprecated names by Lightning itself off the screen."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")

    def is_no_tip(record: logging.LogRecord) -> bool:
        return "Tip:" not in record.getMessage()

    logger.addFilter(is_no_tip)
    try:
        with warnings.catch_warnings():
            # Lightning 2.6 on torch 2.13 and newer.
            message = r".*`isinstance\(treespec, LeafSpec\)` is deprecated"
            warnings.filterwarnings("ignore", message, FutureWarning)
            yield
    finally:
        logger.removeFilter(is_no_tip)


@contextmanager
def quiet_zarr() -> Iterator[None]:
    """Keep a notice of anndata 0.12 on its next default off the screen."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "zarr v3 autosharding", UserWarning)
        yield


def torch_device(accelerator: str, device: int | str) -> torch.device:
    """Return the device of scvi-tools' arguments.

    Raises `ValueError`: If there is no such device here.
    """
    from scvi.model._utils import parse_device_args

    try:
        _, _, found = parse_device_args(
            accelerator=accelerator,
            devices=device,
            return_device="torch",
            validate_single_device=True,
        )
    except Exception as error:  # lightning and scvi-tools raise several kinds, by accelerator
        msg = (
            f"accelerator={accelerator!r}, device={device!r} is not here: {error} Pass "
            'accelerator="cpu", or the number of a device of this machine.'
        )
        raise ValueError(msg) from error
    return found


def read_pickled_model(folder: Path) -> tuple[str, dict[str, Any], dict[str, torch.Tensor]]:
    """Return class, attributes and weights of a model that scvi-tools wrote; this runs its code."""
    from scvi.data._constants import _MODEL_NAME_KEY
    from scvi.model.base._save_load import _load_saved_files

    attributes, _, weights, _ = _load_saved_files(str(folder), load_adata=False, map_location="cpu")
    weights.pop("pyro_param_store", None)
    return str(attributes["registry_"][_MODEL_NAME_KEY]), attributes, weights
