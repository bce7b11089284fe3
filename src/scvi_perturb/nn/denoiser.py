"""Networks conditioned on a perturbation: denoiser, velocity field, counts and splines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from pyro.distributions.transforms import ConditionalSpline
from pyro.nn import DenseNN
from torch import Tensor, nn
from torch.nn import functional

from scvi_perturb.nn.layers import AdaptiveBlock, TimeEmbedding, silu_and_slope

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["ConditionalNetwork", "CountNetwork", "SplineChain"]


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


class CountNetwork(nn.Module):
    """A cell's hidden state for all genes, and a small head that all genes share.

    The head sees a gene's noised value, the same gene of the control cell, the additive effect on
    it, the hidden state's features of the gene, and an embedding of the gene. Only genes of
    the mask `places` are computed.

    Parameters
    ----------
    n_genes, n_bins
        Sizes of the result.
    n_condition
        Dimension of the embedded condition.
    width, n_blocks, dropout
        Of the network of the hidden state.
    n_gene
        Dimension of the hidden state's features of a gene, and of its embedding.
    head
        Width of the head.

    Attributes
    ----------
    edges
        Least count of each bin and one beyond the last, `(n_bins + 1,)`.
    """

    edges: Tensor

    def __init__(
        self,
        n_genes: int,
        n_bins: int,
        n_condition: int,
        *,
        width: int = 128,
        n_blocks: int = 2,
        dropout: float = 0.0,
        n_gene: int = 8,
        head: int = 48,
    ) -> None:
        super().__init__()
        self.n_genes, self.n_gene = n_genes, n_gene
        self.encoder = nn.Linear(3 * n_genes, width)
        self.hidden = ConditionalNetwork(
            width // 2, n_condition, width=width, n_blocks=n_blocks, dropout=dropout
        )
        self.gene_features = nn.Linear(width // 2, n_genes * n_gene)
        self.gene_embedding = nn.Parameter(0.1 * torch.randn(n_genes, n_gene))
        self.head = nn.Sequential(
            nn.Linear(2 * n_gene + 4, head), nn.SiLU(), nn.Linear(head, n_bins)
        )
        self.bias = nn.Parameter(torch.zeros(n_genes, n_bins))
        self.register_buffer("edges", torch.arange(n_bins + 1))

    def forward(
        self, inputs: Sequence[Tensor], time: Tensor, condition: Tensor, places: Tensor
    ) -> Tensor:
        """Return logits of the chosen values, `(m, n_bins)`, row by row.

        Parameters
        ----------
        inputs
            Noised values, whether they are masked, values of the control cell, additive effect,
            each `(n, n_genes)`.
        time, condition
            `(n,)` and `(n, n_condition)`.
        places
            Mask of the `m` chosen values, `(n, n_genes)`.
        """
        encoded = functional.silu(self.encoder(torch.cat(list(inputs[:3]), dim=1)))
        first, second = encoded.chunk(2, dim=1)
        modulation = self.hidden.modulation(time, condition)
        state = first + self.hidden(first, second, modulation)
        genes = places.any(dim=0).nonzero()[:, 0]
        row, column = places[:, genes].nonzero(as_tuple=True)
        gene = genes[column]
        own = self._features_of(state, genes)[row, column]
        values = torch.stack([one[row, gene] for one in inputs], dim=-1)
        features = torch.cat([values, own, self.gene_embedding[gene]], dim=-1)
        return self.head(features) + self.bias[gene]

    def _features_of(self, state: Tensor, genes: Tensor) -> Tensor:
        """Return the hidden states' features of some genes, `(n, len(genes), n_gene)`."""
        weight = self.gene_features.weight.view(self.n_genes, self.n_gene, -1)[genes]
        bias = self.gene_features.bias.view(self.n_genes, self.n_gene)[genes]
        features = functional.linear(state, weight.flatten(0, 1), bias.flatten())
        return features.view(len(state), len(genes), self.n_gene)


#: Splines are the identity beyond; what they transform has standard deviation one.
_BOUND = 5.0


class SplineChain(nn.Module):
    """Coupling layers of monotone rational splines, given a condition.

    In each layer half of the dimensions, in an order of its own, set with the condition the
    splines that move the other half.

    Parameters
    ----------
    n_dim
        Dimension of the points, at least 2.
    n_condition
        Dimension of the condition.
    n_transforms, n_bins, width
        Number of layers, bins of a spline, width of the networks that set them.

    References
    ----------
    Durkan et al., Neural spline flows, 2019; Dolatabadi et al. 2020 (linear rational splines).
    """

    orders: Tensor

    def __init__(
        self, n_dim: int, n_condition: int, *, n_transforms: int = 6, n_bins: int = 8,
        width: int = 128,
    ) -> None:  # fmt: skip
        super().__init__()
        self.n_kept = n_dim // 2
        n_moved = n_dim - self.n_kept
        sizes = [n_moved * n_bins, n_moved * n_bins, n_moved * (n_bins - 1), n_moved * n_bins]
        self.splines = nn.ModuleList(
            ConditionalSpline(
                DenseNN(self.n_kept + n_condition, [width, width], sizes, nonlinearity=nn.SiLU()),
                n_moved,
                n_bins,
                bound=_BOUND,
                order="linear",
            )
            for _ in range(n_transforms)
        )
        orders: list[Tensor] = []
        for i in range(n_transforms):
            # Every second order is the one before backwards: what was kept is moved.
            orders.append(orders[-1].flip(0) if i % 2 else torch.randperm(n_dim))
        self.register_buffer("orders", torch.stack(orders))

    def forward(self, noise: Tensor, condition: Tensor) -> Tensor:
        """Return the points of noise `(n, n_dim)`, given `condition (n, n_condition)`."""
        return self._through(noise, condition, range(len(self.splines)), inverse=False)[0]

    def inverse(self, points: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Return the noise of points, and the log of the volume change `(n,)` on the way."""
        return self._through(points, condition, reversed(range(len(self.splines))), inverse=True)

    def _through(
        self, x: Tensor, condition: Tensor, layers: Iterable[int], *, inverse: bool
    ) -> tuple[Tensor, Tensor]:
        volume = x.new_zeros(len(x))
        for i in layers:
            order = self.orders[i]
            kept, moved = x[:, order[: self.n_kept]], x[:, order[self.n_kept :]]
            layer: Any = self.splines[i]
            spline = layer.condition(torch.cat([kept, condition], dim=1))
            end = spline.inv(moved) if inverse else spline(moved)
            change = spline.log_abs_det_jacobian(*((end, moved) if inverse else (moved, end)))
            volume = volume + (-change if inverse else change).sum(1)
            x = torch.empty_like(x).index_copy(1, order, torch.cat([kept, end], dim=1))
        return x, volume
