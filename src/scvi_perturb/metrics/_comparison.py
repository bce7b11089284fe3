"""What a metric is given: a prediction, the real cells that answer it, and their real control."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scvi_perturb.metrics._profiles import gene_moments

if TYPE_CHECKING:
    from typing import Self

    from sklearn.decomposition import PCA

    from scvi_perturb.metrics._profiles import Floats, Matrix

__all__ = ["Comparison", "Population"]


@dataclass(frozen=True, slots=True)
class Population:
    """A population of cells by its profile, and by the cells where there are any.

    Parameters
    ----------
    mean
        Profile of the population, `(n_genes,)`.
    mean_variance
        Sampling variance of each gene of `mean`, `(n_genes,)`; 0 for a profile without cells.
    cells
        Log-normalised cells, `(n_cells, n_genes)`; None if only the profile was predicted.
    """

    mean: Floats
    mean_variance: Floats | float = 0.0
    cells: Matrix | None = None

    @classmethod
    def from_cells(cls, cells: Matrix) -> Self:
        """Describe log-normalised cells `(n_cells, n_genes)` by the mean over them."""
        mean, variance = gene_moments(cells)
        return cls(mean, variance / cells.shape[0], cells)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One condition: predicted, observed, and the control measured beside it.

    Parameters
    ----------
    predicted, observed, control
        Populations over the same genes. `control` is the *real* one for both sides.
    pca
        Space of the energy distance, from `fit_pca` on training cells.
    n_top
        Number of genes with the largest true change to which some metrics look.
    max_cells
        At most this many cells a side in the energy distance.
    seed
        Seed of the draw of those cells.
    """

    predicted: Population
    observed: Population
    control: Population
    pca: PCA | None = None
    n_top: int = 100
    max_cells: int | None = 500
    seed: int = 0
