"""A simulated screen with a known answer, and predictions of it: good ones, and bad on purpose."""

from __future__ import annotations

import anndata
import pandas as pd
from scipy import sparse

from scvi_perturb.benchmark import Task, Trial
from scvi_perturb.data import ScreenKeys, SimulatorConfig, sample_truth, simulate_screen

CONFIG = SimulatorConfig(n_perturbations=12, n_combinations=0, n_contexts=1, n_batches=1)
N_CELLS, N_GENES = 6000, 150
#: Cells of a held-out condition: 4,800 treated cells over twelve conditions.
N_EACH = 400


def screen():
    """Return a screen in which each perturbation has a gene of its own name."""
    adata = simulate_screen(n_cells=N_CELLS, n_genes=N_GENES, config=CONFIG)
    return named(adata)


def named(adata):
    names = [f"pert_{i:02d}" for i in range(1, CONFIG.n_perturbations + 1)]
    adata.var_names = names + [f"gene_{i}" for i in range(adata.n_vars - len(names))]
    return adata


TASK = Task(
    name="simulated",
    load=screen,
    kind="unseen_perturbation",
    keys=ScreenKeys("perturbation", context=("cell_type",)),
    n_folds=2,
)


def make_trial(task=TASK, seed=0, fold=0):
    return Trial.make(task, seed=seed, fold=fold)


def request_rows(trial):
    return trial.requests.to_dict("records")


def truth_cells(trial, *, seed=1, n_cells=N_EACH):
    """Return new cells of each held-out condition, drawn from the truth: the best prediction."""
    original = simulate_screen(n_cells=N_CELLS, n_genes=N_GENES, config=CONFIG)
    parts = []
    for i, row in enumerate(request_rows(trial)):
        cells = sample_truth(
            original,
            row["perturbation"],
            context=row["cell_type"],
            n_cells=n_cells,
            seed=seed * 1000 + i,
        )
        parts.append(answer(cells.X, row))
    return with_genes(anndata.concat(parts, index_unique="-"), trial)


def answer(values, row):
    """Return cells as an answer to a row of the request."""
    obs = pd.DataFrame({name: [value] * values.shape[0] for name, value in row.items()})
    return anndata.AnnData(sparse.csr_matrix(values), obs=obs.set_axis(obs.index.astype(str)))


def with_genes(adata, trial):
    adata.var_names = trial.visible.var_names
    return adata


def per_condition(predicted, change):
    """Return the cells with the values of each condition changed by `change(values, name)`."""
    made = predicted.copy()
    values = made.X.toarray()
    for name in made.obs["perturbation"].unique():
        rows = (made.obs["perturbation"] == name).to_numpy()
        values[rows] = change(values[rows], name)
    made.X = sparse.csr_matrix(values)
    return made


def totals(frame):
    """Return each metric over all conditions of a table of scores."""
    sums = frame.groupby("metric")[["numerator", "denominator"]].sum(min_count=1)
    return (sums["numerator"] / sums["denominator"]).to_dict()
