"""What the simulator says of conditions, and what one could say who knows its form alone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from scvi_perturb._constants import TARGET_SUM
from scvi_perturb.data import expected_profile
from scvi_perturb.data._simulate_truth import Truth

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

__all__ = ["oracle_profiles", "true_profiles"]


def true_profiles(adata: AnnData, request: pd.DataFrame) -> np.ndarray:
    """Return the true profile of each row, `log1p` of counts per ten thousand."""
    made = [
        expected_profile(adata, row["perturbation"], dose=row.get("dose"), context=row["cell_type"])
        for row in request.to_dict("records")
    ]
    return np.log1p(TARGET_SUM * np.stack(made))


def oracle_profiles(adata: AnnData, request: pd.DataFrame, kind: str) -> np.ndarray:
    """Return the profiles by the true form, without what cannot be known of the held-out.

    Of a combination: all single effects exactly, and no interaction. Of a featured perturbation:
    the map from features to effects exactly, and not what its effect has beside. Of a dose: all.
    """
    truth = Truth.from_uns(adata.uns)
    if kind == "unseen_combination":
        truth = replace(truth, config=replace(truth.config, interaction_strength=0.0))
    if kind == "unseen_perturbation":
        effects = truth.effects.copy()
        rows = [truth.index(name) for name in request["perturbation"].unique()]
        effects[rows] = truth.features[rows] @ truth.feature_map
        truth = replace(truth, effects=effects)
    known = adata[:1].copy()
    known.uns["truth"] = truth.to_uns()
    return true_profiles(known, request)
