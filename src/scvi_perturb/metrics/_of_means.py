"""The metrics of means: what each takes from a comparison, and how it is read."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np

from scvi_perturb._errors import SchemaError
from scvi_perturb.metrics._calibration import LEVELS, effect_coverage
from scvi_perturb.metrics._direction import cosine_delta, de_weights, weighted_mse, weighted_r2
from scvi_perturb.metrics._discrimination import discrimination
from scvi_perturb.metrics._mean import ROUNDING, nmse_terms, pearson_delta
from scvi_perturb.metrics._metric import Metric, Terms, each, means

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scvi_perturb.metrics._comparison import Comparison
    from scvi_perturb.metrics._profiles import Floats

__all__ = ["OF_MEANS"]

_GEARS = "Roohani, Huang and Leskovec, Nature Biotechnology 2024"
_LINEAR = "Ahlmann-Eltze, Huber and Anders, Nature Methods 2025"
_SYSTEMA = "Vinas Torne et al., Nature Biotechnology 2025"
_WEIGHTED = "Mejia et al., Diversity by design, 2025"
_RANKS = "Wu et al., PerturBench, 2024"
_INTERVALS = "Gneiting, Balabdaoui and Raftery, JRSS B 2007"


def profiles(case: Comparison) -> tuple[Floats, Floats, Floats]:
    """Return predicted, observed and control profile without the perturbation's own genes."""
    truth = case.truth
    whole = case.predicted.mean, truth.observed.mean, truth.control.mean
    return tuple(profile[truth.kept] for profile in whole)  # type: ignore[return-value]


def _pearson(case: Comparison) -> float:
    return _or_zero(pearson_delta(*profiles(case)), case)


def _pearson_top(case: Comparison) -> float:
    return _or_zero(pearson_delta(*profiles(case), k=case.truth.n_top), case)


def _or_zero(value: float, case: Comparison) -> float:
    """Return 0 for a prediction without direction: only the truth may leave a score undefined."""
    _, observed, control = profiles(case)
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
            *profiles(case),
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
    predicted, observed, control = profiles(case)
    centre = case.truth.centre
    return predicted, observed, control if centre is None else control + centre[case.truth.kept]


def _cosine(case: Comparison) -> float:
    if case.truth.centre is None:
        return float("nan")
    predicted, observed, reference = _centred(case)
    found = cosine_delta(predicted, observed, reference)
    known = np.isfinite(cosine_delta(observed, observed, reference))
    return 0.0 if np.isnan(found) and known else found


def _cosine_control(case: Comparison) -> float:
    return _or_zero(cosine_delta(*profiles(case)), case)


def _weights(case: Comparison) -> Floats:
    """Weights of genes by the real test; without real cells by the real change."""
    truth = case.truth
    if truth.observed.cells is None or truth.control.cells is None:
        return de_weights(np.abs(truth.observed.mean - truth.control.mean)[truth.kept])
    return de_weights(np.nan_to_num(truth.differential.z)[truth.kept])


def _wmse(case: Comparison) -> float:
    predicted, observed, _ = profiles(case)
    return weighted_mse(predicted, observed, _weights(case))


def _r2(case: Comparison) -> float:
    predicted, observed, reference = _centred(case)
    return weighted_r2(predicted - reference, observed - reference, _weights(case))


def _discrimination(cases: Sequence[Comparison], *, centred: bool) -> Terms:
    """Rank conditions within their panels; the targets of all are left out."""
    scores = np.full(len(cases), np.nan)
    if centred and any(case.truth.centre is None for case in cases):
        return means(scores.tolist())
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
        ranked = discrimination(answers, changes, targeted=panel.targeted)
        scores[rows] = ranked[places]
    return means(scores.tolist())


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
    return effect_coverage(*effects(case), level=level)


def effects(case: Comparison) -> tuple[Floats, Floats, Floats, Floats]:
    """Return stated change and standard error, measured change and its sampling variance."""
    stated, truth = case.predicted.effect_std, case.truth
    if stated is None:
        msg = f"The prediction of {truth.name!r} states no standard error of its mean change."
        raise SchemaError(msg)
    predicted, observed, control = profiles(case)
    variance = np.broadcast_to(_kept(truth.observed.mean_variance, truth.kept), predicted.shape)
    return predicted - control, stated[truth.kept], observed - control, variance


def _effect_width(case: Comparison) -> float:
    stated = case.predicted.effect_std
    wide = 2 * 1.6448536269514722  # normal quantile of 0.95
    return float("nan") if stated is None else float(wide * stated[case.truth.kept].mean())


OF_MEANS: Final = (
    Metric(
        "pearson_delta", "Pearson", each(_pearson), "higher", 1.0, "correlation", "means", _GEARS
    ),
    Metric(
        "pearson_delta_top",
        "Pearson top 100",
        each(_pearson_top),
        "higher",
        1.0,
        "correlation",
        "means",
        _GEARS,
    ),
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
    Metric(
        "wmse",
        "weighted MSE",
        each(_wmse),
        "lower",
        0.0,
        "squared log1p CP10k",
        "means",
        _WEIGHTED,
    ),
    Metric(
        "r2_weighted",
        "weighted R2",
        each(_r2),
        "higher",
        1.0,
        "share of variance",
        "means",
        _WEIGHTED,
    ),
    Metric(
        "cosine_delta",
        "cosine",
        each(_cosine),
        "higher",
        1.0,
        "cosine, from the mean of training conditions",
        "means",
        _SYSTEMA,
    ),
    Metric(
        "cosine_delta_control",
        "cosine from control",
        each(_cosine_control),
        "higher",
        1.0,
        "cosine, from control",
        "means",
        _SYSTEMA,
    ),
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
        "share of other conditions, from the mean of training conditions",
        "means",
        _SYSTEMA,
    ),
    *(
        Metric(
            f"effect_coverage_{100 * level:.0f}",
            f"effects in {100 * level:.0f} %",
            each(partial(_effect_coverage, level=level)),
            "nearer",
            level,
            "share of genes",
            "spread",
            _INTERVALS,
        )
        for level in LEVELS
    ),
    Metric(
        "effect_width_90",
        "effect width 90 %",
        each(_effect_width),
        "none",
        float("nan"),
        "log1p CP10k",
        "spread",
        _INTERVALS,
    ),
)
