"""Normalisation and profiles against formulas written down apart."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from scvi_perturb.metrics._profiles import (
    gene_moments,
    log_normalize,
    pseudobulk,
    pseudobulk_variance,
    zero_fraction,
)


@pytest.fixture
def counts():
    return np.random.default_rng(0).poisson(0.7, (40, 12)).astype(np.float32)


def test_cells_of_any_depth_get_the_same_profile():
    cells = np.array([[1.0, 3.0, 0.0], [10.0, 30.0, 0.0]])
    expected = np.log1p([2500.0, 7500.0, 0.0])
    np.testing.assert_allclose(log_normalize(cells), [expected, expected], rtol=1e-6)


def test_sparse_stays_sparse_and_agrees(counts):
    made = log_normalize(sparse.csc_matrix(counts))
    assert sparse.issparse(made)
    assert made.format == "csr"
    np.testing.assert_allclose(made.toarray(), log_normalize(counts), rtol=1e-6)


def test_input_is_left_alone(counts):
    stored = sparse.csr_matrix(counts)
    log_normalize(stored)
    np.testing.assert_array_equal(stored.toarray(), counts)


def test_empty_cell_stays_zero():
    assert np.array_equal(log_normalize(np.zeros((2, 3))), np.zeros((2, 3)))


def test_negative_totals_are_refused():
    with pytest.raises(ValueError, match="raw counts"):
        log_normalize(np.array([[-1.0, 0.0]]))


@pytest.mark.parametrize("convert", [np.asarray, sparse.csr_matrix, sparse.csr_array])
def test_moments(counts, convert):
    mean, variance = gene_moments(convert(counts))
    np.testing.assert_allclose(mean, counts.mean(0), rtol=1e-6)
    np.testing.assert_allclose(variance, counts.var(0, ddof=1), rtol=1e-5)
    np.testing.assert_allclose(zero_fraction(convert(counts)), (counts == 0).mean(0))


def test_variance_does_not_cancel():
    column = np.full((1000, 1), 1e4) + np.random.default_rng(0).normal(0, 1e-3, (1000, 1))
    assert gene_moments(sparse.csr_matrix(column))[1][0] == pytest.approx(column.var(ddof=1))


def test_one_cell_has_no_variance():
    with pytest.raises(ValueError, match="at least 2"):
        gene_moments(np.ones((1, 3)))


def test_pseudobulk_is_of_sums_and_not_of_cells(counts):
    sums = counts.sum(0)
    np.testing.assert_allclose(pseudobulk(counts), np.log1p(1e4 * sums / sums.sum()), rtol=1e-6)
    merged = counts.reshape(20, 2, 12).sum(1)
    np.testing.assert_allclose(pseudobulk(merged), pseudobulk(counts), rtol=1e-6)
    assert not np.allclose(log_normalize(merged).mean(0), log_normalize(counts).mean(0), rtol=1e-2)


def test_pseudobulk_without_counts_is_refused():
    with pytest.raises(ValueError, match="no counts"):
        pseudobulk(np.zeros((3, 2)))


@pytest.mark.parametrize("convert", [np.asarray, sparse.csr_matrix])
def test_jackknife_leaves_out_each_cell_once(counts, convert):
    left_out = np.array([pseudobulk(np.delete(counts, i, axis=0)) for i in range(len(counts))])
    expected = (len(counts) - 1) * left_out.var(0)
    np.testing.assert_allclose(pseudobulk_variance(convert(counts)), expected, rtol=1e-6)


def test_jackknife_is_the_variance_of_repeated_experiments():
    rng = np.random.default_rng(0)
    rates = rng.lognormal(1, 1, 30)
    experiments = [rng.poisson(rates, (50, 30)) for _ in range(200)]
    truth = np.var([pseudobulk(cells) for cells in experiments], axis=0, ddof=1)
    estimate = np.mean([pseudobulk_variance(cells) for cells in experiments[:50]], axis=0)
    assert np.median(estimate / truth) == pytest.approx(1, abs=0.1)


def test_jackknife_needs_cells_to_leave_out():
    with pytest.raises(ValueError, match="at least 2"):
        pseudobulk_variance(np.ones((1, 2)))
    with pytest.raises(ValueError, match="all the counts"):
        pseudobulk_variance(np.array([[1.0, 2.0], [0.0, 0.0]]))
