"""Verbs of flows: there, back, on the way, and how dense it is."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scvi_perturb import FlowConfig, NotTrainedError, PerturbFlow, SamplerConfig, SchemaError
from scvi_perturb.data import SimulatorConfig, simulate_screen

NETWORK = {"width": 16, "n_blocks": 1, "n_condition": 8, "n_neighbours": 5}
FLOWS = {
    "control": FlowConfig(**NETWORK),
    "noise": FlowConfig(source="noise", **NETWORK),
    "coupling": FlowConfig(source="noise", kind="coupling", n_transforms=2, **NETWORK),
}
TRAINED = "pert_01"


@pytest.fixture(scope="module")
def screen():
    config = SimulatorConfig(n_perturbations=3, n_combinations=1, n_contexts=2)
    return simulate_screen(n_cells=400, n_genes=40, config=config, seed=0)


def make(screen, flow):
    adata = screen.copy()
    PerturbFlow.setup_anndata(adata, context_keys=["cell_type"])
    return PerturbFlow(adata, n_latent=4, n_hidden=16, n_layers=1, flow=flow)


@pytest.fixture(scope="module")
def models(screen):
    made = {}
    for name, flow in FLOWS.items():
        made[name] = make(screen, flow)
        made[name].train(
            max_epochs=3, n_steps=60, batch_size=64, accelerator="cpu", enable_progress_bar=False
        )
    return made


@pytest.fixture(params=list(FLOWS))
def model(request, models):
    return models[request.param]


@pytest.fixture(params=["noise", "coupling"])
def dense(request, models):
    return models[request.param]


def controls(screen, n=20):
    return screen[screen.obs["perturbation"] == "control"][:n].copy()


def test_transport_carries_every_cell_once(model, screen):
    given = controls(screen)
    cells = model.transport(given, [TRAINED, "pert_02"], seed=3)
    assert cells.n_obs == 40
    assert cells.obs["reference_cell"].tolist() == 2 * given.obs_names.tolist()
    assert cells.obs["perturbation"].tolist() == 20 * [TRAINED] + 20 * ["pert_02"]
    assert (cells.X.data == np.rint(cells.X.data)).all()
    assert cells.obsm["X_latent"].shape == (40, 4)
    told = cells.uns["scvi_perturb"]
    assert told["units"] == "counts"
    assert told["round_trip_error"] < 0.02
    again = model.transport(given, [TRAINED, "pert_02"], seed=3)
    assert (cells.X != again.X).nnz == 0


def test_transport_draws_nothing_but_counts(model, screen):
    given = controls(screen)
    a, b = (model.transport(given, [TRAINED], output="mean", seed=s) for s in (0, 1))
    np.testing.assert_array_equal(a.X, b.X)
    assert a.uns["scvi_perturb"]["units"] == "expected counts"
    size = np.asarray(given.X.sum(axis=1)).ravel()
    np.testing.assert_allclose(a.X.sum(axis=1), size, rtol=1e-4)


def test_transport_to_control_changes_nothing_from_control(models, screen):
    model, given = models["control"], controls(screen)
    cells = model.transport(given, ["control"])
    np.testing.assert_array_equal(cells.obsm["X_latent"], model.get_latent_representation(given))


def test_the_way_back_of_transport_is_inversion(model, screen):
    """Cells carried to a condition and inverted from there are where they were."""
    sampler = SamplerConfig("rk4", 80)
    treated = screen[screen.obs["perturbation"] == TRAINED][:15].copy()
    back = model.invert(treated, output="mean", sampler=sampler)
    assert back.obs_names.tolist() == treated.obs_names.tolist()
    assert set(back.obs["inverted_condition"]) == {TRAINED}
    assert back.uns["scvi_perturb"]["round_trip_error"] < 1e-3
    moved = back.obsm["X_latent"] - model.get_latent_representation(treated)
    assert np.abs(moved).max() > 1e-5


def test_controls_are_inverted_to_themselves(models, screen):
    model, given = models["control"], controls(screen)
    back = model.invert(given)
    np.testing.assert_array_equal(back.obsm["X_latent"], model.get_latent_representation(given))


def test_trajectories_go_from_control_to_the_sample(models):
    model = models["control"]
    path = model.trajectory([TRAINED], [0.0, 0.3, 1.0], n_samples=30, seed=2)
    assert path.obs["flow_time"].value_counts().to_dict() == {0.0: 30, 0.3: 30, 1.0: 30}
    assert path.obs_names.is_unique
    start, _, end = np.split(path.obsm["X_latent"], 3)
    names = path.obs["reference_cell"].to_numpy()[:30]
    place = model.adata.obs_names.get_indexer(names)
    np.testing.assert_allclose(start, model.get_latent_representation()[place], atol=1e-6)
    given = model.adata[np.unique(place)].copy()
    arrived = model.transport(given, [TRAINED])
    latent = pd.DataFrame(arrived.obsm["X_latent"], index=arrived.obs["reference_cell"])
    np.testing.assert_allclose(end, latent.loc[names].to_numpy(), atol=1e-3)


@pytest.mark.parametrize("times", [[], [0.5, 0.2], [0.0, 1.5], [-0.1]])
def test_times_that_do_not_rise_are_refused(models, times):
    with pytest.raises(ValueError, match=r"rising numbers from 0|at least 0"):
        models["control"].trajectory([TRAINED], times)


def test_trajectories_from_noise_are_refused(dense):
    with pytest.raises(ValueError, match="source='control'"):
        dense.trajectory([TRAINED], [0.0, 1.0])


def test_references_that_are_treated_are_refused(model, screen):
    treated = screen[screen.obs["perturbation"] == TRAINED].copy()
    with pytest.raises(SchemaError, match="must be control cells"):
        model.transport(treated, [TRAINED])


def test_densities_of_cells(dense, screen):
    cells = screen[:60].copy()
    table = dense.latent_log_density(cells, key_added="density")
    assert table.index.tolist() == cells.obs_names.tolist()
    assert np.isfinite(table.to_numpy()).all()
    np.testing.assert_array_equal(cells.obs["density"], table["log_density"])
    assert (table["standard_error"] == 0).all()
    assert table["step_error"].max() < 0.05
    under = dense.latent_log_density(cells, condition="control")["log_density"]
    is_control = (cells.obs["perturbation"] == "control").to_numpy()
    np.testing.assert_allclose(under[is_control], table["log_density"][is_control], atol=1e-4)
    assert np.abs(under - table["log_density"])[~is_control].max() > 1e-3


def test_densities_integrate_to_one(models):
    """Importance sampling from the encoder's normal approximation of the population."""
    model = models["noise"]
    latent = model.get_latent_representation()
    import torch

    rows = np.arange(50)
    given = model._given_cells(None, rows)
    one = given.cells.as_control()
    reference = one.reference[:1].expand(4000, -1)
    cells = type(one)(one.conditions, np.zeros(4000, int), reference, np.zeros(4000, int))
    spread = 2.5 * torch.from_numpy(latent.std(0))
    proposal = torch.distributions.Normal(reference[0], spread)
    torch.manual_seed(0)
    points = proposal.sample((4000,))
    found = model._densities(points, cells, None, None, 0)["log_density"].to_numpy()
    weights = np.exp(found - proposal.log_prob(points).sum(1).numpy())
    assert abs(weights.mean() - 1) < 4 * weights.std() / 4000**0.5


