"""What a simulated screen says of a model of latent groups: every figure with its ceiling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd
from sklearn.linear_model import RidgeCV

from benchmarks._block_r2 import block_r2
from scvi_perturb.data import (
    ScreenKeys,
    SimulatorConfig,
    SplitOptions,
    expected_profile,
    simulate_screen,
    split,
    state_shift,
    true_effect,
)
from scvi_perturb.predictors import Additive, DoseLine

if TYPE_CHECKING:
    from anndata import AnnData

    from scvi_perturb import CausalPerturbVAE
    from scvi_perturb.data import Split

__all__ = ["GROUPS", "dose_scores", "make_dose_screen", "make_screen", "scores"]

GROUPS: Final = ("identity", "state", "technical")
CONFIG: Final = SimulatorConfig(
    n_perturbations=12, n_combinations=10, n_contexts=3, n_batches=4, batch_effect=0.5
)
N_CELLS: Final = 8_000
N_GENES: Final = 1_000


def make_screen(
    seed: int, *, n_cells: int = N_CELLS, n_genes: int = N_GENES
) -> tuple[AnnData, Split]:
    """Return a screen of 12 perturbations and 10 pairs, a share of the pairs held out."""
    adata = simulate_screen(n_cells=n_cells, n_genes=n_genes, seed=seed, config=CONFIG)
    return adata, split(adata, "unseen_combination", seed=seed)


def make_dose_screen(seed: int) -> tuple[AnnData, Split]:
    """Return a screen of eight perturbations at four doses, the third held out of half of them."""
    config = SimulatorConfig(
        n_perturbations=8, n_combinations=0, doses=(0.1, 0.3, 1.0, 3.0), n_contexts=2
    )
    adata = simulate_screen(n_cells=6_000, n_genes=500, seed=seed, config=config)
    return adata, split(adata, "dose", seed=seed, options=SplitOptions(dose="inner"))


def scores(model: CausalPerturbVAE, adata: AnnData, made: Split, seed: int) -> dict[str, float]:
    """Return all figures of one model on one screen; those of cells are of validation cells."""
    cells = np.asarray(made.validation)
    latents = {g: model.get_latent_representation(group=g) for g in GROUPS}
    truths = {g: np.asarray(adata.obsm[f"truth_{g}"]) for g in GROUPS}
    table = block_r2({g: x[cells] for g, x in latents.items()},
                     {g: x[cells] for g, x in truths.items()}, seed=seed)  # fmt: skip
    found = {f"R2 {g}": float(table.loc[g, g]) for g in GROUPS}
    leaks = table.to_numpy()[~np.eye(3, dtype=bool)]
    found["largest leak"] = float(leaks.max())
    found |= _operators(model, adata, latents["state"], truths["state"], made)
    found |= _combinations(model, adata, made)
    found |= _coverage(model, adata, made)
    noise = 1.0 - np.array([found[f"R2 {group}"] for group in GROUPS])
    found |= _metadata(model, adata, cells, truths, noise)
    found |= _control(model, adata)
    return found


def _operators(
    model: CausalPerturbVAE, adata: AnnData, state: np.ndarray, truth: np.ndarray, made: Split
) -> dict[str, float]:
    """Compare operators with the truth: in the state, up to a linear map, and in genes."""
    names = [str(n) for n in adata.uns["truth"]["perturbations"][: CONFIG.n_perturbations]]
    to_truth = RidgeCV(np.logspace(-3, 3, 7)).fit(state[made.train], truth[made.train])
    learned = model.get_perturbation_representation(names).to_numpy() @ to_truth.coef_.T
    true = np.stack([state_shift(adata, name) for name in names])
    # Of the cells that respond.
    share = CONFIG.responder_fraction
    genes = model.get_perturbation_effects(names).X * share
    wanted = np.stack([true_effect(adata, name) for name in names])
    in_state, in_genes = _cosines(learned, true), _cosines(genes, wanted)
    return {
        "operator cosine, state": float(in_state.mean()),
        "least operator cosine, state": float(in_state.min()),
        "operator cosine, genes": float(in_genes.mean()),
        "least operator cosine, genes": float(in_genes.min()),
    }


def _combinations(model: CausalPerturbVAE, adata: AnnData, made: Split) -> dict[str, float]:
    """Compare held-out pairs with the truth, beside sums of measured effects."""
    pairs = sorted({row["perturbation"] for row in made.held_out})
    share = CONFIG.responder_fraction
    predicted = share * model.get_perturbation_effects(pairs).X
    wanted = np.stack([true_effect(adata, pair) for pair in pairs])
    added = Additive().fit(adata, made).predict(pairs).layers["lfc"]
    return {
        "pairs, cosine": float(_cosines(predicted, wanted).mean()),
        "pairs, error": _error(predicted, wanted),
        "pairs, error of sums": _error(added, wanted),
    }


def _coverage(model: CausalPerturbVAE, adata: AnnData, made: Split) -> dict[str, float]:
    """Return the share of true effects, in cells that respond, within intervals of 90 %."""
    names = [str(n) for n in adata.uns["truth"]["perturbations"][: CONFIG.n_perturbations]]
    pairs = sorted({row["perturbation"] for row in made.held_out})
    control, share = expected_profile(adata, "control"), CONFIG.responder_fraction
    found = {}
    for title, asked in (("effects", names), ("held-out pairs", pairs)):
        effects = model.get_perturbation_effects(asked, interval=0.9)
        mixed = np.stack([expected_profile(adata, name) for name in asked])
        moved = (mixed - (1 - share) * control) / share
        true = np.log1p(1e4 * moved) - np.log1p(1e4 * control)
        within = (true >= effects.layers["lower"]) & (true <= effects.layers["upper"])
        found[f"{title} within intervals of 90 %"] = float(within.mean())
    return found


def _metadata(
    model: CausalPerturbVAE,
    adata: AnnData,
    cells: np.ndarray,
    truths: dict[str, np.ndarray],
    noise: np.ndarray,
) -> dict[str, float]:
    """Return the accuracy on cells not trained on, beside what the true posterior reaches.

    Once from the true latents, once from these with the noise of counts added: as much as the share
    of their variance that the model leaves unexplained.
    """
    found, labels = {}, adata.obs.iloc[cells]
    guesses = model.predict_metadata(indices=cells)
    exact = {group: values[cells] for group, values in truths.items()}
    random = np.random.default_rng(0)
    added = dict(zip(GROUPS, noise, strict=True))
    noisy = {
        group: x + np.sqrt(added[group]) * x.std(0) * random.standard_normal(x.shape)
        for group, x in exact.items()
    }
    limits = _bayes(adata, exact, 0.0), _bayes(adata, noisy, added["state"])
    for field in ("cell_type", "batch", "perturbation"):
        truth = labels[field].astype(str).to_numpy()
        guess = guesses[field].idxmax(axis=1).to_numpy()
        found[f"accuracy {field}"] = float((guess == truth).mean())
        found[f"accuracy {field}, true latents"] = float((limits[0][field] == truth).mean())
        found[f"accuracy {field}, with noise"] = float((limits[1][field] == truth).mean())
    return found


def _bayes(adata: AnnData, latents: dict[str, np.ndarray], noise: float) -> dict[str, np.ndarray]:
    """Return the most probable labels given latents of their group with a share of noise."""
    truth = adata.uns["truth"]
    contexts, batches = (np.asarray(truth[k]).astype(str) for k in ("contexts", "batches"))
    centres = np.asarray(truth["context_centroids"]), np.asarray(truth["batch_centroids"])
    context = _nearest(latents["identity"], centres[0])
    batch = _nearest(latents["technical"][:, 1:], centres[1][:, 1:])
    found = {"cell_type": contexts[context], "batch": batches[batch]}
    names, counts = np.unique(adata.obs["perturbation"].astype(str), return_counts=True)
    state, share = latents["state"], CONFIG.responder_fraction
    variance = CONFIG.state_sd**2 + noise * state.var(axis=0)
    scores = np.full((len(names), len(state)), -np.inf)
    for i, (name, count) in enumerate(zip(names, counts, strict=True)):
        stayed = -0.5 * (state**2 / variance).sum(axis=1)
        if name == "control":
            scores[i] = np.log(count) + stayed
            continue
        shifts = np.stack([state_shift(adata, name, context=c) for c in contexts])
        moved = -0.5 * ((state - shifts[context]) ** 2 / variance).sum(axis=1)
        mixed = np.logaddexp(moved + np.log(share), stayed + np.log1p(-share))
        scores[i] = np.log(count) + mixed
    return found | {"perturbation": names[scores.argmax(axis=0)]}


def _nearest(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    return np.argmin(((points[:, None] - centres[None]) ** 2).sum(-1), axis=1)


def _control(model: CausalPerturbVAE, adata: AnnData) -> dict[str, float]:
    """Return how far control in, control out is from the truth, beside half of the controls."""
    moved = np.abs(model.predict(["control"], n_samples=None).layers["lfc"]).mean()
    controls = adata.X[(adata.obs["perturbation"] == "control").to_numpy()]
    order = np.random.default_rng(0).permutation(controls.shape[0])
    sums = [np.asarray(controls[part].sum(axis=0)).ravel() for part in np.array_split(order, 2)]
    halves = [np.log1p(1e4 * total / total.sum()) for total in sums]
    true = np.log1p(1e4 * expected_profile(adata, "control"))
    drawn = model.predict(["control"], n_samples=2_000).X[0]
    return {
        "control moves": float(moved),
        "two halves of controls": float(np.abs(halves[0] - halves[1]).mean()),
        "control profile, error": float(np.abs(drawn - true).mean()),
    }


def dose_scores(model: CausalPerturbVAE, adata: AnnData, made: Split) -> dict[str, float]:
    """Compare held-out doses with the truth, beside a line in the logarithm of the dose."""
    rows = pd.DataFrame([dict(row) for row in made.held_out])[["perturbation", "dose"]]
    rows = rows.drop_duplicates().reset_index(drop=True)
    predicted = CONFIG.responder_fraction * model.get_perturbation_effects(rows).X
    wanted = np.stack([true_effect(adata, r.perturbation, dose=r.dose) for r in rows.itertuples()])
    keys = ScreenKeys("perturbation", dose="dose")
    line = DoseLine().fit(adata, made, keys=keys).predict(rows).layers["lfc"]
    return {
        "doses, cosine": float(_cosines(predicted, wanted).mean()),
        "doses, error": _error(predicted, wanted),
        "doses, error of a line": _error(line, wanted),
    }


def _cosines(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
    cosines: np.ndarray = (one * two).sum(axis=1) / np.maximum(lengths, 1e-12)
    return cosines


def _error(predicted: np.ndarray, wanted: np.ndarray) -> float:
    """Return the squared error over that of no change."""
    return float(((predicted - wanted) ** 2).sum() / (wanted**2).sum())
