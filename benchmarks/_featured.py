"""A simulated screen of perturbations with features, of which some were never seen."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from scvi_perturb.benchmark import Task
from scvi_perturb.data import ScreenKeys, SimulatorConfig, perturbation_features, simulate_screen
from scvi_perturb.features import PerturbationFeatures

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["featured"]


def featured() -> Task:
    """Return the task: forty perturbations, a quarter of them held out."""
    config = SimulatorConfig(n_perturbations=40, n_combinations=0, n_contexts=2)
    return Task(
        name="sim_unseen_featured",
        title="Simulated: a perturbation never seen, with features",
        note="12,000 cells, 500 genes, 40 singles; features explain 0.9 of the effects' variance.",
        load=partial(simulate_screen, n_cells=12_000, n_genes=500, config=config),
        kind="unseen_perturbation",
        keys=ScreenKeys(context=("cell_type",)),
        n_folds=4,
        features=_features,
    )


def _features(adata: AnnData) -> PerturbationFeatures:
    named = adata.obs["perturbation"].astype(str).unique()
    tables = perturbation_features(adata)
    return PerturbationFeatures(
        {name: table.loc[table.index.isin(named)] for name, table in tables.items()}
    )
