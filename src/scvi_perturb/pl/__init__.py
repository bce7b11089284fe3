"""Draw real and predicted cells, effects, training and benchmarks.

Functions return Axes and show nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from scvi_perturb.pl._effects import effect_scatter
from scvi_perturb.pl._training import training_history
from scvi_perturb.pl._umap import umap_real_and_predicted

if TYPE_CHECKING:
    from scvi_perturb.benchmark._view import (
        calibration_curve,
        change_scatter,
        cost_dots,
        metric_values,
        score_bars,
    )

__all__ = [
    "calibration_curve",
    "change_scatter",
    "cost_dots",
    "effect_scatter",
    "metric_values",
    "score_bars",
    "training_history",
    "umap_real_and_predicted",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Import the figures of benchmarks when they are first used."""
    if name in __all__:
        return getattr(import_module("scvi_perturb.benchmark._view"), name)
    msg = f"module 'scvi_perturb.pl' has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return __all__
