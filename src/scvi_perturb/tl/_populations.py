"""Effects of conditions with draws of their noise, from measured cells or from predictions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
from scipy import sparse

from scvi_perturb._core import TARGET_SUM, SchemaError, drawn_seed, warn
from scvi_perturb.data.condition import Condition, default_keys, row_codes
from scvi_perturb.data.condition_table import encode_obs
from scvi_perturb.predictors.request import context_labels, read_chunks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_perturb.data.condition import ScreenKeys
    from scvi_perturb.data.request import Context

    Floats = NDArray[np.float64]
    Group = tuple[Condition, Context]

#: Cells that a group needs: draws of fewer do not show the error of their mean.
FEWEST_CELLS: Final = 10


def is_predicted(data: AnnData) -> bool:
    """Whether AnnData holds effects, as `predict` returns them, and not cells."""
    return "lfc" in data.layers


@dataclass
class EffectGroups:
    """Groups of rows, a group being a condition in a context: of cells, or of predicted effects.

    `data`: The cells, or what `predict` returned. `keys`: Where conditions, contexts and counts
    are. `rows`: Rows of each group. `blocks`: Block of each cell, `(n_cells,)`, or None. `seed`: Of
    the draws.
    """

    data: AnnData
    keys: ScreenKeys
    rows: dict[Group, NDArray[np.int64]]
    blocks: NDArray[np.int64] | None
    seed: int
    kept: dict[Group, NDArray[np.float32]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        data: AnnData,
        keys: ScreenKeys | None,
        *,
        block_key: str | None = None,
        min_cells: int = FEWEST_CELLS,
        seed: int | None = 0,
    ) -> EffectGroups:
        """Find the groups; those of fewer cells are left out with a warning.

        Raises `SchemaError`: If a column is absent or has missing labels, a condition is predicted
        twice, the standard errors of predictions are missing, or there are no control cells.
        """
        keys = keys or default_keys(data)
        predicted = is_predicted(data)
        columns = [*keys.context, *([block_key] if block_key else [])]
        for column in columns:
            _check_labels(data.obs, column)
        codes, table = encode_obs(data.obs, keys, require_control=not predicted)
        first, context = row_codes(data.obs, keys.context)
        labels = context_labels(data.obs.iloc[first], keys.context)
        pairs, group = np.unique(codes * len(labels) + context, return_inverse=True)
        order = np.argsort(group, kind="stable")
        parts = np.split(order, np.cumsum(np.bincount(group))[:-1])
        rows = {
            (table.conditions[pair // len(labels)], labels[pair % len(labels)]): part
            for pair, part in zip(pairs, parts, strict=True)
        }
        if predicted:
            _check_predicted(data, rows, block_key)
        else:
            rows = _large(rows, min_cells)
        blocks = row_codes(data.obs, [block_key])[1] if block_key else None
        return cls(data, keys, rows, blocks, drawn_seed(seed))

    @property
    def is_predicted(self) -> bool:
        """Whether the rows are effects, and not cells."""
        return is_predicted(self.data)

    @property
    def genes(self) -> pd.Index:
        """Names of the genes."""
        return pd.Index(self.data.var_names.astype(str))

    def n_cells(self, group: Group) -> int:
        """Return the number of cells of a group; of predictions, 0."""
        return 0 if self.is_predicted else len(self.rows[group])

    def counts(self, group: Group) -> sparse.csr_matrix:
        """Return the raw counts of a group's cells."""
        parts = [rows for _, rows in read_chunks(self.data, self.keys.layer, self.rows[group])]
        return sparse.csr_matrix(sparse.vstack([sparse.csr_matrix(part) for part in parts]))

    def draws(
        self, conditions: Sequence[Condition], context: Context, n_draws: int
    ) -> tuple[Floats, Floats, int | None]:
        """Return effects and draws around them, and how many blocks these rest on.

        Of cells, an effect is the change of the pseudobulk profile from control in the same
        context, and draws are of the bootstrap: over cells, or over blocks, of which all conditions
        get the same. The noise of control is the same for all conditions. Of predictions, draws are
        normal with the standard error that was stated, one gene independent of the others.

        Returns effects, `(n_conditions, n_genes)`, natural logarithm; draws, `(n_draws,
        n_conditions, n_genes)`; and the number of blocks, or None.
        """
        groups = [(condition, context) for condition in conditions]
        if self.is_predicted:
            rows = [int(self.rows[group][0]) for group in groups]
            effects = _dense(self.data.layers["lfc"][rows])
            std = _dense(self.data.layers["std"][rows])
            own = [np.random.default_rng([self.seed, row]) for row in rows]
            noise = np.stack([rng.standard_normal((n_draws, std.shape[1])) for rng in own], axis=1)
            return effects, effects + std * noise, None
        groups = [(Condition(), context), *groups]
        if self.blocks is None:
            drawn = np.stack([self._bootstrap(group, n_draws) for group in groups], axis=1)
            changes = drawn[:, 1:].astype(np.float64) - drawn[:, :1]
            return changes[0], changes[1:], None
        return self._over_blocks(groups, n_draws)

    def _bootstrap(self, group: Group, n_draws: int) -> NDArray[np.float32]:
        """Return the profile of a group and those of cells drawn with replacement."""
        if group not in self.kept:
            counts = self.counts(group)
            n = counts.shape[0]
            # Its own stream: the draws of a group do not depend on what else is asked.
            rng = np.random.default_rng([self.seed, int(self.rows[group][0])])
            weight = np.vstack([np.ones(n), rng.multinomial(n, np.full(n, 1 / n), size=n_draws)])
            self.kept[group] = _profiles(np.asarray(weight @ counts)).astype(np.float32)
        drawn = self.kept[group]
        if len(group[0].components) > 1:  # asked once
            del self.kept[group]
        return drawn

    def _over_blocks(self, groups: Sequence[Group], n_draws: int) -> tuple[Floats, Floats, int]:
        """Return mean changes over blocks that all groups are in, and those of drawn blocks."""
        assert self.blocks is not None
        of_group = [set(self.blocks[self.rows[group]].tolist()) for group in groups]
        common = sorted(set.intersection(*of_group))
        n = len(common)
        if n < 2:
            msg = (
                f"Found {n} blocks with control, {', '.join(str(g[0]) for g in groups[1:])}; "
                "expected at least two. Name another block_key, or none to draw cells."
            )
            raise SchemaError(msg)
        changes = np.empty((n, len(groups) - 1, self.data.n_vars))
        profiles = [self._block_profiles(group, common) for group in groups]
        for i, profile in enumerate(profiles[1:]):
            changes[:, i] = profile - profiles[0]
        rng = np.random.default_rng(self.seed)
        weight = rng.multinomial(n, np.full(n, 1 / n), size=n_draws) / n
        mean = changes.mean(axis=0)
        # The bootstrap of a mean of n is too narrow by the factor that this mends.
        off = np.tensordot(weight, changes - mean, axes=1) * np.sqrt(n / (n - 1))
        return mean, mean + off, n

    def _block_profiles(self, group: Group, blocks: Sequence[int]) -> Floats:
        """Return the profile of a group in each block, `(n_blocks, n_genes)`."""
        assert self.blocks is not None
        own = self.blocks[self.rows[group]]
        member = sparse.csr_matrix((own == np.asarray(blocks)[:, None]).astype(np.float64))
        return _profiles(np.asarray((member @ self.counts(group)).todense()))


