"""Encode metadata, predict it, and turn it into priors of latent groups."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from scvi_perturb.nn.layers import SplineChain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_WIDTH = 32


@dataclass(frozen=True, slots=True)
class MetadataSpec:
    """One column of metadata.

    Attributes
    ----------
    name
        Of the column.
    n_levels
        Number of labels; 0 for a number. A label's code is its place, a missing one is -1; a
        missing number is NaN.
    """

    name: str
    n_levels: int

    @property
    def is_numeric(self) -> bool:
        """Whether it is a number."""
        return self.n_levels == 0


class MetadataEncoder(nn.Module):
    """Sum of one vector a column: of its label, of its number, or of its being missing.

    Columns add up, so that a combination of labels never seen together has a vector. A label
    without training cells is as good as missing. Besides the vectors, each column that is missing
    adds a learned share to the variance: what a column would have told is not known.

    Parameters
    ----------
    specs
        Columns.
    n_out
        Dimension of the vectors.
    dropout
        Share of values taken for missing while training.
    """

    nothing: Tensor

    def __init__(self, specs: Sequence[MetadataSpec], n_out: int, *, dropout: float = 0.1) -> None:
        super().__init__()
        self.specs = tuple(specs)
        self.dropout = dropout
        self.embeddings = nn.ModuleDict()
        self.numbers = nn.ModuleDict()
        self.missing = nn.ParameterDict()
        self.missing_variance = nn.ParameterDict()
        # What there is without columns; a buffer, to be on the device of the prior.
        self.register_buffer("nothing", torch.zeros(1, n_out), persistent=False)
        for i, spec in enumerate(self.specs):
            key = str(i)
            self.missing[key] = nn.Parameter(torch.zeros(n_out))
            self.missing_variance[key] = nn.Parameter(torch.full((n_out,), -2.0))
            if spec.is_numeric:
                layers = (nn.Linear(1, _WIDTH), nn.SiLU(), nn.Linear(_WIDTH, n_out))
                self.numbers[key] = nn.Sequential(*layers)
                self.register_buffer(f"centre_{i}", torch.zeros(()))
                self.register_buffer(f"spread_{i}", torch.ones(()))
            else:
                embedding = nn.Embedding(spec.n_levels, n_out)
                nn.init.normal_(embedding.weight, std=0.1)
                self.embeddings[key] = embedding
                self.register_buffer(f"seen_{i}", torch.ones(spec.n_levels, dtype=torch.bool))

    def forward(self, fields: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the sum of vectors, and what missing columns add to the variance.

        `fields`: Column -> codes or numbers, `(n,)`; of no column if there is none. Returns two
        tensors `(n, n_out)`; zeros without columns, `(1, n_out)`.
        """
        if not self.specs:
            return self.nothing, self.nothing
        total: Tensor | float = 0.0
        variance: Tensor | float = 0.0
        for i, spec in enumerate(self.specs):
            key, values = str(i), fields[spec.name]
            there = self.present(i, values)
            if self.training and self.dropout > 0:
                there = there & (torch.rand(len(there), device=there.device) >= self.dropout)
            vector = self._vectors(i, values)
            total = total + torch.where(there[:, None], vector, self.missing[key])
            extra = functional.softplus(self.missing_variance[key])
            variance = variance + torch.where(there[:, None], torch.zeros_like(extra), extra)
        return torch.as_tensor(total), torch.as_tensor(variance)

    def present(self, index: int, values: Tensor) -> Tensor:
        """Return whether a column's values are there and known from training, `(n,)`."""
        spec = self.specs[index]
        if spec.is_numeric:
            return torch.isfinite(values)
        seen: Tensor = getattr(self, f"seen_{index}")
        known = (values >= 0) & (values < spec.n_levels)
        return known & seen[values.clamp(0, spec.n_levels - 1)]

    def prepare(self, fields: Mapping[str, Tensor]) -> None:
        """Tell which labels the training cells have, and centre and spread of numbers."""
        for i, spec in enumerate(self.specs):
            values = fields[spec.name]
            if spec.is_numeric:
                known = values[torch.isfinite(values)]
                if len(known):
                    getattr(self, f"centre_{i}").copy_(known.mean())
                    getattr(self, f"spread_{i}").copy_(known.std(correction=0).clamp_min(1e-6))
                continue
            seen = torch.bincount(values[values >= 0], minlength=spec.n_levels) > 0
            getattr(self, f"seen_{i}").copy_(seen)

    def standardised(self, index: int, values: Tensor) -> Tensor:
        """Return numbers less the training mean, over the training spread; 0 where missing."""
        centre, spread = self.moments_of(index)
        return torch.nan_to_num((values - centre) / spread)

    def moments_of(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the mean and the standard deviation of a column of numbers in training."""
        return getattr(self, f"centre_{index}"), getattr(self, f"spread_{index}")

    def _vectors(self, index: int, values: Tensor) -> Tensor:
        spec, key = self.specs[index], str(index)
        if spec.is_numeric:
            vectors: Tensor = self.numbers[key](self.standardised(index, values)[:, None])
            return vectors
        vectors = self.embeddings[key](values.clamp(0, spec.n_levels - 1))
        return vectors


class MetadataHead(nn.Module):
    """Predict one column from a latent: logits of its labels, or mean and log sd of its number."""

    def __init__(self, n_in: int, spec: MetadataSpec) -> None:
        super().__init__()
        self.spec = spec
        n_out = 2 if spec.is_numeric else spec.n_levels
        self.layers = nn.Sequential(nn.Linear(n_in, _WIDTH), nn.SiLU(), nn.Linear(_WIDTH, n_out))

    def forward(self, latent: Tensor) -> Tensor:
        """Return logits `(n, n_levels)`, or mean and log sd of a standardised number `(n, 2)`."""
        output: Tensor = self.layers(latent)
        return output

    def loss(self, latent: Tensor, target: Tensor, present: Tensor) -> Tensor:
        """Return the mean negative log-likelihood of the values that are there, 0 if none is."""
        if not bool(present.any()):
            return latent.new_zeros(())
        output, target = self(latent[present]), target[present]
        if not self.spec.is_numeric:
            return functional.cross_entropy(output, target)
        mean, log_sd = output[:, 0], output[:, 1].clamp(-4.0, 2.0)
        return (0.5 * ((target - mean) / log_sd.exp()).square() + log_sd).mean()


PriorKind = Literal["gaussian", "mixture", "flow"]
_LOG_2PI = math.log(2 * math.pi)


class GroupPrior(nn.Module):
    """`p(z | metadata)` of one group of latents.

    `specs`: Columns of metadata that the group depends on; none for the same prior everywhere.
    `n_dim`: Dimension of the group; at least 2 for `"flow"`. `kind`: `"gaussian"`; `"mixture"` of
    Gaussians around the mean that the metadata give; `"flow"`, the Gaussian bent by conditional
    splines: for populations of several kinds of cells. `n_components`: Gaussians of the mixture.
    `dropout`: Share of metadata taken for missing while training.

    Reference: Tomczak and Welling, VAE with a VampPrior, 2018, for learned priors; Durkan et al.,
    Neural spline flows, 2019.
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
