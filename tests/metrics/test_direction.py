"""Direction from a reference and errors weighted by gene: oracles, invariances, conventions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cosine
from sklearn.metrics import mean_squared_error, r2_score

from scvi_perturb.metrics import cosine_delta, de_weights, weighted_mse, weighted_r2


@pytest.fixture
def profiles():
    """Predicted and observed profiles and a reference."""
    rng = np.random.default_rng(0)
    reference = rng.gamma(1, 1, 300)
    observed = reference + rng.normal(0, 0.4, 300)
    return observed + rng.normal(0, 0.4, 300), observed, reference


def test_cosine_is_scipys(profiles):
    predicted, observed, reference = profiles
    expected = 1 - cosine(predicted - reference, observed - reference)
    assert cosine_delta(*profiles) == pytest.approx(expected)
    kept = np.arange(300) % 3 > 0
    expected = 1 - cosine((predicted - reference)[kept], (observed - reference)[kept])
    assert cosine_delta(*profiles, kept) == pytest.approx(expected)


def test_cosine_sees_direction_alone(profiles):
    _, observed, reference = profiles
    change = observed - reference
    assert cosine_delta(reference + 3 * change, observed, reference) == pytest.approx(1)
    assert cosine_delta(reference - change, observed, reference) == pytest.approx(-1)
    assert cosine_delta(observed + 1.0, observed, reference) < 0.5, "not centred over genes"


def test_no_change_has_no_direction(profiles):
    predicted, observed, reference = profiles
    rounded = reference.astype(np.float32).astype(np.float64)
    assert (rounded != reference).any()
    for same in (reference, rounded):
        assert np.isnan(cosine_delta(same, observed, reference))
        assert np.isnan(cosine_delta(predicted, same, reference))
    small = reference + 1e-3 * (observed - reference)
    assert cosine_delta(small, observed, reference) == pytest.approx(1)


def test_weights_by_hand():
    made = de_weights(np.array([1.0, -3.0, 2.0, 0.0, 9.0]), np.array([1, 1, 1, 1, 0], bool))
    np.testing.assert_allclose(made, np.array([1, 9, 4, 0, 0]) / 14)
    shifted = de_weights(np.array([-1.0, 3.0, 2.0]))
    np.testing.assert_allclose(shifted, np.array([0, 4, 1]) / 5)


def test_weights_are_relative_and_of_one_sum():
    scores = np.random.default_rng(0).normal(size=100)
    assert de_weights(scores).sum() == pytest.approx(1)
    np.testing.assert_allclose(de_weights(5 * scores), de_weights(-scores))


def test_equal_scores_give_no_weights():
    assert np.isnan(de_weights(np.ones(4))).all()
    assert np.isnan(de_weights(np.arange(4.0), np.zeros(4, bool))).all()
    nowhere = np.full(4, np.nan)
    assert np.isnan(weighted_mse(np.ones(4), np.zeros(4), nowhere))
    assert np.isnan(weighted_r2(np.ones(4), np.arange(4.0), nowhere))


def test_weights_refuse_scores_that_are_not_finite():
    scores = np.array([1.0, np.nan, 2.0])
    with pytest.raises(ValueError, match="Found 1 scores that are not finite"):
        de_weights(scores)
    assert de_weights(scores, np.array([True, False, True])).tolist() == [0, 0, 1]


def test_weighted_errors_are_sklearns(profiles):
    predicted, observed, reference = profiles
    weights = de_weights(np.random.default_rng(3).normal(size=300))
    changes = observed - reference, predicted - reference
    assert weighted_mse(predicted, observed, weights) == pytest.approx(
        mean_squared_error(observed, predicted, sample_weight=weights)
    )
    assert weighted_r2(changes[1], changes[0], weights) == pytest.approx(
        r2_score(*changes, sample_weight=weights)
    )


def test_the_mean_of_training_conditions_explains_nothing(profiles):
    _, observed, reference = profiles
    change = observed - reference
    weights = de_weights(change)
    assert weighted_r2(np.zeros(300), change, weights) <= 0
    assert weighted_r2(change, change, weights) == 1
    assert weighted_r2(3 * change, change, weights) < 0


@pytest.mark.parametrize("constant", [0.0, 0.3])
def test_a_real_change_that_does_not_vary_cannot_be_explained(constant):
    weights = de_weights(np.arange(50.0))
    assert np.isnan(weighted_r2(np.arange(50.0), np.full(50, constant), weights))


def test_lengths_must_agree(profiles):
    predicted, observed, reference = profiles
    with pytest.raises(ValueError, match="same genes"):
        cosine_delta(predicted[1:], observed, reference)
    for function in (weighted_mse, weighted_r2):
        with pytest.raises(ValueError, match="same genes"):
            function(predicted, observed, np.ones(3))
