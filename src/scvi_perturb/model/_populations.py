"""The mean control of each context and batch, which flows from noise are told."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import torch

if TYPE_CHECKING:
    from scvi_perturb.model._reference import Reference

__all__ = ["Populations", "means_of_own"]


@dataclass(frozen=True, slots=True)
class Populations:
    """Mean latents of control cells, by context and batch.

    Attributes
    ----------
    context, batch
        Codes of each population, `(n,)`.
    total
        Sum of the latents of its cells, `(n, n_latent)`.
    size
        Number of its cells, `(n,)`.
    """

    context: np.ndarray
    batch: np.ndarray
    total: np.ndarray
    size: np.ndarray

    @classmethod
    def of(cls, mean: torch.Tensor, context: np.ndarray, batch: np.ndarray) -> Self:
        """Return the populations of control cells with these latents, contexts and batches."""
        pairs, place = np.unique(np.stack([context, batch], axis=1), axis=0, return_inverse=True)
        total = np.zeros((len(pairs), mean.shape[1]))
        np.add.at(total, place, mean.double().numpy())
        return cls(pairs[:, 0], pairs[:, 1], total, np.bincount(place, minlength=len(pairs)))

    def and_of(self, others: Populations) -> Populations:
        """Return these, and of others those of contexts that are not among these."""
        new = ~np.isin(others.context, self.context)
        pairs = zip(self._arrays(), others._arrays(), strict=True)
        return Populations(*(np.concatenate([a, b[new]]) for a, b in pairs))

    def means(self, context: np.ndarray, batch: np.ndarray) -> torch.Tensor:
        """Return the mean control of each cell's context and batch, `(n_cells, n_latent)`.

        Where a batch has no control, that of the context. Of a context without controls nothing is
        known: its cells are told the mean of all, which is warned of.
        """
        pairs, place = np.unique(np.stack([context, batch], axis=1), axis=0, return_inverse=True)
        found, lost = np.empty((len(pairs), self.total.shape[1])), []
        for i, (own_context, own_batch) in enumerate(pairs):
            here = self.context == own_context
            exact = here & (self.batch == own_batch)
            if not here.any():
                lost.append(int((place == i).sum()))
            chosen = exact if exact.any() else here if here.any() else np.ones_like(here)
            found[i] = self.total[chosen].sum(0) / self.size[chosen].sum()
        if lost:
            warnings.warn(
                f"{sum(lost)} cells are of contexts without control cells, in training and here: "
                "they are compared with the mean of all controls. Add controls of their context.",
                UserWarning,
                stacklevel=4,
            )
        return torch.from_numpy(found[place]).float()

    def _arrays(self) -> tuple[np.ndarray, ...]:
        return self.context, self.batch, self.total, self.size


def means_of_own(cells: Reference, mean: torch.Tensor) -> torch.Tensor:
    """Return the mean latent of the control cells that share each one's labels."""
    if cells.labels.columns.empty:
        return mean.mean(0, keepdim=True).expand_as(mean)
    label = cells.labels.groupby(list(cells.labels.columns), observed=True).ngroup().to_numpy()
    place = torch.from_numpy(label.astype(np.int64))
    sums = torch.zeros(int(label.max()) + 1, mean.shape[1]).index_add_(0, place, mean)
    return (sums / torch.bincount(place)[:, None])[place]
