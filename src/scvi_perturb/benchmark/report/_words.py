"""Words of reports: how numbers are written, and what methods and metrics are called and ask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from scvi_perturb.metrics import METRICS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scvi_perturb.metrics import Metric

#: Written where there is no number.
UNDEFINED: Final = "-"
#: Roles of methods in the order in which readers meet them.
ROLES: Final = {
    "model": "models",
    "cells": "trivial: cells",
    "mean": "trivial: means",
    "replicate": "experiment repeated",
}
#: Bounds of scores beyond this say only that they are far away.
_FAR: Final = 100.0
#: How to read the score.
SCORE: Final = (
    "The score s places a method between the best trivial prediction (0) and a replicate of the "
    "experiment (1): s = (u - b) / (r - b), with u the metric of the method, b that of the best "
    "trivial prediction and r that of one half of the real cells that predicts the other half. "
    "Below 0 the method is worse than a trivial prediction. It is not clipped, and is not given "
    "where there is no replicate or where the replicate is no better than the trivial prediction. "
    "Intervals (95 %) are of a bootstrap over held-out conditions."
)
#: What each kind of split holds out.
HELD_OUT: Final = {
    "cells": "A share of the cells of every condition; the conditions themselves are seen.",
    "unseen_combination": "Combinations of perturbations that are seen alone or in others.",
    "unseen_perturbation": "Perturbations of which no cell is seen, alone or in combinations.",
    "context_transfer": "Perturbations in one context, such as a cell type, seen in others.",
    "unseen_context": "A whole context, such as a cell type or donor, but its control cells.",
    "dose": "Doses of perturbations that are seen at other doses.",
}
_MEANINGS: Final = {
    "pearson_delta": "Correlation over genes of the predicted and measured change from control.",
    "pearson_delta_top": "The same, of the genes that change most.",
    "nmse": "Squared error of the mean over the squared true effect. 1 is as bad as no change.",
    "nmse_vs_no_change": "Squared error of the mean over that of emitting the measured controls, "
    "freed of the noise of the real cells. 0 is perfect, 1 is no change exactly.",
    "wmse": "Squared error of the mean, genes weighted by how clearly they really change.",
    "r2_weighted": "Variance that is explained of how a condition differs from the mean of "
    "training conditions, genes weighted by how clearly they really change. 0 is that mean.",
    "cosine_delta": "Does the prediction differ from the mean of training conditions in the "
    "right direction? 0 is no relation, -1 the opposite.",
    "cosine_delta_control": "Does the prediction change from control in the right direction? "
    "Mostly met by what all perturbations share.",
    "discrimination": "Is the prediction nearer to its own condition than to the others? "
    "0.5 is chance, and what a constant prediction gets.",
    "discrimination_centred": "The same, of how conditions differ from the mean of training "
    "conditions, which leaves out what all share.",
    "de_direction_yield": "Genes called with the right sign by a test on predicted cells, over "
    "the larger number of calls. 0 is none.",
    "de_jaccard": "Overlap of the genes called on predicted and on real cells.",
    "de_lfc_nmae": "Error of fold changes of the genes that really change, over their size.",
    "energy": "Distance of the whole distributions of predicted and real cells.",
    "energy_ratio": "Distance of the whole distributions of predicted and real cells. 0 is that "
    "of two halves of the real cells, 1 that of control cells shifted by the best trivial mean.",
    "variance_ratio": "Predicted over real variance between cells, of the genes that change "
    "most. Below 1 predicted cells are too alike.",
    "variance_spread": "How unequally genes meet their variance.",
    "zero_fraction_error": "Difference of the shares of cells without a count, mean over genes.",
    "correlation_agreement": "Do genes vary together in predicted cells as in real ones? "
    "0 is no relation.",
    "pit_ece": "How far ranks of real values among predicted ones are from uniform, cell level. "
    "0.25 is what cells without variance have. Compare with the replicate.",
    "crps": "Distance of predicted and real values of each gene that rewards both the right "
    "place and the right spread. Compare with the replicate.",
    "energy_score": "The same of all genes together, in components.",
    "variogram_score": "Do differences between genes vary as they do in real cells?",
    "composition_jsd": "Difference of the shares of cell states. 0 is the same shares.",
    "nll": "How unlikely real cells are under the prediction.",
}
_PREFIXES: Final = {
    "effect_coverage": "Effect level: genes whose measured change is inside the interval that "
    "the method states.",
    "effect_width": "Effect level: width of the intervals that the method states.",
    "cell_coverage": "Cell level: real values that are inside the interval of predicted cells.",
    "cell_width": "Cell level: width of the interval of predicted cells.",
}


def number(value: float) -> str:
    """Return a number with about three digits, "-" where there is none."""
    if not np.isfinite(value):
        return UNDEFINED
    size = abs(value)
    if size >= 1e5:
        return f"{value:.1e}"
    digits = 3 if size < 1 else 2 if size < 10 else 1 if size < 100 else 0
    written = f"{value:,.{digits}f}"
    return written.removeprefix("-") if float(written.replace(",", "")) == 0 else written


def bound(value: float) -> str:
    """Return a bound of a score's interval; one that is far away only says so."""
    if abs(value) > _FAR:
        return f"> {_FAR:g}" if value > 0 else f"< -{_FAR:g}"
    return number(value)


def counted(n: int, what: str) -> str:
    """Return a number of things, as in "2 seeds"."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def title_of(name: str, titles: Mapping[str, str] | None) -> str:
    """Return the name of a method or task for readers."""
    return (titles or {}).get(name, name.replace("_", " "))


def direction(metric: Metric) -> str:
    """Return which way a metric is better."""
    if metric.direction == "nearer":
        return f"best at {metric.best:g}"
    if metric.direction == "none":
        return "read beside others"
    return f"{metric.direction} is better"


def meaning(metric: str) -> str:
    """Return what a metric asks; empty where nothing is written."""
    prefixed = [words for start, words in _PREFIXES.items() if metric.startswith(start)]
    return _MEANINGS.get(metric, prefixed[0] if prefixed else "")


def anchors(metric: str) -> str:
    """Return which way a metric is better, and its perfect value."""
    known = METRICS[metric]
    if known.direction == "nearer" or not np.isfinite(known.best):
        return direction(known)
    return f"{direction(known)}; perfect: {known.best:g}"
