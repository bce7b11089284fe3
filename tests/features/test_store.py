"""Features of perturbations: gaps, checks, neighbours."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scvi_perturb._core import SchemaError, UnknownPerturbationError
from scvi_perturb.features import PerturbationFeatures

NAMES = st.lists(st.sampled_from("ABCDEFGH"), unique=True, min_size=1, max_size=6)


def table(names, n_columns=3, seed=0, prefix="f"):
    values = np.random.default_rng(seed).normal(size=(len(names), n_columns))
    return pd.DataFrame(
        values, index=list(names), columns=[f"{prefix}{i}" for i in range(n_columns)]
    )


@pytest.fixture
def features():
    with_gap = table("ABCX", n_columns=2, seed=1)
    with_gap.loc["C"] = np.nan
    return PerturbationFeatures({"sets": table("ABD"), "text": with_gap})


@given(NAMES, NAMES, st.lists(st.sampled_from("ABCDEFGHZ"), max_size=10))
def test_table_gives_values_where_there_are_any_and_marks_the_rest(first, second, asked):
    frames = {"a": table(first), "b": table(second, n_columns=2, seed=1)}
    features = PerturbationFeatures(frames)
    assert features.names == tuple(sorted({*first, *second}))
    for key, frame in frames.items():
        values, mask = features.table(asked)[key]
        assert values.shape == (len(asked), frame.shape[1])
        assert values.dtype == np.float32
        assert mask.tolist() == [name in frame.index for name in asked]
        expected = frame.reindex(asked).fillna(0.0).to_numpy(np.float32)
        np.testing.assert_array_equal(values, expected)


def test_rows_of_nan_are_missing(features):
    assert features.names == ("A", "B", "D", "X")
    assert "C" not in features
    assert not features.has("D", "text")
    assert features.has("D", "sets")
    assert features.has("X")
    assert features.dims == {"sets": 3, "text": 2}
    assert features.modalities == ("sets", "text")
    assert features.columns("text") == ("f0", "f1")
    assert repr(features) == (
        "PerturbationFeatures(4 names; sets: 3 columns, 3 names; text: 2 columns, 3 names)"
    )


def test_does_not_change_with_its_source_nor_otherwise():
    source = table("AB")
    features = PerturbationFeatures({"sets": source})
    before = features.table(["A"])["sets"][0].copy()
    source.loc["A"] = 9.0
    features.table(["A"])["sets"][0][:] = 7.0
    shown = features.frame("sets")
    shown.loc["A"] = 8.0
    np.testing.assert_array_equal(features.table(["A"])["sets"][0], before)
    with pytest.raises(AttributeError, match="does not change"):
        features._names = ()


def test_pickles_and_copies(features):
    for other in (pickle.loads(pickle.dumps(features)), copy.deepcopy(features)):
        assert other == features
        assert other.names == features.names
    assert features != PerturbationFeatures({"sets": table("AB")})


def test_subset(features):
    part = features.subset(["X", "A"])
    assert part.names == ("A", "X")
    np.testing.assert_array_equal(part.table(["X"])["text"][0], features.table(["X"])["text"][0])
    with pytest.raises(UnknownPerturbationError, match="'Q'"):
        features.subset(["A", "Q"])


def test_merge_joins_names_and_modalities(features):
    other = PerturbationFeatures({"sets": table("E", seed=5), "new": table("A", n_columns=1)})
    merged = features.merge(other)
    assert merged.modalities == ("sets", "text", "new")
    assert merged.names == ("A", "B", "D", "E", "X")
    assert merged.subset(features.names).frame("sets").equals(features.frame("sets"))
    assert features.merge(features) == features


def test_merge_refuses_contradictions(features):
    with pytest.raises(SchemaError, match=r"differ for \['A'\]"):
        features.merge(PerturbationFeatures({"sets": table("A", seed=9)}))
    with pytest.raises(SchemaError, match="other columns"):
        features.merge(PerturbationFeatures({"sets": table("E", prefix="g")}))


def test_nearest_is_euclidean_on_scaled_features():
    frame = pd.DataFrame(
        {"x": [0.0, 1.0, 5.0, 2.0], "y": [0.0, 0.0, 0.0, 300.0]}, index=list("ABCD")
    )
    features = PerturbationFeatures({"m": frame})
    scaled = frame / frame.std(ddof=0)
    found = features.nearest("A", ["A", "B", "C", "D", "unknown"], n=3)
    expected = {name: np.sqrt(((scaled.loc[name] - scaled.loc["A"]) ** 2).mean()) for name in "BCD"}
    assert [name for name, _ in found] == sorted(expected, key=expected.get)
    for name, distance in found:
        assert distance == pytest.approx(expected[name], rel=1e-5)


def test_nearest_uses_shared_modalities_only(features):
    found = dict(features.nearest("X", features.names, n=9))
    assert set(found) == {"A", "B"}
    with pytest.raises(UnknownPerturbationError):
        features.nearest("Q", ["A", "B"])


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pd.DataFrame(index=["A"]), "no columns"),
        (pd.DataFrame({"x": ["a"]}, index=["A"]), r"\['x'\] are not numeric"),
        (pd.DataFrame({"x": [1.0, 2.0]}, index=["A", " A"]), r"\['A'\] come twice"),
        (pd.DataFrame({"x": [1.0]}, index=[" "]), "empty"),
        (pd.DataFrame({"x": [1.0]}, index=[None]), "missing name"),
        (pd.DataFrame({"x": [1.0, np.inf]}, index=["A", "B"]), r"infinite for \['B'\]"),
        (pd.DataFrame({"x": [1.0, 1e300]}, index=["A", "B"]), r"infinite for \['B'\]"),
        (pd.DataFrame({"x": [1.0], "y": [np.nan]}, index=["A"]), r"partly missing for \['A'\]"),
        (pd.DataFrame({"x": [np.nan]}, index=["A"]), "no name with values"),
        (pd.DataFrame({"x": [1.0]}, index=[["A"], ["B"]]), "index of 2 levels"),
    ],
)
def test_messages(frame, message):
    with pytest.raises(SchemaError, match=message):
        PerturbationFeatures({"m": frame})


def test_a_modality_is_needed_and_known(features):
    with pytest.raises(SchemaError, match="at least one modality"):
        PerturbationFeatures({})
    with pytest.raises(ValueError, match="'sets', 'text'"):
        features.frame("smiles")


def test_integer_and_boolean_columns_are_numbers():
    frame = pd.DataFrame({"n": [1, 2], "b": [True, False]}, index=[7, 8])
    values, _ = PerturbationFeatures({"m": frame}).table(["7"])["m"]
    assert values.tolist() == [[1.0, 1.0]]


def test_names_of_a_screen_that_match_none_are_refused(features, caplog):
    with pytest.raises(SchemaError, match=r"None of the 2 perturbations.*'a', 'b'.*'A', 'B', 'D'"):
        features.check_covers(["b", "a"])
    assert features.check_covers(["A", "B"]) == 2
    assert not caplog.records
    assert features.check_covers(["A", "b", "B"]) == 2
    assert "1 of 3 perturbations of the screen have no features, such as 'b'" in caplog.text
