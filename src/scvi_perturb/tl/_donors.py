"""Effects by donor, and whether donors differ by more than the sampling of cells explains."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import chi2, false_discovery_control

from scvi_perturb._checks import checked
from scvi_perturb._core import SchemaError
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
def compare_donors(
    adata: AnnData,
    *,
    donor_key: str,
    reference: AnnData | None = None,
    keys: ScreenKeys | None = None,
    min_cells: int = 10,
    min_count: int = 5,
    key_added: str = "compare_donors",
) -> pd.DataFrame:
    """Return the effects in each donor, and how much they differ between donors.

    Each donor's effect has the standard error that follows from the sampling of its cells. Donors
    are put together as the studies of a meta-analysis: Cochran's Q tests whether they differ by
    more than that, `tau2` is the variance between donors by the method of DerSimonian and Laird,
    and `i2` its share in the variance of their effects.

    Parameters
    ----------
    adata, reference, keys, min_cells
        As for :func:`differential_expression`; sampled cells count once for each real cell that
        they start from.
    donor_key
        Column of `obs` with donors, batches, or other groups.
    min_count
        Genes with fewer counts in the mean pseudobulk get no heterogeneity.
    key_added
        Key of `uns` under which the table is written; how it was made is written to
        `uns["scvi_perturb"]["results"]`.

    Returns
    -------
    pandas.DataFrame
        One row a condition, context, gene and donor: `condition`; the columns of contexts; `gene`;
        `donor`; `lfc` and `se` of the donor (natural log, as `predict`); `n_cells` and
        `n_control_cells` of the donor. What belongs to all donors is repeated in each row:
        `pooled_lfc` and `pooled_se` with random effects; `q`; `p_value` of Q, and `p_adjusted`
        over the genes of the condition (Benjamini and Hochberg); `i2`, from 0 to 1; `tau2`, squared
        natural log; `n_donors`.

    Raises
    ------
    SchemaError
        Where no condition was measured in two donors, or as :func:`differential_expression`.

    References
    ----------
    DerSimonian and Laird, Controlled Clinical Trials 1986; Higgins and Thompson, Statistics in
    Medicine 2002.
    """
    cells, keys, sampled = real_units(adata, reference, block_key=donor_key, keys=keys)
    context = context_columns(keys, donor_key)
    profiles = pseudobulks(cells, block_key=donor_key, keys=keys)
    found = contrasts(profiles, n_context=len(context), min_cells=min_cells)
    found = [one for one in found if len(one.blocks) > 1]
    if not found:
        msg = (
            f"No condition has {min_cells} cells and as many control cells in two donors of "
            f"obs[{donor_key!r}], so donors cannot be compared; lower min_cells, or name another "
            "column."
        )
        raise SchemaError(msg)
    genes = cells.var_names.astype(str)
    tables = [_table(one, genes, one.columns(context), min_count) for one in found]
    table = pd.concat(tables, ignore_index=True)
    facts = {"function": "compare_donors", "donor_key": donor_key, "units": "natural log"}
    write_table(adata, key_added, table, facts | {"source": "predicted" if sampled else "measured"})
    return table


class Pooled(NamedTuple):
    """A meta-analysis of each gene, `(n_genes,)` each."""

    lfc: Floats
    se: Floats
    q: Floats
    i2: Floats
    tau2: Floats


def pooled(effects: Floats, variances: Floats) -> Pooled:
    """Put donors together with random effects (DerSimonian and Laird), `(n_donors, n_genes)`."""
    df = len(effects) - 1
    weight = 1 / variances
    total = weight.sum(axis=0)
    fixed = (weight * effects).sum(axis=0) / total
    q = (weight * (effects - fixed) ** 2).sum(axis=0)
    excess = np.maximum(q - df, 0.0)
    tau2 = excess / (total - (weight**2).sum(axis=0) / total)
    weight = 1 / (variances + tau2)
    total = weight.sum(axis=0)
    i2 = np.divide(excess, q, out=np.zeros_like(q), where=q > 0)
    return Pooled((weight * effects).sum(axis=0) / total, np.sqrt(1 / total), q, i2, tau2)


def _table(
    contrast: BlockContrast, genes: pd.Index, columns: dict[str, str], min_count: int
) -> pd.DataFrame:
    """Return one condition as a table, donors of a gene one after another."""
    variances = contrast.sampling
    there = (contrast.mean_count >= min_count) & (variances > 0).all(axis=0)
    made = np.full((7, len(genes)), np.nan)
    if there.any():
        result = pooled(contrast.changes[:, there], variances[:, there])
        p_value = chi2.sf(result.q, len(contrast.blocks) - 1)
        made[:, there] = [*result, p_value, false_discovery_control(p_value)]
    lfc, se, q, i2, tau2, p_value, p_adjusted = np.repeat(made, len(contrast.blocks), axis=1)
    n_genes = len(genes)
    return pd.DataFrame(
        {
            **columns,
            "gene": np.repeat(genes, len(contrast.blocks)),
            "donor": np.tile(contrast.blocks, n_genes),
            "lfc": contrast.changes.T.ravel(),
            "se": np.sqrt(variances).T.ravel(),
            "n_cells": np.tile(contrast.n_cells, n_genes),
            "n_control_cells": np.tile(contrast.n_control, n_genes),
            "pooled_lfc": lfc,
            "pooled_se": se,
            "q": q,
            "p_value": p_value,
            "p_adjusted": p_adjusted,
            "i2": i2,
            "tau2": tau2,
            "n_donors": len(contrast.blocks),
        }
    )
