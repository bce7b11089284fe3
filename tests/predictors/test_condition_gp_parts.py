"""Parts of the Gaussian process against explicit formulas: refits, the jackknife, the prior."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy.stats import multivariate_normal

from scvi_perturb.data.condition import Component, Condition
from scvi_perturb.data.request import RequestRow
from scvi_perturb.metrics import log_normalize, pseudobulk_variance
from scvi_perturb.predictors import ConditionGP
from scvi_perturb.predictors.gaussian_process.condition_gp import default_leave_out, groups_of
from scvi_perturb.predictors.gaussian_process.kernel import ConditionKernel, Contexts, Points
from scvi_perturb.predictors.gaussian_process.signal import Outputs, Spectrum, _rising
from tests.predictors._effects import FEATURES, effects
from tests.predictors._screen import make_screen

RNG = np.random.default_rng(0)
N = 12
ROOT = RNG.normal(size=(N, 5))
KERNEL = ROOT @ ROOT.T
NOISE = RNG.uniform(0.5, 2.0, N)
VALUES = RNG.normal(size=(N, 3))
SPECTRUM = Spectrum.of(KERNEL, NOISE, VALUES)
ALL = np.ones(3, bool)
THETA = {
    "shared": 0.5,
    "shift": 0.2,
    "components": 1.0,
    "interactions": 0.7,
    "saturation": 0.3,
    "dose_scale": 1.5,
    "half_dose": 0.5,
    "time_scale": 0.8,
    "context": 2.0,
    "context_scale": 1.0,
}


@pytest.mark.parametrize("size", [1, 3, 4])
def test_left_out_residuals_are_those_of_refits(size):
    members = [np.arange(start, min(start + size, N)) for start in range(0, N, size)]
    found = SPECTRUM.left_out(0.3, members, ALL)
    stated = SPECTRUM.left_out_variance(0.3, members)
    for rows in members:
        kept = np.setdiff1d(np.arange(N), rows)
        inner = np.linalg.inv(KERNEL[np.ix_(kept, kept)] + 0.3 * np.diag(NOISE[kept]))
        across = KERNEL[np.ix_(rows, kept)]
        np.testing.assert_allclose(found[rows], VALUES[rows] - across @ inner @ VALUES[kept])
        variance = KERNEL[np.ix_(rows, rows)] - across @ inner @ across.T
        np.testing.assert_allclose(stated[rows], np.diagonal(variance) + 0.3 * NOISE[rows])


def test_one_decomposition_serves_all_ratios():
    ratios = np.array([0.1, 1.0, 7.0])
    across = RNG.normal(size=(2, 5)) @ ROOT.T
    weights, explained = SPECTRUM.weights(ratios), SPECTRUM.explained(across, ratios)
    for i, ratio in enumerate(ratios):
        inverse = np.linalg.inv(KERNEL + ratio * np.diag(NOISE))
        np.testing.assert_allclose(weights[:, i], inverse @ VALUES[:, i])
        np.testing.assert_allclose(explained[:, i], np.diagonal(across @ inverse @ across.T))
        jointly = SPECTRUM.explained_jointly(across, float(ratio))
        np.testing.assert_allclose(jointly, across @ inverse @ across.T)


def test_the_likelihood_is_that_of_the_normal_distribution():
    """Up to a constant, which does not depend on scale, ratio or kernel."""
    found, expected = [], []
    for factor, scale, ratio in ((1.0, 2.0, 0.5), (3.0, 0.7, 1.5)):
        spectrum = Spectrum.of(factor * KERNEL, NOISE, VALUES)
        found.append(spectrum.surprise(np.full(3, scale), np.full(3, ratio)))
        law = multivariate_normal(cov=scale * (factor * KERNEL + ratio * np.diag(NOISE)))
        expected.append(-2 * law.logpdf(VALUES.T))
    np.testing.assert_allclose(found[0] - found[1], expected[0] - expected[1])


@pytest.mark.parametrize("kind", ["pseudobulk", "cell_mean"])
def test_noise_is_that_of_the_jackknife(kind):
    rng = np.random.default_rng(0)
    screen = make_screen([("control", "T"), ("A", "T")], n=40)
    screen.X = rng.poisson(screen.X.toarray() * 3).astype(np.float32)
    profiles = ConditionGP(profile=kind).fit(screen).profiles
    found = profiles.variances
    for condition, variance in zip(profiles.conditions, found, strict=True):
        cells = screen[screen.obs["perturbation"] == str(condition)].X
        if kind == "pseudobulk":
            expected = pseudobulk_variance(cells)
        else:
            expected = log_normalize(cells).var(axis=0, ddof=1) / len(cells)
        np.testing.assert_allclose(variance, expected, rtol=0.05)


def test_a_single_cell_has_the_noise_of_a_cell_of_the_others():
    rng = np.random.default_rng(0)
    screen = make_screen([("control", "T"), ("A", "T"), ("C", "T")], n=5)
    screen.X = rng.poisson(screen.X.toarray()).astype(np.float32)
    screen = screen[: 5 + 5 + 1].copy()
    profiles = ConditionGP().fit(screen).profiles
    found = profiles.variances
    alone = int(np.flatnonzero(profiles.n_cells == 1)[0])
    others = np.delete(found, alone, axis=0) * np.delete(profiles.n_cells, alone)[:, None]
    np.testing.assert_allclose(found[alone], others.mean(axis=0))
    one_cell_each = make_screen([("control", "T"), ("A", "T")], n=1)
    assert ConditionGP().fit(one_cell_each).profiles.variances is None


def asked(*labels, contexts=("T", "B")):
    """Return points of labels such as "A+C@2@T": names, dose of all, context."""
    requests = []
    for label in labels:
        names, dose, context = label.split("@")
        parts = tuple(Component(name, float(dose)) for name in names.split("+"))
        requests.append(RequestRow(Condition(parts), (context,)))
    profiles = np.random.default_rng(0).normal(size=(len(contexts), 4))
    return requests, Points.of(requests, Contexts(tuple((c,) for c in contexts), profiles))


LABELS = ("A@1@T", "A@3@B", "C@1@T", "A+C@1@T", "C+D@3@B", "A+C+D@1@B", "E@1@T")


def kernel_of(labels=LABELS):
    requests, points = asked(*labels)
    kernel = ConditionKernel.learn(points, [r.condition for r in requests], FEATURES)
    return kernel.between(points, points), requests, points


@pytest.mark.parametrize("alone", [None, "shared", "shift", "components", "features:sets"])
def test_the_kernel_is_a_covariance(alone):
    cross, _, _ = kernel_of()
    theta = THETA | {"features:sets": 0.4}
    if alone is not None:
        weights = dict.fromkeys(("shared", "shift", "components", "features:sets"), 0.0)
        theta |= weights | {alone: 1.0}
    made = cross(theta)
    np.testing.assert_allclose(made, made.T, atol=1e-12)
    assert np.linalg.eigvalsh(made).min() > -1e-9


def test_products_of_features_make_a_covariance_and_no_interaction():
    table = pd.DataFrame(RNG.normal(size=(5, 3)), index=list("ACDEF"))
    requests, points = asked(*LABELS)
    store = type(FEATURES)({"text": table})
    kernel = ConditionKernel.learn(points, [r.condition for r in requests], store)
    cross = kernel.between(points, points)
    off = dict.fromkeys(("shared", "shift", "components", "features:text"), 0.0)
    alone = cross(THETA | off | {"linear:text": 1.0, "interactions": 0.0})
    np.testing.assert_allclose(alone, alone.T, atol=1e-12)
    assert np.linalg.eigvalsh(alone).min() > -1e-9
    assert (alone < 0).any()
    both = cross(THETA | off | {"linear:text": 1.0})
    plain = cross(THETA | off | {"linear:text": 0.0})
    np.testing.assert_allclose(both, alone + plain)


def test_products_are_of_modalities_that_all_of_training_have():
    table = pd.DataFrame(RNG.normal(size=(5, 3)), index=list("ACDEF"))
    requests, points = asked(*LABELS)
    store = type(FEATURES)({"all": table, "some": table.drop(index="E")})
    kernel = ConditionKernel.learn(points, [r.condition for r in requests], store)
    assert set(kernel.modalities) == {"all", "some"}
    assert set(kernel.linear) == {"all"}


@pytest.mark.parametrize("labels", [LABELS[1:2], LABELS[4:6], LABELS[:1]])
def test_points_compared_among_few_are_compared_as_among_all(labels):
    """Whatever is asked together, its prior is the same: also where all doses are one."""
    requests, points = asked(*LABELS)
    some = asked(*labels)[1]
    rows = [LABELS.index(label) for label in labels]
    kernel = ConditionKernel.learn(points, [r.condition for r in requests], FEATURES)
    theta = THETA | {"features:sets": 0.4}
    whole = kernel.between(points, points)(theta)
    np.testing.assert_allclose(kernel.between(some, some)(theta), whole[np.ix_(rows, rows)])
    np.testing.assert_allclose(kernel.between(some, points)(theta), whole[rows])


def test_interactions_are_sums_over_pairs_of_components():
    cross, requests, points = kernel_of()
    off = dict.fromkeys(("shared", "shift", "components", "features:sets", "context"), 0.0)
    made = cross(THETA | off | {"interactions": 1.0})
    place = {part: i for i, part in enumerate(points.parts)}
    base = cross._dose_factor(THETA) * (1 + sum(cross.alike.values())) / 3
    for i, left in enumerate(requests):
        for j, right in enumerate(requests):
            a, b = ([place[part] for part in r.condition.components] for r in (left, right))
            total = sum(
                base[a[k], b[m]] * base[a[n], b[o]]
                for k in range(len(a))
                for n in range(len(a))
                for m in range(len(b))
                for o in range(len(b))
                if k != n and m != o
            )
            assert made[i, j] == pytest.approx(total / 2, abs=1e-9)


def test_components_add_up_and_contexts_and_kinds_keep_apart():
    cross, _, _ = kernel_of()
    off = dict.fromkeys(("shared", "shift", "interactions", "features:sets", "saturation"), 0.0)
    theta = THETA | off | {"dose_scale": 1e6, "half_dose": 0.0}
    made = cross(theta | {"context": 0.0})
    np.testing.assert_allclose(made[0], [1, 1, 0, 1, 0, 1, 0])
    np.testing.assert_allclose(made[5], [1, 1, 1, 2, 2, 3, 0])
    halved = cross(theta | {"context": 1.0, "context_scale": 1e-6})
    np.testing.assert_allclose(halved[0], [1, 0.5, 0, 1, 0, 0.5, 0], atol=1e-9)
    both = [RequestRow(Condition((Component("A", kind=kind),)), ()) for kind in ("up", "down")]
    points = Points.of(both, Contexts(((),), np.zeros((1, 4))))
    kernel = ConditionKernel.learn(points, [r.condition for r in both], FEATURES)
    np.testing.assert_allclose(kernel.between(points, points)(theta), np.eye(2))


def test_what_is_left_out_fits_the_question():
    def rows(labels):
        return asked(*labels)[0]

    assert default_leave_out(rows(["A@1@T", "A@1@B"]), has_features=True) == "context"
    assert default_leave_out(rows(["A@1@T", "C@1@T"]), has_features=True) == "perturbation"
    assert default_leave_out(rows(["A@1@T", "A@2@T"]), has_features=False) == "condition"
    several = rows([f"{n}@1@{t}" for n in "ACD" for t in "TB"])
    assert default_leave_out(several, has_features=False) == "row"
    groups = groups_of(rows(["A@1@T", "A@2@T", "A@2@B", "C@1@B"]), "condition")
    assert [group.tolist() for group in groups] == [[0], [1, 2], [3]]
    groups = groups_of(rows(["A@1@T", "A@2@T", "A@2@B", "C@1@B"]), "perturbation")
    assert [group.tolist() for group in groups] == [[0, 1, 2], [3]]


def test_components_hold_what_they_can():
    changes = RNG.normal(size=(8, 2)) @ RNG.normal(size=(2, 20))
    made = Outputs.of(changes, None, n_rows_each=np.ones(8), n_components=5)
    assert made.values.shape == (8, 2)
    np.testing.assert_allclose(made.genes(made.values), changes, atol=1e-10)
    np.testing.assert_allclose(made.rest, 0, atol=1e-10)
    variances = np.outer(np.arange(1.0, 9.0), np.arange(1.0, 21.0))
    known = Outputs.of(changes, variances, n_rows_each=np.ones(8), n_components=None)
    assert known.axes is None
    np.testing.assert_allclose(np.outer(known.row_noise, known.noise), variances)


def test_ratios_rise_at_the_least_cost():
    for seed in range(5):
        scores = np.random.default_rng(seed).normal(size=(4, 5))
        paths = itertools.combinations_with_replacement(range(4), 5)
        least = min(sum(scores[r, c] for c, r in enumerate(path)) for path in paths)
        chosen = _rising(scores)
        assert (np.diff(chosen) >= 0).all()
        assert scores[chosen, np.arange(5)].sum() == pytest.approx(least)


@pytest.mark.parametrize("tune", ["loo", "marginal"])
def test_stated_errors_cover_what_is_drawn_from_the_prior(tune):
    rng = np.random.default_rng(0)
    names = [f"p{i:03d}" for i in range(160)]
    table = pd.DataFrame(rng.normal(size=(160, 2)), index=names)
    store = type(FEATURES)({"text": table})
    values = table.to_numpy()
    apart = ((values[:, None] - values[None]) ** 2).sum(-1)
    prior = np.exp(-apart / (2 * np.median(np.sqrt(apart)) ** 2))
    truth = np.linalg.cholesky(prior + 1e-8 * np.eye(160)) @ rng.normal(size=(160, 40))
    seen = truth + 0.5 * rng.normal(size=truth.shape)
    rows = list(zip(names[:120], seen, strict=False))
    made = ConditionGP(store, tune=tune, profile="effects").fit(effects(rows)).predict(names[120:])
    z = (made.layers["lfc"] - seen[120:]) / made.layers["std"]
    assert 0.85 < (np.abs(z) < 1.645).mean() < 0.95
    assert 0.6 < (z**2).mean() < 1.4
