"""Fields of metadata: labels, numbers, what is missing; screens without perturbations or counts."""

from __future__ import annotations

import json
import logging

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse
from scvi.data import AnnDataManager

from scvi_perturb._core import SchemaError
from scvi_perturb.data import ConditionTable, ScreenKeys
from scvi_perturb.data.fields import (
    CountsField,
    LabelField,
    MetadataField,
    NoPerturbationField,
    PerturbationField,
    ValuesField,
    encode_metadata,
    is_numeric,
)
from scvi_perturb.data.reader import ScreenReader

LOGGER = "scvi_perturb.data.fields"


def screen(n=3, x=None, **columns):
    obs = pd.DataFrame(columns, index=[f"c{i}" for i in range(n)])
    values = np.arange(3.0 * n, dtype=np.float32).reshape(n, 3) if x is None else x
    return AnnData(values, obs=obs, var=pd.DataFrame(index=["g0", "g1", "g2"]))


def register(adata, state=None, column="tissue"):
    """Register, or transfer a state; return the values and the new state."""
    field = MetadataField(column)
    made = field.register_field(adata) if state is None else field.transfer_field(state, adata)
    return adata.obs[field.attr_key].to_numpy(), made


def test_labels_become_their_place_and_missing_ones_are_marked():
    adata = screen(5, tissue=["lung", None, "gut", np.nan, "lung"])
    values, state = register(adata)
    assert values.dtype == np.int64
    assert values.tolist() == [1, -1, 0, -1, 1]
    assert state == {"column": "tissue", "levels": ["gut", "lung"]}
    assert json.loads(json.dumps(state)) == state
    assert adata.obs["tissue"].isna().sum() == 2, "nothing is filled in"


def test_numbers_stay_numbers():
    values, state = register(screen(3, tissue=[1.5, np.nan, 3.0]))
    assert values.dtype == np.float64
    np.testing.assert_array_equal(values, [1.5, np.nan, 3.0])
    assert state["levels"] is None
    assert MetadataField("tissue").get_summary_stats(state) == {}


@pytest.mark.parametrize(
    ("column", "numeric"),
    [
        ([1, 2], True),
        ([1.0, np.nan], True),
        (pd.array([1, None], dtype="Int64"), True),
        ([True, False], False),
        (pd.array([True, None], dtype="boolean"), False),
        (["1", "2"], False),
        (pd.Categorical([1, 2]), False),
        (pd.Categorical(["a", None]), False),
    ],
    ids=["int", "float", "nullable", "bool", "nullable bool", "text", "categories", "missing"],
)
def test_numbers_are_told_by_their_type(column, numeric):
    adata = screen(2, tissue=column)
    assert is_numeric(adata.obs["tissue"]) == numeric
    values, state = register(adata)
    assert (state["levels"] is None) == numeric
    missing = adata.obs["tissue"].isna().to_numpy()
    assert ((np.isnan(values) if numeric else values == -1) == missing).all()


def test_kind_of_labels_does_not_matter():
    for labels in ([7, 3, 7], [7.0, 3.0, 7.0], ["7", "3", "7"]):
        values, state = register(screen(3, tissue=pd.Categorical(labels)))
        assert values.tolist() == [1, 0, 1]
        assert state["levels"] == ["3", "7"]


def test_labels_never_registered_are_missing_and_named(caplog):
    _, state = register(screen(2, tissue=["gut", "lung"]))
    with caplog.at_level(logging.WARNING, logger=LOGGER):
        values, again = register(screen(3, tissue=["skin", "lung", None]), state)
    assert values.tolist() == [-1, 1, -1]
    assert again == state
    assert "obs['tissue'] has labels that were not registered" in caplog.text
    assert caplog.text.rstrip().endswith("skin.")


@pytest.mark.parametrize("column", [["gut", "lung"], [1.0, 2.0]], ids=["labels", "numbers"])
def test_an_absent_column_is_missing_and_named(column, caplog):
    _, state = register(screen(2, tissue=column))
    with caplog.at_level(logging.WARNING, logger=LOGGER):
        values, again = register(screen(3), state)
    expected = [-1] * 3 if state["levels"] else [np.nan] * 3
    np.testing.assert_array_equal(values, expected)
    assert again == state
    assert "obs has no column 'tissue': it counts as missing." in caplog.text


