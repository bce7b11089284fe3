"""What the Gaussian process predicts: genes, or leading components of the training changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from scipy.sparse.linalg import svds

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Outputs"]

#: Genes are outputs of their own up to this number of rows squared times genes; components beyond.
_MOST_WORK: Final = 50_000_000
#: Leading components, unless a number is given.
_N_COMPONENTS: Final = 100
#: Below this share of all variance a component is rounding.
_ROUNDING: Final = 1e-10


@dataclass(frozen=True, slots=True)
class Outputs:
    """Training changes as outputs, with their noise.

    Parameters
    ----------
    values
        `(n_rows, n_outputs)`.
    row_noise
        Noise variance of each row, in units of `noise`; its mean is near 1, `(n_rows,)`.
    noise
        Noise variance of each output, `(n_outputs,)`; None if it is not known.
    axes
        Components as rows, `(n_outputs, n_genes)`, orthonormal; None if outputs are genes.
    rest
        Variance of each gene outside the components, `(n_genes,)`.
    """

    values: NDArray[np.float64]
    row_noise: NDArray[np.float64]
    noise: NDArray[np.float64] | None
    axes: NDArray[np.float64] | None
    rest: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        changes: NDArray[np.float64],
        variances: NDArray[np.float64] | None,
        *,
        n_rows_each: NDArray[np.float64],
        n_components: int | None,
    ) -> Outputs:
        """Choose the outputs.

        Noise is taken as a number for each row times a number for each gene, so that one
        eigendecomposition serves all outputs. Components are those of changes divided by the root
        of the noise of their row, not centred: no perturbation is no change.

        Parameters
        ----------
        changes
            `(n_rows, n_genes)`.
        variances
            Their sampling variances, or None if these are not known.
        n_rows_each
            How many rows of data each change is the mean of, where variances are not known.
        n_components
            Number of components; None leaves genes as they are, if noise is known and rows few,
            and else takes 100.
        """
        row_noise, gene_noise = _separated(variances, n_rows_each)
        n_rows, n_genes = changes.shape
        few = n_rows**2 * n_genes <= _MOST_WORK
        if n_components is None and gene_noise is not None and few:
            return cls(changes, row_noise, gene_noise, None, np.zeros(n_genes))
        axes = _axes(changes / np.sqrt(row_noise)[:, None], n_components or _N_COMPONENTS)
        values = changes @ axes.T
        rest = ((changes - values @ axes) ** 2).mean(axis=0)
        noise = None
        if gene_noise is not None:
            noise = axes**2 @ gene_noise
            rest = np.maximum(rest - gene_noise * row_noise.mean(), 0.0)
        return cls(values, row_noise, noise, axes, rest)

    def subset(self, rows: NDArray[np.intp]) -> Outputs:
        """Return some rows."""
        return Outputs(self.values[rows], self.row_noise[rows], self.noise, self.axes, self.rest)

    def genes(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return values of outputs as those of genes, `(n, n_genes)`."""
        return values if self.axes is None else values @ self.axes

    def gene_variances(self, variances: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return variances of genes from those of outputs, which are independent."""
        return variances if self.axes is None else variances @ self.axes**2


def _separated(
    variances: NDArray[np.float64] | None, n_rows_each: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Return the noise of rows and of genes, whose product is nearest to `variances`."""
    if variances is None:
        return n_rows_each.mean() / n_rows_each, None
    rows = variances.mean(axis=1)
    if not rows.any():
        return np.ones(len(rows)), np.zeros(variances.shape[1])
    rows = np.maximum(rows / rows.mean(), 1e-3)
    return rows, (variances / rows[:, None]).mean(axis=0)


def _axes(rows: NDArray[np.float64], n_components: int) -> NDArray[np.float64]:
    """Return leading right singular vectors, `(k, n_genes)`, with the largest entry positive."""
    if 4 * n_components < min(rows.shape):
        start = np.random.default_rng(0).normal(size=min(rows.shape))
        _, spread, axes = svds(rows, k=n_components, v0=start)
        order = np.argsort(-spread)
        spread, axes = spread[order], axes[order]
    else:
        _, spread, axes = np.linalg.svd(rows, full_matrices=False)
    kept = spread > spread.max(initial=0.0) * np.sqrt(_ROUNDING)
    axes = axes[kept][:n_components] if kept.any() else axes[:1]
    largest = np.abs(axes).argmax(axis=1)
    return axes * np.sign(axes[np.arange(len(axes)), largest])[:, None]
