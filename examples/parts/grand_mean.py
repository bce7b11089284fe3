"""A predictor of the mean: the same change for every condition."""

from __future__ import annotations

from typing import Any

import numpy as np

from scvi_perturb.predictors import MeanPredictor


class GrandMean(MeanPredictor):
    """The mean change over all training conditions and contexts."""

    name = "grand_mean"

    def _change(self, request: Any) -> np.ndarray:
        """Return the change of each gene, `(n_genes,)`."""
        del request
        changes = [d for by_context in self.deltas.values() for d in by_context.values()]
        return np.mean(changes, axis=0)
