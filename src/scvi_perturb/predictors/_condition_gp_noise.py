"""How surely each training profile is known: its sampling variance, from moments of its cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from scvi_perturb._constants import TARGET_SUM
from scvi_perturb._normalize import log_normalize_cells
from scvi_perturb.data._table import encode_obs
from scvi_perturb.predictors._cells import read_chunks, seen_cells
from scvi_perturb.predictors._requests import context_labels

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_perturb.data._splits import Split
    from scvi_perturb.predictors._profiles import TrainingProfiles

__all__ = ["sampling_variances"]


def sampling_variances(
    adata: AnnData, split: Split | None, profiles: TrainingProfiles
) -> NDArray[np.float64] | None:
    """Return the sampling variance of the profile of each training group.

    Of "cell_mean" it is the variance over cells by their number. Of "pseudobulk", `b = log1p(t p)`
    with `p` the share of a gene in all counts, it is that of the linear influence of each cell,
    `t (x - p l) / (1 + t p)` by the sum of all `l`, where `x` is its count and `l` its library:
    the jackknife to first order, from sums over cells alone. A group of one cell gets the mean
    variance of a cell over the other groups.

    Parameters
    ----------
    adata, split
        What `profiles` were summed from; cells that are held out are not read.
    profiles
        Sums of each group, of "pseudobulk" or "cell_mean".

    Returns
    -------
    `(n_groups, n_genes)`, squared units of the profile; None if no group has two cells, so that
    nothing is known.

    References
    ----------
    Efron and Stein, The jackknife estimate of variance, Annals of Statistics 1981.
    """
    n_cells = profiles.n_cells.astype(np.float64)
    if n_cells.max() < 2:
        return None
    cells = seen_cells(adata, split)
    group = _groups(adata, cells, profiles)
    squares, products = np.zeros_like(profiles.sums), np.zeros_like(profiles.sums)
    libraries = np.zeros(len(n_cells))
    for part, rows in read_chunks(adata, profiles.layer, cells):
        values = log_normalize_cells(rows) if profiles.kind == "cell_mean" else rows
        member = _members(group[part], len(n_cells))
        squares += _dense(member @ _square(values))
        if profiles.kind == "pseudobulk":
            library = np.asarray(rows.sum(axis=1), np.float64).ravel()
            libraries += member @ library**2
            products += _dense((member @ sparse.diags(library)) @ values)
    if profiles.kind == "cell_mean":
        spread = squares - profiles.sums**2 / n_cells[:, None]
        scale = 1 / n_cells[:, None] ** 2
    else:
        total = np.maximum(profiles.sums.sum(axis=1, keepdims=True), 1.0)
        share = profiles.sums / total
        spread = squares - 2 * share * products + share**2 * libraries[:, None]
        scale = (TARGET_SUM / (1 + TARGET_SUM * share) / total) ** 2
    corrected = n_cells / np.maximum(n_cells - 1, 1)
    variances = np.maximum(spread, 0.0) * scale * corrected[:, None]
    enough = n_cells >= 2
    of_a_cell = (variances * n_cells[:, None])[enough].mean(axis=0)
    variances[~enough] = of_a_cell / n_cells[~enough, None]
    return variances


def _groups(
    adata: AnnData, cells: NDArray[np.int64], profiles: TrainingProfiles
) -> NDArray[np.int64]:
    """Return the group of each cell that was seen."""
    obs = adata.obs.iloc[cells]
    codes, table = encode_obs(obs, profiles.keys)
    contexts = context_labels(obs, profiles.context_keys)
    pairs = zip(profiles.conditions, profiles.contexts, strict=True)
    place = {pair: i for i, pair in enumerate(pairs)}
    conditions = [table.conditions[code] for code in range(len(table.conditions))]
    return np.array(
        [place[conditions[code], own] for code, own in zip(codes, contexts, strict=True)], np.int64
    )


def _members(group: NDArray[np.int64], n_groups: int) -> sparse.csr_matrix:
    cells = np.arange(len(group))
    return sparse.csr_matrix((np.ones(len(group)), (group, cells)), (n_groups, len(group)))


def _square(values: Any) -> Any:  # noqa: ANN401
    if sparse.issparse(values):
        return values.astype(np.float64).power(2)
    return np.asarray(values, np.float64) ** 2


def _dense(values: Any) -> NDArray[np.float64]:  # noqa: ANN401
    made = values.toarray() if sparse.issparse(values) else values
    return np.asarray(made, dtype=np.float64)
