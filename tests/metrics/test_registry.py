"""Every metric: described, ordered as it says, and computed on what it needs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from scvi_perturb.metrics import METRICS, Comparison, Population, fit_pca, log_normalize, score

N = 150


@pytest.fixture(scope="module")
def world():
    """Control, and two halves of a perturbed population with other means and spread."""
    rng = np.random.default_rng(0)
    base = rng.lognormal(0.5, 1.2, 60)
    effect = np.exp(rng.normal(0, 0.8, 60))

    def draw(rates, dispersion):
        return log_normalize(rng.poisson(rng.gamma(1 / dispersion, dispersion * rates, (N, 60))))

    control, real, again = draw(base, 0.2), draw(base * effect, 0.8), draw(base * effect, 0.8)
    return control, real, again


def compare(world, cells):
    control, real, _ = world
    return Comparison(
        Population.from_cells(cells),
        Population.from_cells(real),
        Population.from_cells(control),
        fit_pca(control, n_components=10),
        n_top=20,
    )


def test_names_and_descriptions():
    for name, metric in METRICS.items():
        assert metric.name == name
        assert metric.units
        assert metric.paper
        assert metric.direction in {"higher", "lower", "nearer"}
        assert metric.needs in {"means", "cells"}


@pytest.mark.parametrize("name", sorted(METRICS))
def test_a_replicate_beats_no_change(world, name):
    control, _, again = world
    metric = METRICS[name]
    replicate = metric.compute(compare(world, again))
    nothing = metric.compute(compare(world, control))
    assert abs(replicate - metric.best) < 0.35
    if np.isnan(nothing):
        assert name.startswith("pearson")
    else:
        assert abs(replicate - metric.best) < 0.5 * abs(nothing - metric.best)


def test_no_change_scores_one(world):
    found = score(compare(world, world[0]))
    assert found["nmse_vs_no_change"] == 1
    assert found["nmse"] == pytest.approx(1, abs=0.1)
    assert found["nmse"] > 1


def test_spoilt_predictions_score_worse(world):
    control, _, again = world
    good = score(compare(world, again))
    tripled = score(compare(world, np.maximum(control + 3 * (again.mean(0) - control.mean(0)), 0)))
    twice = score(compare(world, np.log1p(again)))
    for bad in (tripled, twice):
        for name in ("nmse", "energy"):
            assert bad[name] > good[name] + 0.1
    identical = score(compare(world, np.repeat(again.mean(0)[None], N, axis=0)))
    assert identical["variance_ratio"] < 0.01
    assert identical["energy"] > good["energy"] + 0.5


def test_order_of_cells_and_genes_changes_nothing(world):
    rng = np.random.default_rng(1)
    genes = rng.permutation(60)
    shuffled = tuple(cells[:, genes] for cells in world)
    first = score(compare(world, world[2]))
    second = score(compare(shuffled, shuffled[2][rng.permutation(N)]))
    assert second == pytest.approx(first)


def test_a_profile_alone_gets_the_metrics_of_means(world):
    case = compare(world, world[2])
    alone = replace(case, predicted=Population(case.predicted.mean))
    found = score(alone)
    assert set(found) == {name for name, m in METRICS.items() if m.needs == "means"}
    full = score(case)
    assert all(found[name] == full[name] for name in found)
    with pytest.raises(ValueError, match="compares cells"):
        score(alone, ["variance_ratio"])


def test_messages(world):
    case = compare(world, world[2])
    with pytest.raises(ValueError, match=r"\['mse'\] are not known.*nmse"):
        score(case, ["mse"])
    with pytest.raises(ValueError, match="fit_pca"):
        score(replace(case, pca=None), ["energy"])


def test_the_registry_is_read_only():
    with pytest.raises(TypeError):
        METRICS["mine"] = None
