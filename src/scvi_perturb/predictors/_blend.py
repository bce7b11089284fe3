"""How modalities are blended into one similarity, chosen by the error of what is left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scvi_perturb.predictors._ridge import GroupedRidge
from scvi_perturb.predictors._similarity import sharpened, weighted_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scvi_perturb.predictors._similarity import Parts

    Floats = NDArray[np.float64]

__all__ = ["Blend", "choose_blend", "tuning_rows"]


@dataclass(frozen=True, slots=True)
class Blend:
    """A weight for each modality, of sum one, and how sharply their mean falls."""

    weights: dict[str, float]
    sharpness: float


def choose_blend(
    parts: Parts,
    targets: Floats,
    *,
    shares: Floats,
    groups: NDArray[np.int64],
    sharpnesses: Sequence[float],
    penalties: Sequence[float],
) -> Blend:
    """Choose a blend for the regression of `targets` on names.

    The weight of a modality is the share of the squared error that it alone takes away, at its own
    best sharpness and penalty, when groups are left out; one that takes away nothing has none. A
    search for the best weights would fit the noise of few groups. The sharpness of the mean is
    then that of least error.

    Parameters
    ----------
    parts
        Similarities of names in each modality, `(n_names, n_names)`; see `Similarity.parts`.
    targets
        Centred, `(n_rows, n_outputs)`.
    shares
        Share of each name in each row, `(n_rows, n_names)`.
    groups
        Number of the group of each row, `(n_rows,)`.
    sharpnesses, penalties
        To choose from; the first of the best is taken.
    """
    if targets.shape[1] > len(targets):
        # errors are sums of squares: fewer columns of the same products have the same
        targets = np.linalg.qr(targets.T)[1].T

    def errors(alike: Floats) -> list[float]:
        kernels = (shares @ sharpened(alike, value) @ shares.T for value in sharpnesses)
        fits = (GroupedRidge.fit(k, targets, groups=groups, penalties=penalties) for k in kernels)
        return [float(one.errors.min()) for one in fits]

    gains = dict.fromkeys(parts, 1.0)
    if len(parts) > 1:
        before = float((targets**2).mean())
        alone = {name: min(errors(alike)) for name, (alike, _) in parts.items()}
        gains = {name: max(before - error, 0.0) for name, error in alone.items()}
        if not any(gains.values()):
            gains = dict.fromkeys(parts, 1.0)
    weights = {name: gain / sum(gains.values()) for name, gain in gains.items()}
    best = int(np.argmin(errors(weighted_mean(parts, weights))))
    return Blend(weights, float(sharpnesses[best]))


def tuning_rows(groups: NDArray[np.int64], most: int) -> NDArray[np.intp]:
    """Return at most `most` rows, whole groups drawn at random, and two groups at least."""
    if len(groups) <= most:
        return np.arange(len(groups))
    order = np.random.default_rng(0).permutation(np.unique(groups))
    sizes = np.array([(groups == group).sum() for group in order])
    n = max(int((np.cumsum(sizes) <= most).sum()), 2)
    return np.flatnonzero(np.isin(groups, order[:n]))
