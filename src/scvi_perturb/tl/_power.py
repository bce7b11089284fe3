"""Power of an experiment: how likely differential expression finds an effect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.special import ndtr
from scipy.stats import chi2
from scipy.stats import t as student

from scvi_perturb._checks import checked
from scvi_perturb._core import SchemaError, warn
from scvi_perturb.data.condition import as_labels
from scvi_perturb.data.reader import align_genes
from scvi_perturb.predictors.request import context_labels, library_sizes, read_counts
from scvi_perturb.tl._blocks import (
    condition_names,
    context_columns,
    contrasts,
    pseudobulks,
    real_units,
    spread_of_cells,
)
from scvi_perturb.tl._differential import variance_prior, weighted
from scvi_perturb.tl._populations import influences

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_perturb.data.condition import ScreenKeys
    from scvi_perturb.predictors.profiles import TrainingProfiles

    Floats = NDArray[np.float64]

#: Points at which the law of a variance is looked at.
_N_POINTS: Final = 256
#: Pseudobulks of fewer cells say nothing about how blocks differ.
_MIN_CELLS: Final = 10


@checked
def power(
    adata: AnnData,
    *,
    block_key: str,
    effect: float | AnnData,
    n_cells: Sequence[int],
    n_blocks: Sequence[int],
    signatures: Mapping[str, Sequence[str]] | None = None,
    level: float = 0.05,
    keys: ScreenKeys | None = None,
) -> pd.DataFrame:
    r"""Return how likely :func:`differential_expression` finds an effect, by the experiment's size.

    The variance of a change in one block is :math:`\tau^2 + k/n + k/m` with `n` cells and `m`
    control cells: `k`, the variance between cells, is taken from the control cells, and
    :math:`\tau`, by which the change itself differs between blocks, from the conditions that were
    measured in two blocks or more. What all cells of a block share drops out of the test. The
    control cells of a block are as many as in `adata` (median over blocks): pass so many of them as
    there will be.

    Parameters
    ----------
    adata
        Raw counts of measured cells, controls among them: a pilot, or an earlier screen.
    block_key
        Column of `obs` with donors or batches.
    effect
        Change from control that should be found, natural log, of every gene; or what
        `model.predict` returns. Power is then the assurance, its mean over a normal law of the
        effect with the `std` that is predicted.
    n_cells
        Cells of the condition in each block.
    n_blocks
        Numbers of donors or batches, at least 2.
    signatures
        Names of genes by the name of a signature, which is the mean change of its genes; None
        gives every gene. The `std` of a signature is the mean of those of its
        genes, as if they erred together.
    level
        The effect is found where the p-value, not adjusted, is below this.
    keys
        As for :func:`differential_expression`.

    Returns
    -------
    pandas.DataFrame
        One row a gene or signature, `n_cells` and `n_blocks`, for predicted effects also a
        `condition`: `gene` or `signature`; `lfc`; `std`, its uncertainty (0 for a given number);
        `n_cells` and `n_control_cells` a block; `n_blocks`; `se`, the standard error to expect;
        `df`, the degrees of freedom of the test; `power`, from 0 to 1, NaN where control cells have
        no count or the `std` is NaN.

    Raises
    ------
    SchemaError
        If cells were sampled by a model, there are no controls, or genes or layers are missing.
    """
    cells, keys, sampled = real_units(adata, None, block_key=block_key, keys=keys)
    if sampled:
        msg = "These cells were sampled by a model; pass measured cells, whose variance is known."
        raise SchemaError(msg)
    noise = _noise(cells, signatures, block_key=block_key, keys=keys)
    names = cells.var_names.astype(str) if signatures is None else pd.Index([*signatures])
    tables = []
    for condition, *of_genes in _effects(effect, cells.var_names):
        lfc, std = of_genes if noise.genes is None else np.stack(of_genes) @ noise.genes
        for blocks in n_blocks:
            for n in n_cells:
                found = _found(lfc, std, noise, n_cells=n, n_blocks=blocks, level=level)
                table = pd.DataFrame({"gene" if signatures is None else "signature": names})
                table = table.assign(lfc=lfc, std=std, n_cells=n, n_control_cells=noise.n_control)
                table = table.assign(n_blocks=blocks, **found)
                if condition is not None:
                    table.insert(0, "condition", condition)
                tables.append(table)
    return pd.concat(tables, ignore_index=True)


class _Noise(NamedTuple):
    """Why changes differ, of each gene or signature.

    `spread`: Variance between control cells. `between`: Variance of the change between blocks.
    `prior_df`: Degrees of freedom that genes lend to each other. `n_tested`: Genes that do.
    `n_control`: Control cells a block. `genes`: Weights of genes in signatures, or None.
    """

    spread: Floats
    between: Floats
    prior_df: float
    n_tested: int
    n_control: int
    genes: Floats | None


def _noise(
    cells: AnnData,
    signatures: Mapping[str, Sequence[str]] | None,
    *,
    block_key: str,
    keys: ScreenKeys,
) -> _Noise:
    """Return the variances that are seen between control cells, and between blocks."""
    profiles = pseudobulks(cells, block_key=block_key, keys=keys)
    control = np.array([*profiles.control_groups.values()])
    n_context = len(context_columns(keys, block_key))
    seen = [
        one
        for one in contrasts(profiles, n_context=n_context, min_cells=_MIN_CELLS)
        if len(one.blocks) > 1
    ]
    genes = None
    spread = spread_of_cells(profiles, control)
    if signatures is not None:
        genes = _weights(signatures, cells.var_names)
        spread = _signature_spread(cells, profiles, genes)
    if not seen:
        warn(
            f"No condition was measured in two blocks of obs[{block_key!r}], so that effects are "
            "taken to be the same in all blocks: this is the most that the power can be."
        )
    total, weight, prior = np.zeros(len(spread)), 0, []
    for one in seen:
        df = len(one.blocks) - 1
        changes = one.changes if genes is None else one.changes @ genes
        total += df * changes.var(axis=0, ddof=1)
        total -= df * spread * (1 / one.n_cells + 1 / one.n_control).mean()
        weight += df
        there = one.slope > 0
        residual = weighted(one.changes[:, there], one.sampling[:, there], one.slope[there])[1]
        prior.append(variance_prior(residual, df).df)
    return _Noise(
        spread=spread,
        between=np.maximum(total / max(weight, 1), 0.0),
        prior_df=float(np.median(prior)) if prior and genes is None else 0.0,
        n_tested=len(spread),
        n_control=int(np.median(profiles.n_cells[control])),
        genes=genes,
    )


def _weights(signatures: Mapping[str, Sequence[str]], names: pd.Index) -> Floats:
    """Return the weight of each gene in each signature, `(n_genes, n_signatures)`."""
    made = np.zeros((len(names), len(signatures)))
    for i, (signature, genes) in enumerate(signatures.items()):
        place = names.get_indexer(pd.Index([*genes]))
        if not len(place) or (place < 0).any():
            absent = [gene for gene, at in zip(genes, place, strict=True) if at < 0]
            lack = f"needs genes that adata lacks: {absent[:5]}" if absent else "has no genes"
            msg = f"Signature {signature!r} {lack}; name genes of var_names."
            raise SchemaError(msg)
        made[place, i] = 1 / len(place)
    return made


def _signature_spread(cells: AnnData, profiles: TrainingProfiles, genes: Floats) -> Floats:
    """Return the variance between control cells of what a cell adds to the mean over genes.

    Genes of a signature vary together, so that it does not follow from their variances.
    """
    keys = profiles.keys
    names = context_labels(cells.obs, keys.context)
    is_control = as_labels(cells.obs[keys.perturbation]) == keys.control
    total, df = np.zeros(genes.shape[1]), 0
    for context in profiles.control_groups:
        own = [name == context for name in names]
        rows = np.flatnonzero(is_control & np.array(own))
        counts = sparse.csr_matrix(read_counts(cells, keys.layer, rows))
        library = np.asarray(counts.sum(axis=1)).ravel()
        if keys.library is not None:
            library = library_sizes(cells, keys.library)[rows]
        total += ((len(rows) * influences(counts, genes, library)) ** 2).sum(axis=0)
        df += len(rows) - 1
    made: Floats = total / max(df, 1)
    return made


def _effects(
    effect: float | AnnData, names: pd.Index
) -> Iterator[tuple[str | None, Floats, Floats]]:
    """Yield the name of each condition, its effect on genes and the standard error of that."""
    if not hasattr(effect, "layers"):
        yield None, np.full(len(names), float(effect)), np.zeros(len(names))
        return
    missing = sorted({"lfc", "std"} - {*effect.layers})
    if missing:
        msg = f"effect has no layers {missing}; pass what `model.predict` returns, or a number."
        raise SchemaError(msg)
    effect = align_genes(effect, list(names))
    conditions = condition_names(effect)
    for i, condition in enumerate(conditions):
        lfc, std = (np.asarray(effect.layers[layer][i], np.float64) for layer in ("lfc", "std"))
        yield condition, lfc, std


def _found(
    lfc: Floats, std: Floats, noise: _Noise, *, n_cells: int, n_blocks: int, level: float
) -> dict[str, Floats | float]:
    """Return the standard error, degrees of freedom and power of a test.

    The estimated variance is a chi-squared variable, at whose quantiles the normal law of the
    change is looked at. A predicted effect has its own normal law, of which the variance is added.
    """
    sampling = noise.spread * (1 / n_cells + 1 / noise.n_control)
    variance = (noise.between + sampling) / n_blocks
    df = min(n_blocks - 1 + noise.prior_df, (n_blocks - 1) * noise.n_tested)
    quantiles = chi2.ppf((np.arange(_N_POINTS) + 0.5) / _N_POINTS, df)[:, None] / df
    needed = student.isf(level / 2, df) * np.sqrt(quantiles * variance)
    spread = np.sqrt(variance + std**2)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = ndtr((lfc - needed) / spread) + ndtr((-lfc - needed) / spread)
    found = np.where(sampling > 0, found.mean(axis=0), np.nan)
    return {"se": np.sqrt(variance), "df": float(df), "power": found}
