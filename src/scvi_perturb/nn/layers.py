"""Residual blocks, linear layers on sparse rows, encoder and decoder of expression, networks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, cast

import torch
from pyro.distributions.transforms import ConditionalSpline
from pyro.nn import DenseNN
from scipy import sparse
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


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


class _SparseLinear(torch.autograd.Function):
    """`rows @ weight.T`, for rows whose non-zeros are `values` at `columns`."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch gives contexts no type
        values: Tensor,
        columns: Tensor,
        starts: Tensor,
        others: Tensor,
        weight: Tensor,
    ) -> Tensor:
        """Return the products `(n_rows, n_out)`."""
        ctx.save_for_backward(values, columns, starts, others)
        ctx.n_columns = weight.shape[1] - others.shape[1]
        table = weight.T.contiguous()
        result = _weighted_sums(table, values, columns, starts)
        if others.shape[1]:
            result.addmm_(others, table[ctx.n_columns :])
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Return the gradient in the weight."""
        values, columns, starts, others = ctx.saved_tensors
        arrays = (values.numpy(), columns.numpy(), starts.numpy())
        turned = sparse.csr_matrix(arrays, shape=(len(starts) - 1, ctx.n_columns)).tocsc()
        by_column = (turned.data, turned.indices, turned.indptr)
        found = _weighted_sums(grad.contiguous(), *map(torch.from_numpy, by_column))
        if others.shape[1]:
            found = torch.cat([found, others.T @ grad])
        return None, None, None, None, found.T


class SparseRows(NamedTuple):
    """Rows in compressed form, and dense columns beside them.

    `values`, `columns`: Of the non-zeros, row by row, `(n,)`. `starts`: First non-zero of each row,
    and the number of all, `(n_rows + 1,)`. `others`: Columns after the sparse ones, `(n_rows, m)`.
    """

    values: Tensor
    columns: Tensor
    starts: Tensor
    others: Tensor


def sparse_linear(rows: SparseRows, layer: nn.Linear) -> Tensor:
    """Apply a linear layer to sparse rows, `(n_rows, n_out)`."""
    product = cast("Tensor", _SparseLinear.apply(*rows, layer.weight))
    return product if layer.bias is None else product + layer.bias


def _weighted_sums(table: Tensor, values: Tensor, columns: Tensor, starts: Tensor) -> Tensor:
    """Return for each row the sum of the table's rows at its columns, times its values."""
    return functional.embedding_bag(
        columns,
        table,
        starts.to(columns.dtype),
        mode="sum",
        per_sample_weights=values,
        include_last_offset=True,
    )


class TimeEmbedding(nn.Module):
    """Sinusoidal features of a scalar, then one linear layer.

    `n_out`: Width of the embedding. `n_frequencies`: Number of frequencies, spaced geometrically
    from 1 to `max_frequency`. `max_frequency`: Highest angular frequency. The argument is expected
    to be of order one.
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

    `logits`: Unnormalised log proportions, `(n_cells, n_genes)`, or with a last column for all
    genes that the panel leaves out, `(n_cells, n_genes + 1)`. With a Normal likelihood, the means.
    `log_dispersion`: Log inverse dispersion, `(n_genes,)` or `(n_cells, n_genes)`; for Normal, log
    sd. `zero_logits`: Logit of the probability of a zero beyond the count model, `(n_cells,
    n_genes)`, or None.
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

    def forward(
        self, inputs: Tensor | SparseRows, batch_weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return mean and log variance, each `(n_cells, n_latent)`.

        `inputs`: Transformed counts, `(n_cells, n_genes)`, or sparse with the batches beside them.
        `batch_weights`: Membership in each batch, `(n_cells, n_batch)`, rows sum to one.
        """
        if isinstance(inputs, SparseRows):
            hidden = sparse_linear(inputs, cast("nn.Linear", self.hidden[0]))
            hidden = cast("nn.Sequential", self.hidden[1:])(hidden)
            scaled = inputs._replace(
                values=inputs.values * self.linear_scale, others=inputs.others * self.linear_scale
            )
            shift = None if self.linear is None else sparse_linear(scaled, self.linear)
        else:
            inputs = inputs if batch_weights is None else _with_batch(inputs, batch_weights)
            hidden = self.hidden(inputs)
            shift = None if self.linear is None else self.linear(inputs * self.linear_scale)
        mean = self.mean(hidden) if shift is None else self.mean(hidden) + shift
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
        if torch.is_autocast_enabled(hidden.device.type):
            # The mean profile is single precision; what half of it rounds is the departure.
            logits = functional.linear(hidden, self.logits.weight).float() + self.logits.bias
        else:
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

        `x_t`: Noised latents, `(n, n_latent)`. `reference`: Latents of the reference cells, `(n,
        n_latent)`; zeros where there is none. `modulation`: Output of :meth:`modulation`, `(n, 3 *
        width)` or `(1, 3 * width)`.
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

        `inputs`: Noised values, whether they are masked, values of the control cell, additive
        effect, each `(n, n_genes)`. `time`, `condition`: `(n,)` and `(n, n_condition)`. `places`:
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
