"""Products with sparse rows are those with whole matrices."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scvi_perturb.nn.layers import ExpressionEncoder, SparseRows, sparse_linear


def rows_of(n_others):
    random = torch.Generator().manual_seed(0)
    matrix = torch.poisson(torch.full((5, 7), 0.4), generator=random)
    matrix[1] = 0
    matrix[:, 3] = 0
    rows = matrix.to_sparse_csr()
    others = torch.randn(5, n_others, generator=random)
    return matrix, SparseRows(rows.values(), rows.col_indices(), rows.crow_indices(), others)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("n_others", [0, 2])
def test_layer_and_its_gradients_are_those_of_the_matrix(n_others, bias):
    matrix, rows = rows_of(n_others)
    layer = nn.Linear(7 + n_others, 3, bias=bias)
    weight = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    found = []
    for result in (sparse_linear(rows, layer), layer(torch.cat([matrix, rows.others], dim=1))):
        grads = torch.autograd.grad((weight * result).sum(), list(layer.parameters()))
        found.append((result, *grads))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("linear", [False, True])
def test_encoder_gives_sparse_rows_what_it_gives_the_matrix(linear):
    matrix, rows = rows_of(2)
    torch.manual_seed(0)
    encoder = ExpressionEncoder(7, 2, 3, n_hidden=4, n_layers=1, dropout=0.0, linear=linear).eval()
    for ours, theirs in zip(encoder(rows), encoder(matrix, rows.others), strict=True):
        torch.testing.assert_close(ours, theirs)
