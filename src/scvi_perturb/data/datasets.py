"""Public screens: what there is, and download with a checksum."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from scvi_perturb._checks import check_choice, checked
from scvi_perturb._core import CONTROL, SEPARATOR, UNS_KEY, Column, SchemaError
from scvi_perturb.data.condition import Condition
from scvi_perturb.data.reader import check_raw_counts, read_screen

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike

    from anndata import AnnData

logger = logging.getLogger(__name__)


_FILES = "https://zenodo.org/records/{}/files/{}?download=1"
#: Versions of the scPerturb record (Peidli 2024) that hold one and the same file, newest first.
_SCPERTURB = (13350497, 10044268)
_CITED = "the record's listing, as cited by several independent public sources"


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetEntry:
    """One public screen: the file, its columns, and how its labels are read."""

    name: str
    paper: str
    file_name: str
    #: "md5:..." or "sha256:...", None where none is known; where it comes from.
    checksum: str | None
    verified_by: str = _CITED
    #: Size of the file, None where not known.
    n_bytes: int | None = None
    licence: str = "CC-BY-4.0"
    #: Kind of perturbation, written to `obs`.
    kind: str
    #: Our columns to the names they may have in the file; the first found is taken.
    columns: Mapping[str, tuple[str, ...]]
    #: Versions of the scPerturb record; `urls`, which are tried in turn, if it is elsewhere.
    records: tuple[int, ...] = _SCPERTURB
    urls: tuple[str, ...] = ()
    #: Perturbation labels to be renamed.
    labels: Mapping[str, str] = field(default_factory=dict)
    #: What joins components in the file; None where there are no combinations.
    separator: str | None = None
    #: Regular expression of what follows the target in a guide's name, None for targets.
    guide_suffix: str | None = None
    dose_unit: str = ""
    time_unit: str = ""
    #: Cell type of the whole screen, used where the file has no column for it.
    context: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        if not self.urls:
            urls = tuple(_FILES.format(record, self.file_name) for record in self.records)
            object.__setattr__(self, "urls", urls)


_DRUG_COLUMNS = {"perturbation": ("perturbation",), "dose": ("dose_value",), "time": ("time",)}
_ENTRIES = (
    DatasetEntry(
        name="kang2018",
        paper="Kang et al. 2018, Nature Biotechnology, doi:10.1038/nbt.4042",
        urls=(
            "https://exampledata.scverse.org/pertpy/kang_2018.h5ad",
            "https://ndownloader.figshare.com/files/34464122",
        ),
        file_name="kang_2018.h5ad",
        checksum="sha256:e6a5adac64dcdeb36eaba27db49b63e0c64bb0ed4a64c6705971506b41c39830",
        verified_by="checksums published by several independent users of the file",
        n_bytes=38_356_412,
        licence="not stated",
        kind="cytokine",
        columns={
            "perturbation": ("label", "condition", "perturbation"),
            "cell_type": ("cell_type",),
            "donor": ("replicate", "patient", "donor"),
        },
        labels={"ctrl": "control", "stim": "IFN-beta", "stimulated": "IFN-beta"},
        note="Blood cells of 8 donors, with and without interferon beta for 6 hours.",
    ),
    DatasetEntry(
        name="mcfarland2020",
        paper="McFarland et al. 2020, Nature Communications, doi:10.1038/s41467-020-17440-w",
        file_name="McFarlandTsherniak2020.h5ad",
        checksum=None,
        verified_by="no checksum of this file could be confirmed",
        n_bytes=1_459_410_830,
        kind="drug",
        columns=_DRUG_COLUMNS | {"cell_type": ("cell_line",), "batch": ("channel",)},
        time_unit="hours",
        note="Drugs on pools of many lines; keep obs['cell_quality'] == 'normal'. Cells without a "
        "dose, the genetic perturbations among them, are dropped.",
    ),
    DatasetEntry(
        name="norman2019",
        paper="Norman et al. 2019, Science, doi:10.1126/science.aax4438",
        file_name="NormanWeissman2019_filtered.h5ad",
        checksum="md5:c870e6967d91c017d9da827bab183cd6",
        n_bytes=698_680_199,
        kind="CRISPRa",
        columns={"perturbation": ("perturbation",), "batch": ("gemgroup", "batch")},
        separator="_",
        context="K562",
        note="About 100 single and 130 double activations.",
    ),
    DatasetEntry(
        name="papalexi2021",
        paper="Papalexi et al. 2021, Nature Genetics, doi:10.1038/s41588-021-00778-2",
        records=_SCPERTURB[:1],
        file_name="PapalexiSatija2021_eccite_RNA.h5ad",
        checksum="md5:d9e8bfe20b0e7b0919be042e8fcf6d03",
        verified_by="the record's listing, as cited by one public source",
        n_bytes=147_215_278,
        kind="CRISPR",
        columns={"perturbation": ("perturbation",), "batch": ("hto", "batch")},
        labels={"NT": "control"},
        guide_suffix=r"g\d+$",
        context="THP1",
        note="25 knock-outs, most with little effect; guides are pooled by target.",
    ),
    *(
        DatasetEntry(
            name=f"replogle2022_{line.lower()}",
            paper="Replogle et al. 2022, Cell, doi:10.1016/j.cell.2022.05.013",
            file_name=f"ReplogleWeissman2022_{line}.h5ad",
            checksum=f"md5:{digest}",
            n_bytes=n_bytes,
            kind="CRISPRi",
            columns={
                "perturbation": ("perturbation", "gene"),
                "batch": ("batch", "gem_group", "gemgroup"),
            },
            labels={"non-targeting": "control"},
            context=context,
            note="About 2,000 essential genes.",
        )
        for line, context, digest, n_bytes in (
            ("K562_essential", "K562", "d8cba17576d1a8afc0f7d71b79cad0f7", 1_546_729_675),
            ("rpe1", "RPE1", "cc7f1ec50aeb3a3e1b4a6cfa713d80fa", None),
        )
    ),
    DatasetEntry(
        name="sciplex3",
        paper="Srivatsan et al. 2020, Science, doi:10.1126/science.aax6234",
        records=_SCPERTURB[:1],
        file_name="SrivatsanTrapnell2020_sciplex3.h5ad",
        checksum="md5:c9e70629505d98c7ca1a837f62b14e89",
        n_bytes=2_526_631_614,
        kind="drug",
        columns=_DRUG_COLUMNS | {"cell_type": ("cell_line", "celltype"), "batch": ("replicate",)},
        dose_unit="nM",
        time_unit="hours",
        note="188 drugs, 4 doses, 3 lines; cells without a hash are dropped. Version 1.4 of the "
        "record: in earlier ones, such as 10044268, gene names are shifted by one row.",
    ),
)

#: Every known screen by name.
DATASETS: Final[Mapping[str, DatasetEntry]] = {entry.name: entry for entry in _ENTRIES}

_ESSENTIAL = (Column.PERTURBATION, Column.DOSE, Column.TIME)

#: Text that stands for a missing value.
_MISSING = ("nan", "None", "NA", "")


def _harmonize(adata: AnnData, entry: DatasetEntry) -> AnnData:
    """Return the complete cells with canonical columns in front of the file's own."""
    found = _find_columns(adata.obs, entry)
    canonical = _canonical(adata.obs, found, entry)
    essential = [c for c in (*_ESSENTIAL, "cell_type") if c in canonical]
    keep = canonical[essential].notna().all(axis=1).to_numpy()
    if not keep.all():
        logger.warning(
            "%s: dropped %d of %d cells that miss a value of %s.",
            *(entry.name, int((~keep).sum()), len(keep), ", ".join(essential)),
        )
        adata, canonical = adata[keep].copy(), canonical[keep]
    for column in canonical.columns.difference([Column.TIME]):
        canonical[column] = canonical[column].astype("category").cat.remove_unused_categories()
    canonical["library_size"] = np.asarray(adata.X.sum(axis=1), dtype=np.float32).ravel()
    rest = adata.obs.drop(columns=[c for c in canonical if c in adata.obs])
    adata.obs = pd.concat([canonical, rest], axis=1)
    names = ("name", "paper", "licence", "dose_unit", "time_unit")
    provenance = {name: getattr(entry, name) for name in names}
    source = {"url": entry.urls[0], "checksum": entry.checksum or ""}
    adata.uns[UNS_KEY] = {"dataset": provenance | source}
    return adata


