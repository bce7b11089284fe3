"""The law of errors in units of their standard deviation, measurement noise taken out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.stats import chi2
from scipy.stats import t as student

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["GRID", "law_quantiles"]

#: Levels at which the law is kept.
GRID: Final = np.linspace(0.0, 1.0, 201)
#: Degrees of freedom that are tried, of Student's law; the last is nearly normal.
_FREEDOM: Final = (0.7, 1.0, 1.4, 2.0, 3.0, 5.0, 10.0, 100.0)
#: Range of the scale, in units of the expected standard deviation.
_SCALES: Final = (0.03, 5.0)
#: Student's law is a mixture of normals: the quantiles of its precision that stand for it.
_PARTS: Final = (np.arange(40) + 0.5) / 40
#: More errors than these are thinned: the law is one-dimensional.
_MOST: Final = 6_000
#: Where the largest quantile is read.
_TOP: Final = 0.9995


def law_quantiles(error: Floats, variance: Floats, noise: Floats) -> Floats:
    """Return quantiles of `|true error| / sd` at the levels of the grid, `(201,)`.

    What is measured is the true error and the noise of the measurement. True errors of genes have
    heavier tails than noise: most are far smaller than their standard deviation, and the quantiles
    of what was measured would be too wide in the middle. So the law of true errors is taken for
    Student's, with the scale and the degrees of freedom of greatest likelihood when the noise of
    each gene is added (deconvolution). Where there is no noise, quantiles are those measured.

    Parameters
    ----------
    error
        Measured less predicted change, any shape.
    variance
        Expected variance of the true error, same shape; where it is zero nothing is learned.
    noise
        Sampling variance of the measurement, same shape.

    References
    ----------
    Lange, Little and Taylor, Robust statistical modeling using the t distribution, 1989.
    """
    told = variance > 0
    if not told.any():
        return np.zeros(len(GRID))
    scaled, extra = error[told] / np.sqrt(variance[told]), noise[told] / variance[told]
    if not extra.any():
        made: Floats = np.quantile(np.abs(scaled), GRID)
        return made
    step = -(-scaled.size // _MOST)
    freedom, scale = _most_likely(scaled[::step], extra[::step])
    made = scale * student.ppf((1 + np.minimum(GRID, _TOP)) / 2, freedom)
    return made


def _most_likely(scaled: Floats, extra: Floats) -> tuple[float, float]:
    """Return degrees of freedom and scale of Student's law, the noise added to it."""
    tried = []
    for freedom in _FREEDOM:
        # Given its precision, an error is normal: chi-squared by its degrees of freedom.
        widths = freedom / chi2.ppf(_PARTS, freedom)

        def unlikely(log_scale: float, widths: Floats = widths) -> float:
            total = np.exp(2 * log_scale) * widths + extra[:, None]
            density = np.exp(-0.5 * scaled[:, None] ** 2 / total) / np.sqrt(total)
            return -float(np.log(density.mean(axis=1) + 1e-300).sum())

        found = minimize_scalar(unlikely, bounds=np.log(_SCALES), options={"xatol": 0.01})
        tried.append((float(found.fun), freedom, float(np.exp(found.x))))
    _, freedom, scale = min(tried)
    return freedom, scale
