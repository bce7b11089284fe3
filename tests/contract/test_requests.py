"""What may be asked for: tables of conditions, contexts, batches; what is refused, and how."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scvi_perturb import NotTrainedError, SchemaError
from scvi_perturb.testing import NEW_PAIR, SINGLE, controls, dense


def test_nothing_is_told_before_training(case, untrained):
    calls = {
        "sample": lambda: untrained.sample([SINGLE]),
        "predict": lambda: untrained.predict([SINGLE]),
        "latent": untrained.get_latent_representation,
        "perturbations": untrained.get_perturbation_representation,
        "likelihood": getattr(untrained, case.likelihood),
        "posterior": untrained.posterior_predictive_sample,
    }
    for call in calls.values():
        with pytest.raises(NotTrainedError, match=f"{case.name} has not been trained.*train()"):
            call()


def test_table_asks_for_contexts_and_batches(trained, simulated):
    table = pd.DataFrame(
        {
            "perturbation": [SINGLE, NEW_PAIR],
            "cell_type": ["type_01", "type_02"],
            "batch": ["batch_02", "batch_01"],
        }
    )
    cells = trained.sample(table, n_samples=30)
    np.testing.assert_array_equal(cells.obs["cell_type"], table["cell_type"].repeat(30))
    np.testing.assert_array_equal(cells.obs["batch"], table["batch"].repeat(30))
    start = simulated.obs.loc[cells.obs["reference_cell"]]
    np.testing.assert_array_equal(start["cell_type"], table["cell_type"].repeat(30))
    assert table.columns.tolist() == ["perturbation", "cell_type", "batch"]


def test_column_left_out_means_the_reference(trained, simulated):
    reference = controls(simulated)
    reference = reference[reference.obs["cell_type"] == "type_02"].copy()
    cells = trained.sample([SINGLE], reference=reference, n_samples=10)
    assert set(cells.obs["cell_type"]) == {"type_02"}


def test_row_without_a_context_takes_that_of_its_reference(trained, simulated):
    table = pd.DataFrame({"perturbation": SINGLE, "cell_type": ["type_01", None], "batch": np.nan})
    cells = trained.sample(table, n_samples=30)
    assert set(cells.obs["cell_type"][:30]) == {"type_01"}
    assert set(cells.obs["cell_type"][30:]) == {"type_01", "type_02"}
    start = simulated.obs.loc[cells.obs["reference_cell"]]
    for column in ("cell_type", "batch"):
        np.testing.assert_array_equal(start[column].astype(str), cells.obs[column].astype(str))
    effects = trained.predict(table, n_samples=30)
    assert effects.obs["cell_type"].isna().tolist() == [False, True]
    assert np.isfinite(effects.obs["novelty"]).all()


def test_names_and_a_table_of_names_ask_alike(trained):
    names = [SINGLE, "control"]
    frame = pd.DataFrame({"perturbation": pd.Categorical(names)})
    alone = trained.sample(SINGLE, n_samples=8)
    one, two = (trained.sample(asked, n_samples=8) for asked in (names, frame))
    np.testing.assert_array_equal(dense(one.X), dense(two.X))
    assert alone.n_obs == 8


def test_context_without_controls_is_refused(trained):
    table = pd.DataFrame({"perturbation": [SINGLE], "cell_type": ["type_09"]})
    with pytest.raises(SchemaError, match=r"No control cell is in the context.*type_09.*type_01"):
        trained.sample(table)
    with pytest.raises(SchemaError, match="reference="):
        trained.predict(table)


def test_batch_never_trained_on_is_refused(trained):
    table = pd.DataFrame({"perturbation": [SINGLE], "batch": ["batch_09"]})
    with pytest.raises(SchemaError, match=r"'batch_09'.*'batch_01', 'batch_02'"):
        trained.sample(table)


def test_column_that_means_nothing_is_refused(trained):
    table = pd.DataFrame({"perturbation": [SINGLE], "donor": ["d1"], "dose": [1.0]})
    with pytest.raises(SchemaError, match=r"\['donor', 'dose'\], which were not registered"):
        trained.sample(table)


@pytest.mark.parametrize("asked", [[], pd.DataFrame({"perturbation": []})], ids=["list", "table"])
def test_empty_request_is_refused(trained, asked):
    with pytest.raises(SchemaError, match="request is empty"):
        trained.sample(asked)


def test_request_needs_perturbations(trained):
    with pytest.raises(SchemaError, match="needs a column 'perturbation'"):
        trained.sample(pd.DataFrame({"cell_type": ["type_01"]}))
    with pytest.raises(SchemaError, match="has no 'perturbation'"):
        trained.sample(pd.DataFrame({"perturbation": [SINGLE, None]}))


def test_vectors_of_perturbations_are_a_table(trained):
    table = trained.get_perturbation_representation()
    assert table.index.name == "perturbation"
    assert table.index.tolist() == ["pert_01", "pert_02", "pert_03", "pert_04", "pert_06"]
    assert np.isfinite(table.to_numpy()).all()
    two = trained.get_perturbation_representation(["pert_03", "pert_01"])
    np.testing.assert_array_equal(two.to_numpy(), table.loc[["pert_03", "pert_01"]].to_numpy())
    with pytest.raises(ValueError, match="'pert_05'"):
        trained.get_perturbation_representation(["pert_05"])
