"""Drawing cells and predicting effects: what comes back, seeds, names, references."""

from __future__ import annotations

import re

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scvi_perturb import SamplerConfig, SchemaError, UnknownPerturbationError
from scvi_perturb.generative import SAMPLERS, SOLVERS
from scvi_perturb.testing import (
    FEATURED,
    HELD_OUT,
    NEW_PAIR,
    OTHER,
    PAIR,
    SINGLE,
    controls,
    dense,
    fit,
    make_model,
)

#: Measured, and not measured but predictable.
KNOWN = [SINGLE, PAIR, "pert_04", "control"]
UNSEEN = [NEW_PAIR, FEATURED, f"{FEATURED}+{SINGLE}"]


def test_cells_are_integer_counts_with_their_condition(trained, simulated):
    cells = trained.sample([*KNOWN, *UNSEEN], n_samples=20)
    assert isinstance(cells.X, sparse.csr_matrix)
    assert cells.shape == (20 * 7, simulated.n_vars)
    assert cells.X.nnz > 0
    assert (cells.X.data > 0).all()
    assert (cells.X.data == np.rint(cells.X.data)).all()
    assert cells.var_names.tolist() == simulated.var_names.tolist()
    assert cells.obs_names.is_unique
    assert (
        cells.obs["perturbation"].tolist()
        == np.repeat([*KNOWN, NEW_PAIR, FEATURED, f"{SINGLE}+{FEATURED}"], 20).tolist()
    )
    assert cells.obs["draw"].tolist() == list(range(20)) * 7


def test_a_column_of_the_request_says_how_many_cells_each_row_gets(trained):
    table = pd.DataFrame({"perturbation": [SINGLE, PAIR], "n_cells": [3, 9]})
    cells = trained.sample(table, n_samples=500)
    assert cells.obs["perturbation"].value_counts().to_dict() == {SINGLE: 3, PAIR: 9}
    assert trained.predict(table).obs["n_cells"].tolist() == [3, 9]
    even = trained.sample(table.assign(n_cells=4), seed=1)
    same = trained.sample([SINGLE, PAIR], n_samples=4, seed=1)
    np.testing.assert_array_equal(even.X.toarray(), same.X.toarray())
    for wrong in (0, 2.5, None, "many"):
        with pytest.raises(SchemaError, match="whole number of cells from 1 on"):
            trained.sample(table.assign(n_cells=[5, wrong]))


def test_cells_say_which_control_they_start_from(trained, simulated):
    cells = trained.sample([SINGLE], n_samples=200)
    start = simulated.obs.loc[cells.obs["reference_cell"]]
    assert set(start["perturbation"]) == {"control"}
    assert set(start.index) <= set(simulated.obs_names[trained.train_indices])
    for column in ("cell_type", "batch"):
        assert (start[column].astype(str).to_numpy() == cells.obs[column].astype(str)).all()


def test_results_say_what_they_are(case, trained):
    method, asked = "one pass", {}
    if case.samplers:
        method = case.samplers[-1]
        asked = {"sampler": SamplerConfig(method, 6, 2.0)}
    told = trained.sample([SINGLE], n_samples=3, seed=4, **asked).uns["scvi_perturb"]
    assert told["model"] == case.name
    assert (told["units"], told["seed"], told["sampler"]) == ("counts", 4, method)
    assert told["library_size"] == "reference"
    # Guidance asks the network twice.
    assert told["n_function_evaluations"] == (12 if case.samplers else 1)
    assert told["trained_on"] == trained.trained_on_
    effect = trained.predict([SINGLE], n_samples=3).uns["scvi_perturb"]
    assert effect["units"] == "log1p(counts per 10,000)"


def test_every_sampler_draws(case, trained):
    for method in case.samplers:
        cells = trained.sample([SINGLE], n_samples=5, sampler=method)
        assert cells.X.sum() > 0
        assert cells.uns["scvi_perturb"]["sampler"] == method


