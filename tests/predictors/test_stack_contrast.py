"""A stack that answers for the contrast: its formula, its intervals, and what it leaves alone."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scvi_perturb.features import PerturbationFeatures
from scvi_perturb.metrics import discrimination
from scvi_perturb.predictors import KernelRidge, NoChange, StackedMean
from tests.predictors._contrasted import ContrastedMean
from tests.predictors._effects import effects, lfc, pairs

RNG = np.random.default_rng(0)
NAMES = [f"p{i:03d}" for i in range(160)]
SETS = pd.DataFrame(RNG.normal(size=(160, 6)), index=NAMES)
FEATURES = PerturbationFeatures({"text": SETS})
#: Much of the change is along one direction, and much is noise.
TRUTH = SETS.to_numpy() @ RNG.normal(size=(6, 15)) + RNG.normal(size=15)
TRUTH += 8 * SETS.to_numpy()[:, :1] * RNG.normal(size=15) + 6 * RNG.normal(size=(160, 15))
TRAINED, ASKED = NAMES[:100], NAMES[100:]


def ridge():
    return KernelRidge(FEATURES, profile="effects")


def stacked(contrast, **options):
    members = options.pop("members", {"ridge": ridge()})
    stack = StackedMean(FEATURES, members=members, contrast=contrast, profile="effects", **options)
    return stack.fit(effects(pairs(TRAINED, TRUTH)))


@pytest.mark.parametrize("contrast", [0.0, 2.0])
def test_a_stack_of_one_is_that_one_contrasted(contrast):
    expected = ContrastedMean(ridge(), contrast=contrast).fit(effects(pairs(TRAINED, TRUTH)))
    made = lfc(stacked(contrast), ASKED)
    np.testing.assert_allclose(made, lfc(expected, ASKED), rtol=1e-5, atol=1e-5)


def test_conditions_are_told_apart_better_at_a_larger_error():
    members = {"ridge": ridge(), "no_change": NoChange(profile="effects")}
    plain, made = (lfc(stacked(c, members=members), ASKED) for c in (0.0, 2.0))
    centre, truth = TRUTH[:100].mean(0), TRUTH[100:]
    found = [discrimination(x - centre, truth - centre).mean() for x in (plain, made)]
    assert found[1] > found[0] + 0.01
    errors = [((x - truth) ** 2).sum() for x in (plain, made)]
    assert errors[1] > errors[0]


def test_intervals_are_of_the_contrasted_prediction():
    """60 conditions of 15 genes, much of them noise of their own: a binomial error of 0.01."""
    stack = stacked(3.0)
    made = stack.predict(ASKED, interval=0.8)
    inside = (made.layers["lower"] <= TRUTH[100:]) & (made.layers["upper"] >= TRUTH[100:])
    assert inside.mean() == pytest.approx(0.8, abs=0.05)
    tried = stack.weigh("unseen_perturbation").left_out
    error = ((tried.truth - tried.predicted["ridge"]) ** 2).sum() / (tried.truth**2).sum()
    assert stack.calibration_["error"].item() == pytest.approx(error)
    assert error > stacked(0.0, scenarios=["unseen_perturbation"]).calibration_["error"].item()


def test_what_is_left_out_is_contrasted_without_it():
    stack = stacked(2.0, n_folds=2, scenarios=["unseen_perturbation"])
    tried = stack.weigh("unseen_perturbation").left_out
    own = tried.fold == 0
    seen = [str(row.condition) for row in np.array(tried.rows, dtype=object)[~own]]
    asked = [str(row.condition) for row in np.array(tried.rows, dtype=object)[own]]
    rows = [(name, TRUTH[NAMES.index(name)]) for name in seen]
    expected = ContrastedMean(ridge(), contrast=2.0).fit(effects(rows))
    np.testing.assert_allclose(
        tried.predicted["ridge"][own], lfc(expected, asked), rtol=1e-5, atol=1e-5
    )


def test_other_questions_are_not_touched():
    rows = [("A", [1.0, 0, 0]), ("B", [0, 1.0, 0]), ("C", [0, 0, 1.0]), ("A+B", [1.0, 1, 1])]
    rows.append(("A+C", [1.0, 0, 1]))
    made = []
    for contrast in (0, 5):
        stack = StackedMean(contrast=contrast, profile="effects").fit(effects(rows))
        made.append(lfc(stack, ["A", "B+C"]))
    np.testing.assert_array_equal(*made)


def test_messages():
    with pytest.raises(ValueError, match="contrast=-1 is out of range"):
        StackedMean(contrast=-1)
    with pytest.raises(ValueError, match=r"contrast=1.0 has no meaning .* \['generator'\]"):
        StackedMean(contrast=1.0, external={"generator": object()})
