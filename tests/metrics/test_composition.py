"""Cell states are found again, and their proportions compared in bits."""

from __future__ import annotations

import numpy as np
import pytest

from scvi_perturb.metrics import _composition
from scvi_perturb.metrics._composition import CellStates, composition_jsd

CENTRES = 10.0 * np.eye(4)[:, :3]  # three along the axes and one at the origin


def mixture(rng, n, shares):
    return CENTRES[rng.choice(4, n, p=shares)] + rng.normal(size=(n, 3))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def states(rng):
    return CellStates.fit(mixture(rng, 2000, [0.25] * 4), n_states=4, seed=0)


def test_well_separated_states_are_found(states):
    order = [int(np.linalg.norm(states.centres - c, axis=1).argmin()) for c in CENTRES]
    assert sorted(order) == [0, 1, 2, 3]
    # A centre is the mean of about 500 points of standard deviation 1.
    np.testing.assert_allclose(states.centres[order], CENTRES, atol=5 / np.sqrt(500))
    np.testing.assert_array_equal(states.assign(CENTRES), order)


def test_proportions_are_those_of_the_mixture(rng, states):
    shares = np.array([0.4, 0.3, 0.2, 0.1])
    found = states.proportions(mixture(rng, 4000, shares))[states.assign(CENTRES)]
    np.testing.assert_allclose(found, shares, atol=4 * np.sqrt(0.25 / 4000))


def test_absent_states_have_a_proportion_of_zero(states):
    found = states.proportions(CENTRES[:1])
    assert found.shape == (4,)
    assert found.sum() == 1
    assert (found == 0).sum() == 3


def test_divergence_of_known_proportions(states):
    """Half and half against all in one: H(3/4, 1/4) - H(1/2, 1/2) / 2."""
    half, one = CENTRES[[0, 1]], CENTRES[[0]]
    expected = -(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25)) - 0.5
    assert composition_jsd(half, one, states) == pytest.approx(expected)
    assert composition_jsd(one, half, states) == pytest.approx(expected)


def test_divergence_ends_at_zero_and_one(states):
    assert composition_jsd(CENTRES, CENTRES[::-1], states) == 0
    assert composition_jsd(CENTRES[:2], CENTRES[2:], states) == pytest.approx(1)


def test_sampling_floor_is_as_documented(rng, states):
    n, shares = 500, [0.25] * 4
    drawn = [
        composition_jsd(mixture(rng, n, shares), mixture(rng, n, shares), states)
        for _ in range(200)
    ]
    expected = 3 / (4 * n * np.log(2))
    assert np.mean(drawn) == pytest.approx(expected, abs=4 * np.std(drawn) / np.sqrt(200))


def test_only_the_seed_decides(rng):
    points = rng.normal(size=(300, 3))
    one, same, other = (CellStates.fit(points, seed=s).centres for s in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_fewer_points_than_states():
    points = np.array([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    assert len(CellStates.fit(points, n_states=8).centres) == 2


def test_chunks_and_large_samples(rng, states, monkeypatch):
    points = mixture(rng, 100, [0.25] * 4)
    whole = states.assign(points)
    monkeypatch.setattr(_composition, "_CHUNK", 7)
    np.testing.assert_array_equal(states.assign(points), whole)
    monkeypatch.setattr(_composition, "_MAX_POINTS", 50)
    assert len(CellStates.fit(points, n_states=4).centres) == 4


def test_refuses_what_it_cannot_place(states):
    with pytest.raises(ValueError, match="at least 1 point"):
        CellStates.fit(np.empty((0, 3)))
    with pytest.raises(ValueError, match="at least 1 cell state"):
        CellStates.fit(CENTRES, n_states=0)
    with pytest.raises(ValueError, match="1 of 4 points are not finite"):
        CellStates.fit(np.where(np.arange(4)[:, None] == 2, np.nan, CENTRES))
    with pytest.raises(ValueError, match="same `fit_pca`"):
        states.proportions(np.zeros((2, 5)))
