"""Power: the formula beside statsmodels', its variances beside those of cells and blocks."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from statsmodels.stats.power import TTestPower

import scvi_perturb as svp
from scvi_perturb.tl._power import _found, _Noise

N_BLOCKS, N_GENES, N_CELLS, N_CONTROL = 4, 60, 60, 120


@pytest.fixture(scope="module")
def pilot():
    """Cells whose genes are negative binomial; changes of the first ten genes differ by block."""
    rng = np.random.default_rng(0)
    mean = np.exp(rng.normal(1.0, 1.0, N_GENES))
    parts, rows = [], []
    for block in range(N_BLOCKS):
        base = mean * np.exp(rng.normal(0, 0.5, N_GENES))  # which the cells of a block share
        change = np.where(np.arange(N_GENES) < 10, rng.normal(0, 0.6, N_GENES), 0.0)
        for label, n, rate in (
            ("control", N_CONTROL, base),
            ("A", N_CELLS, base * np.exp(change)),
        ):
            parts.append(rng.poisson(rate * rng.gamma(5, 1 / 5, (n, N_GENES))))
            rows += [(label, f"donor_{block}")] * n
    obs = pd.DataFrame(rows, columns=["perturbation", "donor"], dtype="category")
    obs.index = obs.index.astype(str)
    genes = pd.DataFrame(index=[f"g{i}" for i in range(N_GENES)])
    return anndata.AnnData(sparse.csr_matrix(np.vstack(parts).astype(np.float32)), obs, genes)


def ask(pilot, **options):
    given = {"effect": 0.3, "n_cells": [50], "n_blocks": [4], "block_key": "donor"} | options
    return svp.tl.power(pilot, **given)


@pytest.mark.parametrize(("n_blocks", "lfc", "level"), [(4, 0.5, 0.05), (9, 0.2, 0.01)])
def test_power_is_that_of_the_t_test(n_blocks, lfc, level):
    """Where genes lend each other nothing."""
    noise = _Noise(np.array([1e-9]), np.array([0.09]), 0.0, 1, 100, None)
    found = _found(np.array([lfc]), np.zeros(1), noise, n_cells=10, n_blocks=n_blocks, level=level)
    expected = TTestPower().power(lfc / 0.3, n_blocks, level)
    np.testing.assert_allclose(found["power"], expected, atol=2e-3)  # 256 points
    np.testing.assert_allclose(found["se"], 0.3 / np.sqrt(n_blocks), rtol=1e-6)


def test_power_without_effect_is_the_level():
    noise = _Noise(np.array([1e-9]), np.array([0.09]), 3.0, 9, 100, None)
    found = _found(np.zeros(1), np.zeros(1), noise, n_cells=10, n_blocks=3, level=0.05)
    np.testing.assert_allclose(found["power"], 0.05, atol=1e-3)


def test_assurance_is_the_mean_power_over_the_effects():
    """Powers lie between 0 and 1: the mean of 20,000 has an error below 0.008."""
    noise = _Noise(np.array([0.5]), np.array([0.01]), 4.0, 9, 100, None)
    size = {"n_cells": 20, "n_blocks": 4, "level": 0.05}
    draws = np.random.default_rng(0).normal(0.2, 0.15, 5_000)
    mean = _found(draws, np.zeros(1), noise, **size)["power"].mean()
    found = _found(np.array([0.2]), np.array([0.15]), noise, **size)["power"]
    assert found == pytest.approx(mean, abs=0.03)


def test_predicted_effects_have_rows_of_their_own(pilot):
    rng = np.random.default_rng(0)
    lfc = rng.normal(0, 0.3, (2, N_GENES))
    obs = pd.DataFrame({"perturbation": ["B", "C"]}, index=["0", "1"])
    effect = anndata.AnnData(lfc, obs, pilot.var, layers={"lfc": lfc, "std": np.zeros_like(lfc)})
    found = ask(pilot, effect=effect[:, ::-1].copy()).set_index(["condition", "gene"])
    np.testing.assert_allclose(found["lfc"].unstack().loc["C", pilot.var_names], lfc[1])
    given = ask(pilot, effect=float(lfc[1, 7])).set_index("gene")
    assert found["power"]["C", "g7"] == pytest.approx(given["power"]["g7"])


def test_variances_are_those_of_cells_and_blocks(pilot):
    found = ask(pilot, n_cells=[10, 1_000_000], n_blocks=[2, 8])
    assert len(found) == 4 * N_GENES
    assert set(found["n_control_cells"]) == {N_CONTROL}
    by_size = found.pivot(index="gene", columns=["n_cells", "n_blocks"], values="se")
    by_size = by_size.loc[pilot.var_names]
    np.testing.assert_allclose(by_size[10][2], 2 * by_size[10][8])
    # Ten genes change by 0.6 more or less from donor to donor, of which four are seen.
    between = by_size[1_000_000][8].to_numpy() * np.sqrt(8)
    assert 0.3 < between[:10].mean() < 0.8
    assert np.median(between[10:]) < 0.15
    power = found.pivot(index="gene", columns=["n_cells", "n_blocks"], values="power")
    assert (power[10][8] > power[10][2]).all()
    assert (power[1_000_000][8] > power[10][8]).all()


def test_signature_counts_how_genes_vary_together(pilot):
    one = ask(pilot, signatures={"g5": ["g5"]}).iloc[0]
    gene = ask(pilot).set_index("gene").loc["g5"]
    assert one["se"] == pytest.approx(gene["se"], rel=1e-3)
    double = pilot.copy()
    counts = double.X.toarray()
    counts[:, 20] = counts[:, 21]  # a gene and its copy
    double.X = sparse.csr_matrix(counts)
    pair = ask(double, signatures={"copies": ["g20", "g21"], "others": ["g21", "g22"]})
    single = ask(double).set_index("gene")["se"]
    assert pair["se"][0] == pytest.approx(single["g21"], rel=1e-3)
    # Of independent genes variances add up; those between four blocks are known to a half.
    alone = np.hypot(single["g21"], single["g22"]) / 2
    assert pair["se"][1] == pytest.approx(alone, rel=0.4)
    assert list(pair["signature"]) == ["copies", "others"]


def test_controls_alone_give_a_bound(pilot):
    control = pilot[pilot.obs["perturbation"] == "control"].copy()
    with pytest.warns(UserWarning, match="the most that the power can be"):
        bound = ask(control)
    assert (bound["se"] <= ask(pilot)["se"] + 1e-9).all()


def test_what_cannot_be_answered_is_refused(pilot):
    with pytest.raises(ValueError, match=r"n_blocks=1 .* at least 2"):
        ask(pilot, n_blocks=[1])
    with pytest.raises(svp.SchemaError, match=r"adata lacks: \['GATA1'\]"):
        ask(pilot, signatures={"mine": ["g1", "GATA1"]})
    with pytest.raises(svp.SchemaError, match="has no genes"):
        ask(pilot, signatures={"mine": []})
    with pytest.raises(svp.SchemaError, match=r"no layers \['lfc', 'std'\]"):
        ask(pilot, effect=pilot)
    sampled = pilot.copy()
    sampled.obs["reference_cell"] = sampled.obs_names
    with pytest.raises(svp.SchemaError, match="sampled by a model"):
        ask(sampled)
