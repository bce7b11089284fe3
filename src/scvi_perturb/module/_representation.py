"""What stage two needs of stage one: encode counts, decode the parameters of counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from scvi_perturb.generative import nb_log_prob, poisson_log_prob, zinb_log_prob

if TYPE_CHECKING:
    from scvi_perturb._typing import Batch

__all__ = [
    "CountParameters",
    "Likelihood",
    "Representation",
    "batch_weights",
    "counts_log_prob",
]

Likelihood = Literal["nb", "zinb", "poisson", "normal", "exact"]


class CountParameters(NamedTuple):
    """Distribution of the counts of each cell.

    Attributes
    ----------
    mean
        Expected counts before zero inflation, `(n_cells, n_genes)`; with a Normal likelihood the
        expected `log1p` counts per ten thousand; the counts themselves where they are drawn
        already (`"exact"`).
    dispersion
        Inverse dispersion, `(n_genes,)` or `(n_cells, n_genes)`; the standard deviation with a
        Normal likelihood; unused with Poisson.
    zero_logits
        Logits of zero inflation, or None.
    """

    mean: Tensor
    dispersion: Tensor
    zero_logits: Tensor | None


class Representation(Protocol):
    """A trained stage one: our own autoencoder, or a trained scVI."""

    n_latent: int
    likelihood: Likelihood

    def encode(self, tensors: Batch) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of the latent of each cell, `(B, n_latent)` each."""
        ...

    def decode(self, latent: Tensor, library: Tensor, batch: Tensor) -> CountParameters:
        """Return the parameters of the counts at `latent (B, n_latent)`, `library (B,)`."""
        ...


def counts_log_prob(
    x: Tensor,
    parameters: CountParameters,
    likelihood: Likelihood,
    *,
    nonzero: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Return the log-likelihood of the counts of each cell, `(B,)`, in nats.

    Parameters
    ----------
    x
        Counts, `(B, G)`.
    parameters
        Distribution of each cell's counts.
    likelihood
        Which distribution.
    nonzero
        Rows and columns of the non-zero counts, where they are known.
    """
    mean, dispersion, zero_logits = parameters
    if likelihood == "poisson":
        return poisson_log_prob(x, mean, nonzero=nonzero)
    if zero_logits is not None:
        return zinb_log_prob(x, mean, dispersion, zero_logits, nonzero=nonzero)
    return nb_log_prob(x, mean, dispersion, nonzero=nonzero)


def batch_weights(batch: Tensor, seen: Tensor) -> Tensor:
    """Return one-hot rows `(B, n_batch)`; one never trained on is a mean of the others.

    With a single batch nothing is to be known, and the result has no column.

    Parameters
    ----------
    batch
        Codes, `(B,)`; those beyond the registered ones are unknown.
    seen
        Whether each registered batch was trained on, `(n_batch,)`.
    """
    n_batch = len(seen)
    if n_batch < 2:
        return torch.zeros(len(batch), 0, device=batch.device)
    code = batch.clamp(0, n_batch - 1)
    known = (batch == code) & seen[code]
    mean = seen.float() / seen.sum().clamp_min(1)
    return torch.where(known[:, None], functional.one_hot(code, n_batch).float(), mean)
