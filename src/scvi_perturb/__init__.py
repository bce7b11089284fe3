"""Perturbation-response models for single cells on scvi-tools, and the judge beside them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from scvi_perturb import data, features, generative, model, pp, tl
from scvi_perturb._core import (
    LeakError,
    NotTrainedError,
    SchemaError,
    UnknownPerturbationError,
)
from scvi_perturb._version import __version__
from scvi_perturb.features import PerturbationFeatures
from scvi_perturb.generative import SamplerConfig
from scvi_perturb.model import (
    CausalPerturbVAE,
    HybridResidualModel,
    PerturbDiffusion,
    PerturbFlow,
)
from scvi_perturb.module import CausalConfig, DiffusionConfig, FlowConfig
from scvi_perturb.train import PlanConfig, TrainConfig

if TYPE_CHECKING:
    from types import ModuleType

    from scvi_perturb import benchmark, metrics, pl, predictors

__all__ = [
    "CausalConfig",
    "CausalPerturbVAE",
    "DiffusionConfig",
    "FlowConfig",
    "HybridResidualModel",
    "LeakError",
    "NotTrainedError",
    "PerturbDiffusion",
    "PerturbFlow",
    "PerturbationFeatures",
    "PlanConfig",
    "SamplerConfig",
    "SchemaError",
    "TrainConfig",
    "UnknownPerturbationError",
    "__version__",
    "benchmark",
    "data",
    "features",
    "generative",
    "metrics",
    "model",
    "pl",
    "pp",
    "predictors",
    "tl",
]

#: Most sessions use these late or never.
_LATER = ("benchmark", "metrics", "pl", "predictors")


def __getattr__(name: str) -> ModuleType:
    """Import the judge, what it judges by and figures when they are first used."""
    if name in _LATER:
        return import_module(f"scvi_perturb.{name}")
    msg = f"module 'scvi_perturb' has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return __all__
