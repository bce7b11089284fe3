"""From metadata to a latent's prior, and from a latent to metadata; missing values are marked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["MetadataEncoder", "MetadataHead", "MetadataSpec"]

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

        Parameters
        ----------
        fields
            Column -> codes or numbers, `(n,)`; of no column if there is none.

        Returns
        -------
        Two tensors `(n, n_out)`; zeros without columns, `(1, n_out)`.
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
        centre, spread = getattr(self, f"centre_{index}"), getattr(self, f"spread_{index}")
        return torch.nan_to_num((values - centre) / spread)

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
