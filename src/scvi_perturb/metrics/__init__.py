"""Metrics, one function each, and a registry with their directions and units.

Metrics know neither models nor AnnData: they compare populations of cells, or their profiles.
"""

from __future__ import annotations

from scvi_perturb.metrics._calibration import (
    LEVELS,
    calibration_error,
    coverage,
    effect_pit,
    randomized_pit,
)
from scvi_perturb.metrics._comparison import (
    CellPopulation,
    Comparison,
    GroundTruth,
    Panel,
    Space,
)
from scvi_perturb.metrics._differential import differential_expression
from scvi_perturb.metrics._distributions import (
    crps,
    energy_distance,
    energy_ratio,
    energy_score,
    fit_pca,
)
from scvi_perturb.metrics._means import (
    cosine_delta,
    discrimination,
    nmse,
    pearson_delta,
    top_genes,
)
from scvi_perturb.metrics._metric import BASIC, METRICS, Metric, Terms, each, score, score_all
from scvi_perturb.metrics._own_metrics import OWN_METRICS
from scvi_perturb.metrics._profiles import (
    Matrix,
    chosen_genes,
    gene_moments,
    log_normalize,
    pseudobulk,
    pseudobulk_variance,
)

__all__ = [
    "BASIC",
    "LEVELS",
    "METRICS",
    "OWN_METRICS",
    "CellPopulation",
    "Comparison",
    "GroundTruth",
    "Matrix",
    "Metric",
    "Panel",
    "Space",
    "Terms",
    "calibration_error",
    "chosen_genes",
    "cosine_delta",
    "coverage",
    "crps",
    "differential_expression",
    "discrimination",
    "each",
    "effect_pit",
    "energy_distance",
    "energy_ratio",
    "energy_score",
    "fit_pca",
    "gene_moments",
    "log_normalize",
    "nmse",
    "pearson_delta",
    "pseudobulk",
    "pseudobulk_variance",
    "randomized_pit",
    "score",
    "score_all",
    "top_genes",
]
