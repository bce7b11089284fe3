"""Named public screens: where they are, how the file is verified, what its columns mean."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["DATASETS", "DatasetEntry"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetEntry:
    """One public screen.

    Attributes
    ----------
    name, paper, licence
        Key; reference; licence of the record.
    urls
        Addresses of one and the same file, tried in turn.
    file_name
        Name in the cache.
    checksum, verified_by
        "md5:..." or "sha256:...", None where none is known; where it comes from.
    n_bytes
        Size of the file, None where not known.
    kind
        Kind of perturbation, written to `obs`.
    columns
        Column of `scvi_perturb` to the names it may have in the file, the first found is taken.
    labels
        Perturbation labels to be renamed.
    separator
        What joins components in the file; None where there are no combinations.
    guide_suffix
        Regular expression of what follows the target in a guide's name, None for targets.
    dose_unit, time_unit
        Units, empty where there are none.
    context
        Cell type of the whole screen, used where the file has no column for it.
    note
        What a user ought to know.
    """

    name: str
    paper: str
    urls: tuple[str, ...]
    file_name: str
    checksum: str | None
    verified_by: str
    columns: Mapping[str, tuple[str, ...]]
    kind: str
    n_bytes: int | None = None
    licence: str = "CC-BY-4.0"
    labels: Mapping[str, str] = field(default_factory=dict)
    separator: str | None = None
    guide_suffix: str | None = None
    dose_unit: str = ""
    time_unit: str = ""
    context: str = ""
    note: str = ""


_CITED = "the record's listing, as cited by several independent public sources"


def _scperturb(file_name: str, *records: int) -> tuple[str, ...]:
    """Return addresses of a file in versions of the scPerturb record (Peidli 2024)."""
    return tuple(
        f"https://zenodo.org/records/{record}/files/{file_name}?download=1" for record in records
    )


_KANG = DatasetEntry(
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
)
_PAPALEXI = DatasetEntry(
    name="papalexi2021",
    paper="Papalexi et al. 2021, Nature Genetics, doi:10.1038/s41588-021-00778-2",
    urls=_scperturb("PapalexiSatija2021_eccite_RNA.h5ad", 13350497),
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
)
_NORMAN = DatasetEntry(
    name="norman2019",
    paper="Norman et al. 2019, Science, doi:10.1126/science.aax4438",
    urls=_scperturb("NormanWeissman2019_filtered.h5ad", 13350497, 10044268),
    file_name="NormanWeissman2019_filtered.h5ad",
    checksum="md5:c870e6967d91c017d9da827bab183cd6",
    verified_by=_CITED,
    n_bytes=698_680_199,
    kind="CRISPRa",
    columns={"perturbation": ("perturbation",), "batch": ("gemgroup", "batch")},
    separator="_",
    context="K562",
    note="About 100 single and 130 double activations.",
)
_REPLOGLE = {
    line: DatasetEntry(
        name=f"replogle2022_{line.lower()}",
        paper="Replogle et al. 2022, Cell, doi:10.1016/j.cell.2022.05.013",
        urls=_scperturb(f"ReplogleWeissman2022_{line}.h5ad", 13350497, 10044268),
        file_name=f"ReplogleWeissman2022_{line}.h5ad",
        checksum=f"md5:{digest}",
        verified_by=_CITED,
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
}
_SCIPLEX = DatasetEntry(
    name="sciplex3",
    paper="Srivatsan et al. 2020, Science, doi:10.1126/science.aax6234",
    urls=_scperturb("SrivatsanTrapnell2020_sciplex3.h5ad", 13350497),
    file_name="SrivatsanTrapnell2020_sciplex3.h5ad",
    checksum="md5:c9e70629505d98c7ca1a837f62b14e89",
    verified_by=_CITED,
    n_bytes=2_526_631_614,
    kind="drug",
    columns={
        "perturbation": ("perturbation",),
        "dose": ("dose_value",),
        "time": ("time",),
        "cell_type": ("cell_line", "celltype"),
        "batch": ("replicate",),
    },
    dose_unit="nM",
    time_unit="hours",
    note=(
        "188 drugs, 4 doses, 3 lines; cells without a hash are dropped. Version 1.4 of the record: "
        "in earlier ones, such as 10044268, gene names are shifted by one row."
    ),
)
_MCFARLAND = DatasetEntry(
    name="mcfarland2020",
    paper="McFarland et al. 2020, Nature Communications, doi:10.1038/s41467-020-17440-w",
    urls=_scperturb("McFarlandTsherniak2020.h5ad", 13350497, 10044268),
    file_name="McFarlandTsherniak2020.h5ad",
    checksum=None,
    verified_by="no checksum of this file could be confirmed",
    n_bytes=1_459_410_830,
    kind="drug",
    columns={
        "perturbation": ("perturbation",),
        "dose": ("dose_value",),
        "time": ("time",),
        "cell_type": ("cell_line",),
        "batch": ("channel",),
    },
    time_unit="hours",
    note=(
        "Drugs on pools of many lines; keep obs['cell_quality'] == 'normal'. Cells without a dose, "
        "the genetic perturbations among them, are dropped."
    ),
)

#: Every known screen by name.
DATASETS: Final[Mapping[str, DatasetEntry]] = {
    entry.name: entry
    for entry in (_KANG, _MCFARLAND, _NORMAN, _PAPALEXI, *_REPLOGLE.values(), _SCIPLEX)
}
