"""One table of a task: methods by metrics, in words, for any kind of page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scvi_perturb.benchmark._view._choosing import (
    best_methods,
    one_metric,
    opponent,
    ordered,
    rows_of,
)
from scvi_perturb.benchmark._view._reading import bound, number, title_of
from scvi_perturb.metrics import METRICS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

__all__ = ["Cell", "Line", "sheet"]


@dataclass(frozen=True, slots=True)
class Cell:
    """A metric of a method in words; empty where there is nothing to say.

    Parameters
    ----------
    value, interval
        The metric, and its 95 % interval over conditions.
    score, score_interval
        Between the best trivial prediction and the replicate, and its interval.
    best
        Whether no method is better; the replicate is none.
    opponent
        Whether it is the best trivial prediction.
    fewer
        Number of conditions, where it is less than that of others.
    """

    value: str
    interval: str = ""
    score: str = ""
    score_interval: str = ""
    best: bool = False
    opponent: bool = False
    fewer: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """A method with its metrics; None where it has none."""

    method: str
    title: str
    role: str
    cells: tuple[Cell | None, ...]


def sheet(
    summary: pd.DataFrame,
    task: str,
    metrics: Sequence[str],
    titles: Mapping[str, str] | None = None,
) -> list[Line]:
    """Return methods by role, then by the first metric, with a cell for each metric."""
    columns = [_column(one_metric(summary, task, metric), metric) for metric in metrics]
    return [
        Line(method, title_of(method, titles), role, tuple(c.get(method) for c in columns))
        for method, role in ordered(summary, task, metrics).items()
    ]


def _column(rows: pd.DataFrame, metric: str) -> dict[str, Cell]:
    best = best_methods(rows, METRICS[metric])
    rival = opponent(rows).best_trivial
    most = int(rows["n_conditions"].max())
    return {
        str(row.method): Cell(
            value=number(row.u),
            interval=_interval(number(row.u_low), number(row.u_high), row.u_low, row.u_high),
            best=row.method in best,
            opponent=row.method == rival,
            fewer=f"{row.n_conditions} of {most}" if row.n_conditions < most else "",
            **_score(row),
        )
        for row in rows_of(rows)
    }


def _score(row: Any) -> dict[str, str]:  # noqa: ANN401
    """Return the score in words; that of the replicate is 1 by definition, and not said."""
    if row.role == "replicate" or not np.isfinite(row.s):
        return {"score": "", "score_interval": ""}
    ends = _interval(bound(row.s_low), bound(row.s_high), row.s_low, row.s_high)
    return {"score": number(row.s), "score_interval": ends}


def _interval(low: str, high: str, *ends: float) -> str:
    """Return an interval in words; nothing where it is not known or has no width."""
    wide = np.isfinite(ends).all() and not np.isclose(ends[0], ends[-1], rtol=1e-5, atol=1e-9)
    return f"{low} to {high}" if wide else ""
