"""Small screens in files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from scvi_perturb.cli import main
from scvi_perturb.data import SimulatorConfig, simulate_screen

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData


def simulate(n_cells: int = 420, **kwargs) -> AnnData:
    given = {
        "n_perturbations": 3,
        "n_combinations": 3,
        "n_contexts": 1,
        "n_batches": 2,
        "n_unseen": 0,
        "control_fraction": 0.3,
    }
    return simulate_screen(n_cells=n_cells, n_genes=60, config=SimulatorConfig(**given | kwargs))


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


#: Of a training that takes a second.
SHORT = ["--model", "PerturbDiffusion", "--max-epochs", "1", "--n-steps", "5"]


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """The folder of a model that `train` wrote, beside its screen."""
    folder = tmp_path_factory.mktemp("trained")
    simulate(200, n_contexts=2).write_h5ad(folder / "screen.h5ad")
    asked = [str(folder / "screen.h5ad"), "--out", str(folder / "model"), *SHORT]
    assert main(["train", *asked, "--held-out", "pert_01+pert_02", "--seed", "3"]) == 0
    return folder / "model"
