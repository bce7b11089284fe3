"""What a metric is, and how its numbers are summed up over conditions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from scvi_perturb.metrics._structure import MAX_LOG_RATIO

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scvi_perturb.metrics._comparison import Comparison
    from scvi_perturb.metrics._profiles import Floats

__all__ = ["Metric", "Needs", "Terms", "each", "means"]

#: What a prediction must have. "means": a profile; "cells": log-normalised cells; "spread": the
#: standard error of its mean changes; "likelihood": that of real cells.
Needs = Literal["means", "cells", "spread", "likelihood"]


class Terms(NamedTuple):
    """A metric of several conditions: `sum(numerator) / sum(denominator)` is that of them all."""

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


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric and how to read it.

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
        What a prediction must have.
    paper
        Where the metric comes from.
    is_ratio
        Whether "nearer" means by factors: 1/2 is as far from 1 as 2 is.
    """

    name: str
    title: str
    compute: Callable[[Sequence[Comparison]], Terms]
    direction: Literal["higher", "lower", "nearer", "none"]
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


def each(function: Callable[[Comparison], float]) -> Callable[[Sequence[Comparison]], Terms]:
    """Return a function of one condition as a metric that is the mean over conditions."""

    def compute(cases: Sequence[Comparison]) -> Terms:
        return means([function(case) for case in cases])

    return compute


def means(values: Sequence[float]) -> Terms:
    """Return values, one a condition, as the terms of their mean."""
    made = np.asarray(values, dtype=np.float64)
    return Terms(made, np.where(np.isfinite(made), 1.0, np.nan))
