"""Densities, anomalies and speed of `PerturbFlow`: `python -m benchmarks.flow`.

On a simulated screen whose likelihood can be integrated: how likely held-out cells are under the
models and in truth; how well planted doublets, cells that a perturbation did not reach, and cells
of a type never seen are told from others, beside what anyone would try first. And how fast cells
are carried and scored. Written to `benchmarks/results/flow.md`.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from benchmarks._true_likelihood import true_log_likelihood
from scvi_perturb import FlowConfig, PerturbDiffusion, PerturbFlow
from scvi_perturb.benchmark import markdown_table
from scvi_perturb.data import SimulatorConfig, simulate_screen
from scvi_perturb.metrics import log_normalize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

RESULTS: Final = Path(__file__).resolve().parent / "results"
UNSEEN: Final = "type_03"
N_PLANTED: Final = 300
FLOWS: Final = {
    "flow from noise": FlowConfig(source="noise"),
    "splines": FlowConfig(source="noise", kind="coupling"),
}
HEAD: Final = """\
# PerturbFlow: densities, anomalies, speed

Written by `python -m benchmarks.flow`. Simulated screens of 8,000 cells and 500 genes, 6
perturbations, 4 pairs and three cell types, one of them never trained on; a fifth of the treated
cells does not respond. Mean over seeds ({n}), ± the standard deviation
where there are several.

## Held-out likelihood

Nats a cell of {cells} held-out cells of trained types, library given. *Truth*: the simulator's
factors integrated out by importance sampling. Bounds of flows are importance-weighted with 16
latents, that of the diffusion and of the flow from control cells is the mean over 256 draws from
the model. *No cell structure*: a negative binomial about the mean profile of the cell's condition
and type, one dispersion a gene, by its moments.

{likelihood}

## Anomalies

Area under the ROC curve, {planted} planted cells against held-out cells of the same size of
library. *Doublets*: summed counts of two cells of different type, thinned to the library of one.
*Unseen type*: labelled as a type that was trained on. *Not reached*: treated cells that did not
respond, against those that did. PCA: Mahalanobis distance to the mean of the cell's condition and
type in 30 components, pooled covariance; for cells not reached, that less the distance to the mean
control. kNN: mean distance to the 15 nearest training cells of condition and type; likewise.

{anomalies}

## Speed

Threads: {threads}. The first line is the latent alone, without counts.

{speed}
"""


@dataclass(frozen=True, slots=True)
class Screen:
    """A simulated screen, cut into what trains and what is scored."""

    train: AnnData
    test: AnnData
    unseen: AnnData

    @classmethod
    def make(cls, seed: int) -> Screen:
        config = SimulatorConfig(
            n_perturbations=6, n_combinations=4, n_contexts=3, responder_fraction=0.8
        )
        adata = simulate_screen(n_cells=8_000, n_genes=500, config=config, seed=seed)
        order = np.random.default_rng(seed).permutation(adata.n_obs)
        unseen = (adata.obs["cell_type"] == UNSEEN).to_numpy()
        known = order[~unseen[order]]
        n_test = len(known) // 5
        return cls(*(adata[rows].copy() for rows in (known[n_test:], known[:n_test],
                                                     order[unseen[order]])))  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all, write the page."""
    options = _parser().parse_args(arguments)
    likelihoods, anomalies = [], []
    for seed in range(options.seeds):
        screen = Screen.make(seed)
        models = {name: _trained(PerturbFlow, screen, seed, flow=f) for name, f in FLOWS.items()}
        print(f"seed {seed}: flows trained", flush=True)
        anomalies.append(anomaly_scores(screen, models, seed))
        print(anomalies[-1].round(3).to_string(), flush=True)
        models["flow from control"] = _trained(PerturbFlow, screen, seed)
        models["diffusion"] = _trained(PerturbDiffusion, screen, seed)
        likelihoods.append(likelihood_scores(screen, models, options.n_cells))
        print(likelihoods[-1].round(2).to_string(), flush=True)
    text = HEAD.format(
        n=options.seeds,
        cells=options.n_cells,
        planted=N_PLANTED,
        likelihood=_table(likelihoods, "method", 1),
        anomalies=_table(anomalies, "score", 3),
        speed=speed(),
        threads=torch.get_num_threads(),
    )
    options.page.write_text(text, encoding="utf-8")
    print(text)


def _trained(cls: Any, screen: Screen, seed: int, **options: Any) -> Any:  # noqa: ANN401
    adata = screen.train.copy()
    cls.setup_anndata(adata, context_keys=["cell_type"], batch_key="batch")
    model = cls(adata, seed=seed, **options)
    model.train(seed=seed, enable_progress_bar=False)
    return model


