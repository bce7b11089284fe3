"""Conditions: parsing, canonical order, writing and reading back."""

from __future__ import annotations

import math
import pickle
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scvi_perturb._core import SchemaError, shown
from scvi_perturb.data.condition import Component, Condition, ScreenKeys, as_label
from scvi_perturb.data.condition_table import ConditionTable, encode_obs

NAMES = st.text(alphabet="ABCabc019-_. ()", min_size=1, max_size=6).map(str.strip).filter(bool)
DOSES = st.floats(1e-6, 1e6)
COMPONENTS = st.lists(
    st.builds(Component, NAMES, DOSES, st.sampled_from(["", "CRISPRa", "drug"])),
    unique_by=lambda part: part.name,
    max_size=4,
)
CONDITIONS = st.builds(Condition, COMPONENTS.map(tuple), st.none() | st.floats(0, 1e4)).filter(
    lambda condition: "control" not in condition.names
)


@given(CONDITIONS)
def test_parse_reads_back_what_format_writes(condition):
    read = Condition.parse(
        condition.perturbation,
        dose=condition.format_doses(),
        kind=condition.format_kinds(),
        time=condition.time,
    )
    assert read == condition
    assert hash(read) == hash(condition)


@given(CONDITIONS, st.sampled_from(["+", "|", "&", " and "]), st.sampled_from(["control", "DMSO"]))
def test_parse_reads_back_other_separators_and_controls(condition, separator, control):
    if any(separator in name or name == control for name in condition.names):
        with pytest.raises(SchemaError, match="read back differently"):
            condition.format(control, separator)
        return
    read = Condition.parse(
        condition.format(control, separator),
        dose=condition.format_doses(separator),
        kind=condition.format_kinds(separator),
        time=condition.time,
        control=control,
        separator=separator,
    )
    assert read == condition


ANY_TEXT = st.text(max_size=5)
ANY_NAMES = ANY_TEXT.map(str.strip).filter(bool)
SEPARATORS = st.text(min_size=1, max_size=3).filter(
    lambda text: not any(c.isdecimal() or c in ".eE" for c in text)
)


@given(
    st.lists(
        st.builds(Component, ANY_NAMES, DOSES, ANY_TEXT), unique_by=lambda p: p.name, max_size=3
    ),
    SEPARATORS,
    ANY_TEXT,
    st.none() | st.floats(0, 1e4),
)
def test_parse_reads_back_what_format_agrees_to_write(parts, separator, control, time):
    condition = Condition(tuple(parts), time)
    try:
        label = condition.format(control, separator)
        kinds = condition.format_kinds(separator)
    except SchemaError:
        return
    doses = condition.format_doses(separator)
    how = {"control": control, "separator": separator}
    read = Condition.parse(label, dose=doses, kind=kinds, time=condition.time, **how)
    assert read == condition


@pytest.mark.parametrize("separator", ["", None, 5, "1", ".", "e", "E+", "a.", b"+"])
def test_a_separator_that_is_part_of_numbers_is_refused(separator):
    for act in (
        lambda: Condition.parse("A", separator=separator),
        lambda: Condition().format(separator=separator),
        lambda: ScreenKeys(separator=separator),
        lambda: ConditionTable(separator=separator),
    ):
        with pytest.raises((TypeError, ValueError), match="separator="):
            act()


@pytest.mark.parametrize(
    ("names", "control", "separator"),
    [(("A+", "B"), "control", "++"), (("A", "B"), "A+B", "+"), (("A", "ctrl"), "ctrl", ";")],
)
def test_a_label_that_would_be_read_back_differently_is_not_written(names, control, separator):
    with pytest.raises(SchemaError, match="read back differently"):
        Condition(tuple(map(Component, names))).format(control, separator)


@given(COMPONENTS, st.randoms(use_true_random=False))
def test_order_does_not_matter(parts, random):
    shuffled = random.sample(parts, len(parts))
    assert Condition(tuple(shuffled)) == Condition(tuple(parts))


@given(COMPONENTS.filter(lambda parts: "control" not in [p.name for p in parts]), st.data())
def test_doses_stay_with_their_names_and_controls_are_dropped(parts, data):
    written = [(part.name, repr(part.dose)) for part in parts]
    written += [("control", "0")] * data.draw(st.integers(0, 2))
    written = data.draw(st.permutations(written))
    read = Condition.parse(
        " + ".join(name for name, _ in written) or "control",
        dose="+".join(dose for _, dose in written) or None,
    )
    assert {part.name: part.dose for part in read.components} == {p.name: p.dose for p in parts}


def test_canonical_form():
    condition = Condition.parse("B+ A ", dose="10+5", kind="drug", time="6")
    assert condition.perturbation == "A+B"
    assert condition.format_doses() == "5+10"
    assert condition.format_kinds() == "drug"
    assert condition.names == ("A", "B")
    assert condition.time == 6.0
    assert condition == Condition((Component("A", 5, "drug"), Component("B", 10, "drug")), time=6)
    assert str(condition) == "A (dose 5) + B (dose 10), time 6"


@pytest.mark.parametrize("labels", list(permutations(["A", "B", "control"])))
def test_kinds_are_aligned_before_sorting(labels):
    kinds = {"A": "CRISPRa", "B": "CRISPRi", "control": "none"}
    read = Condition.parse("+".join(labels), kind="+".join(kinds[label] for label in labels))
    assert read.format_kinds() == "CRISPRa+CRISPRi"


