"""Novelty: none where the same was measured, all where nothing measured says anything."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from scvi_perturb.data import Component, Condition
from scvi_perturb.data.request import RequestRow
from scvi_perturb.features import PerturbationFeatures
from scvi_perturb.similarity.novelty import novelty


def place(label, *context, dose=1.0, time=None):
    return RequestRow(Condition.parse(label, dose=dose, time=time), context)


def of(asked, trained, features=None):
    """Return the novelty of one place, or of several."""
    several = isinstance(asked, list)
    found = novelty(asked if several else [asked], trained, features)
    return found if several else float(found[0])


TRAINED = [place(label) for label in ("A", "B", "C", "A+B")]


def test_trained_is_not_novel_and_unknown_is():
    assert (of(TRAINED, TRAINED) < 0.01).all()
    assert 0.9 < of(place("X"), TRAINED) <= 1
    assert of(place("control"), TRAINED) == 0


def test_nothing_trained_means_all_is_novel_but_the_control():
    np.testing.assert_array_equal(of([place("A"), place("control")], []), [1, 0])


def test_conditions_are_in_order_of_what_is_known_of_them():
    asked = [place(label) for label in ("control", "A+B", "A+C", "A+X", "X", "X+Y")]
    found = of(asked, TRAINED)
    assert all(one < two for one, two in pairwise(found[:5]))
    assert found[4] == pytest.approx(found[5], abs=0.02), "of neither is anything known"


def test_single_component_is_known_from_a_combination_in_part():
    alone, together = of([place("A"), place("X")], [place("A+B")])
    assert 0.1 < alone < together


def test_agrees_with_the_variance_given_one_measurement():
    # k = 0.1 shared + 0.6 of the dose's kernel; 1 for the same condition; noise 0.001.
    for dose in (0.2, 2.0, 9.0):
        kernel = 0.1 + 0.6 * 2 ** -((np.log(dose) / np.log(3)) ** 2)
        found = of(place("A", dose=dose), [place("A")])
        assert found == pytest.approx(1 - kernel**2 / 1.001, rel=1e-6)
    assert of(place("X"), [place("A")]) == pytest.approx(1 - 0.1**2 / 1.001, rel=1e-6)


def test_novelty_rises_with_the_distance_of_the_dose():
    trained = [place("A", dose=10.0)]
    for sign in (1, -1):
        doses = 10 * 3.0 ** (sign * np.array([0, 0.1, 0.5, 1, 2, 4]))
        found = of([place("A", dose=dose) for dose in doses], trained)
        assert (np.diff(found) > 0).all()
    low, high = of([place("A", dose=10 / 4), place("A", dose=10 * 4)], trained)
    assert low == pytest.approx(high)


def test_dose_between_two_measured_is_less_novel_than_beyond():
    trained = [place("A", dose=dose) for dose in (1.0, 9.0)]
    between, beyond = of([place("A", dose=3.0), place("A", dose=27.0)], trained)
    assert between < beyond


def test_other_context_is_more_novel_and_any_context_is_not():
    trained = [place("A", "T"), place("B", "T")]
    same, other, unasked = of([place("A", "T"), place("A", "NK"), place("A", "")], trained)
    assert same < 0.01
    assert unasked == pytest.approx(same)
    assert 0.5 < other < of(place("X", "NK"), trained)
    half = of(place("A", "T", "d1"), [place("A", "T", "d2")])
    assert same < half < other


def test_features_make_similar_perturbations_less_novel():
    table = pd.DataFrame(
        {"x": [1.0, 1.0, 0.0, -1.0], "y": [0.0, 0.3, 1.0, 0.0]},
        index=["A", "near", "far", "against"],
    )
    features = PerturbationFeatures({"table": table})
    trained = [place("A")]
    near, far, against = of([place(n) for n in ("near", "far", "against")], trained, features)
    assert near < far == pytest.approx(of(place("far"), trained))
    assert against == pytest.approx(far), "opposite features tell nothing"
    assert of(place("A"), trained, features) < 0.01
    assert of(place("without"), trained, features) == pytest.approx(far)


def test_modalities_count_where_both_have_them():
    one = pd.DataFrame({"x": [1.0, 2.0]}, index=["A", "B"])
    two = pd.DataFrame({"y": [1.0]}, index=["A"])
    single = PerturbationFeatures({"one": one})
    both = PerturbationFeatures({"one": one, "two": two})
    trained = [place("A")]
    assert of(place("B"), trained, both) == pytest.approx(of(place("B"), trained, single))


def test_kinds_are_other_perturbations():
    up, down = (
        RequestRow(Condition((Component("A", kind=k),)), ()) for k in ("CRISPRa", "CRISPRi")
    )
    assert of(up, [up]) < 0.01
    assert of(down, [up]) > 0.9


def test_more_training_never_raises_novelty():
    random = np.random.default_rng(0)
    names, contexts = list("ABCDEF"), ["T", "B", "NK"]

    def draw():
        parts = random.choice(names, random.integers(1, 4), replace=False)
        dose = float(random.choice([0.1, 1.0, 10.0]))
        return place("+".join(parts), str(random.choice(contexts)), dose=dose)

    asked, trained = [draw() for _ in range(20)], []
    before = np.ones(20)
    for _ in range(15):
        trained.append(draw())
        found = of(asked, trained)
        assert ((found >= 0) & (found <= 1)).all()
        assert (found <= before + 1e-9).all()
        before = found


def test_order_of_what_is_asked_and_trained_does_not_matter():
    asked = [place(label) for label in ("A+C", "X", "A", "control")]
    forward = of(asked, TRAINED)
    np.testing.assert_allclose(of(asked[::-1], TRAINED[::-1])[::-1], forward, atol=1e-12)
    np.testing.assert_allclose([of(one, TRAINED) for one in asked], forward, atol=1e-12)


def test_measuring_the_same_often_changes_little():
    assert of(place("B"), [place("A")] * 5) == pytest.approx(of(place("B"), [place("A")]), abs=1e-4)
