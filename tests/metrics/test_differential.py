"""The rank-sum test and its scores: SciPy and scanpy as oracles, conventions, what is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from scipy import sparse
from scipy.stats import false_discovery_control, mannwhitneyu

from scvi_perturb.metrics import log_normalize
from scvi_perturb.metrics._differential import (
    DifferentialExpression,
    SortedControl,
    de_direction_yield,
    de_jaccard,
    de_lfc_nmae,
    differential_expression,
)


def make_counts(n_cells, *, n_genes=60, factor=1.0, seed=0):
    rng = np.random.default_rng(seed)
    profile = np.random.default_rng(99).gamma(0.4, 1.0, n_genes) + 1e-3
    profile[:8] *= factor
    sizes = rng.lognormal(np.log(300), 0.4, n_cells)
    return rng.poisson(sizes[:, None] * profile / profile.sum()).astype(float)


@pytest.fixture
def cells():
    """Perturbed and control cells: many ties, most values 0, one gene silent everywhere."""
    sides = [make_counts(70, factor=2.0, seed=1), make_counts(110, seed=2)]
    for side in sides:
        side[:, 20] = 0
        side[:, 21] *= side is sides[0]
        side[:, 22] *= side is sides[1]
    return [log_normalize(sparse.csr_matrix(side)) for side in sides]


def test_p_values_are_scipys(cells):
    made = differential_expression(*cells, min_control_cpm=-1.0)
    ours, control = (side.toarray().astype(float) for side in cells)  # else ranks are 32-bit
    varies = np.vstack([ours, control]).std(axis=0) > 0
    expected = mannwhitneyu(
        ours[:, varies], control[:, varies], use_continuity=False, method="asymptotic"
    )
    np.testing.assert_allclose(made.p_value[varies], expected.pvalue, rtol=1e-9)
    wins = expected.statistic - 0.5 * len(ours) * len(control)
    assert (np.sign(made.z[varies]) == np.sign(wins)).all()
    assert made.p_value[~varies].tolist() == [1.0] * (~varies).sum()
    np.testing.assert_allclose(made.p_adjusted, false_discovery_control(made.p_value))


@pytest.mark.filterwarnings("ignore")
def test_scores_and_p_values_are_scanpys(cells):
    names = [f"g{i}" for i in range(cells[0].shape[1])]
    labels = ["treated"] * cells[0].shape[0] + ["control"] * cells[1].shape[0]
    adata = AnnData(
        sparse.vstack(cells).tocsr(),
        obs=pd.DataFrame({"group": pd.Categorical(labels)}, index=[*map(str, range(len(labels)))]),
        var=pd.DataFrame(index=names),
    )
    sc.tl.rank_genes_groups(
        adata, "group", reference="control", method="wilcoxon", tie_correct=True
    )
    table = sc.get.rank_genes_groups_df(adata, "treated").set_index("names").loc[names]
    made = differential_expression(*cells, min_control_cpm=-1.0)
    np.testing.assert_allclose(made.z, table["scores"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(made.p_value, table["pvals"], rtol=1e-5)


def test_fold_change_is_of_mean_counts_per_million(cells):
    made = differential_expression(*cells)
    ours, control = (np.expm1(side.toarray().astype(float)) * 100 for side in cells)
    expected = np.log2((ours.mean(0) + 1e-9) / (control.mean(0) + 1e-9))
    np.testing.assert_allclose(made.log_fold_change, expected, rtol=1e-9)
    assert made.log_fold_change[20] == 0
    assert made.log_fold_change[22] < -30


def test_control_alone_decides_which_genes_are_tested(cells):
    ours, control = cells
    cpm = np.expm1(control.toarray().astype(float)).mean(axis=0) * 100
    threshold = float(np.median(cpm))
    made = differential_expression(ours, control, min_control_cpm=threshold)
    assert (made.tested == (cpm > threshold)).all()
    assert np.isnan(made.p_value[~made.tested]).all()
    assert not made.significant[~made.tested].any()
    expected = false_discovery_control(made.p_value[made.tested])
    np.testing.assert_allclose(made.p_adjusted[made.tested], expected)
    assert not differential_expression(ours, control).tested[21], "silent in control"
    raised = ours.copy().tolil()
    raised[:, 21] = 5.0
    assert not differential_expression(raised.tocsr(), control).tested[21]


def test_what_differs_is_significant_and_little_else(cells):
    found = np.flatnonzero(differential_expression(*cells).significant)
    assert len(found) >= 4
    null = log_normalize(sparse.csr_matrix(make_counts(70, seed=5)))
    control = log_normalize(sparse.csr_matrix(make_counts(110, seed=6)))
    assert differential_expression(null, control).significant.sum() <= 1


def test_z_turns_with_the_sides(cells):
    ours, control = cells
    forth, back = differential_expression(ours, control), differential_expression(control, ours)
    np.testing.assert_allclose(forth.z, -back.z, atol=1e-9)
    assert np.abs(differential_expression(ours, ours).z).max() < 1e-9


def test_dense_sparse_and_sorted_control_agree(cells):
    ours, control = cells
    first = differential_expression(ours, control)
    prepared = SortedControl.of(control)
    place = ours.tocoo()
    place = (np.append(place.data, 0), (np.append(place.row, 0), np.append(place.col, 20)))
    stored = sparse.csr_matrix(place, ours.shape)  # of a zero
    others = [
        differential_expression(ours.toarray(), control.toarray()),
        differential_expression(ours.tocsc(), prepared),
        differential_expression(stored, prepared),
        differential_expression(ours[::-1], control[::-1]),
    ]
    for other in others:
        np.testing.assert_allclose(other.z, first.z, rtol=1e-12)
        np.testing.assert_array_equal(other.significant, first.significant)
    assert stored.nnz == ours.nnz + 1, "input is left as it was"


def test_equal_shares_of_counts_tie():
    counts = np.array([[1.0, 2.0], [3.0, 6.0], [7.0, 14.0]])
    made = differential_expression(log_normalize(counts), log_normalize(counts[:2] * 11))
    assert made.z.tolist() == [0.0, 0.0]


def test_one_cell_and_silent_sides_have_a_test():
    empty, one = sparse.csr_matrix((3, 4), dtype=np.float32), np.array([[0.0, 1.0, 2.0, 3.0]])
    made = differential_expression(one, empty)
    assert not made.tested.any()
    assert not made.significant.any()
    assert differential_expression(empty, one).z[0] == 0
    assert (differential_expression(empty, one).z[1:] < 0).all()


@pytest.mark.parametrize(
    ("cells", "control", "message"),
    [
        (np.ones((2, 3)), np.ones((2, 4)), "3 genes in cells and 4"),
        (np.zeros((0, 3)), np.ones((2, 3)), "no cells"),
        (np.ones((2, 3)), np.zeros((0, 3)), "no cells"),
        (-np.ones((2, 3)), np.ones((2, 3)), "values from -1 to -1"),
        (np.full((2, 3), 700.0), np.ones((2, 3)), "log_normalize"),
        (np.full((2, 3), np.nan), np.ones((2, 3)), "not finite"),
    ],
)
def test_refuses_what_is_not_log_normalised_cells(cells, control, message):
    with pytest.raises(ValueError, match=message):
        differential_expression(cells, control)


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
