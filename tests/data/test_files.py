"""Files that can be read, and what is said of those that cannot."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import mudata
import numpy as np
import pytest
from anndata import AnnData
from mudata import MuData

from scvi_perturb import PerturbDiffusion, SchemaError
from scvi_perturb.data import load_dataset, read_screen, split
from scvi_perturb.pp import harmonize, validate
from scvi_perturb.tl import effects, response_score, score_cells

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

X = np.random.default_rng(0).poisson(1.0, (40, 30)).astype(np.float32)


def _written(folder: Path) -> Path:
    AnnData(X).write_h5ad(folder / "screen.h5ad")
    return folder / "screen.h5ad"


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = _written(tmp_path)
    np.testing.assert_array_equal(read_screen(path).X, X)
    np.testing.assert_array_equal(read_screen(str(path)).X, X)


def _cut(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def _text(path: Path) -> None:
    path.write_text("gene,count\nA,1\n", encoding="utf-8")


@pytest.mark.parametrize("spoil", [_cut, _text, lambda path: path.write_bytes(b"")])
def test_a_spoilt_file_is_named_with_the_reason(spoil, tmp_path: Path) -> None:
    path = _written(tmp_path)
    spoil(path)
    expected = r"screen\.h5ad could not be read as \.h5ad: it may be cut off.*reason given: \w"
    with pytest.raises(SchemaError, match=expected) as raised:
        read_screen(path)
    assert "\n" not in str(raised.value)
    with pytest.raises(SchemaError, match=expected):
        load_dataset("kang2018", path=path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file .*absent\.h5ad"):
        read_screen(tmp_path / "absent.h5ad")


@pytest.mark.filterwarnings("ignore:Writing zarr v2")
def test_a_folder_of_zarr_is_read(tmp_path: Path) -> None:
    AnnData(X).write_zarr(tmp_path / "screen.zarr")
    np.testing.assert_array_equal(read_screen(tmp_path / "screen.zarr").X, X)
    for inside in (tmp_path / "screen.zarr").iterdir():
        shutil.rmtree(inside) if inside.is_dir() else inside.unlink()
    (tmp_path / "screen.zarr" / "zarr.json").write_text("{}")
    with pytest.raises(SchemaError, match="could not be read as zarr"):
        read_screen(tmp_path / "screen.zarr")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("a.h5mu", r'mudata.read_h5mu\(".*a.h5mu"\).mod\["rna"\].write_h5ad\("screen.h5ad"\)'),
        ("a.h5", r'scanpy.read_10x_h5\(".*a.h5"\).write_h5ad'),
        ("a.loom", "read_loom"),
        ("a.csv", "pandas.read_csv"),
        ("a.tsv.gz", r"pandas.read_csv\(.*sep="),
        ("a.rds", "zellkonverter"),
        ("10x/matrix.mtx.gz", r'scanpy.read_10x_mtx\(".*10x"\)'),
        ("10x", r'scanpy.read_10x_mtx\(".*10x"\)'),
    ],
)
def test_other_formats_are_named_with_the_line_that_converts(name, line, tmp_path: Path) -> None:
    (tmp_path / "10x").mkdir()
    (tmp_path / "10x" / "matrix.mtx.gz").write_bytes(b"")
    if not (tmp_path / name).exists():
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(SchemaError, match=line):
        read_screen(tmp_path / name)


#: What is passed beside it is looked at first.
MODEL = object.__new__(PerturbDiffusion)


def in_mudata() -> MuData:
    options = getattr(mudata, "set_options", None)  # mudata before 0.4
    with nullcontext() if options is None else options(pull_on_update=False):
        return MuData({"gex": AnnData(X)})


def verbs() -> dict[str, Callable[[Any], Any]]:
    return {
        "harmonize": harmonize,
        "validate": validate,
        "split": lambda data: split(data, "cells"),
        "setup_anndata": PerturbDiffusion.setup_anndata,
        "effects": effects,
        "score_cells": lambda data: score_cells(MODEL, data),
        "response_score": lambda data: response_score(MODEL, data),
    }


@pytest.mark.parametrize("name", verbs())
@pytest.mark.parametrize(
    ("data", "line"),
    [
        (in_mudata, r"MuData.*mdata.mod\['gex'\]"),
        (lambda: "screen.h5ad", r'anndata.read_h5ad\("screen.h5ad"\)'),
        (lambda: "cells.csv", r"pandas.read_csv\("),
        (lambda: X, r"anndata.AnnData\(X, obs=obs\)"),
        (lambda: None, r"anndata.read_h5ad\(path\)"),
    ],
)
def test_what_is_no_anndata_is_refused_with_what_to_pass(name, data, line) -> None:
    with pytest.raises(TypeError, match=line):
        verbs()[name](data())


def test_mudata_is_set_up_by_its_own_method() -> None:
    with pytest.raises(TypeError, match=r"setup_mudata\(mdata, rna_modality='gex'\)"):
        PerturbDiffusion.setup_anndata(in_mudata())
