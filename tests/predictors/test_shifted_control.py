"""Shifted control cells: the trivial prediction of a population."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import read_h5ad

from scvi_perturb._core import UNS_KEY, NotTrainedError, SchemaError, UnknownPerturbationError
from scvi_perturb.data import ScreenKeys
from scvi_perturb.predictors import CellPredictor, ContextMean, NoChange, ShiftedControl
from tests.predictors._screen import CONTROL, log_profile, make_screen

CONTEXT = ["cell_type"]


@pytest.fixture
def noisy():
    """A screen with cells that differ, and zeros."""
    rng = np.random.default_rng(0)
    made = make_screen([(p, t) for t in ("T", "B") for p in ("control", "A")], n=20)
    made.X = rng.poisson(made.X.toarray() / 20).astype(np.float32)
    made.obs["cell_type"] = made.obs["cell_type"].astype("category")
    return made


def normalized(counts):
    return np.array([log_profile(row) for row in counts])


def test_cells_are_control_cells_plus_the_change_clipped(noisy):
    predictor = ShiftedControl().fit(noisy, keys=ScreenKeys(context=CONTEXT))
    asked = pd.DataFrame({"perturbation": ["A"], "cell_type": ["T"]})
    made = predictor.sample(asked)

    def cells(p, t):
        chosen = (noisy.obs["perturbation"] == p) & (noisy.obs["cell_type"] == t)
        return normalized(noisy.X[chosen.to_numpy()])

    change = cells("A", "B").mean(0) - cells("control", "B").mean(0)
    expected = np.maximum(cells("control", "T") + change, 0)
    np.testing.assert_allclose(made.X, expected, rtol=1e-4, atol=1e-5)
    assert made.obs["draw"].tolist() == list(range(20))
    np.testing.assert_allclose(predictor.predict(asked).X[0], expected.mean(0), rtol=1e-4)
    assert (made.X == 0).any()


def test_predicted_mean_is_that_of_the_cells_and_lfc_that_from_control(noisy):
    predictor = ShiftedControl().fit(noisy, keys=ScreenKeys(context=CONTEXT))
    mean, cells = predictor.predict(["A"]), predictor.sample(["A"])
    control = predictor.predict(["control"])
    np.testing.assert_allclose(mean.X[0], cells.X.mean(0), rtol=1e-5)
    np.testing.assert_allclose(mean.layers["lfc"], mean.X - control.X, atol=1e-5)


def test_no_change_gives_the_control_cells_back(noisy):
    reference = noisy[(noisy.obs["perturbation"] == "control")].copy()
    predictor = ShiftedControl(NoChange(profile="cell_mean")).fit(
        noisy, keys=ScreenKeys(context=CONTEXT)
    )
    made = predictor.sample(["A"], reference=reference)
    np.testing.assert_allclose(made.X, normalized(reference.X), rtol=1e-5)
    assert made.obs["reference_cell"].tolist() == reference.obs_names.tolist()


def test_every_control_cell_is_used_as_evenly_as_can_be(noisy):
    predictor = ShiftedControl().fit(noisy, keys=ScreenKeys(context=CONTEXT))
    made = predictor.sample(
        pd.DataFrame({"perturbation": ["A", "control"], "cell_type": ["T", "B"]}),
        n_samples=50,
        seed=0,
    )
    assert made.n_obs == 100
    used = made.obs.groupby(["cell_type", "reference_cell"], observed=True).size()
    assert set(used) == {2, 3}
    assert len(used) == 40
    assert made.obs.groupby("perturbation", observed=True)["draw"].max().tolist() == [49, 49]


def test_seeds(noisy):
    predictor = ShiftedControl().fit(noisy, keys=ScreenKeys(context=CONTEXT))
    first, again, other = (predictor.sample(["A"], n_samples=5, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(first.X, again.X)
    assert (first.obs["reference_cell"] != other.obs["reference_cell"]).any()


def test_cells_are_annotated_and_can_be_written(noisy, tmp_path):
    made = ShiftedControl(ContextMean(profile="cell_mean")).fit(
        noisy, keys=ScreenKeys(context=CONTEXT)
    )
    cells = made.sample(["A"], n_samples=4, seed=3)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    about = read_h5ad(tmp_path / "cells.h5ad").uns[UNS_KEY]
    assert about["model"] == "shifted_control(context_mean)"
    assert about["seed"] == 3
    assert cells.obs_names.is_unique
    assert isinstance(made, CellPredictor)


def test_messages(noisy):
    with pytest.raises(NotTrainedError, match="fit"):
        ShiftedControl().sample(["A"])
    predictor = ShiftedControl().fit(noisy, keys=ScreenKeys(context=CONTEXT))
    with pytest.raises(ValueError, match="n_samples=0"):
        predictor.sample(["A"], n_samples=0)
    with pytest.raises(UnknownPerturbationError, match="'Z'"):
        predictor.sample(["Z"])
    with pytest.raises(SchemaError, match="No reference cell"):
        predictor.sample(
            pd.DataFrame({"perturbation": ["A"], "cell_type": ["B"]}),
            reference=make_screen([("control", "T")]),
        )


def test_controls_of_the_context_only(noisy):
    predictor = ShiftedControl().fit(noisy, keys=ScreenKeys(context=CONTEXT))
    made = predictor.sample(pd.DataFrame({"perturbation": ["control"], "cell_type": ["B"]}))
    own = noisy.obs.loc[made.obs["reference_cell"]]
    assert set(own["cell_type"]) == {"B"}
    assert set(own["perturbation"]) == {"control"}
    assert CONTROL.keys() == {"T", "B"}
