"""Requests made precise: what may be left out, what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from scvi_perturb import SchemaError
from scvi_perturb.data import Component, Condition, ScreenKeys
from scvi_perturb.data.request import parse_request
from tests.model._small import make_screen, parse

PLAIN = ScreenKeys("guide", control="NT")
#: A and C have one dose and kind each, B two of each.
CONDITIONS = [
    parse("A", dose=2, kind="drug", time=6),
    parse("B", dose=1, kind="CRISPRa", time=6),
    parse("B", dose=5, kind="CRISPRi", time=6),
    parse("A+C", dose="2+7", kind="drug+drug", time=6),
]


@pytest.fixture
def screen():
    return make_screen(CONDITIONS)


def one(request):
    assert len(request) == 1
    return request.conditions[0]


def frame(**columns):
    return pd.DataFrame({name: [value] for name, value in columns.items()})


def test_names_are_parsed_with_the_screens_control_and_separator():
    screen = make_screen(keys=replace(PLAIN, separator="|"))
    request = parse_request(["B|A", " A ", "NT", "A+B"], screen)
    labels = [c.format("NT", "|") for c in request.conditions]
    assert labels == ["A|B", "A", "NT", "A+B"]
    assert [len(c.components) for c in request.conditions] == [2, 1, 0, 1]
    assert request.context == {}
    assert request.batch is None


def test_single_name_is_a_request_of_one():
    assert one(parse_request("A+B", make_screen(keys=PLAIN))) == parse("A+B")


def test_what_has_one_value_in_the_screen_is_filled_in(screen):
    assert one(parse_request(["A"], screen)) == CONDITIONS[0]
    # Each component of a combination by its own values, wherever they were measured.
    assert one(parse_request(["C+A"], screen)) == CONDITIONS[3]
    assert one(parse_request(["C"], screen)) == parse("C", dose=7, kind="drug", time=6)


def test_what_is_given_is_not_filled_in(screen):
    asked = frame(guide="C+A", mg="3+4", how="drug+drug", hours=24)
    assert one(parse_request(asked, screen)) == parse("A+C", dose="4+3", kind="drug", time=24)
    only_dose = frame(guide="A", mg=9)
    assert one(parse_request(only_dose, screen)) == parse("A", dose=9, kind="drug", time=6)
    only_kind = frame(guide="A", how="siRNA")
    assert one(parse_request(only_kind, screen)) == parse("A", dose=2, kind="siRNA", time=6)


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        (frame(guide="B", how="CRISPRa"), r"dose of 'B' must be given.*2 \(1.0, 5.0\).*'mg'"),
        (frame(guide="A+B", how="drug+CRISPRa"), "dose of 'B' must be given"),
        (frame(guide="B", mg=1), r"kind of 'B' .*2 \(CRISPRa, CRISPRi\).*column 'how'"),
        (frame(guide="X", how="drug"), r"dose of 'X' must be given: the screen has 4"),
    ],
    ids=["dose", "combination", "kind", "unknown"],
)
def test_what_has_several_values_must_be_given(screen, asked, match):
    with pytest.raises(SchemaError, match=match):
        parse_request(asked, screen)


def test_time_is_filled_in_or_must_be_given(screen):
    late = make_screen([*CONDITIONS, parse("A", dose=2, kind="drug", time=24)])
    assert one(parse_request(["A"], screen)).time == 6
    with pytest.raises(SchemaError, match=r"time of 'the perturbations'.*\(6.0, 24.0\).*'hours'"):
        parse_request(["A"], late)
    assert one(parse_request(frame(guide="A", hours=24), late)).time == 24


def test_time_that_was_never_recorded_needs_not_be_given():
    screen = make_screen([parse("A")], keys=ScreenKeys("guide", time="hours", control="NT"))
    assert one(parse_request(["A"], screen)) == parse("A")


def test_perturbation_never_measured_takes_what_all_have_in_common():
    alike = make_screen([parse("A", dose=2, kind="drug", time=6)])
    assert one(parse_request(["X"], alike)) == parse("X", dose=2, kind="drug", time=6)


def test_control_needs_nothing(screen):
    for asked in (["NT"], frame(guide="NT", mg=np.nan), frame(guide="NT", mg="0", hours=6)):
        assert one(parse_request(asked, screen)) == Condition()
    assert one(parse_request(["A+NT"], screen)) == CONDITIONS[0]


def test_missing_values_in_a_table_are_as_left_out(screen):
    asked = pd.DataFrame(
        {"guide": ["A", "B"], "mg": [np.nan, 5.0], "how": [None, "CRISPRi"], "hours": ["", "6"]}
    )
    assert parse_request(asked, screen).conditions == (CONDITIONS[0], CONDITIONS[2])


def test_columns_go_by_their_own_or_by_the_common_names(screen):
    own = frame(guide="B", mg=5, hours=6, how="CRISPRi")
    common = frame(perturbation="B", dose=5, time=6, perturbation_type="CRISPRi")
    mixed = frame(guide="B", dose=5, hours=6, perturbation_type="CRISPRi")
    made = [parse_request(asked, screen) for asked in (own, common, mixed)]
    assert made[0] == made[1] == made[2]
    assert one(made[0]) == CONDITIONS[2]


def test_order_and_repetition_of_rows_are_kept():
    labels = ["B", "A", "B", "NT"]
    request = parse_request(labels, make_screen(keys=PLAIN))
    assert [c.format("NT", "+") for c in request.conditions] == labels


def test_contexts_and_batches_are_text(screen):
    asked = pd.DataFrame(
        {"guide": ["A", "NT"], "cell_type": pd.Categorical(["T", "B"]), "batch": [1, 2]},
        index=["p", "q"],
    )
    request = parse_request(asked, screen)
    assert request.context == {"cell_type": ("T", "B")}
    assert request.batch == ("1", "2")
    assert request.where(1) == {"cell_type": "B"}
    assert asked.columns.tolist() == ["guide", "cell_type", "batch"]


@pytest.mark.parametrize("donor", [[1, 2], [1.0, 2.0], ["1", " 2 "]], ids=["int", "float", "text"])
def test_numbers_are_the_labels_they_were_registered_as(screen, donor):
    request = parse_request(pd.DataFrame({"guide": "NT", "batch": donor}), screen)
    assert request.batch == ("1", "2")


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA, ""])
def test_missing_context_or_batch_is_the_references(screen, missing):
    labels = pd.Series(["T", missing], dtype=object)
    asked = pd.DataFrame({"guide": "NT", "cell_type": labels, "batch": labels[::-1].to_numpy()})
    request = parse_request(asked, screen)
    assert (request.where(0), request.where(1)) == ({"cell_type": "T"}, {})
    assert request.batch == ("", "T")
    nothing = parse_request(asked.assign(cell_type=missing, batch=missing), screen)
    assert (nothing.context, nothing.batch) == ({}, None)


def test_missing_doses_and_times_of_nullable_columns_are_as_left_out(screen):
    asked = pd.DataFrame({"guide": ["A", "NT"], "mg": pd.array([2, None], dtype="Int64")})
    asked["hours"] = pd.array([None, None], dtype="Float64")
    assert parse_request(asked, screen).conditions == (CONDITIONS[0], Condition())


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ([], "request is empty"),
        (frame(guide="A", donor="d"), r"columns \['donor'\].*\['batch', 'cell_type', 'guide'"),
        (frame(cell_type="T"), r"needs a column 'guide' or 'perturbation'; it has \['cell_type'\]"),
        (frame(guide=None), "has no 'guide'"),
        (frame(guide=" "), "has no 'guide'"),
        (frame(guide=pd.NA), "has no 'guide'"),
        (frame(guide="A", mg="2+3"), "dose"),
        (frame(guide="A", mg="high"), "dose of 'A' is 'high'; expected a number"),
        (frame(guide="A", mg=-1), "dose of 'A'"),
        (frame(guide="A+A"), "comes twice"),
    ],
)
def test_what_cannot_be_read_is_refused(screen, asked, match):
    with pytest.raises(SchemaError, match=match):
        parse_request(asked, screen)


def test_dose_is_refused_where_none_was_registered():
    with pytest.raises(SchemaError, match=r"\['dose'\], which were not registered"):
        parse_request(frame(perturbation="A", dose=1), make_screen(keys=PLAIN))


def test_parts_of_a_filled_condition_are_in_order(screen):
    parts = one(parse_request(["C+A"], screen)).components
    assert parts == (Component("A", 2, "drug"), Component("C", 7, "drug"))
