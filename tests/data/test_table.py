"""The table of conditions, and codes of cells."""

from __future__ import annotations

import json
import pickle
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scvi_perturb._core import SchemaError, UnknownPerturbationError
from scvi_perturb.data.condition import Condition, ScreenKeys, default_keys
from scvi_perturb.data.condition_table import ConditionTable, encode_obs

LABELS = st.lists(st.sampled_from("ABCDE"), unique=True, max_size=3).map(
    lambda names: "+".join(names) or "control"
)
CONDITIONS = st.lists(
    st.builds(
        lambda label, dose, time: Condition.parse(label, dose=dose, time=time),
        LABELS,
        st.sampled_from([0.5, 1, 10]),
        st.sampled_from([None, 6, 24]),
    ),
    max_size=12,
)


@given(CONDITIONS, CONDITIONS, CONDITIONS)
def test_codes_and_ids_stay_when_a_table_grows(first, second, third):
    tables = [ConditionTable.from_conditions(first)]
    for more in (second, third):
        tables.append(tables[-1].extended(more))
    for old, new in pairwise(tables):
        assert new.conditions[: len(old)] == old.conditions
        assert new.components[: old.n_components] == old.components
        np.testing.assert_array_equal(old.codes(old.conditions), new.codes(old.conditions))
    for condition in (*first, *second, *third):
        assert tables[-1].conditions[tables[-1].codes([condition])[0]] == condition


@given(CONDITIONS, st.randoms(use_true_random=False))
def test_codes_do_not_depend_on_order(conditions, random):
    shuffled = random.sample(conditions, len(conditions)) + conditions[:2]
    assert ConditionTable.from_conditions(shuffled) == ConditionTable.from_conditions(conditions)


@given(CONDITIONS)
def test_a_table_survives_json_and_pickle(conditions):
    table = ConditionTable.from_conditions(conditions, control="DMSO", separator="|")
    assert ConditionTable.from_dict(json.loads(json.dumps(table.to_dict()))) == table
    copied = pickle.loads(pickle.dumps(table))
    assert copied == table
    np.testing.assert_array_equal(copied.codes(conditions), table.codes(conditions))


@given(CONDITIONS)
def test_arrays_hold_the_conditions(conditions):
    table = ConditionTable.from_conditions(conditions)
    arrays = table.arrays(conditions)
    width = max([1, *(len(c.components) for c in conditions)])
    assert arrays.component.shape == arrays.dose.shape == (len(conditions), width)
    for i, condition in enumerate(conditions):
        used = arrays.mask[i]
        named = tuple(table.components[j][0] for j in arrays.component[i][used])
        assert named == condition.names
        np.testing.assert_allclose(
            arrays.dose[i][used], [part.dose for part in condition.components]
        )
        assert not arrays.dose[i][~used].any()
        assert np.isnan(arrays.time[i]) == (condition.time is None)


def test_control_is_code_zero_and_singles_come_first():
    table = ConditionTable.from_conditions(map(Condition.parse, ["B+A", "B", "A"]))
    assert table.frame()["perturbation"].tolist() == ["control", "A", "B", "A+B"]
    assert table.codes([Condition()]).tolist() == [0]
    assert table.arrays().component.dtype == np.int64
    assert table.arrays().dose.dtype == np.float32


def test_new_combination_of_known_components_has_arrays_but_no_code():
    table = ConditionTable.from_conditions(map(Condition.parse, ["A", "B"]))
    pair = Condition.parse("A+B")
    assert table.arrays([pair]).component.tolist() == [[0, 1]]
    assert pair not in table
    with pytest.raises(SchemaError, match=r"table.extended"):
        table.codes([pair])


def test_unknown_component_is_named_with_its_neighbours():
    table = ConditionTable.from_conditions(map(Condition.parse, ["KLF1", "TP53"]))
    for act in (table.codes, table.arrays):
        with pytest.raises(UnknownPerturbationError, match=r"'KLF2'.*KLF1"):
            act([Condition.parse("KLF2+TP53")])
    with pytest.raises(UnknownPerturbationError, match="CRISPRi"):
        table.component_index("KLF1", "CRISPRi")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"conditions": (Condition.parse("A"),)}, "must be the control"),
        ({"conditions": (Condition(), Condition())}, "twice"),
        ({"conditions": (Condition(), Condition.parse("A"))}, "does not list"),
    ],
)
def test_wrong_tables_are_refused(arguments, message):
    with pytest.raises(SchemaError, match=message):
        ConditionTable(**arguments)


