"""The map of perturbations that are alike."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.patches import Rectangle

import scvi_perturb as svp
from tests.tl.test_similarity import predicted


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def test_the_map_is_in_the_order_of_clusters():
    rng = np.random.default_rng(0)
    centres = np.tile(rng.normal(size=(2, 50)), (3, 1))  # p0, p2, p4 and p1, p3, p5
    data = predicted(centres + 0.2 * rng.normal(size=centres.shape))
    similarity, clusters = svp.tl.perturbation_similarity(data), svp.tl.cluster_perturbations(data)
    _, ax = plt.subplots()
    assert svp.pl.similarity_map(similarity, clusters, ax=ax) is ax
    assert [text.get_text() for text in ax.get_yticklabels()] == list(clusters["label"])
    values = np.asarray(ax.images[0].get_array())
    row = similarity.iloc[0]
    i, j = (list(clusters["label"]).index(row[side]) for side in ("first", "second"))
    assert values[i, j] == values[j, i] == row["similarity"]
    assert np.diag(values).tolist() == [1.0] * 6
    frames = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    assert sorted(frame.get_width() for frame in frames) == [3, 3]
    plain = svp.pl.similarity_map(similarity)
    assert plain.get_yticklabels()[0].get_text() == "p0"


def test_clusters_of_other_conditions_are_refused():
    data = predicted(np.random.default_rng(0).normal(size=(4, 20)))
    similarity = svp.tl.perturbation_similarity(data)
    clusters = svp.tl.cluster_perturbations(data[:3].copy())
    with pytest.raises(svp.SchemaError, match="not those of the same conditions"):
        svp.pl.similarity_map(similarity, clusters)
    with pytest.raises(svp.SchemaError, match=r"lacks the columns \['second'\]"):
        svp.pl.similarity_map(similarity.drop(columns="second"))