def test_samplers_of_other_models_are_refused(case, trained):
    if not case.samplers:
        with pytest.raises(TypeError, match="unexpected keyword argument 'sampler'"):
            trained.sample([SINGLE], n_samples=5, sampler="heun")
        return
    other = next(name for name in (*SAMPLERS, *SOLVERS) if name not in case.samplers)
    with pytest.raises(ValueError, match=f"sampler='{re.escape(other)}'"):
        trained.sample([SINGLE], n_samples=5, sampler=other)


def test_library_sizes_are_those_of_the_reference(trained, simulated):
    cells = trained.sample([SINGLE, "control"], n_samples=400)
    wanted = simulated.obs["library_size"].loc[cells.obs["reference_cell"]].to_numpy(float)
    drawn = np.asarray(cells.X.sum(axis=1)).ravel()
    noise = (drawn - wanted).std() / len(drawn) ** 0.5
    assert abs((drawn - wanted).mean()) < 4 * noise
    assert np.corrcoef(drawn, wanted)[0, 1] > 0.5


def test_library_size_can_be_set(trained):
    cells = trained.sample([SINGLE], n_samples=300, library_size=1000)
    drawn = np.asarray(cells.X.sum(axis=1)).ravel()
    assert abs(drawn.mean() - 1000) < 4 * drawn.std() / 300**0.5
    assert cells.uns["scvi_perturb"]["library_size"] == "1000"
    with pytest.raises(ValueError, match="library_size=0 is out of range"):
        trained.sample([SINGLE], library_size=0)


def test_library_size_can_follow_the_perturbation(case, screen):
    # Some perturbations make cells smaller: every second count is lost.
    treated = (screen.obs["perturbation"] == SINGLE).to_numpy()
    counts = screen.X.toarray()
    counts[treated] = np.random.default_rng(0).binomial(counts[treated].astype(int), 0.5)
    screen.X = sparse.csr_matrix(counts)
    model = fit(case, make_model(case, screen), max_epochs=1)
    total = {}
    for choice in ("reference", "predicted"):
        cells = model.sample([SINGLE], n_samples=300, library_size=choice)
        assert cells.uns["scvi_perturb"]["library_size"] == choice
        total[choice] = cells.X.sum(axis=1).mean()
    # What is known of a few cells is drawn to no change; 300 cells have a standard error of 0.02.
    (code,) = (c for c, one in enumerate(model._screen.table.conditions) if str(one) == SINGLE)
    known = np.exp(model.library_shifts_[code])
    assert 0.4 < known < 0.65
    assert total["predicted"] / total["reference"] == pytest.approx(known, abs=0.1)


