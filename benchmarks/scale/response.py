"""Scores of cells, ends of intervals, and effects with their errors."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from scipy.stats import t as student

import scvi_perturb as svp
from benchmarks.scale import Row, cpu_seconds
from scvi_perturb.model.causal.effects import measure_errors
from scvi_perturb.predictors.stack.intervals import GRID, ErrorCovariates, ErrorModel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData

#: Cells, genes and perturbations of the screen; few cells a group cost most, for each group has
#: latents of its own.
_SIZES: Final = {True: (800, 300, 6), False: (4000, 1000, 12)}


def rows(*, quick: bool) -> Iterator[Row]:
    """Yield the cost of each; the bars are those of full sizes."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    n_cells, n_genes, n_perturbations = _SIZES[quick]
    config = svp.data.SimulatorConfig(n_perturbations=n_perturbations)
    screen = svp.data.simulate_screen(n_cells=n_cells, n_genes=n_genes, seed=0, config=config)
    yield from _scores(screen, quick=quick)
    yield from _intervals(quick=quick)
    yield from _effects(screen, quick=quick)


def _scores(screen: AnnData, *, quick: bool) -> Iterator[Row]:
    svp.PerturbDiffusion.setup_anndata(screen)
    model = svp.PerturbDiffusion(screen)
    model.train(3, n_steps=100, enable_progress_bar=False)
    svp.tl.response_score(model, screen[:20].copy(), n_samples=4)  # what is made once
    few = np.random.default_rng(0).permutation(screen.n_obs)[:400]
    for cells, note in (
        (screen[few].copy(), "before: 22 ms; most is the draws of latents, 256 a group"),
        (screen.copy(), ""),
    ):
        groups = len(cells.obs.groupby(["perturbation"], observed=True))
        seconds, _ = cpu_seconds(lambda cells=cells: svp.tl.response_score(model, cells))
        cost = 1e3 * seconds / cells.n_obs
        what = f"response_score, a cell of {cells.n_obs:,} under {groups} conditions"
        yield Row(what, cost, "ms", "<= 1", None if quick else cost <= 1, note)


def _intervals(*, quick: bool) -> Iterator[Row]:
    random = np.random.default_rng(0)
    n_folds, shape = 10, (4 if quick else 20, 2000)
    laws = [student.ppf((1 + np.minimum(GRID, 0.9995)) / 2, 2 + k / 2) for k in range(n_folds)]
    model = ErrorModel(np.full(4, 0.3), np.stack(laws), random.integers(5, 30, n_folds))
    covariates = ErrorCovariates(
        random.normal(size=shape), random.gamma(1.0, size=shape), random.gamma(2.0, size=shape)
    )
    centres = covariates.mean + 0.5 * random.normal(size=(n_folds, *shape))
    seconds, _ = cpu_seconds(lambda: model.interval(covariates, centres, 0.9))
    cost = 1e6 * seconds / covariates.mean.size
    what = "interval of a stack, a gene and row, 10 folds"
    yield Row(what, cost, "us", "<= 4", None if quick else cost <= 4, "before: 30 us")


def _effects(screen: AnnData, *, quick: bool) -> Iterator[Row]:
    svp.CausalPerturbVAE.setup_anndata(screen)
    model = svp.CausalPerturbVAE(screen)
    whole, _ = cpu_seconds(lambda: model.train(2 if quick else 10, enable_progress_bar=False))
    network, reader = model.module.representation, model._reader(None)
    parts = np.asarray(model.train_indices), np.asarray(model.validation_indices)
    part, _ = cpu_seconds(lambda: measure_errors(network, reader, parts, model._screen.table))
    what = "errors of effects, share of a training of 10 epochs"
    yield Row(what, 100 * part / whole, "%", note="before: 27 %")
    seconds, effects = cpu_seconds(model.get_perturbation_effects)
    what = "get_perturbation_effects, a perturbation"
    yield Row(what, 1e3 * seconds / effects.n_obs, "ms", note="before: 175 ms, 52 decodings")
