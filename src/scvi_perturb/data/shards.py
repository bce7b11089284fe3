"""Counts on disk: rows read in runs, and a screen as shards of zarr that are read so fastest."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol, Self, TypeVar

import numpy as np
from scipy import sparse

from scvi_perturb._checks import checked
from scvi_perturb._compat import layer_names, quiet_zarr
from scvi_perturb._core import SchemaError, drawn_seed
from scvi_perturb._files import ZARR_NAMES, is_file, writing_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from os import PathLike

    import zarr
    from anndata import AnnData
    from numpy.typing import NDArray

_T = TypeVar("_T")

#: Blocks of neighbouring rows in a buffer: so many places of the file are mixed at a time.
N_BLOCKS: Final = 64
#: Rows between two that are asked for which are read with them: that costs less than to stop.
#: A chunk is read as a whole, so the gap is at least that long.
_GAP: Final = 32
#: Stored values that are read at a time.
_MOST: Final = 1 << 22
#: Stored values in a chunk, which is read as a whole, and in a shard, which is one file.
_CHUNK, _SHARD = 1 << 16, 1 << 24
_MANIFEST: Final = "scvi_perturb_shards"
_SHARD_IT: Final = "write the folder anew with `scvi-perturb shard`"


class RowEngine(Protocol):
    """What reads rows of counts from disk."""

    def __call__(self, parts: Iterable[NDArray[np.int64]]) -> Iterator[sparse.csr_matrix]:
        """Yield the rows of each part; a part is ascending, without repetitions."""
        ...


class StoredRows:
    """Rows of a CSR matrix in a file of HDF5 or a folder of zarr.

    Anndata reads row by row; here neighbouring rows are read in one go.

    `matrix`: anndata's backed CSR matrix.
    """

    format = "csr"

    def __init__(self, matrix: Any) -> None:  # noqa: ANN401
        self._matrix = matrix
        self.group, self.shape = matrix.group, tuple(map(int, matrix.shape))
        self.dtype = matrix.dtype
        self._ends = np.asarray(self.group["indptr"][...], dtype=np.int64)
        rows_per_value = self.shape[0] / max(int(self._ends[-1]), 1)
        self._gap = max(_GAP, int((self.group["data"].chunks or (0,))[0] * rows_per_value))
        self._most = max(1, int(_MOST * rows_per_value))
        self._engine: RowEngine = self._plain

    def use(self, engine: Literal["plain", "annbatch"]) -> None:
        """Choose what reads the parts: slices of the arrays, or annbatch, which reads zarr."""
        self._engine = _Annbatch(self._matrix) if engine == "annbatch" else self._plain

    def __getitem__(self, rows: NDArray[np.int64] | slice) -> sparse.csr_matrix:
        """Return rows in the order asked for."""
        if isinstance(rows, slice):
            return next(self._plain([np.arange(*rows.indices(self.shape[0]))]))
        unique, place = np.unique(rows, return_inverse=True)
        found = next(self._plain([unique]))
        in_order = len(place) == len(unique) and (np.diff(place) > 0).all()
        return found if in_order else found[place]

    def parts(self, parts: Iterable[NDArray[np.int64]]) -> Iterator[sparse.csr_matrix]:
        """Yield the rows of each part in its order; the next part is read meanwhile."""
        parts = list(parts)
        split = [np.unique(part, return_inverse=True) for part in parts]
        read = self._engine(unique for unique, _ in split)
        for found, (_, place) in zip(_prefetched(read), split, strict=True):
            yield found[place]

    def _plain(self, parts: Iterable[NDArray[np.int64]]) -> Iterator[sparse.csr_matrix]:
        """Yield the rows of each part, by slices of the arrays on disk."""
        for part in parts:
            found = [self._run(rows) for rows in _runs(part, self._gap, self._most)]
            yield sparse.vstack(found, format="csr") if len(found) != 1 else found[0]

    def _run(self, rows: NDArray[np.int64]) -> sparse.csr_matrix:
        """Return rows that are read in one go, without those between them."""
        first, last = (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, 0)
        span = slice(int(self._ends[first]), int(self._ends[last]))
        indices = self.group["indices"][span].astype(np.int32, copy=False)
        starts = self._ends[first : last + 1] - span.start
        shape = (last - first, self.shape[1])
        found = sparse.csr_matrix((self.group["data"][span], indices, starts), shape=shape)
        return found if len(rows) == last - first else found[rows - first]


class _Annbatch:
    """Rows read by annbatch, which fetches the chunks of many runs at once."""

    def __init__(self, matrix: Any) -> None:  # noqa: ANN401
        if find_spec("annbatch") is None:
            msg = (
                "reader='annbatch' needs annbatch, which is not installed: pip install "
                "'scvi-perturb[shards]' (Python 3.12 or newer), or reader='plain'."
            )
            raise ImportError(msg)
        if not hasattr(matrix.group, "store"):
            msg = f"reader='annbatch' reads shards of zarr and no HDF5; {_SHARD_IT}."
            raise SchemaError(msg)
        self._matrix = matrix

    def __call__(self, parts: Iterable[NDArray[np.int64]]) -> Iterator[sparse.csr_matrix]:
        from annbatch import Loader
        from annbatch.abc import Sampler

        n_cells = int(self._matrix.shape[0])

        class Given(Sampler):
            """The parts, in their order, each as one batch."""

            batch_size = None
            shuffle = False

            def n_batches(self, n_obs: int) -> int:
                return n_obs

            def validate(self, n_obs: int) -> None:
                """Accept all."""

            def _sample(self, n_obs: int) -> Iterator[dict[str, Any]]:
                for part in parts:
                    runs = _runs(part, _GAP, n_cells)
                    sizes = [int(rows[-1] - rows[0]) + 1 for rows in runs]
                    starts = np.cumsum([0, *sizes[:-1]])
                    wanted = [rows - rows[0] + at for rows, at in zip(runs, starts, strict=True)]
                    requests = [slice(int(r[0]), int(r[-1]) + 1) for r in runs]
                    yield {"requests": requests, "splits": [np.concatenate(wanted)]}

        loader = Loader(
            batch_sampler=Given(), preload_to_gpu=False, to=None, return_index=False
        ).add_dataset(self._matrix)
        for batch in loader:
            yield batch["X"]


def _runs(rows: NDArray[np.int64], gap: int, most: int) -> list[NDArray[np.int64]]:
    """Split ascending rows where more than `gap` lie between two, and at multiples of `most`."""
    breaks = (np.diff(rows) > gap) | (np.diff(rows // most) > 0)
    return np.split(rows, np.flatnonzero(breaks) + 1)


def _prefetched(items: Iterator[_T]) -> Iterator[_T]:
    """Yield items; a thread makes the next one meanwhile."""
    end: Any = object()
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, items, end)
            yield item


def block_order(
    rows: NDArray[np.int64], buffer: int, random: np.random.Generator
) -> NDArray[np.int64]:
    """Return rows in random order, such that each `buffer` of them comes from `N_BLOCKS` places.

    Blocks of neighbouring rows are permuted, then the rows of each buffer. Where all rows fit into
    a buffer, the order is uniformly random.
    """
    if len(rows) <= buffer:
        return random.permutation(rows)
    n_blocks = -(-len(rows) * N_BLOCKS // buffer)
    blocks = np.array_split(np.sort(rows), min(n_blocks, len(rows)))
    mixed = np.concatenate([blocks[i] for i in random.permutation(len(blocks))])
    for start in range(0, len(mixed), buffer):
        mixed[start : start + buffer] = random.permutation(mixed[start : start + buffer])
    return mixed


# Shards -------------------------------------------------------------------------------------


@checked
def write_shards(
    adata: AnnData,
    path: str | PathLike[str],
    *,
    layer: str | None = None,
    shuffle: bool = True,
    buffer: int = 65_536,
    seed: int | None = 0,
    overwrite: bool = False,
    progress: Callable[[int], object] | None = None,
) -> None:
    """Write a screen as a folder of zarr, its counts as CSR in large shards.

    The folder holds `obs`, `var`, `uns` and the counts as `X`, nothing else. It appears under its
    name when it is complete. Memory does not grow with the number of cells, but for `obs`.

    Parameters
    ----------
    adata
        The screen, in memory or backed.
    path
        Folder to write.
    layer
        Layer of the counts; None is `X`.
    shuffle
        Whether cells are written in random order, so that cells that are read together are of many
        conditions. They are mixed by blocks of neighbouring cells, within `buffer` cells.
    buffer
        Cells held in memory at a time.
    seed
        Seed of the order.
    overwrite
        Whether shards that are there are replaced.
    progress
        Is told the number of cells written so far.

    Raises
    ------
    ValueError
        If `buffer` is not positive, or there is a folder and `overwrite` is false.
    SchemaError
        If there is no such layer, or a matrix without values.
    """
    import zarr
    from anndata.io import write_elem

    seed = drawn_seed(seed)
    counts = _counts_of(adata, layer)
    order = np.arange(adata.n_obs)
    if shuffle:
        order = block_order(order, buffer, np.random.default_rng(seed))
    with writing_folder(path, overwrite=overwrite, own=ZARR_NAMES) as folder:
        root = zarr.open_group(folder, mode="w", zarr_format=3)
        root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        with quiet_zarr():
            write_elem(root, "obs", adata.obs.iloc[order])
            write_elem(root, "var", adata.var)
            write_elem(root, "uns", dict(adata.uns))
            for name in ("layers", "obsm", "obsp", "varm", "varp"):
                write_elem(root, name, {})
        digest = _write_counts(root, counts, order, adata.n_vars, buffer, progress)
        names = _digest_of_names(adata.obs_names[order], adata.var_names)
        root.attrs[_MANIFEST] = {
            "version": 1,
            "names": names,
            "counts": digest,
            "shuffled": seed if shuffle else None,
            "files": _files(folder),
        }


def _counts_of(adata: AnnData, layer: str | None) -> Any:  # noqa: ANN401
    """Return the counts of a screen, as what rows are read from."""
    if layer is not None and layer not in adata.layers:
        msg = f"Layer {layer!r} was not found; the layers are {layer_names(adata)}."
        raise SchemaError(msg)
    counts = adata.X if layer is None else adata.layers[layer]
    if counts is None:
        msg = "X is empty (None); name the layer that holds the counts."
        raise SchemaError(msg)
    if getattr(counts, "format", None) == "csc":
        counts = (counts if sparse.issparse(counts) else counts.to_memory()).tocsr()
    return StoredRows(counts) if is_stored_csr(counts) else counts


def _write_counts(
    root: zarr.Group,
    counts: Any,  # noqa: ANN401
    order: NDArray[np.int64],
    n_genes: int,
    buffer: int,
    progress: Callable[[int], object] | None,
) -> str:
    """Write the rows of counts in an order, and return the digest of what was written."""
    group = root.create_group("X")
    types = {"data": counts.dtype, "indices": np.dtype(np.int32), "indptr": np.dtype(np.int64)}
    arrays = {name: _Growing(group, name, dtype) for name, dtype in types.items()}
    arrays["indptr"].append(np.zeros(1, np.int64))
    n_values = 0
    for start in range(0, len(order), buffer):
        chosen = order[start : start + buffer]
        unique, place = np.unique(chosen, return_inverse=True)
        rows = sparse.csr_matrix(counts[unique])[place]
        rows.sum_duplicates()
        arrays["data"].append(rows.data)
        arrays["indices"].append(rows.indices)
        arrays["indptr"].append(n_values + rows.indptr[1:])
        n_values += rows.nnz
        if progress is not None:
            progress(start + len(chosen))
    digest = " ".join(array.close() for array in arrays.values())
    encoding = {"encoding-type": "csr_matrix", "encoding-version": "0.1.0"}
    group.attrs.update({**encoding, "shape": [len(order), n_genes], _MANIFEST: digest})
    return digest


class _Growing:
    """A one-dimensional array on disk that grows by whole shards."""

    def __init__(self, group: zarr.Group, name: str, dtype: np.dtype[Any]) -> None:
        from zarr.codecs import BloscCodec, Crc32cCodec

        self._array = group.create_array(
            name,
            shape=(0,),
            dtype=dtype,
            chunks=(_CHUNK,),
            shards=(_SHARD,),
            compressors=[BloscCodec(cname="lz4", clevel=3, shuffle="shuffle"), Crc32cCodec()],
            config={"write_empty_chunks": True},
        )
        self._held: list[NDArray[Any]] = []
        self._digest = hashlib.sha256()

    def append(self, values: NDArray[Any]) -> None:
        """Add values; they are written when they fill a shard."""
        self._held.append(np.ascontiguousarray(values, dtype=self._array.dtype))
        self._digest.update(self._held[-1].data)
        if sum(map(len, self._held)) >= _SHARD:
            joined = np.concatenate(self._held)
            whole = len(joined) // _SHARD * _SHARD
            self._array.append(joined[:whole])
            self._held = [joined[whole:]]

    def close(self) -> str:
        """Write the rest, and return the digest of all."""
        if any(map(len, self._held)):
            self._array.append(np.concatenate(self._held))
        return self._digest.hexdigest()


@checked
def open_shards(path: str | PathLike[str]) -> AnnData:
    """Open a screen in a folder of zarr; counts stay on disk.

    Of shards, the names of cells and genes and the sizes of all files are compared with those that
    were written; each chunk has a checksum, which is compared when it is read.

    Parameters
    ----------
    path
        A folder that `write_shards` or AnnData wrote, with counts as CSR.

    Returns
    -------
    AnnData
        `obs`, `var` and `uns` in memory, matrices on disk.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    SchemaError
        If it holds no screen with counts as CSR, shards are missing or cut off, or they are of
        another screen than the annotation beside them.
    """
    import zarr
    from anndata import AnnData
    from anndata.io import read_elem, sparse_dataset

    path = Path(path)
    if not path.is_dir():
        msg = f"There is no folder {path}."
        raise FileNotFoundError(msg)
    if not (is_file(path / "zarr.json") or is_file(path / ".zgroup")):
        msg = f"{path} is no folder of zarr; {_SHARD_IT}."
        raise SchemaError(msg)
    try:
        root = zarr.open_group(path, mode="r")
        found = {key: read_elem(root[key]) for key in ("obs", "var", "uns") if key in root}
        matrices = {"X": root["X"]} if "X" in root else {}
        if "layers" in root:
            layers = root["layers"]
            matrices |= dict(layers.groups()) if isinstance(layers, zarr.Group) else {}
    except Exception as error:  # zarr and anndata raise what codecs, NumPy and pandas raise
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        msg = f"{path} could not be read: {reason}. Copy it again, or {_SHARD_IT}."
        raise SchemaError(msg) from error
    stored = {name: sparse_dataset(one) for name, one in matrices.items() if _is_csr(one)}
    if not stored:
        kinds = {name: one.attrs.get("encoding-type") for name, one in matrices.items()}
        msg = f"{path} holds no counts as CSR (csr_matrix), but {kinds}; {_SHARD_IT}."
        raise SchemaError(msg)
    made = AnnData(X=stored.pop("X", None), layers=stored, **found)
    check_shards(path, made)
    return made


def _is_csr(matrix: Any) -> bool:  # noqa: ANN401
    return matrix.attrs.get("encoding-type") == "csr_matrix"


class _Manifest(NamedTuple):
    """What `write_shards` noted: digests of names and counts, and the size of each file."""

    names: str
    counts: str
    files: dict[str, int]

    @classmethod
    def of(cls, stated: object, path: Path) -> Self:
        """Read it from the attributes of a folder.

        Raises `SchemaError`: If parts are missing, or are of other types.
        """
        match stated:
            case {"names": str(names), "counts": str(counts), "files": dict(files)}:
                if all(isinstance(size, int) for size in files.values()):
                    return cls(names, counts, files)
        msg = f"The list of shards in {path / 'zarr.json'} is incomplete or damaged; {_SHARD_IT}."
        raise SchemaError(msg)


def check_shards(path: Path, adata: AnnData) -> None:
    """Raise `SchemaError` unless annotation and files are those that were written together.

    Folders that `write_shards` did not write are not checked.
    """
    import zarr

    if not is_file(path / "zarr.json"):
        return
    root = zarr.open_group(path, mode="r")
    stated = root.attrs.get(_MANIFEST)
    if stated is None:
        return
    manifest = _Manifest.of(stated, path)
    names = _digest_of_names(adata.obs_names, adata.var_names)
    if manifest.names != names or root["X"].attrs.get(_MANIFEST) != manifest.counts:
        what = "cells or genes" if manifest.names != names else "counts"
        msg = f"{path} holds the {what} of another screen; {_SHARD_IT}."
        raise SchemaError(msg)
    now = _files(path)
    missing = sorted(set(manifest.files) - set(now))
    if missing:
        msg = f"{path} lacks {len(missing)} shards, such as {missing[0]}: copy it again, or "
        raise SchemaError(msg + f"{_SHARD_IT}.")
    other = sorted(name for name, size in manifest.files.items() if now[name] != size)
    if other:
        msg = (
            f"{path / other[0]} has {now[other[0]]} bytes; {manifest.files[other[0]]} were "
            f"written. It is cut off or of another screen: copy it again, or {_SHARD_IT}."
        )
        raise SchemaError(msg)


def _files(path: Path) -> dict[str, int]:
    """Return the size of each file of counts, by its name in the folder."""
    found = (one for one in (path / "X").glob("*/c/*") if one.is_file())
    return {one.relative_to(path).as_posix(): one.stat().st_size for one in found}


def _digest_of_names(*names: Iterable[object]) -> str:
    digest = hashlib.sha256()
    for some in names:
        digest.update("\x1f".join(map(str, some)).encode() + b"\x1e")
    return digest.hexdigest()


def is_stored_csr(matrix: Any) -> bool:  # noqa: ANN401
    """Whether a matrix is anndata's CSR on disk."""
    return getattr(matrix, "format", None) == "csr" and hasattr(matrix, "group")