@pytest.mark.parametrize("label", ["control", " control ", "control+control", "control+ control"])
def test_control_has_no_components_dose_or_time(label):
    condition = Condition.parse(label, dose=0, time=24, kind=None)
    assert condition.is_control
    assert condition == Condition()
    assert (condition.perturbation, condition.format_doses(), condition.format_kinds()) == (
        "control",
        "0",
        "",
    )


def test_one_dose_holds_for_all_components():
    assert Condition.parse("A+B", dose=3).format_doses() == "3+3"
    assert Condition.parse("A+B", dose="3").format_doses() == "3+3"
    assert Condition.parse("A+B").format_doses() == "1+1"


def test_plus_of_an_exponent_is_not_a_separator():
    assert Condition.parse("A+B", dose="1e+3+2.e+1").format_doses() == "1000+20"


def test_numbers_are_labels():
    assert Condition.parse(3) == Condition.parse("3") == Condition.parse(np.float64(3))
    assert Condition.parse(0, control=0).is_control


def test_labels_of_bytes_are_text_and_missing_ones_are_refused():
    assert Condition.parse(b"B+A", dose=b"2+1") == Condition.parse("A+B", dose="1+2")
    assert as_label(np.bytes_(" A ")) == "A"
    for label in (None, float("nan"), pd.NA, b"\xff", 10**400):
        with pytest.raises(SchemaError):
            Condition.parse(label)


def test_times_are_read_whole():
    for time in ("NA", "-", "None", None, pd.NaT):
        assert Condition.parse("A", time=time).time is None
    for time in (True, "1_0", "24-48", 10**400, "inf", [1], float("inf"), -1):
        with pytest.raises(SchemaError, match="Time"):
            Condition.parse("A", time=time)


def test_lists_in_a_column_are_refused_by_name():
    obs = pd.DataFrame({"perturbation": [["A"], ["B"]]})
    with pytest.raises(SchemaError, match=r"obs\['perturbation'\] holds lists"):
        encode_obs(obs, ScreenKeys())


def test_dose_is_the_same_from_text_and_from_either_float():
    doses = ["0.1", 0.1, np.float32(0.1), np.float64(0.1)]
    assert len({Condition.parse("A", dose=dose) for dose in doses}) == 1


def test_same_name_of_another_kind_is_another_component():
    condition = Condition.parse("A+A", kind="CRISPRa+drug")
    assert condition.names == ("A", "A")
    assert condition.format_kinds() == "CRISPRa+drug"


MISSING = ["", None, float("nan"), "nan", "NA", "None", "-", pd.NA, b"", pd.NaT]


@pytest.mark.parametrize(
    "dose",
    [
        *MISSING,
        *(-1, 0, "-2", float("inf"), "x", True, np.bool_(True), 10**400, 10**5000, "1e400", 1e-40),
        *("1_000", "10-20", "1,5", "0x10", [1.0], {"A": 1}, 1 + 2j, b"\xff"),
    ],
    ids=shown,
)
def test_a_wrong_dose_names_the_component(dose):
    with pytest.raises(SchemaError, match=r"dose of 'A'|Label b'"):
        Condition.parse("A", dose=dose)
    with pytest.raises(SchemaError, match=r"dose of 'A'|Label b'"):
        Component("A", dose)


def test_doses_that_were_not_recorded_are_one():
    assert Condition.parse("A").components[0].dose == 1
    assert ScreenKeys().parse(perturbation="A").components[0].dose == 1


@pytest.mark.parametrize("dose", MISSING)
def test_a_missing_dose_of_a_column_is_never_one(dose):
    obs = pd.DataFrame({"perturbation": ["control", "A"], "dose": [0.0, dose]}, dtype=object)
    with pytest.raises(SchemaError, match="dose of 'A'"):
        encode_obs(obs, ScreenKeys(dose="dose"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"perturbation": "A+A"}, "'A' comes twice"),
        ({"perturbation": "A+"}, "empty name"),
        ({"perturbation": ""}, "empty name"),
        ({"perturbation": "A+B", "dose": "1+2+3"}, "3 parts for the 2 components"),
        ({"perturbation": "A", "dose": "1+2"}, "2 parts for the 1 components"),
        ({"perturbation": "A", "dose": "10 uM"}, "harmonize"),
        ({"perturbation": "A", "time": "6h"}, "harmonize"),
        ({"perturbation": "A", "time": -1}, "finite number >= 0"),
        ({"perturbation": "A", "kind": float("nan")}, "kind of 'A'"),
    ],
)
def test_messages(arguments, message):
    with pytest.raises(SchemaError, match=message):
        Condition.parse(**arguments)


def test_missing_time_is_none():
    assert Condition.parse("A", time=math.nan).time is None
    assert Condition.parse("A", time=" ").time is None
    assert Condition.parse("A", time=pd.NA).time is None


def test_missing_dose_in_a_nullable_column_is_named():
    with pytest.raises(SchemaError, match="dose of 'A' is nan"):
        Condition.parse("A", dose=pd.NA)


def test_a_kind_with_the_separator_is_not_written():
    with pytest.raises(SchemaError, match="Kinds"):
        _ = Condition((Component("A", kind="x+y"),)).format_kinds()


def test_pickles():
    condition = Condition.parse("A+B", dose="1+2", time=3)
    assert pickle.loads(pickle.dumps(condition)) == condition


@pytest.mark.parametrize("keys", [{"context": "regime"}, {"dose": "n_cells"}])
def test_columns_of_results_are_not_those_of_a_screen(keys):
    with pytest.raises(SchemaError, match=r"is a column that results write; rename"):
        ScreenKeys(**keys)
