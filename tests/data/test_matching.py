"""Cells meet controls of their own context and batch, evenly, and near ones when transported."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scvi_perturb._core import SchemaError
from scvi_perturb.data.matching import (
    LEVELS,
    effects_of_batches,
    group_controls,
    match_controls,
    tell_batch_effects,
)


def _screen(n: int = 600, seed: int = 0) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    context, batch, condition = (rng.integers(0, k, n) for k in (3, 2, 4))
    latent = rng.normal(size=(n, 5)) + context[:, None] + 2.0 * (condition[:, None] == 1)
    return context, batch, condition, latent


@given(
    cells=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 2), st.booleans()), min_size=1, max_size=40
    ).filter(lambda cells: any(control for *_, control in cells)),
    seed=st.integers(0, 1000),
)
def test_the_closest_level_there_is_answers(cells: list[tuple[int, int, bool]], seed: int) -> None:
    context, batch, control = (np.array(column) for column in zip(*cells, strict=True))
    groups = group_controls(context, batch, control)
    matched = match_controls(groups, seed=seed)
    assert control[matched].all()
    for i, level in enumerate(groups.level[groups.group]):
        same_context = control & (context == context[i])
        candidates = [same_context & (batch == batch[i]), same_context, control]
        first = next(k for k, pool in enumerate(candidates) if pool.any())
        assert level == first
        assert set(groups.pool(groups.group[i])) == set(np.flatnonzero(candidates[first]))
        assert candidates[first][matched[i]]
        if candidates[first].sum() > 1:
            assert matched[i] != i


def test_levels_are_named() -> None:
    groups = group_controls(["a", "a", "b", "c"], [0, 1, 0, 0], [True, False, False, True])
    assert [LEVELS[level] for level in groups.level[groups.group]] == [
        "context and batch",
        "context",
        "nothing",
        "context and batch",
    ]


def test_labels_columns_and_missing_batches_are_taken() -> None:
    context, batch, condition, _ = _screen()
    control = condition == 0
    names = pd.Series(np.array(["x", "y", "z"])[context]).astype("category")
    plain = group_controls(context, batch, control)
    np.testing.assert_array_equal(
        match_controls(plain, seed=1),
        match_controls(plain, cells=np.arange(len(context)), seed=1),
    )
    named = group_controls(names, batch, control)
    stacked = group_controls(np.stack([context // 2, context % 2], axis=1), batch, control)
    for other in (named, stacked):
        for cell in range(0, 600, 50):
            assert set(other.pool(other.group[cell])) == set(plain.pool(plain.group[cell]))
    assert set(group_controls(context, None, control).level) == {0}


def test_random_matches_are_uniform_over_the_pool() -> None:
    control = np.arange(20_010) < 10
    groups = group_controls(np.zeros(20_010), None, control)
    matched = match_controls(groups, cells=np.arange(10, 20_010), seed=0)
    assert matched.dtype == np.int64
    counts = np.bincount(matched, minlength=10)
    assert ((counts - 2000) ** 2 / 2000).sum() < 27.9  # chi-square, 9 degrees, 0.1 %


def test_seed_decides() -> None:
    context, batch, condition, latent = _screen()
    groups = group_controls(context, batch, condition == 0)
    for options in ({"method": "random"}, {"method": "ot", "latent": latent}):
        one, two, other = (match_controls(groups, seed=seed, **options) for seed in (5, 5, 6))
        np.testing.assert_array_equal(one, two)
        assert (one != other).mean() > 0.05


def test_shares_together_are_the_whole() -> None:
    context, batch, condition, latent = _screen()
    groups = group_controls(context, batch, condition == 0)
    options = {"method": "ot", "latent": latent, "condition": condition, "seed": 0}
    whole = match_controls(groups, **options)
    shares = [match_controls(groups, share=(i, 3), **options) for i in range(3)]
    assert all((share < 0).any() for share in shares)
    np.testing.assert_array_equal(np.maximum.reduce(shares), whole)


def test_transport_stays_in_the_group_and_shortens_the_way() -> None:
    context, batch, condition, latent = _screen()
    control = condition == 0
    groups = group_controls(context, batch, control)
    cells = np.flatnonzero(~control)
    ways = {}
    for method in ("random", "ot"):
        matched = match_controls(
            groups, cells=cells, method=method, latent=latent, condition=condition, seed=0
        )
        assert control[matched].all()
        np.testing.assert_array_equal(context[matched], context[cells])
        np.testing.assert_array_equal(batch[matched], batch[cells])
        ways[method] = ((latent[matched] - latent[cells]) ** 2).sum(axis=1).mean()
    assert ways["ot"] < 0.7 * ways["random"]


def test_transport_is_the_exact_optimum_and_uses_controls_evenly() -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=300), rng.normal(3, 2, size=300)])
    control = np.arange(600) < 300
    groups = group_controls(np.zeros(600), None, control)
    cells = np.arange(300, 600)
    matched = match_controls(groups, cells=cells, method="ot", latent=x[:, None], seed=0)
    # in one dimension the optimum pairs ranks, and it is a bijection
    np.testing.assert_array_equal(np.argsort(x[cells]), np.argsort(x[matched]))
    assert len(set(matched)) == 300


def test_transport_takes_conditions_apart() -> None:
    rng = np.random.default_rng(1)
    condition = np.repeat([0, 1, 2], 200)
    latent = rng.normal(size=(600, 1)) + 4.0 * (condition == 1)[:, None]
    groups = group_controls(np.zeros(600), None, condition == 0)
    cells = np.arange(200, 600)
    means = []
    for parts in (condition, None):
        matched = match_controls(
            groups, cells=cells, method="ot", latent=latent, condition=parts, seed=0
        )
        means.append([latent[matched[condition[cells] == k]].mean() for k in (1, 2)])
    apart, together = means
    assert abs(apart[0] - apart[1]) < 0.1  # each condition meets all controls
    assert abs(together[0] - together[1]) > 1.0


@pytest.mark.parametrize(("n_control", "n_treated"), [(3, 50), (50, 3), (1, 1), (400, 130)])
def test_sizes_may_differ(n_control: int, n_treated: int) -> None:
    n = n_control + n_treated
    control = np.arange(n) < n_control
    latent = np.random.default_rng(0).normal(size=(n, 3))
    groups = group_controls(np.zeros(n), None, control)
    cells = np.arange(n_control, n)
    matched = match_controls(groups, cells=cells, method="ot", latent=latent, max_size=64, seed=0)
    assert control[matched].all()
    uses = np.bincount(matched, minlength=n_control)
    assert uses.max() <= -(-n_treated // n_control) + 2


def test_a_control_meets_another_control() -> None:
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(40, 2))
    for context in (np.zeros(40), np.repeat(np.arange(20), 2)):
        groups = group_controls(context, None, np.ones(40, bool))
        matched = match_controls(groups, method="ot", latent=latent, seed=0)
        assert (matched != np.arange(40)).all()


def test_what_cannot_be_matched_says_why() -> None:
    with pytest.raises(SchemaError, match="None of 3 cells is a control"):
        group_controls([0, 0, 1], None, [False] * 3)
    with pytest.raises(SchemaError, match=r"batch has shape \(2,\); expected 3 rows"):
        group_controls([0, 0, 1], [0, 1], [True] * 3)
    groups = group_controls([0, 0, 1], None, [True] * 3)
    with pytest.raises(ValueError, match="method='nearest' is not known; choose one of 'ot'"):
        match_controls(groups, method="nearest")
    with pytest.raises(ValueError, match="latent array of 3 rows, one a cell; found None"):
        match_controls(groups, method="ot")
    with pytest.raises(ValueError, match="found 2 rows"):
        match_controls(groups, method="ot", latent=np.zeros((2, 1)))


def test_effects_without_a_control_in_their_batches_are_found() -> None:
    cells = [  # condition, context, batch
        *((0, 0, 0), (1, 0, 1), (2, 0, 0), (2, 0, 1), (3, 0, 1), (3, 0, 2)),
        *((0, 1, 1), (1, 1, 1), (0, 2, 0), (0, 2, 1), (1, 2, 1)),
    ]
    condition, context, batch = map(np.array, zip(*cells, strict=True))
    assert effects_of_batches(condition, context, batch) == [(1, 0), (3, 0)]
    assert effects_of_batches(condition, context, batch * 0) == []
    assert effects_of_batches(condition * 0, context, batch) == []
    said = tell_batch_effects(["A in T", "B in T", "C in T", "D in T"])
    assert said.startswith("4 effects cannot be told from the batch: ")
    assert "A in T, B in T, C in T, ..." in said
