"""Plots of real and predicted cells, effects, training and benchmarks.

Functions return Axes and show nothing.
"""

from __future__ import annotations

from scvi_perturb.benchmark.report import (
    calibration_curve,
    change_scatter,
    condition_support,
    cost_dots,
    effect_intervals,
    metric_values,
    score_bars,
    training_curves,
)
from scvi_perturb.pl._conditions import (
    dose_response,
    interaction_map,
    responders,
    similarity_map,
)
from scvi_perturb.pl._figures import effect_scatter, training_history, umap_real_and_predicted

__all__ = [
    "calibration_curve",
    "change_scatter",
    "condition_support",
    "cost_dots",
    "dose_response",
    "effect_intervals",
    "effect_scatter",
    "interaction_map",
    "metric_values",
    "responders",
    "score_bars",
    "similarity_map",
    "training_curves",
    "training_history",
    "umap_real_and_predicted",
]
