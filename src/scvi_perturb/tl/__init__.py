"""Analyse cells and effects with a trained model."""

from __future__ import annotations

from scvi_perturb.tl._cells import effects, response_score, score_cells
from scvi_perturb.tl._differential import differential_expression
from scvi_perturb.tl._donors import compare_donors
from scvi_perturb.tl._doses import dose_response
from scvi_perturb.tl._enrichment import enrichment
from scvi_perturb.tl._escapers import escapers
from scvi_perturb.tl._interactions import interactions
from scvi_perturb.tl._many import ask_many
from scvi_perturb.tl._next import next_experiments
from scvi_perturb.tl._power import power
from scvi_perturb.tl._rank import rank_effects
from scvi_perturb.tl._reverse import reverse
from scvi_perturb.tl._similarity import cluster_perturbations, perturbation_similarity

__all__ = [
    "ask_many",
    "cluster_perturbations",
    "compare_donors",
    "differential_expression",
    "dose_response",
    "effects",
    "enrichment",
    "escapers",
    "interactions",
    "next_experiments",
    "perturbation_similarity",
    "power",
    "rank_effects",
    "response_score",
    "reverse",
    "score_cells",
]
