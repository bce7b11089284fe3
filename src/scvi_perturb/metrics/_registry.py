"""The metrics by name, with what their numbers mean."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal

from scvi_perturb.metrics._energy import energy_distance
from scvi_perturb.metrics._mean import nmse, pearson_delta, top_genes
from scvi_perturb.metrics._structure import variance_ratio, zero_fraction_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from scvi_perturb.metrics._comparison import Comparison
    from scvi_perturb.metrics._profiles import Floats, Matrix

__all__ = ["METRICS", "Metric", "score"]


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
        From one condition's `Comparison` to a number.
    direction
        "higher" or "lower" is better, or "nearer" to `best`.
    best
        Value of a perfect prediction in expectation.
    units
        Units of the number.
    needs
        "means": a predicted profile is enough; "cells": predicted cells are needed.
    paper
        Where the metric comes from.
    """

    name: str
    title: str
    compute: Callable[[Comparison], float]
    direction: Literal["higher", "lower", "nearer"]
    best: float
    units: str
    needs: Literal["means", "cells"]
    paper: str


def _pearson(case: Comparison) -> float:
    return pearson_delta(*_profiles(case))


def _pearson_top(case: Comparison) -> float:
    return pearson_delta(*_profiles(case), k=case.n_top)


def _nmse(case: Comparison) -> float:
    return nmse(
        *_profiles(case),
        observed_variance=case.observed.mean_variance,
        control_variance=case.control.mean_variance,
    )


def _nmse_vs_no_change(case: Comparison) -> float:
    return nmse(*_profiles(case), observed_variance=case.observed.mean_variance)


def _profiles(case: Comparison) -> tuple[Floats, Floats, Floats]:
    return case.predicted.mean, case.observed.mean, case.control.mean


def _energy(case: Comparison) -> float:
    if case.pca is None:
        msg = "The energy distance needs a space: give `Comparison(pca=fit_pca(training cells))`."
        raise ValueError(msg)
    predicted, observed = (case.pca.transform(cells) for cells in _cells(case))
    return energy_distance(predicted, observed, max_cells=case.max_cells, seed=case.seed)


def _variance(case: Comparison) -> float:
    genes = top_genes(case.observed.mean, case.control.mean, case.n_top)
    return variance_ratio(*_cells(case), genes=genes)


def _zeros(case: Comparison) -> float:
    return zero_fraction_error(*_cells(case))


def _cells(case: Comparison) -> tuple[Matrix, Matrix]:
    predicted, observed = case.predicted.cells, case.observed.cells
    if predicted is None or observed is None:
        msg = (
            "Found a profile without cells; this metric compares cells: "
            "give `Population.from_cells(...)` on both sides."
        )
        raise ValueError(msg)
    return predicted, observed


_GEARS = "Roohani, Huang and Leskovec, Nature Biotechnology 2024"
_LINEAR = "Ahlmann-Eltze, Huber and Anders, Nature Methods 2025"
_ENERGY = "Szekely and Rizzo, Journal of Statistical Planning and Inference 2013"
_SHAKY = "Crowell et al., Genome Biology 2023"

_ALL = (
    Metric("pearson_delta", "Pearson", _pearson, "higher", 1.0, "correlation", "means", _GEARS),
    Metric(
        "pearson_delta_top",
        "Pearson top 100",
        _pearson_top,
        "higher",
        1.0,
        "correlation",
        "means",
        _GEARS,
    ),
    Metric("nmse", "nmse", _nmse, "lower", 0.0, "share of the effect", "means", _LINEAR),
    Metric(
        "nmse_vs_no_change",
        "nmse / no change",
        _nmse_vs_no_change,
        "lower",
        0.0,
        "share of no change",
        "means",
        _LINEAR,
    ),
    Metric(
        "energy", "energy", _energy, "lower", 0.0, "log1p CP10k, in components", "cells", _ENERGY
    ),
    Metric(
        "variance_ratio",
        "variance ratio",
        _variance,
        "nearer",
        1.0,
        "ratio, median of genes",
        "cells",
        _SHAKY,
    ),
    Metric(
        "zero_fraction_error", "zero error", _zeros, "lower", 0.0, "share of cells", "cells", _SHAKY
    ),
)

#: Every metric by name. A new one is a function and a line above.
METRICS: Final[Mapping[str, Metric]] = MappingProxyType({metric.name: metric for metric in _ALL})


def score(comparison: Comparison, names: Iterable[str] | None = None) -> dict[str, float]:
    """Return metrics of one condition.

    Parameters
    ----------
    comparison
        The prediction and what answers it.
    names
        Names in `METRICS`; None takes all that can be computed: those that need cells are left
        out if only a profile was predicted.

    Returns
    -------
    Number by name, in the order of the names.

    Raises
    ------
    ValueError
        If a name is not known, or a metric that was named needs cells and there are none.
    """
    if names is None:
        has_cells = comparison.predicted.cells is not None
        chosen = [name for name, metric in METRICS.items() if has_cells or metric.needs == "means"]
    else:
        chosen = list(names)
    unknown = sorted(set(chosen) - set(METRICS))
    if unknown:
        msg = f"Metrics {unknown} are not known; choose from {sorted(METRICS)}."
        raise ValueError(msg)
    return {name: METRICS[name].compute(comparison) for name in chosen}
