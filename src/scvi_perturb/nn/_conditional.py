"""The network shared by diffusion and flow: a vector field in the latent, given a condition."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from scvi_perturb.nn._blocks import AdaptiveBlock, TimeEmbedding, silu_and_slope

__all__ = ["ConditionalNetwork"]


class ConditionalNetwork(nn.Module):
    """Residual MLP with adaptive layer norm: `(x_t, t, condition, reference) -> (n, n_latent)`.

    The condition and the time enter through the modulation of every block; the latent of the
    reference (a control cell) enters beside `x_t`. What depends on the condition and the time
    alone (:meth:`modulation`) can be computed once per condition and reused for all of its
    cells, which is what makes sampling fast.

    Parameters
    ----------
    n_latent
        Dimension of the latent.
    n_condition
        Dimension of the embedded condition.
    width, n_blocks, dropout
        Size and regularisation of the residual MLP.
    max_frequency
        Highest frequency of the embedded time: how fast the field can change in time.
    """

    def __init__(
        self,
        n_latent: int,
        n_condition: int,
        *,
        width: int = 256,
        n_blocks: int = 3,
        dropout: float = 0.0,
        max_frequency: float = 400.0,
    ) -> None:
        super().__init__()
        n_modulation = max(width // 2, 32)
        self.time = TimeEmbedding(n_modulation, max_frequency=max_frequency)
        self.condition = nn.Linear(n_condition, n_modulation)
        self.to_modulation = nn.Linear(n_modulation, 3 * width)
        self.input = nn.Linear(2 * n_latent, width)
        self.blocks = nn.ModuleList(AdaptiveBlock(width, dropout=dropout) for _ in range(n_blocks))
        self.output = nn.Linear(width, n_latent)
        for layer in (self.to_modulation, self.output):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def modulation(self, time: Tensor, condition: Tensor) -> Tensor:
        """Return the blocks' modulation `(n, 3 * width)` for `time (n,)`, `condition (n, c)`."""
        return self.to_modulation(functional.silu(self.time(time) + self.condition(condition)))

    def forward(self, x_t: Tensor, reference: Tensor, modulation: Tensor) -> Tensor:
        """Apply the network.

        Parameters
        ----------
        x_t
            Noised latents, `(n, n_latent)`.
        reference
            Latents of the reference cells, `(n, n_latent)`; zeros where there is none.
        modulation
            Output of :meth:`modulation`, `(n, 3 * width)` or `(1, 3 * width)`.
        """
        hidden = self.input(torch.cat([x_t, reference], dim=1))
        for block in self.blocks:
            hidden = block(hidden, modulation)
        return self.output(functional.silu(hidden))

    def with_divergence(
        self, x_t: Tensor, reference: Tensor, modulation: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the output and the trace of its Jacobian in `x_t`, `(n,)`; as `forward`."""
        hidden = self.input(torch.cat([x_t, reference], dim=1))
        tangents = self.input.weight[:, : x_t.shape[1]].T.expand(len(x_t), -1, -1)
        for block in self.blocks:
            own = cast("AdaptiveBlock", block)
            hidden, tangents = own.push(hidden, tangents, modulation)
        value, slope = silu_and_slope(hidden)
        trace = torch.einsum("nkw,kw,nw->n", tangents, self.output.weight, slope)
        return self.output(value), trace
