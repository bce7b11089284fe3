"""Reports of results: figures, Markdown tables, and a self-contained HTML page."""

from __future__ import annotations

from scvi_perturb.benchmark.report._figures import (
    calibration_curve,
    change_scatter,
    cost_dots,
    metric_values,
    score_bars,
)
from scvi_perturb.benchmark.report._html import write_report
from scvi_perturb.benchmark.report._markdown import markdown_table, markdown_tables

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
