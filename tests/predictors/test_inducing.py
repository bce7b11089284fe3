"""Inducing rows against dense formulas, and searches that start from an earlier one."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scvi_perturb._state import from_bytes, to_bytes
from scvi_perturb.data import Component, Condition, ScreenKeys
from scvi_perturb.data.request import RequestRow
from scvi_perturb.features import PerturbationFeatures
from scvi_perturb.predictors import ConditionGP
from scvi_perturb.predictors.gaussian_process import condition_gp, inducing, kernel, signal
from scvi_perturb.predictors.gaussian_process.inducing import Inducing
from scvi_perturb.predictors.gaussian_process.kernel import (
    ConditionKernel,
    Contexts,
    Fitted,
    Points,
)
from scvi_perturb.predictors.gaussian_process.signal import Outputs, Signal, Spectrum
from tests.predictors._effects import effects

RNG = np.random.default_rng(0)
NAMES = [f"p{i:02d}" for i in range(24)]
STORE = PerturbationFeatures(
    {"text": pd.DataFrame(RNG.normal(size=(24, 3)), index=NAMES)},
)
PLACES = Contexts((("T",), ("B",), ("M",)), RNG.normal(size=(3, 4)))
THETA = dict(kernel._DEFAULTS) | {
    "shared": 0.5,
    "context": 2.0,
    "features:text": 0.0,
    "linear:text": 1.0,
}
RATIOS = np.array([0.2, 0.2, 1.5])


def row(label, context="T", dose=1.0):
    parts = tuple(Component(name, dose) for name in label.split("+"))
    return RequestRow(Condition(parts), (context,))


#: Not all of names by contexts; the last four are never seen.
SINGLES = [row(name, c) for i, name in enumerate(NAMES[:20]) for c in "TBM" if (i + ord(c)) % 4]
PAIRS = [*SINGLES, row("p00+p01"), row("p01+p02", "B"), row("p03+p05"), row("p00", "T", 3.0)]
ASKED = [row("p00"), row("p03", "M"), row("p22", "B"), row("p00+p07"), row("p01+p02", "M"),
         row("p00", "B", 2.0)]  # fmt: skip


def both(requests, theta):
    """Return the process by inducing rows and by one decomposition, and points of both."""
    points = Points.of(requests, PLACES)
    made = ConditionKernel.learn(points, [one.condition for one in requests], STORE)
    noise = np.random.default_rng(1).uniform(0.5, 2.0, len(requests))
    values = np.random.default_rng(2).normal(size=(len(requests), 3))
    outputs = Outputs(values, noise, np.ones(3), None, np.zeros(3))
    exact = Spectrum.of(made.between(points, points)(theta), noise, values)
    fitted = Fitted(theta, 1.0, exact, Signal(np.ones(3), RATIOS, 0.0))
    return Inducing.of(made, points, outputs, fitted), exact, made, points


@pytest.mark.parametrize(("requests", "most"), [(SINGLES, 12), (PAIRS, 60)])
def test_a_smooth_part_of_low_rank_loses_nothing(requests, most, monkeypatch):
    """Twelve rows say all of three features, a shift and three contexts; pairs need every row."""
    monkeypatch.setattr(inducing, "_N_INDUCING", most)
    monkeypatch.setattr(inducing, "_CHUNK", 7)
    found, exact, made, points = both(requests, THETA)
    assert len(found.lower) == min(most, len(requests))
    asked = Points.of(ASKED, PLACES)
    across = made.between(asked, points)(THETA)
    compared = found.compared(asked)
    np.testing.assert_allclose(
        found.predicted(compared, found.weights(RATIOS)),
        exact.predicted(across, exact.weights(RATIOS)),
        atol=1e-7,
    )
    for ratios in (np.unique(RATIOS), np.array([0.7])):
        expected = exact.explained(across, ratios)
        np.testing.assert_allclose(found.explained(compared, ratios), expected, atol=1e-7)
    np.testing.assert_allclose(
        found.explained_jointly(compared, 0.7), exact.explained_jointly(across, 0.7), atol=1e-7
    )


def test_few_inducing_rows_leave_blocks_of_perturbations_exact(monkeypatch):
    """The covariance is that of inducing rows, with the true one within each perturbation."""
    monkeypatch.setattr(inducing, "_N_INDUCING", 5)
    theta = THETA | {"features:text": 1.0}
    found, _, made, points = both(SINGLES, theta)
    whole, smooth = (made.between(points, points)(t) for t in (theta, theta | {"components": 0.0}))
    to_inducing = made.between(points, found.inducing)(theta | {"components": 0.0})
    within = made.between(found.inducing, found.inducing)(theta | {"components": 0.0})
    low = to_inducing @ np.linalg.solve(within, to_inducing.T)
    assert np.abs(smooth - low).max() > 0.1
    names = np.array([str(one.condition) for one in SINGLES])
    covariance = np.where(names[:, None] == names[None, :], whole, low)
    noise = np.random.default_rng(1).uniform(0.5, 2.0, len(SINGLES))
    values = np.random.default_rng(2).normal(size=(len(SINGLES), 3))
    compared, weights = found.compared(points), found.weights(RATIOS)
    for i, ratio in enumerate(RATIOS):
        inverse = np.linalg.inv(covariance + ratio * np.diag(noise))
        expected = covariance @ inverse @ values[:, i]
        np.testing.assert_allclose(found.predicted(compared, weights)[:, i], expected, atol=1e-9)
        explained = np.diagonal(covariance @ inverse @ covariance)
        np.testing.assert_allclose(found.explained(compared, np.array([ratio]))[:, 0], explained)


def screen_of_effects():
    values = STORE.frame("text").to_numpy() @ RNG.normal(size=(3, 15))
    table = [(n, values[i] + 0.3 * RNG.normal(size=15)) for i, n in enumerate(NAMES[:20])]
    return effects([*table, *table], cell_type=["T"] * 20 + ["B"] * 20)


@pytest.fixture(scope="module")
def fitted():
    return ConditionGP(STORE, profile="effects").fit(
        screen_of_effects(), keys=ScreenKeys(context=["cell_type"])
    )


REQUEST = pd.DataFrame({"perturbation": [*NAMES[15:]], "cell_type": [*"TBTBTBTBT"]})


def test_many_rows_are_predicted_as_few_are(fitted, monkeypatch):
    """With as many inducing rows as rows, nothing is lost; also not in a file."""
    monkeypatch.setattr(condition_gp, "MOST_EXACT", 10)
    monkeypatch.setattr(condition_gp, "_CHUNK", 4)
    many = ConditionGP(STORE, profile="effects").fit_profiles(fitted.profiles)
    assert isinstance(many.posterior.fitted.spectrum, Inducing)
    assert isinstance(fitted.posterior.fitted.spectrum, Spectrum)
    expected = fitted.predict(REQUEST)
    for one in (many, from_bytes(to_bytes(many), where="bytes")):
        made = one.predict(REQUEST)
        np.testing.assert_allclose(made.layers["lfc"], expected.layers["lfc"], atol=1e-5)
        np.testing.assert_allclose(made.layers["std"], expected.layers["std"], rtol=1e-4)
        np.testing.assert_allclose(made.obs["novelty"], expected.obs["novelty"], atol=1e-5)
    shared = many.covariance(REQUEST).shared
    np.testing.assert_allclose(shared, fitted.covariance(REQUEST).shared, atol=1e-6)


def test_nothing_shared_leaves_no_change_of_what_is_new(monkeypatch):
    monkeypatch.setattr(inducing, "_CHUNK", 7)
    off = dict.fromkeys(("shared", "shift", "linear:text"), 0.0)
    found, exact, made, points = both(SINGLES, THETA | off)
    asked = Points.of(ASKED, PLACES)
    compared = found.compared(asked)
    across = made.between(asked, points)(THETA | off)
    predicted = found.predicted(compared, found.weights(RATIOS))
    np.testing.assert_allclose(predicted, across @ exact.weights(RATIOS), atol=1e-12)
    assert not predicted[2].any()


def test_a_refit_on_the_same_rows_keeps_the_choice(fitted, monkeypatch):
    tried = []
    usual = kernel.fit

    def counted(theta, *args, **options):
        tried.append(tuple(theta.items()))
        return usual(theta, *args, **options)

    monkeypatch.setattr(kernel, "fit", counted)
    again = ConditionGP(STORE, profile="effects")
    again.refit(fitted.profiles, fitted)
    n_refit, tried[:] = len(tried), []
    ConditionGP(STORE, profile="effects").fit_profiles(fitted.profiles)
    assert len(tried) == len(set(tried)), "nothing is tried twice"
    assert n_refit < len(tried) / 2
    assert again.hyperparameters_ == fitted.hyperparameters_
    found, expected = (one.predict(REQUEST).layers["lfc"] for one in (again, fitted))
    np.testing.assert_array_equal(found, expected)


def test_components_are_the_same_by_either_way(monkeypatch):
    rows = RNG.normal(size=(60, 4)) @ RNG.normal(size=(4, 40)) + 0.01 * RNG.normal(size=(60, 40))
    expected = signal._axes(rows, 4)
    monkeypatch.setattr(signal, "_MANY_ROWS", 50)
    np.testing.assert_allclose(signal._axes(rows, 4), expected, atol=1e-8)
