"""Which perturbed cells responded, and which escaped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import pandas as pd

from scvi_perturb._checks import checked
from scvi_perturb._core import TARGET_SUM, SchemaError, warn
from scvi_perturb.data.request import RequestRow
from scvi_perturb.predictors.request import library_sizes, read_counts, request_frame
from scvi_perturb.tl._blocks import refuse_tables, write_table
from scvi_perturb.tl._populations import EffectGroups

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_perturb.data.condition import Condition, ScreenKeys
    from scvi_perturb.data.request import Context

    Floats = NDArray[np.float64]

#: Parts into which cells are divided; a cell is scored by what the other parts show.
_N_FOLDS: Final = 5
#: Control cells that are looked at, for each context.
_MOST_CONTROLS: Final = 4000
#: Genes that are looked at, those with the most counts.
_MOST_GENES: Final = 2000
_LEAST_MEAN: Final = 0.02
#: Cells that a condition needs, and control cells that a block needs.
_FEWEST: Final = 10
_FEWEST_OF_BLOCK: Final = 20
#: What is averaged over: distances of responders from controls, in standard deviations of controls;
#: their spread by that of controls, whose logarithm is normal; their share.
_SHIFTS: Final = np.geomspace(0.7, 14.0, 32)
_SCALES: Final = np.geomspace(0.7, 1.7, 9)
_SCALE_SD: Final = 0.12
_SHARES: Final = (np.arange(50) + 0.5) / 50


@checked
def escapers(
    adata: AnnData,
    *,
    keys: ScreenKeys | None = None,
    block_key: str | None = None,
    threshold: float = 0.5,
    level: float = 0.9,
    key_added: str = "responded",
    seed: int | None = 0,
) -> pd.DataFrame:
    r"""Say of each perturbed cell how likely it responded, and of each condition how many did.

    A cell is scored by how far it lies along the mean change of its condition, genes in units of
    their spread. The change is that of the other four fifths of its cells and of the control cells:
    a score owes nothing to the cell's own noise. Cells that did not respond score as control cells
    do. The scores of a condition are a mixture of these and of a shifted and scaled copy of them.
    Share, shift and scale are averaged over their posterior on a grid, so that a condition
    whose responders overlap with controls gets probabilities near its share and a wide interval,
    and one that does nothing gets no responders. No model is needed.

    Parameters
    ----------
    adata
        Raw counts of measured cells, control cells among them.
    keys
        Where the screen holds its conditions; None takes what `pp.harmonize` recorded or writes.
        Each context has control cells of its own.
    block_key
        Column with batches or donors, whose differences among control cells are taken off, for
        each that has 20 control cells.
    threshold
        A cell is called a responder from this probability.
    level
        Coverage of the interval of the share.
    key_added
        Column of `obs` with the probability, NaN for control cells and where nothing was asked;
        `obs[key_added + "_class"]` is "responder", "escaper", "control" or missing;
        `obs[key_added + "_row"]` is the row of the cell's condition in the table. The table is
        written to `uns[key_added]`, how it was made to `uns["scvi_perturb"]["results"]`.
    seed
        Seed by which cells are divided.

    Returns
    -------
    pandas.DataFrame
        One row a condition and context, under the names of `adata`: `n_cells`; `n_responders`,
        cells called so; `share` of cells that responded, the posterior mean, with `lower` and
        `upper`; `separation`, distance of responders from controls in standard deviations of
        control scores; `p_response`, the probability that any cell responded.

    Raises
    ------
    SchemaError
        If a context has fewer than 30 control cells, no condition has 10 cells, `adata` holds
        effects or sampled cells, or a column that it is read from would be written over.

    Notes
    -----
    Half of the prior says that no cell of a condition responded. Where it does respond, the share
    is uniform from 0 to 1, and the logarithm of the separation uniform from 0.7 to 14.

    References
    ----------
    The question is that of Mixscape (Papalexi and others, Nature Genetics 2021). Division of cells:
    Chernozhukov and others, The Econometrics Journal 2018.
    """
    refuse_tables(adata)
    probability, row = np.full(adata.n_obs, np.nan), np.full(adata.n_obs, np.nan)
    populations = EffectGroups.of(adata, keys, block_key=block_key, min_cells=1, seed=seed)
    keys = populations.keys
    _check_columns(adata, keys, key_added)
    asked: list[RequestRow] = []
    found: list[dict[str, Any]] = []
    for context in dict.fromkeys(own for what, own in populations.rows if not what.is_control):
        conditions = _large_enough(populations, context)
        if not conditions:
            continue
        screen = _Controls.of(populations, context)
        for condition in conditions:
            rows = populations.rows[condition, context]
            scores, null = screen.scores(rows)
            mixture = _mixture(scores, null, level)
            probability[rows], row[rows] = mixture.probability, len(asked)
            asked.append(RequestRow(condition, context))
            called = int((mixture.probability >= threshold).sum())
            found.append({"n_cells": len(rows), "n_responders": called, **mixture.summary})
    if not asked:
        msg = f"No condition has {_FEWEST} cells beside control cells of its context."
        raise SchemaError(msg)
    table = request_frame(asked, keys).reset_index(drop=True)
    table = pd.concat([table, pd.DataFrame(found)], axis=1)
    facts = {"function": "escapers", "block_key": block_key or "none"}
    facts |= {"threshold": str(threshold), "seed": str(populations.seed)}
    write_table(adata, key_added, table, facts)
    adata.obs[key_added] = probability
    adata.obs[f"{key_added}_class"] = _classes(populations, probability, threshold)
    adata.obs[f"{key_added}_row"] = row
    return table


def _check_columns(adata: AnnData, keys: ScreenKeys, key_added: str) -> None:
    """Raise `SchemaError` if a library size is none, or a column would be written over."""
    if keys.library is not None:
        library_sizes(adata, keys.library)
    taken = {*keys.obs_columns, keys.batch, keys.library}
    written = [key_added, f"{key_added}_class", f"{key_added}_row"]
    if over := [column for column in written if column in taken]:
        msg = f"key_added={key_added!r} would write over obs[{over[0]!r}]; choose another."
        raise SchemaError(msg)


def _large_enough(populations: EffectGroups, context: Context) -> list[Condition]:
    """Return the conditions of a context that have enough cells; warn of the others."""
    sizes = {
        what: len(rows)
        for (what, own), rows in populations.rows.items()
        if own == context and not what.is_control
    }
    few = [str(what) for what, n in sizes.items() if n < _FEWEST]
    if few:
        warn(f"{len(few)} conditions, such as {few[0]}, have fewer than {_FEWEST} cells; left out.")
    return [what for what, n in sizes.items() if n >= _FEWEST]


def _classes(populations: EffectGroups, probability: Floats, threshold: float) -> pd.Categorical:
    names = np.full(len(probability), None, object)
    known = np.isfinite(probability)
    names[known] = np.where(probability[known] >= threshold, "responder", "escaper")
    for (what, _), rows in populations.rows.items():
        if what.is_control:
            names[rows] = "control"
    return pd.Categorical(names, categories=["responder", "escaper", "control"])


@dataclass(frozen=True)
class _Controls:
    """Control cells of one context, beside which its perturbed cells are scored.

    `populations`: All cells. `genes`: Those looked at. `blocks`: Blocks with enough control cells.
    `coefficients`: Regression of values on depth and blocks, of control cells, `(n_columns,
    n_genes)`. `scale`: Spread of a gene around it. `values`: Standardized values of control cells,
    `(n_cells, n_genes)`. `members`: Which block each is of, `(n_cells, n_blocks)`. `fold`: Part of
    each.
    """

    populations: EffectGroups
    genes: NDArray[np.intp]
    blocks: NDArray[np.int64]
    coefficients: Floats
    scale: Floats
    values: Floats
    members: Floats
    fold: NDArray[np.int64]

    @classmethod
    def of(cls, populations: EffectGroups, context: Context) -> _Controls:
        """Look at the control cells of a context."""
        rows = next(
            (
                own
                for (what, at), own in populations.rows.items()
                if what.is_control and at == context
            ),
            np.zeros(0, np.int64),
        )
        if len(rows) < 30:
            where = f" of {', '.join(map(str, context))}" if context else ""
            msg = f"Found {len(rows)} control cells{where}; expected at least 30 to compare with."
            raise SchemaError(msg)
        rng = np.random.default_rng([populations.seed, int(rows[0])])
        rows = np.sort(rng.permutation(rows)[:_MOST_CONTROLS])
        blocks = np.zeros(1, np.int64)
        if populations.blocks is not None:
            own, n_cells = np.unique(populations.blocks[rows], return_counts=True)
            blocks = own[n_cells >= _FEWEST_OF_BLOCK]
        counts = read_counts(populations.data, populations.keys.layer, rows)
        genes = _varied(counts)
        if not len(genes):
            msg = f"No gene has {_LEAST_MEAN} counts in the mean control cell; nothing can be seen."
            raise SchemaError(msg)
        values, design = _normalized(populations, rows, genes, blocks)
        coefficients: Floats = np.linalg.lstsq(design, values, rcond=None)[0].astype(np.float64)
        values -= design @ coefficients
        scale = np.maximum(values.std(axis=0), 1e-6)
        values /= scale
        return cls(
            populations,
            genes,
            blocks,
            coefficients,
            scale,
            values,
            design[:, 1:],
            rng.permutation(len(rows)) % _N_FOLDS,
        )

    def scores(self, rows: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """Return scores of the cells of a condition and of control cells.

        They are standardized: those of control cells have mean 0 in each part and block, and
        variance 1 in each part. What control cells of a part are by chance is not seen from others.
        """
        values, design = _normalized(self.populations, rows, self.genes, self.blocks)
        values = (values - design @ self.coefficients) / self.scale
        members = design[:, 1:]
        rng = np.random.default_rng([self.populations.seed, int(rows[0])])
        fold = rng.permutation(len(rows)) % _N_FOLDS
        scores, null = np.empty(len(rows)), np.empty(len(self.values))
        for part in range(_N_FOLDS):
            here, base = fold == part, self.fold == part
            direction = self._direction(values[~here], members[~here], ~base)
            scored = self.values[base] @ direction
            usual = np.linalg.lstsq(self.members[base], scored, rcond=None)[0]
            scored -= self.members[base] @ usual
            spread = max(float(scored.std()), 1e-12)
            scores[here] = (values[here] @ direction - members[here] @ usual) / spread
            null[base] = scored / spread
        return scores, null

    def _direction(self, own: Floats, members: Floats, base: NDArray[np.bool_]) -> Floats:
        """Return the change of standardized values, less what genes show by chance."""
        mix = members.mean(axis=0)
        weights = np.linalg.pinv(self.members[base]).T @ mix  # control cells as in these blocks
        change = own.mean(axis=0) - weights @ self.values[base]
        error = np.maximum(own.var(axis=0), 0.1) / len(own) + weights @ weights
        # Genes that did not move only add their noise.
        made: Floats = change * (change**2 / (change**2 + 2 * error)) ** 2
        return made


def _varied(counts: Any) -> NDArray[np.intp]:  # noqa: ANN401
    """Return the genes with the largest mean counts."""
    mean = np.asarray(counts.mean(axis=0)).ravel()
    order = np.argsort(-mean, kind="stable")[:_MOST_GENES]
    return np.sort(order[mean[order] > _LEAST_MEAN])


def _normalized(
    populations: EffectGroups,
    rows: NDArray[np.int64],
    genes: NDArray[np.intp],
    blocks: NDArray[np.int64],
) -> tuple[Floats, Floats]:
    """Return `log1p` of counts per ten thousand, `(n, n_genes)`, and depth and blocks."""
    data, keys = populations.data, populations.keys
    counts = read_counts(data, keys.layer, rows)
    if keys.library is None:
        depth = np.asarray(counts.sum(axis=1), np.float64).ravel()
    else:
        depth = library_sizes(data, keys.library)[rows]
    depth = np.maximum(depth, 1.0)
    some = counts[:, genes]
    values = np.asarray(some.toarray() if hasattr(some, "toarray") else some, np.float64)
    values = np.log1p(values * (TARGET_SUM / depth)[:, None])
    design = [np.log(depth), np.ones(len(rows))]
    if populations.blocks is not None:
        design += [populations.blocks[rows] == block for block in blocks[1:]]
    return values, np.column_stack(design).astype(np.float64)


class _Mixture(NamedTuple):
    """Probability of each cell, and what is said of all."""

    probability: Floats
    summary: dict[str, float]


def _mixture(scores: Floats, null: Floats, level: float) -> _Mixture:
    """Average responders, a shifted and scaled copy of controls beside them, over what is unknown.

    The parts of a condition owe their directions to each other, so that their evidence counts half.
    """
    density = _Density.of(null)
    base = density(scores)
    ratios = np.stack(
        [density((scores - at) / scale) / scale / base for at in _SHIFTS for scale in _SCALES]
    )
    evidence = np.stack([np.log1p(_SHARES[:, None] * (r - 1)).sum(axis=1) / 2 for r in ratios])
    prior = np.exp(-0.5 * (np.log(_SCALES) / _SCALE_SD) ** 2)
    prior = np.tile(prior / prior.sum(), len(_SHIFTS))[:, None] / len(_SHIFTS) / len(_SHARES)
    most = max(float(evidence.max()), 0.0)
    weight = prior * np.exp(evidence - most)
    responds = float(weight.sum() / (weight.sum() + np.exp(-most)))
    weight /= weight.sum()
    probability = np.zeros(len(scores))
    for which in np.flatnonzero(weight.sum(axis=1) > 1e-5):
        odds = _SHARES[:, None] * ratios[which]
        probability += weight[which] @ (odds / (1 - _SHARES[:, None] + odds))
    shifts = weight.sum(axis=1).reshape(len(_SHIFTS), -1).sum(axis=1)
    share = weight.sum(axis=0)
    places = np.append(0.0, _SHARES + _SHARES[0])
    below = (1 - responds) + responds * np.append(0.0, share.cumsum())
    ends = np.interp([(1 - level) / 2, (1 + level) / 2], below, places)
    summary = {
        "share": responds * float(share @ _SHARES),
        "lower": float(ends[0]),
        "upper": float(ends[1]),
        "separation": float(shifts @ _SHIFTS),
        "p_response": responds,
    }
    return _Mixture(responds * probability, summary)


@dataclass(frozen=True, slots=True)
class _Density:
    """Density of standardized scores: smoothed on a grid, with a wide normal law for tails."""

    places: Floats
    heights: Floats
    weight: float

    @classmethod
    def of(cls, scores: Floats) -> _Density:
        """Smooth scores by normal laws."""
        places = np.linspace(-12, 12, 1201)
        step = places[1] - places[0]
        width = 1.06 * len(scores) ** -0.2
        share = np.histogram(
            np.clip(scores, -11.9, 11.9), np.append(places - step / 2, places[-1] + step / 2)
        )[0]
        kernel = np.exp(-0.5 * (places / width) ** 2)
        heights = np.convolve(share, kernel / kernel.sum(), mode="same") / len(scores) / step
        return cls(places, heights, 1 / len(scores))

    def __call__(self, at: Floats) -> Floats:
        """Return the density at places."""
        tails = np.exp(-0.5 * (at / 3) ** 2) / np.sqrt(2 * np.pi) / 3
        known = np.interp(at, self.places, self.heights, left=0.0, right=0.0)
        made: Floats = (1 - self.weight) * known + self.weight * tails + 1e-300
        return made
