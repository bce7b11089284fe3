"""Cells that go to a file as they are drawn."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pytest

from scvi_perturb._compat import layer_names
from scvi_perturb.model.base import draw as _draw
from scvi_perturb.testing import NEW_PAIR, SINGLE, dense
from tests.contract.registry import TRAINED

#: What the tests here are run on.
CASES = TRAINED

ASKED = [SINGLE, NEW_PAIR]


@pytest.fixture
def small_chunks(monkeypatch):
    """Make several chunks of few cells."""
    monkeypatch.setattr(_draw.chunks, "__defaults__", (16,))


def test_file_holds_the_cells_of_the_same_seed(trained, small_chunks):
    in_memory = trained.sample(ASKED, n_samples=25, seed=3)
    path = Path("new folder", "cells.h5ad")
    streamed = trained.sample(ASKED, n_samples=25, seed=3, path=path)
    assert streamed.isbacked
    assert [p.name for p in path.parent.iterdir()] == ["cells.h5ad"]
    streamed.file.close()
    read = anndata.read_h5ad(path)
    np.testing.assert_array_equal(dense(read.X), dense(in_memory.X))
    assert read.X.dtype == in_memory.X.dtype
    assert read.obs_names.tolist() == in_memory.obs_names.tolist()
    assert read.var_names.tolist() == in_memory.var_names.tolist()
    for column in in_memory.obs:
        assert read.obs[column].tolist() == in_memory.obs[column].tolist()
    assert read.uns["scvi_perturb"] == in_memory.uns["scvi_perturb"]


def test_chunks_do_not_change_what_is_seeded(trained, small_chunks):
    again = [dense(trained.sample(ASKED, n_samples=25, seed=3).X) for _ in range(2)]
    np.testing.assert_array_equal(*again)


def test_file_is_in_place_only_when_finished(trained, small_chunks, monkeypatch):
    path = Path("cells.h5ad")
    trained.sample([SINGLE], n_samples=5, path=path).file.close()
    before = path.read_bytes()
    drawn = []

    def fail(*arguments):
        drawn.append(None)
        if len(drawn) == 3:
            msg = "out of power"
            raise OSError(msg)
        return draw(*arguments)

    draw = _draw.draw_matrix
    monkeypatch.setattr(_draw, "draw_matrix", fail)
    with pytest.raises(OSError, match="out of power"):
        trained.sample(ASKED, n_samples=40, path=path)
    assert path.read_bytes() == before
    drawn.clear()
    with pytest.raises(OSError, match="out of power"):
        trained.sample(ASKED, n_samples=40, path="others.h5ad")
    assert not Path("others.h5ad").exists()
    # An interrupted file does not stand in the way of the next.
    monkeypatch.setattr(_draw, "draw_matrix", draw)
    assert trained.sample(ASKED, n_samples=40, path="others.h5ad").n_obs == 80


def test_request_that_is_refused_writes_nothing(trained):
    with pytest.raises(ValueError, match="'nobody'"):
        trained.sample(["nobody"], path="cells.h5ad")
    assert list(Path.cwd().iterdir()) == []


def test_effects_go_to_a_file_row_by_row(trained):
    in_memory = trained.predict(ASKED, n_samples=20)
    path = Path("new folder", "effects.h5ad")
    streamed = trained.predict(ASKED, n_samples=20, path=path)
    assert streamed.isbacked
    streamed.file.close()
    read = anndata.read_h5ad(path)
    np.testing.assert_array_equal(read.X, in_memory.X)
    assert layer_names(read) == layer_names(in_memory)
    for name in layer_names(in_memory):
        np.testing.assert_array_equal(read.layers[name], in_memory.layers[name])
    for column in in_memory.obs:
        assert read.obs[column].tolist() == in_memory.obs[column].tolist()
    assert read.var_names.equals(in_memory.var_names)
    assert read.uns["scvi_perturb"] == in_memory.uns["scvi_perturb"]


def test_effects_that_fail_leave_no_file(trained, monkeypatch):
    def fail(*_, **__):
        msg = "out of power"
        raise OSError(msg)

    monkeypatch.setattr(trained, "_annotations", fail)
    monkeypatch.setattr(trained, "_warn_outside", fail, raising=False)
    with pytest.raises(OSError, match="out of power"):
        trained.predict(ASKED, n_samples=5, path="effects.h5ad")
    assert list(Path.cwd().iterdir()) == []
