"""How much signal each output has: from known noise by moments, or chosen by its own errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scvi_perturb.predictors._condition_gp_outputs import Outputs
    from scvi_perturb.predictors._condition_gp_spectrum import Spectrum

    Floats: TypeAlias = NDArray[np.float64]

__all__ = ["Signal", "Tune", "calibration", "fit_signal", "left_out", "row_weights"]

#: "loo": least squared error of what is left out; "marginal": largest marginal likelihood.
Tune = Literal["loo", "marginal"]

#: Ratios of noise to signal to choose from where noise is unknown; the last is no change.
_RATIOS: Final = (*np.geomspace(1e-2, 1e3, 11).tolist(), 1e6)
#: Known ratios are rounded to this many even steps of a factor of ten, so that outputs share work.
_STEPS: Final = 6
_LEAST, _MOST = 1e-6, 1e6
#: Rows that the mean signal over genes counts as, in that of each gene.
_PRIOR_ROWS: Final = 1.5


@dataclass(frozen=True, slots=True)
class Signal:
    """Signal of each output, and how well it predicts.

    Parameters
    ----------
    scales
        Signal variance, for a kernel whose mean diagonal is 1, `(n_outputs,)`.
    ratios
        Noise by signal variance, `(n_outputs,)`.
    score
        What tuning makes least.
    """

    scales: Floats
    ratios: Floats
    score: float


def fit_signal(
    spectrum: Spectrum,
    outputs: Outputs,
    *,
    diagonal: Floats,
    members: Sequence[NDArray[np.intp]],
    tune: Tune,
    noise: float,
) -> Signal:
    """Fit the signal of each output, and score the kernel.

    Where noise is known, the signal of an output is its mean square less its noise, over rows, by
    empirical Bayes; that of a gene is drawn to the mean over genes as if by 1.5 further rows. Where
    it is not, the ratio of both is the one that predicts that output best.

    Parameters
    ----------
    spectrum, outputs
        Of the training rows.
    diagonal
        Of the kernel, `(n_rows,)`.
    members
        Rows of each group that is left out together.
    tune
        What is made least.
    noise
        Factor of the known noise.
    """
    if outputs.noise is None:
        return _chosen(spectrum, outputs, members, tune)
    scales = _moments(outputs, diagonal)
    ratios = _rounded(noise * outputs.noise / scales)
    if tune == "marginal":
        return Signal(scales, ratios, float(spectrum.surprise(scales, ratios).mean()))
    squared = left_out(spectrum, ratios, members) ** 2
    error = float(row_weights(outputs, float(scales.mean())) @ squared.sum(axis=1))
    return Signal(scales, ratios, error / outputs.values.size)


def left_out(spectrum: Spectrum, ratios: Floats, members: Sequence[NDArray[np.intp]]) -> Floats:
    """Return the residuals of outputs when the group of a row is left out, `(n, n_outputs)`."""
    made = np.empty(spectrum.rotated.shape)
    for ratio in np.unique(ratios):
        here = ratios == ratio
        made[:, here] = spectrum.left_out(float(ratio), members, here)
    return made


def calibration(
    spectrum: Spectrum,
    outputs: Outputs,
    signal: Signal,
    members: Sequence[NDArray[np.intp]],
) -> float:
    """Return the error of what is left out by what was expected of it, both without known noise.

    1 where nothing can be left out. At least 0.1 and at most 10.
    """
    if len(members) < 2:
        return 1.0
    found, expected = 0.0, 0.0
    rows = outputs.row_noise[:, None]
    for ratio in np.unique(signal.ratios):
        here = signal.ratios == ratio
        residuals = spectrum.left_out(float(ratio), members, here)
        variance = spectrum.left_out_variance(float(ratio), members)[:, None] * signal.scales[here]
        noise = 0.0 if outputs.noise is None else rows * outputs.noise[here]
        known = 0.0 if outputs.noise is None else rows * ratio * signal.scales[here]
        found += float((residuals**2 - noise).sum())
        expected += float((variance - known).sum())
    return float(np.clip(found / expected, 0.1, 10.0)) if expected > 0 else 1.0


def _moments(outputs: Outputs, diagonal: Floats) -> Floats:
    noise = np.zeros(outputs.values.shape[1]) if outputs.noise is None else outputs.noise
    excess = outputs.values**2 - outputs.row_noise[:, None] * noise
    mean = max(float(excess.mean()), 0.0)
    weights = row_weights(outputs, mean) ** 2
    found = np.maximum(weights @ excess / (weights @ diagonal), 0.0)
    if outputs.axes is None:
        n_rows = len(outputs.values)
        found = (n_rows * found + _PRIOR_ROWS * found.mean()) / (n_rows + _PRIOR_ROWS)
    least = 1e-9 * float((outputs.values**2).mean())
    return np.maximum(found, max(least, 1e-12))


def row_weights(outputs: Outputs, signal: float) -> Floats:
    """Return the weight of each row's square: less where noise is more; the mean is 1."""
    noise = 0.0 if outputs.noise is None else float(outputs.noise.mean())
    spread = signal + outputs.row_noise * noise
    weights = np.ones_like(spread) if spread.min() <= 0 else 1 / spread
    return weights / weights.mean()


def _rounded(ratios: Floats) -> Floats:
    clipped = np.clip(ratios, _LEAST, _MOST)
    return 10 ** (np.round(np.log10(clipped) * _STEPS) / _STEPS)


def _chosen(
    spectrum: Spectrum, outputs: Outputs, members: Sequence[NDArray[np.intp]], tune: Tune
) -> Signal:
    """Choose the ratio of each output: the best of those that never fall from one to the next.

    Components come by their size, and the larger are expected to hold more signal for their noise;
    a free choice for each would fit the noise of many.
    """
    n_rows, n_outputs = outputs.values.shape
    every = np.ones(n_outputs, bool)
    scores = np.empty((len(_RATIOS), n_outputs))
    scales = np.empty_like(scores)
    for i, ratio in enumerate(_RATIOS):
        spread = spectrum.values[:, None] + ratio
        scales[i] = np.maximum((spectrum.rotated**2 / spread).mean(axis=0), 1e-12)
        if tune == "marginal":
            scores[i] = spectrum.surprise(scales[i], np.full(n_outputs, ratio))
        else:
            weights = 1 / outputs.row_noise / np.mean(1 / outputs.row_noise)
            scores[i] = weights @ spectrum.left_out(ratio, members, every) ** 2 / n_rows
    best = _rising(scores)
    place = best, np.arange(n_outputs)
    return Signal(scales[place], np.array(_RATIOS)[best], float(scores[place].sum() / n_outputs))


def _rising(scores: Floats) -> NDArray[np.intp]:
    """Return the choice of least total score that rises or stays from column to column.

    Parameters
    ----------
    scores
        `(n_choices, n_columns)`.

    Returns
    -------
    The row chosen in each column, `(n_columns,)`.
    """
    n_choices, n_columns = scores.shape
    total = np.zeros(n_choices)
    came_from = np.zeros(scores.shape, np.intp)
    for column in range(n_columns):
        least = np.minimum.accumulate(total)
        new_least = np.r_[True, total[1:] < least[:-1]]
        came_from[:, column] = np.maximum.accumulate(np.where(new_least, np.arange(n_choices), 0))
        total = least + scores[:, column]
    chosen = np.empty(n_columns, np.intp)
    place = int(total.argmin())
    for column in reversed(range(n_columns)):
        chosen[column] = place
        place = int(came_from[place, column])
    return chosen
