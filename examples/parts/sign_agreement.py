"""A metric: the share of the most changed genes that move in the right direction."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scvi_perturb.metrics import Metric, each, top_genes

if TYPE_CHECKING:
    from scvi_perturb.metrics import Comparison


def sign_agreement(case: Comparison) -> float:
    """Return the share of genes with the right sign among those with the largest true change."""
    truth = case.truth
    control = truth.control.mean
    genes = top_genes(truth.observed.mean, control, truth.n_top)
    genes = genes[truth.kept[genes]]
    predicted = np.sign(case.predicted.mean[genes] - control[genes])
    return float(np.mean(predicted == np.sign(truth.observed.mean[genes] - control[genes])))


SIGN_AGREEMENT = Metric(
    "sign_agreement",
    "sign agreement",
    each(sign_agreement),
    "higher",
    1.0,
    "share of genes",
    "means",
    "",
)
