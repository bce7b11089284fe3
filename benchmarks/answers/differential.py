"""Differential expression at the null and beside known effects; power beside smaller experiments.

Batches of the simulator stand for donors. At the null, control cells get two labels; with
heterogeneity the genes of each pseudobulk are thinned by chance, so that donors differ in their
change and its mean is zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import anndata
import numpy as np
import pandas as pd
from scipy import sparse
from scipy.stats import t as student

import scvi_perturb as svp
from benchmarks._kang_frame import load_kang
from benchmarks.answers import Row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData
    from numpy.typing import NDArray

N_GENES: Final = 200
N_CONTROL: Final = 100
LEVEL: Final = 0.05
#: Donors, cells of the condition in each.
DESIGNS: Final = ((2, 30), (3, 30), (5, 30), (8, 20))
PLANS: Final = ((2, 20), (2, 80), (3, 40), (5, 20), (5, 80), (8, 40))


def rows(*, quick: bool) -> Iterator[Row]:
    """Yield error rates, sensitivity and errors of the power."""
    n_repeats = 10 if quick else 60
    yield from _null(n_repeats, quick=quick)
    yield from _kang(n_repeats // 3, quick=quick)
    yield from _known(n_repeats // 2, quick=quick)
    yield from _power(n_repeats, quick=quick)


def _screen(n_blocks: int, numbers: dict[str, int], seed: int) -> AnnData:
    """Return new cells of conditions, so many a block."""
    config = svp.data.SimulatorConfig(
        n_perturbations=2,
        n_combinations=0,
        n_contexts=1,
        n_batches=n_blocks,
        batch_effect=0.3,
        program_share=0.5,
        effect_size=0.6,
    )
    known = svp.data.simulate_screen(n_cells=20, n_genes=N_GENES, seed=seed, config=config)
    parts = [
        svp.data.sample_truth(known, name, n_cells=n * n_blocks, seed=1_000 * seed + i)
        for i, (name, n) in enumerate(numbers.items())
    ]
    made = anndata.concat(parts, index_unique="-")
    made.uns["truth"] = known.uns["truth"]
    return made


def _rows(adata: AnnData, block: str, label: str) -> NDArray[np.intp]:
    chosen = (adata.obs["batch"] == block) & (adata.obs["perturbation"] == label)
    return np.flatnonzero(chosen.to_numpy())


def _nothing(design: tuple[int, int], seed: int, heterogeneity: float) -> AnnData:
    """Return control cells of which some are labelled as a condition."""
    n_blocks, n_cells = design
    adata = _screen(n_blocks, {"control": n_cells + N_CONTROL}, seed)
    rng = np.random.default_rng(seed)
    label = np.full(adata.n_obs, "control", object)
    counts = adata.X.toarray().astype(int)
    for block in adata.obs["batch"].cat.categories:
        order = rng.permutation(_rows(adata, block, "control"))
        label[order[:n_cells]] = "nothing"
        for side in (order[:n_cells], order[n_cells:]):
            kept = np.exp(-np.abs(rng.normal(0, heterogeneity, N_GENES)))
            counts[side] = rng.binomial(counts[side], kept)
    adata.X = sparse.csr_matrix(counts.astype(np.float32))
    adata.obs["perturbation"] = pd.Categorical(label)
    return adata


def _null(n_repeats: int, *, quick: bool) -> Iterator[Row]:
    for heterogeneity in (0.0, 0.4):
        for design in DESIGNS:
            rates, by_cell, any_found = [], [], []
            for seed in range(n_repeats):
                adata = _nothing(design, seed, heterogeneity)
                found = svp.tl.differential_expression(adata, block_key="batch")
                rates.append((found["p_value"].dropna() < LEVEL).mean())
                any_found.append((found["p_adjusted"] < LEVEL).any())
                if design == DESIGNS[1]:
                    cells = svp.tl.differential_expression(adata, unit="cell")
                    by_cell.append((cells["p_value"].dropna() < LEVEL).mean())
            name = f"{design[0]} donors of {design[1]} cells, heterogeneity {heterogeneity:g}"
            yield _rate(f"type-I error at 0.05, {name}", rates, quick=quick)
            yield _rate(f"experiments with any gene at FDR 0.05, {name}", any_found, quick=quick)
            if by_cell:
                what = f"the same with cells as replicates (unit='cell'), {name}"
                yield Row(what, float(np.mean(by_cell)), "share")


def _kang(n_repeats: int, *, quick: bool) -> Iterator[Row]:
    """Yield the rate among control cells of Kang's donors, of which half are labelled."""
    adata = load_kang()
    adata = adata[adata.obs["perturbation"] == "control"]
    for cell_type in ("CD14+ Monocytes", "CD4 T cells"):
        own, rates = adata[adata.obs["cell_type"] == cell_type].copy(), []
        for seed in range(n_repeats):
            order = np.random.default_rng(seed).permutation(own.n_obs)
            place = own.obs["donor"].iloc[order].groupby(own.obs["donor"], observed=True).cumcount()
            label = np.where(place.loc[own.obs_names] % 2, "nothing", "control")
            own.obs["perturbation"] = pd.Categorical(label)
            found = svp.tl.differential_expression(own, block_key="donor")
            rates.append((found["p_value"].dropna() < LEVEL).mean())
        name = f"type-I error at 0.05, halves of the control {cell_type} of Kang's donors"
        yield _rate(name, rates, quick=quick)


