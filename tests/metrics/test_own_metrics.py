"""Every metric of ours: described, ordered as it says, and computed on what it needs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from scvi_perturb.metrics import (
    BASIC,
    METRICS,
    OWN_METRICS,
    CellPopulation,
    Comparison,
    GroundTruth,
    Metric,
    Space,
    each,
    log_normalize,
    score,
    score_all,
)

N, N_GENES, N_CONDITIONS = 150, 60, 3
#: Why no order of replicate and no change is expected.
UNORDERED = {
    "cell_width_90": "a width is read beside coverage; narrow is not right",
    "effect_width_90": "a width is read beside coverage; narrow is not right",
}
#: Not defined for a prediction of no change, which has no direction.
NO_DIRECTION = {"pearson_delta", "pearson_delta_top", "cosine_delta_control"}


@pytest.fixture(scope="module")
def world():
    """Control, and two halves of each condition: other means, spread and correlations of genes."""
    rng = np.random.default_rng(0)
    base = rng.lognormal(0.5, 1.2, N_GENES)
    programs = rng.normal(0, 0.6, (2, N_GENES))

    def draw(rates, dispersion):
        state = np.exp(rng.normal(size=(N, 2)) * (dispersion > 0.5) @ programs)
        return log_normalize(
            rng.poisson(rng.gamma(1 / dispersion, dispersion * rates, (N, N_GENES)) * state)
        )

    effects = np.exp(rng.normal(0, 0.8, (N_CONDITIONS, N_GENES)))
    control = draw(base, 0.2)
    return control, [(draw(base * e, 0.8), draw(base * e, 0.8)) for e in effects]


@pytest.fixture(scope="module")
def truths(world):
    control, conditions = world
    space = Space.fit(np.vstack([control, *(a for a, _ in conditions)]), n_components=10)
    known = CellPopulation.from_cells(control)
    halves = [CellPopulation.from_cells(real) for real, _ in conditions]
    centre = np.mean([half.mean - known.mean for half in halves], axis=0)
    made = [
        GroundTruth(half, known, space=space, name=str(i), centre=0.3 * centre, n_top=20)
        for i, half in enumerate(halves)
    ]
    return [replace(truth, energy_scale=_scale(truth, world, i)) for i, truth in enumerate(made)]


def _scale(truth, world, i):
    """Energies of a replicate and of the control cells as they are."""
    control, conditions = world
    sides = CellPopulation.from_cells(conditions[i][1]), CellPopulation.from_cells(control)
    replicate, unchanged = (Comparison(side, truth).energy for side in sides)
    return replicate, unchanged


def stated(cells, noise):
    """Cells with a stated standard error of their mean, and a likelihood of the real cells."""
    made = CellPopulation.from_cells(cells)
    return replace(made, effect_std=np.sqrt(made.mean_variance), nll=noise)


@pytest.fixture(scope="module")
def replicates(world, truths):
    halves = [again for _, again in world[1]]
    return [Comparison(stated(c, 1.0), t) for c, t in zip(halves, truths, strict=True)]


@pytest.fixture(scope="module")
def nothing(world, truths):
    return [Comparison(stated(world[0], 2.0), truth) for truth in truths]


@pytest.mark.parametrize("metric", OWN_METRICS.values(), ids=list(OWN_METRICS))
def test_every_metric_is_described(metric):
    assert metric is METRICS[metric.name]
    assert metric.title
    assert metric.units
    assert metric.paper
    assert metric.direction in {"higher", "lower", "nearer", "none"}
    assert metric.needs in {"means", "cells", "effect_std", "likelihood"}
    assert np.isfinite(metric.best) or metric.direction in {"lower", "none"}


@pytest.mark.parametrize("name", sorted(set(OWN_METRICS) - set(UNORDERED)))
def test_a_replicate_beats_no_change(replicates, nothing, name):
    metric = METRICS[name]
    good, bad = (metric.compute(cases) for cases in (replicates, nothing))
    assert good.numerator.shape == good.denominator.shape == (N_CONDITIONS,)
    assert np.isfinite(good.total)
    if np.isnan(bad.total):
        assert name in NO_DIRECTION
    else:
        assert metric.loss(good.total) < metric.loss(bad.total)
    if np.isfinite(metric.best):
        # Two halves differ by sampling; what is compared gene by gene or pair by pair most.
        assert abs(good.total - metric.best) < 0.5


def test_what_has_no_order_is_in_the_registry_and_is_a_number(replicates, nothing):
    assert set(UNORDERED) <= set(METRICS)
    for name in UNORDERED:
        for cases in (replicates, nothing):
            assert METRICS[name].compute(cases).total > 0


def test_no_change_scores_one(nothing):
    unchanged = score(nothing[0])
    assert unchanged["nmse_vs_no_change"] == 1
    assert unchanged["nmse"] == pytest.approx(1, abs=0.1)
    assert unchanged["nmse"] > 1
    assert unchanged["energy_ratio"] == 1
    assert METRICS["discrimination"].compute(nothing).total == 0.5


def test_spoilt_predictions_score_worse(world, truths, replicates):
    control, ((_, again), *_) = world
    good = score(replicates[0])

    def spoilt(cells):
        return score(Comparison(CellPopulation.from_cells(cells), truths[0]))

    tripled = spoilt(np.maximum(control + 3 * (again.mean(0) - control.mean(0)), 0))
    for bad in (tripled, spoilt(np.log1p(again))):
        for name in (
            "nmse",
            "nmse_vs_no_change",
            "wmse",
            "energy",
            "energy_score",
            "crps",
            "pit_ece",
        ):
            assert METRICS[name].loss(bad[name]) > METRICS[name].loss(good[name]), name
    identical = spoilt(np.repeat(again.mean(0)[None], N, axis=0))
    assert identical["variance_ratio"] < 0.01
    assert identical["energy"] > good["energy"] + 0.5
    assert identical["correlation_agreement"] == 0
    assert identical["pit_ece"] > good["pit_ece"]
    assert identical["cell_coverage_50"] < 0.1


def test_order_of_cells_and_genes_changes_nothing(replicates):
    rng = np.random.default_rng(1)
    genes = rng.permutation(N_GENES)
    case = replicates[0]

    def shuffled(population):
        cells = population.cells[rng.permutation(N)][:, genes]
        std = population.effect_std
        return replace(
            CellPopulation.from_cells(cells),
            effect_std=None if std is None else std[genes],
            nll=population.nll,
        )

    truth, space = case.truth, case.truth.space
    pca = replace_components(space.pca, genes)
    place = np.argsort(genes)
    moved = replace(
        truth,
        observed=shuffled(truth.observed),
        control=shuffled(truth.control),
        centre=truth.centre[genes],
        space=Space(pca, space.states, place[space.genes]),
    )
    first, second = score(case), score(Comparison(shuffled(case.predicted), moved))
    # Ranks of cells with equal values are drawn; a draw depends on the order.
    drawn = {name for name in first if name.startswith(("pit", "cell_coverage"))}
    exact = set(first) - drawn
    for names, close in ((exact, {"rel": 1e-6}), (drawn, {"abs": 0.02})):
        expected = {name: first[name] for name in names}
        found = {name: second[name] for name in names}
        assert found == pytest.approx(expected, nan_ok=True, **close)


def replace_components(pca, genes):
    """Return the same components for genes in another order."""
    made = type(pca)(**pca.get_params())
    vars(made).update(vars(pca))
    made.components_, made.mean_ = pca.components_[:, genes], pca.mean_[genes]
    return made


def test_conditions_in_any_order_and_by_any_name(replicates):
    def table(cases):
        frame = score_all(cases).set_index(["metric", "condition"])["value"]
        return frame.sort_index()

    first = table(replicates)
    np.testing.assert_array_equal(table(replicates[::-1]).to_numpy(), first.to_numpy())
    renamed = [
        replace(case, truth=replace(case.truth, name=f"x{case.truth.name}")) for case in replicates
    ]
    np.testing.assert_array_equal(table(renamed).to_numpy(), first.to_numpy())


def test_own_genes_are_left_out(world, truths):
    truth = replace(truths[0], own_genes=(3,))
    cells = world[1][0][1].copy()
    first = score(Comparison(CellPopulation.from_cells(cells), truth))
    cells[:, 3] += 5
    second = score(Comparison(CellPopulation.from_cells(cells), truth))
    of_means = {name for name, metric in METRICS.items() if metric.needs == "means"}
    same = of_means | {"de_jaccard", "de_lfc_nmae", "crps", "variance_spread"}
    for name in same & set(first):
        np.testing.assert_equal(second[name], first[name], err_msg=name)


def test_each_prediction_gets_what_it_has_what_it_takes_for(replicates):
    case = replicates[0]
    whole = case.predicted
    needs = {"means"}
    for add in ({}, {"effect_std": whole.effect_std}, {"cells": whole.cells}, {"nll": whole.nll}):
        names = {"effect_std": "effect_std", "cells": "cells", "nll": "likelihood"}
        part = CellPopulation(whole.mean, whole.mean_variance, **add)
        found = score(replace(case, predicted=part))
        expected = needs | {names[key] for key in add}
        assert set(found) == {name for name, m in METRICS.items() if m.needs in expected}
        full = score(case)
        np.testing.assert_equal(found, {name: full[name] for name in found})


def test_metrics_of_several_conditions_are_sums_over_sums(replicates):
    table = score_all(replicates)
    assert set(table.columns) == {"metric", "condition", "numerator", "denominator", "value"}
    for name, part in table.groupby("metric"):
        terms = METRICS[name].compute(replicates)
        assert part["numerator"].sum() / part["denominator"].sum() == pytest.approx(terms.total)


def test_each_makes_a_mean_of_a_function_of_one_condition(replicates):
    values = iter([1.0, float("nan"), 3.0])
    metric = Metric("m", "m", each(lambda case: next(values)), "higher", 1.0, "u", "means", "")
    terms = metric.compute(replicates)
    assert terms.total == 2
    np.testing.assert_array_equal(terms.values, [1, np.nan, 3])


def test_losses_turn_every_direction():
    assert METRICS["pearson_delta"].loss(0.3) == -0.3
    assert METRICS["nmse"].loss(0.3) == 0.3
    assert METRICS["cell_coverage_50"].loss(0.4) == pytest.approx(0.1)
    ratio = METRICS["variance_ratio"]
    assert ratio.loss(0.5) == pytest.approx(ratio.loss(2.0))
    assert np.isfinite(ratio.loss(0.0))


def test_messages(replicates):
    case = replicates[0]
    with pytest.raises(ValueError, match=r"\['mse'\] are not known.*nmse"):
        score(case, ["mse"])
    alone = replace(case, predicted=CellPopulation(case.predicted.mean))
    with pytest.raises(ValueError, match=r"\['variance_ratio'\] need \['cells'\]"):
        score(alone, ["variance_ratio"])
    with pytest.raises(ValueError, match=r"Space\.fit"):
        score(replace(case, truth=replace(case.truth, space=None)), ["energy"])
    with pytest.raises(ValueError, match="no comparisons"):
        score_all([])


def test_the_registry_is_read_only():
    assert set(BASIC) <= set(OWN_METRICS) <= set(METRICS)
    with pytest.raises(TypeError):
        METRICS["mine"] = None


def test_a_registered_metric_is_computed_beside_the_others(replicates, request):
    mine = Metric("mine", "mine", each(lambda case: 7.0), "higher", 1.0, "u", "means", "")
    METRICS.register("mine", mine)
    request.addfinalizer(lambda: METRICS.unregister("mine"))
    assert score(replicates[0])["mine"] == 7
    assert score(replicates[0], ["mine", "nmse"])["mine"] == 7
