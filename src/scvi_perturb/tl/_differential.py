"""Differential expression whose unit of replication is the donor or batch, never the cell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import digamma, polygamma
from scipy.stats import chi2, false_discovery_control
from scipy.stats import t as student

from scvi_perturb._checks import checked
from scvi_perturb._core import SchemaError, warn
from scvi_perturb.tl._blocks import (
    context_columns,
    contrasts,
    pseudobulks,
    real_units,
    write_table,
)

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_perturb.data.condition import ScreenKeys
    from scvi_perturb.tl._blocks import BlockContrast

    Floats = NDArray[np.float64]


@checked
def differential_expression(
    adata: AnnData,
    *,
    block_key: str | None = None,
    reference: AnnData | None = None,
    unit: Literal["block", "cell"] = "block",
    keys: ScreenKeys | None = None,
    min_cells: int = 10,
    min_count: int = 5,
    key_added: str = "differential_expression",
) -> pd.DataFrame:
    r"""Test each gene between every condition and control, with donors or batches as replicates.

    Counts are summed over the cells of each condition in each block. A gene's change from control
    is taken within each block, so that what all cells of a block share drops out, and the test asks
    whether the changes agree between blocks: a paired t-test, weighted by the precision of each
    block, with variances moderated over genes as in limma. The variance that a gene should have
    comes from the spread between cells and takes the place of voom's trend. The test needs no
    further package.

    Sampled cells are no replicates. They are summed by the real cell that they start from, and
    `n_cells` counts these. A model changes all blocks alike, so no standard error is below what the
    sampling of so many cells alone would give. Such p-values say whether the *model's* change
    stands out from the spread of cells, not whether the model is right: for its error see the
    interval of `predict`.

    Parameters
    ----------
    adata
        Raw counts of measured cells, or what `model.sample` returns.
    block_key
        Column of `obs` with the independent replicates: donor, or batch.
    reference
        Control cells for cells that have none. For sampled cells without `block_key` in `obs`, the
        cells that they start from.
    unit
        "block", or "cell" to treat cells as independent observations (Welch's test of profiles):
        for one block, where p-values say nothing about other donors.
    keys
        Where conditions, contexts and counts are; None takes what `pp.harmonize` recorded or
        writes. Tests are made within each context.
    min_cells
        Pseudobulks of fewer cells are left out.
    min_count
        Genes with fewer counts in the mean pseudobulk are not tested: the change of so few counts
        is far from normal.
    key_added
        Key of `uns` under which the table is written; how it was made is written to
        `uns["scvi_perturb"]["results"]`.

    Returns
    -------
    pandas.DataFrame
        One row a condition, context and gene: `condition`; the columns of contexts; `gene`; `lfc`,
        the change from control in units of `predict` (natural log); `se`; `statistic`; `df`, its
        degrees of freedom; `p_value`, NaN where nothing was tested; `p_adjusted` over the genes of
        the condition (Benjamini and Hochberg); `n_blocks`; `n_cells`; `n_control_cells`;
        `source`, "measured" or "predicted".

    Raises
    ------
    SchemaError
        Where no condition has two blocks, blocks are not named, or columns, counts, controls or
        reference cells are missing. The message says what to pass.

    References
    ----------
    Smyth, Statistical Applications in Genetics and Molecular Biology 2004; Law and others, Genome
    Biology 2014; Squair and others, Nature Communications 2021.
    """
    _check_unit(adata, unit, block_key)
    cells, keys, sampled = real_units(adata, reference, block_key=block_key, keys=keys)
    profiles = pseudobulks(cells, block_key=block_key, keys=keys)
    context = context_columns(keys, block_key)
    found = contrasts(profiles, n_context=len(context), min_cells=min_cells)
    if not found:
        msg = (
            f"No condition has {min_cells} cells and as many control cells in one block of a "
            "context; lower min_cells, or choose another block_key."
        )
        raise SchemaError(msg)
    if unit == "block" and max(len(one.blocks) for one in found) < 2:
        msg = (
            f"No condition was measured in two blocks of obs[{block_key!r}] with {min_cells} cells "
            "and controls, so nothing is known about other blocks and there are no p-values. Pass "
            "more donors or batches, or unit='cell' (without block_key) to compare cells."
        )
        raise SchemaError(msg)
    few = sum(len(one.blocks) < 2 for one in found) if unit == "block" else 0
    if few:
        warn(f"{few} conditions were measured in one block only; they get no p-values.")
    tables = []
    for one in found:
        tested = (one.mean_count >= min_count) & (one.sampling.mean(axis=0) > 0) & (one.slope > 0)
        result = cell_test(one) if unit == "cell" else block_test(one, tested, sampled=sampled)
        tables.append(_table(one, result, tested, cells.var_names, one.columns(context)))
    table = pd.concat(tables, ignore_index=True)
    table["source"] = "predicted" if sampled else "measured"
    facts = {"unit": unit, "block_key": block_key or "none", "units": "natural log"}
    write_table(adata, key_added, table, {"function": "differential_expression", **facts})
    return table


def _check_unit(adata: AnnData, unit: str, block_key: str | None) -> None:
    if unit == "block" and block_key is None:
        msg = (
            "block_key is None; name the column of obs that holds independent replicates, such as "
            f"the donor or the batch (obs has {sorted(map(str, adata.obs.columns))}). With one "
            "block only, unit='cell' compares cells."
        )
        raise SchemaError(msg)
    if unit == "cell" and block_key is not None:
        msg = f"unit='cell' compares cells and takes no blocks; leave out block_key={block_key!r}."
        raise SchemaError(msg)


class Tested(NamedTuple):
    """Result of a test of each gene, `(n_genes,)` each."""

    lfc: Floats
    se: Floats
    df: Floats


class Prior(NamedTuple):
    """What genes say about a gene's variance: its degrees of freedom, and its value."""

    df: float
    variance: float


def block_test(contrast: BlockContrast, tested: NDArray[np.bool_], *, sampled: bool) -> Tested:
    """Return the weighted mean change over blocks, with its moderated standard error.

    Cells that a model sampled change alike in all blocks: their standard error is not below what
    the sampling of so many cells alone would give.
    """
    sampling, changes = contrast.sampling[:, tested], contrast.changes[:, tested]
    n_blocks, missing = len(changes), np.full(len(tested), np.nan)
    lfc, se, df = contrast.changes.mean(axis=0), missing.copy(), missing.copy()
    if n_blocks < 2 or not tested.any():
        return Tested(lfc, se, df)
    mean, residual, weight = weighted(changes, sampling, contrast.slope[tested])
    prior = variance_prior(residual, n_blocks - 1)
    total = n_blocks - 1 + prior.df
    if np.isinf(prior.df):
        variance = np.full_like(residual, prior.variance)
    else:
        variance = ((n_blocks - 1) * residual + prior.df * prior.variance) / total
    variance = variance / weight.sum(axis=0)
    if sampled:
        variance = np.maximum(variance, 1 / (1 / sampling).sum(axis=0))
    lfc[tested] = mean
    se[tested] = np.sqrt(variance)
    df[tested] = min(total, (n_blocks - 1) * int(tested.sum()))
    return Tested(lfc, se, df)


def weighted(changes: Floats, sampling: Floats, slope: Floats) -> tuple[Floats, Floats, Floats]:
    """Return means over blocks, residual variances and weights; these are 1 by the variance.

    Beside the sampling of cells, the log expression of a gene differs in its change between blocks,
    by a variance that all genes have in common. It takes the place of voom's trend.
    """
    df = len(changes) - 1
    observed, average = changes.var(axis=0, ddof=1), sampling.mean(axis=0)
    middle = chi2.median(df) / df

    def excess(between: float) -> float:
        return float(np.median(observed / (average + between * slope**2)) - middle)

    most = float((observed / slope**2).max()) / middle
    between = brentq(excess, 0.0, most) if excess(0.0) > 0 else 0.0
    weight = 1 / (sampling + between * slope**2)
    mean = (weight * changes).sum(axis=0) / weight.sum(axis=0)
    return mean, (weight * (changes - mean) ** 2).sum(axis=0) / df, weight


def variance_prior(residual: Floats, df: int) -> Prior:
    """Fit a scaled F distribution to residual variances `(n_genes,)` by moments of logarithms.

    Reference: Smyth 2004, section 6.2.
    """
    if len(residual) < 3:
        return Prior(0.0, 1.0)
    logs = np.log(np.maximum(residual, 1e-5 * np.median(residual)))
    logs -= digamma(df / 2) - np.log(df / 2)
    excess = logs.var(ddof=1) - polygamma(1, df / 2)
    low, high = 1e-3, 1e7
    if excess <= polygamma(1, high):
        return Prior(np.inf, float(np.exp(logs.mean())))
    if excess >= polygamma(1, low):
        return Prior(0.0, 1.0)
    half = float(brentq(lambda x: polygamma(1, x) - excess, low, high))
    return Prior(2 * half, float(np.exp(logs.mean() + digamma(half) - np.log(half))))


def cell_test(contrast: BlockContrast) -> Tested:
    """Return the change of a profile with the standard error between cells (Welch)."""
    n, m = contrast.n_cells.sum(), contrast.n_control.sum()
    own, base = contrast.spread / n, contrast.control_spread / m
    with np.errstate(invalid="ignore", divide="ignore"):
        df = (own + base) ** 2 / (own**2 / (n - 1) + base**2 / (m - 1))
    return Tested(contrast.changes[0], np.sqrt(own + base), df)


def _table(
    contrast: BlockContrast,
    result: Tested,
    tested: NDArray[np.bool_],
    genes: pd.Index,
    columns: dict[str, str],
) -> pd.DataFrame:
    """Return one contrast as a table."""
    se = np.where(tested, result.se, np.nan)
    statistic = result.lfc / se
    p_value = 2 * student.sf(np.abs(statistic), result.df)
    p_adjusted = np.full_like(p_value, np.nan)
    there = np.isfinite(p_value)
    if there.any():
        p_adjusted[there] = false_discovery_control(p_value[there])
    return pd.DataFrame(
        {
            **columns,
            "gene": genes.astype(str),
            "lfc": result.lfc,
            "se": se,
            "statistic": statistic,
            "df": result.df,
            "p_value": p_value,
            "p_adjusted": p_adjusted,
            "n_blocks": len(contrast.blocks),
            "n_cells": int(contrast.n_cells.sum()),
            "n_control_cells": int(contrast.n_control.sum()),
        }
    )
