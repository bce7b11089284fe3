"""A figure of one metric in its own units."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from scvi_perturb.benchmark._view._choosing import one_metric, opponent, rows_of
from scvi_perturb.benchmark._view._drawing import WIDTH, Row, axes_of, draw_rows, height
from scvi_perturb.benchmark._view._figure_words import draw_line, label_of, name_axis, write_title
from scvi_perturb.benchmark._view._reading import direction, number, title_of
from scvi_perturb.metrics import METRICS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["metric_values"]

#: Values further from the middle one than this many median deviations are arrows.
_DEVIATIONS: Final = 8.0
#: An axis is cut only where it would be this much longer.
_WORTH_A_CUT: Final = 3.0


def metric_values(
    summary: pd.DataFrame,
    *,
    task: str,
    metric: str,
    titles: Mapping[str, str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a metric of every method, with lines at the best trivial prediction and the replicate.

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
        Methods by role, the best first, with 95 % intervals over conditions. Values far from all
        others are arrows with their number at the end of the axis.

    Raises
    ------
    ValueError
        If the summary has no such task or metric.
    """
    table = one_metric(summary, task, metric)
    known = METRICS[metric]
    judged = table[table["role"] != "replicate"]
    rows = [
        Row(label_of(row, table, titles), row.role, row.u, row.u_low, row.u_high, number(row.u))
        for row in rows_of(judged if len(judged) else table)
    ]
    rival = opponent(table)
    lines = [x for x in (rival.b, rival.r) if np.isfinite(x)]
    if known.direction == "nearer":
        lines.append(known.best)
    ax = axes_of(ax, (WIDTH, height(len(rows))))
    if np.isfinite(rival.b):
        best = title_of(rival.best_trivial, titles)
        draw_line(ax, rival.b, "--", f"best trivial prediction, {best} ({number(rival.b)})")
    if np.isfinite(rival.r):
        draw_line(ax, rival.r, "-", f"replicate of the experiment ({number(rival.r)})")
    if known.direction == "nearer":
        draw_line(ax, known.best, ":", f"perfect ({known.best:g})")
    cut = draw_rows(ax, rows, _limits(rows, lines), heading="value")
    arrow = {"higher": " \u2192", "lower": " \u2190", "nearer": "", "none": ""}[known.direction]
    name_axis(ax, f"{known.units}, {direction(known)}{arrow}", cut=cut)
    write_title(ax, task, metric, titles)
    return ax


def _limits(rows: Sequence[Row], lines: Sequence[float]) -> tuple[float, float]:
    """Return limits that hold the lines and all values but those far from the others."""
    values = np.array([row.value for row in rows if np.isfinite(row.value)])
    ends = np.array([x for row in rows for x in (row.low, row.high) if np.isfinite(x)])
    every = np.concatenate([values, ends, np.asarray(lines, np.float64)])
    if every.size == 0:
        return 0.0, 1.0
    middle = np.median(values) if values.size else every[0]
    spread = _DEVIATIONS * float(np.median(np.abs(values - middle))) if values.size else 0.0
    low, high = float(every.min()), float(every.max())
    near = max(low, min([middle - spread, *lines])), min(high, max([middle + spread, *lines]))
    if spread > 0 and high - low > _WORTH_A_CUT * (near[1] - near[0]):
        low, high = near
    margin = 0.04 * (high - low) or 0.5 * max(abs(high), 1e-3)
    return float(low - margin), float(high + margin)