def influences(counts: sparse.csr_matrix, weights: Floats, library: Floats) -> Floats:
    """Return by how much each cell moves the weighted sums of a profile, `(n_cells, n_sums)`.

    To first order, of the profile of summed counts. Genes vary together, so that the variance of a
    sum does not follow from those of genes. `weights`: `(n_genes, n_sums)`. `library`: Library
    sizes, `(n_cells,)`.
    """
    share = np.asarray(counts.sum(axis=0), np.float64).ravel() / library.sum()
    slope = (TARGET_SUM / (1 + TARGET_SUM * share) / library.sum())[:, None] * weights
    made: Floats = counts @ slope - np.outer(library, share @ slope)
    return made


def _profiles(sums: Floats) -> Floats:
    """Return `log1p` of counts per ten thousand of sums of counts, `(n, n_genes)`."""
    made: Floats = np.log1p(TARGET_SUM * sums / np.maximum(sums.sum(axis=1, keepdims=True), 1.0))
    return made


def _dense(values: Any) -> Floats:  # noqa: ANN401
    return np.asarray(values.toarray() if sparse.issparse(values) else values, np.float64)


def stated_effects(data: AnnData) -> tuple[Floats, Floats]:
    """Return predicted effects and their standard errors, each `(n, n_genes)`.

    Raises `SchemaError`: If errors are missing, or values are not finite.
    """
    if "std" not in data.layers:
        msg = "Layer 'std' is missing, so errors are unknown; pass what `model.predict` returns."
        raise SchemaError(msg)
    lfc, std = (_dense(data.layers[name]) for name in ("lfc", "std"))
    wrong = ~(np.isfinite(lfc) & np.isfinite(std) & (std >= 0)).all(axis=1)
    if wrong.any():
        msg = (
            f"Layers 'lfc' and 'std' hold values that are not finite, or errors below 0, in "
            f"{int(wrong.sum())} of {len(lfc)} rows, the first {data.obs_names[wrong][0]!r}. Drop "
            "these rows, or ask a model that states its errors."
        )
        raise SchemaError(msg)
    return lfc, std


def _large(rows: dict[Group, NDArray[np.int64]], least: int) -> dict[Group, NDArray[np.int64]]:
    """Return the groups that have enough cells; warn of the others."""
    few = [" of ".join([str(what), *map(str, context)]) for (what, context), own in rows.items()
           if len(own) < least]  # fmt: skip
    if few:
        warn(f"{len(few)} conditions, such as {few[0]}, have fewer than {least} cells, too few to "
             "show an error; left out.")  # fmt: skip
    return {group: own for group, own in rows.items() if len(own) >= least}


def _check_labels(obs: pd.DataFrame, column: str) -> None:
    if column not in obs:
        msg = f"obs has no column {column!r}; it has {sorted(map(str, obs.columns))}."
        raise SchemaError(msg)
    if n_missing := int(obs[column].isna().sum()):
        msg = f"obs[{column!r}] is missing for {n_missing} of {len(obs)} rows; label or drop them."
        raise SchemaError(msg)


def _check_predicted(
    data: AnnData, rows: dict[Group, NDArray[np.int64]], block_key: str | None
) -> None:
    if block_key is not None:
        msg = f"block_key={block_key!r} is for measured cells; predictions have no blocks."
        raise SchemaError(msg)
    stated_effects(data)
    twice = [f"{condition} {context}" for (condition, context), own in rows.items() if len(own) > 1]
    if twice:
        msg = (
            f"{twice[0]} is predicted in several rows; expected one. If these differ in a column, "
            "name it with keys=ScreenKeys(context=...)."
        )
        raise SchemaError(msg)
