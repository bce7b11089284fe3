"""What the Gaussian process learns from: changes of conditions in contexts, and their noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scvi_perturb.predictors._condition_gp_points import Contexts
    from scvi_perturb.predictors._condition_gp_scale import Scale
    from scvi_perturb.predictors._requests import Request

    Floats: TypeAlias = NDArray[np.float64]

__all__ = ["Rows"]


@dataclass(frozen=True, slots=True)
class Rows:
    """What is learned from.

    Parameters
    ----------
    requests
        Condition and context of each row.
    changes, controls
        Changes from control, and the control profiles, `(n_rows, n_genes)`; controls are None where
        changes are measured without.
    noise
        Sampling variances of the profiles that changes lead to and from, or None where these are
        not known.
    n_each
        Number of rows of data that each change is the mean of, `(n_rows,)`.
    contexts
        All contexts of which a control is known.
    members
        Rows of each group that is left out together.
    are_shares
        Whether profiles sum to ten thousand.
    """

    requests: list[Request]
    changes: Floats
    controls: Floats | None
    noise: tuple[Floats, Floats] | None
    n_each: Floats
    contexts: Contexts
    members: list[NDArray[np.intp]]
    are_shares: bool = False

    def on(self, scale: Scale) -> tuple[Floats, Floats | None]:
        """Return changes on a scale, and their sampling variances there, to first order."""
        if self.controls is None:
            return self.changes, None if self.noise is None else self.noise[0] + self.noise[1]
        changes = scale.changes(self.changes, self.controls)
        if self.noise is None:
            return changes, None
        reached = self.noise[0] * scale.steepness(self.controls + self.changes) ** 2
        return changes, reached + self.noise[1] * scale.steepness(self.controls) ** 2

    def tuning(self, most: int) -> tuple[NDArray[np.intp], list[NDArray[np.intp]]]:
        """Return at most `most` rows, whole groups as far as possible, and their groups."""
        if len(self.requests) <= most:
            return np.arange(len(self.requests)), self.members
        order = np.random.default_rng(0).permutation(len(self.members))
        chosen: list[NDArray[np.intp]] = []
        for i in order.tolist():
            room = most - sum(map(len, chosen))
            if room < min(len(self.members[i]), most // 2):
                break
            chosen.append(self.members[i][:room])
        ends = np.cumsum([len(rows) for rows in chosen])
        members = [np.arange(end - len(rows), end) for rows, end in zip(chosen, ends, strict=True)]
        return np.concatenate(chosen), members
