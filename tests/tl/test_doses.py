"""Curves over doses: known curves with known noise, doses that do not reach, and counts."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import stats
from scipy.optimize import curve_fit

import scvi_perturb as svp

DOSES = np.array([0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0])
N_CURVES = 300


def hill(dose, ec50, emax, slope):
    return emax * dose**slope / (ec50**slope + dose**slope)


def predicted(effects, *, std, doses=DOSES) -> AnnData:
    """What `predict` returns for the doses of A; effects `(n_doses, n_genes)`."""
    obs = pd.DataFrame({"perturbation": "A", "dose": doses}, index=map(str, range(len(doses))))
    return AnnData(
        effects, obs=obs, layers={"lfc": effects, "std": np.broadcast_to(std, effects.shape)}
    )


@pytest.fixture(scope="module")
def truth() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "ec50": np.exp(rng.uniform(np.log(0.05), np.log(2), N_CURVES)),
        "emax": rng.choice([-1, 1], N_CURVES) * rng.uniform(0.5, 2, N_CURVES),
        "slope": rng.uniform(0.8, 2, N_CURVES),
    }


def test_curves_without_noise_are_found(truth):
    table = svp.tl.dose_response(predicted(hill(DOSES[:, None], **truth), std=0.01))
    assert (table["range"] == "bracketed").all()
    for name, expected in truth.items():
        np.testing.assert_allclose(table[name], expected, rtol=0.02)
    assert (table["e0"].abs() < 1e-4).all()
    assert (table["misfit_p_value"] > 0.99).all()


def test_the_best_curve_is_that_of_least_squares(truth):
    rng = np.random.default_rng(1)
    std = rng.uniform(0.05, 0.1, (len(DOSES), 5))
    noisy = hill(DOSES[:, None], **{name: value[:5] for name, value in truth.items()})
    noisy += std * rng.normal(size=noisy.shape)
    table = svp.tl.dose_response(predicted(noisy, std=std))
    for gene, row in table.iterrows():
        start, error = row[["ec50", "emax", "slope"]].to_list(), std[:, gene]
        found, _ = curve_fit(hill, DOSES, noisy[:, gene], start, sigma=error)
        if 0.5 < found[2] < 4:
            np.testing.assert_allclose(start, found, rtol=0.01)


def test_intervals_hold_the_truth_at_their_level(truth):
    rng = np.random.default_rng(2)
    noisy = hill(DOSES[:, None], **truth) + 0.1 * rng.normal(size=(len(DOSES), N_CURVES))
    table = svp.tl.dose_response(predicted(noisy, std=0.1), level=0.9, fdr=0.5)
    least = stats.binom.ppf(0.001, N_CURVES, 0.9)
    most = stats.binom.ppf(0.999, N_CURVES, 0.9)
    for name in ("ec50", "emax"):
        low, high = table[f"{name}_lower"], table[f"{name}_upper"]
        assert least <= ((low <= truth[name]) & (truth[name] <= high)).sum() <= most


def test_no_response_is_flat_and_has_no_ec50():
    rng = np.random.default_rng(3)
    table = svp.tl.dose_response(predicted(0.2 * rng.normal(size=(7, N_CURVES)), std=0.2))
    n_found = (table["p_value"] < 0.1).sum()
    assert n_found <= stats.binom.ppf(0.999, N_CURVES, 0.1)
    flat = table["range"] == "flat"
    assert flat.mean() > 0.95
    assert (
        table.loc[flat, ["ec50", "ec50_lower", "ec50_upper", "emax", "slope"]].isna().all(axis=None)
    )


@pytest.mark.parametrize(
    ("ec50", "said", "lower", "upper"),
    [(1e-4, "open below", 0.0, 0.1), (300.0, "open above", 1.0, np.inf), (0.3, "bracketed", 0, 1)],
)
def test_doses_that_do_not_bracket_the_ec50_say_so(ec50, said, lower, upper):
    (row,) = svp.tl.dose_response(
        predicted(hill(DOSES[:, None], ec50, 50.0 if ec50 > 10 else 1.0, 1.0), std=0.05)
    ).to_dict("records")
    assert row["range"] == said
    assert lower <= row["ec50_lower"] <= ec50 <= row["ec50_upper"] <= upper
    assert np.isnan(row["ec50"]) == (said != "bracketed")


def test_a_curve_that_rises_and_falls_does_not_fit():
    bell = np.exp(-(np.log(DOSES[:, None]) ** 2))
    (row,) = svp.tl.dose_response(predicted(bell, std=0.05)).to_dict("records")
    assert row["misfit_p_value"] < 1e-3


def test_a_fixed_slope_is_kept():
    effects = hill(DOSES[:, None], 0.3, 1.0, 1.0)
    table = svp.tl.dose_response(predicted(effects, std=0.05), slope=2.0)
    assert list(table["slope"]) == [2.0]


@pytest.fixture(scope="module")
def screen() -> AnnData:
    config = svp.data.SimulatorConfig(
        n_perturbations=3,
        n_combinations=0,
        n_contexts=1,
        n_batches=1,
        doses=(0.03, 0.1, 0.3, 1.0),
        program_share=0.5,
        responder_fraction=1.0,
    )
    return svp.data.simulate_screen(n_cells=2000, n_genes=60, seed=2, config=config)


def test_points_of_cells_are_changes_of_pseudobulk(screen):
    table = svp.tl.dose_response(screen, points=True)
    label, dose = screen.obs["perturbation"], screen.obs["dose"].astype(float)
    control = screen.X[(label == "control").to_numpy()]
    cells = screen.X[((label == "pert_02") & (dose == 0.3)).to_numpy()]
    own = table[(table["perturbation"] == "pert_02") & (table["dose"] == 0.3)]
    pseudobulk, variance = svp.metrics.pseudobulk, svp.metrics.pseudobulk_variance
    np.testing.assert_allclose(own["lfc"], pseudobulk(cells) - pseudobulk(control))
    # Errors share an overdispersion: those of one dose are not exactly the jackknife's.
    ratio = own["std"] ** 2 / variance(cells)
    assert 0.8 < np.exp(np.log(ratio).mean()) < 1.25
    assert (ratio < 3).all()
    assert (ratio > 1 / 3).all()


def test_genes_without_effect_are_seldom_taken_for_responses():
    rng = np.random.default_rng(5)
    theta, n_cells = 1.0, 40
    doses = np.repeat([0.0, 0.1, 1.0, 10.0], n_cells)
    rate = np.exp(rng.normal(0, 1, 300)) * rng.gamma(theta, 1 / theta, (len(doses), 300))
    obs = pd.DataFrame({"perturbation": np.where(doses > 0, "A", "control")})
    obs["dose"] = np.where(doses > 0, doses, 1.0)
    obs.index = obs.index.astype(str)
    adata = AnnData(rng.poisson(rate).astype(np.float32), obs=obs)
    n_found = (svp.tl.dose_response(adata)["p_value"] < 0.1).sum()
    assert n_found <= stats.binom.ppf(0.999, 300, 0.1)


def test_a_signature_of_one_gene_is_that_gene(screen):
    gene = screen.var_names[5]
    one = svp.tl.dose_response(screen, genes=[gene], points=True)
    weighted = svp.tl.dose_response(screen, signature={gene: -2.0}, points=True)
    np.testing.assert_allclose(weighted["lfc"], -2 * one["lfc"])
    control = screen.X[(screen.obs["perturbation"] == "control").to_numpy()]
    jackknife = 2 * np.sqrt(svp.metrics.pseudobulk_variance(control)[5])
    np.testing.assert_allclose(weighted["std"][weighted["dose"] == 0], jackknife, rtol=0.03)
    assert set(weighted["gene"]) == {"signature"}


def test_errors_of_a_signature_hold_how_genes_move_together():
    rng = np.random.default_rng(4)
    doses = np.repeat([0.0, 0.1, 1.0, 10.0], 400)
    shared = np.exp(0.5 * rng.normal(size=(len(doses), 1)))
    rate = np.hstack([np.repeat(5 * shared, 2, axis=1), np.full((len(doses), 8), 20.0)])
    obs = pd.DataFrame({"perturbation": np.where(doses > 0, "A", "control")})
    obs["dose"] = np.where(doses > 0, doses, 1.0)
    obs.index = obs.index.astype(str)
    adata = AnnData(rng.poisson(rate).astype(np.float32), obs=obs)
    both = svp.tl.dose_response(adata, signature={"0": 1.0, "1": 1.0}, points=True)
    each = svp.tl.dose_response(adata, genes=["0", "1"], points=True)
    alone = (each.groupby("dose")["std"].apply(lambda std: (std**2).sum()) ** 0.5).to_numpy()
    assert (both["std"].to_numpy() > 1.15 * alone).all()


def test_what_does_not_fit_is_refused(screen):
    with pytest.raises(svp.SchemaError, match=r"Genes \['nobody'\]"):
        svp.tl.dose_response(screen, genes=["nobody"])
    with pytest.raises(ValueError, match="give one of them"):
        svp.tl.dose_response(screen, genes=["a"], signature={"a": 1.0})
    with pytest.raises(svp.SchemaError, match="the most is 1"):
        svp.tl.dose_response(screen[screen.obs["dose"].isin(["0", "1"])].copy())
