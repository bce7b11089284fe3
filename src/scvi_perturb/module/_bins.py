"""Counts as themselves: the representation of a diffusion in the space of counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from scvi.module.base import BaseModuleClass

from scvi_perturb._constants import X_KEY
from scvi_perturb.module._representation import CountParameters

if TYPE_CHECKING:
    from torch import Tensor

    from scvi_perturb._typing import Batch
    from scvi_perturb.module._representation import Likelihood

__all__ = ["RawCounts", "bin_edges", "bins_of", "draw_in_bins"]

#: Log variance of what is known exactly.
_SURE: Final = -30.0
#: Counts below this are bins of their own.
_EXACT: Final = 12


class RawCounts(BaseModuleClass):
    """Encode counts as their `log1p`, decode by the inverse; there is nothing to train.

    Parameters
    ----------
    n_genes
        Number of genes.
    """

    likelihood: Likelihood = "exact"

    def __init__(self, n_genes: int) -> None:
        super().__init__()
        self.n_latent = n_genes
        # scvi-tools asks a module for its device.
        self.place = torch.nn.Parameter(torch.zeros(()), requires_grad=False)

    def encode(self, tensors: Batch) -> tuple[Tensor, Tensor]:
        """Return `log1p` counts, `(B, n_genes)`, known exactly."""
        values = tensors[X_KEY].log1p()
        return values, torch.full_like(values, _SURE)

    def decode(self, latent: Tensor, library: Tensor, batch: Tensor) -> CountParameters:
        """Return the counts themselves; library and batch change nothing."""
        del library, batch
        return CountParameters(latent.expm1().round(), torch.ones_like(latent[:1]), None)


def bin_edges(largest: int, n_bins: int) -> Tensor:
    """Return the least count of each bin and one beyond the last, `(n_bins + 1,)`.

    Small counts have bins of their own; the others grow geometrically up to the largest count.
    """
    if largest < n_bins:
        return torch.arange(n_bins + 1)
    start = min(_EXACT, n_bins // 2)
    n = n_bins - start
    grown = start * (((largest + 1) / start) ** (torch.arange(n + 1) / n))
    edges = torch.cat([torch.arange(start), grown.round().long()])
    for i in range(1, len(edges)):  # no bin is empty
        edges[i] = max(int(edges[i]), int(edges[i - 1]) + 1)
    return edges


def bins_of(counts: Tensor, edges: Tensor) -> Tensor:
    """Return the bin of each count; counts beyond the last bin are in it."""
    return torch.bucketize(counts, edges[1:-1], right=True)


def draw_in_bins(bins: Tensor, edges: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw a count of each bin, evenly in the logarithm."""
    low, high = edges[:-1][bins].float(), edges[1:][bins].float()
    share = torch.rand(bins.shape, generator=generator, device=bins.device)
    drawn = (low.clamp_min(1) * (high / low.clamp_min(1)) ** share).floor()
    single = high - low <= 1
    return torch.where(single, low, torch.minimum(drawn, high - 1))
