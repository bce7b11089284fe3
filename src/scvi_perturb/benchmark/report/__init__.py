"""Reports of results: figures, Markdown tables, and a self-contained HTML page."""

from __future__ import annotations

from scvi_perturb.benchmark.report._answers import (
    condition_support,
    effect_intervals,
    trained_stages,
    training_curves,
)
from scvi_perturb.benchmark.report._figures import (
    calibration_curve,
    change_scatter,
    cost_dots,
    metric_values,
    score_bars,
)
from scvi_perturb.benchmark.report._html import write_report
from scvi_perturb.benchmark.report._markdown import markdown_table, markdown_tables
from scvi_perturb.benchmark.report._study import study_report

__all__ = [
    "calibration_curve",
    "change_scatter",
    "condition_support",
    "cost_dots",
    "effect_intervals",
    "markdown_table",
    "markdown_tables",
    "metric_values",
    "score_bars",
    "study_report",
    "trained_stages",
    "training_curves",
    "write_report",
]
