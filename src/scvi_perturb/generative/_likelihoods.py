"""Log-likelihoods of counts, summed over genes, evaluated exactly from the non-zeros.

All compute in float32 (in float64 if a parameter has it), under autocast too, with gradients in
every parameter but the counts.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import torch

from scvi_perturb.generative._negative_binomial import (
    EPSILON,
    Counts,
    NegativeBinomial,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

__all__ = [
    "nb_log_prob",
    "normal_log_prob",
    "poisson_log_prob",
    "zinb_log_prob",
]


def _real(*tensors: Tensor) -> torch.dtype:
    """Return the dtype to compute in: float64 if any tensor has it, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def _check_shapes(x: Tensor, parameters: Mapping[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        shapes = [x.shape, x.shape[-1:]] if name in {"theta", "scale"} else [x.shape]
        if parameter.shape not in shapes:
            msg = (
                f"{name} has shape {tuple(parameter.shape)}; for counts of shape {tuple(x.shape)} "
                f"it is expected to have {' or '.join(str(tuple(shape)) for shape in shapes)}."
            )
            raise ValueError(msg)


def nb_log_prob(
    x: Tensor,
    mu: Tensor,
    theta: Tensor,
    *,
    nonzero: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Return the negative binomial log-likelihood of each cell, summed over genes.

    Parameters
    ----------
    x
        Counts `(n_cells, n_genes)`, integers of any dtype.
    mu
        Means `(n_cells, n_genes)`, >= 0.
    theta
        Inverse dispersions, > 0, `(n_genes,)` or `(n_cells, n_genes)`; the variance is
        `mu + mu^2 / theta`.
    nonzero
        Rows and columns of the non-zero counts, each position once, as
        `torch.nonzero(x, as_tuple=True)` gives them; found from `x` when None, which takes as long
        as the rest.

    Returns
    -------
    Log-likelihood `(n_cells,)` in nats.

    Raises
    ------
    ValueError
        If the shapes do not match.
    """
    _check_shapes(x, {"mu": mu, "theta": theta})
    dtype = _real(mu, theta)
    counts = Counts.gather(x, nonzero, dtype)
    return cast("Tensor", NegativeBinomial.apply(counts, mu.to(dtype), theta.to(dtype), None))


def zinb_log_prob(
    x: Tensor,
    mu: Tensor,
    theta: Tensor,
    zi_logits: Tensor,
    *,
    nonzero: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Return the zero-inflated negative binomial log-likelihood of each cell, summed over genes.

    Parameters
    ----------
    x, mu, theta, nonzero
        As for `nb_log_prob`.
    zi_logits
        Logits of the probability that a count is replaced by zero `(n_cells, n_genes)`.

    Returns
    -------
    Log-likelihood `(n_cells,)` in nats.

    Raises
    ------
    ValueError
        If the shapes do not match.
    """
    _check_shapes(x, {"mu": mu, "theta": theta, "zi_logits": zi_logits})
    dtype = _real(mu, theta, zi_logits)
    counts = Counts.gather(x, nonzero, dtype)
    log_prob = NegativeBinomial.apply(counts, mu.to(dtype), theta.to(dtype), zi_logits.to(dtype))
    return cast("Tensor", log_prob)


def poisson_log_prob(
    x: Tensor, mu: Tensor, *, nonzero: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Return the Poisson log-likelihood of each cell, summed over genes.

    Parameters
    ----------
    x, mu, nonzero
        As for `nb_log_prob`.

    Returns
    -------
    Log-likelihood `(n_cells,)` in nats.

    Raises
    ------
    ValueError
        If the shapes do not match.
    """
    _check_shapes(x, {"mu": mu})
    mean = mu.to(_real(mu))
    counts = Counts.gather(x, nonzero, mean.dtype)
    log_mean = torch.log(counts.take(mean) + EPSILON)
    terms = counts.values * log_mean - torch.lgamma(counts.values + 1)
    return counts.row_sums(terms, mean) - mean.sum(-1)


def normal_log_prob(x: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """Return the normal log-likelihood of each cell, summed over genes.

    Parameters
    ----------
    x
        Values `(n_cells, n_genes)`, for example log-normalised expression or signatures.
    loc
        Means `(n_cells, n_genes)`.
    scale
        Standard deviations, > 0, `(n_genes,)` or `(n_cells, n_genes)`.

    Returns
    -------
    Log-likelihood `(n_cells,)` in nats.

    Raises
    ------
    ValueError
        If the shapes do not match.
    """
    _check_shapes(x, {"loc": loc, "scale": scale})
    dtype = _real(x, loc, scale)
    width = scale.to(dtype)
    error = (x.to(dtype) - loc.to(dtype)) / width
    return -(0.5 * error.square() + torch.log(width) + 0.5 * math.log(2 * math.pi)).sum(-1)
