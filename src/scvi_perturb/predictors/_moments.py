"""How surely a profile is known: its sampling variance, from moments of its cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from scipy import sparse

from scvi_perturb._constants import TARGET_SUM
from scvi_perturb._normalize import log_normalize_cells

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["Moments"]


@dataclass(slots=True)
class Moments:
    """Second moments of the cells of each group, added up chunk by chunk.

    Parameters
    ----------
    squares
        Sums of squares: of counts, or of log-normalised values, `(n_groups, n_genes)`.
    products
        Sums of counts times library size; None where profiles are means over cells.
    libraries
        Sums of squared library sizes, `(n_groups,)`.
    """

    squares: Floats
    products: Floats | None
    libraries: Floats

    @classmethod
    def empty(cls, shape: tuple[int, int], *, per_cell: bool) -> Self:
        """Return moments of no cells; `per_cell` where a profile is the mean over cells."""
        products = None if per_cell else np.zeros(shape)
        return cls(np.zeros(shape), products, np.zeros(shape[0]))

    def add(
        self,
        rows: Any,  # noqa: ANN401
        group: NDArray[np.int64],
        library: Floats | None = None,
    ) -> None:
        """Add cells, raw counts `(n, n_genes)`, of groups `(n,)`; None sums them to libraries."""
        n = len(group)
        ones, places = np.ones(n), (group, np.arange(n))
        member = sparse.csr_matrix((ones, places), (len(self.libraries), n))
        if self.products is None:
            self.squares += _dense(member @ _square(log_normalize_cells(rows)))
            return
        if library is None:
            library = np.asarray(rows.sum(axis=1), np.float64).ravel()
        self.squares += _dense(member @ _square(rows))
        self.libraries += member @ library**2
        self.products += _dense((member @ sparse.diags(library)) @ rows)

    def variances(
        self, sums: Floats, n_cells: NDArray[np.int64], totals: Floats | None = None
    ) -> Floats | None:
        """Return the sampling variance of the profile of each group.

        Of a mean over cells it is the variance over cells by their number. Of a pseudobulk,
        `b = log1p(t p)` with `p` the share of a gene in all counts, it is that of the linear
        influence of each cell, `t (x - p l) / (1 + t p)` by the sum of all `l`, where `x` is its
        count and `l` its library: the jackknife to first order, from sums over cells alone. A group
        of one cell gets the mean variance of a cell over the other groups.

        Parameters
        ----------
        sums
            Of each group, `(n_groups, n_genes)`.
        n_cells
            Of each group, `(n_groups,)`.
        totals
            Sum of the library sizes of each group, `(n_groups,)`; None takes the sums of counts.

        Returns
        -------
        `(n_groups, n_genes)`, squared units of the profile; None if no group has two cells, so
        that nothing is known.

        References
        ----------
        Efron and Stein, The jackknife estimate of variance, Annals of Statistics 1981.
        """
        n = n_cells.astype(np.float64)[:, None]
        if n.max(initial=0.0) < 2:
            return None
        if self.products is None:
            spread, scale = self.squares - sums**2 / n, 1 / n**2
        else:
            total = sums.sum(axis=1) if totals is None else totals
            total = np.maximum(total, 1.0)[:, None]
            share = sums / total
            spread = self.squares - 2 * share * self.products
            spread += share**2 * self.libraries[:, None]
            scale = (TARGET_SUM / (1 + TARGET_SUM * share) / total) ** 2
        made: Floats = np.maximum(spread, 0.0) * scale * (n / np.maximum(n - 1, 1))
        enough = n_cells >= 2
        of_a_cell = (made * n)[enough].mean(axis=0)
        made[~enough] = of_a_cell / n[~enough]
        return made


def _square(values: Any) -> Any:  # noqa: ANN401
    if sparse.issparse(values):
        return values.astype(np.float64).power(2)
    return np.asarray(values, np.float64) ** 2


def _dense(values: Any) -> Floats:  # noqa: ANN401
    return np.asarray(values.toarray() if sparse.issparse(values) else values, dtype=np.float64)
