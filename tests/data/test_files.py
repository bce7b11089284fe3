"""Files that can be read, and what is said of those that cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from anndata import AnnData

from scvi_perturb import SchemaError
from scvi_perturb.data import load_dataset, read_screen

if TYPE_CHECKING:
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
