"""Differential expression: the unit of replication is the block, and sampled cells are none."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats
from statsmodels.stats.multitest import multipletests

import scvi_perturb as svp
from scvi_perturb.tl._blocks import BlockContrast
from scvi_perturb.tl._differential import block_test, variance_prior, weighted

N_GENES = 120


def truth(n_blocks, seed=0, n_contexts=1):
    """Return a screen with known effects and batches that stand for donors."""
    config = svp.data.SimulatorConfig(
        n_perturbations=2,
        n_combinations=0,
        n_contexts=n_contexts,
        n_batches=n_blocks,
        batch_effect=0.3,
        program_share=0.5,
    )
    return svp.data.simulate_screen(n_cells=20, n_genes=N_GENES, seed=seed, config=config)


def screen(n_blocks, *, n_cells, n_control, seed=0, names=("pert_01",), **options):
    """Return cells of conditions and control, so many a block and context; equal seeds, new
    cells."""
    known = truth(n_blocks, seed, **options)
    repeats = n_blocks * known.obs["cell_type"].nunique()
    parts = [
        svp.data.sample_truth(known, name, n_cells=n * repeats, seed=100 * seed + i)
        for i, (name, n) in enumerate(
            [("control", n_control), *((name, n_cells) for name in names)]
        )
    ]
    made = anndata.concat(parts, index_unique="-")
    made.uns["truth"] = known.uns["truth"]
    return made


def null(n_blocks, seed, *, heterogeneity):
    """Return cells of one law with two labels; each pseudobulk's genes are thinned by chance."""
    made = screen(n_blocks, n_cells=1, n_control=119, seed=seed, names=("control",))
    rng = np.random.default_rng(seed)
    label = np.full(made.n_obs, "control", object)
    counts = made.X.toarray().astype(int)
    for block in range(n_blocks):
        rows = rng.permutation(np.flatnonzero(made.obs["batch"] == f"batch_{block + 1:02d}"))
        label[rows[:40]] = "nothing"
        for side in (rows[:40], rows[40:]):
            kept = np.exp(-np.abs(rng.normal(0, heterogeneity, N_GENES)))
            counts[side] = rng.binomial(counts[side], kept)
    made.X = sparse.csr_matrix(counts.astype(np.float32))
    made.obs["perturbation"] = pd.Categorical(label)
    return made


@pytest.fixture(scope="module")
def measured():
    return screen(4, n_cells=40, n_control=80)


@pytest.fixture(scope="module")
def table(measured):
    return svp.tl.differential_expression(measured, block_key="batch")


def test_rate_of_false_positives_at_the_null():
    """Ten experiments of 120 genes; the error of the rate is taken between experiments."""
    rates = {"block": [], "cell": []}
    for seed in range(10):
        adata = null(3, seed, heterogeneity=0.4)
        for unit, key in (("block", "batch"), ("cell", None)):
            found = svp.tl.differential_expression(adata, block_key=key, unit=unit)
            rates[unit].append((found["p_value"].dropna() < 0.05).mean())
    block, cell = np.array(rates["block"]), np.array(rates["cell"])
    assert block.mean() <= 0.05 + 3 * block.std(ddof=1) / np.sqrt(len(block))
    # Cells of one donor are alike: taken for replicates, they find what is not there.
    assert cell.mean() > 0.15


def test_effects_are_found_with_their_size(measured, table):
    true = svp.data.true_effect(measured, "pert_01")
    found = table.set_index("gene").loc[measured.var_names]
    tested = found["p_value"].notna().to_numpy()
    error = (found["lfc"] - true)[tested]
    # Of normal errors 95 % are within 1.96; the standard error of that share is about 2 %.
    assert (error.abs() < 1.96 * found["se"][tested]).mean() > 0.88
    large = tested & (np.abs(true) > 0.5)
    assert large.sum() >= 5
    assert (found["p_adjusted"][large] < 0.05).mean() > 0.8


def test_table_is_tidy_and_written(measured, table, tmp_path):
    assert list(table.columns[:4]) == ["condition", "gene", "lfc", "se"]
    assert len(table) == measured.n_vars
    assert set(table["n_blocks"]) == {4}
    assert (set(table["n_cells"]), set(table["n_control_cells"])) == ({160}, {320})
    assert set(table["source"]) == {"measured"}
    recorded = measured.uns["scvi_perturb"]["results"]["differential_expression"]
    assert (recorded["unit"], recorded["block_key"]) == ("block", "batch")
    measured.write_h5ad(tmp_path / "screen.h5ad")
    kept = anndata.read_h5ad(tmp_path / "screen.h5ad").uns["differential_expression"]
    np.testing.assert_array_equal(kept["p_value"], table["p_value"])


