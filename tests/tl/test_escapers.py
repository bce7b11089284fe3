"""Which cells responded: beside the simulator's truth, and where nothing responds."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import stats

import scvi_perturb as svp

SHARE = 0.6


@pytest.fixture(scope="module")
def screen() -> AnnData:
    config = svp.data.SimulatorConfig(
        n_perturbations=3, n_combinations=0, n_contexts=1, effect_size=1.5, responder_fraction=SHARE
    )
    return svp.data.simulate_screen(n_cells=1500, n_genes=200, seed=0, config=config)


def drawn(labels, rates, *, seed=0) -> AnnData:
    """Poisson counts of cells whose rates are given, `(n_cells, n_genes)`."""
    counts = np.random.default_rng(seed).poisson(rates).astype(np.float32)
    return AnnData(counts, obs=pd.DataFrame({"perturbation": labels}, map(str, range(len(labels)))))


def test_responders_are_told_from_escapers(screen):
    adata = screen.copy()
    table = svp.tl.escapers(adata, block_key="batch", level=0.99)
    probability, truth = adata.obs["responded"], adata.obs["truth_responder"].to_numpy(bool)
    control = (adata.obs["perturbation"] == "control").to_numpy()
    assert probability[control].isna().all()
    assert (adata.obs.loc[control, "responded_class"] == "control").all()
    for row in table.to_dict("records"):
        own = (adata.obs["perturbation"] == row["perturbation"]).to_numpy()
        cells = probability[own]
        moved, escaped = cells[truth[own]], cells[~truth[own]]
        area = stats.mannwhitneyu(moved, escaped).statistic / (len(moved) * len(escaped))
        assert area > 0.9
        assert row["lower"] <= truth[own].mean() <= row["upper"]
        assert row["n_cells"] == own.sum()
        assert row["n_responders"] == (cells >= 0.5).sum()
        assert row["share"] == pytest.approx(cells.mean(), abs=0.05)
        called = adata.obs.loc[own, "responded_class"] == "responder"
        assert (called == (cells >= 0.5)).all()
    pd.testing.assert_frame_equal(adata.uns["responded"], table)
    assert adata.uns["scvi_perturb"]["results"]["responded"]["function"] == "escapers"


def test_probabilities_are_calibrated(screen):
    adata = screen.copy()
    svp.tl.escapers(adata, block_key="batch")
    own = adata.obs["responded"].notna()
    probability, truth = adata.obs.loc[own, "responded"], adata.obs.loc[own, "truth_responder"]
    sure = probability > 0.9
    # Of cells called with an error of at most 0.1: 3 standard errors above.
    assert truth[sure].mean() > 0.9 - 3 * np.sqrt(0.09 / sure.sum())
    error = np.mean((probability - truth.astype(float)) ** 2)
    assert error < 0.5 * SHARE * (1 - SHARE)  # half of what the share alone would give


def test_control_cells_do_not_respond():
    rates = np.exp(np.random.default_rng(1).normal(0, 1, 100))
    labels = np.repeat(["control", *[f"nothing_{i}" for i in range(10)]], [400, *[60] * 10])
    adata = drawn(labels, np.tile(rates, (1000, 1)))
    table = svp.tl.escapers(adata)
    # No more than the nominal 5 %, and 3 standard errors.
    assert table["n_responders"].sum() / 600 < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 600)
    assert (table["lower"] == 0).mean() >= 0.8
    assert table["p_response"].mean() < 0.5


def test_batches_are_no_response():
    rng = np.random.default_rng(2)
    rates = np.exp(rng.normal(0.5, 0.5, 80))
    other = rates * np.exp(rng.normal(0, 0.6, 80))
    labels = np.repeat(["control", "control", "A"], [150, 150, 100])
    batch = np.repeat(["one", "two", "two"], [150, 150, 100])
    adata = drawn(labels, np.where((batch == "one")[:, None], rates, other))
    adata.obs["batch"] = batch
    (without,) = svp.tl.escapers(adata).to_dict("records")
    (taken_off,) = svp.tl.escapers(adata, block_key="batch").to_dict("records")
    assert without["p_response"] > 0.9
    assert taken_off["p_response"] < 0.5
    assert taken_off["n_responders"] == 0


def test_other_conditions_do_not_matter_and_seeds_repeat(screen):
    whole, part = screen.copy(), screen[screen.obs["perturbation"] != "pert_03"].copy()
    first = svp.tl.escapers(whole).set_index("perturbation")
    again = svp.tl.escapers(screen.copy()).set_index("perturbation")
    pd.testing.assert_frame_equal(first, again)
    fewer = svp.tl.escapers(part).set_index("perturbation")
    assert set(fewer.index.astype(str)) == {"pert_01", "pert_02"}
    # Cells are divided anew, since rows have moved: shares agree within their intervals.
    for name, row in fewer.iterrows():
        assert first.loc[name, "lower"] <= row["share"] <= first.loc[name, "upper"]


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"key_added": "perturbation"}, r"write over obs\['perturbation'\]"),
        ({}, {"key_added": "scvi_perturb"}, "choose another"),
        ({"library": 0.0}, {"keys": svp.data.ScreenKeys(library="library")}, "no library size for"),
        ({"library": "?"}, {"keys": svp.data.ScreenKeys(library="library")}, "no library size for"),
        ({}, {"keys": svp.data.ScreenKeys(library="library")}, "no column 'library'"),
    ],
)
def test_nothing_is_written_where_the_call_is_refused(screen, change, options, message):
    adata = screen.copy()
    for column, value in change.items():
        adata.obs[column] = value
    before = adata.obs.copy()
    with pytest.raises(svp.SchemaError, match=message):
        svp.tl.escapers(adata, **options)
    pd.testing.assert_frame_equal(adata.obs, before)
    assert adata.uns.keys() == screen.uns.keys()


def test_effects_and_genes_without_counts_are_refused(screen):
    with pytest.raises(svp.SchemaError, match="These are effects"):
        svp.tl.escapers(svp.predictors.NoChange().fit(screen).predict(["pert_01"]))
    empty = screen.copy()
    empty.X = empty.X * 0
    with pytest.raises(svp.SchemaError, match="nothing can be seen"):
        svp.tl.escapers(empty)


def test_few_cells_are_named(screen):
    few = screen[:0].copy()
    labels = screen.obs["perturbation"].astype(str).to_numpy()
    rows = [*np.flatnonzero(labels == "control"), *np.flatnonzero(labels == "pert_01")]
    few = screen[[*rows, *np.flatnonzero(labels == "pert_02")[:4]]].copy()
    with pytest.warns(UserWarning, match="1 conditions, such as pert_02, have fewer than 10"):
        table = svp.tl.escapers(few)
    assert table["perturbation"].tolist() == ["pert_01"]
    own = few.obs["perturbation"] == "pert_02"
    assert few.obs.loc[own, ["responded", "responded_class"]].isna().all(axis=None)
    lonely = screen[[*np.flatnonzero(labels == "control")[:20], *rows[-50:]]].copy()
    with pytest.raises(svp.SchemaError, match="Found 20 control cells; expected at least 30"):
        svp.tl.escapers(lonely)
