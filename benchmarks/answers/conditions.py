"""Interactions, dose curves, likeness and gene sets beside the simulator's truth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import stats

from benchmarks.answers import Row
from scvi_perturb import tl
from scvi_perturb.data import SimulatorConfig, simulate_screen, true_effect
from scvi_perturb.data.simulate.screen import Truth

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

N_GENES: Final = 200
LEVEL: Final = 0.9
#: One context and batch, and all cells respond: effects are then curves, and sums, of the states.
PLAIN: Final[dict[str, Any]] = {
    "n_contexts": 1,
    "n_batches": 1,
    "context_modulation": 0.0,
    "responder_fraction": 1.0,
}
DOSES: Final = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


def rows(*, quick: bool) -> Iterator[Row]:
    """Yield how often answers are right, and intervals hold the truth."""
    seeds = range(2 if quick else 8)
    yield from _interactions(seeds)
    yield from _doses(seeds)
    yield from _likeness(seeds)
    yield from _gene_sets(seeds)


def _screen(seed: int, n_cells: int, **config: Any) -> AnnData:  # noqa: ANN401
    made = SimulatorConfig(**{**PLAIN, **config})
    return simulate_screen(n_cells=n_cells, n_genes=N_GENES, seed=seed, config=made)


def _coverage(what: str, held: list[NDArray[np.bool_]], note: str) -> Row:
    """Return the share of intervals that hold the truth, beside the nominal one.

    Genes of a screen move together: the error is that between screens.
    """
    shares = np.array([one.mean() for one in held])
    error = 3 * shares.std(ddof=1) / np.sqrt(len(shares)) + 0.02
    value = float(shares.mean())
    bar = f"{LEVEL} - {error:.3f}"
    return Row(what, value, "share", bar, bool(value >= LEVEL - error), note)


def _interactions(seeds: range) -> Iterator[Row]:
    scores: dict[float, list[float]] = {0.0: [], 0.5: []}
    genes, along = [], []
    for seed in seeds:
        for strength, found in scores.items():
            adata = _screen(
                seed, 2000, n_perturbations=8, n_combinations=10, interaction_strength=strength
            )
            pairs = tl.interactions(adata, level=LEVEL)
            table = tl.interactions(adata, level=LEVEL, genes=True)
            found += list(stats.norm.isf(pairs["p_value"].clip(1e-300)))
            effects = {one: true_effect(adata, one) for one in adata.obs["perturbation"].unique()}
            held = []
            for row in pairs.to_dict("records"):
                pair = row["perturbation"]
                first, second = (effects[name] for name in pair.split("+"))
                own = table[table["perturbation"] == pair]
                truth = effects[pair] - first - second
                inside = own["lower"].to_numpy() <= truth
                held.append(inside & (truth <= own["upper"].to_numpy()))
                share = effects[pair] @ (first + second) / ((first + second) @ (first + second))
                along.append(row["along_lower"] <= share <= row["along_upper"])
            genes.append(np.concatenate(held))
    none, some = scores.values()
    value = float(stats.mannwhitneyu(some, none).statistic / (len(some) * len(none)))
    note = f"{len(some)} pairs with an interaction of half an effect, {len(none)} without"
    yield Row("interactions: AUROC of p_value", value, "", ">= 0.8", value >= 0.8, note)
    yield _coverage("interactions: intervals of genes", genes, "truth: true_effect")
    by_seed = list(np.reshape(along, (2 * len(seeds), -1)))
    yield _coverage("interactions: intervals of `along`", by_seed, "truth: true_effect")


def _doses(seeds: range) -> Iterator[Row]:
    of_genes, chosen, of_signatures, flat = [], [], [], []
    for seed in seeds:
        adata = _screen(seed, 4000, n_perturbations=5, n_combinations=0, doses=DOSES)
        truth = Truth.from_uns(adata.uns)
        # Chosen by the truth: intervals of genes that are chosen by their data hold it less often.
        found = tl.dose_response(adata, level=LEVEL, fdr=0.999999)
        true = tl.dose_response(_noiseless(adata), level=LEVEL)
        told = ((true["emax"].abs() > 0.3) & true["ec50"].notna()).to_numpy()
        held = (found["ec50_lower"] <= true["ec50"]) & (true["ec50"] <= found["ec50_upper"])
        of_genes.append(held[told].to_numpy())
        chosen.append(held[told & (found["q_value"] <= 0.05)].to_numpy())
        own = []
        for name in truth.perturbations[:5]:
            weights = dict(zip(adata.var_names, true_effect(adata, name), strict=True))
            table = tl.dose_response(adata, signature=weights, level=LEVEL)
            row = table[table["perturbation"] == name].iloc[0]
            ec50 = truth.ec50[truth.index(name)] * truth.config.reference_dose
            own.append(row["ec50_lower"] <= ec50 <= row["ec50_upper"])
        of_signatures.append(np.array(own))
        still = _screen(seed, 1000, n_perturbations=3, n_combinations=0, doses=DOSES, effect_size=0)
        flat.append(tl.dose_response(still)["p_value"].to_numpy() < 0.1)
    note = "genes with a true emax above 0.3; truth: the Hill curve of true_effect"
    yield _coverage("dose_response: EC50 of genes in its interval", of_genes, note)
    value = float(np.mean([one.mean() for one in chosen]))
    note = "those of them that are not flat: chosen by their data, for which nothing is promised"
    yield Row("dose_response: the same of genes found", value, "share", note=note)
    note = "weights: the true effect; truth: EC50 of the simulator's states"
    yield _coverage("dose_response: EC50 of signatures in its interval", of_signatures, note)
    value = float(np.mean(flat))
    note = "p < 0.1 of genes without effects; genes are skewed and cells few (about 45 a dose)"
    yield Row("dose_response: false responses", value, "share", "<= 0.12", value <= 0.12, note)


def _noiseless(adata: AnnData) -> AnnData:
    """Return the true effects as a prediction without errors."""
    conditions = adata.obs.loc[adata.obs["perturbation"] != "control", ["perturbation", "dose"]]
    obs = conditions.drop_duplicates().set_axis(range(conditions.drop_duplicates().shape[0]))
    lfc = np.stack([true_effect(adata, name, dose=dose) for name, dose in obs.to_numpy()])
    layers = {"lfc": lfc, "std": np.full(lfc.shape, 1e-3)}
    return AnnData(lfc, obs=obs.set_index(obs.index.astype(str)), var=adata.var, layers=layers)


def _likeness(seeds: range) -> Iterator[Row]:
    corrected, observed, held = [], [], []
    for seed in seeds:
        adata = _screen(seed, 800, n_perturbations=20, n_combinations=0, effect_size=0.5)
        table = tl.perturbation_similarity(adata, level=LEVEL).dropna()
        effects = {one: true_effect(adata, one) for one in adata.obs["perturbation"].unique()}
        true = np.array([
            np.corrcoef(effects[a], effects[b])[0, 1]
            for a, b in table[["first", "second"]].to_numpy()
        ])  # fmt: skip
        corrected.append(np.abs(table["similarity"] - true).mean())
        observed.append(np.abs(table["observed"] - true).mean())
        held.append(((table["lower"] <= true) & (true <= table["upper"])).to_numpy())
    value = float(np.mean(corrected) / np.mean(observed))
    note = "mean absolute error of correlations of effects, about 32 cells each"
    yield Row("perturbation_similarity: error, by that without correction", value, "", "< 1",
              value < 1, note)  # fmt: skip
    yield _coverage("perturbation_similarity: intervals", held, "truth: true_effect")


def _gene_sets(seeds: range) -> Iterator[Row]:
    held, rng = [], np.random.default_rng(0)
    for seed in seeds:
        adata = _screen(seed, 1000, n_perturbations=8, n_combinations=0)
        sets = {f"set_{i}": list(rng.choice(adata.var_names, 20, replace=False)) for i in range(20)}
        table = tl.enrichment(adata, sets, level=LEVEL)
        effects = pd.DataFrame(
            {one: true_effect(adata, one) for one in table["perturbation"].unique()},
            index=adata.var_names,
        )
        true = np.array([
            effects.loc[sets[name], one].mean() - effects[one].drop(sets[name]).mean()
            for one, name in table[["perturbation", "gene_set"]].to_numpy()
        ])  # fmt: skip
        held.append(((table["lower"] <= true) & (true <= table["upper"])).to_numpy())
    yield _coverage("enrichment: intervals of `shift`", held, "random sets of 20 genes")
