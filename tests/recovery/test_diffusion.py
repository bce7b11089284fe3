"""`PerturbDiffusion` recovers what the simulator did, where nobody measured it.

A held-out condition is predicted; the truth is known, and so is how well a repetition of the
experiment with as many cells would have found it: the noise ceiling.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

from scvi_perturb import PerturbDiffusion
from scvi_perturb.data import (
    ScreenKeys,
    SimulatorConfig,
    sample_truth,
    simulate_screen,
    split,
    true_effect,
)
from scvi_perturb.metrics import log_normalize

if TYPE_CHECKING:
    from anndata import AnnData
    from scipy.sparse import csr_matrix

CONTEXT = "cell_type"
SCREENS = {
    "combination": (
        SimulatorConfig(n_perturbations=6, n_combinations=9, n_contexts=2),
        "unseen_combination",
        None,
    ),
    "dose": (
        SimulatorConfig(
            n_perturbations=4, n_combinations=0, n_contexts=2, doses=(0.1, 0.3, 1.0, 3.0)
        ),
        "dose",
        "dose",
    ),
}


@pytest.fixture(scope="module", params=sorted(SCREENS))
def fitted(request: pytest.FixtureRequest) -> tuple[AnnData, PerturbDiffusion, pd.DataFrame]:
    """A screen, a model trained without some of its conditions, and those conditions."""
    config, kind, dose_key = SCREENS[request.param]
    adata = simulate_screen(n_cells=3000, n_genes=100, seed=1, config=config)
    parts = split(
        adata, kind, seed=1, keys=ScreenKeys(dose=dose_key, context=[CONTEXT]), fraction=0.25
    )
    PerturbDiffusion.setup_anndata(
        adata, dose_key=dose_key, context_keys=[CONTEXT], batch_key="batch"
    )
    model = PerturbDiffusion(adata, n_latent=16, n_layers=1, seed=0)
    model.train(max_epochs=60, split=parts, n_steps=800, seed=0, enable_progress_bar=False)
    columns = ["perturbation", *([dose_key] if dose_key else []), CONTEXT]
    held = adata.obs.iloc[parts.test].groupby(columns, observed=True).size().rename("n_cells")
    return adata, model, held[held > 0].reset_index()


def profile(counts: csr_matrix) -> np.ndarray:
    total = np.asarray(counts.sum(axis=0), dtype=float).ravel()
    return np.log1p(1e4 * total / total.sum())


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def truth_of(row: pd.Series) -> dict:
    return {"dose": row.get("dose"), "context": row[CONTEXT]}


def test_unseen_conditions_have_the_true_mean_effect(fitted) -> None:
    adata, model, held = fitted
    predicted, ceiling = [], []
    for _, row in held.iterrows():
        truth = true_effect(adata, row["perturbation"], **truth_of(row), n_cells=2000)
        control = adata[
            (adata.obs["perturbation"] == "control") & (adata.obs[CONTEXT] == row[CONTEXT])
        ]
        again = sample_truth(
            adata, row["perturbation"], **truth_of(row), n_cells=int(row["n_cells"]), seed=7
        )
        asked = pd.DataFrame([row.drop("n_cells")])
        cells = model.sample(asked, n_samples=400, seed=3)
        predicted.append(cosine(profile(cells.X) - profile(control.X), truth))
        ceiling.append(cosine(profile(again.X) - profile(control.X), truth))
    assert np.mean(predicted) >= 0.9 * np.mean(ceiling)


def test_unseen_conditions_have_the_true_spread(fitted) -> None:
    adata, model, held = fitted
    ratios = []
    for _, row in held.iterrows():
        real = sample_truth(adata, row["perturbation"], **truth_of(row), n_cells=400, seed=8)
        cells = model.sample(pd.DataFrame([row.drop("n_cells")]), n_samples=400, seed=4)
        spread = [log_normalize(x).toarray().var(axis=0, ddof=1) for x in (cells.X, real.X)]
        ratios.append(np.median(spread[0] / spread[1]))
    # The median over 100 genes of a ratio of two variances over 400 cells, each with a relative
    # standard error of about sqrt(2 / 400) = 7 %, is known to about 1.25 * 10 % / sqrt(100).
    tolerance = 2 * 1.25 * np.sqrt(2 * 2 / 400) / np.sqrt(100) / np.sqrt(len(ratios))
    assert 0.9 - tolerance <= np.mean(ratios) <= 1.1 + tolerance


def test_control_in_no_effect_out(fitted) -> None:
    adata, model, _ = fitted
    control = adata[adata.obs["perturbation"] == "control"].X
    cells = model.sample(["control"], n_samples=control.shape[0], seed=5).X
    random = np.random.default_rng(0)
    moved = np.linalg.norm(profile(cells) - profile(control))
    halves = []
    for _ in range(20):
        order = random.permutation(control.shape[0])
        first, second = np.array_split(order, 2)
        halves.append(np.linalg.norm(profile(control[first]) - profile(control[second])))
    # Two halves differ by sqrt(2) more than two samples of full size; the effect of a strong
    # perturbation is an order of magnitude above either.
    assert moved <= np.max(halves)


def test_doses_in_order(fitted) -> None:
    _, model, held = fitted
    if "dose" not in held:
        pytest.skip("this screen has no doses")
    name = held["perturbation"].iloc[0]
    asked = pd.DataFrame({"perturbation": name, "dose": ["0.05", "0.2", "0.7", "2.0"]})
    size = np.linalg.norm(model.predict(asked, n_samples=400, seed=6).layers["lfc"], axis=1)
    assert (np.diff(size) > 0).all()
