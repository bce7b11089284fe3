"""The figures of a report, drawn outside of pyplot so that nothing stays open."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from scvi_perturb.benchmark._view._choosing import one_metric, opponent
from scvi_perturb.benchmark._view._drawing import WIDTH, height
from scvi_perturb.benchmark._view._figures_of_calibration import calibration_curve
from scvi_perturb.benchmark._view._figures_of_changes import change_scatter
from scvi_perturb.benchmark._view._figures_of_cost import cost_dots
from scvi_perturb.benchmark._view._figures_of_scores import score_bars
from scvi_perturb.benchmark._view._figures_of_values import metric_values
from scvi_perturb.benchmark._view._html import element, picture
from scvi_perturb.benchmark._view._reading import title_of
from scvi_perturb.metrics import METRICS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from matplotlib.figure import Figure

    from scvi_perturb.benchmark.results import Record

__all__ = ["calibration_pictures", "change_pictures", "cost_picture", "score_pictures",
           "value_pictures"]  # fmt: skip

_MOST_MODELS: Final = 4


def score_pictures(
    summary: pd.DataFrame, task: str, metrics: Sequence[str], titles: Mapping[str, str]
) -> str:
    """Return the scores of every metric."""
    made = []
    for metric in metrics:
        figure = _figure(_rows(summary, task, metric))
        score_bars(summary, task=task, metric=metric, titles=titles, ax=figure.subplots())
        made.append(picture(figure, f"Scores of methods: {METRICS[metric].title}"))
    return _together(made)


def value_pictures(
    summary: pd.DataFrame, task: str, metrics: Sequence[str], titles: Mapping[str, str]
) -> str:
    """Return the values of the metrics that have scores; those of others are among the scores."""
    made = []
    for metric in metrics:
        table = one_metric(summary, task, metric)
        if table.loc[table["role"] != "replicate", "s"].notna().any():
            figure = _figure(len(table))
            metric_values(summary, task=task, metric=metric, titles=titles, ax=figure.subplots())
            made.append(picture(figure, f"Values of methods: {METRICS[metric].title}"))
    return _together(made)


def change_pictures(
    records: Sequence[Record],
    summary: pd.DataFrame,
    task: str,
    metric: str,
    titles: Mapping[str, str],
) -> str:
    """Return predicted against measured changes: best models, best trivial, replicate."""
    table = one_metric(summary, task, metric)
    models = table.loc[table["role"] == "model", "method"].tolist()[:_MOST_MODELS]
    others = [opponent(table).best_trivial, *table.loc[table["role"] == "replicate", "method"]]
    made = []
    for method in (*models, *others):
        if any(r.method == method and r.curves.get("observed") for r in records):
            figure = _figure(size=(3.6, 3.8))
            change_scatter(records, task=task, method=method, titles=titles, ax=figure.subplots())
            made.append(picture(figure, f"Changes of genes by {title_of(method, titles)}"))
    return _together(made)


def calibration_pictures(records: Sequence[Record], task: str, titles: Mapping[str, str]) -> str:
    """Return calibration at the level of cells and at that of effects, where they are known."""
    made = []
    if any(record.curves.get("pit") for record in records):
        figure = _figure(size=(7.2, 4.0))
        calibration_curve(records, task=task, level="cell", titles=titles, ax=figure.subplots())
        made.append(picture(figure, "Calibration of cells"))
    if any(record.curves.get("effect_pit") for record in records):
        figure = _figure(size=(7.2, 4.0))
        calibration_curve(records, task=task, level="effect", titles=titles, ax=figure.subplots())
        made.append(picture(figure, "Calibration of mean changes"))
    return _together(made)


def cost_picture(cost: pd.DataFrame, task: str, titles: Mapping[str, str]) -> str:
    """Return what methods cost; nothing where it is not known."""
    n_methods = int((cost["task"] == task).sum())
    if not n_methods:
        return ""
    figure = _figure(size=(7.2, height(n_methods, 0)))
    left, right = np.asarray(figure.subplots(1, 2, sharey=True)).tolist()
    cost_dots(cost, task=task, titles=titles, axes=[left, right])
    return _together([picture(figure, "Cost of methods")])


def _figure(n_rows: int = 0, *, size: tuple[float, float] | None = None) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=size or (WIDTH, height(n_rows)), layout="constrained")


def _rows(summary: pd.DataFrame, task: str, metric: str) -> int:
    return len(one_metric(summary, task, metric))


def _together(pictures: Sequence[str]) -> str:
    return element("div", "\n".join(pictures), css="figures") if pictures else ""