def test_p_values_are_those_of_t_adjusted_within_the_condition(table):
    there = table["p_value"].notna()
    expected = 2 * stats.t.sf(np.abs(table["lfc"] / table["se"]), table["df"])
    np.testing.assert_allclose(table["p_value"][there], expected[there])
    adjusted = multipletests(table["p_value"][there], method="fdr_bh")[1]
    np.testing.assert_allclose(table["p_adjusted"][there], adjusted)


def test_without_moderation_it_is_the_paired_t_test():
    """Two genes are too few to say what a variance should be."""
    rng = np.random.default_rng(0)
    changes = rng.normal(0.3, 1.0, (5, 2))
    cells = np.full(5, 1_000)
    ones = np.full(2, 1e-3)
    contrast = BlockContrast("A", (), (*"abcde",), changes, cells, cells, ones, ones, ones, ones)
    result = block_test(contrast, np.array([True, True]), sampled=False)
    expected = stats.ttest_1samp(changes, 0.0)
    np.testing.assert_allclose(result.lfc / result.se, expected.statistic)
    np.testing.assert_array_equal(result.df, 4)


def test_weights_of_equal_precision_are_equal():
    rng = np.random.default_rng(1)
    changes = rng.normal(size=(4, 30))
    mean, residual, weight = weighted(changes, np.full((4, 30), 0.5), np.ones(30))
    np.testing.assert_allclose(mean, changes.mean(axis=0))
    np.testing.assert_allclose(residual / weight[0], changes.var(axis=0, ddof=1))


def test_prior_of_variances_is_found():
    """Means over 5 draws of 4,000 genes; the degrees of freedom are found to about 4 %."""
    found = [
        variance_prior(1.7 * stats.f.rvs(3, 8, size=4_000, random_state=seed), 3)
        for seed in range(5)
    ]
    assert np.mean([one.df for one in found]) == pytest.approx(8, rel=0.1)
    assert np.mean([one.variance for one in found]) == pytest.approx(1.7, rel=0.05)
    equal = stats.chi2.rvs(3, size=4_000, random_state=0) / 3
    assert variance_prior(equal, 3).df > 50


def test_order_and_storage_of_cells_do_not_matter(measured, table):
    rows = np.random.default_rng(0).permutation(measured.n_obs)
    other = measured[rows].copy()
    other.layers["counts"], other.X = other.X.toarray(), np.log1p(other.X.toarray())
    keys = svp.data.ScreenKeys(layer="counts")
    again = svp.tl.differential_expression(other, block_key="batch", keys=keys, key_added="again")
    pd.testing.assert_frame_equal(again, table, rtol=1e-4)
    assert "again" in other.uns


def test_contexts_are_tested_apart():
    adata = screen(2, n_cells=20, n_control=40, n_contexts=2)
    keys = svp.data.ScreenKeys(context="cell_type")
    found = svp.tl.differential_expression(adata, block_key="batch", keys=keys)
    assert set(found["cell_type"]) == {"type_01", "type_02"}
    own = adata[adata.obs["cell_type"] == "type_02"].copy()
    alone = svp.tl.differential_expression(own, block_key="batch", keys=keys)
    both = found[found["cell_type"] == "type_02"].reset_index(drop=True)
    pd.testing.assert_frame_equal(both, alone, rtol=1e-4)


def test_a_condition_of_one_block_gets_no_p_value():
    adata = screen(2, n_cells=20, n_control=40, names=("pert_01", "pert_02"))
    lost = (adata.obs["perturbation"] == "pert_02") & (adata.obs["batch"] == "batch_02")
    with pytest.warns(UserWarning, match="1 conditions were measured in one block only"):
        found = svp.tl.differential_expression(adata[~lost].copy(), block_key="batch")
    by_condition = found.groupby("condition")
    assert by_condition["n_blocks"].first().to_dict() == {"pert_01": 2, "pert_02": 1}
    assert by_condition["p_value"].count()["pert_02"] == 0
    assert found["lfc"].notna().all()


def test_one_block_is_refused_and_cells_must_be_asked_for():
    adata = screen(1, n_cells=60, n_control=90)
    with pytest.raises(svp.SchemaError, match="unit='cell'"):
        svp.tl.differential_expression(adata, block_key="batch")
    assert set(svp.tl.differential_expression(adata, unit="cell")["n_blocks"]) == {1}


