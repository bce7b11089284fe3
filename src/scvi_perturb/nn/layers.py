"""Residual blocks, time embedding, and the encoder and decoder of expression."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "AdaptiveBlock",
    "CountDecoder",
    "Decoded",
    "Dispersion",
    "ExpressionEncoder",
    "TimeEmbedding",
    "hidden_layers",
]


def hidden_layers(n_in: int, n_hidden: int, n_layers: int, *, dropout: float) -> nn.Sequential:
    """Return `n_layers` of Linear, LayerNorm, SiLU, Dropout.

    LayerNorm rather than BatchNorm: a last batch of one cell must not raise, and a cell's
    latent must not depend on its neighbours in the batch.
    """
    layers: list[nn.Module] = []
    for i in range(n_layers):
        layers += [nn.Linear(n_in if i == 0 else n_hidden, n_hidden), nn.LayerNorm(n_hidden)]
        layers += [nn.SiLU()]
        if dropout > 0:
            layers += [nn.Dropout(dropout)]
    return nn.Sequential(*layers)


class TimeEmbedding(nn.Module):
    """Sinusoidal features of a scalar, then one linear layer.

    Parameters
    ----------
    n_out
        Width of the embedding.
    n_frequencies
        Number of frequencies, spaced geometrically from 1 to `max_frequency`.
    max_frequency
        Highest angular frequency. The argument is expected to be of order one.
    """

    frequencies: Tensor

    def __init__(
        self, n_out: int, *, n_frequencies: int = 32, max_frequency: float = 400.0
    ) -> None:
        super().__init__()
        exponents = torch.linspace(0, 1, n_frequencies)
        self.register_buffer("frequencies", max_frequency**exponents)
        self.linear = nn.Linear(2 * n_frequencies, n_out)

    def forward(self, time: Tensor) -> Tensor:
        """Embed times of shape `(n,)` as `(n, n_out)`."""
        angles = time[:, None] * self.frequencies
        return self.linear(torch.cat([angles.sin(), angles.cos()], dim=1))


class AdaptiveBlock(nn.Module):
    """Residual MLP block whose scale, shift and gate come from the condition (adaLN-zero).

    The modulation is computed once for all blocks (as in PixArt-alpha, Chen et al. 2024); a
    block only adds its own offset, so three blocks cost little more than their two products.
    Gates start at zero: the network starts as the identity (Peebles & Xie 2023).
    """

    def __init__(self, width: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        self.offset = nn.Parameter(torch.zeros(3 * width))
        self.dropout = nn.Dropout(dropout) if dropout > 0 else nn.Identity()

    def forward(self, hidden: Tensor, modulation: Tensor) -> Tensor:
        """Transform `hidden (n, width)` under `modulation (n, 3 * width)`."""
        scale, shift, gate = (modulation + self.offset).chunk(3, dim=-1)
        normed = functional.layer_norm(hidden, hidden.shape[-1:])
        inner = functional.silu(self.first(torch.addcmul(normed + shift, normed, scale)))
        return torch.addcmul(hidden, gate, self.second(self.dropout(inner)))

    def push(self, hidden: Tensor, tangents: Tensor, modulation: Tensor) -> tuple[Tensor, Tensor]:
        """Return the block's output and that of tangents `(n, k, width)`, without dropout.

        Written out, since generic forward derivatives take five times as long.
        """
        scale, shift, gate = (modulation + self.offset).chunk(3, dim=-1)
        spread, mean = torch.var_mean(hidden, dim=-1, correction=0, keepdim=True)
        inverse = (spread + 1e-5).rsqrt()
        normed = (hidden - mean) * inverse
        first = self.first(torch.addcmul(normed + shift, normed, scale))
        inner, slope = silu_and_slope(first)
        output = torch.addcmul(hidden, gate, self.second(inner))
        # The derivative of the norm: centred, less what lies along the normed vector.
        along = tangents @ (normed / normed.shape[-1])[..., None]
        moved = tangents - tangents.mean(-1, keepdim=True) - along * normed[:, None]
        moved = moved * (inverse * (1 + scale))[:, None]
        moved = functional.linear(moved, self.first.weight) * slope[:, None]
        moved = functional.linear(moved, self.second.weight)
        return output, torch.addcmul(tangents, gate[:, None], moved)


def silu_and_slope(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return SiLU and its derivative."""
    gate = torch.sigmoid(x)
    value = x * gate
    return value, gate + value * (1 - gate)


Dispersion = Literal["gene", "gene-batch", "gene-cell"]

#: Log dispersions are this times their parameter. An adaptive optimiser moves every parameter
#: by its learning rate a step: without the factor they would still be far too small, and drawn
#: counts too variable, when everything else has converged.
_DISPERSION_SCALE: Final = 10.0


