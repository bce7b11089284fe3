"""From noised counts to the chances of each bin of each gene."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from scvi_perturb.nn._conditional import ConditionalNetwork

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["CountNetwork"]


class CountNetwork(nn.Module):
    """A cell's hidden state for all genes, and a small head that all genes share.

    A head sees its gene's noised value, the same gene of the control cell, the additive effect on
    it, what the hidden state says of the gene, and an embedding of the gene. So it costs little
    more with many genes than with few, and nothing where nobody asks.

    Parameters
    ----------
    n_genes, n_bins
        Sizes of the result.
    n_condition
        Dimension of the embedded condition.
    width, n_blocks, dropout
        Of the network of the hidden state.
    n_gene
        Dimension of what the hidden state says of a gene, and of its embedding.
    head
        Width of the head.
    """

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
        self.read = nn.Linear(3 * n_genes, width)
        self.hidden = ConditionalNetwork(
            width // 2, n_condition, width=width, n_blocks=n_blocks, dropout=dropout
        )
        self.say = nn.Linear(width // 2, n_genes * n_gene)
        self.gene = nn.Parameter(0.1 * torch.randn(n_genes, n_gene))
        self.head = nn.Sequential(
            nn.Linear(2 * n_gene + 4, head), nn.SiLU(), nn.Linear(head, n_bins)
        )
        self.bias = nn.Parameter(torch.zeros(n_genes, n_bins))

    def forward(
        self, inputs: Sequence[Tensor], time: Tensor, condition: Tensor, places: Tensor
    ) -> Tensor:
        """Return logits of the asked places, `(m, n_bins)`, row by row.

        Parameters
        ----------
        inputs
            Noised values, whether they are masked, values of the control cell, additive effect,
            each `(n, n_genes)`.
        time, condition
            `(n,)` and `(n, n_condition)`.
        places
            Which `m` values are asked for, `(n, n_genes)`, boolean.
        """
        read = functional.silu(self.read(torch.cat(list(inputs[:3]), dim=1)))
        first, second = read.chunk(2, dim=1)
        modulation = self.hidden.modulation(time, condition)
        state = first + self.hidden(first, second, modulation)
        asked = places.any(dim=0).nonzero()[:, 0]
        row, column = places[:, asked].nonzero(as_tuple=True)
        gene = asked[column]
        own = self._said(state, asked)[row, column]
        seen = torch.stack([one[row, gene] for one in inputs], dim=-1)
        return self.head(torch.cat([seen, own, self.gene[gene]], dim=-1)) + self.bias[gene]

    def _said(self, state: Tensor, genes: Tensor) -> Tensor:
        """Return what hidden states say of some genes, `(n, n_asked, n_gene)`."""
        weight = self.say.weight.view(self.n_genes, self.n_gene, -1)[genes]
        bias = self.say.bias.view(self.n_genes, self.n_gene)[genes]
        said = functional.linear(state, weight.flatten(0, 1), bias.flatten())
        return said.view(len(state), len(genes), self.n_gene)
