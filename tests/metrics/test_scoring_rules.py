"""Scores equal their definition, are fair to small samples, and reward the truth most."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from scvi_perturb.metrics._energy import energy_distance
from scvi_perturb.metrics._scoring_rules import crps, energy_score, variogram_score

RULES = [lambda x, y: crps(x, y).mean(), energy_score, variogram_score]
NAMES = ["crps", "energy_score", "variogram_score"]
every_rule = pytest.mark.parametrize("rule", RULES, ids=NAMES)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def samples(rng):
    """Predicted and real cells with ties, as log-normalised counts have."""
    return np.log1p(rng.poisson(1.0, (6, 4))), np.log1p(rng.poisson(2.0, (5, 4)))


def test_crps_by_its_definition(samples):
    predicted, observed = samples
    m = len(predicted)
    for gene, found in enumerate(crps(predicted, observed)):
        x, y = predicted[:, gene], observed[:, gene]
        within = sum(abs(a - b) for a in x for b in x) / (m * (m - 1))
        assert found == pytest.approx(np.mean([abs(a - b) for a in x for b in y]) - within / 2)


def test_crps_of_a_normal_distribution(rng):
    """Closed form at y = 0: 2 phi(0) - 1 / sqrt(pi)."""
    found = crps(rng.normal(size=(4000, 50)), np.zeros((1, 50)))
    expected = 2 / np.sqrt(2 * np.pi) - 1 / np.sqrt(np.pi)
    assert found.mean() == pytest.approx(expected, abs=4 * found.std() / np.sqrt(50))


def test_crps_is_not_lost_in_large_numbers(samples):
    predicted, observed = samples
    np.testing.assert_allclose(
        crps(predicted + 1e6, observed + 1e6), crps(predicted, observed), atol=1e-8
    )


def test_energy_score_by_its_definition(samples):
    predicted, observed = samples
    m = len(predicted)
    norm = np.linalg.norm
    within = sum(norm(a - b) for a in predicted for b in predicted) / (m * (m - 1))
    between = np.mean([norm(a - b) for a in predicted for b in observed])
    assert energy_score(predicted, observed) == pytest.approx(between - within / 2)


def test_energy_score_of_one_coordinate_is_the_crps(samples):
    predicted, observed = (x[:, :1] for x in samples)
    assert energy_score(predicted, observed) == pytest.approx(crps(predicted, observed)[0])


def test_energy_scores_differ_by_half_the_energy_distances(rng):
    one, other, real = rng.normal(size=(3, 40, 5)) * np.array([1.0, 2.0, 1.5])[:, None, None]
    scores = energy_score(one, real) - energy_score(other, real)
    distances = energy_distance(one, real) - energy_distance(other, real)
    assert 2 * scores == pytest.approx(distances)


def test_energy_score_of_a_draw_of_cells(rng):
    x, y = rng.normal(size=(2, 80, 3))
    drawn = [energy_score(x, y, max_cells=20, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert energy_score(x, y, max_cells=80) == energy_score(x, y)


@pytest.mark.parametrize("order", [0.5, 1.0, 2.0])
def test_variogram_score_by_its_definition(samples, order):
    predicted, observed = samples
    scores = []
    for g, h in combinations(range(4), 2):
        made = np.abs(predicted[:, g] - predicted[:, h]) ** order
        real = np.abs(observed[:, g] - observed[:, h]) ** order
        noise = made.var(ddof=1) / len(made)
        scores.append(np.mean([(y - made.mean()) ** 2 - noise for y in real]))
    assert variogram_score(predicted, observed, order=order) == pytest.approx(np.mean(scores))


def test_variogram_score_takes_the_first_genes(samples):
    predicted, observed = samples
    expected = variogram_score(predicted[:, :3], observed[:, :3])
    assert variogram_score(predicted, observed, max_genes=3) == expected


@every_rule
def test_expectation_does_not_depend_on_the_number_of_predicted_cells(rng, rule):
    real = rng.normal(size=(30, 3))
    few = [rule(rng.normal(size=(2, 3)), real) for _ in range(3000)]
    many = [rule(rng.normal(size=(40, 3)), real) for _ in range(300)]
    error = np.hypot(np.std(few) / np.sqrt(3000), np.std(many) / np.sqrt(300))
    assert np.mean(few) == pytest.approx(np.mean(many), abs=4 * error)
    # What pairs of a cell with itself would add, or the noise of the mean, is far larger.
    assert 4 * error < 0.2 * np.mean(many)


@every_rule
@pytest.mark.parametrize("scale", [0.5, 0.8, 1.25, 2.0])
def test_the_true_spread_scores_best(rng, rule, scale):
    gains = []
    for _ in range(30):
        right, wrong, real = rng.normal(size=(3, 200, 4))
        gains.append(rule(scale * wrong, real) - rule(right, real))
    assert np.mean(gains) > 3 * np.std(gains) / np.sqrt(30)


@every_rule
def test_a_shift_of_one_gene_scores_worse(rng, rule):
    right, wrong, real = rng.normal(size=(3, 500, 4))
    wrong[:, 0] += 1.0
    assert rule(wrong, real) > rule(right, real)


@every_rule
def test_cells_without_variance_score_worse(rng, rule):
    right, real = rng.normal(size=(2, 500, 4))
    same = np.repeat(real.mean(axis=0, keepdims=True), 500, axis=0)
    assert rule(same, real) > rule(right, real)


def test_variogram_score_sees_correlations(rng):
    """Both have the same genes one by one: only the score of pairs can tell them apart."""
    mix = np.linalg.cholesky(np.full((4, 4), 0.8) + 0.2 * np.eye(4))
    real, right, alone = rng.normal(size=(3, 500, 4))
    real, right = real @ mix.T, right @ mix.T
    relative = [
        rule(alone, real) / rule(right, real) - 1 for rule in (RULES[0], energy_score, RULES[2])
    ]
    assert abs(relative[0]) < 0.02
    assert relative[2] > 5 * abs(relative[1])


@every_rule
def test_refuses_single_predicted_cells_and_other_genes(rng, rule):
    x = rng.normal(size=(4, 3))
    with pytest.raises(ValueError, match="at least 2"):
        rule(x[:1], x)
    with pytest.raises(ValueError, match="same genes"):
        rule(x[:, 1:], x)
    assert np.isfinite(rule(x, x[:1]))


def test_refuses_what_has_no_pairs(rng):
    x = rng.normal(size=(4, 3))
    with pytest.raises(ValueError, match="at least 2 predicted cells"):
        energy_score(x, x, max_cells=1)
    with pytest.raises(ValueError, match="positive order and at least 2 genes"):
        variogram_score(x[:, :1], x[:, :1])
    with pytest.raises(ValueError, match="positive order"):
        variogram_score(x, x, order=0)
