"""The definition of a metric, the registry of metrics, and the scoring of predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import numpy as np
import pandas as pd

from scvi_perturb._checks import checked
from scvi_perturb._core import SchemaError
from scvi_perturb.metrics._distributions import MAX_LOG_RATIO
from scvi_perturb.registry import Registry, registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from scvi_perturb.metrics._comparison import CellPopulation, Comparison
    from scvi_perturb.metrics._profiles import Floats

Needs = Literal["means", "cells", "effect_std", "likelihood"]
Direction = Literal["higher", "lower", "nearer", "none"]


class Terms(NamedTuple):
    """A metric of several conditions: in total `sum(numerator) / sum(denominator)`."""

    numerator: Floats
    """`(n_conditions,)`; NaN where the metric is not defined."""
    denominator: Floats
    """`(n_conditions,)`; 1 for a metric that is a mean over conditions."""

    @property
    def total(self) -> float:
        """The metric over all conditions where it is defined; NaN if it is nowhere."""
        defined = np.isfinite(self.numerator) & np.isfinite(self.denominator)
        if not defined.any():
            return float("nan")
        below = float(self.denominator[defined].sum())
        return float(self.numerator[defined].sum()) / below if below > 0 else float("nan")

    @property
    def values(self) -> Floats:
        """The metric of each condition, `(n_conditions,)`; NaN where there is no effect."""
        below = np.where(self.denominator > 0, self.denominator, np.nan)
        return self.numerator / below


@checked
@dataclass(frozen=True, slots=True)
class Metric:
    """A metric and how to interpret it.

    Parameters
    ----------
    name
        Name in code and files.
    title
        Heading in tables for readers.
    compute
        From the comparisons of several conditions to `Terms`, one entry a condition. Use `each`
        for a function of one condition.
    direction
        "higher" or "lower" is better, or "nearer" to `best`; "none" is to be read beside others.
    best
        Value of a perfect prediction in expectation; NaN where that depends on the data, so that
        only a replicate tells.
    units
        Units of the number.
    needs
        What a prediction must have: "means", a profile; "cells", log-normalised cells;
        "effect_std", the standard error of its mean changes; "likelihood", that of real cells.
    paper
        Where the metric comes from.
    is_ratio
        Whether "nearer" means by factors: 1/2 is as far from 1 as 2 is.
    """

    name: str
    title: str
    compute: Callable[[Sequence[Comparison]], Terms]
    direction: Direction
    best: float
    units: str
    needs: Needs
    paper: str
    is_ratio: bool = False

    def loss(self, value: Floats | float) -> Floats:
        """Return values turned so that lower is better."""
        found = np.asarray(value, dtype=np.float64)
        if self.direction == "none":
            return np.full_like(found, np.nan)
        if self.is_ratio:
            limit = np.exp(MAX_LOG_RATIO)
            return np.abs(np.log(np.clip(found / self.best, 1.0 / limit, limit)))
        if self.direction == "nearer":
            return np.abs(found - self.best)
        return -found if self.direction == "higher" else found


#: Every metric by name: those of `_own_metrics.py`, and those of packages that name theirs as an
#: entry point of the group "scvi_perturb.metrics".
METRICS: Final[Registry[Metric]] = registry("metrics")

#: The few that a short table shows.
BASIC: Final = (
    *("pearson_delta", "pearson_delta_top", "nmse", "nmse_vs_no_change", "energy"),
    *("variance_ratio", "zero_fraction_error"),
)


@checked
def each(function: Callable[[Comparison], float]) -> Callable[[Sequence[Comparison]], Terms]:
    """Return a metric that averages a function of one condition over conditions."""

    def compute(cases: Sequence[Comparison]) -> Terms:
        return mean_terms([function(case) for case in cases])

    return compute


def mean_terms(values: Sequence[float]) -> Terms:
    """Return values, one per condition, as the terms of their mean."""
    made = np.asarray(values, dtype=np.float64)
    return Terms(made, np.where(np.isfinite(made), 1.0, np.nan))


@checked
def score(comparison: Comparison, names: Iterable[str] | None = None) -> dict[str, float]:
    """Return metrics of one condition.

    Parameters
    ----------
    comparison
        The prediction and what answers it.
    names
        Names in `METRICS`; None takes all that the prediction has what it takes for.

    Returns
    -------
    Number by name, in the order of the names.

    Raises
    ------
    ValueError
        If a name is not known.
    SchemaError
        If a metric that was named needs what the prediction does not have.
    """
    frame = score_all([comparison], names)
    return dict(zip(frame["metric"], frame["value"], strict=True))


@checked
def score_all(cases: Sequence[Comparison], names: Iterable[str] | None = None) -> pd.DataFrame:
    """Return the metrics of several conditions predicted by one method.

    Parameters
    ----------
    cases
        One comparison a condition; some metrics rank a condition among the others.
    names
        As in `score`.

    Returns
    -------
    One row a metric and condition: `metric`, `condition`, `numerator`, `denominator`, `value`.
    The metric of several conditions together is the sum of their numerators over that of their
    denominators; `value` is that of one, NaN where the metric is not defined.

    Raises
    ------
    ValueError, SchemaError
        As `score`; also if there are no cases.
    """
    if not cases:
        msg = "Found no comparisons; give at least one condition."
        raise ValueError(msg)
    parts = []
    for name in _chosen(cases, names):
        terms = METRICS[name].compute(cases)
        rows = {
            "metric": name,
            "condition": [case.truth.name for case in cases],
            "numerator": terms.numerator,
            "denominator": terms.denominator,
            "value": terms.values,
        }
        parts.append(pd.DataFrame(rows))
    return pd.concat(parts, ignore_index=True)


def _chosen(cases: Sequence[Comparison], names: Iterable[str] | None) -> list[str]:
    held = {"means"}.union(*(_held(case.predicted) for case in cases))
    if any(case.truth.observed.cells is None for case in cases):
        held -= {"cells", "likelihood"}
    if names is None:
        return [name for name, metric in METRICS.items() if metric.needs in held]
    chosen = list(names)
    unknown = sorted(set(chosen) - set(METRICS))
    if unknown:
        msg = f"Metrics {unknown} are not known; choose from {sorted(METRICS)}."
        raise ValueError(msg)
    lacking = [name for name in chosen if METRICS[name].needs not in held]
    if lacking:
        msg = (
            f"Metrics {lacking} need {sorted({METRICS[name].needs for name in lacking})}, which "
            "the prediction or the real condition does not have. Predict cells with "
            "`CellPopulation.from_counts(...)`, or ask for metrics of means."
        )
        raise SchemaError(msg)
    return chosen


def _held(population: CellPopulation) -> set[str]:
    """Return what a prediction has, besides means."""
    found = {
        "cells": population.cells,
        "effect_std": population.effect_std,
        "likelihood": population.nll,
    }
    return {need for need, value in found.items() if value is not None}
