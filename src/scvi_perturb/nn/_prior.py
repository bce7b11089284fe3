"""Learned prior of a group of latents given its metadata: Gaussian, mixture, or splines."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from scvi_perturb.nn._metadata import MetadataEncoder
from scvi_perturb.nn._splines import SplineChain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scvi_perturb.nn._metadata import MetadataSpec

__all__ = ["GroupPrior", "PriorKind", "gaussian_kl", "gaussian_log_prob"]

PriorKind = Literal["gaussian", "mixture", "flow"]
_LOG_2PI = math.log(2 * math.pi)


class GroupPrior(nn.Module):
    """`p(z | metadata)` of one group of latents.

    Parameters
    ----------
    specs
        Columns of metadata that the group depends on; none for the same prior everywhere.
    n_dim
        Dimension of the group; at least 2 for `"flow"`.
    kind
        `"gaussian"`; `"mixture"` of Gaussians around the mean that the metadata give; `"flow"`,
        the Gaussian bent by conditional splines: for populations of several kinds of cells.
    n_components
        Gaussians of the mixture.
    dropout
        Share of metadata taken for missing while training.

    References
    ----------
    Tomczak and Welling, VAE with a VampPrior, 2018, for learned priors; Durkan et al., Neural
    spline flows, 2019.
    """

    def __init__(
        self,
        specs: Sequence[MetadataSpec],
        n_dim: int,
        *,
        kind: PriorKind = "gaussian",
        n_components: int = 8,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.n_dim = n_dim
        self.metadata = MetadataEncoder(specs, n_dim, dropout=dropout)
        self.centre = nn.Parameter(torch.zeros(n_dim))
        self.log_variance = nn.Parameter(torch.zeros(n_dim))
        if kind == "mixture":
            self.weights = nn.Parameter(torch.zeros(n_components))
            self.offsets = nn.Parameter(torch.randn(n_components, n_dim))
            self.log_variances = nn.Parameter(torch.zeros(n_components, n_dim))
        elif kind == "flow":
            self.chain = SplineChain(n_dim, n_dim, n_transforms=4, width=64)

    def moments(self, fields: Mapping[str, Tensor], n: int) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of the Gaussian that metadata give, `(n, n_dim)` each."""
        mean, extra = self.metadata(fields)
        variance = self.log_variance.exp() + extra
        shape = (n, self.n_dim)
        return (self.centre + mean).expand(shape), variance.log().expand(shape)

    def divergence(
        self, posterior: tuple[Tensor, Tensor], draw: Tensor, fields: Mapping[str, Tensor]
    ) -> Tensor:
        """Return `KL(q || p)` of each cell `(n,)`: exact if Gaussian, else from one draw."""
        if self.kind == "gaussian":
            return gaussian_kl(posterior, self.moments(fields, len(draw)))
        return gaussian_log_prob(draw, *posterior) - self.log_prob(draw, fields)

    def log_prob(self, points: Tensor, fields: Mapping[str, Tensor]) -> Tensor:
        """Return the log-density at `points (n, n_dim)`, nats `(n,)`."""
        mean, log_variance = self.moments(fields, len(points))
        if self.kind == "gaussian":
            return gaussian_log_prob(points, mean, log_variance)
        scale = (0.5 * log_variance).exp()
        unit, volume = (points - mean) / scale, -0.5 * log_variance.sum(1)
        if self.kind == "flow":
            noise, change = self.chain.inverse(unit, mean)
            standard = torch.zeros_like(noise)
            return gaussian_log_prob(noise, standard, standard) + change + volume
        each = gaussian_log_prob(unit[:, None], self.offsets, self.log_variances)
        return torch.logsumexp(each + self.weights.log_softmax(0), dim=1) + volume

    def draw(self, fields: Mapping[str, Tensor], n: int, random: torch.Generator) -> Tensor:
        """Draw `(n, n_dim)` points."""
        mean, log_variance = self.moments(fields, n)
        unit = torch.randn(mean.shape, generator=random, device=mean.device)
        if self.kind == "mixture":
            shares = self.weights.softmax(0)
            which = torch.multinomial(shares, n, replacement=True, generator=random)
            unit = self.offsets[which] + (0.5 * self.log_variances[which]).exp() * unit
        elif self.kind == "flow":
            unit = self.chain(unit, mean)
        return mean + (0.5 * log_variance).exp() * unit

    def known_fields(self, fields: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return whether each column's values are there and known from training."""
        columns = self.metadata.specs
        return {s.name: self.metadata.present(i, fields[s.name]) for i, s in enumerate(columns)}


def gaussian_kl(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Tensor:
    """Return `KL(first || second)` of diagonal Gaussians given by mean and log variance, `(n,)`."""
    (mean, log_variance), (other, other_log_variance) = first, second
    ratio = (log_variance - other_log_variance).exp()
    away = (mean - other).square() * (-other_log_variance).exp()
    return 0.5 * (ratio + away - 1.0 - (log_variance - other_log_variance)).sum(-1)


def gaussian_log_prob(points: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return the log-density of a diagonal Gaussian, nats, summed over the last axis."""
    away = (points - mean).square() * (-log_variance).exp()
    return -0.5 * (away + log_variance + _LOG_2PI).sum(-1)
