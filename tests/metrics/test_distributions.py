"""Metrics of populations of cells: more than means, unbiased, and refusing what differs."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy import sparse
from scipy.spatial.distance import cdist

from scvi_perturb.metrics import _distributions, chosen_genes
from scvi_perturb.metrics._distributions import (
    MAX_LOG_RATIO,
    CellStates,
    composition_jsd,
    correlation_agreement,
    crps,
    energy_distance,
    energy_ratio,
    energy_score,
    fit_pca,
    log_variance_ratios,
    variance_ratio,
    variance_spread,
    variogram_score,
    zero_fraction_error,
)


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
    monkeypatch.setattr(_distributions, "_CHUNK", 7)
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


RULES = [lambda x, y: crps(x, y).mean(), energy_score, variogram_score]
NAMES = ["crps", "energy_score", "variogram_score"]
every_rule = pytest.mark.parametrize("rule", RULES, ids=NAMES)


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


@pytest.fixture
def cells():
    return np.random.default_rng(0).normal(0, 1, (400, 30))


def test_variance_ratio_of_scaled_cells(cells):
    assert variance_ratio(cells, cells) == 1
    assert variance_ratio(2 * cells, cells) == pytest.approx(4)
    assert variance_ratio(cells + 5, cells) == pytest.approx(1)


def test_identical_cells_have_no_spread(cells):
    assert variance_ratio(np.repeat(cells[:1], 10, axis=0), cells) == pytest.approx(0, abs=1e-12)


def test_number_of_cells_does_not_bias_the_ratio():
    rng = np.random.default_rng(0)
    ratios = [variance_ratio(rng.normal(size=(6, 200)), rng.normal(size=(3000, 200)))
              for _ in range(40)]  # fmt: skip
    median_of_chi2 = 0.8703  # of 5 degrees of freedom, over 5: the median is not the mean
    assert np.mean(ratios) == pytest.approx(median_of_chi2, abs=0.02)


def test_genes_are_chosen_and_those_without_variance_left_out(cells):
    real = cells.copy()
    real[:, 0] = 3.0
    made = real * np.where(np.arange(30) < 10, 1.0, 2.0)
    assert variance_ratio(made, real, genes=np.arange(10)) == pytest.approx(1)
    assert variance_ratio(made, real, genes=np.arange(10, 30)) == pytest.approx(4)
    assert np.isnan(variance_ratio(made, real, genes=np.array([0])))


def test_zero_fractions():
    real = np.array([[0.0, 1.0], [0.0, 2.0], [3.0, 1.0], [1.0, 1.0]])
    made = np.array([[1.0, 0.0], [1.0, 0.0]])
    assert zero_fraction_error(made, real) == pytest.approx((0.5 + 1.0) / 2)
    assert zero_fraction_error(sparse.csr_matrix(real), real) == 0


@pytest.mark.parametrize("metric", [variance_ratio, variance_spread, zero_fraction_error])
def test_sparse_agrees_with_dense_and_genes_must_match(metric, cells):
    made, real = np.maximum(cells, 0), np.maximum(cells[::-1] * 1.5 - 0.2, 0)
    expected = metric(made, real)
    assert metric(sparse.csr_matrix(made), sparse.csr_matrix(real)) == pytest.approx(expected)
    with pytest.raises(ValueError, match="same genes"):
        metric(made[:, 1:], real)


def test_log_ratios_of_scaled_cells(cells):
    scale = np.linspace(0.5, 2, 30)
    np.testing.assert_allclose(log_variance_ratios(cells * scale, cells), 2 * np.log(scale))
    genes = np.array([3, 1])
    np.testing.assert_allclose(
        log_variance_ratios(cells * scale, cells, genes), 2 * np.log(scale[genes])
    )


def test_sampling_error_of_log_ratios_is_as_documented():
    made, real = np.random.default_rng(0).normal(size=(2, 500, 2000))
    ratios = log_variance_ratios(made, real)
    expected = np.sqrt(2 / 500 + 2 / 500)
    assert ratios.std() == pytest.approx(expected, rel=4 / np.sqrt(2 * 2000))
    assert ratios.mean() == pytest.approx(0, abs=4 * expected / np.sqrt(2000))
    # The quartiles of a normal distribution are 1.349 standard deviations apart.
    assert variance_spread(made, real) == pytest.approx(1.349 * expected, rel=0.1)


def test_spread_sees_what_the_median_does_not(cells):
    uneven = cells * np.where(np.arange(30) < 15, 0.5, 2.0)
    assert variance_ratio(uneven, cells) == pytest.approx((0.25 + 4) / 2)
    assert variance_spread(uneven, cells) == pytest.approx(2 * np.log(4))
    assert variance_spread(3 * cells, cells) == pytest.approx(0, abs=1e-12)


def test_cells_without_variance_fail(cells):
    same = np.repeat(cells[:1] + 0.1, 400, axis=0)
    np.testing.assert_array_equal(log_variance_ratios(same, cells), -MAX_LOG_RATIO)
    assert variance_spread(same, cells) == 2 * MAX_LOG_RATIO
    real = correlated(np.random.default_rng(0), 500)
    assert correlation_agreement(np.repeat(real[:1] + 0.1, 500, axis=0), real) == 0


def test_few_constant_genes_do_not_decide(cells):
    made = cells.copy()
    made[:, :3] = 0.0
    assert variance_spread(made, cells) == 0
    real = correlated(np.random.default_rng(0), 500)
    made = real.copy()
    made[:, 0] = 0.0
    assert 0.3 < correlation_agreement(made, real) < 0.95


def test_genes_that_do_not_vary_in_real_cells_have_no_ratio(cells):
    real = cells.copy()
    real[:, 0] = 0.1
    ratios = log_variance_ratios(cells, real)
    assert np.isnan(ratios[0])
    assert np.isfinite(ratios[1:]).all()
    assert variance_spread(cells, real) == 0
    assert np.isnan(variance_spread(cells, real, np.array([0])))


def correlated(rng, n, sign=1.0):
    """Six genes of one program, of which the last three have `sign`, and six without."""
    loadings = np.array([1.0] * 3 + [sign] * 3 + [0.0] * 6)
    return rng.normal(size=(n, 1)) * loadings + rng.normal(size=(n, 12))


def test_agreement_of_correlations_tells_programs_apart():
    rng = np.random.default_rng(0)
    real = correlated(rng, 2000)
    assert correlation_agreement(correlated(rng, 2000), real) > 0.98
    # The program of opposite signs agrees in 6 of its 15 pairs.
    assert abs(correlation_agreement(correlated(rng, 2000, -1.0), real)) < 0.5
    shuffled = rng.permuted(real, axis=0)
    assert abs(correlation_agreement(shuffled, real)) < 4 / np.sqrt(66)


def test_agreement_equals_that_of_plain_correlations_where_there_is_signal():
    rng = np.random.default_rng(0)
    made, real = correlated(rng, 300), correlated(rng, 300, 0.5)
    upper = np.triu_indices(12, 1)
    plain = (np.corrcoef(x, rowvar=False)[upper] for x in (made, real))
    assert correlation_agreement(made, real) == pytest.approx(np.corrcoef(*plain)[0, 1])


def test_agreement_ignores_location_and_scale_of_genes():
    rng = np.random.default_rng(0)
    made, real = correlated(rng, 300), correlated(rng, 300)
    moved = made * rng.uniform(0.1, 9, 12) + rng.normal(size=12)
    assert correlation_agreement(moved, real) == pytest.approx(correlation_agreement(made, real))


def test_agreement_of_sparse_cells_and_of_other_genes():
    rng = np.random.default_rng(0)
    made, real = (np.maximum(correlated(rng, 300), 0) for _ in range(2))
    expected = correlation_agreement(made, real)
    stored = sparse.csr_matrix(made), sparse.csc_array(real)
    assert correlation_agreement(*stored) == pytest.approx(expected)
    with pytest.raises(ValueError, match="same genes"):
        correlation_agreement(made[:, 1:], real)


def test_agreement_needs_three_genes_that_vary_and_takes_the_most_variable():
    rng = np.random.default_rng(0)
    made, real = correlated(rng, 300), correlated(rng, 300)
    assert np.isnan(correlation_agreement(made, real, np.array([0, 1])))
    still = np.where(np.arange(12) < 10, 1.0, real)
    assert np.isnan(correlation_agreement(made, still))
    six = correlation_agreement(made, real, np.arange(6))
    louder = np.where(np.arange(12) < 6, 10.0, 1.0)
    assert correlation_agreement(made, real * louder, max_genes=6) == pytest.approx(six)
    with pytest.raises(ValueError, match="at least 3"):
        correlation_agreement(made[:2], real)


def test_real_correlations_that_are_noise_leave_nothing_to_agree_with():
    rng = np.random.default_rng(0)
    noise = [rng.normal(size=(500, 12)) for _ in range(20)]
    found = [correlation_agreement(correlated(rng, 500), x) for x in noise]
    assert 0.1 < np.isnan(found).mean() < 0.9
    # Whether it is defined depends on the real cells alone.
    np.testing.assert_array_equal(
        np.isnan([correlation_agreement(x, x) for x in noise]), np.isnan(found)
    )


def test_correlations_that_are_noise_agree_with_nothing():
    """In about half of the samples noise is all there is, exactly; in the others, nearly."""
    rng = np.random.default_rng(0)
    real = correlated(rng, 500)
    found = [correlation_agreement(rng.normal(size=(500, 12)), real) for _ in range(60)]
    assert 0.2 < np.mean(np.array(found) == 0) < 0.9
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(60)


def test_chosen_genes_are_dense(cells):
    genes = np.array([4, 2])
    for stored in (cells, sparse.csr_matrix(cells), sparse.csc_array(cells)):
        np.testing.assert_array_equal(chosen_genes(stored, genes), cells[:, genes])
        np.testing.assert_array_equal(chosen_genes(stored), cells)


CENTRES = 10.0 * np.eye(4)[:, :3]  # three along the axes and one at the origin


def mixture(rng, n, shares):
    return CENTRES[rng.choice(4, n, p=shares)] + rng.normal(size=(n, 3))


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
    monkeypatch.setattr(_distributions, "_CHUNK", 7)
    np.testing.assert_array_equal(states.assign(points), whole)
    monkeypatch.setattr(_distributions, "_MAX_POINTS", 50)
    assert len(CellStates.fit(points, n_states=4).centres) == 4


def test_refuses_what_it_cannot_place(states):
    with pytest.raises(ValueError, match="at least 1 point"):
        CellStates.fit(np.empty((0, 3)))
    with pytest.raises(ValueError, match="n_states=0"):
        CellStates.fit(CENTRES, n_states=0)
    with pytest.raises(ValueError, match="points has 3 values that are not finite"):
        CellStates.fit(np.where(np.arange(4)[:, None] == 2, np.nan, CENTRES))
    with pytest.raises(ValueError, match="same `fit_pca`"):
        states.proportions(np.zeros((2, 5)))