def _rate(what: str, rates: list[float], *, quick: bool) -> Row:
    """Return a rate beside the nominal one, with the error between experiments."""
    error = float(np.std(rates, ddof=1) / np.sqrt(len(rates)))
    value = float(np.mean(rates))
    bar = f"<= {LEVEL:g} + 2 x {error:.2g}"
    return Row(what, value, "share", bar, None if quick else value <= LEVEL + 2 * error)


def _known(n_repeats: int, *, quick: bool) -> Iterator[Row]:
    for n_blocks, n_cells in DESIGNS:
        large, false, covered = [], [], []
        for seed in range(n_repeats):
            adata = _screen(n_blocks, {"control": N_CONTROL, "pert_01": n_cells}, seed)
            true = svp.data.true_effect(adata, "pert_01")
            found = svp.tl.differential_expression(adata, block_key="batch")
            called = (found["p_adjusted"] < LEVEL).to_numpy()
            tested = found["p_value"].notna().to_numpy()
            large += called[tested & (np.abs(true) > 0.3)].tolist()
            wrong = (np.abs(true) < 0.02) | (np.sign(true) != np.sign(found["lfc"]))
            false.append(wrong[called].mean() if called.any() else 0.0)
            reach = student.ppf(0.975, found["df"]) * found["se"]
            covered.append(((found["lfc"] - true).abs() <= reach)[tested].mean())
        name = f"{n_blocks} donors of {n_cells} cells"
        yield Row(f"genes of |lfc| > 0.3 found at FDR 0.05, {name}", float(np.mean(large)), "share")
        yield _rate(f"of these without or of other sign, {name}", false, quick=quick)
        error = np.std(covered, ddof=1) / np.sqrt(len(covered))
        value = float(np.mean(covered))
        met = None if quick else bool(value >= 0.95 - 2 * error - 0.01)
        yield Row(f"95 % intervals that hold the truth, {name}", value, "share", ">= 0.94", met)


def _power(n_repeats: int, *, quick: bool) -> Iterator[Row]:
    """Yield the largest error of the power, beside experiments drawn from one of many donors."""
    numbers = {"control": 150, "pert_01": 150}
    whole = _screen(40, numbers, 1)
    true = svp.data.true_effect(whole, "pert_01", n_cells=20_000)
    layers = {"lfc": true[None], "std": np.zeros((1, N_GENES))}
    effect = anndata.AnnData(true[None], var=whole.var, layers=layers)
    rng = np.random.default_rng(0)
    pilot = _part(whole, (6, 60), rng)
    errors = []
    for n_blocks, n_cells in PLANS:
        hits = np.zeros(N_GENES)
        for _ in range(n_repeats):
            part = _part(whole, (n_blocks, n_cells), rng)
            found = svp.tl.differential_expression(part, block_key="batch", min_count=1)
            hits += (found["p_value"] < LEVEL).to_numpy() / n_repeats
        plan = {"n_cells": [n_cells], "n_blocks": [n_blocks]}
        planned = svp.tl.power(pilot, block_key="batch", effect=effect, **plan)["power"].to_numpy()
        there = np.isfinite(planned) & (np.abs(true) > 0.1)
        real, said = hits[there].mean(), planned[there].mean()
        errors.append(abs(said - real))
        worst = np.abs(planned - hits)[there].mean()
        yield Row(
            f"power of {n_blocks} donors of {n_cells} cells, mean over {there.sum()} genes",
            float(said),
            "probability",
            f"{real:.3f} +- 0.05",
            None if quick else bool(errors[-1] <= 0.05),
            f"mean error of a gene {worst:.3f}, of which downsampling's own is about "
            f"{np.sqrt(np.abs(hits * (1 - hits)) / n_repeats)[there].mean() * 0.8:.3f}",
        )
    most = max(errors)
    met = None if quick else most <= 0.05
    yield Row("largest error of the power over six plans", most, "", "<= 0.05", met)


def _part(adata: AnnData, design: tuple[int, int], rng: np.random.Generator) -> AnnData:
    """Return some blocks with some cells each."""
    n_blocks, n_cells = design
    blocks = rng.choice(adata.obs["batch"].unique(), n_blocks, replace=False)
    chosen = [
        rng.choice(_rows(adata, block, label), n, replace=False)
        for block in blocks
        for label, n in (("control", N_CONTROL), ("pert_01", n_cells))
    ]
    return adata[np.concatenate(chosen)].copy()
