"""Analyse cells and effects with a trained model."""

from __future__ import annotations

from scvi_perturb.tl._cells import effects, response_score, score_cells

__all__ = ["effects", "response_score", "score_cells"]
