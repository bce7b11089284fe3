"""The figures of a benchmark, also in `scvi_perturb.pl`."""

from __future__ import annotations

from scvi_perturb.benchmark._figures_of_calibration import calibration_curve
from scvi_perturb.benchmark._figures_of_changes import change_scatter
from scvi_perturb.benchmark._figures_of_cost import cost_dots
from scvi_perturb.benchmark._figures_of_scores import score_bars
from scvi_perturb.benchmark._figures_of_values import metric_values

__all__ = ["calibration_curve", "change_scatter", "cost_dots", "metric_values", "score_bars"]
