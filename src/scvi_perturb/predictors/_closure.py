"""Shares that sum to one: what a profile of summed counts is, and a sum of log changes is not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scvi_perturb._constants import TARGET_SUM

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scvi_perturb.predictors._profiles import TrainingProfiles
    from scvi_perturb.predictors._reference import Reference
    from scvi_perturb.predictors._requests import Context, Request

    Floats = NDArray[np.float64]

__all__ = ["closed", "controls_of"]


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
    shares = np.maximum(np.expm1(controls + changes), 0.0)
    total = shares.sum(axis=1, keepdims=True)
    made: Floats = np.log1p(shares * (TARGET_SUM / np.maximum(total, 1e-12))) - controls
    made[~changes.any(axis=1)] = 0.0  # no change is none, to the last digit
    return made


def controls_of(
    requests: Sequence[Request], given: Reference | None, profiles: TrainingProfiles
) -> Floats | None:
    """Return the control profile of each request, None where profiles need not sum to anything.

    That is so of means over cells, of changes, and of a part of the genes of a library.
    """
    if profiles.kind != "pseudobulk" or profiles.libraries is not None:
        return None
    known: dict[Context, Floats] = {}
    for one in requests:
        if one.context not in known:
            own = None if given is None else given.control(one.context, profiles)[2]
            known[one.context] = profiles.control_profile(one.context) if own is None else own
    return np.stack([known[one.context] for one in requests])
