"""The metrics by name, and the scores of predictions by all of them."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import pandas as pd

from scvi_perturb._errors import SchemaError
from scvi_perturb.metrics._of_cells import OF_CELLS
from scvi_perturb.metrics._of_means import OF_MEANS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from scvi_perturb.metrics._comparison import Comparison, Population
    from scvi_perturb.metrics._metric import Metric

__all__ = ["BASIC", "METRICS", "score", "score_all"]

_ALL = (*OF_MEANS, *OF_CELLS)

#: Every metric by name. A new one is a function, and a line in `OF_MEANS` or `OF_CELLS`.
METRICS: Final[Mapping[str, Metric]] = MappingProxyType({metric.name: metric for metric in _ALL})

#: The few that a short table shows.
BASIC: Final = (
    "pearson_delta",
    "pearson_delta_top",
    "nmse",
    "nmse_vs_no_change",
    "energy",
    "variance_ratio",
    "zero_fraction_error",
)


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


def score_all(cases: Sequence[Comparison], names: Iterable[str] | None = None) -> pd.DataFrame:
    """Return metrics of several conditions that were predicted by one method.

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
    held = {"means"}.union(*({*_held(case.predicted)} for case in cases))
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
            "`Population.from_counts(...)`, or ask for metrics of means."
        )
        raise SchemaError(msg)
    return chosen


def _held(population: Population) -> Iterable[str]:
    """Yield what a prediction has."""
    if population.cells is not None:
        yield "cells"
    if population.effect_std is not None:
        yield "spread"
    if population.nll is not None:
        yield "likelihood"