def _find_columns(obs: pd.DataFrame, entry: DatasetEntry) -> dict[str, str]:
    """Return the file's column for each canonical one that it has."""
    found = {
        column: next(name for name in names if name in obs)
        for column, names in entry.columns.items()
        if any(name in obs for name in names)
    }
    for column in _ESSENTIAL:
        if column in entry.columns and column not in found:
            msg = (
                f"{entry.name!r}: no column for {column}; expected one of "
                f"{entry.columns[column]}, found {sorted(map(str, obs))}."
            )
            raise SchemaError(msg)
    return found


def _canonical(obs: pd.DataFrame, found: dict[str, str], entry: DatasetEntry) -> pd.DataFrame:
    """Return the canonical columns, with NaN where the file has no value."""
    original = _text(obs[found[Column.PERTURBATION]])
    labels = _labels(original, entry)
    columns: dict[str, pd.Series] = {Column.PERTURBATION: labels}
    if Column.DOSE in found:
        dose = _numbers(obs[found[Column.DOSE]]).where(labels != CONTROL, 0.0)
        columns[Column.DOSE] = dose.map("{:g}".format, na_action="ignore")
    if Column.TIME in found:
        columns[Column.TIME] = _numbers(obs[found[Column.TIME]])
    columns[Column.KIND] = pd.Series(entry.kind, index=obs.index)
    if "cell_type" not in found:
        columns["cell_type"] = pd.Series(entry.context, index=obs.index)
    for column in ("cell_type", "batch", "donor"):
        if column in found:
            columns[column] = _text(obs[found[column]])
    if entry.guide_suffix is not None and "guide" not in obs:
        columns["guide"] = original
    return pd.DataFrame(columns, index=obs.index)


