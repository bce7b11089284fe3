"""Shares that sum to one: what a profile of summed counts is, and a sum of log changes is not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scvi_perturb._constants import TARGET_SUM

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["closed", "proportions"]


def proportions(profiles: NDArray[np.floating[Any]]) -> Floats:
    """Return the proportions of `log1p` profiles, `(..., n_genes)`, each summing to 1."""
    raw = np.maximum(np.expm1(profiles.astype(np.float64)), 0.0)
    made: Floats = raw / np.maximum(raw.sum(axis=-1, keepdims=True), np.finfo(np.float64).tiny)
    return made


def closed(changes: Floats, controls: Floats) -> Floats:
    """Scale what changes lead to so that its counts sum to ten thousand again.

    Changes of logarithms, added up or drawn to their mean, lead to shares that do not sum to one,
    and all genes are off by the same factor.

    Parameters
    ----------
    changes, controls
        Change, and the profile that it leads from, `log1p` of counts per ten thousand of their
        sum, `(n_requests, n_genes)`.

    References
    ----------
    Aitchison, The statistical analysis of compositional data, 1986.
    """
    made: Floats = np.log1p(TARGET_SUM * proportions(controls + changes)) - controls
    made[~changes.any(axis=1)] = 0.0  # no change is none, to the last digit
    return made
