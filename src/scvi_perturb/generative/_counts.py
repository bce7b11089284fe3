"""Exact sampling of counts, at a cost that follows the non-zeros."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from scipy.sparse import csr_matrix

from scvi_perturb.generative._count_draws import NonZeros, draw_dense, draw_rows

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["sample_counts"]

#: Entries treated at a time: a few arrays of this length fit into a core's cache.
_CHUNK: Final = 1 << 18


def sample_counts(
    mu: Tensor,
    theta: Tensor | None,
    zi_logits: Tensor | None = None,
    *,
    generator: torch.Generator | None = None,
) -> csr_matrix:
    """Draw counts from Poisson, negative binomial or zero-inflated laws.

    Parameters
    ----------
    mu
        Means `(n_cells, n_genes)`, >= 0, on any device.
    theta
        Inverse dispersions, > 0, `(n_genes,)` or `(n_cells, n_genes)`; None draws from Poisson.
    zi_logits
        Logits of the probability that a count is replaced by zero `(n_cells, n_genes)`.
    generator
        Source of randomness, on the device of `mu`; the operating system's when None.

    Returns
    -------
    Counts `(n_cells, n_genes)`: a canonical CSR matrix of float32 holding integers.

    Raises
    ------
    ValueError
        If a mean is negative or not a number, a dispersion is not positive, or shapes do not match.
    """
    mu = mu.detach().float()
    theta = None if theta is None else theta.detach().float()
    zi_logits = None if zi_logits is None else zi_logits.detach().float()
    _check(mu, theta, zi_logits)
    if generator is None:
        generator = torch.Generator(mu.device)
        generator.seed()
    n_cells, n_genes = mu.shape
    if not mu.numel():
        return csr_matrix((n_cells, n_genes), dtype=np.float32)
    if mu.device.type == "cuda":
        parts = [draw_dense(mu, theta, zi_logits, generator)]
    else:
        # Other devices have no gamma law of their own.
        mu, theta, zi_logits = mu.cpu(), _host(theta), _host(zi_logits)
        random = _numpy_generator(generator)
        rows = max(1, _CHUNK // n_genes)
        parts = [
            draw_rows(mu[i : i + rows], _rows(theta, i, rows), _rows(zi_logits, i, rows), random)
            for i in range(0, n_cells, rows)
        ]
    drawn = NonZeros(*(np.concatenate(part) for part in zip(*parts, strict=True)))
    starts = np.concatenate([[0], np.cumsum(drawn.lengths)])
    return csr_matrix((drawn.counts, drawn.genes, starts), shape=(n_cells, n_genes))


def _check(mu: Tensor, theta: Tensor | None, zi_logits: Tensor | None) -> None:
    if mu.ndim != 2:
        msg = f"mu has shape {tuple(mu.shape)}; expected (n_cells, n_genes)."
        raise ValueError(msg)
    for name, parameter, shapes in (
        ("theta", theta, (mu.shape, mu.shape[1:])),
        ("zi_logits", zi_logits, (mu.shape,)),
    ):
        if parameter is not None and parameter.shape not in shapes:
            expected = " or ".join(str(tuple(shape)) for shape in shapes)
            msg = f"{name} has shape {tuple(parameter.shape)}; expected {expected} as mu has."
            raise ValueError(msg)
    # A minimum is not a number if any entry is not.
    if mu.numel() and not (float(mu.min()) >= 0 and float(mu.max()) < np.inf):
        msg = (
            f"mu ranges from {float(mu.min())} to {float(mu.max())}; expected finite means >= 0. "
            "Check that the decoder's output has no NaN."
        )
        raise ValueError(msg)
    if theta is not None and theta.numel() and not float(theta.min()) > 0:
        msg = f"theta has a minimum of {float(theta.min())}; expected inverse dispersions > 0."
        raise ValueError(msg)


def _numpy_generator(generator: torch.Generator) -> np.random.Generator:
    """Return a NumPy generator seeded by the torch generator, which moves on."""
    seed = torch.randint(2**63 - 1, (4,), generator=generator, device=generator.device)
    return np.random.Generator(np.random.SFC64(seed.tolist()))


def _host(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.cpu()


def _rows(parameter: Tensor | None, start: int, n_rows: int) -> Tensor | None:
    if parameter is None or parameter.ndim == 1:
        return parameter
    return parameter[start : start + n_rows]
