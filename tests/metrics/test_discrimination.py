"""Discrimination: ranks by hand, exact chance, and the judge of the Virtual Cell Challenge."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import rankdata

from scvi_perturb.metrics import discrimination


@pytest.fixture
def changes():
    rng = np.random.default_rng(0)
    observed = rng.normal(size=(23, 60)) + rng.normal(size=60)
    return observed + 6 * rng.normal(size=(23, 60)), observed


def test_is_the_rank_of_the_own_condition(changes):
    predicted, observed = changes
    distance = cdist(predicted, observed, "cosine")
    ranks = np.array([rankdata(row)[i] - 1 for i, row in enumerate(distance)])
    made = discrimination(predicted, observed)
    np.testing.assert_allclose(made, 1 - ranks / 22)
    assert 0.5 < made.mean() < 1


def test_perfect_scaled_and_reversed(changes):
    _, observed = changes
    assert discrimination(observed, observed).tolist() == [1.0] * 23
    assert discrimination(5 * observed, observed).tolist() == [1.0] * 23
    assert discrimination(-observed, observed).tolist() == [0.0] * 23


@pytest.mark.parametrize("n", [2, 3, 17, 40])
@pytest.mark.parametrize("copies", [1, 2])
def test_a_constant_prediction_averages_a_half(n, copies):
    rng = np.random.default_rng(n)
    observed = np.repeat(rng.normal(size=(n, 501)), copies, axis=0)
    constant = np.tile(rng.normal(size=501), (n * copies, 1))
    made = discrimination(constant, observed)
    assert made.mean() == pytest.approx(0.5, abs=1e-15)
    # Real conditions that are equal are equally near.
    assert len(np.unique(made)) == n


def test_no_change_scores_a_half_everywhere(changes):
    predicted, observed = changes
    assert discrimination(np.zeros_like(observed), observed).tolist() == [0.5] * 23
    some = predicted.copy()
    some[3] = 0
    assert discrimination(some, observed)[3] == 0.5


def test_equal_conditions_share_their_rank(changes):
    _, observed = changes
    twins = observed.copy()
    twins[7] = twins[2]
    made = discrimination(twins, twins)
    assert made[2] == made[7] == 1 - 0.5 / 22
    assert np.delete(made, [2, 7]).tolist() == [1.0] * 21


def test_order_of_conditions_and_genes_does_not_matter(changes):
    predicted, observed = changes
    rng = np.random.default_rng(1)
    rows, columns = rng.permutation(23), rng.permutation(60)
    turned = discrimination(predicted[rows][:, columns], observed[rows][:, columns])
    np.testing.assert_allclose(turned, discrimination(predicted, observed)[rows])


def test_raising_the_targets_of_others_gains_nothing():
    """The signature of who is targeted is left out on both sides, in every comparison."""
    rng = np.random.default_rng(0)
    n, n_genes = 20, 100
    observed = 0.3 * rng.normal(size=(n, n_genes))
    observed[np.arange(n), np.arange(n)] = -5.0  # knocked down
    spiked = np.zeros((n, n_genes))
    spiked[:, :n] = 1.0 - np.eye(n)
    targeted = np.arange(n_genes) < n
    assert discrimination(spiked, observed).mean() > 0.9
    assert discrimination(spiked, observed, targeted=targeted).tolist() == [0.5] * n


def test_what_cannot_be_ranked():
    one = np.ones((1, 5))
    assert np.isnan(discrimination(one, one)).all()
    two = np.eye(2)
    assert np.isnan(discrimination(two, two, targeted=np.ones(2, bool))).all()
    with pytest.raises(ValueError, match="same conditions and genes"):
        discrimination(two, np.ones((2, 3)))
    with pytest.raises(ValueError, match="not finite"):
        discrimination(np.full((2, 2), np.nan), two)


def test_agrees_with_cell_eval(changes):
    cell_eval = pytest.importorskip(
        "cell_eval2.metrics.discrimination", reason="cell-eval2 is not installed"
    )
    predicted, observed = changes
    predicted, observed = predicted.copy(), observed.copy()
    predicted[4], predicted[9] = 0, predicted[8]
    n, n_genes = observed.shape
    genes = np.array([f"g{i:02d}" for i in range(n_genes)])
    names = np.array([f"p{i:02d}" for i in range(n)])
    control = np.random.default_rng(5).gamma(1, 1, n_genes)
    labels = np.append(names, "non-targeting")
    sides = [(labels, np.vstack([control + x, control])) for x in (predicted, observed)]
    expected = cell_eval.discrimination_score(
        pred_bulk=sides[0],
        real_bulk=sides[1],
        distance="cosine",
        rank_denominator="n-1",
        tie_policy="midrank",
        exclusion_scope="panel",
        control_source="real",
        genes=genes,
        target_gene_map=dict(zip(names, genes, strict=False)),
    )
    made = discrimination(
        sides[0][1][:-1] - control, sides[1][1][:-1] - control, targeted=np.arange(n_genes) < n
    )
    np.testing.assert_allclose(made, [expected[name] for name in names], atol=1e-12)
