"""What "good" means: one function a metric, and a registry with direction and units.

Metrics know neither models nor AnnData: they compare populations of cells, or their profiles.
"""

from __future__ import annotations

from scvi_perturb.metrics._comparison import Comparison, Population
from scvi_perturb.metrics._energy import energy_distance, fit_pca
from scvi_perturb.metrics._mean import nmse, pearson_delta, top_genes
from scvi_perturb.metrics._profiles import (
    Matrix,
    gene_moments,
    log_normalize,
    pseudobulk,
    pseudobulk_variance,
    zero_fraction,
)
from scvi_perturb.metrics._registry import METRICS, Metric, score
from scvi_perturb.metrics._structure import variance_ratio, zero_fraction_error

__all__ = [
    "METRICS",
    "Comparison",
    "Matrix",
    "Metric",
    "Population",
    "energy_distance",
    "fit_pca",
    "gene_moments",
    "log_normalize",
    "nmse",
    "pearson_delta",
    "pseudobulk",
    "pseudobulk_variance",
    "score",
    "top_genes",
    "variance_ratio",
    "zero_fraction",
    "zero_fraction_error",
]
