"""Closed forms against explicit refits, and kernels against formulas."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.kernel_ridge import KernelRidge as ControlCells

from scvi_perturb._core import SchemaError
from scvi_perturb.data import Component, Condition
from scvi_perturb.features import PerturbationFeatures
from scvi_perturb.predictors.ridge import GroupedRidge, Responses, check_penalties
from scvi_perturb.similarity.kernels import Similarity, tanimoto

PENALTIES = (0.01, 0.3, 10.0)


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(12, 4))[[0, 0, 1, 2, 3, 4, 4, 4, 5, 6, 7, 8]]
    kernel = np.exp(-((features[:, None] - features[None]) ** 2).sum(-1) / 8)
    groups = np.array([0, 0, 1, 2, 3, 4, 4, 4, 5, 6, 7, 8])
    targets = rng.normal(size=(12, 3)) + features[:, :3]
    return kernel, targets - targets.mean(0), groups


@pytest.mark.parametrize("n_outputs", [1, 3, 40])
def test_left_out_errors_are_those_of_refits(problem, n_outputs):
    kernel, targets, groups = problem
    mix = np.random.default_rng(1).normal(size=(3, n_outputs))
    targets = targets @ mix
    made = GroupedRidge.fit(kernel, targets, groups=groups, penalties=PENALTIES)
    explicit = []
    for penalty in PENALTIES:
        error = 0.0
        for group in np.unique(groups):
            out, kept = groups == group, groups != group
            fitted = ControlCells(alpha=penalty, kernel="precomputed")
            fitted.fit(kernel[np.ix_(kept, kept)], targets[kept])
            predicted = fitted.predict(kernel[np.ix_(out, kept)]).reshape(out.sum(), -1)
            error += ((predicted - targets[out]) ** 2).sum()
        explicit.append(error / targets.size)
    np.testing.assert_allclose(made.errors, explicit, rtol=1e-8)
    assert made.penalty == PENALTIES[int(np.argmin(explicit))]
    final = ControlCells(alpha=made.penalty, kernel="precomputed").fit(kernel, targets)
    np.testing.assert_allclose(made.weights, final.dual_coef_.reshape(12, -1), rtol=1e-7, atol=1e-9)


def test_rows_of_one_perturbation_are_left_out_together(problem):
    """Copies of a row in training would make the least penalty look best."""
    kernel, _, groups = problem
    rng = np.random.default_rng(2)
    noise = rng.normal(size=(9, 5))[groups]
    grouped = GroupedRidge.fit(kernel, noise, groups=groups, penalties=PENALTIES)
    single = GroupedRidge.fit(kernel, noise, groups=np.arange(12), penalties=PENALTIES)
    assert grouped.penalty > single.penalty


def test_groups_are_sets_of_names():
    conditions = (
        Condition((Component("A"),)),
        Condition((Component("A", 3.0),), time=2),
        Condition((Component("A"), Component("B"))),
        Condition((Component("B", kind="drug"), Component("A", 2))),
        Condition((Component("B"),)),
    )
    groups = Responses(conditions, np.zeros((5, 1))).groups()
    assert groups[0] == groups[1]
    assert groups[2] == groups[3]
    assert len(set(groups)) == 3


@pytest.mark.parametrize("penalties", [(), (0.0,), (-1.0, 1.0), (np.nan,)])
def test_penalties_are_checked(penalties):
    with pytest.raises(ValueError, match="above 0"):
        check_penalties(penalties)


def test_tanimoto_is_jaccard_on_sets_and_min_over_max_on_counts():
    rng = np.random.default_rng(0)
    sets = rng.integers(0, 2, (5, 7)).astype(np.float32)
    a = {tuple(np.flatnonzero(row)) for row in sets[:1]}.pop()
    b = set(np.flatnonzero(sets[1]))
    assert tanimoto(sets, sets)[0, 1] == pytest.approx(len(b & set(a)) / len(b | set(a)))
    np.testing.assert_allclose(tanimoto(sets, sets, sets=True), tanimoto(sets, sets))
    counts = rng.poisson(2, (5, 7)).astype(np.float32)
    least = np.minimum(counts[:, None], counts[None]).sum(-1)
    most = np.maximum(counts[:, None], counts[None]).sum(-1)
    np.testing.assert_allclose(tanimoto(counts, counts), least / most, rtol=1e-6)
    assert tanimoto(np.zeros((1, 3)), np.zeros((1, 3)))[0, 0] == 0


def test_modalities_are_averaged_where_both_have_them():
    store = PerturbationFeatures(
        {
            "sets": pd.DataFrame([[1, 1], [1, 0], [0, 1]], index=["A", "B", "C"]),
            "text": pd.DataFrame([[0.0, -3.0], [0.0, 1.0], [4.0, 1.0]], index=["A", "B", "D"]),
        }
    )
    made = Similarity(store, ["A", "B", "D"])
    values, shared = made.between(["A", "C"])
    width = np.median([4.0, np.sqrt(32), 4.0])
    a_b = (0.5 + np.exp(-16 / (2 * width**2))) / 2
    a_d = np.exp(-32 / (2 * width**2))
    np.testing.assert_allclose(values, [[1, a_b, a_d], [0.5, 0, 0]], rtol=1e-6)
    np.testing.assert_array_equal(shared, [[True] * 3, [True, True, False]])


def test_similarity_of_conditions_is_the_mean_over_pairs():
    store = PerturbationFeatures(
        {"x": pd.DataFrame([[1, 0, 1], [1, 1, 0], [0, 1, 1]], index=list("ABC"))}
    )
    pair = Condition((Component("A"), Component("B", 5.0)))
    made = Similarity(store, ["A", "B", "C"])
    values, _ = made.between(["A", "B", "C"])
    single = Condition((Component("C"),))
    found = (made.of([pair]) @ made.shares([single, pair]).T)[0]
    expected = [values[:2, 2].mean(), values[:2, :2].mean()]
    np.testing.assert_allclose(found, expected)


def test_what_cannot_be_used_at_all():
    with pytest.raises(SchemaError, match=r"can learn from none of the 1 .*\['A'\]"):
        Responses.gather({Condition((Component("A"),)): {}}, lambda _: False, who="It")
