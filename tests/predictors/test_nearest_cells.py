"""Real cells of the nearest condition: which one, in which context, unchanged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scvi_perturb._core import UNS_KEY, NotTrainedError, UnknownPerturbationError
from scvi_perturb.data import Component, Condition, ScreenKeys
from scvi_perturb.predictors import CellPredictor, NearestCells
from scvi_perturb.predictors.cells import NearestCondition
from tests.predictors._effects import FEATURES
from tests.predictors._screen import log_profile, make_screen

GROUPS = [("control", "T"), ("control", "B"), ("A", "T"), ("A", "B"), ("C", "B"), ("A+C", "T")]


@pytest.fixture
def noisy():
    screen = make_screen(GROUPS, n=8)
    screen.X = np.random.default_rng(0).poisson(screen.X.toarray()).astype(np.float32)
    return screen


@pytest.fixture
def fitted(noisy):
    return NearestCells(FEATURES).fit(noisy, keys=ScreenKeys(context="cell_type"))


def ask(perturbation, cell_type):
    return pd.DataFrame({"perturbation": [perturbation], "cell_type": [cell_type]})


def condition(*parts, time=None):
    made = [part if isinstance(part, tuple) else (part, 1.0) for part in parts]
    return Condition(tuple(Component(name, dose) for name, dose in made), time=time)


def sources(predictor, screen, asked, **options):
    cells = predictor.sample(asked, **options)
    own = screen.obs.loc[cells.obs["reference_cell"]]
    return {*zip(own["perturbation"], own["cell_type"], strict=True)}


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (("A", "T"), ("A", "T")),
        (("control", "B"), ("control", "B")),
        # C was measured in the other context only.
        (("C", "T"), ("C", "B")),
        # The combination shares both components; F shares none and is nearest to C.
        (("A+C", "T"), ("A+C", "T")),
        (("A+Z", "B"), ("A", "B")),
        (("F", "T"), ("C", "B")),
    ],
)
def test_whose_cells_stand_in(fitted, noisy, asked, expected):
    assert sources(fitted, noisy, ask(*asked)) == {expected}


def test_cells_come_as_they_are(fitted, noisy):
    cells = fitted.sample(ask("A", "T"), seed=0)
    real = noisy[cells.obs["reference_cell"]]
    assert sparse.issparse(cells.X)
    np.testing.assert_array_equal(cells.X.toarray(), real.X)
    assert cells.obs["perturbation"].tolist() == ["A"] * 8
    assert cells.uns[UNS_KEY]["units"] == "counts"
    assert isinstance(fitted, CellPredictor)


def test_the_mean_is_the_pseudobulk_of_these_cells(fitted, noisy):
    def cells(p, t):
        chosen = (noisy.obs["perturbation"] == p) & (noisy.obs["cell_type"] == t)
        return log_profile(noisy.X[chosen.to_numpy()].sum(0))

    made = fitted.predict(ask("C", "T"))
    np.testing.assert_allclose(made.X[0], cells("C", "B"), rtol=1e-5)
    np.testing.assert_allclose(
        made.layers["lfc"][0], cells("C", "B") - cells("control", "T"), rtol=1e-4, atol=1e-5
    )
    assert made.uns[UNS_KEY]["units"] == "log1p(counts per 10,000)"


@pytest.mark.parametrize("like", ["T", "B"])
def test_a_new_context_takes_the_one_of_the_nearest_controls(fitted, noisy, like):
    reference = make_screen([("control", like)])
    reference.obs["cell_type"] = "new"
    assert sources(fitted, noisy, ["A"], reference=reference) == {("A", like)}
    made = fitted.predict(["A"], reference=reference)
    assert made.obs["cell_type"].tolist() == ["new"]


def test_controls_are_those_of_the_reference(fitted):
    reference = make_screen([("control", "T")])
    cells = fitted.sample(["control"], reference=reference)
    np.testing.assert_array_equal(cells.X.toarray(), reference.X.toarray())


def test_a_context_left_open_takes_all(fitted, noisy):
    assert sources(fitted, noisy, ["A"]) == {("A", "T"), ("A", "B")}


def test_an_unseen_dose_takes_the_nearest(noisy):
    treated = noisy.obs["perturbation"] == "A"
    noisy.obs["dose"] = 1.0
    noisy.obs.loc[treated, "dose"] = np.tile([1.0, 100.0], treated.sum() // 2)
    keys = ScreenKeys("perturbation", dose="dose")
    predictor = NearestCells().fit(noisy, keys=replace(keys, context="cell_type"))
    for dose, nearest in ((0.1, 1.0), (3.0, 1.0), (30.0, 100.0), (1000.0, 100.0)):
        cells = predictor.sample(ask("A", "T").assign(dose=dose))
        assert set(noisy.obs.loc[cells.obs["reference_cell"], "dose"]) == {nearest}


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (condition("A", "B"), condition("A", "B", "C")),
        (condition("A", "X"), condition("A")),
        (condition("B", "D"), condition("D")),
        (condition(("D", 5.0)), condition(("D", 9.0))),
        (condition("B"), condition("A", "B", "C")),
        (condition("D", time=20.0), condition("D", time=24.0)),
    ],
)
def test_order_of_what_is_near(asked, expected):
    known = [
        condition("A"),
        condition("C"),
        condition("D"),
        condition(("D", 9.0)),
        condition("A", "B", "C"),
        condition("D", time=24.0),
        condition("D", time=6.0),
    ]
    for order in (known, known[::-1]):
        made = NearestCondition(order, None)
        if asked.time is None:
            made = NearestCondition([c for c in order if c.time is None], None)
        elif expected.time is not None:
            made = NearestCondition([c for c in order if c.time is not None], None)
        assert made.of(asked) == expected


def test_ties_go_by_name():
    made = NearestCondition([condition("C"), condition("B")], None)
    assert made.of(condition("B", "C")) == condition("B")


def test_resampled_evenly_with_a_seed(fitted):
    made = [fitted.sample(ask("A", "T"), n_samples=20, seed=s).obs for s in (0, 0, 1)]
    assert set(made[0]["reference_cell"].value_counts()) == {2, 3}
    assert made[0]["reference_cell"].tolist() == made[1]["reference_cell"].tolist()
    assert made[0]["reference_cell"].tolist() != made[2]["reference_cell"].tolist()


def test_what_shares_nothing_is_refused(noisy, fitted):
    with pytest.raises(UnknownPerturbationError, match="'Z' was not trained on"):
        fitted.predict(ask("Z", "T"))
    with pytest.raises(UnknownPerturbationError, match="'D' was not trained on"):
        NearestCells().fit(noisy, keys=ScreenKeys(context="cell_type")).predict(ask("D", "T"))
    with pytest.raises(NotTrainedError, match="NearestCells has not seen data"):
        NearestCells().predict(["A"])
