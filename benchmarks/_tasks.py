"""The tasks of the leaderboard: public screens, and simulated ones whose truth is known."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import anndata
import numpy as np
import pandas as pd

from benchmarks._kang_frame import CONTEXT_KEYS, FILE, cell_types, data_directory, load_kang
from scvi_perturb.benchmark import Task
from scvi_perturb.data import ScreenKeys, SimulatorConfig, SplitOptions, simulate_screen
from scvi_perturb.features import (
    PerturbationFeatures,
    molecular_descriptors,
    molecular_fingerprints,
)

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["tasks"]

PAPALEXI: Final = "papalexi2021_thp1_eccite_303genes.h5ad"
NORMAN: Final = "norman2019_subset_k562_crispra.h5ad"
LINCS: Final = "lincs_l1000_drugbank_consensus_z.h5ad"
MORPHIC: Final = "morphic_bulk_ko_log2fc.h5ad"
GENE_SETS: Final = "features/perturbation_genes_x_genesets.csv.gz"
#: Scores beyond these are clipped: a few genes would decide everything.
_MOST_Z: Final = 10.0


def tasks() -> tuple[Task, ...]:
    """Return the tasks whose data are there, the simulated ones always."""
    found = [task for file, task in _ON_DISK.items() if (data_directory() / file).exists()]
    made = [make() for make in found]
    return (*made, combinations(), doses("inner"), doses("top"))


def missing() -> list[str]:
    """Return the files that are not there, whose tasks are left out."""
    return [file for file in _ON_DISK if not (data_directory() / file).exists()]


def kang() -> Task:
    types = cell_types(load_kang())
    return Task(
        name="kang_unseen_context",
        title="Kang 2018: a cell type never seen stimulated",
        note=(
            "PBMC with interferon beta; each of seven types is held out in turn, its controls "
            "are visible. One strong perturbation: conditions are cell types."
        ),
        load=load_kang,
        kind="unseen_context",
        keys=ScreenKeys(context=CONTEXT_KEYS),
        fold_options=tuple(SplitOptions(context=label) for label in types),
    )


def load_papalexi() -> AnnData:
    adata = anndata.read_h5ad(data_directory() / PAPALEXI)
    return adata[adata.obs["single_guide"].astype(bool)].copy()


def papalexi() -> Task:
    return Task(
        name="papalexi_unseen_perturbation",
        title="Papalexi 2021: a knock-out never seen",
        note=(
            "THP-1, 25 knock-outs, 303 genes, cells with one guide; five folds over targets; "
            "features are gene sets. Profiles are shares of the 303 genes' counts. Most "
            "knock-outs do next to nothing: see the rows of clear effects."
        ),
        load=load_papalexi,
        kind="unseen_perturbation",
        features=gene_sets,
    )


def load_norman() -> AnnData:
    return anndata.read_h5ad(data_directory() / NORMAN)


def norman() -> Task:
    return Task(
        name="norman_unseen_combination",
        title="Norman 2019 (subset): a pair never seen",
        note=(
            "K562, CRISPRa, 18 singles and 15 pairs of about 100 cells, 500 genes. The signal is "
            "weak (a median of two genes change): this shows that pairs can be asked for, and "
            "supports no claim of accuracy."
        ),
        load=load_norman,
        kind="unseen_combination",
    )


def load_lincs() -> AnnData:
    adata = anndata.read_h5ad(data_directory() / LINCS)
    adata = adata[adata.obs["smiles"].astype(str).str.len() > 1].copy()
    readable = molecular_fingerprints(_smiles(adata), invalid="skip").index
    adata = adata[adata.obs["perturbation"].astype(str).isin(readable)].copy()
    adata.X = np.clip(np.asarray(adata.X, np.float64), -_MOST_Z, _MOST_Z)
    return adata


def _smiles(adata: AnnData) -> pd.Series[str]:
    return adata.obs.set_index(adata.obs["perturbation"].astype(str))["smiles"].astype(str)


def structures(adata: AnnData) -> PerturbationFeatures:
    smiles = _smiles(adata)
    return PerturbationFeatures(
        {
            "morgan": molecular_fingerprints(smiles, "morgan", counts=True),
            "paths": molecular_fingerprints(smiles, "paths", counts=True),
            "descriptors": molecular_descriptors(smiles),
        }
    )


def lincs() -> Task:
    obs = load_lincs().obs
    molecules = dict(zip(obs["perturbation"].astype(str), obs["smiles"].astype(str), strict=True))
    return Task(
        name="lincs_unseen_drug",
        title="LINCS L1000: a drug never seen",
        note=(
            "Consensus signatures (z, clipped to 10) of drugs over cell lines and doses, 978 "
            "genes: means alone. Five folds by molecule; features are of its structure alone: "
            "counts of circular neighbourhoods and of paths (2,048 each), ranks of descriptors."
        ),
        load=load_lincs,
        kind="unseen_perturbation",
        values="effects",
        features=structures,
        options=SplitOptions(groups=molecules),
    )


def load_morphic() -> AnnData:
    adata = anndata.read_h5ad(data_directory() / MORPHIC)
    known = adata.obs["perturbation"].astype(str).isin(_gene_sets().index)
    adata = adata[known].copy()
    values = np.clip(np.asarray(adata.layers["z"], np.float64), -_MOST_Z, _MOST_Z)
    obs = adata.obs.assign(experiment=adata.obs_names.to_numpy())
    return anndata.AnnData(values, obs=obs, var=adata.var[["symbol"]].copy())


def morphic() -> Task:
    return Task(
        name="morphic_unseen_gene",
        title="MorPhiC: a knock-out never seen, bulk",
        note=(
            "Bulk RNA of iPSC-derived cells in five systems, z of knock-out against wild type "
            "(clipped to 10), genes with a gene set. Each experiment is a condition of its own; "
            "five folds by gene. Means alone; a hard task."
        ),
        load=load_morphic,
        kind="unseen_perturbation",
        keys=ScreenKeys(context=("experiment",)),
        values="effects",
        features=gene_sets,
        gene_names="symbol",
    )


def _gene_sets() -> pd.DataFrame:
    return pd.read_csv(data_directory() / GENE_SETS, index_col=0)


def gene_sets(adata: AnnData) -> PerturbationFeatures:
    table = _gene_sets()
    named = adata.obs["perturbation"].astype(str).unique()
    return PerturbationFeatures({"gene_sets": table.loc[table.index.isin(named)]})


def combinations() -> Task:
    config = SimulatorConfig(n_perturbations=10, n_combinations=20, n_contexts=2)
    return Task(
        name="sim_unseen_combination",
        title="Simulated: a pair never seen",
        note=(
            "12,000 cells, 500 genes, 10 singles and 20 pairs in two cell types; effects add up "
            "in the state, not in the log of the profile; a tenth of the cells does not respond."
        ),
        load=partial(simulate_screen, n_cells=12_000, n_genes=500, config=config),
        kind="unseen_combination",
        keys=ScreenKeys(context=("cell_type",)),
        n_folds=4,
    )


def doses(which: str) -> Task:
    config = SimulatorConfig(n_perturbations=8, n_combinations=0, doses=(0.1, 0.3, 1.0, 3.0),
                             n_contexts=2)  # fmt: skip
    inner = which == "inner"
    return Task(
        name=f"sim_dose_{which}",
        title=f"Simulated: {'a dose between others' if inner else 'a dose beyond others'}",
        note=(
            "12,000 cells, 500 genes, 8 perturbations at four doses in two cell types; the "
            f"{'third' if inner else 'largest'} dose of half of them is held out; Hill curves."
        ),
        load=partial(simulate_screen, n_cells=12_000, n_genes=500, config=config),
        kind="dose",
        keys=ScreenKeys("perturbation", dose="dose", context=("cell_type",)),
        n_folds=2,
        options=SplitOptions(dose="inner" if inner else "top"),
    )


_ON_DISK: Final = {
    FILE: kang,
    PAPALEXI: papalexi,
    NORMAN: norman,
    LINCS: lincs,
    MORPHIC: morphic,
}
