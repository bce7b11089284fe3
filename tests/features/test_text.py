"""Vectors of texts."""

from __future__ import annotations

import gzip
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scvi_perturb._core import SchemaError
from scvi_perturb.features import text_features

TEXTS = {
    "JAK2": "A tyrosine kinase of cytokine receptors.",
    "TYK2": "A tyrosine kinase that binds cytokine receptors.",
    "MYC": "A transcription factor of the cell cycle.",
    "E2F1": "This transcription factor controls the cell cycle.",
}


def test_texts_that_say_alike_things_are_near():
    table = text_features(TEXTS, n_components=3)
    likeness = table.to_numpy() @ table.to_numpy().T
    np.testing.assert_allclose(np.diagonal(likeness), 1.0)
    assert min(likeness[0, 1], likeness[2, 3]) > 0.5
    assert np.abs(likeness[:2, 2:]).max() < 0.5
    pd.testing.assert_frame_equal(table, text_features(TEXTS, n_components=3))


def test_names_without_a_text_are_missing(tmp_path):
    texts = TEXTS | {"NONE": "", "ALONE": "xylophone"}
    path = tmp_path / "summaries.json.gz"
    path.write_bytes(gzip.compress(json.dumps(texts).encode()))
    with pytest.warns(UserWarning, match="2 of 6 names have no text.*'ALONE', 'NONE'"):
        table = text_features(path)
    assert set(table.index) == set(TEXTS)
    assert table.attrs["provenance"]["model"] == "tf-idf"


def test_a_table_of_texts_is_read(tmp_path):
    path = tmp_path / "summaries.tsv"
    pd.DataFrame({"gene": list(TEXTS), "summary": list(TEXTS.values())}).to_csv(
        path, sep="\t", index=False
    )
    pd.testing.assert_frame_equal(text_features(path), text_features(TEXTS))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"A": "alone"}, "There are 1 texts"),
        ({"A": "one thing", "B": "another matter"}, "No word counts"),
        (pd.Series(["x", "y"], index=["A", "A"]), "Names come twice: 'A'"),
        (pd.Series([3, "y"], index=["A", "B"]), "Not text: 'A'"),
    ],
)
def test_texts_that_cannot_be_used_are_refused(texts, message):
    with pytest.raises(SchemaError, match=message):
        text_features(texts)


def test_missing_texts_of_a_mapping_have_no_row():
    with pytest.warns(UserWarning, match="2 of .* names have no text.*'none', 'not'"):
        table = text_features(TEXTS | {"none": None, "not": float("nan")})
    pd.testing.assert_frame_equal(table, text_features(TEXTS))


def test_a_sentence_model_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ImportError, match=r"scvi-perturb\[text\]"):
        text_features(TEXTS, model="all-MiniLM-L6-v2")


def test_a_sentence_model_tells_what_shares_no_word(tmp_path):
    pytest.importorskip("sentence_transformers", reason="the extra text is not installed")
    shipped = pytest.importorskip("all_minilm_l6_v2", reason="no sentence model is installed")
    with zipfile.ZipFile(Path(shipped.__file__).parent / "model.zip") as file:
        file.extractall(tmp_path)
    model = next(tmp_path.rglob("modules.json")).parent
    texts = {"A": "a protein that copies DNA", "B": "enzyme of genome replication", "C": "a sweet"}
    table = text_features(texts, model=str(model))
    likeness = table.to_numpy() @ table.to_numpy().T
    np.testing.assert_allclose(np.diagonal(likeness), 1.0)
    assert likeness[0, 1] > likeness[0, 2]
    assert table.attrs["provenance"]["model"] == str(model)
