"""The metrics of populations of cells: what each takes from a comparison, and how it is read."""

from __future__ import annotations

from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Final

import numpy as np

from scvi_perturb.metrics._calibration import (
    LEVELS,
    calibration_error,
    coverage,
    interval_width,
)
from scvi_perturb.metrics._comparison import cells_of
from scvi_perturb.metrics._composition import composition_jsd
from scvi_perturb.metrics._de_scores import de_direction_yield, de_jaccard, de_lfc_nmae
from scvi_perturb.metrics._energy import energy_ratio
from scvi_perturb.metrics._mean import top_genes
from scvi_perturb.metrics._metric import Metric, Terms, each
from scvi_perturb.metrics._scoring_rules import crps, energy_score, variogram_score
from scvi_perturb.metrics._structure import (
    correlation_agreement,
    variance_ratio,
    variance_spread,
    zero_fraction_error,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scvi_perturb.metrics._comparison import Comparison
    from scvi_perturb.metrics._differential import DifferentialExpression
    from scvi_perturb.metrics._profiles import Matrix

__all__ = ["OF_CELLS"]

_VCC = "Roohani et al., Virtual Cell Challenge, Cell 2025"
_ENERGY = "Szekely and Rizzo, Journal of Statistical Planning and Inference 2013"
_SHAKY = "Crowell et al., Genome Biology 2023"
_PIT = "Czado, Gneiting and Held, Biometrics 2009"
_RULES = "Gneiting and Raftery, JASA 2007"
_VARIOGRAM = "Scheuerer and Hamill, Monthly Weather Review 2015"
_JSD = "Lin, IEEE Transactions on Information Theory 1991"
_LOG1P = "log1p CP10k"
_COMPONENTS = "log1p CP10k, in components"
#: The best value depends on the data.
_NAN = float("nan")
#: Cells of which correlations between genes can be told.
_TO_CORRELATE = 3


def _cells(case: Comparison) -> tuple[Matrix, Matrix]:
    return cells_of(case.predicted), cells_of(case.truth.observed)


def _differential(
    function: Callable[..., float],
) -> Callable[[Sequence[Comparison]], Terms]:
    def compute(case: Comparison) -> float:
        pair: tuple[DifferentialExpression, DifferentialExpression]
        pair = case.differential, case.truth.differential
        return function(*pair, case.truth.kept)

    return each(compute)


def _energy_ratio(cases: Sequence[Comparison]) -> Terms:
    terms = []
    for case in cases:
        scale = case.truth.energy_scale
        if scale is None:
            terms.append((np.nan, np.nan))
        else:
            terms.append(energy_ratio(case.energy, floor=scale[0], shifted=scale[1]))
    return Terms(*np.array(terms, dtype=np.float64).T)


def _variance(case: Comparison) -> float:
    truth = case.truth
    kept = np.flatnonzero(truth.kept)
    genes = top_genes(truth.observed.mean[kept], truth.control.mean[kept], truth.n_top)
    return variance_ratio(*_cells(case), genes=kept[genes])


def _variance_spread(case: Comparison) -> float:
    return variance_spread(*_cells(case), genes=case.truth.variable_genes)


def _zeros(case: Comparison) -> float:
    kept = np.flatnonzero(case.truth.kept)
    made, real = (cells[:, kept] for cells in _cells(case))
    return zero_fraction_error(made, real)


def _correlations(case: Comparison) -> float:
    if min(cells.shape[0] for cells in _cells(case)) < _TO_CORRELATE:
        return float("nan")
    return correlation_agreement(*_cells(case), genes=case.truth.variable_genes)


def _coverage(case: Comparison, *, level: float) -> float:
    return float(np.mean(coverage(case.ranks, level)))


def _width(case: Comparison) -> float:
    return float(np.mean(interval_width(case.variable[0], 0.9)))


def _pit_ece(case: Comparison) -> float:
    return calibration_error(case.ranks)


def _crps(case: Comparison) -> float:
    return float(np.mean(crps(*case.variable)))


def _energy_score(case: Comparison) -> float:
    most, seed = case.truth.max_cells, case.truth.seed
    return energy_score(case.points, case.truth.points, max_cells=most, seed=seed)


def _variogram(case: Comparison) -> float:
    return variogram_score(*case.variable)


def _composition(case: Comparison) -> float:
    space = case.truth.space
    if space is None or space.states is None:
        return float("nan")
    return composition_jsd(case.points, case.truth.points, space.states)


def _nll(case: Comparison) -> float:
    return float("nan") if case.predicted.nll is None else case.predicted.nll


OF_CELLS: Final = (
    Metric(
        "de_direction_yield",
        "DE signs",
        _differential(de_direction_yield),
        "higher",
        1.0,
        "share of genes",
        "cells",
        _VCC,
    ),
    Metric(
        "de_jaccard",
        "DE Jaccard",
        _differential(de_jaccard),
        "higher",
        1.0,
        "share of genes",
        "cells",
        _VCC,
    ),
    Metric(
        "de_lfc_nmae",
        "DE fold change error",
        _differential(de_lfc_nmae),
        "lower",
        0.0,
        "share of the fold changes",
        "cells",
        _VCC,
    ),
    Metric(
        "energy", "energy", each(attrgetter("energy")), "lower", 0.0, _COMPONENTS, "cells", _ENERGY
    ),
    Metric(
        "energy_ratio",
        "energy ratio",
        _energy_ratio,
        "lower",
        0.0,
        "share of shifted controls",
        "cells",
        _ENERGY,
    ),
    Metric(
        "variance_ratio",
        "variance ratio",
        each(_variance),
        "nearer",
        1.0,
        "ratio, median of genes",
        "cells",
        _SHAKY,
        is_ratio=True,
    ),
    Metric(
        "variance_spread",
        "variance spread",
        each(_variance_spread),
        "lower",
        0.0,
        "interquartile range of log ratios",
        "cells",
        _SHAKY,
    ),
    Metric(
        "zero_fraction_error",
        "zero error",
        each(_zeros),
        "lower",
        0.0,
        "share of cells",
        "cells",
        _SHAKY,
    ),
    Metric(
        "correlation_agreement",
        "correlations",
        each(_correlations),
        "higher",
        1.0,
        "correlation",
        "cells",
        _SHAKY,
    ),
    *(
        Metric(
            f"cell_coverage_{100 * level:.0f}",
            f"cells in {100 * level:.0f} %",
            each(partial(_coverage, level=level)),
            "nearer",
            level,
            "share of cells",
            "cells",
            _PIT,
        )
        for level in LEVELS
    ),
    Metric("cell_width_90", "cell width 90 %", each(_width), "none", _NAN, _LOG1P, "cells", _PIT),
    Metric("pit_ece", "PIT error", each(_pit_ece), "lower", 0.0, "share of cells", "cells", _PIT),
    Metric("crps", "CRPS", each(_crps), "lower", _NAN, _LOG1P, "cells", _RULES),
    Metric(
        "energy_score",
        "energy score",
        each(_energy_score),
        "lower",
        _NAN,
        _COMPONENTS,
        "cells",
        _RULES,
    ),
    Metric(
        "variogram_score",
        "variogram score",
        each(_variogram),
        "lower",
        _NAN,
        "squared root of log1p CP10k",
        "cells",
        _VARIOGRAM,
    ),
    Metric(
        "composition_jsd",
        "composition",
        each(_composition),
        "lower",
        0.0,
        "bits",
        "cells",
        _JSD,
    ),
    Metric(
        "nll",
        "nll",
        each(_nll),
        "lower",
        _NAN,
        "nats a cell",
        "likelihood",
        "Lopez et al., Nature Methods 2018",
    ),
)
