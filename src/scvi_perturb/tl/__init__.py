"""Analyse cells and effects with a trained model."""

from __future__ import annotations

from scvi_perturb.tl._cells import effects, response_score, score_cells
from scvi_perturb.tl._doses import dose_response
from scvi_perturb.tl._enrichment import enrichment
from scvi_perturb.tl._interactions import interactions
from scvi_perturb.tl._many import ask_many
from scvi_perturb.tl._similarity import cluster_perturbations, perturbation_similarity

__all__ = [
    "ask_many",
    "cluster_perturbations",
    "dose_response",
    "effects",
    "enrichment",
    "interactions",
    "perturbation_similarity",
    "response_score",
    "score_cells",
]