def likelihood_scores(screen: Screen, models: dict[str, Any], n_cells: int) -> pd.DataFrame:
    """Return the mean log-likelihood of held-out cells under each model."""
    cells = screen.test[:n_cells].copy()
    true, error = true_log_likelihood(cells)
    found = {"truth": true}
    for name, model in models.items():
        n_samples = 16 if name in FLOWS else 256
        found[name] = model.log_likelihood_bound(cells, n_samples=n_samples)
    found["no cell structure"] = _around_the_mean(screen.train, cells)
    rows = {
        name: {
            "nats": values.mean(),
            "below truth": (true - values).mean(),
            "correlation with truth": np.corrcoef(values, true)[0, 1],
        }
        for name, values in found.items()
    }
    print(f"error of the truth: {error.mean():.3f} nats a cell", flush=True)
    return pd.DataFrame(rows).T


def _around_the_mean(train: AnnData, cells: AnnData) -> np.ndarray:
    """Return the likelihood under a negative binomial around the mean profile of a cell's group."""
    from scipy.stats import nbinom

    keys = ["perturbation", "cell_type"]
    values = np.empty(cells.n_obs)
    groups = train.obs.groupby(keys, observed=True).indices
    counts = np.asarray(cells.X.todense())
    for i, key in enumerate(zip(*(cells.obs[k] for k in keys), strict=True)):
        own = np.asarray(train.X[groups[key]].todense(), np.float64)
        size = own.sum(1, keepdims=True)
        share = own.sum(0) / own.sum() + 1e-7
        excess = ((own - size * share) ** 2 - size * share).mean(0)
        alpha = np.clip(excess / ((size**2).mean() * share**2), 1e-3, 100)
        mean = counts[i].sum() * share
        values[i] = nbinom.logpmf(counts[i], 1 / alpha, 1 / (1 + alpha * mean)).sum()
    return values


def anomaly_scores(screen: Screen, models: dict[str, Any], seed: int) -> pd.DataFrame:
    """Return the AUROC of each score on each kind of planted cells."""
    random = np.random.default_rng(seed)
    test = screen.test
    normal = test[random.permutation(test.n_obs)[: 2 * N_PLANTED]].copy()
    doublets = _doublets(test, normal, random)
    strangers = screen.unseen[random.permutation(screen.unseen.n_obs)[:N_PLANTED]].copy()
    strangers.obs["cell_type"] = random.choice(["type_01", "type_02"], N_PLANTED)
    treated = test[(test.obs["perturbation"] != "control").to_numpy()].copy()
    baselines = _Baselines(screen.train)
    table: dict[str, dict[str, float]] = {}
    for kind, planted, others in (
        ("doublets", doublets, normal),
        ("unseen type", strangers, normal),
    ):
        truth = np.repeat([1, 0], [planted.n_obs, others.n_obs])
        for name, model in models.items():
            scores = [model.anomaly_scores(x.copy())["surprise"] for x in (planted, others)]
            table.setdefault(f"{name}: surprise", {})[kind] = _auc(truth, scores)
        for name, score in baselines.scores().items():
            table.setdefault(name, {})[kind] = _auc(truth, [score(x) for x in (planted, others)])
    escaped = ~treated.obs["truth_responder"].to_numpy(bool)
    for name, model in models.items():
        ratio = model.anomaly_scores(treated.copy())["control_ratio"]
        table.setdefault(f"{name}: control ratio", {})["not reached"] = _auc(escaped, [ratio])
    for name, score in baselines.scores().items():
        as_control = treated.copy()
        as_control.obs["perturbation"] = "control"
        ratio = score(treated) - score(as_control)
        if name == "library size":
            ratio = score(treated)
        table.setdefault(name, {})["not reached"] = _auc(escaped, [ratio])
    return pd.DataFrame(table).T


def _auc(truth: np.ndarray, scores: Sequence[Any]) -> float:
    return float(roc_auc_score(truth, np.concatenate([np.asarray(s) for s in scores])))


def _doublets(cells: AnnData, like: AnnData, random: np.random.Generator) -> AnnData:
    """Return sums of two cells of different types, thinned to libraries as those of `like`."""
    types = cells.obs["cell_type"].to_numpy()
    first = random.permutation(cells.n_obs)[:N_PLANTED]
    second = np.array([random.choice(np.flatnonzero(types != types[i])) for i in first])
    counts = np.asarray((cells.X[first] + cells.X[second]).todense(), np.int64)
    wanted = random.choice(np.asarray(like.X.sum(1)).ravel(), N_PLANTED)
    share = np.minimum(1.0, wanted / counts.sum(1))
    made = cells[first].copy()
    made.X = sparse.csr_matrix(random.binomial(counts, share[:, None]).astype(np.float32))
    made.obs_names = [f"doublet_{i}" for i in range(N_PLANTED)]
    return made