class Decoded(NamedTuple):
    """Parameters of the distribution of a cell's counts.

    Attributes
    ----------
    logits
        Unnormalised log proportions, `(n_cells, n_genes)`, or with a last column for all genes
        that the panel leaves out, `(n_cells, n_genes + 1)`. With a Normal likelihood, the means.
    log_dispersion
        Log inverse dispersion, `(n_genes,)` or `(n_cells, n_genes)`; for Normal, log sd.
    zero_logits
        Logit of the probability of a zero beyond the count model, `(n_cells, n_genes)`, or None.
    """

    logits: Tensor
    log_dispersion: Tensor
    zero_logits: Tensor | None


class ExpressionEncoder(nn.Module):
    """Encode `log1p` counts and the batch into the mean and log variance of a latent.

    With `linear`, a linear map is added to the mean; its weights can be set before training.
    """

    def __init__(
        self,
        n_genes: int,
        n_batch: int,
        n_latent: int,
        *,
        n_hidden: int,
        n_layers: int,
        dropout: float,
        linear: bool = False,
    ) -> None:
        super().__init__()
        self.hidden = hidden_layers(n_genes + n_batch, n_hidden, n_layers, dropout=dropout)
        self.mean = nn.Linear(n_hidden, n_latent)
        self.log_variance = nn.Linear(n_hidden, n_latent)
        self.linear = nn.Linear(n_genes + n_batch, n_latent, bias=False) if linear else None
        # An adaptive optimiser moves all weights by the same step: of thousands of genes, that of
        # their sum would be far too large.
        self.linear_scale = (n_genes + n_batch) ** -0.5

    def forward(self, inputs: Tensor, batch_weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance, each `(n_cells, n_latent)`.

        Parameters
        ----------
        inputs
            Transformed counts, `(n_cells, n_genes)`.
        batch_weights
            Membership in each batch, `(n_cells, n_batch)`, rows sum to one.
        """
        inputs = _with_batch(inputs, batch_weights)
        hidden = self.hidden(inputs)
        mean = self.mean(hidden)
        if self.linear is not None:
            mean = mean + self.linear(inputs * self.linear_scale)
        return mean, self.log_variance(hidden).clamp(-8.0, 4.0)


class CountDecoder(nn.Module):
    """Decode a latent into log proportions and dispersions; linear or one hidden MLP.

    Only the heads that the likelihood uses are built.

    Parameters
    ----------
    n_latent, n_genes, n_batch
        Sizes. The decoder knows the batch, so the latent need not carry it.
    n_hidden, n_layers
        Hidden layers; `n_layers=0` is a linear decoder whose weights are gene programs.
    n_other
        1 to add a logit for the genes that the panel leaves out, else 0.
    dispersion
        One dispersion a gene, a gene and batch, or a gene and cell.
    zero_inflated
        Whether to build the head of the zero-inflation logits.
    """

    def __init__(
        self,
        n_latent: int,
        n_genes: int,
        n_batch: int,
        *,
        n_hidden: int,
        n_layers: int,
        n_other: int,
        dispersion: Dispersion,
        zero_inflated: bool,
    ) -> None:
        super().__init__()
        self.n_latent = n_latent
        self.dispersion = dispersion
        self.n_in = n_in = n_latent + n_batch
        self.hidden = hidden_layers(n_in, n_hidden, n_layers, dropout=0.0)
        width = n_hidden if n_layers else n_in
        self.logits = nn.Linear(width, n_genes + n_other)
        self.linear: nn.Linear | None = None
        self.zeros = nn.Linear(width, n_genes) if zero_inflated else None
        if dispersion == "gene-cell":
            self.cell_dispersion = nn.Linear(width, n_genes)
        else:
            n_rows = max(n_batch, 1) if dispersion == "gene-batch" else 1
            self.log_dispersion = nn.Parameter(torch.zeros(n_rows, n_genes))

    def forward(self, latent: Tensor, batch_weights: Tensor) -> Decoded:
        """Decode `latent (n_cells, n_latent)` in batches `batch_weights (n_cells, n_batch)`."""
        inputs = _with_batch(latent, batch_weights)
        hidden = self.hidden(inputs)
        if self.dispersion == "gene-cell":
            log_dispersion = self.cell_dispersion(hidden)
        elif self.log_dispersion.shape[0] > 1:
            log_dispersion = _DISPERSION_SCALE * (batch_weights @ self.log_dispersion)
        else:
            log_dispersion = _DISPERSION_SCALE * self.log_dispersion[0]
        zeros = None if self.zeros is None else self.zeros(hidden)
        logits = self.logits(hidden)
        if self.linear is not None:
            logits = logits + self.linear(inputs)
        return Decoded(logits, log_dispersion, zeros)

    def add_linear(self) -> None:
        """Add a linear map from latent to logits to a decoder with hidden layers."""
        out = self.logits.out_features
        self.linear = nn.Linear(self.n_in, out, bias=False)

    def initialise_bias(self, log_proportions: Tensor) -> None:
        """Start at the mean profile: the first epochs need not learn it."""
        with torch.no_grad():
            self.logits.bias.copy_(log_proportions)


def _with_batch(inputs: Tensor, batch_weights: Tensor) -> Tensor:
    """Append the columns of batches; of a single batch there are none."""
    return torch.cat([inputs, batch_weights], dim=1) if batch_weights.shape[1] else inputs
