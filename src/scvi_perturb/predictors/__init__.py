"""Anything that predicts a mean, and the trivial predictions of cells.

They are the baselines of every comparison. They know nothing of the models: both meet in a
benchmark through `Predictor` and `CellPredictor`.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from scvi_perturb.predictors._additive import Additive
from scvi_perturb.predictors._context_mean import ContextMean
from scvi_perturb.predictors._mean import MeanPredictor
from scvi_perturb.predictors._no_change import NoChange
from scvi_perturb.predictors._protocol import CellPredictor, Predictor
from scvi_perturb.predictors._shifted_control import ShiftedControl

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "PREDICTORS",
    "Additive",
    "CellPredictor",
    "ContextMean",
    "MeanPredictor",
    "NoChange",
    "Predictor",
    "ShiftedControl",
]

#: Every predictor by name. A new one is a class in a file of its own and a line here.
PREDICTORS: Final[Mapping[str, type[Predictor]]] = MappingProxyType(
    {cls.name: cls for cls in (Additive, ContextMean, NoChange, ShiftedControl)}
)
