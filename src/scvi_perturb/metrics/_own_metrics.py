"""The metrics of this package: their inputs from a comparison, and their interpretation."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np

from scvi_perturb.metrics._calibration import (
    LEVELS,
    calibration_error,
    coverage,
    effect_coverage,
    interval_width,
)
from scvi_perturb.metrics._differential import de_direction_yield, de_jaccard, de_lfc_nmae
from scvi_perturb.metrics._distributions import (
    composition_jsd,
    correlation_agreement,
    crps,
    energy_ratio,
    energy_score,
    variance_ratio,
    variance_spread,
    variogram_score,
    zero_fraction_error,
)
from scvi_perturb.metrics._means import (
    cosine_delta,
    de_weights,
    discrimination,
    nmse_terms,
    pearson_delta,
    top_genes,
    weighted_mse,
    weighted_r2,
)
from scvi_perturb.metrics._metric import Metric, Terms, each, mean_terms
from scvi_perturb.metrics._profiles import ROUNDING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from scvi_perturb.metrics._comparison import Comparison
    from scvi_perturb.metrics._metric import Direction, Needs
    from scvi_perturb.metrics._profiles import Floats

_GEARS = "Roohani, Huang and Leskovec, Nature Biotechnology 2024"
_LINEAR = "Ahlmann-Eltze, Huber and Anders, Nature Methods 2025"
_SYSTEMA = "Vinas Torne et al., Nature Biotechnology 2025"
_WEIGHTED = "Mejia et al., Diversity by design, 2025"
_RANKS = "Wu et al., PerturBench, 2024"
_INTERVALS = "Gneiting, Balabdaoui and Raftery, JRSS B 2007"
_VCC = "Roohani et al., Virtual Cell Challenge, Cell 2025"
_ENERGY = "Szekely and Rizzo, Journal of Statistical Planning and Inference 2013"
_SIMULATORS = "Crowell et al., Genome Biology 2023"
_PIT = "Czado, Gneiting and Held, Biometrics 2009"
_RULES = "Gneiting and Raftery, JASA 2007"
_VARIOGRAM = "Scheuerer and Hamill, Monthly Weather Review 2015"
_JSD = "Lin, IEEE Transactions on Information Theory 1991"
_LIKELIHOOD = "Lopez et al., Nature Methods 2018"
_LOG1P = "log1p CP10k"
_COMPONENTS = "log1p CP10k, in components"
_FROM_TRAINING = "from the mean of training conditions"
_NAN = float("nan")  # the best value depends on the data


def _describe(
    name: str,
    title: str,
    direction: Direction,
    best: float,
    units: str,
    needs: Needs,
    paper: str,
) -> Callable[[Callable[[Comparison], float]], Metric]:
    """Make a metric of a function of one condition: its mean over conditions."""

    def describe(function: Callable[[Comparison], float]) -> Metric:
        return Metric(name, title, each(function), direction, best, units, needs, paper)

    return describe


# Metrics of means.


@_describe("pearson_delta", "Pearson", "higher", 1.0, "correlation", "means", _GEARS)
def _pearson(case: Comparison) -> float:
    return _zero_without_direction(pearson_delta(*case.profiles), case)


@_describe("pearson_delta_top", "Pearson top 100", "higher", 1.0, "correlation", "means", _GEARS)
def _pearson_top(case: Comparison) -> float:
    return _zero_without_direction(pearson_delta(*case.profiles, k=case.truth.n_top), case)


def _zero_without_direction(value: float, case: Comparison) -> float:
    """Return 0 for a prediction without direction: only the truth may leave a score undefined."""
    _, observed, control = case.profiles
    if np.isnan(value) and np.isfinite(pearson_delta(observed, observed, control)):
        return 0.0
    return value


def _error(cases: Sequence[Comparison], *, control: bool) -> Terms:
    """Squared errors over squared effects, with or without the noise of controls in the latter.

    A prediction answers for its own noise; that of a repetition of the experiment is taken out.
    """
    terms = []
    for case in cases:
        truth, kept = case.truth, case.truth.kept
        above, below = nmse_terms(
            *case.profiles,
            observed_variance=_kept(truth.observed.mean_variance, kept),
            control_variance=_kept(truth.control.mean_variance if control else 0.0, kept),
        )
        if case.predicted.is_real:
            above -= float(np.sum(_kept(case.predicted.mean_variance, kept)))
        terms.append((above, below))
    return Terms(*np.array(terms, dtype=np.float64).T)


def _kept(variance: Floats | float, kept: NDArray[np.bool_]) -> Floats | float:
    return variance[kept] if isinstance(variance, np.ndarray) else variance


def _centred(case: Comparison) -> tuple[Floats, Floats, Floats]:
    """Return both profiles and control plus the mean change of training conditions."""
    predicted, observed, control = case.profiles
    centre = case.truth.centre
    return predicted, observed, control if centre is None else control + centre[case.truth.kept]


@_describe("cosine_delta", "cosine", "higher", 1.0, f"cosine, {_FROM_TRAINING}", "means", _SYSTEMA)
def _cosine(case: Comparison) -> float:
    if case.truth.centre is None:
        return float("nan")
    predicted, observed, reference = _centred(case)
    found = cosine_delta(predicted, observed, reference)
    known = np.isfinite(cosine_delta(observed, observed, reference))
    return 0.0 if np.isnan(found) and known else found


@_describe(
    "cosine_delta_control",
    "cosine from control",
    "higher",
    1.0,
    "cosine, from control",
    "means",
    _SYSTEMA,
)
def _cosine_control(case: Comparison) -> float:
    return _zero_without_direction(cosine_delta(*case.profiles), case)


def _weights(case: Comparison) -> Floats:
    """Return weights of genes by the real test; without real cells by the real change."""
    truth = case.truth
    if truth.observed.cells is None or truth.control.cells is None:
        return de_weights(np.abs(truth.observed.mean - truth.control.mean)[truth.kept])
    return de_weights(np.nan_to_num(truth.differential.z)[truth.kept])


@_describe("wmse", "weighted MSE", "lower", 0.0, f"squared {_LOG1P}", "means", _WEIGHTED)
def _wmse(case: Comparison) -> float:
    predicted, observed, _ = case.profiles
    return weighted_mse(predicted, observed, _weights(case))


@_describe("r2_weighted", "weighted R2", "higher", 1.0, "share of variance", "means", _WEIGHTED)
def _r2(case: Comparison) -> float:
    predicted, observed, reference = _centred(case)
    return weighted_r2(predicted - reference, observed - reference, _weights(case))


def _discrimination(cases: Sequence[Comparison], *, centred: bool) -> Terms:
    """Rank conditions within their panels; the targets of all are left out."""
    scores = np.full(len(cases), np.nan)
    if centred and any(case.truth.centre is None for case in cases):
        return mean_terms(scores.tolist())
    panels = {id(case.truth.panel): case.truth.panel for case in cases}
    for key, panel in panels.items():
        rows = [i for i, case in enumerate(cases) if id(case.truth.panel) == key]
        members = [cases[i] for i in rows]
        predicted = np.stack([_change(c, c.predicted.mean, centred=centred) for c in members])
        if panel is None:
            observed = [_change(c, c.truth.observed.mean, centred=centred) for c in members]
            targeted = ~np.logical_and.reduce([case.truth.kept for case in members])
            scores[rows] = discrimination(predicted, np.stack(observed), targeted=targeted)
            continue
        places = [case.truth.place for case in members]
        answers = np.zeros_like(panel.changes)
        answers[places] = predicted
        centre = members[0].truth.centre if centred else None
        changes = panel.changes if centre is None else panel.changes - centre
        scores[rows] = discrimination(answers, changes, targeted=panel.targeted)[places]
    return mean_terms(scores.tolist())


def _change(case: Comparison, profile: Floats, *, centred: bool) -> Floats:
    """Return the change from the reference; rounding of 32-bit profiles is no change."""
    reference = case.truth.control.mean
    if centred and case.truth.centre is not None:
        reference = reference + case.truth.centre
    change = profile - reference
    small = np.linalg.norm(change) <= ROUNDING * np.linalg.norm(reference)
    return np.zeros_like(change) if small else change


def _effect_coverage(case: Comparison, *, level: float) -> float:
    if case.predicted.effect_std is None:
        return float("nan")
    return effect_coverage(*case.stated_effects, level=level)


@_describe("effect_width_90", "effect width 90 %", "none", _NAN, _LOG1P, "effect_std", _INTERVALS)
def _effect_width(case: Comparison) -> float:
    stated = case.predicted.effect_std
    wide = 2 * 1.6448536269514722  # normal quantile of 0.95
    return float("nan") if stated is None else float(wide * stated[case.truth.kept].mean())


# Metrics of cells.


@_describe("de_direction_yield", "DE signs", "higher", 1.0, "share of genes", "cells", _VCC)
def _de_yield(case: Comparison) -> float:
    return de_direction_yield(case.differential, case.truth.differential, case.truth.kept)


@_describe("de_jaccard", "DE Jaccard", "higher", 1.0, "share of genes", "cells", _VCC)
def _de_jaccard(case: Comparison) -> float:
    return de_jaccard(case.differential, case.truth.differential, case.truth.kept)


@_describe(
    "de_lfc_nmae", "DE fold change error", "lower", 0.0, "share of the fold changes", "cells", _VCC
)
def _de_error(case: Comparison) -> float:
    return de_lfc_nmae(case.differential, case.truth.differential, case.truth.kept)


@_describe("energy", "energy", "lower", 0.0, _COMPONENTS, "cells", _ENERGY)
def _energy(case: Comparison) -> float:
    return case.energy


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
    return variance_ratio(*case.cells, genes=kept[genes])


@_describe(
    "variance_spread",
    "variance spread",
    "lower",
    0.0,
    "interquartile range of log ratios",
    "cells",
    _SIMULATORS,
)
def _variance_spread(case: Comparison) -> float:
    return variance_spread(*case.cells, genes=case.truth.variable_genes)


@_describe(
    "zero_fraction_error", "zero error", "lower", 0.0, "share of cells", "cells", _SIMULATORS
)
def _zeros(case: Comparison) -> float:
    kept = np.flatnonzero(case.truth.kept)
    made, real = (cells[:, kept] for cells in case.cells)
    return zero_fraction_error(made, real)


@_describe(
    "correlation_agreement", "correlations", "higher", 1.0, "correlation", "cells", _SIMULATORS
)
def _correlations(case: Comparison) -> float:
    if min(cells.shape[0] for cells in case.cells) < 3:
        return float("nan")
    return correlation_agreement(*case.cells, genes=case.truth.variable_genes)


def _coverage(case: Comparison, *, level: float) -> float:
    return float(np.mean(coverage(case.ranks, level)))


@_describe("cell_width_90", "cell width 90 %", "none", _NAN, _LOG1P, "cells", _PIT)
def _width(case: Comparison) -> float:
    return float(np.mean(interval_width(case.variable[0], 0.9)))


@_describe("pit_ece", "PIT error", "lower", 0.0, "share of cells", "cells", _PIT)
def _pit_ece(case: Comparison) -> float:
    return calibration_error(case.ranks)


@_describe("crps", "CRPS", "lower", _NAN, _LOG1P, "cells", _RULES)
def _crps(case: Comparison) -> float:
    return float(np.mean(crps(*case.variable)))


@_describe("energy_score", "energy score", "lower", _NAN, _COMPONENTS, "cells", _RULES)
def _energy_score(case: Comparison) -> float:
    most, seed = case.truth.max_cells, case.truth.seed
    return energy_score(case.points, case.truth.points, max_cells=most, seed=seed)


@_describe(
    "variogram_score",
    "variogram score",
    "lower",
    _NAN,
    f"squared root of {_LOG1P}",
    "cells",
    _VARIOGRAM,
)
def _variogram(case: Comparison) -> float:
    return variogram_score(*case.variable)


@_describe("composition_jsd", "composition", "lower", 0.0, "bits", "cells", _JSD)
def _composition(case: Comparison) -> float:
    space = case.truth.space
    if space is None or space.states is None:
        return float("nan")
    return composition_jsd(case.points, case.truth.points, space.states)


@_describe("nll", "nll", "lower", _NAN, "nats a cell", "likelihood", _LIKELIHOOD)
def _nll(case: Comparison) -> float:
    return float("nan") if case.predicted.nll is None else case.predicted.nll


def _of_level(
    name: str, title: str, function: Callable[..., float], needs: Needs, paper: str
) -> list[Metric]:
    """Return a metric for each level of intervals."""
    unit = "share of genes" if needs == "effect_std" else "share of cells"
    return [
        Metric(
            f"{name}_{100 * level:.0f}",
            f"{title} in {100 * level:.0f} %",
            each(partial(function, level=level)),
            "nearer",
            level,
            unit,
            needs,
            paper,
        )
        for level in LEVELS
    ]


_ALL = (
    _pearson,
    _pearson_top,
    Metric(
        "nmse",
        "nmse",
        partial(_error, control=True),
        "lower",
        0.0,
        "share of the effect",
        "means",
        _LINEAR,
    ),
    Metric(
        "nmse_vs_no_change",
        "nmse / no change",
        partial(_error, control=False),
        "lower",
        0.0,
        "share of no change",
        "means",
        _LINEAR,
    ),
    *(_wmse, _r2, _cosine, _cosine_control),
    Metric(
        "discrimination",
        "discrimination",
        partial(_discrimination, centred=False),
        "higher",
        1.0,
        "share of other conditions",
        "means",
        _RANKS,
    ),
    Metric(
        "discrimination_centred",
        "discrimination, centred",
        partial(_discrimination, centred=True),
        "higher",
        1.0,
        f"share of other conditions, {_FROM_TRAINING}",
        "means",
        _SYSTEMA,
    ),
    *_of_level("effect_coverage", "effects", _effect_coverage, "effect_std", _INTERVALS),
    _effect_width,
    *(_de_yield, _de_jaccard, _de_error, _energy),
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
        _SIMULATORS,
        is_ratio=True,
    ),
    *(_variance_spread, _zeros, _correlations),
    *_of_level("cell_coverage", "cells", _coverage, "cells", _PIT),
    *(_width, _pit_ece, _crps, _energy_score, _variogram, _composition, _nll),
)

#: Our own metrics by name. A new one is a function and its name above.
OWN_METRICS: Final[Mapping[str, Metric]] = {metric.name: metric for metric in _ALL}
