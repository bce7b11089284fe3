"""Cells of a plan that have one mean: a row of the request, in one context."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from scvi_perturb.data.request import Request
from scvi_perturb.model.base.reference import Plan
from scvi_perturb.model.hybrid.recentred import RequestGroups
from tests.model._small import make_reference, make_request, make_screen, parse

SCREEN = make_screen([parse("A"), parse("B")])
#: Two cells of one type, three of the other, with counts of their own.
TYPES = ["B", "T", "T", "B", "T"]
COUNTS = np.array([[1, 9], [8, 2], [5, 5], [3, 7], [6, 4]], dtype=np.float32)


def reference(types=TYPES):
    return make_reference(COUNTS[: len(types)], types)


def groups_of(request, cells, n_samples=None, screen=SCREEN):
    plan = Plan.make(request, cells, n_samples, 0)
    return RequestGroups.make(plan, screen), plan


def test_cells_of_a_row_and_a_context_are_a_group():
    cells = reference()
    groups, plan = groups_of(make_request("A", "B"), cells)
    assert len(groups) == 4
    assert groups.row.tolist() == [0, 0, 1, 1]
    assert [(str(r.condition), r.context) for r in groups.requests] == [
        ("A", ("B",)),
        ("A", ("T",)),
        ("B", ("B",)),
        ("B", ("T",)),
    ]
    assert [pool.tolist() for pool in groups.pool] == [[0, 3], [1, 2, 4]] * 2
    for entry in range(len(plan)):
        own = groups.of[entry]
        assert plan.row[entry] == groups.row[own]
        assert plan.reference[entry] in groups.pool[own]


def test_the_context_asked_for_is_that_of_the_group():
    request = make_request("A", "A", "A", cell_type=("T", "B", ""))
    groups, _ = groups_of(request, reference())
    assert groups.row.tolist() == [0, 1, 2, 2]
    assert [r.context for r in groups.requests] == [("T",), ("B",), ("B",), ("T",)]
    assert [pool.tolist() for pool in groups.pool] == [[1, 2, 4], [0, 3], [0, 3], [1, 2, 4]]


def test_the_context_asked_for_comes_before_what_the_reference_does_not_say():
    cells = reference()
    cells.labels = cells.labels.drop(columns="cell_type")
    asked, _ = groups_of(make_request("A", cell_type=("T",)), cells)
    left_open, _ = groups_of(make_request("A"), cells)
    assert [r.context for r in asked.requests] == [("T",)]
    assert [r.context for r in left_open.requests] == [(None,)]
    assert asked.pool[0].tolist() == [0, 1, 2, 3, 4]


def test_the_context_asked_for_comes_before_that_of_the_cells():
    request = make_request("A", cell_type=("T",))
    plan = Plan(request, reference(), np.zeros(2, int), np.array([0, 3]), np.arange(2))
    groups = RequestGroups.make(plan, SCREEN)
    assert [r.context for r in groups.requests] == [("T",)]
    assert groups.pool[0].tolist() == [0, 3]


def test_each_context_column_is_asked_for_on_its_own():
    screen = replace(SCREEN, keys=replace(SCREEN.keys, context=("cell_type", "donor")))
    cells = reference()
    cells.labels["donor"] = ["d1", "d1", "d2", "d2", "d2"]
    groups, _ = groups_of(make_request("A", donor=("d2",)), cells, screen=screen)
    assert [r.context for r in groups.requests] == [("T", "d2"), ("B", "d2")]
    assert [pool.tolist() for pool in groups.pool] == [[2, 4], [3]]
    open_cells = reference()
    groups, _ = groups_of(make_request("A", donor=("d9",)), open_cells, screen=screen)
    assert [r.context for r in groups.requests] == [("B", "d9"), ("T", "d9")]


def test_without_context_columns_a_row_is_a_group():
    screen = replace(SCREEN, keys=replace(SCREEN.keys, context=()))
    groups, _ = groups_of(make_request("A", "B"), reference(), screen=screen)
    assert [r.context for r in groups.requests] == [(), ()]
    assert groups.pool[1].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("n_samples", [1, 7, None])
def test_pilot_starts_every_group_from_all_of_its_cells(n_samples):
    request, cells = make_request("A", "B", cell_type=("T", "")), reference()
    groups, _ = groups_of(request, cells, n_samples)
    plan, of = groups.pilot(60, seed=0)
    assert np.bincount(of).tolist() == [60] * len(groups)
    assert (np.diff(of) >= 0).all()
    np.testing.assert_array_equal(plan.row, groups.row[of])
    for own, pool in enumerate(groups.pool):
        used, times = np.unique(plan.reference[of == own], return_counts=True)
        np.testing.assert_array_equal(used, pool)
        assert set(times) == {60 // len(pool)}


def test_pilot_of_few_cells_is_a_random_choice_of_the_pool():
    groups, _ = groups_of(make_request("A", cell_type=("T",)), reference())
    chosen = [tuple(groups.pilot(2, seed)[0].reference) for seed in range(40)]
    assert {len(set(pair)) for pair in chosen} == {2}
    assert {cell for pair in chosen for cell in pair} == {1, 2, 4}
    assert groups.pilot(2, 3)[0].reference.tolist() == list(chosen[3])


# The control of a group -----------------------------------------------------------------


def expected(rows):
    counts = COUNTS[rows].sum(axis=0)
    return np.log1p(1e4 * counts / counts.sum())


def test_control_is_the_profile_of_all_cells_of_the_context():
    cells = reference()
    groups, _ = groups_of(make_request("A", "B", cell_type=("", "T")), cells, n_samples=1)
    made = groups.control_profiles(np.arange(len(groups)))
    for row, pool in zip(made, groups.pool, strict=True):
        np.testing.assert_allclose(row, expected(pool))
    np.testing.assert_array_equal(groups.control_profiles(np.array([1])), made[[1]])


def test_control_of_a_batch_is_that_of_its_cells_where_there_are():
    cells = reference()
    cells.labels["batch"] = ["x", "y", "x", "x", "y"]
    conditions = tuple(parse("A") for _ in range(4))
    request = Request(conditions, {"cell_type": ("T", "T", "B", "T")}, ("y", "x", "y", ""))
    groups, _ = groups_of(request, cells)
    assert [own.tolist() for own in groups.control] == [[1, 4], [2], [0, 3], [1, 2, 4]]
    assert [own.tolist() for own in groups.pool] == [[1, 2, 4], [1, 2, 4], [0, 3], [1, 2, 4]]
    made = groups.control_profiles(np.arange(4))
    np.testing.assert_allclose(made, [expected(rows) for rows in groups.control])
    unlabelled = reference()
    groups, _ = groups_of(request, unlabelled)
    assert [own.tolist() for own in groups.control] == [own.tolist() for own in groups.pool]
