"""Calibration of intervals, for single cells and for mean effects.

The two levels answer different questions and are never mixed. *Cell level* (`randomized_pit`,
`coverage`, `interval_width`, `calibration_error`): where does the value of a single new cell fall
among predicted cells. *Effect level* (`effect_pit`, `effect_coverage`): does the stated standard
error of a mean change cover the measured change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from scipy.special import ndtr

from scvi_perturb._checks import checked

if TYPE_CHECKING:
    from scvi_perturb.metrics._profiles import Floats

#: Levels of central intervals at which coverage is reported.
LEVELS: Final = (0.5, 0.8, 0.9, 0.95)

#: Quantile levels at which `calibration_error` compares distributions.
_QUANTILES: Final = (np.arange(20) + 0.5) / 20


@checked
def randomized_pit(predicted: Floats, observed: Floats, *, seed: int | None = 0) -> Floats:
    """Return the rank of each real value among the predicted ones. Cell level.

    `(number below + V (number equal + 1)) / (m + 1)` with V uniform on [0, 1]: the real value
    takes its place among m + 1, ties in random order. If real and predicted cells are exchangeable
    this is exactly uniform on [0, 1], whatever m and however many ties (zeros) there are.

    Parameters
    ----------
    predicted, observed
        Cells, `(m, n_genes)` and `(n, n_genes)`, in the same units.
    seed
        Seed of the random order of ties.

    Returns
    -------
    Probability integral transforms in [0, 1], `(n, n_genes)`. Predicted cells that are too alike
    pile them up at 0 and 1.

    Raises
    ------
    ValueError
        If a side has no cells, the numbers of genes differ or a value is not finite.

    References
    ----------
    Czado, Gneiting and Held, Predictive model assessment for count data, Biometrics 2009.
    """
    predicted, observed = cells_of_genes(predicted, observed)
    ordered = np.sort(predicted, axis=0)
    below, up_to = np.empty(observed.shape), np.empty(observed.shape)
    for gene in range(observed.shape[1]):
        below[:, gene] = np.searchsorted(ordered[:, gene], observed[:, gene], side="left")
        up_to[:, gene] = np.searchsorted(ordered[:, gene], observed[:, gene], side="right")
    place = np.random.default_rng(seed).random(observed.shape)
    return (below + place * (up_to - below + 1)) / (len(predicted) + 1)


@checked
def coverage(pit: Floats, level: float) -> Floats:
    """Return the share of real values inside the central predicted interval. Cell level.

    Parameters
    ----------
    pit
        From `randomized_pit`, `(n, n_genes)`.
    level
        Level of the interval, in (0, 1); see `LEVELS`.

    Returns
    -------
    Shares, `(n_genes,)`; right is `level`, below it the predicted cells are too alike. Sampling
    alone gives a gene a standard deviation of about `sqrt(level (1 - level) (1 / n + 1 / m))`.

    Raises
    ------
    ValueError
        If the level is not in (0, 1), or there are no values.
    """
    _check_level(level)
    inside = np.abs(_checked_pit(pit) - 0.5) <= level / 2
    return np.asarray(inside.mean(axis=0), dtype=np.float64)


def interval_width(predicted: Floats, level: float) -> Floats:
    """Return the width of the central interval of predicted cells `(m, n_genes)`. Cell level.

    In the units of the cells, `(n_genes,)`. Of two predictions with the right coverage the one
    with narrower intervals says more. With fewer than `2 / (1 - level) - 1` cells (39 for 0.95)
    the interval ends at the smallest and largest predicted value.
    """
    _check_level(level)
    predicted, _ = cells_of_genes(predicted, predicted)
    # Positions (m + 1) p, as for the ranks of `randomized_pit`.
    ends = np.quantile(predicted, [(1 - level) / 2, (1 + level) / 2], axis=0, method="weibull")
    return np.asarray(ends[1] - ends[0], dtype=np.float64)


@checked
def calibration_error(pit: Floats) -> float:
    """Return the mean distance between the distribution of ranks and a uniform one. Cell level.

    The absolute difference of the share of ranks up to u and u itself, mean over 20 equally
    spaced u (0.025 to 0.975) and over genes.

    Parameters
    ----------
    pit
        From `randomized_pit`, `(n, n_genes)`.

    Returns
    -------
    A share in [0, 0.5]: 0 is calibrated, 0.25 is what cells without variance at the right median
    have, 0.5 means that all real values lie on one side of all predicted ones. Sampling alone
    gives about `0.31 sqrt(1 / n + 1 / m)` with n real and m predicted cells (0.02 for 500 each):
    compare with a replicate.

    Raises
    ------
    ValueError
        If there are no values.

    References
    ----------
    Kuleshov, Fenner and Ermon, Accurate uncertainties for deep learning using calibrated
    regression, ICML 2018.
    """
    pit = np.sort(_checked_pit(pit), axis=0)
    n = len(pit)
    counts = [[np.searchsorted(ranks, _QUANTILES, side="right")] for ranks in pit.T]
    return float(np.abs(np.concatenate(counts) / n - _QUANTILES).mean())


@checked
def effect_pit(
    predicted_change: Floats,
    std: Floats | float,
    observed_change: Floats,
    observed_variance: Floats | float,
) -> Floats:
    """Return the quantiles of measured mean changes in their predicted normals. Effect level.

    `Phi((observed - predicted) / sqrt(std^2 + observed_variance))`: the measured change differs
    from the predicted one by the error of the prediction and by its own sampling noise.

    Parameters
    ----------
    predicted_change
        Predicted mean changes from control, `(n_genes,)`, in natural logarithms.
    std
        Standard errors that the prediction states, `(n_genes,)`, without the noise of the
        measurement.
    observed_change
        Measured mean changes from control, `(n_genes,)`.
    observed_variance
        Sampling variance of the difference of the two changes that is due to the measurement,
        `(n_genes,)`. If both are taken from the same measured control its noise cancels, and this
        is the variance of the measured profile of the condition alone.

    Returns
    -------
    Probability integral transforms in [0, 1], `(n_genes,)`; uniform over conditions if the
    standard errors are right. Without any variance 0 or 1, or 0.5 for an exact prediction. NaN
    where an input is NaN. Genes of one condition are not independent of each other.

    Raises
    ------
    ValueError
        If the shapes differ, or a standard error or variance is negative.
    """
    predicted_change = np.asarray(predicted_change, dtype=np.float64)
    observed_change = np.asarray(observed_change, dtype=np.float64)
    if predicted_change.shape != observed_change.shape:
        msg = (
            f"Found predicted changes of shape {predicted_change.shape} and measured ones of "
            f"{observed_change.shape}; both must hold the same genes in the same order."
        )
        raise ValueError(msg)
    std, observed_variance = np.asarray(std), np.asarray(observed_variance)
    for name, values in (("std", std), ("observed_variance", observed_variance)):
        if (values < 0).any():
            msg = f"{int((values < 0).sum())} values of `{name}` are negative; give 0 or more."
            raise ValueError(msg)
    error = observed_change - predicted_change
    total = np.broadcast_to(np.sqrt(std**2 + observed_variance), error.shape)
    surprise = np.divide(error, total, out=np.copysign(np.inf, error), where=total != 0)
    return ndtr(np.where((total == 0) & (error == 0), 0.0, surprise))


def effect_coverage(
    predicted_change: Floats,
    std: Floats | float,
    observed_change: Floats,
    observed_variance: Floats | float,
    *,
    level: float = 0.9,
) -> float:
    """Return the share of genes whose measured mean change is inside its interval. Effect level.

    Arguments as for `effect_pit`. Right is `level`, as a mean over conditions: genes of one
    condition err together, and a single condition may be far off. NaN genes are left out; NaN if
    none is left.
    """
    _check_level(level)
    pit = effect_pit(predicted_change, std, observed_change, observed_variance)
    pit = pit[np.isfinite(pit)]
    return float((np.abs(pit - 0.5) <= level / 2).mean()) if pit.size else float("nan")


def cells_of_genes(predicted: Floats, observed: Floats) -> tuple[Floats, Floats]:
    """Return two sets of cells with the same genes as float64; refuse non-finite values."""
    predicted, observed = (np.asarray(x, dtype=np.float64) for x in (predicted, observed))
    shapes = predicted.shape, observed.shape
    if any(len(shape) != 2 or min(shape) < 1 for shape in shapes) or shapes[0][1] != shapes[1][1]:
        msg = (
            f"Found predicted cells of shape {shapes[0]} and real cells of {shapes[1]}; give "
            "(m, n_genes) and (n, n_genes), dense, with the same genes in the same order."
        )
        raise ValueError(msg)
    for name, cells in (("predicted", predicted), ("real", observed)):
        wrong = int((~np.isfinite(cells).all(axis=1)).sum())
        if wrong:
            msg = (
                f"{wrong} of {len(cells)} {name} cells hold values that are not finite; "
                "mend or leave out those cells."
            )
            raise ValueError(msg)
    return predicted, observed


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        msg = f"level={level}; give the level of a central interval in (0, 1), for example 0.9."
        raise ValueError(msg)


def _checked_pit(pit: Floats) -> Floats:
    pit = np.asarray(pit, dtype=np.float64)
    if pit.ndim != 2 or min(pit.shape) < 1:
        msg = f"Found ranks of shape {pit.shape}; give (n, n_genes) from `randomized_pit`."
        raise ValueError(msg)
    return pit
