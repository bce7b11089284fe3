"""A kernel taken apart once: solutions, left-out residuals and likelihoods of any noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]

__all__ = ["Spectrum"]


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Eigendecomposition of `D^-1/2 K D^-1/2`, with `D` the noise of rows.

    With `r` the ratio of noise to signal of an output, its covariance is `s (K + r D)`, of which
    the inverse for every `r` follows from one decomposition.

    Parameters
    ----------
    vectors, values
        Eigenvectors as columns, and eigenvalues, none negative.
    root
        Square root of `D`, `(n,)`.
    rotated
        `vectors^T D^-1/2 Y`, `(n, n_outputs)`.
    """

    vectors: Floats
    values: Floats
    root: Floats
    rotated: Floats

    @classmethod
    def of(cls, kernel: Floats, row_noise: Floats, outputs: Floats) -> Spectrum:
        """Decompose a kernel `(n, n)` for outputs `(n, n_outputs)`."""
        root = np.sqrt(row_noise)
        values, vectors = np.linalg.eigh(kernel / np.outer(root, root))
        rotated = vectors.T @ (outputs / root[:, None])
        return cls(vectors, np.maximum(values, 0.0), root, rotated)

    def weights(self, ratios: Floats) -> Floats:
        """Return `(K + r D)^-1 Y` with the ratio of each output, `(n, n_outputs)`.

        A kernel to training times these is the posterior mean.
        """
        shrunken = self.rotated / (self.values[:, None] + ratios)
        return (self.vectors @ shrunken) / self.root[:, None]

    def explained(self, kernel: Floats, ratios: Floats) -> Floats:
        """Return the diagonal of `k (K + r D)^-1 k^T` for each ratio, `(n_asked, n_ratios)`.

        Parameters
        ----------
        kernel
            Between what is asked and training, `(n_asked, n)`.
        ratios
            Any, `(n_ratios,)`.
        """
        turned = (kernel / self.root) @ self.vectors
        return turned**2 @ (1 / (self.values[:, None] + ratios))

    def explained_jointly(self, kernel: Floats, ratio: float) -> Floats:
        """Return `k (K + r D)^-1 k^T` itself, `(n_asked, n_asked)`."""
        turned = (kernel / self.root) @ self.vectors
        return (turned / (self.values + ratio)) @ turned.T

    def left_out(
        self, ratio: float, members: Sequence[NDArray[np.intp]], outputs: NDArray[np.bool_]
    ) -> Floats:
        """Return the residuals of rows when their group is left out, `(n, n_chosen_outputs)`.

        With `Q = (K + r D)^-1`, those of a group `g` are `Q[g, g]^-1 (Q Y)[g]` (Rasmussen and
        Williams 2006, section 5.4.2, for groups), so nothing is fitted twice.

        Parameters
        ----------
        ratio
            Of noise to signal.
        members
            Rows of each group.
        outputs
            Which outputs, `(n_outputs,)`.
        """
        inverse = 1 / (self.values + ratio)
        solved = self.vectors @ (inverse[:, None] * self.rotated[:, outputs])
        if len(members) == len(solved):
            made = solved / ((self.vectors**2) @ inverse)[:, None]
        else:
            made = np.empty_like(solved)
            for rows in members:
                own = self.vectors[rows]
                made[rows] = np.linalg.solve((own * inverse) @ own.T, solved[rows])
        return made * self.root[:, None]

    def left_out_variance(self, ratio: float, members: Sequence[NDArray[np.intp]]) -> Floats:
        """Return the variances of the residuals of `left_out` for a signal variance of 1, `(n,)`.

        They are the diagonal of `Q[g, g]^-1`, noise of the rows included.
        """
        inverse = 1 / (self.values + ratio)
        made = np.empty(len(inverse))
        for rows in members:
            own = self.vectors[rows]
            made[rows] = np.diagonal(np.linalg.inv((own * inverse) @ own.T))
        return made * self.root**2

    def surprise(self, scales: Floats, ratios: Floats) -> Floats:
        """Return minus twice the log density of each output, up to a constant, `(n_outputs,)`.

        Parameters
        ----------
        scales
            Signal variance of each output.
        ratios
            Noise by signal variance of each output.
        """
        spread = scales * (self.values[:, None] + ratios)
        return (np.log(spread) + self.rotated**2 / spread).sum(axis=0)