def test_columns_of_any_type_give_the_same_codes():
    numbers = [0, 1, 2, 1, 0, 2, 2]
    columns = {
        "int": pd.Series(numbers),
        "float": pd.Series(numbers, dtype=float),
        "text": pd.Series(list(map(str, numbers))),
        "string": pd.Series(list(map(str, numbers)), dtype="string"),
        "category": pd.Series(list(map(str, numbers)), dtype="category"),
        "int category": pd.Series(numbers, dtype="category"),
        "reversed category": pd.Series(
            pd.Categorical(list(map(str, numbers)), categories=["2", "9", "1", "0"])
        ),
    }
    keys = ScreenKeys("p", control=0)
    codes, table = encode_obs(pd.DataFrame({"p": columns["int"]}), keys)
    assert codes.tolist() == numbers
    assert keys.control == "0"
    for name, column in columns.items():
        again, other = encode_obs(pd.DataFrame({"p": column}), keys)
        np.testing.assert_array_equal(again, codes, err_msg=name)
        assert other == table, name


def test_encode_uses_all_columns_and_grows_a_table():
    keys = ScreenKeys("p", dose="d", time="t", kind="k", control="ctrl")
    obs = pd.DataFrame(
        {
            "p": ["B+A", "ctrl", "A+B", "A"],
            "d": ["10+5", "0", "5+10", "5"],
            "t": [6.0, np.nan, 6.0, 24.0],
            "k": ["drug", None, "drug", "drug"],
        }
    )
    codes, table = encode_obs(obs, keys)
    assert codes[0] == codes[2]
    assert codes[1] == 0
    assert table.frame().loc[codes, "perturbation"].tolist() == ["A+B", "ctrl", "A+B", "A"]
    more = obs.assign(t=48.0)
    new_codes, grown = encode_obs(more, keys, table=table)
    assert new_codes.tolist() == [4, 0, 4, 3]
    np.testing.assert_array_equal(encode_obs(obs, keys, table=grown)[0], codes)


def test_many_cells_are_parsed_by_distinct_rows(monkeypatch):
    parsed = []
    parse = ScreenKeys.parse
    monkeypatch.setattr(
        ScreenKeys, "parse", lambda self, **row: parsed.append(row) or parse(self, **row)
    )
    rng = np.random.default_rng(0)
    labels = np.array(["control", *(f"G{i}" for i in range(50))], dtype=object)
    picked = rng.integers(len(labels), size=1_000_000)
    codes, table = encode_obs(pd.DataFrame({"p": labels[picked]}), ScreenKeys("p"))
    assert len(parsed) == len(labels) == len(table)
    expected = np.array([table.codes([Condition.parse(label)])[0] for label in labels])
    np.testing.assert_array_equal(codes, expected[picked])


@pytest.mark.parametrize(
    ("obs", "options", "message"),
    [
        ({"p": ["A", None, np.nan]}, {}, "missing for 2 of 3 cells"),
        ({"q": ["A"]}, {}, r"no column 'p'; it has \['q'\]"),
        ({"p": ["A", "B"]}, {"require_control": True}, "No control cell"),
    ],
)
def test_messages_of_encode(obs, options, message):
    with pytest.raises(SchemaError, match=message):
        encode_obs(pd.DataFrame(obs), ScreenKeys("p"), **options)


def test_default_keys_are_the_recorded_ones_or_the_canonical_columns():
    from anndata import AnnData

    adata = AnnData(obs=pd.DataFrame({"perturbation": ["A"], "dose": ["1"]}, index=["c"]))
    assert default_keys(adata) == ScreenKeys("perturbation", dose="dose")
    adata.uns["scvi_perturb"] = {"keys": {"perturbation": "p", "control": "NT"}}
    assert default_keys(adata) == ScreenKeys("p", control="NT")
    with pytest.raises(SchemaError, match="harmonize"):
        default_keys(AnnData(obs=pd.DataFrame({"gene": ["A"]}, index=["c"])))
