"""Scores of differential expression: by hand, their conventions, and what cannot be gamed."""

from __future__ import annotations

import numpy as np
import pytest

from scvi_perturb.metrics import (
    DifferentialExpression,
    de_direction_yield,
    de_jaccard,
    de_lfc_nmae,
)

ALL = np.ones(40, bool)


def make(change, significant, *, n_genes=40):
    """A test with given fold changes, in which given genes are significant."""
    lfc = np.zeros(n_genes)
    lfc[: len(change)] = change
    adjusted = np.full(n_genes, 0.9)
    adjusted[list(significant)] = 0.01
    tested = np.ones(n_genes, bool)
    return DifferentialExpression(lfc, adjusted / 2, adjusted, np.sign(lfc), tested)


@pytest.fixture
def real():
    return make([*np.linspace(1, 2, 8), *np.linspace(-2, -1, 8)], range(12))


def test_a_perfect_prediction(real):
    assert de_direction_yield(real, real, ALL) == 1
    assert de_jaccard(real, real, ALL) == 1
    assert de_lfc_nmae(real, real, ALL) == 0


def test_by_hand():
    real = make([1, 1, -1, -1, 0.5, 0.5], [0, 1, 2, 3])
    predicted = make([2, -1, -3, 1, 1, -1], [0, 1, 2, 4, 5])
    # Right: 0, 2, and 4, which is not significant in the real cells; 5 calls.
    assert de_direction_yield(predicted, real, ALL) == pytest.approx(3 / 5)
    assert de_jaccard(predicted, real, ALL) == pytest.approx(3 / 6)


def test_own_genes_count_nowhere(real):
    kept = ALL.copy()
    kept[0] = False
    spoiled = make([-9, *real.log_fold_change[1:16]], [*range(1, 12)])
    assert de_direction_yield(spoiled, real, kept) == 1
    assert de_jaccard(spoiled, real, kept) == 1
    assert de_lfc_nmae(spoiled, real, kept) == 0


def test_a_call_without_real_direction_does_not_count():
    real = make([1, 1], [0, 1])
    predicted = make([1, 1, 1], [0, 1, 2])  # gene 2 does not change at all
    assert de_direction_yield(predicted, real, ALL) == 1
    undecided = make([1, 0], [0, 1])
    assert de_direction_yield(undecided, real, ALL) == 0.5


def test_nothing_significant(real):
    nothing = make([], [])
    assert de_direction_yield(nothing, real, ALL) == 0
    assert de_jaccard(nothing, real, ALL) == 0
    assert de_jaccard(nothing, nothing, ALL) == 1
    assert np.isnan(de_direction_yield(nothing, nothing, ALL))
    weak = make(real.log_fold_change[:16], [])
    assert np.isnan(de_direction_yield(real, weak, ALL))  # the truth has nothing to find
    assert de_jaccard(real, weak, ALL) == 0
    assert np.isnan(de_lfc_nmae(real, weak, ALL))


def test_fold_changes_of_no_change_and_twice_the_change(real):
    assert de_lfc_nmae(make([], []), real, ALL) == 1
    assert de_lfc_nmae(make(2 * real.log_fold_change[:16], []), real, ALL) == pytest.approx(1)


def test_fewer_than_ten_genes_have_no_error_of_fold_changes(real):
    few = make(real.log_fold_change[:16], range(9))
    assert np.isnan(de_lfc_nmae(few, few, ALL))
    ten = make(real.log_fold_change[:16], range(10))
    assert de_lfc_nmae(ten, ten, ALL) == 0


def test_fold_changes_that_are_not_finite_are_no_change(real):
    evading = make(np.full(16, np.nan), [])
    assert de_lfc_nmae(evading, real, ALL) == 1
    assert de_lfc_nmae(make(np.full(16, np.inf), []), real, ALL) == 1


def test_calling_everything_costs(real):
    flood = make(real.log_fold_change[:16], range(40))
    flood.log_fold_change[16:] = 1.0
    assert de_jaccard(flood, real, ALL) == pytest.approx(12 / 40)
    # Genes 16 to 39 have no real direction: 16 calls can be judged.
    assert de_direction_yield(flood, real, ALL) == pytest.approx(1)
    noisy = DifferentialExpression(
        np.where(real.log_fold_change == 0, -0.01, real.log_fold_change),
        real.p_value,
        real.p_adjusted,
        real.z,
        real.tested,
    )
    assert de_direction_yield(flood, noisy, ALL) == pytest.approx(16 / 40)


def test_genes_that_are_not_tested_are_not_significant():
    test = DifferentialExpression(
        np.ones(3),
        np.array([0.001, np.nan, 0.5]),
        np.array([0.003, np.nan, 0.5]),
        np.ones(3),
        np.array([True, False, True]),
    )
    assert test.significant.tolist() == [True, False, False]
