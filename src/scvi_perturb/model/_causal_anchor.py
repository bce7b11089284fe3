"""Anchor draws on the reference: control in, the measured control out.

What the network makes of control cells differs a little from the cells themselves, gene by gene.
Those differences are not effects. One factor a gene, context and batch takes them out of draws
under every condition, as far as so many reference cells can tell them from chance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from scvi_perturb._constants import LIBRARY_KEY, X_KEY

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from scvi_perturb._typing import Batch

__all__ = ["Anchor", "reference_factors"]

_LEAST, _MOST = 0.2, 5.0
#: Variance of a gene's ratio below which nothing is gained by knowing it better.
_FLOOR: Final = 1e-4


@dataclass(slots=True)
class Anchor:
    """Sums over the reference cells of one context and batch, a gene each.

    Attributes
    ----------
    observed, expected
        Counts, and what the network expects of them.
    squared
        Sum over cells of the squared differences of the two.
    n_cells
        Number of cells.
    """

    observed: np.ndarray
    expected: np.ndarray
    squared: np.ndarray
    n_cells: int = 0

    @classmethod
    def of(cls, n_genes: int) -> Anchor:
        """Return an anchor of no cell."""
        return cls(np.zeros(n_genes), np.zeros(n_genes), np.zeros(n_genes))

    def add(self, counts: np.ndarray, expected: np.ndarray) -> None:
        """Add cells, `(n, n_genes)` each."""
        self.observed += counts.sum(axis=0)
        self.expected += expected.sum(axis=0)
        self.squared += ((counts - expected) ** 2).sum(axis=0)
        self.n_cells += len(counts)

    def factors(self) -> np.ndarray:
        """Return the factor of each gene, `(n_genes,)`.

        Ratios of observed to expected sums are drawn towards one by the variance that their scatter
        has beyond that of chance (James-Stein): of a single cell nothing is believed.
        """
        if self.n_cells < 2:
            return np.ones_like(self.observed)
        expected = np.maximum(self.expected, 1e-9)
        ratio = self.observed / expected
        chance = self.squared / expected**2 * (self.n_cells / (self.n_cells - 1)) + _FLOOR
        weight = 1.0 / chance
        scatter = float((weight * ((ratio - 1.0) ** 2 - chance)).sum() / weight.sum())
        if scatter <= 0:
            return np.ones_like(ratio)
        factors: np.ndarray = 1.0 + (ratio - 1.0) * scatter / (scatter + chance)
        return np.clip(factors, _LEAST, _MOST)


def reference_factors(
    cells: Iterable[tuple[np.ndarray, Batch, torch.Tensor]], n_genes: int
) -> dict[int, np.ndarray]:
    """Return the factors of each group of reference cells.

    Parameters
    ----------
    cells
        Group, counts and library, and expected proportions under control of some cells in turn.
    n_genes
        Number of genes.
    """
    anchors: dict[int, Anchor] = {}
    for group, batch, share in cells:
        counts = batch[X_KEY].numpy()
        expected = (share.cpu() * batch[LIBRARY_KEY][:, None].cpu()).numpy()
        for own in np.unique(group):
            at = group == own
            anchors.setdefault(int(own), Anchor.of(n_genes)).add(counts[at], expected[at])
    return {own: anchor.factors() for own, anchor in anchors.items()}
