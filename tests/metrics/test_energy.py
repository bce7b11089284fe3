"""The energy distance sees spread, is unbiased, and refuses what it cannot compare."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from scipy.spatial.distance import cdist

from scvi_perturb.metrics import _energy, energy_distance, fit_pca
from scvi_perturb.metrics._energy import energy_ratio


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def squared_version(x, y):
    """The same with squared norms, whose expectation is 2 |mean difference|^2."""
    within = sum(cdist(z, z, "sqeuclidean").sum() / (len(z) * (len(z) - 1)) for z in (x, y))
    return 2 * cdist(x, y, "sqeuclidean").mean() - within


def test_sees_spread_where_squared_norms_are_blind(rng):
    x, y = rng.normal(0, 1, (1500, 5)), rng.normal(0, 3, (1500, 5))
    x, y = x - x.mean(0), y - y.mean(0)
    assert abs(squared_version(x, y)) < 0.1
    assert energy_distance(x, y) > 1


def test_value_of_two_points_each():
    x, y = np.array([[0.0], [1.0]]), np.array([[0.0], [4.0]])
    between = (0 + 4 + 1 + 3) / 4
    assert energy_distance(x, y) == pytest.approx(2 * between - 1 - 4)


def test_value_in_one_dimension(rng):
    """For standard normals a distance d apart: 2 E|N(d, 2)| - 2 E|N(0, 2)|."""
    z = rng.normal(0, 1, (4000, 1))
    expected = 2 * np.abs(1 + np.sqrt(2) * z).mean() - 2 * np.sqrt(4 / np.pi)
    assert energy_distance(z[:2000], z[2000:] + 1) == pytest.approx(expected, abs=0.06)


@pytest.mark.parametrize("n", [5, 25, 100])
def test_unbiased_whatever_the_number_of_cells(rng, n):
    drawn = [energy_distance(*rng.normal(size=(2, n, 20))) for _ in range(300)]
    assert abs(np.mean(drawn)) < 4 * np.std(drawn) / np.sqrt(300)
    biased = 2 * np.sqrt(40) / n  # what pairs of a cell with itself would add
    assert abs(np.mean(drawn)) < 0.1 * biased


def test_at_most_so_many_cells_and_only_the_seed_decides_which(rng):
    x, y = rng.normal(size=(2, 80, 3))
    assert energy_distance(x, y, max_cells=20, seed=1) == energy_distance(
        x, y, max_cells=20, seed=1
    )
    assert energy_distance(x, y, max_cells=20, seed=1) != energy_distance(
        x, y, max_cells=20, seed=2
    )
    assert energy_distance(x, y, max_cells=80) == energy_distance(x, y)


def test_chunks_change_nothing(rng, monkeypatch):
    x, y = rng.normal(size=(2, 80, 3))
    whole = energy_distance(x, y)
    monkeypatch.setattr(_energy, "_CHUNK", 7)
    assert energy_distance(x, y) == pytest.approx(whole)


def test_order_of_cells_and_sides_does_not_matter(rng):
    x, y = rng.normal(size=(30, 3)), rng.normal(1, 2, (40, 3))
    assert energy_distance(y[::-1], x) == pytest.approx(energy_distance(x, y))


def test_refuses_single_cells_and_other_spaces(rng):
    with pytest.raises(ValueError, match="at least 2"):
        energy_distance(rng.normal(size=(1, 3)), rng.normal(size=(4, 3)))
    with pytest.raises(ValueError, match="same `fit_pca`"):
        energy_distance(rng.normal(size=(4, 2)), rng.normal(size=(4, 3)))


def test_pca_is_the_same_for_sparse_and_dense(rng):
    cells = rng.poisson(0.5, (60, 30)).astype(float) * np.linspace(0.1, 3, 30)
    dense, stored = (
        fit_pca(cells, n_components=5),
        fit_pca(sparse.csr_matrix(cells), n_components=5),
    )
    new = rng.normal(size=(7, 30))
    np.testing.assert_allclose(
        np.abs(dense.transform(new)), np.abs(stored.transform(sparse.csr_matrix(new))), atol=1e-6
    )


def test_pca_takes_what_there_is():
    assert fit_pca(np.eye(4)).n_components_ == 3
    with pytest.raises(ValueError, match="at least 2 cells"):
        fit_pca(np.ones((1, 5)))


def test_ratio_is_zero_at_the_floor_and_one_at_shifted_control():
    assert np.divide(*energy_ratio(0.2, floor=0.2, shifted=1.0)) == 0
    assert np.divide(*energy_ratio(1.0, floor=0.2, shifted=1.0)) == 1
    assert energy_ratio(0.6, floor=0.2, shifted=1.0) == pytest.approx((0.4, 0.8))


@pytest.mark.parametrize("shifted", [0.2, 0.1])
def test_ratio_keeps_its_sign_where_shifted_control_is_no_worse_than_a_replicate(shifted):
    above, below = energy_ratio(0.5, floor=0.2, shifted=shifted)
    assert above == pytest.approx(0.3)
    assert below == pytest.approx(shifted - 0.2)


def test_right_mean_and_no_spread_is_worse_than_shifted_control(rng):
    real, half, control = rng.normal(0, 1, (3, 400, 10))
    shifted = energy_distance(1.3 * control, real)
    floor = energy_distance(half, real)
    same = np.repeat(real.mean(axis=0, keepdims=True), 400, axis=0)
    above, below = energy_ratio(energy_distance(same, real), floor=floor, shifted=shifted)
    assert above / below > 2
