"""Which gene sets an effect moves."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scvi_perturb._checks import checked
from scvi_perturb._core import SchemaError
from scvi_perturb.data.request import RequestRow
from scvi_perturb.features.genes import read_gmt
from scvi_perturb.predictors.request import request_frame
from scvi_perturb.tl._populations import EffectGroups

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_perturb.data.condition import ScreenKeys

    Floats = NDArray[np.float64]


@checked
def enrichment(
    data: AnnData,
    gene_sets: Mapping[str, Collection[str]] | str | Path,
    *,
    keys: ScreenKeys | None = None,
    block_key: str | None = None,
    min_size: int = 5,
    level: float = 0.9,
    n_boot: int = 50,
    seed: int | None = 0,
) -> pd.DataFrame:
    """Say which gene sets each condition moves more than the other genes, with intervals.

    The univariate linear model of decoupler (`ulm`): effects of all genes are regressed on being in
    a set. Its slope is the mean effect in the set minus that of the other genes, and the noise of
    the effects gives it an interval.

    Parameters
    ----------
    data
        Cells with raw counts, control cells among them; or what `predict` returns.
    gene_sets
        Genes of each set by its name, or a GMT file. Genes can have weights, {"IL6": 1.0, "IL10":
        -1.0}; the slope is then that of effects on weights.
    keys
        Where the screen holds its conditions; None takes what `pp.harmonize` recorded or writes.
        With `context` named, each context is a row of its own.
    block_key
        Column of independent repeats, such as donors, whose spread then makes the intervals.
    min_size
        Sets with fewer genes in `data` are left out.
    level
        Coverage of the intervals.
    n_boot
        Draws of the effects, made as by :func:`interactions`.
    seed
        Seed of the draws.

    Returns
    -------
    pandas.DataFrame
        One row a condition and set, the largest `score` of a condition first: the condition and
        context under the names of `data`, `gene_set`, `n_genes` in the data; `shift`, the slope,
        natural log, with `std`, `lower` and `upper`; `score`, the t-value of `ulm`, with
        `p_value` and `q_value` over the sets of a condition (Benjamini-Hochberg).

    Raises
    ------
    SchemaError
        If no set is large enough, or there are no perturbed conditions with controls.

    Notes
    -----
    The interval is about noise: whether new cells would show the shift. The p-value takes genes as
    independent observations, and is too small where those of a set move together in all cells.
    Read both.

    References
    ----------
    Badia-i-Mompel et al., decoupleR: ensemble of computational methods to infer biological
    activities from omics data, Bioinformatics Advances 2022.
    """
    from scipy import stats

    populations = EffectGroups.of(data, keys, block_key=block_key, seed=seed)
    names, weights = _weights(gene_sets, populations.genes, min_size)
    n_members = (weights != 0).sum(axis=0)
    centred = weights - weights.mean(axis=0)
    slope = centred / (centred**2).sum(axis=0)
    controls = {context for what, context in populations.rows if what.is_control}
    asked = [
        RequestRow(what, context)
        for what, context in populations.rows
        if not what.is_control and (populations.is_predicted or context in controls)
    ]
    if not asked:
        msg = "Found no perturbed condition with control cells in its context; expected one."
        raise SchemaError(msg)
    tables = []
    for row in asked:
        effects, draws, n_blocks = populations.draws([row.condition], row.context, n_boot)
        shift = effects[0] @ slope
        std = (draws[:, 0] @ slope).std(axis=0, ddof=1)
        half = stats.t.ppf((1 + level) / 2, n_blocks - 1 if n_blocks else np.inf) * std
        score, p_value = _ulm(effects[0], centred)
        table = pd.DataFrame({"gene_set": names, "n_genes": n_members, "shift": shift, "std": std})
        table = table.assign(lower=shift - half, upper=shift + half, score=score, p_value=p_value)
        table["q_value"] = stats.false_discovery_control(p_value)
        tables.append(table.sort_values("score", ascending=False, kind="stable"))
    head = request_frame(asked, populations.keys)
    repeated = head.iloc[np.repeat(np.arange(len(asked)), len(names))].reset_index(drop=True)
    return pd.concat([repeated, pd.concat(tables, ignore_index=True)], axis=1)


def _weights(
    gene_sets: Mapping[str, Collection[str]] | str | Path, genes: pd.Index, min_size: int
) -> tuple[list[str], Floats]:
    """Return the sets that are large enough, and their weights, `(n_genes, n_sets)`."""
    sets = read_gmt(gene_sets) if isinstance(gene_sets, str | Path) else gene_sets
    found = {}
    for name, members in sets.items():
        weighted = members if isinstance(members, Mapping) else dict.fromkeys(members, 1.0)
        own = genes.map(weighted).to_numpy(np.float64, na_value=0.0)
        if min_size <= (own != 0).sum() < len(genes):
            found[name] = own
    if not found:
        some = next(iter(next(iter(sets.values()), ())), None)
        msg = (
            f"None of {len(sets)} sets has {min_size} genes of the data. The data have such as "
            f"{list(genes[:3])}, the sets such as {some!r}: use the same names, or lower min_size."
        )
        raise SchemaError(msg)
    return list(found), np.column_stack(list(found.values()))


def _ulm(effect: Floats, centred: Floats) -> tuple[Floats, Floats]:
    """Return the t-value of each set's slope and its p-value; 0 and 1 where nothing changes."""
    from scipy import stats

    y = effect - effect.mean()
    df = len(y) - 2
    length = np.sqrt((y @ y) * (centred**2).sum(axis=0))
    r = np.divide(y @ centred, length, out=np.zeros(len(length)), where=length > 0)
    score = r * np.sqrt(df / np.maximum(1 - r**2, np.finfo(float).eps))
    return score, 2 * stats.t.sf(np.abs(score), df)
