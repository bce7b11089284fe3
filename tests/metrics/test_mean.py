"""Direction and magnitude of the mean change: known answers and invariances."""

from __future__ import annotations

import numpy as np
import pytest

from scvi_perturb.metrics import nmse, pearson_delta, top_genes


@pytest.fixture
def profiles():
    rng = np.random.default_rng(0)
    control = rng.gamma(1, 1, 500)
    return control, control + rng.normal(0, 0.5, 500)


def test_top_genes_are_those_with_the_largest_true_change():
    control, observed = np.zeros(4), np.array([0.1, -3.0, 2.0, 0.0])
    assert top_genes(observed, control, 2).tolist() == [1, 2]
    assert top_genes(observed, control, 9).tolist() == [1, 2, 0, 3]
    with pytest.raises(ValueError, match="at least 1"):
        top_genes(observed, control, 0)


def test_pearson_is_numpys(profiles):
    control, observed = profiles
    predicted = observed + np.random.default_rng(1).normal(0, 0.5, 500)
    expected = np.corrcoef(predicted - control, observed - control)[0, 1]
    assert pearson_delta(predicted, observed, control) == pytest.approx(expected)
    genes = np.argsort(-np.abs(observed - control))[:50]
    expected = np.corrcoef((predicted - control)[genes], (observed - control)[genes])[0, 1]
    assert pearson_delta(predicted, observed, control, k=50) == pytest.approx(expected)


def test_pearson_of_perfect_scaled_and_reversed_change(profiles):
    control, observed = profiles
    change = observed - control
    assert pearson_delta(observed, observed, control) == pytest.approx(1)
    assert pearson_delta(control + 3 * change, observed, control) == pytest.approx(1)
    assert pearson_delta(control - change, observed, control) == pytest.approx(-1)


@pytest.mark.parametrize("constant", [0.0, 0.7])
def test_a_constant_change_correlates_with_nothing(profiles, constant):
    control, observed = profiles
    assert np.isnan(pearson_delta(control + constant, observed, control))
    assert np.isnan(pearson_delta(observed, control + constant, control))


def test_rounding_of_32_bits_is_no_change(profiles):
    control, observed = profiles
    rounded = control.astype(np.float32).astype(np.float64)
    assert (rounded != control).any()
    assert np.isnan(pearson_delta(rounded, observed, control))
    small = control + 1e-3 * (observed - control)
    assert pearson_delta(small, observed, control) == pytest.approx(1)


def test_nmse_of_no_change_is_one_exactly(profiles):
    control, observed = profiles
    assert nmse(control, observed, control) == 1.0
    assert nmse(control, observed, control, observed_variance=np.full(500, 0.01)) == 1.0


def test_nmse_of_perfect_half_and_tripled_change(profiles):
    control, observed = profiles
    change = observed - control
    assert nmse(observed, observed, control) == 0
    assert nmse(control + change / 2, observed, control) == pytest.approx(0.25)
    assert nmse(control + 3 * change, observed, control) == pytest.approx(4)


def test_nmse_is_freed_of_the_noise_of_few_cells():
    """The mean over experiments is the error that infinitely many cells would show."""
    rng = np.random.default_rng(0)
    control_truth, truth = rng.gamma(1, 1, 300), rng.gamma(1, 1, 300)
    predicted = truth + rng.normal(0, 0.3, 300)
    exact = nmse(predicted, truth, control_truth)
    found, raw = [], []
    for _ in range(60):
        cells = truth + rng.normal(0, 2, (10, 300))
        controls = control_truth + rng.normal(0, 2, (10, 300))
        observed, control = cells.mean(0), controls.mean(0)
        raw.append(nmse(predicted, observed, control))
        found.append(
            nmse(
                predicted,
                observed,
                control,
                observed_variance=cells.var(0, ddof=1) / 10,
                control_variance=controls.var(0, ddof=1) / 10,
            )
        )
    assert np.mean(found) == pytest.approx(exact, abs=0.02)
    assert np.mean(raw) > exact + 0.1


def test_measured_controls_score_above_one_against_the_noise_free_effect(profiles):
    control, observed = profiles
    assert nmse(control, observed, control, control_variance=np.full(500, 0.02)) > 1


def test_nmse_without_an_effect_is_undefined(profiles):
    control, observed = profiles
    assert np.isnan(nmse(observed, control, control))
    assert np.isnan(nmse(observed, observed, control, observed_variance=10.0))


@pytest.mark.parametrize("metric", [nmse, pearson_delta])
def test_profiles_must_agree_in_length(metric, profiles):
    control, observed = profiles
    with pytest.raises(ValueError, match="same genes"):
        metric(observed[:-1], observed, control)


@pytest.mark.parametrize("metric", [nmse, pearson_delta])
def test_order_of_genes_does_not_matter(metric, profiles):
    control, observed = profiles
    predicted = control + 0.5 * (observed - control) ** 2
    order = np.random.default_rng(1).permutation(500)
    shuffled = metric(predicted[order], observed[order], control[order])
    assert shuffled == pytest.approx(metric(predicted, observed, control))
