"""Perturbation-response models for single cells on scvi-tools, and the judge beside them."""

from scvi_perturb import data, features, generative, metrics, model, pl, pp, predictors, tl
from scvi_perturb._errors import (
    LeakError,
    NotTrainedError,
    SchemaError,
    UnknownPerturbationError,
)
from scvi_perturb._version import __version__
from scvi_perturb.features import PerturbationFeatures
from scvi_perturb.generative import SamplerConfig
from scvi_perturb.model import PerturbDiffusion
from scvi_perturb.module import DiffusionConfig
from scvi_perturb.train import PlanConfig, TrainConfig

__all__ = [
    "DiffusionConfig",
    "LeakError",
    "NotTrainedError",
    "PerturbDiffusion",
    "PerturbationFeatures",
    "PlanConfig",
    "SamplerConfig",
    "SchemaError",
    "TrainConfig",
    "UnknownPerturbationError",
    "__version__",
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