def test_what_is_not_expected_is_named():
    with pytest.raises(SchemaError, match=r"'tissue' is not in adata.obs, which has \['age'\]"):
        register(screen(2, age=[1, 2]))
    with pytest.raises(SchemaError, match=r"obs\['tissue'\] has no label at all"):
        register(screen(2, tissue=pd.Series([None, None], dtype=object).to_numpy()))
    _, state = register(screen(2, tissue=[1.0, 2.0]))
    with pytest.raises(SchemaError, match=r"obs\['tissue'\] held numbers in training, but now"):
        register(screen(2, tissue=["1", "many"]), state)
    values, _ = register(screen(2, tissue=["1", "2.5"]), state)
    assert values.tolist() == [1.0, 2.5]


def test_codes_agree_with_those_of_pandas():
    random = np.random.default_rng(0)
    column = pd.Series(random.choice(["b", "a", "c"], 200), name="tissue").mask(
        random.random(200) < 0.2
    )
    expected = pd.Categorical(column, categories=["a", "b", "c"]).codes
    assert (encode_metadata(column, ["a", "b", "c"]) == expected).all()


def test_reader_gives_metadata_of_cells():
    adata = screen(4, perturbation=["control", "A"] * 2, age=[1.0, np.nan, 3.0, 4.0],
                   tissue=["gut", None, "lung", "gut"])  # fmt: skip
    fields = [
        CountsField(None), PerturbationField(ScreenKeys("perturbation")),
        LabelField("context", ()), LabelField("batch", ()), MetadataField("age"),
        MetadataField("tissue"),
    ]  # fmt: skip
    manager = AnnDataManager(fields=fields, setup_method_args={})
    manager.register_fields(adata)
    batch = ScreenReader(manager)[[3, 1]]
    assert batch["metadata_tissue"].tolist() == [0, -1]
    assert batch["metadata_age"].dtype.is_floating_point
    np.testing.assert_array_equal(batch["metadata_age"].numpy(), [4.0, np.nan])


def test_without_perturbations_every_cell_is_a_control():
    field = NoPerturbationField(ScreenKeys("perturbation"))
    adata = screen(3)
    state = field.register_field(adata)
    assert adata.obs[field.attr_key].tolist() == [0, 0, 0]
    assert len(ConditionTable.from_dict(state["table"])) == 1
    other = screen(2, perturbation=["A", "B"])
    assert field.transfer_field(state, other) == state
    assert other.obs[field.attr_key].tolist() == [0, 0]


def test_control_is_required_unless_told_otherwise():
    keys, adata = ScreenKeys("perturbation"), screen(2, perturbation=["A", "B"])
    with pytest.raises(SchemaError, match="No control cell"):
        PerturbationField(keys).register_field(adata)
    field = PerturbationField(keys, require_control=False)
    state = field.register_field(adata)
    assert adata.obs[field.attr_key].tolist() == [1, 2]
    assert field.get_summary_stats(state) == {"n_conditions": 3}


@pytest.mark.parametrize("make", [np.asarray, sparse.csr_matrix], ids=["dense", "sparse"])
def test_real_values_are_accepted_if_finite(make):
    values = np.array([[-0.5, 0.0, 2.0], [1.0, -3.0, 0.0]], dtype=np.float32)
    adata = screen(2, x=make(values))
    ValuesField(None).register_field(adata)
    bad = values.copy()
    bad[0, 2], bad[1, 1] = np.nan, np.inf
    with pytest.raises(SchemaError, match="2 values are not finite"):
        ValuesField(None).register_field(screen(2, x=make(bad)))
    adata.layers["z"] = adata.X
    ValuesField("z").register_field(adata)
    with pytest.raises(SchemaError, match=r"'t' was not found; the layers are \['z'\]"):
        ValuesField("t").register_field(adata)
    with pytest.raises(SchemaError, match=r"negative|whole"):
        CountsField(None).register_field(adata)


def test_values_of_other_genes_are_refused():
    state = ValuesField(None).register_field(screen(2))
    with pytest.raises(SchemaError, match="order differs"):
        ValuesField(None).transfer_field(state, screen(2)[:, ::-1].copy())
