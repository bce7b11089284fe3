"""Clusters of similar perturbations, to hold out together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scvi_perturb._checks import checked
from scvi_perturb._core import SchemaError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from scvi_perturb.features.store import PerturbationFeatures


@checked
def cluster_perturbations(
    features: PerturbationFeatures, names: Iterable[str], *, n_clusters: int | None = None
) -> dict[str, str]:
    """Cluster perturbations by their features, for `SplitOptions(groups=...)`.

    Agglomerative clustering with average linkage. The distance is that of Tanimoto, 1 - (sum of
    minima / sum of maxima), where a modality holds counts or bits (on bits it is Jaccard's), and
    else the Euclidean one on features scaled to unit variance. With several modalities, each is
    divided by its mean over pairs, and those that both perturbations have are averaged. The result
    depends neither on the order of `names` nor on chance.

    Parameters
    ----------
    features
        What is known about the perturbations.
    names
        Perturbations to cluster. One without features cannot be likened to any, and is a cluster of
        its own.
    n_clusters
        Number of clusters of those with features; None makes one for every four, at least two.
        Average linkage often gives one large cluster and many small ones: look at the sizes.

    Returns
    -------
    The cluster of each name: "cluster_0" and so on, or "alone:" and the name.

    Raises
    ------
    SchemaError
        If none of the names has features.
    ValueError
        If `n_clusters` is below 1 or above the number of perturbations with features.
    """
    asked = sorted(set(map(str, names)))
    known = [name for name in asked if name in features]
    if not known:
        msg = f"None of {asked[:5]} has features; the store has {list(features.names[:5])}."
        raise SchemaError(msg)
    n = min(len(known), max(2, len(known) // 4)) if n_clusters is None else n_clusters
    if not 1 <= n <= len(known):
        msg = (
            f"n_clusters={n} is not possible: expected 1 to {len(known)}, the names with features."
        )
        raise ValueError(msg)
    labels = np.zeros(1, np.int64)
    if len(known) > 1:
        from scipy.cluster.hierarchy import average, cut_tree

        labels = cut_tree(average(_distances(features, known)), n_clusters=n)[:, 0]
    codes, _ = pd.factorize(labels)
    clusters = {name: f"alone:{name}" for name in asked}
    return clusters | {name: f"cluster_{k}" for name, k in zip(known, codes, strict=True)}


def _distances(features: PerturbationFeatures, names: list[str]) -> NDArray[np.float64]:
    """Return distances of pairs, averaged over shared modalities; the largest where none is."""
    first, second = np.triu_indices(len(names), k=1)
    total, shared = np.zeros(len(first)), np.zeros(len(first))
    for values, present in features.table(names).values():
        both = present[first] & present[second]
        if not both.any():
            continue
        distance = _pairwise(values.astype(np.float64), present)
        scale = float(distance[both].mean())
        total += np.where(both, distance / (scale if scale > 0 else 1.0), 0.0)
        shared += both
    if not shared.any():
        return np.ones(len(first))
    mean = total / np.maximum(shared, 1.0)
    return np.where(shared > 0, mean, mean.max(initial=0.0))


def _pairwise(values: NDArray[np.float64], present: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the distance of all pairs within one modality, in the order of scipy's `pdist`."""
    from scipy.spatial.distance import pdist

    if (values >= 0).all() and (values == np.floor(values)).all():
        differ = pdist(values, "cityblock")  # sum of maxima - sum of minima
        first, second = np.triu_indices(len(values), k=1)
        sums = values.sum(axis=1)
        largest = (sums[first] + sums[second] + differ) / 2
        return np.asarray(differ / np.where(largest > 0, largest, 1.0))
    spread = values[present].std(axis=0)
    return np.asarray(pdist(values / np.where(spread > 0, spread, 1.0)))
