"""The part of an effect that adds up: one vector a component, scaled by its dose."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["AdditiveEffect"]


class AdditiveEffect(nn.Module):
    """Sum over the components of a condition of a dose factor times a vector.

    Nothing here is learnt by gradient: the vectors are a regression on conditions, see
    `scvi_perturb.model._additive`. What a network adds to it may be anything, but where the
    network has seen nothing, components add.

    Parameters
    ----------
    n_components
        Number of component ids.
    n_out
        Dimension of the vectors.
    """

    vectors: Tensor
    reference_dose: Tensor
    log_ec50: Tensor
    log_slope: Tensor

    def __init__(self, n_components: int, n_out: int) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.zeros(max(n_components, 1), n_out))
        self.register_buffer("reference_dose", torch.ones(max(n_components, 1)))
        self.register_buffer("log_ec50", torch.zeros(()))
        self.register_buffer("log_slope", torch.zeros(()))

    def dose_factor(self, component: Tensor, dose: Tensor) -> Tensor:
        """Return `r^h / (r^h + k^h) * (1 + k^h)` of the relative dose r, 1 at r = 1: `(n, m)`."""
        relative = (dose / self.reference_dose[component]).clamp_min(1e-12).log()
        return hill_factor(relative, self.log_ec50, self.log_slope)

    def forward(self, component: Tensor, dose: Tensor, mask: Tensor) -> Tensor:
        """Return the effect of conditions, `(n, n_out)`; each argument is `(n, m)`."""
        factor = self.dose_factor(component, dose) * mask.to(self.vectors.dtype)
        return (self.vectors[component] * factor[..., None]).sum(dim=1)


def hill_factor(log_relative: Tensor, log_ec50: Tensor, log_slope: Tensor) -> Tensor:
    """Return the Hill curve of a relative dose, scaled to 1 at relative dose 1."""
    slope = log_slope.exp()
    top = torch.sigmoid(-slope * log_ec50)
    return torch.sigmoid(slope * (log_relative - log_ec50)) / top
