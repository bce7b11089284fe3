"""What "good" means: one function a metric, and a registry with direction and units.

Metrics know neither models nor AnnData: they compare populations of cells, or their profiles.
"""

from __future__ import annotations

from scvi_perturb.metrics._calibration import (
    LEVELS,
    calibration_error,
    coverage,
    effect_coverage,
    effect_pit,
    interval_width,
    randomized_pit,
)
from scvi_perturb.metrics._comparison import Comparison, Panel, Population, Truth
from scvi_perturb.metrics._composition import CellStates, composition_jsd
from scvi_perturb.metrics._de_scores import de_direction_yield, de_jaccard, de_lfc_nmae
from scvi_perturb.metrics._differential import (
    DifferentialExpression,
    SortedControl,
    differential_expression,
)
from scvi_perturb.metrics._direction import cosine_delta, de_weights, weighted_mse, weighted_r2
from scvi_perturb.metrics._discrimination import discrimination
from scvi_perturb.metrics._energy import energy_distance, energy_ratio, fit_pca
from scvi_perturb.metrics._latent import block_r2, dci, mask_auroc, mean_correlation
from scvi_perturb.metrics._mean import nmse, nmse_terms, pearson_delta, top_genes
from scvi_perturb.metrics._metric import Metric, Terms, each
from scvi_perturb.metrics._profiles import (
    Matrix,
    gene_moments,
    log_normalize,
    pseudobulk,
    pseudobulk_variance,
    zero_fraction,
)
from scvi_perturb.metrics._registry import BASIC, METRICS, score, score_all
from scvi_perturb.metrics._scoring_rules import crps, energy_score, variogram_score
from scvi_perturb.metrics._space import Space
from scvi_perturb.metrics._structure import (
    correlation_agreement,
    log_variance_ratios,
    variance_ratio,
    variance_spread,
    zero_fraction_error,
)

__all__ = [
    "BASIC",
    "LEVELS",
    "METRICS",
    "CellStates",
    "Comparison",
    "DifferentialExpression",
    "Matrix",
    "Metric",
    "Panel",
    "Population",
    "SortedControl",
    "Space",
    "Terms",
    "Truth",
    "block_r2",
    "calibration_error",
    "composition_jsd",
    "correlation_agreement",
    "cosine_delta",
    "coverage",
    "crps",
    "dci",
    "de_direction_yield",
    "de_jaccard",
    "de_lfc_nmae",
    "de_weights",
    "differential_expression",
    "discrimination",
    "each",
    "effect_coverage",
    "effect_pit",
    "energy_distance",
    "energy_ratio",
    "energy_score",
    "fit_pca",
    "gene_moments",
    "interval_width",
    "log_normalize",
    "log_variance_ratios",
    "mask_auroc",
    "mean_correlation",
    "nmse",
    "nmse_terms",
    "pearson_delta",
    "pseudobulk",
    "pseudobulk_variance",
    "randomized_pit",
    "score",
    "score_all",
    "top_genes",
    "variance_ratio",
    "variance_spread",
    "variogram_score",
    "weighted_mse",
    "weighted_r2",
    "zero_fraction",
    "zero_fraction_error",
]
