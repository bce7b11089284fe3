"""Cells that were carried somewhere: their counts or means, and their latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import torch
from scipy import sparse

from scvi_perturb._random import generator
from scvi_perturb.model._draw import Drawn, draw_matrix
from scvi_perturb.model._latents import chunks
from scvi_perturb.model._result import cells_adata

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd
    from anndata import AnnData

    from scvi_perturb.model._screen import Screen
    from scvi_perturb.module import CountParameters, Representation

__all__ = ["LATENT_KEY", "Carried", "Output", "carried_adata"]

#: Key of `obsm` of the latents that cells were carried to.
LATENT_KEY = "X_latent"

Output = Literal["counts", "mean"]
Decode: TypeAlias = "Callable[[np.ndarray, torch.Tensor, torch.Tensor], CountParameters]"


@dataclass(frozen=True, slots=True)
class Carried:
    """Cells in the latent, and what their counts depend on besides.

    Attributes
    ----------
    latent
        `(n_cells, n_latent)`.
    library, batch
        Library sizes and codes of batches, `(n_cells,)`.
    """

    latent: torch.Tensor
    library: np.ndarray
    batch: np.ndarray


@torch.inference_mode()
def carried_adata(
    carried: Carried,
    obs: pd.DataFrame,
    *,
    representation: Representation,
    screen: Screen,
    output: Output,
    seed: int | None,
    device: torch.device,
    decode: Decode | None = None,
) -> AnnData:
    """Return carried cells as AnnData: counts drawn, or expected counts.

    `obsm["X_latent"]` has the latents. `decode` is for representations that are told more than
    latents, library sizes and batches: `(rows, latents, library sizes) -> parameters`.
    """
    random = generator(seed, device)
    blocks = []
    for rows in chunks(len(carried.latent)):
        library = torch.from_numpy(carried.library[rows].astype(np.float32)).to(device)
        batch = torch.from_numpy(carried.batch[rows]).to(device)
        latent = carried.latent[rows].to(device)
        if decode is None:
            parameters = representation.decode(latent, library, batch)
        else:
            parameters = decode(rows, latent, library)
        if output == "counts":
            drawn = Drawn(rows, library, parameters)
            blocks.append(draw_matrix(drawn, representation.likelihood, random))
            continue
        mean, _, zero_logits = parameters
        mean = mean if zero_logits is None else mean * torch.sigmoid(-zero_logits)
        blocks.append(mean.float().cpu().numpy())
    stacked = sparse.vstack(blocks, format="csr") if sparse.issparse(blocks[0]) else None
    result = cells_adata(np.vstack(blocks) if stacked is None else stacked, obs, screen)
    result.obsm[LATENT_KEY] = carried.latent.float().cpu().numpy()
    return result
