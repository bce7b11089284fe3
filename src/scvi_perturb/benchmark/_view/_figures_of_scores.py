"""A figure of one metric: every method between the best trivial prediction and a replicate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scvi_perturb.benchmark._view._choosing import one_metric, opponent, rows_of
from scvi_perturb.benchmark._view._drawing import WIDTH, Row, axes_of, draw_rows, height
from scvi_perturb.benchmark._view._figure_words import draw_line, label_of, name_axis, write_title
from scvi_perturb.benchmark._view._figures_of_values import metric_values
from scvi_perturb.benchmark._view._reading import number, title_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["score_bars"]

#: Scores outside are arrows at the end of the axis.
_SHOWN: Final = (-1.5, 2.0)


def score_bars(
    summary: pd.DataFrame,
    *,
    task: str,
    metric: str,
    titles: Mapping[str, str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the score of every method: 0 is the best trivial prediction, 1 the replicate.

    Lines are 95 % intervals over conditions. Scores below -1.5 and above 2 are arrows with their
    number at the end of the axis. Where no method has a score, as there is no replicate or it is
    no better than the best trivial prediction, the values themselves are drawn, see
    `metric_values`.

    Parameters
    ----------
    summary
        From `Results.summary`.
    task, metric
        What of it is drawn.
    titles
        Names of methods and tasks for readers.
    ax
        Where to draw; None makes a figure.

    Returns
    -------
    matplotlib.axes.Axes
        Methods by role, the best first. To the right stands the value of the metric.

    Raises
    ------
    ValueError
        If the summary has no such task or metric.
    """
    table = one_metric(summary, task, metric)
    judged = table[table["role"] != "replicate"]
    if judged["s"].notna().sum() == 0:
        return metric_values(summary, task=task, metric=metric, titles=titles, ax=ax)
    rows = [
        Row(label_of(row, table, titles), row.role, row.s, row.s_low, row.s_high, _score_text(row))
        for row in rows_of(judged)
    ]
    ends = judged.loc[judged["s"].notna(), ["s", "s_low", "s_high"]].to_numpy(np.float64)
    low = max(min(float(np.nanmin(ends)), -0.15), _SHOWN[0])
    high = min(max(float(np.nanmax(ends)), 1.15), _SHOWN[1])
    ax = axes_of(ax, (WIDTH, height(len(rows))))
    ax.axvspan(0, 1, color="0.96", lw=0, zorder=-1)
    rival = opponent(table)
    draw_line(ax, 0.0, "--", f"0: best trivial prediction, {title_of(rival.best_trivial, titles)} "
          f"({number(rival.b)})")  # fmt: skip
    draw_line(ax, 1.0, "-", f"1: replicate of the experiment ({number(rival.r)})")
    margin = 0.03 * (high - low)
    cut = draw_rows(ax, rows, (low - margin, high + margin), heading="value")
    name_axis(ax, "score between trivial and replicate, better to the right \u2192", cut=cut)
    write_title(ax, task, metric, titles)
    return ax


def _score_text(row: Any) -> str:  # noqa: ANN401
    return number(row.u) if np.isfinite(row.s) else f"{number(row.u)}, no score"
