"""Requests are read in one way, whatever their form."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest

from scvi_perturb._core import SchemaError
from scvi_perturb.data import Component, Condition, ScreenKeys
from scvi_perturb.data.request import RequestRow
from scvi_perturb.predictors.request import parse_requests, request_frame

PLAIN = ScreenKeys("gene")
DOSED = ScreenKeys("drug", dose="nM")


def test_names():
    expected = [
        RequestRow(Condition((Component("A"), Component("B")))),
        RequestRow(Condition()),
    ]
    assert parse_requests(["B+A", "control"], keys=PLAIN) == expected
    assert parse_requests("A+B", keys=PLAIN) == expected[:1]


@pytest.mark.parametrize("column", ["gene", "perturbation"])
def test_a_table_has_the_screens_names_or_the_canonical_ones(column):
    table = pd.DataFrame({column: ["A"], "cell_type": ["T"]})
    (found,) = parse_requests(table, keys=replace(PLAIN, context=["cell_type", "donor"]))
    assert found == RequestRow(Condition((Component("A"),)), ("T", None))


def test_doses():
    table = pd.DataFrame({"perturbation": ["x+y"], "dose": ["5+10"]})
    (found,) = parse_requests(table, keys=DOSED)
    assert [part.dose for part in found.condition.components] == [5, 10]


def test_integer_labels_are_text():
    table = pd.DataFrame({"perturbation": ["A", "A"], "donor": pd.Categorical([3, 4])})
    found = parse_requests(table, keys=replace(PLAIN, context=["donor"]))
    assert [request.context for request in found] == [("3",), ("4",)]


def test_a_missing_context_label_stays_open():
    table = pd.DataFrame({"perturbation": ["A", "A"], "donor": ["x", None]})
    found = parse_requests(table, keys=replace(PLAIN, context=["donor"]))
    assert [request.context for request in found] == [("x",), (None,)]


def test_what_the_screen_distinguishes_must_be_said():
    known = [Condition((Component("x", dose),)) for dose in (1, 10)]
    with pytest.raises(SchemaError, match=r"dose of 'x' must be given.*\(1.0, 10.0\).*'nM'"):
        parse_requests(["x"], keys=DOSED, known=known)
    with pytest.raises(SchemaError, match=r"dose of 'x' must be given"):
        parse_requests(["x"], keys=DOSED)
    assert parse_requests(["x"], keys=DOSED, known=known[1:]) == [RequestRow(known[1])]
    assert parse_requests(["control"], keys=DOSED) == [RequestRow(Condition())]


@pytest.mark.parametrize("column", ["dose", "time", "perturbation_type", "donor"])
def test_nothing_is_ignored_in_silence(column):
    table = pd.DataFrame({"perturbation": ["A"], column: ["1"]})
    with pytest.raises(SchemaError, match=column):
        parse_requests(table, keys=PLAIN)


def test_empty_requests_and_tables_without_names():
    with pytest.raises(SchemaError, match="at least one"):
        parse_requests([], keys=PLAIN)
    with pytest.raises(SchemaError, match="needs a column 'gene' or 'perturbation'"):
        parse_requests(
            pd.DataFrame({"cell_type": ["T"]}), keys=replace(PLAIN, context=["cell_type"])
        )


def test_answers_can_be_asked_again():
    table = pd.DataFrame({"drug": ["y+x", "control"], "nM": ["10+5", "0"], "donor": ["d", None]})
    asked = parse_requests(table, keys=replace(DOSED, context=["donor"]))
    frame = request_frame(asked, replace(DOSED, context="donor"))
    assert frame["drug"].tolist() == ["x+y", "control"]
    assert frame["nM"].tolist() == ["5+10", "0"]
    assert parse_requests(frame, keys=replace(DOSED, context=["donor"])) == asked
