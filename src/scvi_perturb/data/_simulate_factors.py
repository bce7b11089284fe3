"""Cells of a simulated screen: latent factors, expression proportions, counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scvi_perturb.data._simulate_truth import Truth

__all__ = ["Factors", "draw_counts", "draw_factors", "proportions"]

_CHUNK_VALUES = 4_000_000
_TECHNICAL_SD = 0.25  # of cells about their batch, relative to the batch effect


@dataclass(frozen=True, slots=True)
class Factors:
    """Latent factors of cells before any perturbation.

    Attributes
    ----------
    identity, state, technical
        `(n_cells, dimensions)`; the first technical one is depth in standard deviations.
    responds
        `(n_cells,)`: whether the cell responds if it is perturbed.
    """

    identity: NDArray[np.float64]
    state: NDArray[np.float64]
    technical: NDArray[np.float64]
    responds: NDArray[np.bool_]


def draw_factors(
    truth: Truth,
    *,
    context: NDArray[np.int64],
    batch: NDArray[np.int64],
    rng: np.random.Generator,
) -> Factors:
    """Draw unperturbed factors of cells of given contexts and batches.

    The draws do not depend on what is done to the cells, so that two conditions drawn from
    generators of one seed are counterfactuals of the same cells.
    """
    config = truth.config
    n = len(context)
    identity = rng.normal(0.0, config.identity_sd, (n, config.n_identity))
    state = rng.normal(0.0, config.state_sd, (n, config.n_state))
    technical = rng.standard_normal((n, config.n_technical))
    technical[:, 1:] *= _TECHNICAL_SD * config.batch_effect
    return Factors(
        identity=truth.context_centroids[context] + identity,
        state=state,
        technical=truth.batch_centroids[batch] + technical,
        responds=rng.random(n) < config.responder_fraction,
    )


def proportions(
    truth: Truth, factors: Factors, *, state: NDArray[np.float64] | None = None
) -> NDArray[np.float32]:
    """Return expected proportions of genes `(n_cells, n_genes)`, with `state` in place if given."""
    latent = np.hstack(
        [factors.identity, factors.state if state is None else state, factors.technical]
    )
    loadings = np.hstack([truth.loadings_identity, truth.loadings_state, truth.loadings_technical])
    logits = latent.astype(np.float32) @ loadings.T.astype(np.float32)
    logits += truth.base.astype(np.float32)
    logits -= logits.max(axis=1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=1, keepdims=True)
    return logits


def draw_counts(truth: Truth, factors: Factors, rng: np.random.Generator) -> sparse.csr_matrix:
    """Draw negative binomial counts `(n_cells, n_genes)`, CSR of float32 whole numbers."""
    config = truth.config
    spread = config.library_sd
    library = config.library_size * np.exp(spread * factors.technical[:, 0] - spread**2 / 2)
    theta = truth.dispersion.astype(np.float32)
    size = max(1, _CHUNK_VALUES // len(theta))
    blocks = []
    for start in range(0, len(library), size):
        rows = slice(start, start + size)
        chunk = Factors(
            factors.identity[rows],
            factors.state[rows],
            factors.technical[rows],
            factors.responds[rows],
        )
        rate = proportions(truth, chunk)
        rate *= library[rows, None].astype(np.float32) / theta
        rate *= rng.standard_gamma(theta, rate.shape, dtype=np.float32)
        blocks.append(sparse.csr_matrix(rng.poisson(rate).astype(np.float32)))
    return sparse.vstack(blocks, format="csr")
