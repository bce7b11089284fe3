"""Conditions beside their control cells, block by block, with the variance between cells."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from scvi_perturb._core import UNS_KEY, SchemaError, warn
from scvi_perturb.data.condition import as_labels, default_keys, row_codes
from scvi_perturb.data.reader import align_genes
from scvi_perturb.predictors.profiles import TrainingProfiles
from scvi_perturb.predictors.request import library_sizes, read_counts
from scvi_perturb.tl._cells import record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from scvi_perturb.data.condition import Condition, ScreenKeys
    from scvi_perturb.data.request import Context

    Floats = NDArray[np.float64]

#: Control cells whose variance is added to that of a condition, which may have few cells.
_PRIOR_CELLS: Final = 10
#: Columns of `obs` that sampled cells have.
_REFERENCE: Final = "reference_cell"


@dataclass(frozen=True, slots=True)
class BlockContrast:
    """A condition beside the control cells of the same context, in each block that has both.

    `changes`: Profile of the condition minus that of control, `(n_blocks, n_genes)`, natural log;
    the bias of a logarithm to second order is taken off. `n_cells`, `n_control`: Of each block,
    `(n_blocks,)`. `spread`, `control_spread`: Variance between cells of what one cell adds to the
    profile, pooled over blocks, `(n_genes,)`. `slope`: By how much the profile moves with the
    logarithm of a gene's share, from 0 without counts to 1, mean of both sides, `(n_genes,)`.
    `mean_count`: Counts a pseudobulk, over both sides, `(n_genes,)`.
    """

    condition: str
    context: Context
    blocks: tuple[str, ...]
    changes: Floats
    n_cells: NDArray[np.int64]
    n_control: NDArray[np.int64]
    spread: Floats
    control_spread: Floats
    slope: Floats
    mean_count: Floats

    @property
    def sampling(self) -> Floats:
        """Variance of each change from the sampling of cells, `(n_blocks, n_genes)`."""
        made: Floats = self.spread / self.n_cells[:, None]
        return made + self.control_spread / self.n_control[:, None]

    def columns(self, keys: Sequence[str]) -> dict[str, str]:
        """Return the condition and its context by the columns of a table."""
        context = {key: str(label) for key, label in zip(keys, self.context, strict=True)}
        return {"condition": self.condition, **context}


def context_columns(keys: ScreenKeys, block_key: str | None) -> tuple[str, ...]:
    """Return the columns of contexts that are no blocks."""
    return tuple(column for column in keys.context if column != block_key)


def condition_names(effects: AnnData) -> list[str]:
    """Return the name of the condition of each row that `predict` returned.

    The context is part of it where there are several rows of one condition.
    """
    columns = [name for name in effects.obs if name not in ("novelty", "support")]
    if not columns:
        return [str(name) for name in effects.obs_names]
    obs = effects.obs[columns]
    first, *others = columns
    varied = [name for name in others if obs[name].nunique() > 1]
    return [
        ", ".join([str(row[0]), *(f"{n} {v}" for n, v in zip(varied, row[1:], strict=True))])
        for row in obs[[first, *varied]].itertuples(index=False, name=None)
    ]


def pseudobulks(adata: AnnData, *, block_key: str | None, keys: ScreenKeys) -> TrainingProfiles:
    """Return the sums of counts of every condition, context and block, and what cells vary.

    Raises `SchemaError`: If a column is absent, counts are not raw, or there are no controls.
    """
    blocks = () if block_key is None else (block_key,)
    library = None if keys.library is None else library_sizes(adata, keys.library)
    return TrainingProfiles.from_screen(
        adata,
        None,
        keys=replace(keys, context=(*context_columns(keys, block_key), *blocks)),
        kind="pseudobulk",
        with_variances=True,
        library=library,
    )


def contrasts(profiles: TrainingProfiles, *, n_context: int, min_cells: int) -> list[BlockContrast]:
    """Return every condition that has a block with enough cells on both sides.

    `n_context`: Labels of a group that are its context; the block comes after them, if there is
    one. Warns of pseudobulks that are left out.
    """
    enough = profiles.n_cells >= min_cells
    controls = {own: i for own, i in profiles.control_groups.items() if enough[i]}
    pairs: dict[tuple[Condition, Context], list[tuple[int, int]]] = {}
    n_left_out = 0
    for i, (what, own) in enumerate(zip(profiles.conditions, profiles.contexts, strict=True)):
        if what.is_control:
            continue
        if enough[i] and own in controls:
            pairs.setdefault((what, own[:n_context]), []).append((i, controls[own]))
        else:
            n_left_out += 1
    if n_left_out:
        warn(
            f"{n_left_out} pseudobulks were left out: they, or the control cells beside them, have "
            f"fewer than min_cells={min_cells} cells."
        )
    return [_contrast(profiles, what, own, rows) for (what, own), rows in pairs.items()]


def _contrast(
    profiles: TrainingProfiles, what: Condition, context: Context, rows: list[tuple[int, int]]
) -> BlockContrast:
    treated, control = np.array(rows).T
    n_cells, n_control = profiles.n_cells[treated], profiles.n_cells[control]
    base = spread_of_cells(profiles, control)
    weight = n_cells.sum() / (n_cells.sum() + _PRIOR_CELLS)
    spread = weight * spread_of_cells(profiles, treated) + (1 - weight) * base
    changes = np.stack([profiles.profile([i]) - profiles.profile([j]) for i, j in rows])
    # The mean of log1p(t p) is below that of its argument by half of its variance.
    changes += spread / (2 * n_cells[:, None]) - base / (2 * n_control[:, None])
    return BlockContrast(
        condition=str(what),
        context=context,
        blocks=tuple(
            str(profiles.contexts[i][-1]) if profiles.contexts[i] else "" for i in treated
        ),
        changes=changes,
        n_cells=n_cells,
        n_control=n_control,
        spread=spread,
        control_spread=base,
        slope=np.mean([-np.expm1(-profiles.profile(side)) for side in (treated, control)], axis=0),
        mean_count=(profiles.sums[treated] + profiles.sums[control]).mean(axis=0) / 2,
    )


def spread_of_cells(profiles: TrainingProfiles, groups: NDArray[np.int64]) -> Floats:
    """Return the variance between cells of what one cell adds to a profile, `(n_genes,)`."""
    n = profiles.n_cells[groups].astype(np.float64)
    variances = profiles.variances
    if variances is None or n.max() < 2:
        msg = "Every group has a single cell; expected some with two or more."
        raise SchemaError(msg)
    made: Floats = ((n - 1) * n) @ variances[groups].astype(np.float64) / (n - 1).sum()
    return made


def real_units(
    adata: AnnData, reference: AnnData | None, *, block_key: str | None, keys: ScreenKeys | None
) -> tuple[AnnData, ScreenKeys, bool]:
    """Return cells that count as observations, where their columns are, and whether any is sampled.

    Sampled cells are summed by the real cell that they start from, once a condition. Control cells
    and the labels of blocks are taken from the reference where the cells have none.

    Raises `SchemaError`: If something is missing; the message says what to pass.
    """
    keys = keys or default_keys(adata if reference is None else reference)
    refuse_tables(adata)
    sampled = _REFERENCE in adata.obs
    obs = _with_block(adata, reference, block_key)
    has_control = (as_labels(_column(obs, keys.perturbation)) == keys.control).any()
    if not sampled and has_control:
        if reference is not None:
            msg = "adata has control cells of its own, so `reference` has no use; leave one out."
            raise SchemaError(msg)
        return adata, keys, False
    if not has_control and reference is None:
        msg = (
            f"No cell is control ({keys.control!r} in obs[{keys.perturbation!r}]). Pass the "
            f"control cells as `reference`, or sample {keys.control!r} too."
        )
        raise SchemaError(msg)
    if sampled:
        own = obs[_REFERENCE].astype(object)
        obs[_REFERENCE] = own.where(own.notna(), obs.index.to_series()).astype(str)
    else:
        obs[_REFERENCE] = obs.index.astype(str)
    context = () if block_key is None else (block_key,)
    columns = [*dict.fromkeys((*keys.obs_columns, *context)), _REFERENCE]
    columns += [] if keys.library is None else [keys.library]
    layer = None if sampled else keys.layer
    parts = [(read_counts(adata, layer, np.arange(adata.n_obs)), obs)]
    if not has_control and reference is not None:
        own = reference[as_labels(_column(reference.obs, keys.perturbation)) == keys.control]
        own = align_genes(own, list(adata.var_names))
        cells = np.arange(own.n_obs)
        labels = own.obs.assign(**{_REFERENCE: own.obs_names.astype(str)})
        parts.append((read_counts(own, keys.layer, cells, what="reference"), labels))
    made = _summed(parts, columns, keys.library)
    made.var_names = adata.var_names
    return made, replace(keys, layer=None), sampled


def refuse_tables(adata: AnnData) -> None:
    """Raise `SchemaError` for effects, and for cells of which nobody can tell what is behind."""
    if "lfc" in adata.layers:
        msg = (
            "These are effects, one row a condition, and hold no cells; pass what `model.sample` "
            "returns, or rank the effects with `tl.rank_effects`."
        )
        raise SchemaError(msg)
    recorded = adata.uns.get(UNS_KEY, {})
    if {"model", "units"} <= set(recorded) and _REFERENCE not in adata.obs:
        msg = (
            f"These cells come from {recorded['model']} and obs has no {_REFERENCE!r}, so nobody "
            "can tell how many real cells are behind them. Pass cells that `model.sample` drew "
            "from control cells, with this column."
        )
        raise SchemaError(msg)


def _column(obs: pd.DataFrame, name: str) -> pd.Series:
    if name not in obs:
        msg = f"obs has no column {name!r}; it has {sorted(map(str, obs.columns))}."
        raise SchemaError(msg)
    return obs[name]


def _with_block(adata: AnnData, reference: AnnData | None, block_key: str | None) -> pd.DataFrame:
    """Return a copy of `obs` with the blocks, those of the reference cells where it has none."""
    obs: pd.DataFrame = adata.obs.copy()
    if block_key is None or block_key in obs:
        return obs
    if _REFERENCE not in obs:
        _column(obs, block_key)
    if reference is None or block_key not in reference.obs:
        msg = (
            f"obs has no column {block_key!r}. Pass as `reference` the control cells that these "
            f"cells were sampled from, with obs[{block_key!r}]."
        )
        raise SchemaError(msg)
    place = reference.obs_names.get_indexer(obs[_REFERENCE].astype(str))
    if (place < 0).any():
        name = obs[_REFERENCE].iloc[int(np.argmax(place < 0))]
        msg = (
            f"{int((place < 0).sum())} cells start from cells that `reference` does not have, such "
            f"as {name!r}. Pass the cells that were given to `sample`, or trained on."
        )
        raise SchemaError(msg)
    obs[block_key] = reference.obs[block_key].to_numpy()[place]
    return obs


def _summed(
    parts: list[tuple[object, pd.DataFrame]], columns: list[str], library: str | None
) -> AnnData:
    """Return the sums of rows that agree in all columns but the library size."""
    frames = [obs[[c for c in columns if c in obs]].astype(object) for _, obs in parts]
    obs = pd.concat(frames, ignore_index=True).reindex(columns=columns)
    counts = sparse.vstack([sparse.csr_matrix(rows) for rows, _ in parts], format="csr")
    first, unit = row_codes(obs, [column for column in columns if column != library])
    sums = sparse.csr_matrix((np.ones(len(unit)), (unit, np.arange(len(unit))))) @ counts
    made = obs.iloc[first].set_index(pd.Index([f"unit_{i}" for i in range(len(first))]))
    if library is not None:
        made[library] = np.bincount(unit, obs[library].astype(np.float64))
    return AnnData(sums, obs=made)


def write_table(
    adata: AnnData, key_added: str, table: pd.DataFrame, facts: Mapping[str, str]
) -> None:
    """Write a table to `uns[key_added]`, and how it was made to `uns["scvi_perturb"]`."""
    if key_added == UNS_KEY:
        msg = f"key_added={key_added!r} is where this package notes what it did; choose another."
        raise SchemaError(msg)
    record(adata, "results", key_added, facts)
    adata.uns[key_added] = table
