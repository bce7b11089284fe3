"""Analyse cells and effects with a trained model."""

from __future__ import annotations

from scvi_perturb.tl._cells import effects, response_score, score_cells
from scvi_perturb.tl._differential import differential_expression
from scvi_perturb.tl._donors import compare_donors
from scvi_perturb.tl._many import ask_many
from scvi_perturb.tl._power import power
from scvi_perturb.tl._rank import rank_effects

__all__ = [
    "ask_many",
    "compare_donors",
    "differential_expression",
    "effects",
    "power",
    "rank_effects",
    "response_score",
    "score_cells",
]
