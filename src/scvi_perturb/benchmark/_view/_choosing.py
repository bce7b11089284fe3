"""What of results is shown, and in which order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from scvi_perturb.benchmark._view._reading import ROLES
from scvi_perturb.metrics import METRICS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scvi_perturb.benchmark.results import Record, Results
    from scvi_perturb.metrics import Metric

__all__ = [
    "best_methods",
    "key_metrics",
    "one_metric",
    "opponent",
    "ordered",
    "records_of_task",
    "rows_of",
    "summary_of",
]

_KEY_COUNTS: Final = (
    "nmse_vs_no_change",
    "cosine_delta_control",
    "cosine_delta",
    "discrimination",
    "r2_weighted",
    "de_direction_yield",
    "energy_ratio",
    "variance_ratio",
    "correlation_agreement",
    "zero_fraction_error",
    "pit_ece",
    "crps",
)
_KEY_EFFECTS: Final = ("nmse", "cosine_delta", "discrimination", "discrimination_centred")
_COLUMNS: Final = ("task", "metric", "method", "role", "n_conditions")


def key_metrics(summary: pd.DataFrame, task: str) -> list[str]:
    """Return the metrics that a short table of a task shows; those that it has."""
    part = summary[summary["task"] == task]
    has_cells = (part["role"] == "replicate").any()
    there = set(part["metric"])
    return [name for name in (_KEY_COUNTS if has_cells else _KEY_EFFECTS) if name in there]


def summary_of(results: Results, records: Iterable[Record], *, clear: bool = False) -> pd.DataFrame:
    """Return the summary of results; an empty table where no method has scores."""
    if any(record.scores for record in records):
        found = results.summary(clear=clear)
        if len(found):
            return found
    return pd.DataFrame(columns=_COLUMNS)


def one_metric(summary: pd.DataFrame, task: str, metric: str) -> pd.DataFrame:
    """Return the rows of one metric of one task: by role, then the best first.

    Raises
    ------
    ValueError
        If there are none.
    """
    for column, wanted in (("task", task), ("metric", metric)):
        if wanted not in set(summary[column]):
            there = sorted(set(summary[column]))
            msg = f"The summary has no {column} {wanted!r}; it has {there}."
            raise ValueError(msg)
    part = summary[(summary["task"] == task) & (summary["metric"] == metric)]
    if part.empty:
        there = sorted(set(summary.loc[summary["task"] == task, "metric"]))
        msg = f"Task {task!r} has no metric {metric!r}; it has {there}."
        raise ValueError(msg)
    place = part["role"].map({role: i for i, role in enumerate(ROLES)}).to_numpy(np.int64)
    loss = _loss(METRICS[metric], part["u"].to_numpy(np.float64))
    return part.iloc[np.lexsort([loss, place])].reset_index(drop=True)


def ordered(summary: pd.DataFrame, task: str, metrics: Iterable[str]) -> dict[str, str]:
    """Return the roles of all methods of a task: by role, then by the first metric they have."""
    found: dict[str, str] = {}
    for metric in metrics:
        rows = one_metric(summary, task, metric)
        found |= {m: r for m, r in zip(rows["method"], rows["role"], strict=True) if m not in found}
    return dict(sorted(found.items(), key=lambda item: list(ROLES).index(item[1])))


def rows_of(table: pd.DataFrame) -> list[Any]:
    """Return the rows of a table with its columns as attributes."""
    return list(table.itertuples())


def best_methods(rows: pd.DataFrame, metric: Metric) -> set[str]:
    """Return the best methods but the replicate, among those judged on the most conditions."""
    rivals = rows[(rows["role"] != "replicate") & rows["u"].notna()]
    rivals = rivals[rivals["n_conditions"] == rivals["n_conditions"].max()]
    if rivals.empty:
        return set()
    loss = _loss(metric, rivals["u"].to_numpy(np.float64))
    return set(rivals["method"][loss <= loss.min() + 1e-12])


def opponent(rows: pd.DataFrame) -> Any:  # noqa: ANN401
    """Return the row that says what the best trivial prediction and the replicate reach.

    That of the method that was judged on the most conditions; the values of others are over fewer.
    """
    known = rows[rows["best_trivial"].fillna("") != ""]
    return (known if len(known) else rows).sort_values("n_conditions", kind="stable").iloc[-1]


def records_of_task(records: Iterable[Record], task: str) -> list[Record]:
    """Return the records of a task.

    Raises
    ------
    ValueError
        If there are none.
    """
    every = list(records)
    found = [record for record in every if record.task == task]
    if not found:
        there = sorted({record.task for record in every})
        msg = f"There are no records of task {task!r}; there are some of {there}."
        raise ValueError(msg)
    return found


def _loss(metric: Metric, values: np.ndarray) -> np.ndarray:
    """Return values turned so that lower is better, also where no best value is known."""
    if metric.direction == "nearer":
        return np.abs(values - metric.best)
    return -values if metric.direction == "higher" else values
