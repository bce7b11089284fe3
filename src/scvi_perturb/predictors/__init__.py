"""Anything that predicts a mean, and the trivial predictions of cells.

They are the baselines of every comparison. They know nothing of the models: both meet in a
benchmark through `Predictor` and `CellPredictor`.

A predictor never receives an expression value, a cell number or a library size of a held-out
condition: `fit` reads the training and validation cells of a split and no others.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from scvi_perturb.predictors._additive import Additive
from scvi_perturb.predictors._blended_ridge import BlendedKernelRidge
from scvi_perturb.predictors._condition_gp import ConditionGP
from scvi_perturb.predictors._context_mean import ContextMean
from scvi_perturb.predictors._contrasted_mean import ContrastedMean
from scvi_perturb.predictors._dose_line import DoseLine
from scvi_perturb.predictors._first_known import FirstKnown
from scvi_perturb.predictors._forest import FeatureForest
from scvi_perturb.predictors._given import GivenMeans
from scvi_perturb.predictors._kernel_ridge import KernelRidge
from scvi_perturb.predictors._latent_additive import LatentAdditive
from scvi_perturb.predictors._matching_mean import MatchingMean
from scvi_perturb.predictors._mean import MeanPredictor
from scvi_perturb.predictors._nearest_cells import NearestCells
from scvi_perturb.predictors._nearest_perturbation import NearestPerturbation
from scvi_perturb.predictors._negative_binomial_mean import NegativeBinomialMean
from scvi_perturb.predictors._no_change import NoChange
from scvi_perturb.predictors._pca_ridge import PCARidge
from scvi_perturb.predictors._protocol import CellPredictor, Predictor
from scvi_perturb.predictors._shifted_control import ShiftedControl
from scvi_perturb.predictors._signatures import SampledSignatures
from scvi_perturb.predictors._stack import StackedMean

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "PREDICTORS",
    "Additive",
    "BlendedKernelRidge",
    "CellPredictor",
    "ConditionGP",
    "ContextMean",
    "ContrastedMean",
    "DoseLine",
    "FeatureForest",
    "FirstKnown",
    "GivenMeans",
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

#: Every predictor by name. A new one is a class in a file of its own and a line here.
PREDICTORS: Final[Mapping[str, type[Predictor]]] = MappingProxyType(
    {
        cls.name: cls
        for cls in (
            Additive,
            BlendedKernelRidge,
            ConditionGP,
            ContextMean,
            DoseLine,
            FeatureForest,
            KernelRidge,
            LatentAdditive,
            MatchingMean,
            NearestCells,
            NearestPerturbation,
            NegativeBinomialMean,
            NoChange,
            PCARidge,
            ShiftedControl,
            StackedMean,
        )
    }
)
