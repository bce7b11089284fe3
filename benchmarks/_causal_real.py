"""Latent groups on real screens: which operators are near, where the replicate goes, bulk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks._kang_frame import load_kang
from benchmarks._tasks import gene_sets, load_morphic, load_papalexi
from scvi_perturb import CausalPerturbVAE
from scvi_perturb.data import ScreenKeys, split
from scvi_perturb.metrics import log_normalize

if TYPE_CHECKING:
    from anndata import AnnData

    from scvi_perturb import CausalConfig
    from scvi_perturb.data import Split

__all__ = [
    "GROUPS",
    "PAPALEXI",
    "PATHWAY",
    "fitted",
    "kang_metadata",
    "morphic",
    "papalexi",
    "pca_effects",
]

GROUPS: Final = ("identity", "state", "technical")
#: One pathway: interferon gamma to STAT1.
PATHWAY: Final = ("IFNGR1", "IFNGR2", "JAK2", "STAT1")
QUIET: Final = {"enable_progress_bar": False}
N_COMPONENTS: Final = 50


def fitted(
    adata: AnnData,
    made: Split | None,
    seed: int,
    *,
    setup: dict[str, Any],
    config: CausalConfig | None = None,
) -> CausalPerturbVAE:
    """Return a trained model on a copy of the data."""
    adata = adata.copy()
    CausalPerturbVAE.setup_anndata(adata, **setup)
    model = CausalPerturbVAE(adata, causal=config, seed=seed)
    model.train(split=made, seed=seed, **QUIET)
    return model


PAPALEXI: Final = {
    "perturbation_key": "perturbation", "control": "control", "batch_key": "batch",
    "library_key": "total_counts",
}  # fmt: skip


def papalexi(seed: int, config: CausalConfig | None = None) -> dict[str, float]:
    """Return how near the pathway's operators are, and what the latents know of the replicate."""
    adata = load_papalexi()
    model = fitted(adata, None, seed, setup=PAPALEXI, config=config)
    found = {}
    names = sorted(set(adata.obs["perturbation"].astype(str)) - {"control"})
    for title, vectors in (
        ("operators", model.get_perturbation_representation(names)),
        ("PCA", pca_effects(adata, names)),
    ):
        found |= {f"{title}: {k}": v for k, v in pathway_cosines(vectors).items()}
    for group in GROUPS:
        latent = model.get_latent_representation(group=group)
        latent = latent[:, 1:] if group == "technical" else latent
        found[f"replicate AUROC from {group}"] = auroc(latent, adata.obs["batch"])
    found["replicate AUROC from PCA"] = auroc(pca(adata), adata.obs["batch"])
    return found


def pathway_cosines(vectors: pd.DataFrame) -> dict[str, float]:
    """Return mean cosines within the pathway, and of its members with the other knock-outs."""
    unit = vectors.to_numpy() / np.linalg.norm(vectors.to_numpy(), axis=1, keepdims=True)
    inside = vectors.index.isin(PATHWAY)
    cosine = unit @ unit.T
    pairs = cosine[np.ix_(inside, inside)][np.triu_indices(inside.sum(), 1)]
    outside = cosine[np.ix_(inside, ~inside)]
    return {
        "cosine within the pathway": float(pairs.mean()),
        "least cosine within the pathway": float(pairs.min()),
        "cosine with other knock-outs": float(outside.mean()),
        "largest cosine with another knock-out": float(outside.max()),
    }


def pca(adata: AnnData) -> np.ndarray:
    """Return the leading components of log-normalised cells."""
    values = log_normalize(adata.X)
    components: np.ndarray = PCA(N_COMPONENTS, random_state=0).fit_transform(values)
    return components


def pca_effects(adata: AnnData, names: list[str]) -> pd.DataFrame:
    """Return the mean of each knock-out less that of the controls, in components."""
    points = pd.DataFrame(pca(adata))
    means = points.groupby(adata.obs["perturbation"].astype(str).to_numpy()).mean()
    return means.loc[names] - means.loc["control"]


def auroc(latent: np.ndarray, labels: pd.Series, seed: int = 0) -> float:
    """Return how well a linear classifier tells labels, one against the rest, on cells left out."""
    codes = labels.astype("category").cat.codes.to_numpy()
    made = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    shares = cross_val_predict(made, latent, codes, cv=folds, method="predict_proba")
    return float(roc_auc_score(codes, shares, multi_class="ovr"))


