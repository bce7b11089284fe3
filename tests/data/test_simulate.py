"""The simulator does what it says: its screens and its truth agree."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scvi_perturb._core import SchemaError, UnknownPerturbationError
from scvi_perturb.data.condition import ScreenKeys
from scvi_perturb.data.condition_table import encode_obs
from scvi_perturb.data.reader import check_raw_counts
from scvi_perturb.data.simulate.config import SimulatorConfig
from scvi_perturb.data.simulate.screen import (
    expected_profile,
    perturbation_features,
    sample_truth,
    simulate_screen,
    state_shift,
    true_effect,
)

if TYPE_CHECKING:
    from pathlib import Path

DOSED = SimulatorConfig(n_perturbations=4, n_combinations=3, doses=(0.1, 0.3, 1.0))


@pytest.fixture(scope="module")
def screen() -> ad.AnnData:
    return simulate_screen(n_cells=6000, n_genes=200)


@pytest.fixture(scope="module")
def dosed() -> ad.AnnData:
    return simulate_screen(n_cells=600, n_genes=120, config=DOSED)


def _profile(cells: ad.AnnData) -> np.ndarray:
    total = np.asarray(cells.X.sum(axis=0)).ravel()
    return total / total.sum()


def _labels(cells: ad.AnnData) -> list[str]:
    return list(cells.obs["perturbation"].cat.categories)


def _jackknife_sd(cells: ad.AnnData) -> np.ndarray:
    """Standard error of the pooled profile, by delete-one-cell jackknife in closed form."""
    x = cells.X.toarray()
    residual = x - x.sum(axis=1, keepdims=True) * _profile(cells)
    return np.sqrt((residual**2).sum(axis=0)) / x.sum()


def test_screen_has_the_promised_form(screen: ad.AnnData) -> None:
    check_raw_counts(screen.X, where="X")
    assert screen.X.format == "csr"
    assert screen.X.dtype == np.float32
    assert list(screen.obs.columns) == [
        "perturbation",
        "cell_type",
        "batch",
        "library_size",
        "truth_responder",
    ]
    np.testing.assert_array_equal(screen.obs["library_size"], screen.X.sum(axis=1).A1)
    assert screen.obs["library_size"].mean() == pytest.approx(3000, rel=0.03)
    assert np.std(np.log(screen.obs["library_size"])) == pytest.approx(0.3, rel=0.15)
    sizes = screen.obs["perturbation"].value_counts()
    assert sizes["control"] == 1200
    assert sizes.drop("control").min() >= 4800 // 18
    assert len(sizes) == 1 + 12 + 6
    crossed = pd.crosstab(
        screen.obs["perturbation"], [screen.obs["cell_type"], screen.obs["batch"]]
    )
    assert (crossed.max(axis=1) - crossed.min(axis=1)).max() <= 1


def test_cells_average_to_the_expected_profile(screen: ad.AnnData) -> None:
    def z_squared(cells: ad.AnnData, label: str, context: str) -> float:
        expected = expected_profile(screen, label, context=context, n_cells=4000)
        assert expected.sum() == pytest.approx(1)
        counted = np.asarray(cells.X.sum(axis=0)).ravel() > 20  # enough for a standard error
        z = (_profile(cells) - expected)[counted] / _jackknife_sd(cells)[counted]
        return float(np.mean(z**2))

    own, other = [], []
    for (label, context), rows in screen.obs.groupby(
        ["perturbation", "cell_type"], observed=True
    ).indices.items():
        own.append(z_squared(screen[rows], label, context))
        other.append(z_squared(screen[rows], "control", context))
    assert np.mean(own) == pytest.approx(1, abs=0.25)
    treated = np.array([label != "control" for label in np.repeat(_labels(screen), 3)])
    assert np.min(np.array(other)[treated]) > 3


def test_effects_are_detectable_with_few_cells(screen: ad.AnnData) -> None:
    control = screen[screen.obs["perturbation"] == "control"]
    names = [f"pert_{i:02d}" for i in range(1, 13)]
    real = [
        np.log1p(1e4 * _profile(screen[np.flatnonzero(screen.obs["perturbation"] == name)[:60]]))
        - np.log1p(1e4 * _profile(control))
        for name in names
    ]
    truth = [true_effect(screen, name) for name in names]
    agreement = np.corrcoef(np.vstack([real, truth]))[:12, 12:]
    assert np.median(np.diag(agreement)) > 0.85
    assert (agreement.argmax(axis=1) == np.arange(12)).mean() > 0.9


def test_negative_binomial_variance_given_the_factors() -> None:
    still = SimulatorConfig(
        n_contexts=1,
        n_batches=1,
        identity_sd=0,
        state_sd=0,
        batch_effect=0,
        library_sd=0,
        control_fraction=0.99,
        n_perturbations=1,
        n_combinations=0,
        dispersion=2,
    )
    screen = simulate_screen(n_cells=8000, n_genes=60, config=still)
    x = screen[screen.obs["perturbation"] == "control"].X.toarray()
    theta = screen.uns["truth"]["dispersion"]
    mean = 3000 * expected_profile(screen, "control", n_cells=1)
    np.testing.assert_allclose(x.mean(axis=0), mean, rtol=0.15)
    variance = mean + mean**2 / theta
    assert np.median(x.var(axis=0) / variance) == pytest.approx(1, abs=0.05)


def test_doses_are_written_and_grow_the_effect(dosed: ad.AnnData) -> None:
    doses = dosed.obs.groupby("perturbation", observed=True)["dose"].unique()
    assert set(doses["control"]) == {"0"}
    assert set(doses["pert_01"]) == {"0.1", "0.3", "1"}
    assert all(set(d) == {"1+1"} for label, d in doses.items() if "+" in label)
    shifts = [
        state_shift(dosed, "pert_01", dose=dose, context="type_01")
        for dose in (1e-4, 0.1, 0.3, "1", 3.0)
    ]
    reference = state_shift(dosed, "pert_01", context="type_01")
    curve = [shift @ reference / (reference @ reference) for shift in shifts]
    assert (np.diff(curve) > 0).all()
    assert curve[0] < 0.01
    assert curve[3] == pytest.approx(1)
    sizes = [np.linalg.norm(true_effect(dosed, "pert_01", dose=d)) for d in (0.1, 0.3, 1)]
    assert sizes == sorted(sizes)


def test_dose_labels_align_with_the_order_of_the_request(dosed: ad.AnnData) -> None:
    one = expected_profile(dosed, "pert_02+pert_01", dose="0.1+1", n_cells=200)
    two = expected_profile(dosed, "pert_01+pert_02", dose="1+0.1", n_cells=200)
    swapped = expected_profile(dosed, "pert_01+pert_02", dose="0.1+1", n_cells=200)
    np.testing.assert_allclose(one, two)
    assert np.abs(one - swapped).max() > 1e-4


def test_annotation_is_read_by_the_condition_table(dosed: ad.AnnData) -> None:
    codes, table = encode_obs(dosed.obs, ScreenKeys("perturbation", dose="dose"))
    assert len(table.conditions) == 1 + 4 * 3 + 3
    np.testing.assert_array_equal(codes == 0, dosed.obs["perturbation"] == "control")


def test_combinations_add_up_without_interaction(screen: ad.AnnData) -> None:
    a, b, both = (
        state_shift(screen, label, context="type_02")
        for label in ("pert_01", "pert_14", "pert_14+pert_01")
    )
    np.testing.assert_allclose(both, a + b)
    exact = replace(SimulatorConfig(), responder_fraction=1.0, state_sd=0.0)
    quiet = simulate_screen(n_cells=300, n_genes=100, config=exact)
    log = {
        label: np.log(expected_profile(quiet, label, context="type_01", n_cells=300))
        for label in ("control", "pert_01", "pert_05", "pert_01+pert_05")
    }
    rest = log["pert_01+pert_05"] - log["pert_01"] - log["pert_05"] + log["control"]
    assert np.std(rest) < 0.02  # up to the common normaliser
    assert np.std(log["pert_01"] - log["control"]) > 0.2


def test_interactions_have_the_asked_size() -> None:
    config = SimulatorConfig(interaction_strength=0.5, context_modulation=0.0)
    screen = simulate_screen(n_cells=300, n_genes=50, config=config)
    a, b, both = (state_shift(screen, label) for label in ("pert_01", "pert_02", "pert_01+pert_02"))
    size = np.sqrt(np.linalg.norm(a) * np.linalg.norm(b))
    assert np.linalg.norm(both - a - b) == pytest.approx(0.5 * size)


@pytest.mark.parametrize("r2", [0.3, 0.9, 1.0])
def test_features_explain_the_asked_share_of_the_effects(r2: float) -> None:
    config = SimulatorConfig(
        n_perturbations=600, n_unseen=100, n_combinations=0, feature_r2=r2, n_decoy_features=5
    )
    screen = simulate_screen(n_cells=1000, n_genes=20, config=config)
    features = perturbation_features(screen)
    effects = screen.uns["truth"]["effects"]
    assert set(features) == {"embedding", "decoy"}
    assert list(features["embedding"].index) == list(screen.uns["truth"]["perturbations"])
    for modality, expected in (("embedding", r2), ("decoy", 0.0)):
        table = features[modality].to_numpy()
        fitted = np.linalg.lstsq(table[:600], effects[:600], rcond=None)[0]
        left = ((effects[600:] - table[600:] @ fitted) ** 2).sum() / (effects[600:] ** 2).sum()
        assert 1 - left == pytest.approx(expected, abs=0.06)
    moved = screen.uns["truth"]["effect_mask"].sum(axis=1)
    assert set(moved) == {round(0.3 * 6)}


def test_contexts_modulate_effects_around_their_mean(screen: ad.AnnData) -> None:
    effect = screen.uns["truth"]["effects"][0]
    by_context = [state_shift(screen, "pert_01", context=f"type_0{i}") for i in (1, 2, 3)]
    np.testing.assert_allclose(state_shift(screen, "pert_01"), effect)
    assert np.std(by_context, axis=0).max() > 0.05


def test_responders_alone_are_shifted() -> None:
    config = SimulatorConfig(responder_fraction=0.6, n_combinations=0, state_sd=0.2)
    screen = simulate_screen(n_cells=4000, n_genes=50, config=config)
    treated = screen.obs["perturbation"] != "control"
    responds = screen.obs["truth_responder"]
    assert not responds[~treated].any()
    assert responds[treated].mean() == pytest.approx(0.6, abs=0.03)
    cells = screen.obs["perturbation"] == "pert_01"
    state = screen.obsm["truth_state"]
    shift = state_shift(screen, "pert_01")
    np.testing.assert_allclose(state[cells & responds].mean(axis=0), shift, atol=0.12)
    np.testing.assert_allclose(state[cells & ~responds].mean(axis=0), 0, atol=0.12)


def test_replicates_from_the_truth_are_new_cells_of_the_same_law(screen: ad.AnnData) -> None:
    one, two = (
        sample_truth(screen, "pert_03", context="type_01", n_cells=800, seed=seed)
        for seed in (1, 2)
    )
    assert (one.X != two.X).nnz > 0
    assert set(one.obs["cell_type"]) == {"type_01"}
    assert list(one.var_names) == list(screen.var_names)
    assert list(one.obs.columns) == list(screen.obs.columns)
    error = np.hypot(_jackknife_sd(one), _jackknife_sd(two))
    assert np.mean(((_profile(one) - _profile(two)) / error) ** 2) == pytest.approx(1, abs=0.3)
    unseen = sample_truth(screen, "pert_13+pert_14", n_cells=30)
    assert set(unseen.obs["perturbation"]) == {"pert_13+pert_14"}
    assert set(unseen.obs["cell_type"]) == {"type_01", "type_02", "type_03"}


def test_times_saturate_and_are_crossed() -> None:
    config = SimulatorConfig(n_perturbations=3, n_combinations=0, times=(6, 24))
    screen = simulate_screen(n_cells=600, n_genes=40, config=config)
    crossed = pd.crosstab(screen.obs["perturbation"], screen.obs["time"])
    assert (crossed > 0).all(axis=None)
    _, table = encode_obs(screen.obs, ScreenKeys("perturbation", time="time"))
    assert len(table.conditions) == 1 + 3 * 2
    late, early = (state_shift(screen, "pert_01", time=time) for time in (24, 6))
    np.testing.assert_allclose(late, state_shift(screen, "pert_01"))
    assert np.linalg.norm(early) < 0.9 * np.linalg.norm(late)
    perturbed = screen.obs["perturbation"] == "pert_01"
    chosen = perturbed & screen.obs["truth_responder"] & (screen.obs["time"] == 6)
    np.testing.assert_allclose(screen.obsm["truth_state"][chosen].mean(axis=0), early, atol=0.3)
    assert set(sample_truth(screen, "pert_01", time=6, n_cells=20).obs["time"]) == {6.0}


def test_seed_gives_the_same_screen_and_size_does_not_change_the_truth() -> None:
    one, two = (simulate_screen(n_cells=200, n_genes=40, seed=3) for _ in range(2))
    assert (one.X != two.X).nnz == 0
    pd.testing.assert_frame_equal(one.obs, two.obs)
    larger = simulate_screen(n_cells=400, n_genes=40, seed=3)
    np.testing.assert_array_equal(true_effect(one, "pert_01"), true_effect(larger, "pert_01"))
    other = simulate_screen(n_cells=200, n_genes=40, seed=4)
    assert np.abs(true_effect(one, "pert_01") - true_effect(other, "pert_01")).max() > 0.1


def test_screen_survives_disk_and_subsetting(dosed: ad.AnnData, tmp_path: Path) -> None:
    dosed.write_h5ad(tmp_path / "screen.h5ad")
    back = ad.read_h5ad(tmp_path / "screen.h5ad")[::3, :].copy()
    np.testing.assert_allclose(
        true_effect(back, "pert_01+pert_02", dose="0.3+1", n_cells=100),
        true_effect(dosed, "pert_01+pert_02", dose="0.3+1", n_cells=100),
    )
    pd.testing.assert_frame_equal(
        perturbation_features(back)["embedding"], perturbation_features(dosed)["embedding"]
    )


def test_requests_that_cannot_be_answered_say_why(dosed: ad.AnnData) -> None:
    with pytest.raises(UnknownPerturbationError, match="'pert_99' was not trained"):
        expected_profile(dosed, "pert_01+pert_99")
    with pytest.raises(ValueError, match=r"context='liver' is not known; .*'type_01'"):
        true_effect(dosed, "pert_01", context="liver")
    with pytest.raises(SchemaError, match="no 'truth'"):
        true_effect(ad.AnnData(np.ones((2, 2))), "pert_01")
    with pytest.raises(ValueError, match="n_cells=10 leaves 8 perturbed cells for 15 conditions"):
        simulate_screen(n_cells=10, config=DOSED)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("responder_fraction", 1.2, "out of range"),
        ("control_fraction", 0.0, "out of range"),
        ("n_perturbations", 0, "at least 1"),
        ("n_combinations", 67, "expected at most 66 pairs"),
        ("n_features", 3, "expected at least n_state=6"),
        ("doses", (0.0, 1.0), "above 0"),
        ("times", (), "different values"),
        ("dispersion", 0.0, "above 0"),
        ("effect_size", -1.0, "at least 0"),
    ],
)
def test_configuration_checks_itself(option: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=rf"{option}=.*{message}"):
        SimulatorConfig(**{option: value})


def test_configuration_survives_json() -> None:
    assert SimulatorConfig.from_json(DOSED.to_json()) == DOSED