def test_same_seed_same_cells_other_seed_others(trained):
    first, again, other = (trained.sample(KNOWN, n_samples=10, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(dense(first.X), dense(again.X))
    assert first.obs.equals(again.obs)
    assert not np.array_equal(dense(first.X), dense(other.X))
    unseeded = [dense(trained.sample(KNOWN, n_samples=10, seed=None).X) for _ in range(2)]
    assert not np.array_equal(*unseeded)


def test_same_seed_same_effects_other_seed_others(trained):
    first, again, other = (trained.predict(KNOWN, n_samples=10, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(first.layers["lower"], again.layers["lower"])
    assert not np.array_equal(first.layers["lower"], other.layers["lower"])


def test_order_of_components_is_irrelevant(trained):
    one, two = (
        trained.sample(["+".join(names)], n_samples=20)
        for names in (("pert_02", "pert_03"), ("pert_03", "pert_02"))
    )
    assert one.obs.equals(two.obs)
    np.testing.assert_array_equal(dense(one.X), dense(two.X))


def test_effects_are_one_row_a_condition(trained, simulated):
    asked = [*KNOWN, *UNSEEN]
    effects = trained.predict(asked, n_samples=50)
    assert effects.shape == (len(asked), simulated.n_vars)
    assert effects.var_names.tolist() == simulated.var_names.tolist()
    layers = {key: effects.layers[key] for key in ("lfc", "lower", "upper", "std")}
    assert all(np.isfinite(values).all() for values in (effects.X, *layers.values()))
    assert (layers["lower"] <= layers["lfc"]).all()
    assert (layers["lfc"] <= layers["upper"]).all()
    assert (layers["std"] >= 0).all()
    # log1p of counts per ten thousand: all genes together have ten thousand.
    np.testing.assert_allclose(np.expm1(effects.X).sum(axis=1), 1e4, rtol=0.02)
    assert effects.obs["perturbation"].astype(str).tolist()[:4] == KNOWN


def test_effects_are_differences_from_the_reference(trained, simulated):
    reference = controls(simulated)
    effects = trained.predict([SINGLE], reference=reference, n_samples=None)
    share = np.asarray(reference.X.sum(axis=0)).ravel() / reference.X.sum()
    start = np.log1p(1e4 * share)
    np.testing.assert_allclose(effects.X[0] - effects.layers["lfc"][0], start, atol=1e-4)


def test_intervals_widen_with_coverage(trained):
    wide, narrow = (trained.predict([SINGLE], interval=level) for level in (0.99, 0.5))
    widths = [(e.layers["upper"] - e.layers["lower"]).mean() for e in (wide, narrow)]
    assert widths[0] > 1.5 * widths[1] > 0
    np.testing.assert_array_equal(wide.X, narrow.X)


@pytest.mark.parametrize("interval", [0.0, 1.0, 90])
def test_coverage_outside_0_and_1_is_refused(trained, interval):
    with pytest.raises(ValueError, match=r"is out of range"):
        trained.predict([SINGLE], interval=interval)


def test_novelty_rises_with_distance_from_training(trained):
    asked = ["control", SINGLE, NEW_PAIR, FEATURED]
    obs = trained.predict(asked, n_samples=5).obs
    novelty = obs["novelty"].to_numpy()
    np.testing.assert_allclose(obs["support"], 1 - novelty)
    assert ((novelty >= 0) & (novelty <= 1)).all()
    assert novelty[0] == 0
    assert 0 < max(novelty[1:3]) < novelty[3]
    if not hasattr(trained, "mean_"):  # of the fixed kernel, to which a measurement has no noise
        assert novelty[1] < 0.1 < novelty[2]


def test_unknown_perturbation_is_named_with_the_nearest(trained):
    for asked in (["pert_11"], [SINGLE, f"{SINGLE}+pert_11"]):
        for verb in (trained.sample, trained.predict):
            with pytest.raises(UnknownPerturbationError, match="'pert_11'") as raised:
                verb(asked)
            assert raised.value.name == "pert_11"
            assert "pert_01" in raised.value.nearest
            assert "pert_01" in str(raised.value)


def test_held_out_perturbation_without_features_is_unknown(trained):
    # It has a code and untrained weights: nothing is known about it all the same.
    for asked in (HELD_OUT, f"{SINGLE}+{HELD_OUT}"):
        with pytest.raises(UnknownPerturbationError, match=HELD_OUT) as raised:
            trained.sample([asked])
        assert HELD_OUT not in raised.value.nearest


@pytest.mark.parametrize("n_samples", [0, -3])
def test_number_of_samples_must_be_positive(trained, n_samples):
    for verb in (trained.sample, trained.predict):
        with pytest.raises(ValueError, match=f"n_samples={n_samples}"):
            verb([SINGLE], n_samples=n_samples)


def test_unknown_sampler_is_refused(case, trained):
    if not case.samplers:
        pytest.skip("one pass draws: there is no sampler to choose")
    with pytest.raises(ValueError, match=f"'{re.escape(case.samplers[-1])}'"):
        trained.sample([SINGLE], sampler="runge")


def test_reference_of_new_cells_needs_no_training(trained, simulated):
    reference = controls(simulated)[:7].copy()
    reference.obs["cell_type"] = "never seen"
    reference.obs["batch"] = "tomorrow's"
    cells = trained.sample([SINGLE, NEW_PAIR], reference=reference, n_samples=None)
    assert cells.n_obs == 14
    assert cells.obs["reference_cell"].tolist() == reference.obs_names.tolist() * 2
    assert set(cells.obs["cell_type"]) == {"never seen"}
    one = trained.predict([FEATURED], reference=reference[:1].copy())
    assert np.isfinite(one.X).all()


def test_reference_without_columns_is_enough(trained, simulated):
    reference = controls(simulated)
    reference.obs = reference.obs[[]]
    assert trained.sample([OTHER], reference=reference, n_samples=4).n_obs == 4


def test_reference_in_another_order_of_genes_is_reordered(trained, simulated):
    reference = controls(simulated)
    swapped = reference[:, ::-1].copy()
    one, two = (trained.sample([SINGLE], reference=r, n_samples=20) for r in (reference, swapped))
    np.testing.assert_array_equal(dense(one.X), dense(two.X))
    assert two.var_names.tolist() == simulated.var_names.tolist()
    assert swapped.var_names.tolist() == simulated.var_names.tolist()[::-1]


def test_reference_must_fit(trained, simulated):
    reference = controls(simulated)
    gene = simulated.var_names[3]
    with pytest.raises(SchemaError, match=f"1 of the 30 genes .* missing.*{gene}"):
        trained.sample([SINGLE], reference=reference[:, reference.var_names != gene].copy())
    with pytest.raises(SchemaError, match="must be control cells"):
        trained.sample([SINGLE], reference=simulated)
    with pytest.raises(SchemaError, match="no cells"):
        trained.sample([SINGLE], reference=reference[:0].copy())
    empty = reference.copy()
    empty.X = sparse.csr_matrix(empty.shape, dtype=np.float32)
    with pytest.raises(SchemaError, match="no counts"):
        trained.sample([SINGLE], reference=empty)
    normal = reference.copy()
    normal.X = reference.X.log1p()
    with pytest.raises(SchemaError, match=r"the reference .*log-normalised"):
        trained.sample([SINGLE], reference=normal)


def test_one_reference_cell_without_counts_is_counted(trained, simulated):
    reference = controls(simulated)
    reference.X.data[reference.X.indptr[3] : reference.X.indptr[4]] = 0
    with pytest.raises(SchemaError, match="1 reference cells have no counts; drop them"):
        trained.sample([SINGLE], reference=reference)


def test_reference_on_disk_or_a_view_gives_the_same_cells(trained, simulated, tmp_path):
    reference = controls(simulated)
    wanted = trained.sample([SINGLE], reference=reference, n_samples=20)
    del reference.uns["truth"]
    reference.write_h5ad(tmp_path / "controls.h5ad")
    with_file = anndata.read_h5ad(tmp_path / "controls.h5ad", backed="r")
    view = simulated[(simulated.obs["perturbation"] == "control").to_numpy()]
    for given in (with_file, view):
        cells = trained.sample([SINGLE], reference=given, n_samples=20)
        np.testing.assert_array_equal(dense(cells.X), dense(wanted.X))
        assert cells.obs.equals(wanted.obs)


def test_controls_of_a_reference_are_read_as_those_of_a_screen(trained, simulated):
    reference = controls(simulated)[:6].copy()
    reference.obs["perturbation"] = ["control", "control+control", " control "] * 2
    assert trained.sample([SINGLE], reference=reference, n_samples=None).n_obs == 6
    reference.obs["perturbation"] = ["control"] * 5 + [SINGLE]
    with pytest.raises(SchemaError, match=f"1 of 6 have .* other than 'control', e.g. '{SINGLE}'"):
        trained.sample([SINGLE], reference=reference)
    reference.obs["perturbation"] = ["control"] * 5 + [None]
    with pytest.raises(SchemaError, match="missing for 1 of 6 cells"):
        trained.sample([SINGLE], reference=reference)


def test_reference_is_not_changed(trained, simulated):
    reference = controls(simulated)
    before = reference.copy()
    trained.sample([SINGLE], reference=reference, n_samples=5)
    trained.predict([SINGLE], reference=reference, n_samples=5)
    assert (reference.X != before.X).nnz == 0
    assert reference.obs.equals(before.obs)
    assert set(reference.uns) == set(before.uns)
