"""Scores of cells, and effects as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

import scvi_perturb as svp

if TYPE_CHECKING:
    from anndata import AnnData

N_SAMPLES = 32


@pytest.fixture(scope="module")
def screen() -> AnnData:
    config = svp.data.SimulatorConfig(
        n_perturbations=2,
        n_combinations=0,
        n_contexts=1,
        n_batches=1,
        effect_size=2.0,
        program_share=1.0,
        responder_fraction=0.6,
        control_fraction=0.4,
    )
    return svp.data.simulate_screen(n_cells=600, n_genes=80, seed=1, config=config)


@pytest.fixture(scope="module")
def model(screen) -> svp.PerturbDiffusion:
    svp.PerturbDiffusion.setup_anndata(screen)
    model = svp.PerturbDiffusion(screen, n_latent=8, n_hidden=32)
    model.train(60, n_steps=300, enable_progress_bar=False)
    return model


def test_score_cells_writes_the_bound_and_its_provenance(model, screen):
    svp.tl.score_cells(model, screen, n_samples=N_SAMPLES, seed=3)
    expected = model.log_likelihood_bound(screen, n_samples=N_SAMPLES, seed=3)
    np.testing.assert_allclose(screen.obs["log_likelihood_bound"], expected)
    recorded = screen.uns["scvi_perturb"]["scores"]["log_likelihood_bound"]
    assert recorded["units"] == "nats"
    assert (recorded["model"], recorded["n_samples"], recorded["seed"]) == (
        "PerturbDiffusion",
        N_SAMPLES,
        3,
    )


def test_score_cells_finds_cells_that_do_not_belong(model, screen):
    broken = screen.copy()
    rows = np.arange(0, broken.n_obs, 10)
    counts = broken.X.toarray()
    counts[rows] = counts[rows][:, np.random.default_rng(0).permutation(broken.n_vars)]
    broken.X = counts
    svp.tl.score_cells(model, broken, key_added="score", n_samples=N_SAMPLES)
    score = broken.obs["score"].to_numpy()
    assert score[rows].max() < np.median(np.delete(score, rows))


def test_response_score_tells_responders_from_escapers(model, screen):
    svp.tl.response_score(model, screen, n_samples=N_SAMPLES)
    score = screen.obs["response_score"]
    treated = screen.obs["perturbation"] != "control"
    responds = screen.obs["truth_responder"].astype(bool)
    moved, escaped = score[treated & responds], score[treated & ~responds]
    # Area under the curve: how often a responder has the higher score.
    assert (moved.to_numpy()[:, None] > escaped.to_numpy()).mean() > 0.9
    assert abs(score[~treated].mean()) < 0.1 * moved.mean()
    assert "response_score" in screen.uns["scvi_perturb"]["scores"]


def test_the_labels_of_the_cells_stay(model, screen):
    before = screen.obs["perturbation"].copy()
    svp.tl.response_score(model, screen, key_added="again", n_samples=4)
    assert (screen.obs["perturbation"] == before).all()


def test_effects_are_the_largest_first(model):
    predicted = model.predict(["pert_01", "pert_02"], n_samples=50)
    table = svp.tl.effects(predicted, n_genes=5)
    assert list(table["perturbation"]) == ["pert_01"] * 5 + ["pert_02"] * 5
    lfc = predicted.to_df("lfc")
    for row, (_, group) in zip(
        lfc.index, table.groupby("perturbation", observed=True), strict=True
    ):
        assert group["lfc"].abs().is_monotonic_decreasing
        assert group["lfc"].abs().min() == np.sort(lfc.loc[row].abs())[-5]
        np.testing.assert_array_equal(group["lfc"], lfc.loc[row, group["gene"]])
    assert (table["lower"] <= table["lfc"]).all()
    assert (table["lfc"] <= table["upper"]).all()
    assert len(svp.tl.effects(predicted, n_genes=None)) == predicted.n_obs * predicted.n_vars


def test_effects_need_the_layers_of_predict(model):
    predicted = model.predict(["pert_01"], n_samples=10)
    with pytest.raises(ValueError, match="at least 1"):
        svp.tl.effects(predicted, n_genes=0)
    del predicted.layers["lower"]
    with pytest.raises(svp.SchemaError, match=r"\['lower'\] are missing"):
        svp.tl.effects(predicted)
