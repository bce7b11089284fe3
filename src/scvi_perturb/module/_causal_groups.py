"""Latents by group, and the prior of a state that not every cell has reached."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from scvi_perturb.nn import gaussian_kl

__all__ = ["Groups", "state_divergence"]


class Groups(NamedTuple):
    """A latent by group, `(n, ...)` each; the technical one begins with the depth."""

    identity: Tensor
    state: Tensor
    technical: Tensor

    def with_state(self, state: Tensor) -> Tensor:
        """Return the latent with another state, `(n, n_latent)`."""
        return torch.cat([self.identity, state, self.technical], dim=1)


def state_divergence(
    posterior: tuple[Tensor, Tensor], shift: Tensor, responds: Tensor
) -> tuple[Tensor, Tensor]:
    """Return a bound on the divergence of the state from its prior, and who responded.

    The prior of a perturbed cell is `r N(shift, 1) + (1 - r) N(0, 1)`.

    Parameters
    ----------
    posterior
        Mean and log variance, `(n, n_state)` each.
    shift
        Of the state under the cell's condition, `(n, n_state)`; zero for controls.
    responds
        Log-odds of responding, `(n,)`; infinite where all do.

    Returns
    -------
    The divergence, nats, and the probability that the cell responded, `(n,)` each.

    References
    ----------
    Hershey and Olsen, Approximating the Kullback Leibler divergence between Gaussian mixture
    models, 2007 (variational bound).
    """
    unit = torch.zeros_like(shift)
    moved = gaussian_kl(posterior, (shift, unit))
    sure = torch.isinf(responds)
    odds = torch.where(sure, torch.zeros_like(responds), responds)
    stayed = gaussian_kl(posterior, (unit, unit)) - functional.logsigmoid(-odds)
    moved = moved - torch.where(sure, torch.zeros_like(odds), functional.logsigmoid(odds))
    stayed = torch.where(sure, torch.full_like(stayed, torch.inf), stayed)
    return -torch.logaddexp(-moved, -stayed), torch.sigmoid(stayed - moved)