def test_rate_of_false_positives_between_cells_of_one_block():
    rates = np.array(
        [
            (svp.tl.differential_expression(adata, unit="cell")["p_value"].dropna() < 0.05).mean()
            for adata in (null(1, seed, heterogeneity=0.0) for seed in range(10))
        ]
    )
    assert abs(rates.mean() - 0.05) < 3 * rates.std(ddof=1) / np.sqrt(len(rates))


def test_blocks_must_be_named(measured):
    with pytest.raises(svp.SchemaError, match="name the column of obs"):
        svp.tl.differential_expression(measured)
    with pytest.raises(svp.SchemaError, match="no column 'donor'"):
        svp.tl.differential_expression(measured, block_key="donor")
    with pytest.raises(svp.SchemaError, match="leave out block_key"):
        svp.tl.differential_expression(measured, block_key="batch", unit="cell")


@pytest.fixture(scope="module")
def predicted(measured):
    """Three hundred cells that were sampled from fewer control cells, and these."""
    predictor = svp.predictors.NegativeBinomialMean(svp.predictors.Additive()).fit(measured)
    control = measured[measured.obs["perturbation"] == "control"][:200].copy()
    cells = predictor.sample(["pert_01"], reference=control, n_samples=600, seed=0)
    return cells, control


def test_sampled_cells_are_no_replicates(predicted):
    cells, control = predicted
    found = svp.tl.differential_expression(cells, block_key="batch", reference=control)
    assert set(found["source"]) == {"predicted"}
    assert set(found["n_cells"]) == {200}
    assert set(found["n_control_cells"]) == {200}
    assert set(found["n_blocks"]) == {4}


def test_more_copies_of_sampled_cells_say_nothing_more(predicted):
    cells, control = predicted
    copies = anndata.concat([cells] * 3, index_unique="-", uns_merge="first")
    once, thrice = (
        svp.tl.differential_expression(one, block_key="batch", reference=control, min_count=1)
        for one in (cells, copies)
    )
    pd.testing.assert_frame_equal(once, thrice, rtol=1e-5)
    cellwise = svp.tl.differential_expression(copies, unit="cell", reference=control)
    assert set(cellwise["n_cells"]) == {200}


def test_a_model_that_changes_all_blocks_alike_is_not_surer_than_its_cells():
    changes = np.full((4, 30), 0.2) + 1e-6 * np.random.default_rng(0).normal(size=(4, 30))
    cells, spread = np.full(4, 25), np.full(30, 0.5)
    contrast = BlockContrast(
        "A", (), (*"abcd",), changes, cells, cells, spread, spread, np.ones(30), spread
    )
    tested = np.ones(30, bool)
    np.testing.assert_allclose(block_test(contrast, tested, sampled=True).se, np.sqrt(0.01))
    assert (block_test(contrast, tested, sampled=False).se < 1e-3).all()


def test_what_is_behind_sampled_cells_must_be_known(predicted, measured):
    cells, control = predicted
    with pytest.raises(svp.SchemaError, match="Pass as `reference` the control cells"):
        svp.tl.differential_expression(cells, block_key="batch")
    with pytest.raises(svp.SchemaError, match="`reference` does not have"):
        svp.tl.differential_expression(cells, block_key="batch", reference=control[:10].copy())
    lost = cells.copy()
    del lost.obs["reference_cell"]
    with pytest.raises(svp.SchemaError, match="how many real cells"):
        svp.tl.differential_expression(lost, block_key="batch", reference=control)
    effects = svp.predictors.NoChange().fit(measured).predict(["pert_01"])
    with pytest.raises(svp.SchemaError, match="hold no cells"):
        svp.tl.differential_expression(effects, block_key="batch")


def test_measured_cells_take_controls_from_the_reference(measured, table):
    treated = measured[measured.obs["perturbation"] != "control"].copy()
    control = measured[measured.obs["perturbation"] == "control"].copy()
    with pytest.raises(svp.SchemaError, match="Pass the control cells as `reference`"):
        svp.tl.differential_expression(treated, block_key="batch")
    found = svp.tl.differential_expression(treated, block_key="batch", reference=control)
    pd.testing.assert_frame_equal(found, table, rtol=1e-4)
    with pytest.raises(svp.SchemaError, match="control cells of its own"):
        svp.tl.differential_expression(measured, block_key="batch", reference=control)
