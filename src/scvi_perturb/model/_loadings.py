"""Weights of a linear decoder, to be read as gene programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scvi_perturb.nn import CountDecoder

__all__ = ["loadings"]


def loadings(decoder: CountDecoder, genes: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
    """Return the change in log proportion per unit of each latent, `(n_genes, n_latent)`."""
    weights = decoder.logits.weight.detach().cpu().numpy()[: len(genes), : len(columns)]
    table = pd.DataFrame(weights, index=pd.Index(genes), columns=list(columns))
    return table - table.mean()  # a softmax sees differences between genes only
