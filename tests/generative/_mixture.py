"""Gaussian mixtures, whose denoiser and density are known in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from scvi_perturb.generative import Schedule
    from scvi_perturb.generative.samplers import Denoiser


@dataclass(frozen=True)
class Mixture:
    """Components with weights, means and full covariances, in float64."""

    weights: Tensor
    means: Tensor
    covariances: Tensor

    @classmethod
    def random(cls, n_dim: int = 32, n_components: int = 5, seed: int = 0) -> Mixture:
        """Low-rank components, scaled to a variance of 1 in every dimension."""
        random = torch.Generator().manual_seed(seed)
        draw = {"generator": random, "dtype": torch.float64}
        means = torch.randn(n_components, n_dim, **draw)
        factors = 0.35 * torch.randn(n_components, n_dim, 4, **draw)
        floor = 0.015 * torch.rand(n_components, 1, 1, **draw)
        covariances = factors @ factors.mT + floor * torch.eye(n_dim, dtype=torch.float64)
        weights = torch.softmax(0.5 * torch.randn(n_components, **draw), 0)
        made = cls(weights, means, covariances)
        scale = torch.diagonal(made.covariance()).sqrt()
        means = (means - weights @ means) / scale
        return cls(weights, means, covariances / (scale[:, None] * scale))

    def covariance(self) -> Tensor:
        centred = self.means - self.weights @ self.means
        between = torch.einsum("k,ki,kj->ij", self.weights, centred, centred)
        return between + torch.einsum("k,kij->ij", self.weights, self.covariances)

    def sample(self, n: int, seed: int) -> Tensor:
        random = torch.Generator().manual_seed(seed)
        which = torch.multinomial(self.weights, n, replacement=True, generator=random)
        noise = torch.randn(n, self.means.shape[1], generator=random, dtype=torch.float64)
        factors = torch.linalg.cholesky(self.covariances)
        return self.means[which] + torch.einsum("nij,nj->ni", factors[which], noise)

    def _components(self, x: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
        """Return the log-weight of each component at `x` and its expected data."""
        values, vectors = torch.linalg.eigh(self.covariances)
        spread = alpha**2 * values + sigma**2
        along = torch.einsum("nki,kij->nkj", x[:, None] - alpha * self.means, vectors)
        density = -0.5 * (along**2 / spread + torch.log(2 * math.pi * spread)).sum(-1)
        shift = torch.einsum("nkj,kij->nki", along * (alpha * values / spread), vectors)
        return torch.log(self.weights) + density, self.means + shift

    def log_prob(self, x: Tensor) -> Tensor:
        return torch.logsumexp(self._components(x, 1.0, 0.0)[0], 1)

    def denoiser(self, schedule: Schedule) -> Denoiser:
        def predict(x_t: Tensor, t: float) -> Tensor:
            time = torch.tensor(t, dtype=torch.float64)
            scales = float(schedule.alpha(time)), float(schedule.sigma(time))
            weights, expected = self._components(x_t, *scales)
            return (torch.softmax(weights, 1)[:, :, None] * expected).sum(1)

        return predict


def gaussian(variance: float, mean: float = 0.0, n_dim: int = 1) -> Mixture:
    """A single isotropic component."""
    eye = torch.eye(n_dim, dtype=torch.float64)
    means = torch.full((1, n_dim), mean, dtype=torch.float64)
    return Mixture(torch.ones(1, dtype=torch.float64), means, variance * eye[None])


def energy_distance(x: Tensor, y: Tensor) -> float:
    """Unbiased energy distance with the Euclidean norm."""

    def within(points: Tensor) -> Tensor:
        return torch.pdist(points).mean()

    return float(2 * torch.cdist(x, y).mean() - within(x) - within(y))
