"""Sampling variances from sums over cells, against sums over the cells themselves."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from scvi_perturb.data import ScreenKeys
from scvi_perturb.predictors import NoChange, StackedMean
from scvi_perturb.predictors.profiles import Moments, TrainingProfiles
from tests.predictors._effects import effects, pairs
from tests.predictors._screen import make_screen

GROUP = np.array([0, 1, 0, 2, 1, 0, 1, 1, 0, 2, 2, 0], np.int64)
COUNTS = np.random.default_rng(0).poisson(3.0, (12, 5)).astype(np.float64)


def cells_of(group):
    return COUNTS[np.flatnonzero(np.isin(GROUP, group))]


def log_normalize(counts):
    counts = counts.toarray() if sparse.issparse(counts) else counts
    return np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))


def made(counts=COUNTS, group=GROUP, *, per_cell=False, chunk=100):
    """Return variances of groups, cells being read in chunks."""
    n_groups, values = int(group.max()) + 1, counts
    moments = Moments.empty((n_groups, counts.shape[1]), per_cell=per_cell)
    for start in range(0, len(group), chunk):
        moments.add(counts[start : start + chunk], group[start : start + chunk])
    if per_cell:
        values = log_normalize(counts)
    sums = np.stack([np.asarray(values[group == k].sum(axis=0)).ravel() for k in range(n_groups)])
    return moments.variances(sums.astype(float), np.bincount(group))


def influences(cells):
    """Return what each cell adds to `log1p(1e4 * share)` to first order, `(n_cells, n_genes)`."""
    total, library = cells.sum(), cells.sum(axis=1, keepdims=True)
    share = cells.sum(axis=0) / total
    return 1e4 * (cells - share * library) / (1 + 1e4 * share) / total


def test_the_variance_of_a_pseudobulk_is_that_of_its_influences():
    for k, found in enumerate(made()):
        per_cell = influences(cells_of(k))
        n = len(per_cell)
        np.testing.assert_allclose(found, (per_cell**2).sum(axis=0) * n / (n - 1), rtol=1e-6)


def test_an_influence_is_the_derivative_by_the_weight_of_a_cell():
    cells, step = cells_of(1), 1e-6
    for i, expected in enumerate(influences(cells)):
        profiles = []
        for weight in (1 - step, 1 + step):
            weights = np.ones((len(cells), 1))
            weights[i] = weight
            summed = (weights * cells).sum(axis=0)
            profiles.append(np.log1p(1e4 * summed / summed.sum()))
        np.testing.assert_allclose((profiles[1] - profiles[0]) / (2 * step), expected, atol=1e-6)


def test_the_variance_of_a_mean_over_cells():
    for k, found in enumerate(made(per_cell=True)):
        values = log_normalize(cells_of(k))
        np.testing.assert_allclose(found, values.var(axis=0, ddof=1) / len(values), rtol=1e-6)


@pytest.mark.parametrize("per_cell", [False, True])
@pytest.mark.parametrize("form", [sparse.csr_matrix, sparse.csc_matrix, np.asarray])
def test_neither_chunks_nor_storage_matter(per_cell, form):
    expected = made(per_cell=per_cell)
    np.testing.assert_allclose(made(form(COUNTS), per_cell=per_cell), expected, rtol=1e-6)
    if form is not sparse.csc_matrix:
        chunked = made(form(COUNTS), per_cell=per_cell, chunk=5)
        np.testing.assert_allclose(chunked, expected, rtol=1e-6)


@pytest.mark.parametrize("per_cell", [False, True])
def test_repetition_of_the_experiment_has_this_variance(per_cell):
    """The mean over 400 experiments of stated variances, by the variance over them.

    The latter has a relative standard error of sqrt(2 / 400) = 7 % for each of five genes: four.
    """
    rng = np.random.default_rng(1)
    counts = rng.poisson(rng.uniform(2, 9, 5) * rng.gamma(4.0, 1.0, (400 * 30, 1)))
    group = np.repeat(np.arange(400), 30)
    stated = made(counts, group, per_cell=per_cell).mean(axis=0)
    values = log_normalize(counts) if per_cell else counts
    summed = values.reshape(400, 30, 5).sum(axis=1)
    share = summed / summed.sum(axis=1, keepdims=True)
    profiles = summed / 30 if per_cell else np.log1p(1e4 * share)
    np.testing.assert_allclose(stated / profiles.var(axis=0, ddof=1), 1, atol=4 * 0.071)
    assert (stated / profiles.var(axis=0, ddof=1)).mean() == pytest.approx(1, abs=0.15)


def test_what_is_not_known_is_not_made_up():
    assert made(COUNTS[:3], np.arange(3)) is None
    empty = Moments.empty((2, 5), per_cell=False)
    assert empty.variances(np.zeros((2, 5)), np.zeros(2, np.int64)) is None


def test_cells_without_counts_are_no_failure():
    found = made(np.zeros((4, 3)), np.array([0, 0, 1, 1]))
    np.testing.assert_array_equal(found, np.zeros((2, 3)))


def test_of_some_genes_the_variance_is_that_among_all():
    """Where the library sizes of all genes are told."""
    moments = Moments.empty((3, 2), per_cell=False)
    library = COUNTS.sum(axis=1)
    some = COUNTS[:, [0, 3]]
    for start in (0, 7):
        part = slice(start, start + 7)
        moments.add(some[part], GROUP[part], library[part])
    sums = np.stack([some[k == GROUP].sum(axis=0) for k in range(3)])
    totals = np.bincount(GROUP, library)
    found = moments.variances(sums, np.bincount(GROUP), totals)
    np.testing.assert_allclose(found, made()[:, [0, 3]])


def screened(kind="pseudobulk", **options):
    rng = np.random.default_rng(0)
    screen = make_screen([(p, t) for t in ("T", "B") for p in ("control", "A", "C")], n=6)
    screen.X = rng.poisson(screen.X.toarray()).astype(np.float32)
    return screen, TrainingProfiles.from_screen(
        screen,
        None,
        keys=ScreenKeys("perturbation", context=["cell_type"]),
        kind=kind,
        **options,
    )


@pytest.mark.parametrize("kind", ["pseudobulk", "cell_mean"])
def test_profiles_have_variances_where_they_are_asked_for(kind):
    screen, profiles = screened(kind, with_variances=True)
    assert screened(kind)[1].variances is None
    for i, (condition, context) in enumerate(pairs(profiles.conditions, profiles.contexts)):
        own = (screen.obs["perturbation"] == str(condition)) & (
            screen.obs["cell_type"] == context[0]
        )
        cells = screen.X[own.to_numpy()].astype(float)
        expected = made(cells, np.zeros(6, np.int64), per_cell=kind == "cell_mean")
        np.testing.assert_allclose(profiles.variances[i], expected[0], rtol=1e-6)


def test_predictors_ask_for_variances_where_they_need_them():
    screen, _ = screened()
    assert StackedMean().fit(screen).profiles.variances.shape == (3, 6)
    assert NoChange().fit(screen).profiles.variances is None
    table = effects([("A", [1.0, 2.0]), ("C", [0.0, 1.0])])
    assert StackedMean(profile="effects").fit(table).profiles.variances is None


@pytest.mark.parametrize("with_variances", [True, False])
def test_groups_are_left_out_with_all_that_belongs_to_them(with_variances):
    _, profiles = screened(with_variances=with_variances)
    kept = [0, 2, 3, 5]
    made = profiles.without([4, 1])
    for field in ("conditions", "contexts"):
        assert getattr(made, field) == tuple(getattr(profiles, field)[i] for i in kept)
    np.testing.assert_array_equal(made.n_cells, profiles.n_cells[kept])
    np.testing.assert_array_equal(made.sums, profiles.sums[kept])
    assert (made.variances is None) == (not with_variances)
    if with_variances:
        np.testing.assert_array_equal(made.variances, profiles.variances[kept])
    assert made.var_names is profiles.var_names
    assert made.all_sums is profiles.all_sums
    assert len(profiles.conditions) == 6


def test_changes_of_what_is_kept_are_the_same():
    """Though they were asked for before, and are remembered."""
    _, profiles = screened()
    before = profiles.deltas
    (left_out,) = (
        i
        for i, (condition, context) in enumerate(pairs(profiles.conditions, profiles.contexts))
        if str(condition) == "A" and context == ("T",)
    )
    after = profiles.without([left_out]).deltas
    assert {str(c): sorted(seen) for c, seen in after.items()} == {
        "A": [("B",)],
        "C": [("B",), ("T",)],
    }
    for condition, seen in after.items():
        for context, change in seen.items():
            np.testing.assert_array_equal(change, before[condition][context])
    assert profiles.without([]).deltas.keys() == before.keys()
