"""The mean control of each context and batch, which flows from noise are told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from scvi_perturb.data import group_controls

if TYPE_CHECKING:
    from scvi_perturb.model._reference import Reference

__all__ = ["means_of_controls", "means_of_own"]


def means_of_controls(
    controls: Reference, mean: torch.Tensor, context: np.ndarray, batch: np.ndarray
) -> torch.Tensor:
    """Return the mean latent of the controls that answer each cell, `(n_cells, n_latent)`.

    Parameters
    ----------
    controls, mean
        Control cells and their latents.
    context, batch
        Codes of the cells, `(n_cells,)`.
    """
    n = len(controls)
    groups = group_controls(
        np.append(controls.context, context),
        np.append(controls.batch, batch),
        np.arange(n + len(context)) < n,
    )
    group = torch.from_numpy(groups.group[n:])
    used, place = torch.unique(group, return_inverse=True)
    return torch.stack([mean[torch.from_numpy(groups.pool(int(g)))].mean(0) for g in used])[place]


def means_of_own(cells: Reference, mean: torch.Tensor) -> torch.Tensor:
    """Return the mean latent of the control cells that share each one's labels."""
    if cells.labels.columns.empty:
        return mean.mean(0, keepdim=True).expand_as(mean)
    label = cells.labels.groupby(list(cells.labels.columns), observed=True).ngroup().to_numpy()
    place = torch.from_numpy(label.astype(np.int64))
    sums = torch.zeros(int(label.max()) + 1, mean.shape[1]).index_add_(0, place, mean)
    return (sums / torch.bincount(place)[:, None])[place]
