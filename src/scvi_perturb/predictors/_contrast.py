"""Damping what the changes of many conditions have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from scvi_perturb._errors import SchemaError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scvi_perturb.predictors._lookup import Deltas

    Floats = NDArray[np.float64]

__all__ = ["Contrast", "check_contrast"]


@dataclass(frozen=True, slots=True)
class Contrast:
    """Multiplies changes, less the mean of training, with `g (I + c S / s)^-1`.

    The gain `g` makes up for the size that is lost: it is that by which changes of training are
    nearest to what they were.

    Parameters
    ----------
    mean
        Mean change of training, `(n_genes,)`.
    axes
        Components of training changes as rows, `(k, n_genes)`, orthonormal.
    damped
        What is taken off along each, 0 to 1, `(k,)`.
    gain
        At least 1.
    """

    mean: Floats
    axes: Floats
    damped: Floats
    gain: float

    @classmethod
    def of(cls, deltas: Deltas, contrast: float, *, who: str) -> Self:
        """Learn the components of training changes.

        Raises
        ------
        SchemaError
            If there are none.
        """
        changes = [change for seen in deltas.values() for change in seen.values()]
        if not changes:
            msg = f"{who} found no training condition that has a control to change from."
            raise SchemaError(msg)
        mean = np.mean(changes, axis=0)
        _, spread, axes = np.linalg.svd(changes - mean, full_matrices=False)
        share = (spread / max(float(spread[0]), 1e-300)) ** 2
        left = 1 / (1 + contrast * share)
        size = float(share @ left**2)
        gain = float(share @ left) / size if size > 0 else 1.0
        return cls(mean, axes, 1 - left, gain)

    def __call__(self, changes: Floats) -> Floats:
        """Return changes `(n, n_genes)`, damped."""
        specific = changes - self.mean
        specific = specific - (specific @ self.axes.T * self.damped) @ self.axes
        made: Floats = self.mean + self.gain * specific
        return made


def check_contrast(contrast: float) -> float:
    """Return the contrast.

    Raises
    ------
    ValueError
        If it is negative or not finite.
    """
    if not 0 <= contrast < np.inf:
        msg = f"contrast={contrast}; expected a finite number, at least 0."
        raise ValueError(msg)
    return contrast
