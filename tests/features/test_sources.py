"""Vectors from what people have."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scvi_perturb._core import SchemaError
from scvi_perturb.features import PerturbationFeatures

VECTORS = {"MYC": [1.0, 2.0], "NA": [3.0, 4.0], "JAK2": [5.0, 6.0]}
TABLE = pd.DataFrame.from_dict(VECTORS, orient="index")


def of_anndata(where):
    adata = anndata.AnnData(np.zeros((3, 3)))
    adata.obs_names = adata.var_names = list(VECTORS)
    values = TABLE.to_numpy()
    getattr(adata, where)["known"] = sparse.csr_matrix(values) if where == "varm" else values
    return adata


def written(folder, kind):
    path = folder / f"vectors.{kind}"
    if kind == "npz":
        np.savez(path, **{name: np.array(row) for name, row in VECTORS.items()})
    elif kind == "matrix.npz":
        np.savez(path, names=np.array(list(VECTORS)), values=TABLE.to_numpy())
    elif kind == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
        TABLE.set_axis(["a", "b"], axis=1).to_parquet(path)
    else:
        separator = "\t" if kind.startswith("tsv") else ","
        TABLE.to_csv(path, sep=separator, index_label="gene")
    return path


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "tsv", "npz", "matrix.npz", "parquet"])
def test_files_of_vectors_are_read(tmp_path, kind):
    path = written(tmp_path, kind)
    for given in (path, str(path)):
        features = PerturbationFeatures({"known": given})
        assert features.names == ("JAK2", "MYC", "NA")
        np.testing.assert_array_equal(features.frame("known"), TABLE.loc[list(features.names)])
        assert features.provenance["known"]["source"] == path.name


@pytest.mark.parametrize(
    "source", [VECTORS, TABLE, of_anndata("obsm"), of_anndata("varm")],
    ids=["dict", "table", "obsm", "varm"],
)  # fmt: skip
def test_vectors_in_memory_are_read(source):
    features = PerturbationFeatures({"known": source})
    np.testing.assert_array_equal(features.frame("known"), TABLE.loc[list(features.names)])


def test_gaps_of_a_file_are_missing_not_zero(tmp_path):
    path = tmp_path / "gaps.csv"
    path.write_text("name,a,b\nMYC,1,2\nNA,NA,\nJAK2,5,6\n")
    features = PerturbationFeatures({"known": path})
    assert features.names == ("JAK2", "MYC")


def bad_npz(folder, **arrays):
    path = folder / "bad.npz"
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: {"A": [1.0], "B": [1.0, 2.0]}, "vectors of one length"),
        (lambda _: {"A": "text"}, "expected a vector of numbers"),
        (lambda _: {}, "found shapes none"),
        (lambda _: anndata.AnnData(np.zeros((1, 1))), "read from `obsm` or `varm`"),
        (lambda folder: folder / "vectors.xlsx", "read from .csv, .tsv, .npz or .parquet"),
        (lambda folder: bad_npz(folder, names=np.array(["A"]), x=np.eye(2)), "an array of names"),
        (lambda folder: bad_npz(folder, x=np.array([{}], object)), "plain arrays"),
        (lambda _: {"A": [1.0, 2.0], "B": [1.0, 2.0]}, "the same for all 2 names"),
        (lambda _: {"A": [1.0, np.inf]}, "infinite for"),
        (lambda _: {"A": [1.0, np.nan]}, "partly missing for"),
    ],
)
def test_sources_that_cannot_be_used_are_refused(tmp_path, make, message):
    with pytest.raises(SchemaError, match=message):
        PerturbationFeatures({"known": make(tmp_path)})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("one.csv", "name\nMYC\n", "has one column"),
        ("other.csv", "name;a\nMYC;1\n", "with tabs, commas or blanks between"),
        ("short.csv", "a,b\nMYC,1,2\nJAK2,3,4\n", "more fields than the header"),
        ("text.csv", "name,a\nMYC,high\nJAK2,low\n", "not numeric"),
        ("twice.csv", "name,a\nMYC,1\nMYC,2\n", "'MYC'.*come twice"),
        ("ragged.csv", 'name,a\nMYC,"1\n', "is not a table"),
        ("broken.parquet", "no", "not a table in Parquet|pyarrow"),
    ],
)
def test_files_that_cannot_be_used_are_refused(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises((SchemaError, ImportError), match=message):
        PerturbationFeatures({"known": path})


def test_what_a_user_wrote_into_attrs_is_no_provenance():
    table = TABLE.copy()
    table.attrs["provenance"] = "our laboratory"
    features = PerturbationFeatures({"known": table})
    assert features.provenance == {"known": {"made_by": "table", "source": "table"}}
    assert table.attrs == {"provenance": "our laboratory"}


def test_parquet_without_its_reader_says_what_to_install(tmp_path, monkeypatch):
    def absent(*_):
        raise ImportError

    monkeypatch.setattr(pd, "read_parquet", absent)
    (tmp_path / "x.parquet").write_bytes(b"x")
    with pytest.raises(ImportError, match="pip install pyarrow"):
        PerturbationFeatures({"known": tmp_path / "x.parquet"})
