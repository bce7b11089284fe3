"""Spread and zeros of single genes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from scvi_perturb.metrics import variance_ratio, zero_fraction_error
from scvi_perturb.metrics._structure import (
    MAX_LOG_RATIO,
    chosen_genes,
    correlation_agreement,
    log_variance_ratios,
    variance_spread,
)


@pytest.fixture
def cells():
    return np.random.default_rng(0).normal(0, 1, (400, 30))


def test_variance_ratio_of_scaled_cells(cells):
    assert variance_ratio(cells, cells) == 1
    assert variance_ratio(2 * cells, cells) == pytest.approx(4)
    assert variance_ratio(cells + 5, cells) == pytest.approx(1)


def test_identical_cells_have_no_spread(cells):
    assert variance_ratio(np.repeat(cells[:1], 10, axis=0), cells) == pytest.approx(0, abs=1e-12)


def test_number_of_cells_does_not_bias_the_ratio():
    rng = np.random.default_rng(0)
    ratios = [variance_ratio(rng.normal(size=(6, 200)), rng.normal(size=(3000, 200)))
              for _ in range(40)]  # fmt: skip
    median_of_chi2 = 0.8703  # of 5 degrees of freedom, over 5: the median is not the mean
    assert np.mean(ratios) == pytest.approx(median_of_chi2, abs=0.02)


def test_genes_are_chosen_and_those_without_variance_left_out(cells):
    real = cells.copy()
    real[:, 0] = 3.0
    made = real * np.where(np.arange(30) < 10, 1.0, 2.0)
    assert variance_ratio(made, real, genes=np.arange(10)) == pytest.approx(1)
    assert variance_ratio(made, real, genes=np.arange(10, 30)) == pytest.approx(4)
    assert np.isnan(variance_ratio(made, real, genes=np.array([0])))


def test_zero_fractions():
    real = np.array([[0.0, 1.0], [0.0, 2.0], [3.0, 1.0], [1.0, 1.0]])
    made = np.array([[1.0, 0.0], [1.0, 0.0]])
    assert zero_fraction_error(made, real) == pytest.approx((0.5 + 1.0) / 2)
    assert zero_fraction_error(sparse.csr_matrix(real), real) == 0


@pytest.mark.parametrize("metric", [variance_ratio, variance_spread, zero_fraction_error])
def test_sparse_agrees_with_dense_and_genes_must_match(metric, cells):
    made, real = np.maximum(cells, 0), np.maximum(cells[::-1] * 1.5 - 0.2, 0)
    expected = metric(made, real)
    assert metric(sparse.csr_matrix(made), sparse.csr_matrix(real)) == pytest.approx(expected)
    with pytest.raises(ValueError, match="same genes"):
        metric(made[:, 1:], real)


def test_log_ratios_of_scaled_cells(cells):
    scale = np.linspace(0.5, 2, 30)
    np.testing.assert_allclose(log_variance_ratios(cells * scale, cells), 2 * np.log(scale))
    genes = np.array([3, 1])
    np.testing.assert_allclose(
        log_variance_ratios(cells * scale, cells, genes), 2 * np.log(scale[genes])
    )


def test_sampling_error_of_log_ratios_is_as_documented():
    made, real = np.random.default_rng(0).normal(size=(2, 500, 2000))
    ratios = log_variance_ratios(made, real)
    expected = np.sqrt(2 / 500 + 2 / 500)
    assert ratios.std() == pytest.approx(expected, rel=4 / np.sqrt(2 * 2000))
    assert ratios.mean() == pytest.approx(0, abs=4 * expected / np.sqrt(2000))
    # The quartiles of a normal distribution are 1.349 standard deviations apart.
    assert variance_spread(made, real) == pytest.approx(1.349 * expected, rel=0.1)


def test_spread_sees_what_the_median_does_not(cells):
    uneven = cells * np.where(np.arange(30) < 15, 0.5, 2.0)
    assert variance_ratio(uneven, cells) == pytest.approx((0.25 + 4) / 2)
    assert variance_spread(uneven, cells) == pytest.approx(2 * np.log(4))
    assert variance_spread(3 * cells, cells) == pytest.approx(0, abs=1e-12)


def test_cells_without_variance_fail(cells):
    same = np.repeat(cells[:1] + 0.1, 400, axis=0)
    np.testing.assert_array_equal(log_variance_ratios(same, cells), -MAX_LOG_RATIO)
    assert variance_spread(same, cells) == 2 * MAX_LOG_RATIO
    real = correlated(np.random.default_rng(0), 500)
    assert correlation_agreement(np.repeat(real[:1] + 0.1, 500, axis=0), real) == 0


def test_few_constant_genes_do_not_decide(cells):
    made = cells.copy()
    made[:, :3] = 0.0
    assert variance_spread(made, cells) == 0
    real = correlated(np.random.default_rng(0), 500)
    made = real.copy()
    made[:, 0] = 0.0
    assert 0.3 < correlation_agreement(made, real) < 0.95


def test_genes_that_do_not_vary_in_real_cells_have_no_ratio(cells):
    real = cells.copy()
    real[:, 0] = 0.1
    ratios = log_variance_ratios(cells, real)
    assert np.isnan(ratios[0])
    assert np.isfinite(ratios[1:]).all()
    assert variance_spread(cells, real) == 0
    assert np.isnan(variance_spread(cells, real, np.array([0])))


def correlated(rng, n, sign=1.0):
    """Six genes of one program, of which the last three have `sign`, and six without."""
    loadings = np.array([1.0] * 3 + [sign] * 3 + [0.0] * 6)
    return rng.normal(size=(n, 1)) * loadings + rng.normal(size=(n, 12))


def test_agreement_of_correlations_tells_programs_apart():
    rng = np.random.default_rng(0)
    real = correlated(rng, 2000)
    assert correlation_agreement(correlated(rng, 2000), real) > 0.98
    # The program of opposite signs agrees in 6 of its 15 pairs.
    assert abs(correlation_agreement(correlated(rng, 2000, -1.0), real)) < 0.5
    shuffled = rng.permuted(real, axis=0)
    assert abs(correlation_agreement(shuffled, real)) < 4 / np.sqrt(66)


def test_agreement_equals_that_of_plain_correlations_where_there_is_signal():
    rng = np.random.default_rng(0)
    made, real = correlated(rng, 300), correlated(rng, 300, 0.5)
    upper = np.triu_indices(12, 1)
    plain = (np.corrcoef(x, rowvar=False)[upper] for x in (made, real))
    assert correlation_agreement(made, real) == pytest.approx(np.corrcoef(*plain)[0, 1])


def test_agreement_ignores_location_and_scale_of_genes():
    rng = np.random.default_rng(0)
    made, real = correlated(rng, 300), correlated(rng, 300)
    moved = made * rng.uniform(0.1, 9, 12) + rng.normal(size=12)
    assert correlation_agreement(moved, real) == pytest.approx(correlation_agreement(made, real))


def test_agreement_of_sparse_cells_and_of_other_genes():
    rng = np.random.default_rng(0)
    made, real = (np.maximum(correlated(rng, 300), 0) for _ in range(2))
    expected = correlation_agreement(made, real)
    stored = sparse.csr_matrix(made), sparse.csc_array(real)
    assert correlation_agreement(*stored) == pytest.approx(expected)
    with pytest.raises(ValueError, match="same genes"):
        correlation_agreement(made[:, 1:], real)


def test_agreement_needs_three_genes_that_vary_and_takes_the_most_variable():
    rng = np.random.default_rng(0)
    made, real = correlated(rng, 300), correlated(rng, 300)
    assert np.isnan(correlation_agreement(made, real, np.array([0, 1])))
    still = np.where(np.arange(12) < 10, 1.0, real)
    assert np.isnan(correlation_agreement(made, still))
    six = correlation_agreement(made, real, np.arange(6))
    louder = np.where(np.arange(12) < 6, 10.0, 1.0)
    assert correlation_agreement(made, real * louder, max_genes=6) == pytest.approx(six)
    with pytest.raises(ValueError, match="at least 3"):
        correlation_agreement(made[:2], real)


def test_real_correlations_that_are_noise_leave_nothing_to_agree_with():
    rng = np.random.default_rng(0)
    noise = [rng.normal(size=(500, 12)) for _ in range(20)]
    found = [correlation_agreement(correlated(rng, 500), x) for x in noise]
    assert 0.1 < np.isnan(found).mean() < 0.9
    # Whether it is defined depends on the real cells alone.
    np.testing.assert_array_equal(
        np.isnan([correlation_agreement(x, x) for x in noise]), np.isnan(found)
    )


def test_correlations_that_are_noise_agree_with_nothing():
    """In about half of the samples noise is all there is, exactly; in the others, nearly."""
    rng = np.random.default_rng(0)
    real = correlated(rng, 500)
    found = [correlation_agreement(rng.normal(size=(500, 12)), real) for _ in range(60)]
    assert 0.2 < np.mean(np.array(found) == 0) < 0.9
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(60)


def test_chosen_genes_are_dense(cells):
    genes = np.array([4, 2])
    for stored in (cells, sparse.csr_matrix(cells), sparse.csc_array(cells)):
        np.testing.assert_array_equal(chosen_genes(stored, genes), cells[:, genes])
        np.testing.assert_array_equal(chosen_genes(stored), cells)