def test_estimated_densities_say_their_error(models, screen):
    exact = models["noise"].latent_log_density(screen[:40].copy())["log_density"]
    table = models["noise"].latent_log_density(screen[:40].copy(), n_probes=50)
    error = (table["log_density"] - exact) / table["standard_error"]
    assert error.abs().max() < 5


def test_anomalies(dense, screen):
    cells = screen[:60].copy()
    table = dense.anomaly_scores(cells, key_added="anomaly")
    is_control = (cells.obs["perturbation"] == "control").to_numpy()
    assert (table["control_ratio"][is_control] == 0).all()
    np.testing.assert_array_equal(cells.obs["anomaly_surprise"], table["surprise"])
    density = dense.latent_log_density(cells)["log_density"]
    np.testing.assert_allclose(table["surprise"], -density, atol=1e-6)


def test_more_draws_raise_the_bound(dense, screen):
    """Importance-weighted bounds rise with the number of draws, in expectation."""
    cells = screen[:100].copy()
    one, many = (dense.log_likelihood_bound(cells, n_samples=k) for k in (1, 8))
    rise = many - one
    assert rise.mean() > 0
    assert np.isfinite(many).all()


def test_densities_from_control_are_refused(models):
    for verb in ("latent_log_density", "anomaly_scores"):
        with pytest.raises(ValueError, match="source='noise'"):
            getattr(models["control"], verb)()


def test_untrained_flows_carry_nothing(screen):
    model = make(screen, FLOWS["control"])
    with pytest.raises(NotTrainedError):
        model.transport(controls(screen), [TRAINED])
    with pytest.raises(NotTrainedError):
        model.invert()


def test_unknown_outputs_are_refused(model, screen):
    with pytest.raises(ValueError, match="output='log'"):
        model.transport(controls(screen), [TRAINED], output="log")


def test_a_model_comes_back_with_its_flow(model, screen, tmp_path):
    model.save(tmp_path / "flow")
    loaded = PerturbFlow.load(tmp_path / "flow", model.adata)
    given = controls(screen)
    a, b = (m.transport(given, [TRAINED], output="mean").X for m in (model, loaded))
    np.testing.assert_array_equal(a, b)
