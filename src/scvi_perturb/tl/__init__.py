"""Analyse cells and effects with a trained model."""

from __future__ import annotations

from scvi_perturb.tl._cells import effects, response_score, score_cells
from scvi_perturb.tl._doses import dose_response
from scvi_perturb.tl._interactions import interactions
from scvi_perturb.tl._many import ask_many

__all__ = ["ask_many", "dose_response", "effects", "interactions", "response_score", "score_cells"]
