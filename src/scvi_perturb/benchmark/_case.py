"""One held-out condition of a trial, and what answers it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from scvi_perturb.metrics import Comparison, Truth

__all__ = ["Case"]


@dataclass(frozen=True)
class Case:
    """One held-out condition in one context.

    Parameters
    ----------
    name
        The condition and its context.
    truth
        The condition as it was measured; None if it has too few cells to be scored.
    replicate
        One half of its cells as the prediction of the other half; None without cells.
    about
        What readers group conditions by: `perturbation`, `context`, `n_cells`, `n_seen`
        (components of the condition measured alone in training), `effect` (size of the true
        change, freed of noise), `agreement` (Pearson correlation of the changes of two halves of
        its cells, each against a half of the controls), `feature_distance` (mean over its
        components of the distance to the nearest training perturbation, see
        `PerturbationFeatures.nearest`; 0 for a trained one), `context_distance` (Euclidean, of
        its control profile to the nearest of a context with training perturbations).
    rows
        Its cells among those of `Trial.answers`.
    """

    name: str
    truth: Truth | None
    replicate: Comparison | None
    about: dict[str, Any]
    rows: NDArray[np.intp]

    @property
    def n_cells(self) -> int:
        """Number of real cells that are compared, and so of cells to predict."""
        cells = None if self.truth is None else self.truth.observed.cells
        return 0 if cells is None else int(cells.shape[0])
