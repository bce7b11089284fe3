"""What is fitted once, on training cells, for the metrics that compare cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scvi_perturb.metrics._composition import CellStates
from scvi_perturb.metrics._energy import fit_pca
from scvi_perturb.metrics._profiles import gene_moments

if TYPE_CHECKING:
    from typing import Self

    from numpy.typing import NDArray
    from sklearn.decomposition import PCA

    from scvi_perturb.metrics._profiles import Matrix

__all__ = ["Space"]


@dataclass(frozen=True, slots=True)
class Space:
    """The space in which cells are compared. Fit it on *training* cells only.

    Parameters
    ----------
    pca
        Principal components, from `fit_pca`.
    states
        Cell states, by which the composition of a population is described; None does not.
    genes
        The most variable genes, on which variances, correlations, ranks and scores of single
        cells are compared; None takes the 200 most variable of the control cells.
    """

    pca: PCA
    states: CellStates | None = None
    genes: NDArray[np.intp] | None = None

    @classmethod
    def fit(
        cls,
        cells: Matrix,
        *,
        n_components: int = 50,
        n_states: int = 8,
        n_genes: int = 200,
        seed: int = 0,
    ) -> Self:
        """Fit all of it on log-normalised training cells `(n_cells, n_genes)`, dense or sparse.

        Parameters
        ----------
        cells
            Log-normalised training cells.
        n_components, n_states, n_genes
            Numbers of principal components, of cell states, of most variable genes; fewer where
            the data do not allow for as many.
        seed
            Seed of the solvers' starts.
        """
        pca = fit_pca(cells, n_components=n_components, seed=seed)
        states = CellStates.fit(pca.transform(cells), n_states=n_states, seed=seed)
        variance = gene_moments(cells)[1]
        return cls(pca, states, np.argsort(-variance, kind="stable")[:n_genes])
