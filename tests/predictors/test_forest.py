"""A forest on measured features: its formula, what it finds that a kernel does not, messages."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import ExtraTreesRegressor

from scvi_perturb._core import SchemaError, UnknownPerturbationError
from scvi_perturb.features import PerturbationFeatures
from scvi_perturb.predictors import FeatureForest, KernelRidge
from scvi_perturb.predictors.forest import measured_modalities
from scvi_perturb.predictors.stack.scenarios import default_members
from tests.predictors._effects import effects, lfc, pairs

RNG = np.random.default_rng(0)
NAMES = [f"p{i:03d}" for i in range(200)]
#: Ten properties, each written down in ten ways, as descriptors are.
PROPERTIES = RNG.uniform(size=(200, 10))
WAYS = np.repeat(PROPERTIES, 10, axis=1) + 0.05 * RNG.normal(size=(200, 100))
REAL = pd.DataFrame(WAYS, index=NAMES)
SETS = pd.DataFrame(RNG.integers(0, 2, (200, 10)).astype(float), index=NAMES)
#: Two thresholds, and one that matters only beyond another.
SHAPES = RNG.normal(size=(3, 12))
ABOVE = PROPERTIES[:, :3] > 0.5
TRUTH = np.c_[ABOVE[:, 0], ABOVE[:, 1], ABOVE[:, 0] & ABOVE[:, 2]] @ SHAPES
TRUTH += 0.1 * RNG.normal(size=TRUTH.shape)
TRAINED, ASKED = NAMES[:150], NAMES[150:]


def fitted(modalities, truth=TRUTH, cls=FeatureForest, names=TRAINED, **options):
    predictor = cls(PerturbationFeatures(modalities), profile="effects", **options)
    return predictor.fit(effects(pairs(names, truth)))


def test_it_is_extremely_randomised_trees_on_scaled_components():
    made = lfc(fitted({"real": REAL, "sets": SETS}, n_trees=7, n_components=2, seed=3), ASKED)
    centre = TRUTH[:150].mean(0)
    scores, spread, axes = np.linalg.svd(TRUTH[:150] - centre, full_matrices=False)
    trees = ExtraTreesRegressor(7, min_samples_leaf=2, max_features=0.1, random_state=3)
    trees.fit(REAL.to_numpy(np.float32)[:150], scores[:, :2])
    found = trees.predict(REAL.to_numpy(np.float32)[150:])
    expected = centre + (found * spread[:2]) @ axes[:2]
    np.testing.assert_allclose(made, expected, rtol=1e-4, atol=1e-4)


def test_thresholds_of_a_few_properties_are_found_better_than_by_a_kernel():
    truth = TRUTH[150:]
    errors = [
        ((lfc(fitted({"real": REAL}, cls=cls), ASKED) - truth) ** 2).sum()
        for cls in (FeatureForest, KernelRidge)
    ]
    assert errors[0] < 0.8 * errors[1]


def test_a_combination_has_the_mean_features_of_its_components():
    table = pd.DataFrame([[0.1, 0.9], [0.9, 0.1], [0.5, 0.5]], index=["A", "B", "C"])
    rows = pd.concat([REAL.iloc[:, :2], table])
    truth = TRUTH[:, :4]
    predictor = fitted({"real": rows}, truth)
    made = lfc(predictor, ["A+B", "C"])
    np.testing.assert_allclose(made[0], made[1], rtol=1e-5)
    assert not np.allclose(made[0], lfc(predictor, ["A"])[0])


def test_a_modality_that_a_name_lacks_is_that_of_the_mean():
    other = pd.DataFrame(RNG.uniform(size=(150, 3)), index=TRAINED)
    mean = other.to_numpy(np.float32).mean(0)
    filled = pd.concat([other, pd.DataFrame([mean], index=["p150"])])
    made = [lfc(fitted({"real": REAL, "other": one}), ["p150"]) for one in (other, filled)]
    np.testing.assert_allclose(made[0], made[1], rtol=1e-5)


def test_what_is_measured_is_not_whole_numbers():
    features = PerturbationFeatures({"sets": SETS, "real": REAL, "counts": 3 * SETS})
    assert measured_modalities(features) == ("real",)
    alone = fitted({"sets": SETS})
    assert np.ptp(lfc(alone, ASKED), axis=0).max() > 0


def test_the_stack_has_it_for_perturbations_never_seen_with_measured_features():
    def has_it(scenario, modalities):
        features = PerturbationFeatures(modalities) if modalities else None
        return "feature_forest" in default_members(scenario, features, "effects")

    assert has_it("unseen_perturbation", {"sets": SETS, "real": REAL})
    assert not has_it("unseen_perturbation", {"sets": SETS})
    assert not has_it("unseen_perturbation", None)
    assert not has_it("unseen_combination", {"real": REAL})


def test_the_same_change_everywhere_is_predicted_everywhere():
    made = lfc(fitted({"real": REAL}, np.ones((150, 4))), [*ASKED, "control"])
    np.testing.assert_allclose(made[:-1], 1, rtol=1e-6)
    assert (made[-1] == 0).all()


def test_the_seed_decides():
    first, again, other = (lfc(fitted({"real": REAL}, n_trees=3, seed=s), ASKED) for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_messages():
    with pytest.raises(ValueError, match="n_trees=0"):
        FeatureForest(n_trees=0)
    with pytest.raises(SchemaError, match="FeatureForest compares perturbations by their features"):
        FeatureForest(profile="effects").fit(effects(pairs(NAMES, TRUTH)))
    with pytest.raises(UnknownPerturbationError, match="nobody"):
        lfc(fitted({"real": REAL}), ["nobody"])
