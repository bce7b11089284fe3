"""Causes of changes: effects that are known, and halves of simulated screens."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import scvi_perturb as svp

N_GENES = 60


def stated(effects, *, std=0.1, names=None) -> AnnData:
    """What `predict` returns."""
    effects = np.atleast_2d(effects)
    names = names or [f"pert_{i}" for i in range(len(effects))]
    obs = pd.DataFrame({"perturbation": names}, index=[f"row{i}" for i in range(len(names))])
    layers = {"lfc": effects, "std": np.full(effects.shape, std)}
    return AnnData(effects, obs=obs, layers=layers)


@pytest.fixture(scope="module")
def effects() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.5, (8, N_GENES))


def test_the_cause_is_first_and_its_strength_is_told(effects):
    noise = 0.1 * np.random.default_rng(1).normal(size=(2, N_GENES))
    shift = stated(effects[[2, 5]] * [[1.0], [1.4]] + noise, names=["x", "y"])
    table = svp.tl.reverse(stated(effects), shift)
    top = table[table["rank"] == 1].set_index("shift")
    assert top["perturbation"].to_dict() == {"x": "pert_2", "y": "pert_5"}
    assert (top["probability"] > 0.99).all()
    # Errors of 0.1 in both, over effects of length 0.5 sqrt(60): about 0.04, and 3 of these.
    np.testing.assert_allclose(top["strength"], [1.0, 1.4], atol=0.12)
    assert (top["cosine"] > 0.9).all()
    np.testing.assert_allclose(table.groupby("shift")["probability"].sum(), 1)
    assert (table.groupby("shift").size() == 10).all()


def test_no_change_and_another_cause_are_told(effects):
    rng = np.random.default_rng(2)
    still = 0.1 * rng.normal(size=N_GENES)
    new = rng.normal(0, 0.5, N_GENES)
    table = svp.tl.reverse(stated(effects), stated(np.stack([still, new]), names=["still", "new"]))
    top = table[table["rank"] == 1].set_index("shift")
    assert top["explanation"].to_dict() == {"still": "no change", "new": "another cause"}
    assert top["perturbation"].isna().all()


def test_alike_candidates_share_the_probability(effects):
    twins = np.vstack([effects, effects[3] + 0.02])
    table = svp.tl.reverse(stated(twins), stated(effects[3], names=["x"]))
    assert set(table["perturbation"].iloc[:2]) == {"pert_3", "pert_8"}
    assert table["probability"].iloc[1] > 0.1
    assert table["probability"].iloc[:2].sum() > 0.99


def test_less_is_known_from_larger_errors(effects):
    near = effects[0] + 0.3 * np.random.default_rng(3).normal(size=N_GENES)
    sure = svp.tl.reverse(stated(effects), stated(near, std=0.3, names=["x"]))
    unsure = svp.tl.reverse(stated(effects, std=2.0), stated(near, std=2.0, names=["x"]))
    assert sure["probability"].iloc[0] > unsure["probability"].iloc[0]
    assert unsure["probability"].iloc[0] < 0.5


def test_measured_halves_of_a_screen():
    config = svp.data.SimulatorConfig(
        n_perturbations=8, n_combinations=4, n_contexts=1, effect_size=1.5
    )
    adata = svp.data.simulate_screen(n_cells=1200, n_genes=100, seed=0, config=config)
    half = np.random.default_rng(0).permutation(adata.n_obs) % 2 == 0
    table = svp.tl.reverse(adata[half].copy(), adata[~half].copy(), n_boot=30)
    top = table[table["rank"] == 1]
    assert len(top) == 12
    assert (top["shift"] == top["perturbation"]).sum() >= 9
    again = svp.tl.reverse(adata[half].copy(), adata[~half].copy(), n_boot=30)
    pd.testing.assert_frame_equal(table, again)


def test_from_cells_of_a_to_cells_of_b():
    config = svp.data.SimulatorConfig(n_perturbations=5, n_combinations=0, n_contexts=1)
    adata = svp.data.simulate_screen(n_cells=1500, n_genes=80, seed=1, config=config)
    first = svp.data.sample_truth(adata, "control", n_cells=200, seed=5)
    goal = svp.data.sample_truth(adata, "pert_02", n_cells=200, seed=6)
    table = svp.tl.reverse(adata, goal, reference=first, n_boot=30)
    assert table["shift"].unique().tolist() == ["shift"]
    assert table["perturbation"].iloc[0] == "pert_02"


def test_what_is_missing_is_named(effects):
    shift = stated(effects[0], names=["x"])
    without = stated(effects)
    del without.layers["std"]
    with pytest.raises(svp.SchemaError, match="Layer 'std' is missing"):
        svp.tl.reverse(without, shift)
    shift.var_names = [f"other_{i}" for i in range(N_GENES)]
    for unknown in (np.nan, np.inf, -1.0):
        with pytest.raises(svp.SchemaError, match="not finite, or errors below 0"):
            svp.tl.reverse(stated(effects, std=unknown), stated(effects))
    with pytest.raises(svp.SchemaError, match="0 genes in common"):
        svp.tl.reverse(stated(effects), shift)


def test_single_cells_show_no_error_of_a_change():
    config = svp.data.SimulatorConfig(n_perturbations=3, n_combinations=0, n_contexts=1)
    screen = svp.data.simulate_screen(n_cells=300, n_genes=40, seed=0, config=config)
    control = screen[screen.obs["perturbation"] == "control"]
    goal = screen[screen.obs["perturbation"] == "pert_02"]
    with pytest.raises(svp.SchemaError, match="shift has 1 cells; expected at least 10"):
        svp.tl.reverse(screen, goal[:1], reference=control)
    with pytest.raises(svp.SchemaError, match="reference lacks 35 of the 40 genes"):
        svp.tl.reverse(screen, goal, reference=control[:, :5])
    few = np.flatnonzero(screen.obs["perturbation"] == "pert_01")[1:]
    left = screen[np.setdiff1d(np.arange(screen.n_obs), few)]
    with pytest.warns(UserWarning, match="1 conditions, such as pert_01, have fewer than 10 cells"):
        table = svp.tl.reverse(left, goal, reference=control)
    assert set(table["perturbation"].dropna()) == {"pert_02", "pert_03"}
