"""A linear layer on sparse rows on a CPU: the non-zeros are all that is read."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from scipy import sparse
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional


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


def dense_rows(values: Tensor, columns: Tensor, starts: Tensor, *, n_columns: int) -> Tensor:
    """Return compressed rows as a matrix `(n_rows, n_columns)`, on their own device."""
    places = torch.arange(0, (len(starts) - 1) * n_columns, n_columns, device=columns.device)
    flat = torch.repeat_interleave(places, starts.diff(), output_size=len(columns)).add_(columns)
    matrix = values.new_zeros((len(starts) - 1) * n_columns)
    return matrix.scatter_(0, flat, values).view(-1, n_columns)
