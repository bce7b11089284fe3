"""Building blocks: hidden layers, the embedding of time, residual blocks with adaptive norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["AdaptiveBlock", "TimeEmbedding", "hidden_layers"]


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

        By hand: generic forward derivatives take five times as long.
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
