"""The frame of the Kang figures: which cells are held out, what scores a prediction of them.

Kang 2018, PBMC with and without interferon beta. Cells labelled `unknown` and the thirteen
megakaryocytes are dropped; each of the seven cell types is held out in turn: its stimulated cells
are seen by the scorer alone, its control cells by all. Each cell is log1p(counts per 10,000), a
profile is the mean over cells, a change is taken against the held-out type's own control cells.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anndata
import numpy as np

from scvi_perturb.data import ScreenKeys, Split, SplitOptions, split
from scvi_perturb.metrics import (
    BASIC,
    CellPopulation,
    Comparison,
    GroundTruth,
    Space,
    fit_pca,
    log_normalize,
    score,
)

if TYPE_CHECKING:
    from anndata import AnnData

    from scvi_perturb.metrics import Matrix

FILE: Final = "kang2018_pbmc_ifnb_merged_counts.h5ad"
DATA_VARIABLE: Final = "SCVI_PERTURB_DATA"
DEFAULT_DATA: Final = Path(__file__).resolve().parents[2] / "shared" / "data"
DROPPED: Final = ("unknown", "Megakaryocytes")
CONTROL: Final = "control"
STIMULATED: Final = "IFN-beta"
CONTEXT_KEYS: Final = ("cell_type",)


@dataclass(frozen=True, slots=True)
class Case:
    """One held-out cell type: what a predictor may see, and what its answer is scored with."""

    cell_type: str
    screen: AnnData
    split: Split
    reference: AnnData
    control: CellPopulation
    observed: CellPopulation
    space: Space


def load_kang(directory: Path | None = None) -> AnnData:
    """Return the screen of the frame: 3,855 cells of seven types, raw counts in `X`."""
    path = data_directory(directory) / FILE
    if not path.exists():
        msg = (
            f"There is no file {path}. Set {DATA_VARIABLE} to the folder that holds {FILE} "
            "(GSE96583, counts of control and interferon-beta cells merged)."
        )
        raise FileNotFoundError(msg)
    adata = anndata.read_h5ad(path)
    adata = adata[~adata.obs["cell_type"].isin(DROPPED)].copy()
    adata.obs["cell_type"] = adata.obs["cell_type"].cat.remove_unused_categories()
    return adata


def data_directory(directory: Path | None = None) -> Path:
    return directory or Path(os.environ.get(DATA_VARIABLE, DEFAULT_DATA))


def cell_types(adata: AnnData) -> list[str]:
    return sorted(adata.obs["cell_type"].unique())


def hold_out(adata: AnnData, cell_type: str, seed: int = 0) -> Case:
    """Hold out the stimulated cells of one type.

    `seed` chooses the validation cells among the others; the rest does not depend on it.
    """
    made = split_without(adata, cell_type, seed)
    normalized = log_normalize(adata.X)
    seen = np.setdiff1d(np.arange(adata.n_obs), made.test)
    control = (adata.obs["cell_type"] == cell_type) & (adata.obs["perturbation"] == CONTROL)
    return Case(
        cell_type=cell_type,
        screen=adata,
        split=made,
        reference=adata[control].copy(),
        control=CellPopulation.from_cells(normalized[np.flatnonzero(control)]),
        observed=CellPopulation.from_cells(normalized[made.test]),
        space=Space(fit_pca(normalized[seen])),
    )


def split_without(adata: AnnData, cell_type: str, seed: int) -> Split:
    """Return the split that holds out the stimulated cells of one type."""
    return split(
        adata,
        "unseen_context",
        seed=seed,
        keys=ScreenKeys("perturbation", control=CONTROL, context=CONTEXT_KEYS),
        options=SplitOptions(context=cell_type),
    )


def score_cells(case: Case, cells: Matrix, seed: int) -> dict[str, float]:
    """Score predicted log-normalised cells, `(n, n_genes)`, against the held-out ones."""
    predicted = CellPopulation.from_cells(cells)
    truth = GroundTruth(case.observed, case.control, case.space, seed=seed)
    return score(Comparison(predicted, truth), BASIC)


def score_replicate(case: Case, seed: int) -> dict[str, float]:
    """Score one random half of the held-out cells as the prediction of the other half.

    Nothing is corrected but what is corrected for every prediction: from the squared error the
    sampling variance of the half that is scored *against* is subtracted. The half that predicts
    keeps its own, so that this is the error of repeating the experiment with half the cells, not
    0. Changes of both halves are taken against all control cells.
    """
    cells = log_normalize(case.screen.X[case.split.test])
    order = np.random.default_rng(seed).permutation(cells.shape[0])
    first, second = np.array_split(order, 2)
    halves = [CellPopulation.from_cells(cells[half]) for half in (first, second)]
    truth = GroundTruth(halves[1], case.control, case.space, seed=seed)
    return score(Comparison(halves[0], truth), BASIC)
