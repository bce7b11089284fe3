"""The scale on which effects add: there and back, and chosen where it is clearly better."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from scvi_perturb.data import ScreenKeys
from scvi_perturb.predictors import ConditionGP
from scvi_perturb.predictors.gaussian_process.kernel import Rows
from scvi_perturb.predictors.gaussian_process.signal import LOG1P, Scale, clearly_better
from tests.predictors._effects import effects, lfc, pairs

RNG = np.random.default_rng(0)
CONTROLS = np.log1p(RNG.gamma(0.5, 4.0, (5, 30)))
CHANGES = np.maximum(0.7 * RNG.normal(size=CONTROLS.shape), -CONTROLS)
NAMES = list("ABCDEFGH")


@pytest.mark.parametrize("pseudocount", [1.0, 0.3, 0.01])
def test_there_and_back_changes_are_what_they_were(pseudocount):
    scale = Scale(pseudocount)
    made = scale.changes(CHANGES, CONTROLS)
    np.testing.assert_allclose(scale.back(made, CONTROLS), CHANGES, atol=1e-10)
    control, reached = (np.expm1(x) for x in (CONTROLS, CONTROLS + CHANGES))
    expected = np.log((reached + pseudocount) / (control + pseudocount))
    np.testing.assert_allclose(made, expected, atol=1e-10)
    step = 1e-6
    slope = scale.changes(np.full_like(CONTROLS, step), CONTROLS) / step
    np.testing.assert_allclose(scale.steepness(CONTROLS), slope, rtol=1e-3)


def test_the_scale_of_profiles_changes_nothing():
    assert LOG1P.changes(CHANGES, CONTROLS) is CHANGES
    assert LOG1P.back(CHANGES, CONTROLS) is CHANGES
    np.testing.assert_array_equal(LOG1P.steepness(CONTROLS), 1.0)


def test_noise_is_that_of_both_ends_on_the_scale():
    noise = RNG.random((2, *CHANGES.shape))
    rows = Rows([], CHANGES, CONTROLS, (noise[0], noise[1]), np.ones(5), None, [])
    scale = Scale(0.1)
    slopes = scale.steepness(CONTROLS + CHANGES), scale.steepness(CONTROLS)
    changes, variances = rows.on(scale)
    np.testing.assert_allclose(changes, scale.changes(CHANGES, CONTROLS))
    np.testing.assert_allclose(variances, noise[0] * slopes[0] ** 2 + noise[1] * slopes[1] ** 2)
    np.testing.assert_allclose(rows.on(LOG1P)[1], noise.sum(axis=0))
    changes, variances = replace(rows, noise=None).on(scale)
    np.testing.assert_allclose(changes, scale.changes(CHANGES, CONTROLS))
    assert variances is None


def test_another_scale_has_to_be_clearly_better():
    some, least = Scale(0.3), Scale(0.1)
    first = 1 + RNG.random(20)
    gain = 0.1 + 0.1 * RNG.normal(size=20)
    assert clearly_better({LOG1P: first, some: first - gain, least: first - 2 * gain}) == least
    assert clearly_better({LOG1P: first, some: first + gain}) == LOG1P
    # Better on average, by one group of twenty that differ.
    lucky = np.r_[3.0, -0.05 + 0.02 * RNG.normal(size=19)]
    assert lucky.mean() > 0
    assert clearly_better({LOG1P: first, some: first - lucky}) == LOG1P
    assert clearly_better({LOG1P: first[:1], some: first[:1] - 1}) == LOG1P
    assert clearly_better({LOG1P: first, some: first}) == LOG1P


def poisson_screen(combine, n_genes=200, n_cells=400, depth=2_000):
    """Return a screen of singles and pairs, and the true profiles of pairs that it lacks.

    Effects of pairs are what `combine` makes of the expression of control and those of both.
    """
    rng = np.random.default_rng(0)
    control = rng.lognormal(0.0, 1.5, n_genes)
    single = {n: control * np.exp(rng.normal(size=n_genes)) for n in NAMES}
    joined = ["+".join(pair) for pair in itertools.combinations(NAMES, 2)]
    rates = {"control": control} | single
    rates |= {both: combine(control, *(single[n] for n in both.split("+"))) for both in joined}
    rates = {name: rate / rate.sum() for name, rate in rates.items()}
    trained = ["control", *NAMES, *joined[::2]]
    counts = np.vstack([rng.poisson(depth * rates[n], (n_cells, n_genes)) for n in trained])
    names = np.repeat(trained, n_cells)
    obs = pd.DataFrame({"perturbation": names}, index=[f"c{i}" for i in range(len(names))])
    screen = AnnData(sparse.csr_matrix(counts.astype(np.float32)), obs=obs)
    return screen, {name: np.log1p(1e4 * rates[name]) for name in joined[1::2]}


def error(predictor, truth):
    made = predictor.predict(list(truth))
    control = np.asarray(made.X, float) - made.layers["lfc"]
    goal = np.stack(list(truth.values()))
    return ((made.X - goal) ** 2).sum() / ((goal - control) ** 2).sum()


def test_factors_are_told_from_what_adds_up_otherwise():
    screen, truth = poisson_screen(lambda control, a, b: a * b / control)
    chosen, fixed = (
        ConditionGP(pseudocount=own, leave_out="condition").fit(screen) for own in (None, 1.0)
    )
    assert chosen.hyperparameters_["pseudocount"] < 1
    assert fixed.hyperparameters_["pseudocount"] == 1
    assert error(chosen, truth) < 0.8 * error(fixed, truth)


def test_what_adds_up_as_profiles_do_stays_on_their_scale():
    def on_the_scale_of_profiles(control, a, b):
        total = [1e4 * x / x.sum() for x in (control, a, b)]
        return np.maximum((total[1] + 1) * (total[2] + 1) / (total[0] + 1) - 1, 0.01)

    screen, _ = poisson_screen(on_the_scale_of_profiles)
    assert ConditionGP(leave_out="condition").fit(screen).hyperparameters_["pseudocount"] == 1


def test_errors_are_stated_for_profiles():
    screen, truth = poisson_screen(lambda control, a, b: a * b / control)
    made = ConditionGP(pseudocount=0.1).fit(screen).predict(list(truth))
    z = (made.X - np.stack(list(truth.values()))) / made.layers["std"]
    # stated variances are those that were right for the left-out, on average over genes
    assert 0.4 < np.sqrt(np.mean(z**2)) < 1.6
    assert 0.8 < (np.abs(z) < 1.645).mean() <= 1


def test_effects_are_on_the_scale_they_are_on():
    table = effects(pairs(NAMES, RNG.normal(size=(8, 12))))
    plain, other = (ConditionGP(pseudocount=c, profile="effects").fit(table) for c in (None, 0.1))
    assert other.hyperparameters_["pseudocount"] == 1
    np.testing.assert_array_equal(lfc(plain, NAMES), lfc(other, NAMES))


@pytest.mark.parametrize("pseudocount", [0.0, -1.0, np.inf, np.nan])
def test_a_pseudocount_is_positive(pseudocount):
    with pytest.raises(ValueError, match="pseudocount"):
        ConditionGP(pseudocount=pseudocount)


def test_controls_do_not_change_on_any_scale():
    screen, _ = poisson_screen(lambda control, a, b: a * b / control, n_cells=50)
    keys = ScreenKeys("perturbation")
    made = ConditionGP(pseudocount=0.1).fit(screen, keys=keys).predict(["control"])
    np.testing.assert_array_equal(made.layers["lfc"], 0)
