"""Results for readers: figures, tables in Markdown, a report in one file."""

from __future__ import annotations

from scvi_perturb.benchmark._view._figures_of_calibration import calibration_curve
from scvi_perturb.benchmark._view._figures_of_changes import change_scatter
from scvi_perturb.benchmark._view._figures_of_cost import cost_dots
from scvi_perturb.benchmark._view._figures_of_scores import score_bars
from scvi_perturb.benchmark._view._figures_of_values import metric_values
from scvi_perturb.benchmark._view._markdown import markdown_table, markdown_tables
from scvi_perturb.benchmark._view._report import write_report

__all__ = [
    "calibration_curve",
    "change_scatter",
    "cost_dots",
    "markdown_table",
    "markdown_tables",
    "metric_values",
    "score_bars",
    "write_report",
]
