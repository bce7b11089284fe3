"""Named public screens: downloaded with a checksum, or read from disk; canonical columns."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from scvi_perturb._errors import check_choice
from scvi_perturb.data._counts import check_raw_counts
from scvi_perturb.data._dataset_columns import harmonise
from scvi_perturb.data._dataset_registry import DATASETS, DatasetEntry
from scvi_perturb.data._files import read_screen

if TYPE_CHECKING:
    from os import PathLike

    from anndata import AnnData

__all__ = ["list_datasets", "load_dataset"]


def list_datasets() -> pd.DataFrame:
    """Return the public screens that `load_dataset` knows, one row each, indexed by name.

    Columns: paper, kind, n_bytes, licence, checksum (missing where none could be confirmed),
    verified_by, urls and note.
    """
    columns = ("paper", "kind", "n_bytes", "licence", "checksum", "verified_by", "urls", "note")
    rows = [[getattr(entry, column) for column in columns] for entry in DATASETS.values()]
    table = pd.DataFrame(rows, index=pd.Index(list(DATASETS), name="name"), columns=list(columns))
    return table.astype({"n_bytes": "Int64"})


def load_dataset(
    name: str,
    *,
    path: str | PathLike[str] | None = None,
    cache: str | PathLike[str] | None = None,
    allow_unverified: bool = False,
) -> AnnData:
    """Load a public screen with canonical columns.

    Parameters
    ----------
    name
        One of `list_datasets`.
    path
        The file, or the folder it is in, where it is on disk already; nothing is downloaded and
        no checksum is compared, so that subsets and conversions can be read too.
    cache
        Folder for downloads; None is the user's cache folder. A file that is there and has the
        right checksum is not downloaded again.
    allow_unverified
        Download also where no checksum is known.

    Returns
    -------
    anndata.AnnData
        Raw counts in `X`. `obs` starts with perturbation ("A+B", "control"), dose and time where
        the screen has them, perturbation_type, cell_type, batch and donor where known, and
        library_size (counts of the genes that are there); the file's other columns follow. Cells
        whose perturbation, dose, time or cell type is missing are dropped, with a message to the
        logger. `uns["scvi_perturb"]["dataset"]` says where the data come from.

    Raises
    ------
    ValueError
        If the name is not known, or no checksum is known and `allow_unverified` is False.
    FileNotFoundError
        If there is nothing at `path`.
    ConnectionError
        If the file cannot be downloaded; the message lists what was tried.
    SchemaError
        If the file cannot be read, an expected column is missing, or `X` does not hold counts.

    References
    ----------
    Peidli et al. 2024, scPerturb: harmonized single-cell perturbation data, Nature Methods.
    """
    check_choice("name", name, DATASETS)
    entry = DATASETS[name]
    if path is None:
        file = _download(entry, cache=cache, allow_unverified=allow_unverified)
    else:
        file = _on_disk(entry, Path(path))
    adata = read_screen(file)
    check_raw_counts(adata.X, where=f"X of {file.name}", layers=adata.layers)
    return harmonise(adata, entry)


def _on_disk(entry: DatasetEntry, path: Path) -> Path:
    file = path / entry.file_name if path.is_dir() else path
    if not file.is_file():
        msg = f"There is no file {file}; expected {entry.name!r} as h5ad, from {entry.urls[0]}."
        raise FileNotFoundError(msg)
    return file


def _download(
    entry: DatasetEntry, *, cache: str | PathLike[str] | None, allow_unverified: bool
) -> Path:
    """Return the cached file, downloaded from the first address that answers."""
    import pooch

    if entry.checksum is None and not allow_unverified:
        msg = (
            f"No checksum is known for {entry.name!r}, so a download cannot be verified. Pass "
            f"allow_unverified=True to trust {entry.urls[0]}, or path= to read your own file."
        )
        raise ValueError(msg)
    folder = Path(cache) if cache is not None else Path(pooch.os_cache("scvi-perturb"))
    tried = []
    for url in entry.urls:
        try:
            return Path(pooch.retrieve(url, entry.checksum, fname=entry.file_name, path=folder))
        except (OSError, ValueError) as error:  # pooch: no answer; a wrong checksum
            tried.append(f"{url} ({type(error).__name__}: {error})")
    msg = (
        f"{entry.name!r} could not be downloaded. Tried: {'; '.join(tried)}. Download the file "
        f"elsewhere and pass path= (the file), or put it at {folder / entry.file_name}."
    )
    raise ConnectionError(msg)
