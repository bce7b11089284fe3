"""Anything that predicts a mean, and the trivial predictions of cells.

They are the baselines of every comparison. They know nothing of the models: both meet in a
benchmark through `Predictor` and `CellPredictor`.

A predictor never receives an expression value, a cell number or a library size of a held-out
condition: `fit` reads the training and validation cells of a split and no others.
"""

from __future__ import annotations

from typing import Final

from scvi_perturb.predictors.base import MeanPredictor
from scvi_perturb.predictors.baselines import (
    Additive,
    ContextMean,
    DoseLine,
    MatchingMean,
    NearestPerturbation,
    NoChange,
)
from scvi_perturb.predictors.cells import NearestCells, NegativeBinomialMean, ShiftedControl
from scvi_perturb.predictors.external import ExternalMeans, FirstKnown
from scvi_perturb.predictors.forest import FeatureForest
from scvi_perturb.predictors.gaussian_process.condition_gp import ConditionGP
from scvi_perturb.predictors.latent_additive import LatentAdditive
from scvi_perturb.predictors.request import CellPredictor, Predictor
from scvi_perturb.predictors.ridge import BlendedKernelRidge, KernelRidge, PCARidge
from scvi_perturb.predictors.signatures import SampledSignatures
from scvi_perturb.predictors.stack.stacked_mean import StackedMean
from scvi_perturb.registry import Registry, registry

__all__ = [
    "PREDICTORS",
    "Additive",
    "BlendedKernelRidge",
    "CellPredictor",
    "ConditionGP",
    "ContextMean",
    "DoseLine",
    "ExternalMeans",
    "FeatureForest",
    "FirstKnown",
    "KernelRidge",
    "LatentAdditive",
    "MatchingMean",
    "MeanPredictor",
    "NearestCells",
    "NearestPerturbation",
    "NegativeBinomialMean",
    "NoChange",
    "PCARidge",
    "Predictor",
    "SampledSignatures",
    "ShiftedControl",
    "StackedMean",
]

#: Every predictor by name, those of other packages included.
PREDICTORS: Final[Registry[type[Predictor]]] = registry("predictors")
