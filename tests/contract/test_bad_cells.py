"""Cells that effects cannot be learned from are named before anything is trained."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scvi_perturb import PerturbationFeatures, SchemaError
from scvi_perturb.data import split
from scvi_perturb.testing import SINGLE, controls, dense, fit, make_model, make_split
from tests.contract.registry import APART

FIRST = "type_01"


#: What the tests here are run on.
CASES = APART


def test_cells_without_counts_are_refused(case, screen):
    counts = screen.X.tolil()
    counts[:3] = 0
    screen.X = sparse.csr_matrix(counts)
    with pytest.raises(SchemaError, match=r"3 cells have no counts; drop them"):
        fit(case, make_model(case, screen))


def test_context_without_controls_is_named(case, screen):
    is_control = screen.obs["perturbation"] == "control"
    kept = screen[~(is_control & (screen.obs["cell_type"] == FIRST))].copy()
    with pytest.raises(SchemaError, match=rf"No control cell .*\['{FIRST}'\].*Drop these cells"):
        fit(case, make_model(case, kept))


def test_context_without_controls_cannot_be_asked_for(case, trained):
    other = controls(trained.adata)
    other = other[other.obs["cell_type"] != FIRST].copy()
    asked = {"perturbation": [SINGLE], "cell_type": [FIRST]}
    with pytest.raises(SchemaError, match=r"No control cell is in the context"):
        trained.sample(pd.DataFrame(asked), reference=other)


def test_library_below_the_counts_is_refused(case, screen):
    screen.obs["size"] = np.log(np.asarray(screen.X.sum(axis=1)).ravel())
    with pytest.raises(SchemaError, match=r"below the sum of counts .* not their logarithm"):
        fit(case, make_model(case, screen, setup={"library_key": "size"}))


def test_a_single_treated_cell_is_too_few(case, screen):
    treated = np.flatnonzero(screen.obs["perturbation"] != "control")[:1]
    kept = np.append(np.flatnonzero(screen.obs["perturbation"] == "control"), treated)
    few = screen[kept].copy()
    with pytest.raises(SchemaError, match=r"hold (no|1) treated cell"):
        fit(case, make_model(case, few))


def test_folder_of_another_run_is_refused(case, screen):
    fit(case, make_model(case, screen.copy()), checkpoint_dir="run")
    other = make_model(case, screen)
    with pytest.raises(SchemaError, match=r"another run, with other .*training cells"):
        fit(case, other, split=make_split(screen), checkpoint_dir="run")


def test_requests_start_from_the_controls_of_training_whatever_the_data(
    case, trained, screen, tmp_path
):
    trained.save(str(tmp_path / "saved"))
    other = screen[:200].copy()
    other.X = other.X * 2
    loaded = case.model.load(str(tmp_path / "saved"), other)
    asked = {"n_samples": 5, "seed": 1}
    cells = [dense(model.sample([SINGLE], **asked).X) for model in (loaded, trained)]
    np.testing.assert_array_equal(*cells)
    given = loaded.sample([SINGLE], reference=controls(other), **asked)
    assert set(given.obs["reference_cell"]) <= set(controls(other).obs_names)


def test_novelty_knows_the_context_of_the_reference(case, trained):
    own = controls(trained.adata)
    new = own.copy()
    new.obs["cell_type"] = "never seen"
    obs = [
        trained.predict([SINGLE], reference=cells, n_samples=20).obs.iloc[0] for cells in (own, new)
    ]
    novelty = [one["novelty"] for one in obs]
    if hasattr(trained, "mean_"):  # each scenario has a regression of its own
        assert [one["scenario"] for one in obs] == ["seen", "unseen_context"]
        assert 0 < novelty[0] != novelty[1]
    else:
        assert novelty[0] < 0.05
        assert novelty[1] > novelty[0] + 0.1


def test_batch_held_out_of_training_is_unknown(case, screen):
    held = np.flatnonzero(screen.obs["batch"] == "batch_02")
    seen = np.flatnonzero(screen.obs["batch"] != "batch_02")
    parts = split(screen, "cells", seed=0)
    parts = replace(parts, train=seen[10:], validation=seen[:10], test=held)
    model = fit(case, make_model(case, screen), split=parts)
    asked = pd.DataFrame({"perturbation": [SINGLE], "batch": ["batch_02"]})
    with pytest.raises(SchemaError, match=r"were not trained on; the model knows \['batch_01'\]"):
        model.sample(asked, n_samples=5)


def test_rows_that_name_no_batch_take_the_references(case, trained):
    asked = pd.DataFrame({"perturbation": [SINGLE, SINGLE], "batch": ["batch_02", None]})
    cells = trained.sample(asked, n_samples=20)
    first, second = cells.obs["batch"].iloc[:20], cells.obs["batch"].iloc[20:]
    assert set(first) == {"batch_02"}
    assert set(second) == {"batch_01", "batch_02"}


def test_effects_that_cannot_be_told_from_their_batch_are_told(case, screen, caplog):
    treated = screen.obs["perturbation"] == SINGLE
    screen.obs["plate"] = np.where(treated, "other", "same")
    setup = {"context_keys": ["cell_type"], "batch_key": "plate"}
    model = fit(case, make_model(case, screen, setup=setup))
    assert "cannot be told from the batch" in caplog.text
    assert f"{SINGLE} in {FIRST}" in caplog.text
    caplog.clear()
    model.predict([SINGLE], n_samples=5)
    assert f"{SINGLE} in {FIRST}" in caplog.text
    caplog.clear()
    others = set(screen.obs["perturbation"]) - {SINGLE, "control"}
    model.predict([next(name for name in sorted(others) if SINGLE not in name)], n_samples=5)
    assert "batch" not in caplog.text


def test_features_of_other_names_are_refused(case, screen, caplog):
    names = [name for name in screen.obs["perturbation"].unique() if "+" not in name]
    table = pd.DataFrame({"a": np.arange(len(names)), "b": 1.0}, index=names)
    other = PerturbationFeatures({"e": table.rename(str.upper)})
    with pytest.raises(SchemaError, match=r"None of the .* perturbations of the screen has feat"):
        make_model(case, screen.copy(), features=other)
    make_model(case, screen, features=PerturbationFeatures({"e": table.iloc[:-1]}))
    assert "perturbations of the screen have no features" in caplog.text


def test_repeated_genes_are_refused(case, screen):
    screen.var_names = [screen.var_names[1], *screen.var_names[1:]]
    with pytest.raises(SchemaError, match="Gene names are not unique"):
        make_model(case, screen)


def test_a_value_that_is_not_finite_is_found_wherever_it_lies(case, screen):
    counts = screen.X.astype(np.float32)
    counts.data[len(counts.data) // 3] = np.nan
    screen.X = counts
    with pytest.raises(SchemaError, match="NaN or infinite"):
        make_model(case, screen)
