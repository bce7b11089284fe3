"""Which perturbations have like effects, and groups of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import pandas as pd

from scvi_perturb._checks import checked
from scvi_perturb._core import SchemaError
from scvi_perturb.data.request import RequestRow
from scvi_perturb.predictors.request import request_frame
from scvi_perturb.tl._populations import EffectGroups

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_perturb.data.condition import ScreenKeys

    Floats = NDArray[np.float64]

Likeness = Literal["correlation", "cosine"]

#: Standard deviations of noise by which the squared length of an effect must exceed it.
_TOLD: Final = 2.0


@checked
def perturbation_similarity(
    data: AnnData,
    *,
    keys: ScreenKeys | None = None,
    metric: Likeness = "correlation",
    block_key: str | None = None,
    level: float = 0.9,
    n_boot: int = 50,
    seed: int | None = 0,
) -> pd.DataFrame:
    """Say how alike the effects of perturbations are, freed of noise.

    Noise makes effects look less alike than they are, and that of a common control more. Both are
    taken out: squared lengths and products of effects are reduced by what noise adds to them.

    Parameters
    ----------
    data
        Cells with raw counts, control cells among them; or what `predict` returns, whose effects
        are taken as they are.
    keys
        Where the screen holds its conditions; None takes what `pp.harmonize` recorded or writes.
        With `context` named, each context is compared too.
    metric
        Correlation over genes, or cosine.
    block_key
        Column of independent repeats, such as donors: noise is then the spread between them, and
        not that of cells.
    level
        Coverage of the intervals.
    n_boot
        Draws of cells, blocks, or predicted effects, which noise and intervals are taken from. They
        are held in memory: draws x conditions x genes.
    seed
        Seed of the draws.

    Returns
    -------
    pandas.DataFrame
        One row for each two conditions: `first` and `second`, labels that name what differs between
        rows of `data`; `similarity`, -1 to 1, with `lower` and `upper`; `observed`, with the noise;
        `reliability_first` and `reliability_second`, the share of the squared length of the effect
        that is not noise. `similarity` is NaN where one of the effects is not told from noise: its
        squared length is within two standard deviations of that of noise.

    Raises
    ------
    SchemaError
        If there are fewer than two perturbed conditions, or no controls.

    References
    ----------
    Spearman, The proof and measurement of association between two things, American Journal of
    Psychology 1904: correlation freed of noise.
    """
    from scipy import stats

    effects = _Effects.of(data, keys, metric=metric, block_key=block_key, n_boot=n_boot, seed=seed)
    similarity, reliability = effects.similarity(effects.products())
    spread = np.stack([effects.similarity(drawn)[0] for drawn in effects.drawn_products()])
    known = np.isfinite(similarity) & np.isfinite(spread).any(axis=0)
    quantiles = np.full((2, *similarity.shape), np.nan)
    quantiles[:, known] = np.nanquantile(spread[:, known], [0.1587, 0.8413], axis=0)
    n_blocks = effects.n_blocks
    half = (
        stats.t.ppf((1 + level) / 2, n_blocks - 1 if n_blocks else np.inf)
        * np.diff(quantiles, axis=0)[0]
        / 2
    )
    observed = effects.similarity(effects.values @ effects.values.T)[0]
    i, j = np.triu_indices(len(effects.labels), k=1)
    labels = np.asarray(effects.labels, dtype=object)
    return pd.DataFrame(
        {
            "first": labels[i],
            "second": labels[j],
            "similarity": similarity[i, j],
            "lower": np.clip(similarity - half, -1, 1)[i, j],
            "upper": np.clip(similarity + half, -1, 1)[i, j],
            "observed": observed[i, j],
            "reliability_first": reliability[i],
            "reliability_second": reliability[j],
        }
    )


@checked
def cluster_perturbations(
    data: AnnData,
    *,
    keys: ScreenKeys | None = None,
    metric: Likeness = "correlation",
    block_key: str | None = None,
    threshold: float = 0.5,
    n_clusters: int | None = None,
    n_boot: int = 50,
    seed: int | None = 0,
) -> pd.DataFrame:
    """Group perturbations by the likeness of their effects, and say how stable groups are.

    Average linkage on one minus :func:`perturbation_similarity`. A perturbation whose effect is not
    told from noise is alone. To group by features, before anything is measured, see
    :func:`scvi_perturb.features.cluster_perturbations`.

    Parameters
    ----------
    data, keys, metric, block_key
        As for :func:`perturbation_similarity`.
    threshold
        Mean similarity that joins two groups.
    n_clusters
        Number of groups, in place of `threshold`.
    n_boot
        Draws for the noise, and genes drawn with replacement for `stability`.
    seed
        Seed of both.

    Returns
    -------
    pandas.DataFrame
        One row a condition, in the order of the tree: its columns under the names of `data`;
        `label`, as in :func:`perturbation_similarity`; `cluster`, "cluster_0" being the largest;
        `stability`, the mean Jaccard index of its group and the most similar one of the groups made
        from genes that were drawn again: above 0.75 a group is stable, below 0.5 it is not;
        `reliability`.

    Raises
    ------
    SchemaError
        As :func:`perturbation_similarity`.
    ValueError
        If `n_clusters` is above the number of conditions.

    References
    ----------
    Hennig, Cluster-wise assessment of cluster stability, Computational Statistics & Data Analysis
    2007.
    """
    effects = _Effects.of(data, keys, metric=metric, block_key=block_key, n_boot=n_boot, seed=seed)
    n = len(effects.labels)
    if n_clusters is not None and n_clusters > n:
        msg = f"n_clusters={n_clusters} is above the number of conditions, {n}."
        raise ValueError(msg)
    similarity, reliability = effects.similarity(effects.products())
    found, order = _clusters(similarity, threshold, n_clusters)
    rng = np.random.default_rng(seed)
    n_genes = effects.values.shape[1]
    overlap = np.zeros(n)
    for _ in range(n_boot):
        weight = rng.multinomial(n_genes, np.full(n_genes, 1 / n_genes))
        again, _ = effects.similarity((effects.values * weight) @ effects.values.T - effects.noise)
        overlap += _overlap(found, _clusters(again, threshold, n_clusters)[0])
    table = effects.obs.assign(
        label=effects.labels,
        cluster=[f"cluster_{k}" for k in found],
        stability=overlap / n_boot,
        reliability=reliability,
    )
    return table.iloc[order].reset_index(drop=True)


@dataclass(frozen=True)
class _Effects:
    """Effects of all conditions, and what noise adds to their products.

    `labels`, `obs`: Names, and the columns of the condition and context, of each row. `values`:
    Effects, centred over genes for a correlation, `(n, n_genes)`. `off`: Draws around them,
    `(n_draws, n, n_genes)`. `noise`: What noise adds to their products, `(n, n)`. `noiseless`:
    Whether effects are predictions, which hold none. `n_blocks`: Blocks that draws rest on.
    """

    labels: list[str]
    obs: pd.DataFrame
    values: Floats
    off: Floats
    noise: Floats
    noiseless: bool
    n_blocks: int | None

    @classmethod
    def of(
        cls,
        data: AnnData,
        keys: ScreenKeys | None,
        *,
        metric: str,
        block_key: str | None,
        n_boot: int,
        seed: int | None,
    ) -> _Effects:
        populations = EffectGroups.of(data, keys, block_key=block_key, seed=seed)
        controls = {context for what, context in populations.rows if what.is_control}
        treated: dict[tuple[str | None, ...], list[RequestRow]] = {}
        for what, context in populations.rows:
            if not what.is_control and (populations.is_predicted or context in controls):
                treated.setdefault(context, []).append(RequestRow(what, context))
        rows = [row for own in treated.values() for row in own]
        if len(rows) < 2:
            msg = f"Found {len(rows)} perturbed conditions with controls; expected at least two."
            raise SchemaError(msg)
        values, off, n_blocks = [], [], None
        for context, own in treated.items():
            effect, draws, n_blocks = populations.draws([r.condition for r in own], context, n_boot)
            values.append(effect)
            off.append(draws - effect)
        effects, around = np.concatenate(values), np.concatenate(off, axis=1)
        if metric == "correlation":
            effects = effects - effects.mean(axis=1, keepdims=True)
            around = around - around.mean(axis=2, keepdims=True)
        noise = np.mean([one @ one.T for one in around], axis=0)
        if populations.is_predicted:
            noise = np.zeros_like(noise)
        obs = request_frame(rows, populations.keys)
        return cls(_labels(obs), obs, effects, around, noise, populations.is_predicted, n_blocks)

    @cached_property
    def spread(self) -> Floats:
        """Standard deviation of the squared length of noise, `(n,)`."""
        lengths = np.einsum("rng,rng->rn", self.off, self.off)
        return np.asarray(lengths.std(axis=0))

    def products(self) -> Floats:
        """Return the products of all effects without their noise, `(n, n)`."""
        made: Floats = self.values @ self.values.T - self.noise
        return made

    def drawn_products(self) -> list[Floats]:
        """Return the same of each draw, which holds the noise twice."""
        added = np.mean([one @ one.T for one in self.off], axis=0)
        drawn = (self.values + one for one in self.off)
        return [one @ one.T - self.noise - added for one in drawn]

    def similarity(self, products: Floats) -> tuple[Floats, Floats]:
        """Return similarities, NaN of what is mostly noise, and the reliability of each effect."""
        squares = np.diag(products)
        whole = squares + np.diag(self.noise)
        reliability = np.divide(squares, whole, out=np.zeros(len(whole)), where=whole > 0)
        length = np.sqrt(np.where(squares > _TOLD * self.spread, squares, np.nan))
        made = np.clip(products / np.outer(length, length), -1, 1)
        return made, np.clip(reliability, 0.0, 1.0)


def _labels(obs: pd.DataFrame) -> list[str]:
    """Return what differs between rows, in words."""
    kept = [column for column in obs if obs[column].nunique() > 1] or [*obs.columns[:1]]
    return [", ".join(map(str, row)) for row in obs[kept].itertuples(index=False)]


def _clusters(
    similarity: Floats, threshold: float, n_clusters: int | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the cluster of each row, 0 the largest, and the order of the tree."""
    from scipy.cluster.hierarchy import average, fcluster, leaves_list
    from scipy.spatial.distance import squareform

    distance = 1 - np.nan_to_num(similarity, nan=0.0)
    np.fill_diagonal(distance, 0.0)
    tree = average(squareform(distance, checks=False))
    if n_clusters is None:
        found = fcluster(tree, 1 - threshold, "distance")
    else:
        found = fcluster(tree, n_clusters, "maxclust")
    sizes = np.bincount(found)
    rank = np.argsort(np.argsort(-sizes, kind="stable"), kind="stable")
    return rank[found].astype(np.int64), leaves_list(tree).astype(np.int64)


def _overlap(found: NDArray[np.int64], again: NDArray[np.int64]) -> Floats:
    """Return the Jaccard index of each row's cluster and the most similar one made again."""
    table = pd.crosstab(found, again).to_numpy()
    either = table.sum(axis=1, keepdims=True) + table.sum(axis=0) - table
    made: Floats = (table / either).max(axis=1)[found]
    return made
