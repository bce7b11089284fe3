"""Counts on disk: read in runs, shuffled in blocks, written as shards that are checked."""

from __future__ import annotations

import shutil
import threading
from importlib.util import find_spec

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
import zarr
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from scvi_perturb import PerturbDiffusion, SchemaError
from scvi_perturb.data import open_shards, read_screen, simulate_screen, write_shards
from scvi_perturb.data import shards as _shards
from scvi_perturb.data.datamodule import BatchSampler
from scvi_perturb.data.shards import N_BLOCKS, StoredRows, block_order
from scvi_perturb.train import TrainConfig

pytestmark = pytest.mark.filterwarnings(
    "ignore:zarr v3 autosharding", "ignore:Writing zarr v2 data"
)

N_CELLS, N_GENES = 300, 12
COUNTS = sparse.csr_matrix(np.random.default_rng(0).poisson(0.3, (N_CELLS, N_GENES)), dtype="f4")


def screen():
    obs = pd.DataFrame({"place": np.arange(N_CELLS)}, index=[f"c{i}" for i in range(N_CELLS)])
    adata = AnnData(COUNTS.copy(), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(12)]))
    adata.uns["note"] = "kept"
    return adata


@pytest.fixture(scope="module", params=["h5ad", "gzip", "zarr"])
def stored(request, tmp_path_factory):
    """Rows on disk."""
    folder = tmp_path_factory.mktemp("stored")
    if request.param == "zarr":
        write_shards(screen(), folder / "s.zarr", shuffle=False)
        return StoredRows(open_shards(folder / "s.zarr").X)
    screen().write_h5ad(folder / "s.h5ad", compression=request.param.replace("h5ad", "") or None)
    return StoredRows(anndata.read_h5ad(folder / "s.h5ad", backed="r").X)


@pytest.fixture
def folder(tmp_path):
    """A folder of shards, in several files."""
    write_shards(screen(), tmp_path / "s.zarr")
    return tmp_path / "s.zarr"


ASKED = [[7, 3, 3, 299, 0], [5], [], list(range(0, 300, 40)), list(range(20, 200))]


@pytest.mark.parametrize("rows", ASKED, ids=len)
def test_rows_are_those_asked_for(stored, rows):
    found = stored[np.array(rows, dtype=int)]
    assert found.shape == (len(rows), N_GENES)
    np.testing.assert_array_equal(found.toarray(), COUNTS[rows].toarray())
    np.testing.assert_array_equal(stored[10:30].toarray(), COUNTS[10:30].toarray())


def test_parts_come_in_order_whatever_the_next_one_is(stored):
    parts = [np.array(rows, dtype=int) for rows in ASKED]
    for part, found in zip(parts, stored.parts(parts), strict=True):
        np.testing.assert_array_equal(found.toarray(), COUNTS[part].toarray())


def test_an_error_of_the_thread_that_reads_ahead_is_raised_and_no_thread_stays(stored):
    before = threading.active_count()
    with pytest.raises(IndexError):
        list(stored.parts([np.array([1]), np.array([N_CELLS + 5])]))
    unfinished = stored.parts([np.array([1])] * 5)
    next(unfinished)
    unfinished.close()
    assert threading.active_count() == before


@given(
    n=st.integers(0, 200),
    buffer=st.integers(1, 50),
    batch_size=st.integers(1, 20),
    world_size=st.integers(1, 3),
)
def test_every_row_comes_once_an_epoch(n, buffer, batch_size, world_size):
    seen = []
    for rank in range(world_size):
        options = {"buffer": buffer, "rank": rank, "world_size": world_size, "seed": 1}
        sampler = BatchSampler(np.arange(n), batch_size, **options)
        assert len(list(sampler)) == len(sampler)
        assert all(len(part) <= sampler.buffer for part in sampler.parts())
        seen += [batch.tolist() for batch in sampler]
    every = [row for batch in seen for row in batch]
    assert set(every) == set(range(n))
    assert len(every) - n < world_size


