"""The screen of the contract tests, what is known of its perturbations, and models made on it."""

from __future__ import annotations

from scvi_perturb import PerturbationFeatures
from scvi_perturb.data import SimulatorConfig, perturbation_features, simulate_screen, split

#: Columns of the screen.
SETUP = {"context_keys": ["cell_type"], "batch_key": "batch"}
CONFIG = {
    "n_perturbations": 5,
    "n_unseen": 1,
    "n_combinations": 4,
    "n_contexts": 2,
    "n_batches": 2,
    "library_size": 400.0,
    "control_fraction": 0.3,
}
#: Trained on, alone and combined.
SINGLE, OTHER, PAIR = "pert_01", "pert_03", "pert_02+pert_03"
#: Never measured: a combination of the two above, and a perturbation with features.
NEW_PAIR, FEATURED = "pert_01+pert_03", "pert_06"
#: In the screen and held out of training, without features.
HELD_OUT = "pert_05"


def make_screen(*, n_cells=300, n_genes=30, seed=0, **changes):
    """Return a small screen; `changes` are of its configuration."""
    config = SimulatorConfig(**{**CONFIG, **changes})
    return simulate_screen(n_cells=n_cells, n_genes=n_genes, seed=seed, config=config)


def make_searchable():
    """Return a screen with combinations enough to hold some out, with cells enough each."""
    return make_screen(n_cells=360, n_perturbations=4, n_combinations=4, n_contexts=1)


def make_split(adata):
    """Return a split that holds out every cell with `HELD_OUT`."""
    made = split(adata, "unseen_perturbation", seed=1)
    assert {name for row in made.held_out for name in row["targets"]} == {HELD_OUT}
    return made


def make_features(adata):
    """Return features of all perturbations but the one held out, and one more."""
    table = perturbation_features(adata)["embedding"]
    return PerturbationFeatures({"embedding": table.drop(index=[HELD_OUT, "pert_04"])})


def make_model(case, adata, *, setup=None, **init):
    """Return an untrained model; registers the data."""
    case.model.setup_anndata(adata, **(SETUP if setup is None else setup))
    return case.model(adata, **{**case.init, **init})


def fit(case, model, **train):
    """Train a model with the small arguments, save where others are given; return it."""
    model.train(**{**case.train, **train})
    return model


def controls(adata):
    """Return the control cells, copied."""
    return adata[adata.obs["perturbation"] == "control"].copy()


def dense(matrix):
    """Return an array."""
    return matrix.toarray() if hasattr(matrix, "toarray") else matrix
