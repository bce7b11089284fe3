"""Perturbations that are alike come into one cluster."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import pdist

from scvi_perturb._core import SchemaError
from scvi_perturb.features import PerturbationFeatures, cluster_perturbations, murcko_scaffolds
from scvi_perturb.features.clusters import _distances


def parts(clusters):
    """Return the clusters as sets of names."""
    return {frozenset(n for n in clusters if clusters[n] == k) for k in clusters.values()}


@pytest.fixture
def blocks():
    """Three groups of three names with sets of their own, and one gene set shared by all."""
    names = [f"{block}{i}" for block in "abc" for i in range(3)]
    own = np.kron(np.eye(3), np.ones((3, 5)))
    own[np.arange(9), np.arange(9) % 15] = 0
    return pd.DataFrame(np.column_stack([own, np.ones(9)]), index=names)


EXPECTED = {frozenset(f"{block}{i}" for i in range(3)) for block in "abc"}


def test_blocks_are_found(blocks):
    features = PerturbationFeatures({"sets": blocks})
    clusters = cluster_perturbations(features, blocks.index, n_clusters=3)
    assert parts(clusters) == EXPECTED
    assert set(clusters.values()) == {"cluster_0", "cluster_1", "cluster_2"}
    assert cluster_perturbations(features, blocks.index[::-1], n_clusters=3) == clusters


@pytest.mark.parametrize("n", [1, 2, 5, 9])
def test_there_are_as_many_as_asked(blocks, n):
    features = PerturbationFeatures({"sets": blocks})
    assert len(parts(cluster_perturbations(features, blocks.index, n_clusters=n))) == n
    assert len(parts(cluster_perturbations(features, blocks.index))) == 2


def test_bits_by_jaccard_counts_by_tanimoto_numbers_by_euclid():
    rng = np.random.default_rng(0)
    names = list("ABCDEF")
    bits = rng.integers(0, 2, (6, 20))
    counts = rng.integers(0, 9, (6, 20))
    numbers = rng.normal(size=(6, 4)) * [1, 10, 100, 0]

    def found(values):
        return _distances(PerturbationFeatures({"m": pd.DataFrame(values, index=names)}), names)

    def scaled(distance):
        return distance / distance.mean()

    np.testing.assert_allclose(found(bits), scaled(pdist(bits.astype(bool), "jaccard")), rtol=1e-6)
    tanimoto = [
        1 - np.minimum(a, b).sum() / np.maximum(a, b).sum()
        for i, a in enumerate(counts)
        for b in counts[i + 1 :]
    ]
    np.testing.assert_allclose(found(counts), scaled(np.array(tanimoto)), rtol=1e-6)
    unit = numbers / np.where(numbers.std(axis=0) > 0, numbers.std(axis=0), 1)
    np.testing.assert_allclose(found(numbers), scaled(pdist(unit)), rtol=1e-4)


def test_modalities_are_averaged_where_both_are_there(blocks):
    rng = np.random.default_rng(1)
    other = pd.DataFrame(rng.normal(size=(9, 4)), index=blocks.index)
    other.loc["a0"] = np.nan
    both = PerturbationFeatures({"sets": blocks, "text": other})
    names = sorted(blocks.index)
    one = _distances(PerturbationFeatures({"sets": blocks}), names)
    mixed = _distances(both, names)
    first = np.triu_indices(9, k=1)[0]
    np.testing.assert_allclose(mixed[first == 0], one[first == 0])
    assert not np.allclose(mixed[first > 0], one[first > 0])


def test_names_that_share_no_modality_are_far(blocks):
    other = pd.DataFrame({"x": [1.5, 2.5]}, index=["y", "z"])
    features = PerturbationFeatures({"sets": blocks, "text": other})
    clusters = cluster_perturbations(features, features.names, n_clusters=4)
    assert parts(clusters) == {*EXPECTED, frozenset("yz")}


def test_a_name_without_features_stands_alone(blocks):
    features = PerturbationFeatures({"sets": blocks})
    clusters = cluster_perturbations(features, [*blocks.index, "new"], n_clusters=3)
    assert clusters["new"] == "alone:new"
    assert len(parts(clusters)) == 4
    assert cluster_perturbations(features, ["a0", "new"])["a0"] == "cluster_0"


def test_messages(blocks):
    features = PerturbationFeatures({"sets": blocks})
    with pytest.raises(SchemaError, match=r"None of \['q'\] has features"):
        cluster_perturbations(features, ["q"])
    for n in (0, 10):
        with pytest.raises(ValueError, match=f"n_clusters={n} "):
            cluster_perturbations(features, blocks.index, n_clusters=n)


def test_scaffolds_are_clusters():
    pytest.importorskip("rdkit", reason="molecules need RDKit, which the extra 'chem' installs")
    scaffolds = murcko_scaffolds({"a": "Cc1ccccc1", "b": "CCc1ccccc1", "c": "C1CCCC1", "d": "C"})
    assert parts(scaffolds.to_dict()) == {frozenset("ab"), frozenset("c"), frozenset("d")}
