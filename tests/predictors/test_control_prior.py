"""Control profiles of few cells are drawn to those of other contexts, as far as noise says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse

from scvi_perturb.data import ScreenKeys
from scvi_perturb.predictors.profiles import Moments, TrainingProfiles
from scvi_perturb.predictors.stack.fit import ControlPrior, _over_similar
from tests.predictors._screen import make_screen

LABELS = tuple((f"t{i}",) for i in range(12))


def simulate(spread=0.3, noise=0.3, seed=0, n_genes=300):
    """Return controls of 12 contexts, and their true profiles."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0, 5, n_genes) + spread * rng.normal(size=(12, n_genes))
    variances = np.full(truth.shape, float(noise) ** 2)
    seen = truth + noise * rng.normal(size=truth.shape)
    return ControlPrior(LABELS, seen, variances, 50 * variances[0]), truth


def similar(level, values, n=100):
    """Return means over the genes whose level ranks next to that of each, `n` of them."""
    rank = np.argsort(np.argsort(level, kind="stable"))
    n = min(n, len(level))
    made = []
    for own in rank:
        first = min(max(own - n // 2, 0), len(level) - n)
        made.append(values[(rank >= first) & (rank < first + n)].mean())
    return np.array(made)


@pytest.mark.parametrize("n_genes", [1, 7, 100, 101, 250])
def test_genes_of_similar_level_are_those_next_in_rank(n_genes):
    rng = np.random.default_rng(n_genes)
    level, values = rng.integers(0, 60, n_genes).astype(float), rng.gamma(1.0, size=n_genes)
    np.testing.assert_allclose(_over_similar(level, values), similar(level, values))


@pytest.mark.parametrize("context", [("t3",), ("new",)])
def test_the_shift_is_that_of_the_formula(context):
    prior, _ = simulate(n_genes=150)
    prior = replace(
        prior, variances=prior.variances * np.random.default_rng(1).gamma(1.0, size=(12, 150))
    )
    given = prior.profiles[5] + 1, prior.variances[5]
    rest = [i for i, own in enumerate(LABELS) if own != context]
    n, centre = len(rest), prior.profiles[rest].mean(axis=0)
    spread = prior.profiles[rest].var(axis=0, ddof=1) - prior.variances[rest].mean(axis=0)
    spread = np.where(spread > 0, spread, 0)
    drawn = (n * spread + 3 * similar(centre, spread)) / (n + 3)
    expected = given[1] / (given[1] + drawn) * (centre - given[0])
    np.testing.assert_allclose(prior.shift(context, given), expected)


def test_training_controls_are_taken_where_none_are_given():
    prior, _ = simulate()
    for i in (0, 7, 11):
        own = prior.profiles[i], prior.variances[i]
        np.testing.assert_array_equal(prior.shift(LABELS[i]), prior.shift(LABELS[i], own))
    np.testing.assert_array_equal(prior.shift(("new",)), np.zeros(300))


def test_a_shift_leads_to_the_other_contexts_and_not_beyond():
    prior, _ = simulate()
    for i, label in enumerate(LABELS):
        away = np.delete(prior.profiles, i, axis=0).mean(axis=0) - prior.profiles[i]
        part = prior.shift(label) / away
        assert ((part > 0) & (part <= 1)).all()


def test_its_own_profile_does_not_draw_a_context():
    """The mean of the others is the same, wherever it lies itself."""
    prior, _ = simulate()
    prior.variances[2] = 1e9
    moved = prior.profiles.copy()
    moved[2] += 100
    expected = prior.shift(("t2",)) - 100
    np.testing.assert_allclose(replace(prior, profiles=moved).shift(("t2",)), expected, rtol=1e-6)


def test_without_noise_nothing_is_shifted():
    prior, _ = simulate(noise=0)
    np.testing.assert_array_equal(prior.shift(("t1",)), np.zeros(300))
    given = prior.profiles[1] + 1, np.zeros(300)
    np.testing.assert_array_equal(prior.shift(("new",), given), np.zeros(300))


def test_all_noise_leads_all_the_way():
    prior, _ = simulate()
    given = prior.profiles[0], np.full(300, 1e9)
    expected = prior.profiles.mean(axis=0) - given[0]
    np.testing.assert_allclose(prior.shift(("new",), given), expected, rtol=1e-6)


def test_contexts_that_are_all_alike_lead_far():
    """Of equal controls the spread is 0: what is measured apart is noise."""
    prior, _ = simulate(spread=0.0)
    away = np.delete(prior.profiles, 4, axis=0).mean(axis=0) - prior.profiles[4]
    assert np.linalg.norm(prior.shift(("t4",))) > 0.6 * np.linalg.norm(away)


@pytest.mark.parametrize("spread", [0.1, 0.3, 0.9])
def test_squared_error_falls_nearly_as_far_as_it_can(spread):
    """With the spread known, `b = noise / (noise + spread)` of the way leaves this much.

    The mean of the other contexts is off by `(spread + noise) / 11`. With a spread that is
    estimated it is more, by 15 % at most; and 12 * 300 squared errors have a relative standard
    error of 2.4 %, twice.
    """
    prior, truth = simulate(spread=spread)
    shifts = np.stack([prior.shift(label) for label in LABELS])
    before = ((prior.profiles - truth) ** 2).mean()
    after = ((prior.profiles + shifts - truth) ** 2).mean()
    noise, spread = 0.3**2, spread**2
    b = noise / (noise + spread)
    least = (1 - b) ** 2 * noise + b**2 * (spread + (spread + noise) / 11)
    assert after < before
    assert 0.93 * least < after < 1.2 * least


def of_screen(kind="pseudobulk", n=12, contexts="abcdef", variances=True):
    """Return profiles of controls, and of one perturbation in the first context."""
    rng = np.random.default_rng(0)
    groups = [("control", "T"), ("control", "B")] * 3 + [("A", "T")]
    screen = make_screen(groups, n=n)
    screen.X = rng.poisson(screen.X.toarray()).astype(np.float32)
    screen.obs["cell_type"] = np.repeat([*"abcdef", "a"], n)
    screen = screen[screen.obs["cell_type"].isin(list(contexts))].copy()
    profiles = TrainingProfiles.from_screen(
        screen,
        None,
        keys=ScreenKeys("perturbation", context=["cell_type"]),
        kind=kind,
        with_variances=variances,
    )
    return screen, profiles


@pytest.mark.parametrize("kind", ["pseudobulk", "cell_mean"])
def test_controls_are_gathered_from_training(kind):
    _, profiles = of_screen(kind)
    prior = ControlPrior.of(profiles)
    assert prior.contexts == tuple((label,) for label in "abcdef")
    for i, context in enumerate(prior.contexts):
        np.testing.assert_array_equal(prior.profiles[i], profiles.control_profile(context))
    groups = [profiles.controls(context)[0] for context in prior.contexts]
    np.testing.assert_array_equal(prior.variances, profiles.variances[groups])
    expected = (12 * prior.variances).mean(axis=0)
    np.testing.assert_allclose(prior.of_a_cell, expected)


def test_where_little_is_known_there_is_no_prior():
    assert ControlPrior.of(of_screen(contexts="abc")[1]) is None
    assert ControlPrior.of(of_screen(contexts="abcd")[1]) is not None
    assert ControlPrior.of(of_screen(variances=False)[1]) is None


@pytest.mark.parametrize("kind", ["pseudobulk", "cell_mean"])
@pytest.mark.parametrize("form", [sparse.csr_matrix, sparse.csc_matrix, np.asarray])
def test_the_variance_of_given_cells_is_that_of_training(kind, form):
    """Of the same cells it is the same."""
    screen, profiles = of_screen(kind)
    prior = ControlPrior.of(profiles)
    controls = screen.obs["perturbation"] == "control"
    cells = form(screen.X[(controls & (screen.obs["cell_type"] == "c")).to_numpy()])
    found = prior.variance_of(cells, kind)
    np.testing.assert_allclose(found, prior.variances[2], rtol=1e-10)


@pytest.mark.parametrize("form", [sparse.csr_matrix, np.asarray])
def test_one_cell_has_the_variance_of_a_cell_and_goes_farther_than_many(form):
    screen, profiles = of_screen(n=40)
    prior = ControlPrior.of(profiles)
    cells = screen.X[:40]
    np.testing.assert_array_equal(prior.variance_of(form(cells[:1]), "pseudobulk"), prior.of_a_cell)
    away = []
    for some in (cells[:1], cells):
        given = profiles.profile_of(some), prior.variance_of(form(some), "pseudobulk")
        centre = prior.profiles[1:].mean(axis=0)
        away.append(prior.shift(("a",), given) / (centre - given[0]))
    assert ((away[0] > 0) & (away[0] <= 1)).all()
    assert (away[0] > away[1]).all()
    assert np.median(away[0]) > 3 * np.median(away[1])


def test_the_variance_of_few_cells_is_that_of_their_moments():
    screen, profiles = of_screen()
    prior, cells = ControlPrior.of(profiles), np.asarray(screen.X[3:5])
    moments = Moments.empty((1, 6), per_cell=False)
    moments.add(cells, np.zeros(2, np.int64))
    expected = moments.variances(cells.sum(axis=0, keepdims=True).astype(float), np.array([2]))
    np.testing.assert_allclose(prior.variance_of(cells, "pseudobulk"), expected[0], rtol=1e-6)
