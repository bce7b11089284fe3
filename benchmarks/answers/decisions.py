"""Who responded, what caused a change, what to measure next: beside the truth, and real screens.

`escapers` is compared with the published steps of Mixscape, written down here since pertpy is not
installed: the perturbation signature of a cell is its expression less that of its 20 nearest
control cells; of genes that differ (Wilcoxon, Bonferroni) cells are projected on the mean
signature; a mixture of two normal laws, that of control cells held, is fitted again and again to
the cells that it calls perturbed.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from benchmarks._tasks import load_papalexi
from benchmarks.answers import Row
from scvi_perturb import tl
from scvi_perturb._core import log_normalize_cells
from scvi_perturb.data import (
    ScreenKeys,
    SimulatorConfig,
    perturbation_features,
    simulate_screen,
    true_effect,
)
from scvi_perturb.features import PerturbationFeatures
from scvi_perturb.predictors import ConditionGP

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

LEVEL: Final = 0.9
#: Size of effects, share of responders, genes.
ESCAPES: Final = ((1.0, 0.6, 500), (1.0, 0.2, 500), (0.5, 0.6, 500), (0.5, 0.6, 2000))
#: Targets whose own transcript falls in most cells that lost them.
TARGETS: Final = ("JAK2", "STAT1", "IFNGR2")
#: Size of effects, cells of a condition in each half.
SHIFTS: Final = ((1.0, 27), (1.0, 80), (0.5, 80))
#: What could be measured: pairs of 16 genes and the genes; 60 genes; 16 drugs at 5 doses.
POOLS: Final[dict[str, dict[str, Any]]] = {
    "16 singles and 64 pairs": {
        "n_perturbations": 16, "n_combinations": 64, "n_unseen": 0, "feature_r2": 0.3
    },
    "60 singles with features": {"n_perturbations": 60, "n_combinations": 0, "n_unseen": 0},
    "16 drugs at 5 doses": {
        "n_perturbations": 16, "n_combinations": 0, "n_unseen": 0, "feature_r2": 0.3,
        "doses": (0.03, 0.1, 0.3, 1.0, 3.0),
    },
}  # fmt: skip
BATCH: Final = 4
N_ROUNDS: Final = 8


def rows(*, quick: bool) -> Iterator[Row]:
    """Yield how well cells, causes and experiments are told."""
    seeds = range(2 if quick else 8)
    yield from _escapers(seeds)
    yield from _nothing(seeds)
    yield from _papalexi_cells()
    yield from _shifts(seeds)
    yield from _papalexi_shifts(seeds)
    yield from _next(seeds)


def _auc(positive: NDArray[np.bool_], score: Floats) -> float:
    ranks = stats.rankdata(score)[positive]
    n, m = int(positive.sum()), int((~positive).sum())
    return float((ranks.sum() - n * (n + 1) / 2) / (n * m))


def _labels(adata: AnnData) -> NDArray[np.object_]:
    return adata.obs["perturbation"].astype(str).to_numpy(object)


def _escapers(seeds: range) -> Iterator[Row]:
    """Yield AUROC within conditions, and coverage of the shares."""
    held: list[Floats] = []
    for size, share, n_genes in ESCAPES:
        config = SimulatorConfig(
            n_perturbations=10,
            n_combinations=0,
            n_contexts=1,
            responder_fraction=share,
            effect_size=size,
        )
        ours, theirs, off = [], [], []
        for seed in seeds:
            adata = simulate_screen(n_cells=4000, n_genes=n_genes, seed=seed, config=config)
            table = tl.escapers(adata, block_key="batch", level=LEVEL)
            label, truth = _labels(adata), adata.obs["truth_responder"].to_numpy(bool)
            other = mixscape(_values(adata), label, adata.obs["batch"].to_numpy())
            covered = []
            for row in table.to_dict("records"):
                own = label == row["perturbation"]
                ours.append(_auc(truth[own], adata.obs["responded"].to_numpy()[own]))
                theirs.append(_auc(truth[own], other[own]))
                off.append(np.mean((adata.obs["responded"].to_numpy() - truth)[own] ** 2))
                covered.append(row["lower"] <= truth[own].mean() <= row["upper"])
            held.append(np.array(covered, float))
        what = f"effect {size:g}, share {share:g}, {n_genes} genes"
        value, bar = float(np.mean(ours)), float(np.mean(theirs))
        note = f"Mixscape's steps {bar:.3f}; Brier score {np.mean(off):.3f}"
        yield Row(f"escapers: AUROC, {what}", value, "", f">= {bar:.3f}", value >= bar, note)
    means = np.array([one.mean() for one in held])
    error = 2 * float(means.std(ddof=1)) / np.sqrt(len(means))
    value = float(means.mean())
    bar_met = bool(value >= LEVEL - error)
    yield Row("escapers: shares in their interval", value, "share", f"{LEVEL} - {error:.2g}",
              bar_met, "of all settings above")  # fmt: skip


def _nothing(seeds: range) -> Iterator[Row]:
    """Yield the share of control cells, labelled as conditions, that are called responders."""
    config = SimulatorConfig(
        n_perturbations=1, n_combinations=0, n_contexts=1, control_fraction=0.95
    )
    for n_cells in (30, 150):
        rates, some = [], []
        for seed in seeds:
            adata = simulate_screen(n_cells=20 * n_cells, n_genes=500, seed=seed, config=config)
            adata = adata[_labels(adata) == "control"].copy()
            order = np.random.default_rng(seed).permutation(adata.n_obs) // n_cells
            label = np.where(order < 9, np.char.add("nothing", order.astype(str)), "control")
            adata.obs["perturbation"] = pd.Categorical(label)
            table = tl.escapers(adata)
            rates += (table["n_responders"] / table["n_cells"]).tolist()
            some += (table["lower"] > 0).tolist()
        value = float(np.mean(rates))
        note = f"the interval of the share excludes 0 in {np.mean(some):.3f}"
        yield Row(f"escapers: responders among {n_cells} control cells", value, "share", "<= 0.05",
                  value <= 0.05, note)  # fmt: skip


def _papalexi_cells() -> Iterator[Row]:
    """Yield how well cells that express the target are told; it is no part of the data."""
    whole = load_papalexi()
    for target in TARGETS:
        label = _labels(whole)
        adata = whole[np.isin(label, [target, "control"]), whole.var_names != target].copy()
        own = _labels(adata) == target
        tl.escapers(adata, block_key="batch", keys=ScreenKeys(library="total_counts"))
        library = adata.obs["total_counts"].to_numpy(np.float64)
        other = mixscape(_values(adata, library), _labels(adata), adata.obs["batch"].to_numpy())
        counts = np.asarray(whole[adata.obs_names, target].to_df()).ravel()[own]
        ours = _by_depth(counts > 0, -adata.obs["responded"].to_numpy()[own], library[own])
        theirs = _by_depth(counts > 0, -other[own], library[own])
        note = f"Mixscape's steps {theirs:.3f}; the transcript is left out; mean over 5 depths"
        what = f"escapers: AUROC of cells that express {target}, Papalexi"
        yield Row(what, ours, "", f">= {theirs:.3f}", ours >= theirs, note)


def _by_depth(expressed: NDArray[np.bool_], score: Floats, depth: Floats) -> float:
    parts = np.array_split(np.argsort(depth, kind="stable"), 5)
    return float(np.mean([_auc(expressed[part], score[part]) for part in parts]))


def _values(adata: AnnData, library: Floats | None = None) -> Floats:
    if library is None:
        return np.asarray(log_normalize_cells(adata.X).toarray())
    return np.asarray(np.log1p(1e4 * adata.to_df().to_numpy(np.float64) / library[:, None]))


def mixscape(
    values: Floats, label: NDArray[np.object_], block: NDArray[np.object_]
) -> NDArray[np.float64]:
    """Return the probability of each cell to be perturbed by Mixscape's steps; see the module.

    A condition with fewer than five genes that differ is called not perturbed.
    """
    from sklearn.decomposition import PCA
    from sklearn.neighbors import NearestNeighbors

    control = label == "control"
    space = PCA(15, random_state=0, svd_solver="randomized").fit_transform(values)
    signature = np.empty_like(values)
    for one in np.unique(block.astype(str)):
        here = np.flatnonzero(block.astype(str) == one)
        base = here[control[here]]
        near = NearestNeighbors(n_neighbors=min(20, len(base))).fit(space[base])
        place = near.kneighbors(space[here], return_distance=False)
        signature[here] = values[here] - values[base][place].mean(axis=1)
    made = np.full(len(label), np.nan)
    for name in sorted(set(label) - {"control"}):
        own = label == name
        genes = _that_differ(values[own], values[control])
        made[own] = 0.0
        if len(genes) >= 5:
            both = np.concatenate([signature[own][:, genes], signature[control][:, genes]])
            made[own] = _iterated(both / np.maximum(both.std(axis=0), 1e-9), int(own.sum()))
    return made


def _that_differ(own: Floats, base: Floats) -> NDArray[np.intp]:
    change = np.log1p(np.expm1(own).mean(axis=0)) - np.log1p(np.expm1(base).mean(axis=0))
    large = np.flatnonzero(np.abs(change) > 0.25)
    if not len(large):
        return large
    p_value = stats.mannwhitneyu(own[:, large], base[:, large], axis=0).pvalue
    return large[p_value * own.shape[1] < 0.05]


def _iterated(cells: Floats, n: int) -> Floats:
    """Return probabilities of the first `n` cells; the others are control cells."""
    called, odds = np.ones(n, bool), np.ones(n)
    for _ in range(10):
        along = cells[:n][called].mean(axis=0) - cells[n:].mean(axis=0)
        score = cells @ along / (along @ along)
        x, mean, sd = score[:n], score[n:].mean(), score[n:].std()
        own_mean, own_sd, share = x[called].mean(), max(x[called].std(), 1e-3), 0.5
        for _ in range(200):
            above = share * stats.norm.pdf(x, own_mean, own_sd)
            odds = above / (above + (1 - share) * stats.norm.pdf(x, mean, sd) + 1e-300)
            share, own_mean = odds.mean(), (odds @ x) / max(odds.sum(), 1e-9)
            own_sd = max(np.sqrt(odds @ (x - own_mean) ** 2 / max(odds.sum(), 1e-9)), 1e-3)
        again = odds > 0.5
        if (again == called).all() or not again.any():
            break
        called = again
    return odds


def _halves(adata: AnnData, seed: int) -> tuple[AnnData, AnnData]:
    part = np.random.default_rng(seed).permutation(adata.n_obs) % 2
    return adata[part == 0].copy(), adata[part == 1].copy()


class _Told(NamedTuple):
    """Whether the true cause is first, what probability it and the first have."""

    first: list[bool]
    said: list[float]
    surprise: list[float]

    def add(self, table: pd.DataFrame, among: set[str]) -> None:
        """Add the changes of some conditions."""
        table = table[table["shift"].isin(among)]
        top = table[table["rank"] == 1]
        self.first.extend(top["shift"] == top["perturbation"])
        self.said.extend(top["probability"])
        own = table.loc[table["shift"] == table["perturbation"], "probability"]
        self.surprise.extend(-np.log(np.maximum(own.astype(float), 1e-12)))

    def row(self, what: str, bar: float, note: str = "") -> Row:
        """Return the share that is right."""
        value = float(np.mean(self.first))
        said = f"probability of the first {np.mean(self.said):.2f}"
        said += f", minus log that of the true one {np.mean(self.surprise):.2f}"
        text = f"{said}; {note}" if note else said
        return Row(what, value, "share", f">= {bar}", value >= bar, text)


def _shifts(seeds: range) -> Iterator[Row]:
    """Yield how often the true cause of a change is first: effects and changes of other cells."""
    for size, n_cells in SHIFTS:
        config = SimulatorConfig(
            n_perturbations=20, n_combinations=10, n_contexts=1, effect_size=size
        )
        measured, predicted = _Told([], [], []), _Told([], [], [])
        for seed in seeds:
            n = int(2 * n_cells * 30 / 0.8)
            known, new = _halves(
                simulate_screen(n_cells=n, n_genes=300, seed=seed, config=config), seed
            )
            names = sorted(set(_labels(known)) - {"control"})
            measured.add(tl.reverse(known, new), set(names))
            effects = ConditionGP().fit(known).predict(names)
            predicted.add(tl.reverse(effects, new), set(names))
        what = f"30 conditions, effect {size:g}, {n_cells} cells"
        yield measured.row(f"reverse: true cause first, {what}", 0.8)
        yield predicted.row(f"reverse: the same with effects of ConditionGP, {what}", 0.8)


def _papalexi_shifts(seeds: range) -> Iterator[Row]:
    """Yield the same for knock-outs whose effect is clear, in halves of the cells."""
    adata = load_papalexi()
    likeness = tl.perturbation_similarity(adata)
    reliable = pd.concat([
        likeness[["first", "reliability_first"]].set_axis(["name", "value"], axis=1),
        likeness[["second", "reliability_second"]].set_axis(["name", "value"], axis=1),
    ]).groupby("name")["value"].first()  # fmt: skip
    clear = set(reliable.index[reliable > 0.5])
    pathway = {"JAK2", "IFNGR1", "IFNGR2"}
    every, others, receptor = (_Told([], [], []) for _ in range(3))
    for seed in seeds:
        known, new = _halves(adata, seed)
        table = tl.reverse(known, new)
        every.add(table, clear)
        others.add(table, clear - pathway)
        receptor.add(table, clear & pathway)
    note = f"{', '.join(sorted(clear))}: over half of the squared effect is not noise"
    yield every.row("reverse: true knock-out first, Papalexi", 0.8, note)
    note = f"of one receptor complex, with like effects: {', '.join(sorted(clear & pathway))}"
    yield Row(
        "reverse: first among IFNGR1, IFNGR2 and JAK2",
        float(np.mean(receptor.first)),
        "share",
        note=note,
    )
    yield Row("reverse: first among the other knock-outs", float(np.mean(others.first)), "share")


class _Lab(NamedTuple):
    """A screen of all that could be measured, of which a strategy sees what it asked for.

    `hits`: Conditions of the top tenth along a signature, which is the effect of one of them.
    """

    adata: AnnData
    label: NDArray[np.object_]
    pool: pd.DataFrame
    truth: Floats
    features: PerturbationFeatures
    signature: dict[str, float]
    threshold: float
    hits: frozenset[str]


def _named(table: pd.DataFrame) -> NDArray[np.object_]:
    """Return one label a condition."""
    columns = [table[name].astype(str) for name in ("perturbation", "dose") if name in table]
    return np.array(["@".join(row) for row in zip(*columns, strict=True)], object)


@cache
def _lab(name: str, seed: int) -> _Lab:
    config = SimulatorConfig(n_contexts=1, n_batches=1, **POOLS[name])
    n = config.n_perturbations * len(config.doses or (1.0,)) + config.n_combinations
    adata = simulate_screen(n_cells=int(60 * n), n_genes=200, seed=seed, config=config)
    columns = ["perturbation", "dose"] if config.doses else ["perturbation"]
    pool = adata.obs.loc[_labels(adata) != "control", columns].astype(str).drop_duplicates()
    pool = pool.sort_values(columns).reset_index(drop=True)
    truth = np.stack([
        true_effect(adata, row["perturbation"], dose=row.get("dose"), n_cells=500)
        for row in pool.to_dict("records")
    ])  # fmt: skip
    chosen = truth[np.random.default_rng(seed).integers(len(pool))]
    score = truth @ chosen / np.abs(chosen).sum()
    threshold = float(np.quantile(score, 0.9))
    return _Lab(
        adata,
        _named(adata.obs),
        pool,
        truth,
        PerturbationFeatures(perturbation_features(adata)),
        dict(zip(adata.var_names, chosen, strict=True)),
        threshold,
        frozenset(_named(pool)[score >= threshold]),
    )


def _strategy(lab: _Lab, by: str, seed: int) -> tuple[list[float], list[int]]:
    """Return squared errors by squared effects over the pool, and hits, after each batch."""
    names = _named(lab.pool)
    seen = list(np.random.default_rng(seed + 7).choice(names, BATCH, replace=False))
    rng = np.random.default_rng([seed, 5])
    errors, hits = [], []
    for _ in range(N_ROUNDS + 1):
        control = _labels(lab.adata) == "control"
        part = lab.adata[np.isin(lab.label, seen) | control].copy()
        model = ConditionGP(lab.features).fit(part)
        predicted = model.predict(lab.pool).layers["lfc"]
        errors.append(float(((predicted - lab.truth) ** 2).sum() / (lab.truth**2).sum()))
        hits.append(len(lab.hits & set(seen)))
        free = ~np.isin(names, seen)
        if by == "random":
            new = rng.choice(names[free], BATCH, replace=False)
        elif by == "mean":
            weights = np.array([lab.signature[gene] for gene in lab.adata.var_names])
            new = names[free][np.argsort(-(predicted[free] @ weights), kind="stable")[:BATCH]]
        else:
            options: dict[str, Any] = {"signature": lab.signature, "threshold": lab.threshold}
            table = tl.next_experiments(model, lab.pool[free], BATCH, by=by, **options)
            new = _named(table)
        seen += list(new)
    return errors, hits


def _needed(curve: Floats, error: float) -> float:
    """Return after how many new experiments an error is reached, linear in its logarithm."""
    lowest = np.log(np.minimum.accumulate(curve))
    return float(np.interp(-np.log(error), -lowest, BATCH * np.arange(len(curve))))


def _next(seeds: range) -> Iterator[Row]:
    """Yield experiments needed by those of random choice, and hits found."""
    for name in POOLS:
        errors: dict[str, Floats] = {}
        hits: dict[str, Floats] = {}
        for by in ("random", "information", "mean", "hits", "both"):
            made = [_strategy(_lab(name, seed), by, seed) for seed in seeds]
            errors[by] = np.exp(np.mean([np.log(one) for one, _ in made], axis=0))
            hits[by] = np.mean([found for _, found in made], axis=0)
        targets = np.minimum.accumulate(errors["random"])[[4, 6, 8]]
        needed = {
            by: [_needed(errors[by], x) / _needed(errors["random"], x) for x in targets]
            for by in ("information", "both")
        }
        value = float(np.mean(needed["information"]))
        after = ", ".join(f"{one:.2f}" for one in needed["information"])
        note = f"{after} for the error of random choice after 16, 24 and 32; "
        note += f"by='both' {np.mean(needed['both']):.2f}"
        what = f"next_experiments: experiments by those of random choice, {name}"
        yield Row(what, value, "", "<= 0.6", value <= 0.6, note)
        area = {by: float(found[1:].mean()) for by, found in hits.items()}
        note = ", ".join(f"{by} {x:.2f}" for by, x in area.items())
        bar = area["mean"]
        what = f"next_experiments: hits found, mean over 8 batches, by='both', {name}"
        yield Row(what, area["both"], "", f"> {bar:.2f}", area["both"] > bar, note)