class _Baselines:
    """Scores that anyone would try first."""

    def __init__(self, train: AnnData) -> None:
        values = np.asarray(log_normalize(train.X).todense())
        self.pca = PCA(30, random_state=0).fit(values)
        points = self.pca.transform(values)
        self.groups = {
            key: points[rows]
            for key, rows in train.obs.groupby(
                ["perturbation", "cell_type"], observed=True
            ).indices.items()
        }
        left = np.vstack([own - own.mean(0) for own in self.groups.values()])
        self.inverse = np.linalg.inv(np.cov(left.T))

    def scores(self) -> dict[str, Any]:
        return {"library size": _library, "PCA": self._mahalanobis, "kNN": self._nearest}

    def _by_group(self, cells: AnnData, score: Any) -> np.ndarray:  # noqa: ANN401
        points = self.pca.transform(np.asarray(log_normalize(cells.X).todense()))
        found = np.empty(cells.n_obs)
        grouped = cells.obs.groupby(["perturbation", "cell_type"], observed=True).indices
        for key, rows in grouped.items():
            found[rows] = score(points[rows], self.groups[key])
        return found

    def _mahalanobis(self, cells: AnnData) -> np.ndarray:
        def distance(points: np.ndarray, own: np.ndarray) -> np.ndarray:
            gap = points - own.mean(0)
            return np.einsum("ij,jk,ik->i", gap, self.inverse, gap)

        return self._by_group(cells, distance)

    def _nearest(self, cells: AnnData) -> np.ndarray:
        def distance(points: np.ndarray, own: np.ndarray) -> np.ndarray:
            near = NearestNeighbors(n_neighbors=min(15, len(own))).fit(own)
            return near.kneighbors(points)[0].mean(1)

        return self._by_group(cells, distance)


def _library(cells: AnnData) -> np.ndarray:
    return np.asarray(cells.X.sum(1)).ravel()


def speed() -> str:
    """Return the times of transport and density, with 32 dimensions."""
    config = SimulatorConfig(n_perturbations=4, n_combinations=0, n_contexts=2)
    adata = simulate_screen(n_cells=4_000, n_genes=300, config=config, seed=0)
    rows = []
    for name, flow in (("control", FlowConfig()), ("noise", FlowConfig(source="noise"))):
        cells = adata.copy()
        PerturbFlow.setup_anndata(cells, context_keys=["cell_type"])
        model = PerturbFlow(cells, flow=flow)
        model.train(max_epochs=5, n_steps=200, enable_progress_bar=False)
        given = model._given_cells(None, None)
        many = np.resize(np.arange(adata.n_obs), 50_000 if name == "control" else 10_000)
        asked = type(given.cells)(
            given.cells.conditions,
            given.cells.which[many],
            given.cells.reference[many],
            given.cells.context[many],
        )
        start = time.perf_counter()
        if name == "control":
            from scvi_perturb import SamplerConfig

            model._follow(given.latent[many], asked, (0.0, 1.0), SamplerConfig())
            rows.append(["transport of 50,000 cells", "20 evaluations (Heun)", 10])
        else:
            model._densities(given.latent[many], asked, None, None, 0)
            rows.append(["exact log-density of 10,000 cells", "24 + 12 (Runge-Kutta)", 60])
        rows[-1].insert(2, f"{time.perf_counter() - start:.1f} s")
    header = ["what", "evaluations", "time", "aim, s"]
    return markdown_table(header, [[str(x) for x in row] for row in rows])


def _table(parts: list[pd.DataFrame], title: str, digits: int) -> str:
    stacked = pd.concat(parts, keys=range(len(parts)))
    mean = stacked.groupby(level=1, sort=False).mean()
    spread = stacked.groupby(level=1, sort=False).std()
    rows = []
    for name in mean.index:
        cells = [str(name)]
        for column in mean:
            value, sd = mean.loc[name, column], spread.loc[name, column]
            text = "-" if np.isnan(value) else f"{value:.{digits}f}"
            cells.append(text if np.isnan(sd) else f"{text} ± {sd:.{digits}f}")
        rows.append(cells)
    return markdown_table([title, *mean.columns], rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flow", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0")
    parser.add_argument("--n-cells", type=int, default=400, help="held-out cells that are scored")
    parser.add_argument("--page", type=Path, default=RESULTS / "flow.md", help="page to write")
    return parser


if __name__ == "__main__":
    main()
