"""On which scale effects add: logarithms of expression plus a pseudocount."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from scipy.stats import ttest_1samp

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["LOG1P", "PSEUDOCOUNTS", "Scale", "clearly_better"]

#: To choose from, in counts per ten thousand; the first, unless another is clearly better.
PSEUDOCOUNTS: Final = (1.0, 0.3, 0.1)
#: How unlikely a gain has to be by chance, one-sided.
_LEVEL: Final = 0.025


@dataclass(frozen=True, slots=True)
class Scale:
    """Changes of `log(x + pseudocount)`, where profiles are `log(x + 1)`.

    Expression `x` is in counts per ten thousand. Of genes far below the pseudocount absolute
    changes add up, of those far above it factors multiply. A small one is right where effects are
    factors, and lets the noise of weak genes in.

    Parameters
    ----------
    pseudocount
        Positive; 1 is the scale of profiles.
    """

    pseudocount: float = 1.0

    def changes(self, changes: Floats, controls: Floats) -> Floats:
        """Return changes of profiles on this scale.

        Parameters
        ----------
        changes, controls
            Change, and the profile that it leads from, `(n, n_genes)`.
        """
        if self == LOG1P:
            return changes
        made: Floats = self._of(controls + changes) - self._of(controls)
        return made

    def back(self, changes: Floats, controls: Floats) -> Floats:
        """Return the changes of profiles that changes on this scale are; see `changes`."""
        if self == LOG1P:
            return changes
        own = self.pseudocount
        reached = (np.expm1(controls) + own) * np.exp(changes) - own
        made: Floats = np.log1p(reached) - controls
        return made

    def steepness(self, profiles: Floats) -> Floats:
        """Return how much a small change of profiles is on this scale, `(n, n_genes)`."""
        if self == LOG1P:
            return np.ones_like(profiles)
        made: Floats = np.exp(profiles) / (np.expm1(profiles) + self.pseudocount)
        return made

    def _of(self, profiles: Floats) -> Floats:
        made: Floats = np.log(np.maximum(np.expm1(profiles), 0.0) + self.pseudocount)
        return made


#: The scale of profiles themselves.
LOG1P: Final = Scale()


def clearly_better(errors: Mapping[Scale, Floats]) -> Scale:
    """Return the choice of least error among those that are clearly better than the first.

    Clearly: the mean difference over groups is above zero by a paired t-test at 2.5 %. So few
    groups, or groups that disagree, leave the first.

    Parameters
    ----------
    errors
        Squared errors of the groups that were left out, `(n_groups,)` by choice.
    """
    first, *others = errors
    best = first
    for choice in others:
        gain = errors[first] - errors[choice]
        if len(gain) < 2 or not gain.any():
            continue
        unlikely = ttest_1samp(gain, 0.0, alternative="greater").pvalue
        if unlikely < _LEVEL and errors[choice].sum() < errors[best].sum():
            best = choice
    return best
