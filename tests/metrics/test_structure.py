"""Spread and zeros of single genes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from scvi_perturb.metrics import variance_ratio, zero_fraction_error


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


@pytest.mark.parametrize("metric", [variance_ratio, zero_fraction_error])
def test_sparse_agrees_with_dense_and_genes_must_match(metric, cells):
    made, real = np.maximum(cells, 0), np.maximum(cells[::-1] * 1.5 - 0.2, 0)
    expected = metric(made, real)
    assert metric(sparse.csr_matrix(made), sparse.csr_matrix(real)) == pytest.approx(expected)
    with pytest.raises(ValueError, match="same genes"):
        metric(made[:, 1:], real)
