"""Values as JSON and arrays: what comes back is what was given."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy import sparse

from scvi_perturb import DiffusionConfig, SchemaError
from scvi_perturb._state import digest_of, from_bytes, read_sealed, sealed, to_bytes
from scvi_perturb.data.condition import Component, Condition
from scvi_perturb.data.request import RequestRow
from scvi_perturb.predictors import KernelRidge


def again(value):
    return from_bytes(to_bytes(value), where="here")


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        10**30,
        -0.1,
        math.inf,
        "naïve \N{GREEK SMALL LETTER MU}\x00",
        [1, [2.5, None], {}],
        (1, ("a",), ()),
        {"a": 1, "b": {"c": (1, 2)}},
        {1: "int", (1, "b"): "tuple", "~": "text", None: 0},
        {1, 2},
        frozenset({("a", 1)}),
        Condition((Component("A", 2.0),), 24.0),
        RequestRow(Condition(), ("T", None)),
        DiffusionConfig(width=8),
    ],
    ids=repr,
)
def test_plain_values(value):
    found = again(value)
    assert found == value
    assert type(found) is type(value)


def test_numbers_that_are_none():
    assert math.isnan(again(math.nan))
    assert again({"a": [math.nan, -math.inf]})["a"][1] == -math.inf


@pytest.mark.parametrize("kind", ["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_arrays_of_every_kind(kind):
    for shape in ((), (0,), (3, 0), (2, 3)):
        value = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(kind)
        found = again(value)
        assert found.dtype == value.dtype
        np.testing.assert_array_equal(found, value, strict=True)
    turned = np.arange(6, dtype=">i4").reshape(2, 3).T[::-1]
    np.testing.assert_array_equal(again(turned), turned)
    scalar = np.dtype(kind).type(1)
    assert again(scalar) == scalar
    assert type(again(scalar)) is type(scalar)


def test_arrays_of_text_and_objects():
    for value in (np.array(["a", "bc"]), np.array([["a", None], [1.5, "c"]], dtype=object)):
        found = again(value)
        assert found.dtype == value.dtype
        np.testing.assert_array_equal(found, value)


def test_tensors_and_sparse_matrices():
    value = torch.arange(6.0).reshape(2, 3).T
    assert torch.equal(again(value), value)
    assert again(torch.zeros(2, dtype=torch.bfloat16)).dtype == torch.bfloat16
    for made in (sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array, sparse.csc_array):
        matrix = made(np.eye(3, 4))
        found = again(matrix)
        assert type(found) is type(matrix)
        np.testing.assert_array_equal(found.toarray(), matrix.toarray())


def test_tables():
    frame = pd.DataFrame(
        {
            "label": pd.Categorical(["b", None, "a"], categories=["b", "a", "c"]),
            "text": ["x", None, "z"],
            "number": [1.5, np.nan, 3],
            "count": np.array([1, 2, 3], np.int32),
            "truth": [True, False, True],
            "maybe": pd.array([1, None, 3], dtype="Int64"),
        },
        index=pd.Index(["i", "j", "k"], name="cell"),
    )
    pd.testing.assert_frame_equal(again(frame), frame)
    pd.testing.assert_frame_equal(again(frame.T), frame.T)
    pd.testing.assert_frame_equal(again(pd.DataFrame()), pd.DataFrame(), check_index_type=False)
    history = pd.DataFrame({"loss": [2.0, 1.0]}, index=pd.RangeIndex(2, name="epoch"))
    pd.testing.assert_frame_equal(again(history), history, check_index_type=False)
    pd.testing.assert_series_equal(again(frame["text"]), frame["text"])
    adata = AnnData(sparse.csr_matrix(np.eye(3)), obs=frame, layers={"lfc": np.ones((3, 3))})
    found = again(adata)
    np.testing.assert_array_equal(found.X.toarray(), np.eye(3))
    pd.testing.assert_frame_equal(found.obs, adata.obs)
    np.testing.assert_array_equal(found.layers["lfc"], adata.layers["lfc"])


def test_what_is_shared_is_written_once():
    array = np.ones(10_000)
    shared = Condition((Component("A"),))
    found = again({"one": array, "two": [array], shared: 1, "again": (shared,)})
    assert found["one"] is found["two"][0]
    assert next(key for key in found if isinstance(key, Condition)) is found["again"][0]
    assert len(to_bytes([array] * 50)) < 90_000


def test_what_has_no_form_is_named():
    class Own(KernelRidge):
        pass

    assert type(again(Own())) is Own, "derived from a predictor of ours"
    for value, told in (
        ({"a": {"b": [1, lambda: 0]}}, r"a\.b\[1\] holds a builtins\.function"),
        ({"a": object()}, r"a holds a builtins\.object"),
        ({"when": np.array(["2020-01-01"], "M8[D]")}, "when holds a datetime64"),
        ({"a": 1j}, "builtins.complex"),
    ):
        with pytest.raises(TypeError, match=told):
            to_bytes(value)
    circle: list[object] = []
    ring = {1: circle}
    circle.append(ring)
    with pytest.raises(TypeError, match="refers to itself"):
        to_bytes(ring)


def test_every_bit_of_a_file_counts():
    content = to_bytes({"a": np.arange(3), "b": "µ"})
    text = sealed({"a": 1.5, "b": ["µ", {}]})
    assert read_sealed(text, where="here") == {"a": 1.5, "b": ["µ", {}]}
    for of, read in ((content, from_bytes), (text.encode(), _read_text)):
        for place in range(8 * len(of)):
            changed = bytearray(of)
            changed[place // 8] ^= 1 << place % 8
            with pytest.raises(SchemaError, match="here"):
                read(bytes(changed), where="here")


def _read_text(content, where):
    return read_sealed(content.decode("utf-8", errors="replace"), where=where)


def test_digests_tell_values_apart():
    frame = pd.DataFrame({"a": [1.0, 2.0]})
    assert digest_of(frame) == digest_of(frame.copy())
    assert digest_of(frame) != digest_of(frame + 1)
    assert digest_of(object()) == "builtins.object"
