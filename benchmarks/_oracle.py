"""What the simulator says of conditions, and what one could say who knows its form alone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from scvi_perturb._core import TARGET_SUM
from scvi_perturb.data import expected_profile
from scvi_perturb.data.simulate.screen import Truth

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
    that effects are linear in its features, with the coefficients that the true effects of the
    other perturbations say (ridge with the true variances). Of a dose: all.
    """
    truth = Truth.from_uns(adata.uns)
    if kind == "unseen_combination":
        truth = replace(truth, config=replace(truth.config, interaction_strength=0.0))
    if kind == "unseen_perturbation":
        effects = truth.effects.copy()
        rows = [truth.index(name) for name in request["perturbation"].unique()]
        measured = adata.obs["perturbation"].astype(str).unique()
        others = [truth.index(name) for name in measured if name in truth.perturbations]
        others = [row for row in others if row not in rows]
        effects[rows] = _linear(truth, others, rows)
        truth = replace(truth, effects=effects)
    known = adata[:1].copy()
    known.uns["truth"] = truth.to_uns()
    return true_profiles(known, request)


def _linear(truth: Truth, known: list[int], asked: list[int]) -> np.ndarray:
    """Return the posterior mean of effects that are linear in features but for a residual."""
    features, effects = truth.features, truth.effects
    residual = float((effects - features @ truth.feature_map).var())
    penalty = residual / float((truth.feature_map**2).mean())
    gram = features[known].T @ features[known] + penalty * np.eye(features.shape[1])
    return features[asked] @ np.linalg.solve(gram, features[known].T @ effects[known])
