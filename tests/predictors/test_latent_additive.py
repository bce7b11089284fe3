"""Combinations inform single perturbations."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

from scvi_perturb._core import UnknownPerturbationError
from scvi_perturb.data import ScreenKeys
from scvi_perturb.features import PerturbationFeatures
from scvi_perturb.predictors import Additive, LatentAdditive
from tests.predictors._effects import effects, lfc, pairs

RNG = np.random.default_rng(0)
NAMES = list("ABCDEFGH")
SETS = pd.DataFrame(RNG.normal(size=(8, 3)), index=NAMES)
VECTORS = SETS.to_numpy() @ RNG.normal(size=(3, 10)) + RNG.normal(size=10)
TRUTH = dict(zip(NAMES, VECTORS, strict=True))
PAIRS = ["+".join(pair) for pair in itertools.combinations(NAMES[:6], 2)]


def total(name):
    return sum(TRUTH[part] for part in name.split("+"))


def table(names, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    return effects([(n, total(n) + noise * rng.normal(size=10)) for n in names])


@pytest.mark.parametrize("trained", [PAIRS[:-1], [*NAMES[:6]], [*NAMES[:3], *PAIRS[3:]]])
def test_additive_changes_are_recovered(trained):
    predictor = LatentAdditive(penalties=(1e-8,), profile="effects").fit(table(trained))
    asked = ["A", "F", "E+F", "A+B+C"]
    np.testing.assert_allclose(lfc(predictor, asked), [total(n) for n in asked], atol=1e-4)


def test_combinations_make_singles_better():
    """Noisy singles: the sum of them is worse than the fit to all conditions."""
    data = table([*NAMES[:6], *PAIRS[:-1]], noise=1.0)
    truth = total(PAIRS[-1])
    errors = [
        ((lfc(cls(profile="effects").fit(data), [PAIRS[-1]])[0] - truth) ** 2).sum()
        for cls in (LatentAdditive, Additive)
    ]
    assert errors[0] < 0.7 * errors[1]


def test_features_give_a_vector_to_components_never_measured():
    rng = np.random.default_rng(1)
    names = [f"p{i:02d}" for i in range(60)]
    sets = pd.DataFrame(rng.normal(size=(60, 3)), index=names)
    truth = sets.to_numpy() @ rng.normal(size=(3, 10)) + rng.normal(size=10)
    store = PerturbationFeatures({"text": sets})
    predictor = LatentAdditive(store, penalties=(1e-6,), profile="effects")
    predictor.fit(effects(pairs(names[:50], truth[:50])))
    made = lfc(predictor, names[50:])
    assert ((made - truth[50:]) ** 2).sum() < 0.01 * (truth[50:] ** 2).sum()
    pair = lfc(predictor, ["p58+p59"])[0]
    np.testing.assert_allclose(pair, made[8] + made[9], rtol=1e-4, atol=1e-5)


def test_penalty_is_that_of_the_least_error_of_refits():
    trained = [*NAMES[:6], *PAIRS]
    data = table(trained, noise=2.0)
    penalties = (0.01, 1.0, 10.0)
    predictor = LatentAdditive(penalties=penalties, profile="effects").fit(data)
    errors = []
    for penalty in penalties:
        error = 0.0
        for name in trained:
            kept = data[data.obs["perturbation"] != name].copy()
            left_out = LatentAdditive(penalties=(penalty,), profile="effects").fit(kept)
            held = np.asarray(data[data.obs["perturbation"] == name].X)[0]
            error += ((lfc(left_out, [name])[0] - held) ** 2).sum()
        errors.append(error)
    assert predictor.lambda_ == penalties[int(np.argmin(errors))]


def test_few_components_keep_the_leading_ones():
    data = table([*NAMES[:6], *PAIRS])
    predictor = LatentAdditive(n_components=2, penalties=(1e-8,), profile="effects").fit(data)
    made = lfc(predictor, NAMES[:6])
    assert np.linalg.matrix_rank(made, tol=1e-3) == 2


def test_what_is_unknown_is_refused():
    predictor = LatentAdditive(profile="effects").fit(table(PAIRS))
    with pytest.raises(UnknownPerturbationError, match=r"'G' was not trained on.*A"):
        predictor.predict(["A+G"])
    store = PerturbationFeatures({"text": SETS.loc[:"G"]})
    predictor = LatentAdditive(store, profile="effects").fit(table(PAIRS))
    assert np.isfinite(lfc(predictor, ["A+G"])).all()
    with pytest.raises(UnknownPerturbationError, match="'H' was not trained on"):
        predictor.predict(["A+H"])
    with pytest.raises(ValueError, match="n_components=0"):
        LatentAdditive(n_components=0)


def test_one_vector_for_all_contexts():
    data = table(["A", "B", "A", "B"])
    data.obs["cell_type"] = ["T", "T", "N", "N"]
    predictor = LatentAdditive(penalties=(1e-8,), profile="effects")
    predictor.fit(data, keys=ScreenKeys(context="cell_type"))
    asked = pd.DataFrame({"perturbation": ["A+B"] * 2, "cell_type": ["T", "new"]})
    made = lfc(predictor, asked)
    np.testing.assert_allclose(made, [total("A+B")] * 2, atol=1e-4)


def test_requests_are_answered_at_once_as_one_by_one():
    store = PerturbationFeatures({"text": SETS})
    predictor = LatentAdditive(store, profile="effects").fit(table([*NAMES[:6], *PAIRS], noise=1.0))
    asked = ["B", "control", "A+G", "A", "A+B+H", "B"]
    alone = np.concatenate([lfc(predictor, [name]) for name in asked])
    np.testing.assert_allclose(lfc(predictor, asked), alone, rtol=1e-5, atol=1e-6)
    assert (alone[1] == 0).all()
    assert (alone[[0, 2, 3, 4]] != 0).any(axis=1).all()
