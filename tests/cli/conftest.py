"""Small screens in files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from scvi_perturb.data import SimulatorConfig, simulate_screen

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData


def simulate(**kwargs) -> AnnData:
    given = {
        "n_perturbations": 3,
        "n_combinations": 3,
        "n_contexts": 1,
        "n_batches": 2,
        "n_unseen": 0,
        "control_fraction": 0.3,
    }
    return simulate_screen(n_cells=420, n_genes=60, config=SimulatorConfig(**given | kwargs))


@pytest.fixture
def foreign() -> AnnData:
    """A screen with contexts, whose columns nobody would guess."""
    adata = simulate(n_contexts=2, n_combinations=0, n_perturbations=2)
    adata.layers["umis"] = adata.X.copy()
    adata.X = adata.X * 0.5
    names = {"perturbation": "guide", "cell_type": "tissue", "batch": "lane"}
    adata.obs = adata.obs[list(names)].rename(columns=names)
    adata.obs["guide"] = adata.obs["guide"].astype(str).replace("control", "wt")
    return adata


@pytest.fixture
def combinations_file(tmp_path: Path) -> Path:
    path = tmp_path / "combinations.h5ad"
    simulate().write_h5ad(path)
    return path


@pytest.fixture
def foreign_file(tmp_path: Path, foreign: AnnData) -> Path:
    path = tmp_path / "foreign.h5ad"
    foreign.write_h5ad(path)
    return path