def _text(values: pd.Series) -> pd.Series:
    """Return values as text, missing ones as NaN."""
    text = values.astype(str).str.strip()
    return text.mask(values.isna() | text.isin(_MISSING))


def _numbers(values: pd.Series) -> pd.Series:
    """Return values as numbers, other text as NaN."""
    return pd.to_numeric(_text(values), errors="coerce").astype(float)


def _labels(original: pd.Series, entry: DatasetEntry) -> pd.Series:
    """Return canonical labels: renamed, without guides, "+" only between components, sorted."""

    def canonical(label: str) -> str:
        target = label if entry.guide_suffix is None else re.sub(entry.guide_suffix, "", label)
        target = entry.labels.get(target, target)
        if entry.separator is None:
            return target.replace(SEPARATOR, "plus")  # "(+)-JQ1" is one drug
        return Condition.parse(target.replace(entry.separator, SEPARATOR)).perturbation

    return original.map({label: canonical(label) for label in original.dropna().unique()})


@checked
def list_datasets() -> pd.DataFrame:
    """Return the public screens that `load_dataset` knows, one row each, indexed by name.

    Columns: paper, kind, n_bytes, licence, checksum (missing where none could be confirmed),
    verified_by, urls and note.
    """
    columns = ("paper", "kind", "n_bytes", "licence", "checksum", "verified_by", "urls", "note")
    rows = [[getattr(entry, column) for column in columns] for entry in DATASETS.values()]
    table = pd.DataFrame(rows, index=pd.Index(list(DATASETS), name="name"), columns=list(columns))
    return table.astype({"n_bytes": "Int64"})


@checked
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
        file = Path(path) / entry.file_name if Path(path).is_dir() else Path(path)
        if not file.is_file():
            msg = f"There is no file {file}; expected {name!r} as h5ad, from {entry.urls[0]}."
            raise FileNotFoundError(msg)
    adata = read_screen(file)
    check_raw_counts(adata.X, where=f"X of {file.name}", layers=adata.layers)
    return _harmonize(adata, entry)


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
