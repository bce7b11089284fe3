"""Likeness of effects and clusters of them, beside what is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import scvi_perturb as svp


def predicted(effects, *, std=0.01) -> AnnData:
    obs = pd.DataFrame({"perturbation": [f"p{i}" for i in range(len(effects))]})
    obs.index = obs.index.astype(str)
    return AnnData(effects, obs=obs, layers={"lfc": effects, "std": np.full(effects.shape, std)})


def test_without_noise_it_is_correlation_and_cosine():
    effects = 0.5 + np.random.default_rng(0).normal(size=(4, 30))
    i, j = np.triu_indices(4, k=1)
    table = svp.tl.perturbation_similarity(predicted(effects))
    np.testing.assert_allclose(table["similarity"], np.corrcoef(effects)[i, j])
    cosine = svp.tl.perturbation_similarity(predicted(effects), metric="cosine")
    length = np.linalg.norm(effects, axis=1)
    np.testing.assert_allclose(
        cosine["similarity"], (effects @ effects.T / np.outer(length, length))[i, j]
    )
    assert (table["lower"] <= table["similarity"]).all()
    assert (table["similarity"] <= table["upper"]).all()


@pytest.fixture(scope="module")
def screen() -> AnnData:
    """Few cells: A and B do the same, C the opposite, D nothing."""
    rng = np.random.default_rng(0)
    n_genes, n_cells = 200, 40
    base = np.exp(rng.normal(0.5, 0.7, n_genes))
    effect = 0.4 * rng.normal(size=n_genes)
    change = {"A": effect, "B": effect, "C": -effect, "D": 0 * effect, "control": 0 * effect}
    rates = np.concatenate([np.tile(base * np.exp(c), (n_cells, 1)) for c in change.values()])
    obs = pd.DataFrame({"perturbation": np.repeat(list(change), n_cells)})
    obs.index = obs.index.astype(str)
    return AnnData(rng.poisson(rates).astype(np.float32), obs=obs)


def test_noise_is_taken_out(screen):
    table = svp.tl.perturbation_similarity(screen, n_boot=100).set_index(["first", "second"])
    alike, opposite = table.loc[("A", "B")], table.loc[("A", "C")]
    assert alike["observed"] < 0.93
    assert alike["similarity"] > 0.95
    assert opposite["similarity"] < -0.85
    # The noise of the common control makes opposites look less opposite.
    assert opposite["similarity"] < opposite["observed"]
    assert table.loc[("A", "D"), "reliability_second"] < 0.3
    assert np.isnan(table.loc[("A", "D"), "similarity"])


def test_groups_are_found_with_their_stability():
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(3, 60))
    effects = np.concatenate(
        [
            centres[0] + 0.3 * rng.normal(size=(4, 60)),
            centres[1] + 0.3 * rng.normal(size=(3, 60)),
            centres[2:],
        ]
    )
    table = svp.tl.cluster_perturbations(predicted(effects)).set_index("label")
    assert set(table.loc[[f"p{i}" for i in range(4)], "cluster"]) == {"cluster_0"}
    assert set(table.loc[[f"p{i}" for i in range(4, 7)], "cluster"]) == {"cluster_1"}
    assert table["cluster"].nunique() == 3
    assert (table["stability"] > 0.9).all()
    blocks = (table["cluster"] != table["cluster"].shift()).sum()
    assert blocks == 3  # the order of the tree keeps groups together
    two = svp.tl.cluster_perturbations(predicted(effects), n_clusters=2)
    assert two["cluster"].nunique() == 2


def test_groups_of_noise_are_unstable():
    # 40 effects of 10 genes without any groups.
    effects = np.random.default_rng(2).normal(size=(40, 10))
    table = svp.tl.cluster_perturbations(predicted(effects), n_clusters=8)
    assert table["stability"].mean() < 0.6


def test_clusters_do_not_depend_on_what_noise_hides(screen):
    table = svp.tl.cluster_perturbations(screen).set_index("label")
    assert table.loc["A", "cluster"] == table.loc["B", "cluster"] == "cluster_0"
    assert table["cluster"].nunique() == 3
    again = svp.tl.cluster_perturbations(screen).set_index("label")
    pd.testing.assert_frame_equal(table, again)


def test_labels_say_what_differs():
    data = predicted(np.random.default_rng(0).normal(size=(3, 20)))
    data.obs["perturbation"] = "A"
    data.obs["dose"] = [1.0, 2.0, 3.0]
    table = svp.tl.perturbation_similarity(data)
    assert set(table["first"]) | set(table["second"]) == {"1", "2", "3"}


def test_too_few_conditions_are_refused(screen):
    with pytest.raises(svp.SchemaError, match="Found 1 perturbed conditions"):
        svp.tl.perturbation_similarity(predicted(np.ones((1, 4))))
    with pytest.raises(ValueError, match="n_clusters=9"):
        svp.tl.cluster_perturbations(screen, n_clusters=9)


def test_single_cells_show_no_effect_and_no_control():
    config = svp.data.SimulatorConfig(n_perturbations=4, n_combinations=0, n_contexts=1)
    screen = svp.data.simulate_screen(n_cells=300, n_genes=30, seed=0, config=config)
    labels = screen.obs["perturbation"]
    keep = np.ones(screen.n_obs, bool)
    keep[np.flatnonzero(labels == "pert_01")[1:]] = False
    with pytest.warns(UserWarning, match="such as pert_01, have fewer than 10 cells"):
        table = svp.tl.perturbation_similarity(screen[keep], n_boot=10)
    assert set(table["first"]) | set(table["second"]) == {"pert_02", "pert_03", "pert_04"}
    keep = (labels != "control").to_numpy(copy=True)
    keep[np.flatnonzero(~keep)[0]] = True
    with (
        pytest.warns(UserWarning, match="such as control, have fewer than 10 cells"),
        pytest.raises(svp.SchemaError, match="0 perturbed conditions with controls"),
    ):
        svp.tl.perturbation_similarity(screen[keep], n_boot=10)
