"""Which cells start from which controls: evenly, in the context asked for, by the seed."""

from __future__ import annotations

import numpy as np
import pytest

from scvi_perturb import SamplerConfig, SchemaError
from scvi_perturb.model.base.draw import cell_obs, condition_frame, provenance
from scvi_perturb.model.base.reference import Plan
from tests.model._small import make_reference, make_request, make_screen

CELL_TYPES = ["T", "B", "T", "T", "B", "T", "T"]


@pytest.fixture
def reference():
    return make_reference(np.ones((7, 2)), CELL_TYPES)


@pytest.mark.parametrize("n_samples", [1, 3, 7, 10, 14, 50])
def test_reference_cells_are_used_as_evenly_as_can_be(reference, n_samples):
    plan = Plan.make(make_request("A", "B"), reference, n_samples, seed=0)
    assert len(plan) == 2 * n_samples
    assert plan.row.tolist() == [0] * n_samples + [1] * n_samples
    assert plan.draw.tolist() == [*range(n_samples)] * 2
    for row in range(2):
        used = np.bincount(plan.reference[plan.row == row], minlength=7)
        assert used.sum() == n_samples
        assert used.max() - used.min() <= 1


def test_rows_use_other_cells_and_the_seed_says_which(reference):
    first, again, other = (
        Plan.make(make_request("A", "B"), reference, 4, seed=s).reference for s in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first[:4], first[4:])


def test_every_cell_is_left_out_as_often_as_any_other(reference):
    used = np.zeros(7)
    for seed in range(300):
        used += np.bincount(Plan.make(make_request("A"), reference, 3, seed).reference, minlength=7)
    share, expected = used / 300, 3 / 7
    assert np.abs(share - expected).max() < 4.5 * np.sqrt(expected * (1 - expected) / 300)


def test_without_a_number_every_cell_is_used_once_in_order(reference):
    plan = Plan.make(make_request("A", "B"), reference, None, seed=5)
    assert plan.reference.tolist() == [*range(7)] * 2
    asked = make_request("A", "A", cell_type=("B", "T"))
    plan = Plan.make(asked, reference, None, seed=5)
    assert plan.reference.tolist() == [1, 4, 0, 2, 3, 5, 6]
    assert plan.row.tolist() == [0] * 2 + [1] * 5
    assert plan.draw.tolist() == [0, 1, 0, 1, 2, 3, 4]


def test_cells_of_the_context_asked_for_are_used(reference):
    plan = Plan.make(make_request("A", "A", cell_type=("B", "T")), reference, 6, seed=0)
    types = np.array(CELL_TYPES)[plan.reference]
    assert types.tolist() == ["B"] * 6 + ["T"] * 6
    assert np.bincount(plan.reference[:6], minlength=7).tolist() == [0, 3, 0, 0, 3, 0, 0]


def test_context_without_cells_is_refused(reference):
    with pytest.raises(SchemaError, match=r"\{'cell_type': 'NK'\}; there are controls in"):
        Plan.make(make_request("A", cell_type=("NK",)), reference, 6, seed=0)
    with pytest.raises(ValueError, match="n_samples=0"):
        Plan.make(make_request("A"), reference, 0, seed=0)


def test_cells_are_annotated_by_their_request_and_their_reference(reference):
    screen, request = make_screen(), make_request("B+A", "NT")
    plan = Plan.make(request, reference, 3, seed=0)
    obs = cell_obs(plan, screen)
    assert obs["guide"].tolist() == ["A+B"] * 3 + ["NT"] * 3
    assert obs["mg"].tolist()[:3] == ["1+1"] * 3
    assert obs["reference_cell"].tolist() == [f"c{i}" for i in plan.reference]
    assert obs["cell_type"].tolist() == np.array(CELL_TYPES)[plan.reference].tolist()
    assert obs.index.tolist()[:4] == ["row0_draw0", "row0_draw1", "row0_draw2", "row1_draw0"]
    assert obs.index.is_unique


def test_what_is_asked_for_comes_before_what_the_reference_is(reference):
    request = make_request("A", cell_type=("T",))
    frame = condition_frame(request, make_screen())
    assert frame["cell_type"].tolist() == ["T"]
    assert set(frame) == {"guide", "mg", "hours", "how", "cell_type"}


@pytest.mark.parametrize(("scale", "calls"), [(1.0, 8), (1.5, 16)])
def test_provenance_counts_the_calls_of_the_network(scale, calls):
    told = provenance(
        "Model",
        units="counts",
        seed=None,
        sampler=SamplerConfig("ddim", 8, scale),
        library_size="reference",
        trained_on={},
    )["scvi_perturb"]
    assert told["n_function_evaluations"] == calls
    assert told["seed"] == "none"
