"""Perturbation-response models for single cells on scvi-tools, and the judge beside them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from scvi_perturb._core import (
    LeakError,
    NotTrainedError,
    SchemaError,
    UnknownPerturbationError,
)
from scvi_perturb._version import __version__

if TYPE_CHECKING:
    from scvi_perturb import (
        benchmark,
        data,
        features,
        generative,
        metrics,
        model,
        pl,
        pp,
        predictors,
        tl,
    )
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

#: Where the names of this package that are no parts of it are defined.
_OWNERS: Final = {
    **dict.fromkeys(("CausalConfig", "DiffusionConfig", "FlowConfig"), "module"),
    **dict.fromkeys(
        ("CausalPerturbVAE", "HybridResidualModel", "PerturbDiffusion", "PerturbFlow"), "model"
    ),
    **dict.fromkeys(("PlanConfig", "TrainConfig"), "train"),
    "PerturbationFeatures": "features",
    "SamplerConfig": "generative",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Import a part, or what it defines, when it is first used: scvi-tools takes seconds."""
    if name in _OWNERS:
        return getattr(import_module(f"scvi_perturb.{_OWNERS[name]}"), name)
    if name in __all__:
        return import_module(f"scvi_perturb.{name}")
    msg = f"module 'scvi_perturb' has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return __all__
