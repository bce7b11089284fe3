"""Fields that register a screen: codes that never change, and what is refused."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from scvi_perturb._core import SchemaError
from scvi_perturb.data import Condition, ConditionTable, ScreenKeys
from scvi_perturb.data.fields import (
    CountsField,
    LabelField,
    LibraryField,
    PerturbationField,
    encode_labels,
)

KEYS = ScreenKeys("perturbation", dose="dose")


def screen(perturbation, **columns):
    n = len(perturbation)
    obs = pd.DataFrame({"perturbation": perturbation, "dose": "1", **columns})
    obs.index = [f"c{i}" for i in range(n)]
    counts = sparse.csr_matrix(np.arange(3 * n, dtype=np.float32).reshape(n, 3))
    return AnnData(counts, obs=obs, var=pd.DataFrame(index=["g0", "g1", "g2"]))


def register(field, adata, state=None):
    """Register, or transfer a state; return the codes and the new state."""
    made = field.register_field(adata) if state is None else field.transfer_field(state, adata)
    return adata.obs[field.attr_key].to_numpy(), made


def test_conditions_become_whole_numbers_and_a_table():
    adata = screen(["B+A", "control", "A", "A+B", "control"], dose=["2+1", "0", "1", "1+2", "0"])
    field = PerturbationField(KEYS)
    codes, state = register(field, adata)
    assert codes.dtype == np.int64
    assert codes[1] == codes[4] == 0
    assert codes[0] == codes[3]
    table = ConditionTable.from_dict(state["table"])
    assert table.conditions[codes[0]] == Condition.parse("A+B", dose="1+2")
    assert field.get_summary_stats(state) == {"n_conditions": 3}
    assert not field.is_empty


def test_state_is_of_plain_types():
    _, state = register(PerturbationField(KEYS), screen(["control", "A"]))
    _, labels = register(LabelField("batch", ("batch",)), screen(["control"] * 2, batch=[2, 1]))
    for made in (state, labels):
        assert json.loads(json.dumps(made)) == made
        assert pickle.loads(pickle.dumps(made)) == made


def test_new_data_extend_the_conditions_and_old_codes_stay():
    field = PerturbationField(KEYS)
    old, state = register(field, screen(["control", "M", "Q"]))
    before = json.dumps(state)
    codes, grown = register(field, screen(["Q", "A", "A+Q", "M"]), state)
    assert json.dumps(state) == before, "the state of training is not changed"
    assert codes[0] == old[2]
    assert codes[3] == old[1]
    assert sorted(codes[1:3]) == [3, 4]
    table = ConditionTable.from_dict(grown["table"])
    assert table.conditions[:3] == ConditionTable.from_dict(state["table"]).conditions
    assert [table.conditions[c].format("control", "+") for c in codes] == ["Q", "A", "A+Q", "M"]


def test_new_data_need_no_control_but_a_screen_does():
    field = PerturbationField(KEYS)
    with pytest.raises(SchemaError, match=r"No control cell.*'A', 'B'.*control="):
        register(field, screen(["A", "B"]))
    _, state = register(field, screen(["control", "A"]))
    codes, _ = register(field, screen(["A", "A"]), state)
    assert codes.tolist() == [1, 1]


def test_missing_columns_are_named():
    field = PerturbationField(ScreenKeys("guide", dose="mg"))
    with pytest.raises(SchemaError, match=r"\['guide', 'mg'\].*\['dose', 'perturbation'\]"):
        register(field, screen(["control"]))


def test_labels_are_sorted_and_new_ones_come_after():
    field = LabelField("batch", ("batch",))
    codes, state = register(field, screen(["control"] * 3, batch=["b2", "b10", "b2"]))
    assert codes.tolist() == [1, 0, 1]
    codes, grown = register(field, screen(["control"] * 4, batch=["a", "b2", "z", "b10"]), state)
    assert codes.tolist() == [2, 1, 3, 0]
    assert grown["levels"] == [["b10"], ["b2"], ["a"], ["z"]]
    assert field.get_summary_stats(grown) == {"n_batch": 4}
    assert state["levels"] == [["b10"], ["b2"]]


def test_labels_of_several_columns_are_told_apart():
    columns = {"type": ["T", "T", "B", "T"], "donor": ["1", "2", "1", "1"]}
    codes, state = register(LabelField("context", ("type", "donor")), screen(["c"] * 4, **columns))
    assert codes.tolist() == [1, 2, 0, 1]
    assert state["levels"] == [["B", "1"], ["T", "1"], ["T", "2"]]
    # Joined labels would be the same: "a" + "b1" and "ab" + "1".
    columns = {"type": ["a", "ab"], "donor": ["b1", "1"]}
    codes, _ = register(LabelField("context", ("type", "donor")), screen(["c"] * 2, **columns))
    assert len(set(codes)) == 2


@pytest.mark.parametrize(
    "labels",
    [
        pd.Categorical(["7", "3", "7"], categories=["7", "3", "unused"]),
        [7, 3, 7],
        ["7", "3", "7"],
        [7.0, 3.0, 7.0],
        pd.array([7, 3, 7], dtype="Int64"),
        pd.Categorical([7.0, 3.0, 7.0]),
    ],
    ids=["categorical", "int", "str", "float", "nullable", "categorical of float"],
)
def test_kind_of_labels_does_not_matter(labels):
    codes, state = register(LabelField("batch", ("batch",)), screen(["c"] * 3, batch=labels))
    assert codes.tolist() == [1, 0, 1]
    assert state["levels"] == [["3"], ["7"]]


def test_without_columns_there_is_one_label():
    field = LabelField("context", ())
    codes, state = register(field, screen(["c"] * 3))
    assert codes.tolist() == [0, 0, 0]
    assert field.get_summary_stats(state) == {"n_context": 1}
    codes, again = register(field, screen(["c"] * 2), state)
    assert codes.tolist() == [0, 0]
    assert again == state


def test_missing_labels_are_counted():
    field = LabelField("batch", ("batch",))
    with pytest.raises(SchemaError, match=r"obs\['batch'\] has 2 missing labels"):
        register(field, screen(["c"] * 3, batch=["a", None, np.nan]))
    with pytest.raises(SchemaError, match=r"'batch' is not in adata.obs, which has \['dose'"):
        register(field, screen(["c"]))


def test_codes_agree_with_those_of_pandas():
    random = np.random.default_rng(0)
    obs = pd.DataFrame(random.integers(0, 4, (300, 2)), columns=["a", "b"])
    codes, levels = encode_labels(obs, ("a", "b"), [])
    assert [levels[c] for c in codes] == list(obs.astype(str).itertuples(index=False, name=None))
    assert len(levels) == len(obs.drop_duplicates())


def test_library_sizes_must_be_positive_numbers():
    field = LibraryField("library", "size")
    sizes = ["10", "0", "-1", "inf", "nan", "many"]
    with pytest.raises(SchemaError, match=r"obs\['size'\] is not positive in 5 cells"):
        field.register_field(screen(["c"] * 6, size=sizes))
    with pytest.raises(SchemaError, match="'size' is not in"):
        field.validate_field(screen(["c"]))
    state = field.register_field(screen(["c"] * 2, size=[3, 2.5]))
    assert field.transfer_field(state, screen(["c"], size=[1])) == {}
    with pytest.raises(SchemaError, match="not positive in 1 cells"):
        field.transfer_field(state, screen(["c"], size=[0]))
    assert (field.is_empty, LibraryField("library", None).is_empty) == (False, True)


def test_counts_keep_the_order_of_genes():
    field = CountsField(None)
    adata = screen(["c"] * 3)
    before = adata.X.copy()
    state = field.register_field(adata)
    assert list(state["column_names"]) == ["g0", "g1", "g2"]
    assert (before != adata.X).nnz == 0
    assert field.transfer_field(state, screen(["c"])) is not None
    with pytest.raises(SchemaError, match="order differs"):
        field.transfer_field(state, screen(["c"])[:, ::-1].copy())
    with pytest.raises(SchemaError, match=r"1 of 3 are missing, e.g. \['g2'\]"):
        field.transfer_field(state, screen(["c"])[:, :2].copy())
    other = screen(["c"])
    other.X = other.X + 0.5 * (other.X > 0)
    with pytest.raises(SchemaError, match="not whole"):
        field.transfer_field(state, other)


def test_counts_of_a_layer_are_checked_and_not_x():
    adata = screen(["c"] * 3)
    adata.layers["counts"], adata.X = adata.X.copy(), adata.X.log1p()
    CountsField("counts").register_field(adata)
    with pytest.raises(SchemaError, match=r"adata\.X has .*layer='counts'"):
        CountsField(None).register_field(adata)
    with pytest.raises(SchemaError, match=r"'raw' was not found; the layers are \['counts'\]"):
        CountsField("raw").register_field(adata)
