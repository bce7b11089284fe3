"""Screens with doses, times and kinds of perturbation."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scvi_perturb import SchemaError
from scvi_perturb.testing import NEW_PAIR, SETUP, SINGLE, dense, fit, make_model, make_screen
from tests.contract.registry import APART

#: What the tests here are run on.
CASES = APART

SMALL = {"n_combinations": 3, "n_perturbations": 4}


@pytest.fixture(scope="module")
def dosed(case):
    """A model of a screen with doses."""
    adata = make_screen(doses=(1.0, 10.0), **SMALL)
    return fit(case, make_model(case, adata, setup={**SETUP, "dose_key": "dose"}), max_epochs=1)


@pytest.fixture(scope="module")
def timed(case):
    """A model of a screen with times."""
    adata = make_screen(times=(6.0, 24.0), **SMALL)
    return fit(case, make_model(case, adata, setup={**SETUP, "time_key": "time"}), max_epochs=1)


def test_doses_are_asked_for_and_told(dosed):
    asked = pd.DataFrame(
        {
            "perturbation": [SINGLE, SINGLE, "pert_03+pert_01", "control"],
            "dose": ["1", 10.0, "1+10", None],
        }
    )
    cells = dosed.sample(asked, n_samples=10)
    told = cells.obs.drop_duplicates(["perturbation", "dose"])
    assert told["perturbation"].tolist() == [SINGLE, SINGLE, NEW_PAIR, "control"]
    assert told["dose"].tolist() == ["1", "10", "10+1", "0"]


def test_measured_dose_matters(case, dosed):
    low, high = (
        dosed.predict(pd.DataFrame({"perturbation": [SINGLE], "dose": [dose]}), n_samples=50)
        for dose in (1.0, 10.0)
    )
    assert not np.array_equal(low.X, high.X)


def test_dose_never_measured_is_predicted_and_more_novel(dosed):
    asked = pd.DataFrame({"perturbation": [SINGLE] * 3, "dose": [10.0, 3.0, 1000.0]})
    effects = dosed.predict(asked, n_samples=10)
    measured, between, beyond = effects.obs["novelty"]
    assert measured < between < beyond
    assert np.isfinite(effects.X).all()


@pytest.mark.parametrize("asked", [[SINGLE], pd.DataFrame({"perturbation": [SINGLE]})])
def test_dose_must_be_given_where_there_are_several(dosed, asked):
    with pytest.raises(SchemaError, match=rf"dose of '{SINGLE}' must be given.*1.0, 10.0.*'dose'"):
        dosed.sample(asked)


def test_control_needs_no_dose(dosed):
    assert dosed.sample(["control"], n_samples=4).n_obs == 4


@pytest.mark.parametrize("dose", [-1.0, 0.0, "much", "1+2"])
def test_dose_must_be_one(dosed, dose):
    with pytest.raises(SchemaError, match="dose"):
        dosed.sample(pd.DataFrame({"perturbation": [SINGLE], "dose": [dose]}))


def test_single_dose_needs_not_be_given(case):
    adata = make_screen(doses=(5.0,), **SMALL)
    model = make_model(case, adata, setup={**SETUP, "dose_key": "dose"})
    fit(case, model, max_epochs=1)
    one = model.sample([NEW_PAIR], n_samples=10)
    two = model.sample(pd.DataFrame({"perturbation": [NEW_PAIR], "dose": ["5+5"]}), n_samples=10)
    np.testing.assert_array_equal(dense(one.X), dense(two.X))
    assert set(one.obs["dose"]) == {"5+5"}


def test_dose_column_of_another_name_is_answered_under_it(case):
    adata = make_screen(doses=(1.0, 10.0), **SMALL)
    adata.obs = adata.obs.rename(columns={"dose": "uM", "perturbation": "drug"})
    setup = {**SETUP, "dose_key": "uM", "perturbation_key": "drug"}
    model = fit(case, make_model(case, adata, setup=setup), max_epochs=1)
    by_own_name = model.sample(pd.DataFrame({"drug": [SINGLE], "uM": [10]}), n_samples=5)
    by_plain_name = model.sample(
        pd.DataFrame({"perturbation": [SINGLE], "dose": [10]}), n_samples=5
    )
    assert {"drug", "uM"} <= set(by_own_name.obs)
    np.testing.assert_array_equal(dense(by_own_name.X), dense(by_plain_name.X))


def test_times_are_asked_for_and_told(timed):
    asked = pd.DataFrame({"perturbation": [SINGLE, SINGLE, NEW_PAIR], "time": [6.0, 24.0, 24.0]})
    cells = timed.sample(asked, n_samples=10)
    assert cells.obs["time"].tolist() == np.repeat([6.0, 24.0, 24.0], 10).tolist()
    early, late = (dense(cells[start : start + 10].X) for start in (0, 10))
    assert not np.array_equal(early, late)


def test_time_must_be_given_where_there_are_several(timed):
    with pytest.raises(SchemaError, match=r"time of .* must be given.*6.0, 24.0"):
        timed.sample([SINGLE])


def test_controls_of_several_times_are_one_control(timed):
    # A control has no time of its own in a request: it is where every perturbation starts.
    cells = timed.sample(["control"], n_samples=20)
    assert set(cells.obs["perturbation"]) == {"control"}


def test_kinds_of_perturbation_are_told_apart(case):
    adata = make_screen(**SMALL)
    names = adata.obs["perturbation"].astype(str)
    adata.obs["kind"] = np.where(names == "control", "control", "CRISPRi")
    some = (names == SINGLE).to_numpy()
    adata.obs.loc[adata.obs_names[some][::2], "kind"] = "CRISPRa"
    model = make_model(case, adata, setup={**SETUP, "perturbation_type_key": "kind"})
    fit(case, model, max_epochs=1)
    asked = pd.DataFrame({"perturbation": [SINGLE] * 2, "kind": ["CRISPRa", "CRISPRi"]})
    effects = model.predict(asked, n_samples=20)
    assert effects.obs["kind"].tolist() == ["CRISPRa", "CRISPRi"]
    assert not np.array_equal(effects.X[0], effects.X[1])
    with pytest.raises(SchemaError, match=rf"kind of '{SINGLE}' must be given.*CRISPRa, CRISPRi"):
        model.predict([SINGLE])
    assert model.predict(["pert_02"], n_samples=5).obs["kind"].tolist() == ["CRISPRi"]