def kang_metadata(seed: int) -> dict[str, float]:
    """Return macro F1 of cell type and perturbation on held-out cells, beside other methods."""
    adata = load_kang()
    made = split(adata, "cells", seed=seed, keys=ScreenKeys("perturbation"))
    setup = {"perturbation_key": "perturbation", "context_keys": ["cell_type"]}
    model = fitted(adata, made, seed, setup=setup)
    test, train = made.test, np.union1d(made.train, made.validation)
    found = {}
    guesses = model.predict_metadata(indices=test)
    values = log_normalize(adata.X)
    components = PCA(N_COMPONENTS, random_state=seed).fit(values[train]).transform(values)
    for field in ("cell_type", "perturbation"):
        truth = adata.obs[field].astype(str).to_numpy()
        found[f"{field}: CausalPerturbVAE"] = f1(truth[test], guesses[field].idxmax(axis=1))
        linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        linear.fit(components[train], truth[train])
        found[f"{field}: logistic regression on PCA"] = f1(
            truth[test], linear.predict(components[test])
        )
        found[f"{field}: scANVI"] = f1(truth[test], scanvi(adata, field, train, test, seed))
    return found


def f1(truth: np.ndarray, guess: np.ndarray | pd.Series) -> float:
    return float(f1_score(truth, np.asarray(guess), average="macro"))


def scanvi(
    adata: AnnData, field: str, train: np.ndarray, test: np.ndarray, seed: int
) -> np.ndarray:
    """Return scANVI's labels of cells whose labels it was not told."""
    import scvi

    before, scvi.settings.seed = scvi.settings.seed, seed
    try:
        data = adata.copy()
        labels = data.obs[field].astype(str).to_numpy().copy()
        labels[test] = "unknown"
        data.obs["told"] = pd.Categorical(labels)
        scvi.model.SCVI.setup_anndata(data)
        base = scvi.model.SCVI(data)
        base.train(max_epochs=60, **QUIET)
        model = scvi.model.SCANVI.from_scvi_model(
            base, unlabeled_category="unknown", labels_key="told"
        )
        model.train(max_epochs=20, **QUIET)
        found: np.ndarray = np.asarray(model.predict(data[test].copy()))
    finally:
        scvi.settings.seed = before
    return found


def morphic(seed: int) -> dict[str, float]:
    """Return how well signatures of genes never seen are predicted, and what a signature tells."""
    adata = load_morphic()
    adata.obs["day"] = adata.obs["day"].astype(float)
    genes = adata.obs["perturbation"].astype(str).to_numpy()
    names = np.random.default_rng(seed).permutation(np.unique(genes))
    squared = {"CausalPerturbVAE": 0.0, "mean of the system": 0.0, "no change": 0.0}
    guessed: dict[str, list[np.ndarray]] = {"model_system": [], "strategy": [], "day": []}
    setup = {
        "context_keys": ["model_system"],
        "metadata_keys": {"identity": ["day", "strategy"]},
    }
    for held in np.array_split(names, 5):
        test = np.isin(genes, held)
        train = adata[~test].copy()
        CausalPerturbVAE.setup_signatures(train, **setup)
        model = CausalPerturbVAE(train, features=gene_sets(adata), seed=seed)
        model.train(seed=seed, batch_size=32, **QUIET)
        asked = adata.obs.loc[test, ["perturbation", "model_system"]].astype(str)
        wanted = adata.X[test]
        systems = train.obs["model_system"].astype(str)
        means = pd.DataFrame(train.X).groupby(systems.to_numpy()).mean()
        overall = means.mean()
        trivial = np.stack([means.loc[s] if s in means.index else overall
                            for s in asked["model_system"]])  # fmt: skip
        # A system without a training signature is not known: its label is missing.
        known = asked["model_system"].where(asked["model_system"].isin(set(systems)))
        told_of = asked.assign(model_system=known).reset_index(drop=True)
        predicted = model.predict(told_of).X
        for name, values in (("CausalPerturbVAE", predicted), ("mean of the system", trivial),
                             ("no change", np.zeros_like(wanted))):  # fmt: skip
            squared[name] += float(((values - wanted) ** 2).sum())
        told = model.predict_metadata(adata[test].copy())
        for field in ("model_system", "strategy"):
            truth = adata.obs.loc[test, field].astype(str).to_numpy()
            guessed[field].append(told[field].idxmax(axis=1).to_numpy() == truth)
        guessed["day"].append(np.abs(told["day"]["mean"] - adata.obs.loc[test, "day"]).to_numpy())
    found = {f"error: {name}": value / squared["no change"] for name, value in squared.items()}
    for field in ("model_system", "strategy"):
        found[f"accuracy {field}"] = float(np.concatenate(guessed[field]).mean())
        largest = adata.obs[field].value_counts(normalize=True).max()
        found[f"accuracy {field}, the most frequent"] = float(largest)
    found["days, mean absolute error"] = float(np.concatenate(guessed["day"]).mean())
    day = adata.obs["day"]
    found["days, of the median"] = float((day - day.median()).abs().mean())
    return found
