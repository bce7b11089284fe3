"""Raw counts are told from everything else, on every kind of matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

from scvi_perturb._core import SchemaError
from scvi_perturb.data.reader import check_raw_counts, holds_counts, other_matrices

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

N_CELLS, N_GENES = 60, 12


def _counts() -> np.ndarray:
    return np.random.default_rng(0).poisson(1.0, (N_CELLS, N_GENES)).astype(np.float32)


def _backed(kind: Callable[[np.ndarray], Any], values: np.ndarray, path: Path) -> Any:
    ad.AnnData(kind(values)).write_h5ad(path / "x.h5ad")
    return ad.read_h5ad(path / "x.h5ad", backed="r").X


def _make(kind: str, values: np.ndarray, path: Path) -> Any:
    in_memory: dict[str, Callable[[np.ndarray], Any]] = {
        "dense": np.asarray,
        "csr": sparse.csr_matrix,
        "csc": sparse.csc_matrix,
        "csr_array": sparse.csr_array,
        "lil": sparse.lil_matrix,
    }
    if kind.startswith("backed_"):
        return _backed(in_memory[kind.removeprefix("backed_")], values, path)
    return in_memory[kind](values)


KINDS = ["dense", "csr", "csc", "csr_array", "lil", "backed_dense", "backed_csr", "backed_csc"]


@pytest.mark.parametrize("kind", KINDS)
def test_counts_pass_on_every_kind_of_matrix(kind: str, tmp_path: Path) -> None:
    X = _make(kind, _counts(), tmp_path)
    check_raw_counts(X, where="adata.X")
    assert holds_counts(X)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (np.log1p, "not whole .* looks log-normalised"),
        (lambda x: x * 0.7 + 100 * (x > 0), "not whole .* looks normalised"),
        (lambda x: x - 2, r"negative values \(lowest found -2\);"),
        (lambda x: (x - x.mean()) / x.std(), "negative values .* looks scaled"),
        (lambda x: np.where(x > 2, np.nan, x), "NaN or infinite"),
        (lambda x: np.where(x > 2, np.inf, x), "NaN or infinite"),
    ],
    ids=["log", "normalised", "negative", "scaled", "nan", "inf"],
)
def test_anything_else_is_named(
    kind: str, spoil: Callable[[np.ndarray], np.ndarray], message: str, tmp_path: Path
) -> None:
    X = _make(kind, spoil(_counts()), tmp_path)
    with pytest.raises(SchemaError, match=f"adata.X .*{message}"):
        check_raw_counts(X, where="adata.X")
    assert not holds_counts(X)


def test_the_layer_that_holds_counts_is_named() -> None:
    counts = _counts()
    layers = {"scaled": counts - 3.5, "counts": sparse.csr_matrix(counts)}
    with pytest.raises(SchemaError, match="pass layer='counts'"):
        check_raw_counts(np.log1p(counts), where="adata.X", layers=layers)
    with pytest.raises(SchemaError, match=r"pass layer=None \(adata.X\)"):
        check_raw_counts(np.log1p(counts), where="layers['log']", layers={"X": counts})
    with pytest.raises(SchemaError, match=r"None of the other matrices \(scaled\)"):
        check_raw_counts(np.log1p(counts), where="adata.X", layers={"scaled": counts - 3.5})


@pytest.mark.parametrize("dtype", [np.int64, np.uint16, bool, np.float64])
def test_every_number_type_is_taken(dtype: type) -> None:
    assert holds_counts(_counts().astype(dtype))


def test_none_text_and_negative_integers_are_refused() -> None:
    assert not holds_counts(-_counts().astype(int))
    with pytest.raises(SchemaError, match="is empty"):
        check_raw_counts(None, where="adata.X")
    with pytest.raises(SchemaError, match="not numbers"):
        check_raw_counts(np.array([["a", "b"]]), where="adata.X")


def test_nothing_stored_and_no_cells_pass() -> None:
    assert holds_counts(sparse.csr_matrix((5, 4)))
    assert holds_counts(np.zeros((0, 4)))


def test_the_sample_is_bounded_and_reaches_the_end() -> None:
    class Counting:
        """A matrix that counts the rows it is asked for."""

        shape = (10_000_000, 3)
        rows = 0

        def __getitem__(self, rows: slice) -> np.ndarray:
            block = np.ones((rows.stop - rows.start, 3))
            self.rows += len(block)
            return block + 0.5 if rows.stop == self.shape[0] else block

    matrix = Counting()
    assert not holds_counts(matrix)
    assert matrix.rows <= 512


@pytest.mark.parametrize("kind", ["dense", "csr", "csc", "backed_dense", "backed_csr"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_found_wherever_it_lies(kind: str, value: float, tmp_path: Path):
    values = np.ones((4000, 200), np.float32)
    values[2_345, 111] = value
    X = _make(kind, values, tmp_path)
    with pytest.raises(SchemaError, match=r"NaN or infinite values \(1 of"):
        check_raw_counts(X, where="adata.X")


def test_counts_in_raw_are_named_with_the_line_that_takes_them() -> None:
    adata = ad.AnnData(_counts())
    adata.raw = adata.copy()
    adata.X = np.log1p(adata.X)
    with pytest.raises(SchemaError, match=r"Counts are in adata\.raw: ") as raised:
        check_raw_counts(adata.X, where="adata.X", layers=other_matrices(adata))
    line = str(raised.value).split("Counts are in adata.raw: ")[1].split(", and pass")[0]
    exec(line, {"adata": adata})
    check_raw_counts(adata.layers["counts"], where="layer")
    del adata.layers["counts"]
    adata.var_names = [f"other{i}" for i in range(N_GENES)]
    with pytest.raises(SchemaError, match=r"adata = adata.raw.to_adata\(\)"):
        check_raw_counts(adata.X, where="adata.X", layers=other_matrices(adata[:, :5].copy()))
    adata.layers["raw"] = adata.X + 0.5
    assert [*other_matrices(adata)] == ["X", "raw", "adata.raw, other genes"]