def test_a_buffer_mixes_places_of_the_whole_file():
    rows = np.arange(100_000)
    order = block_order(rows, 6400, np.random.default_rng(0))
    for start in range(0, 96_000, 6400):
        part = order[start : start + 6400]
        assert len(np.unique(part // 100)) <= 2 * N_BLOCKS + 2
        # The mean of 64 places of a uniform file: its standard error is 100,000 / sqrt(12 * 64).
        assert abs(part.mean() - 50_000) < 4 * 100_000 / np.sqrt(12 * N_BLOCKS)
    small = block_order(rows[:500], 500, np.random.default_rng(3))
    np.testing.assert_array_equal(small, np.random.default_rng(3).permutation(500))


def test_balanced_batches_take_conditions_equally_often():
    group = np.repeat([0, 1, 2], [900, 90, 10])
    sampler = BatchSampler(np.arange(1000), 100, seed=0, group=group)
    drawn = np.concatenate(list(sampler))
    assert sorted(np.bincount(group[drawn])) == [333, 333, 334]
    uses = np.bincount(drawn, minlength=1000)
    for one, size in ((0, 900), (1, 90), (2, 10)):
        expected = 1000 / 3 / size
        assert uses[group == one].max() <= np.ceil(expected) + 1
    first = set(drawn[group[drawn] == 0])
    sampler.set_epoch(1)
    again = np.concatenate(list(sampler))
    assert first != set(again[group[again] == 0])


def test_shards_hold_the_screen_in_an_order_of_the_seed(folder, tmp_path, monkeypatch):
    adata = open_shards(folder)
    place = adata.obs["place"].to_numpy()
    assert sorted(place) == list(range(N_CELLS))
    assert (place != np.arange(N_CELLS)).mean() > 0.9
    assert adata.uns["note"] == "kept"
    np.testing.assert_array_equal(adata.to_memory().X.toarray(), COUNTS[place].toarray())
    np.testing.assert_array_equal(read_screen(folder).X.toarray(), COUNTS[place].toarray())
    monkeypatch.setattr(_shards, "_CHUNK", 64)
    monkeypatch.setattr(_shards, "_SHARD", 256)
    told = []
    write_shards(screen(), tmp_path / "b.zarr", buffer=70, shuffle=False, progress=told.append)
    assert told == [70, 140, 210, 280, 300]
    assert len([*(tmp_path / "b.zarr/X/data/c").iterdir()]) == -(-COUNTS.nnz // 256)
    np.testing.assert_array_equal(open_shards(tmp_path / "b.zarr").to_memory().X.toarray(),
                                  COUNTS.toarray())  # fmt: skip


@pytest.mark.parametrize("kind", ["csc", "dense", "backed"])
def test_shards_are_written_of_any_matrix(kind, tmp_path):
    adata = screen()
    if kind == "backed":
        adata.write_h5ad(tmp_path / "s.h5ad")
        adata = anndata.read_h5ad(tmp_path / "s.h5ad", backed="r")
    else:
        adata.layers["counts"] = COUNTS.tocsc() if kind == "csc" else COUNTS.toarray()
    layer = None if kind == "backed" else "counts"
    write_shards(adata, tmp_path / "s.zarr", layer=layer, shuffle=False)
    found = open_shards(tmp_path / "s.zarr").to_memory()
    np.testing.assert_array_equal(found.X.toarray(), COUNTS.toarray())


def test_a_run_that_fails_leaves_nothing(tmp_path):
    def fail(_):
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_shards(screen(), tmp_path / "s.zarr", progress=fail)
    assert not [*tmp_path.iterdir()]


def _lost(folder):
    (folder / "X/data/c/0").unlink()


def _cut(folder):
    path = folder / "X/indices/c/0"
    path.write_bytes(path.read_bytes()[:-7])


def _other_counts(folder):
    other = screen()
    other.X.data[:] += 1
    write_shards(other, folder.with_name("other.zarr"))
    shutil.rmtree(folder / "X")
    shutil.copytree(folder.with_name("other.zarr") / "X", folder / "X")


def _other_cells(folder):
    obs = open_shards(folder).obs
    anndata.io.write_elem(zarr.open_group(folder), "obs", obs.iloc[::-1])


def _damaged_list(folder):
    root = zarr.open_group(folder)
    root.attrs["scvi_perturb_shards"] = dict(root.attrs["scvi_perturb_shards"]) | {"files": None}


def _no_zarr(folder):
    (folder / "zarr.json").unlink()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (_lost, "lacks 1 shards, such as X/data/c/0"),
        (_cut, "It is cut off or of another screen"),
        (_other_counts, "holds the counts of another screen"),
        (_other_cells, "holds the cells or genes of another screen"),
        (_damaged_list, "list of shards in .* is incomplete or damaged"),
        (_no_zarr, "is no folder of zarr"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_shards_that_are_harmed_are_refused(folder, harm, message):
    harm(folder)
    with pytest.raises(SchemaError, match=message):
        open_shards(folder)


def test_a_chunk_that_was_changed_is_noticed_when_it_is_read(folder):
    path = folder / "X/data/c/0"
    content = bytearray(path.read_bytes())
    content[40] ^= 255
    path.write_bytes(bytes(content))
    stored = StoredRows(open_shards(folder).X)
    with pytest.raises(Exception, match=r"(?i)checksum|corrupt|decompress|zstd"):
        stored[:]


def test_other_folders_of_zarr_are_read_if_they_hold_csr(tmp_path):
    adata = screen()
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X.toarray()
    adata.write_zarr(tmp_path / "a.zarr")
    found = open_shards(tmp_path / "a.zarr")
    np.testing.assert_array_equal(found.to_memory().layers["counts"].toarray(), COUNTS.toarray())
    del adata.layers["counts"]
    adata.write_zarr(tmp_path / "b.zarr")
    with pytest.raises(SchemaError, match=r"holds no counts as CSR .* but \{'X': 'array'\}"):
        open_shards(tmp_path / "b.zarr")


def test_what_cannot_be_written_says_why(folder):
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        open_shards(folder / "none")
    with pytest.raises(ValueError, match="buffer=-1 is out of range"):
        write_shards(screen(), folder.with_name("t.zarr"), buffer=-1)
    with pytest.raises(ValueError, match="already exists"):
        write_shards(screen(), folder)
    with pytest.raises(SchemaError, match="Layer 'raw' was not found"):
        write_shards(screen(), folder, layer="raw", overwrite=True)


def test_annbatch_reads_what_the_plain_reader_reads(folder, tmp_path):
    stored = StoredRows(open_shards(folder).X)
    if find_spec("annbatch") is None:
        with pytest.raises(ImportError, match="pip install 'scvi-perturb"):
            stored.use("annbatch")
        return
    parts = [np.array(rows, dtype=int) for rows in ASKED if rows]
    plain = [rows.toarray() for rows in stored.parts(parts)]
    stored.use("annbatch")
    for expected, found in zip(plain, stored.parts(parts), strict=True):
        np.testing.assert_array_equal(found.toarray(), expected)
    screen().write_h5ad(tmp_path / "s.h5ad")
    backed = StoredRows(anndata.read_h5ad(tmp_path / "s.h5ad", backed="r").X)
    with pytest.raises(SchemaError, match="reads shards of zarr and no HDF5"):
        backed.use("annbatch")


@pytest.mark.skipif(find_spec("annbatch") is None, reason="needs annbatch and Python 3.12")
def test_training_on_shards_is_the_same_with_annbatch(tmp_path):
    write_shards(simulate_screen(n_cells=300, n_genes=20, seed=0), tmp_path / "s.zarr")
    weights = []
    for reader in ("plain", "annbatch"):
        screen = open_shards(tmp_path / "s.zarr")
        PerturbDiffusion.setup_anndata(screen)
        model = PerturbDiffusion(screen, seed=0, n_hidden=8, n_latent=4)
        config = TrainConfig(reader=reader, buffer=64)
        model.train(2, n_steps=3, seed=0, config=config, accelerator="cpu")
        weights.append(model.module.state_dict())
    for name, expected in weights[0].items():
        assert torch.equal(weights[1][name], expected)
