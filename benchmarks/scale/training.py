"""Training beside scvi-tools' own model, with equal layers, epochs and validation."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from lightning.pytorch.callbacks import Callback

from benchmarks._simulated import simulate
from benchmarks.scale import Row
from benchmarks.speed import Setting, compare, quiet

if TYPE_CHECKING:
    from collections.abc import Iterator

    import lightning.pytorch as pl
    from anndata import AnnData

#: Least ratios: batch size -> of the whole call, of stage one.
BARS: Final = {128: (2.0, 3.0), 1_024: (3.0, 4.0)}
#: Share of SCVI's time within which its held-out bound is to be reached.
SHARE: Final = 1 / 3


def rows(*, quick: bool) -> Iterator[Row]:
    """Yield SCVI's CPU time over ours."""
    setting = Setting(
        n_cells=2_000 if quick else 10_000,
        density=0.05,
        n_repeats=1 if quick else 3,
        n_epochs=2,
        accelerator="cpu",
    )
    adata = simulate(setting.n_cells, setting.n_genes, density=setting.density)
    longer = replace(setting, n_epochs=2 if quick else 19, n_repeats=1)
    for batch_size, bars in BARS.items():
        for one in (setting, longer):
            ratios, _ = compare(adata, replace(one, batch_size=batch_size))
            for (name, values), bar in zip(ratios.items(), bars, strict=True):
                ratio = float(np.median(values))
                note = f"{values.min():.2f} to {values.max():.2f}" if len(values) > 1 else ""
                what = f"{name}, batch {batch_size}, {1 + one.n_epochs} epochs"
                yield Row(
                    what, ratio, "times", f">= {bar:g}", None if quick else ratio >= bar, note
                )
    for name, screen in _screens(quick=quick):
        yield _time_to_bound(name, screen, n_epochs=4 if quick else 30)


def _screens(*, quick: bool) -> Iterator[tuple[str, AnnData]]:
    from benchmarks._kang_frame import data_directory, load_kang
    from scvi_perturb.data import simulate_screen

    yield "simulator", simulate_screen(n_cells=1_000 if quick else 6_000, n_genes=500, seed=0)
    if data_directory().exists():
        kang = load_kang()
        largest = np.argsort(-np.asarray(kang.X.sum(axis=0)).ravel())[:2_000]
        yield "Kang", kang[:, np.sort(largest)].copy()


class _Bound(Callback):
    """CPU seconds and held-out bound after every epoch."""

    def __init__(self) -> None:
        self.start = time.process_time()
        self.seconds: list[float] = []
        self.bound: list[float] = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        del pl_module
        self.seconds.append(time.process_time() - self.start)
        self.bound.append(float(trainer.callback_metrics["elbo_validation"]))


def _time_to_bound(name: str, adata: AnnData, *, n_epochs: int) -> Row:
    """Return our time to SCVI's best held-out bound over its own, the same cells held out."""
    order = np.random.default_rng(0).permutation(adata.n_obs)
    held, rest = np.sort(order[: len(order) // 10]), np.sort(order[len(order) // 10 :])
    setting = Setting(accelerator="cpu")
    theirs = _bounds_of_scvi(adata.copy(), (rest, held), n_epochs, setting)
    ours = _bounds_of_ours(adata.copy(), (rest, held), n_epochs, setting)
    best = int(np.argmin(theirs.bound))
    reached = np.flatnonzero(np.array(ours.bound) <= theirs.bound[best])
    what = f"CPU to SCVI's held-out bound, {name}"
    note = f"SCVI {theirs.bound[best]:.1f} after {best + 1} epochs; ours {min(ours.bound):.1f}"
    if not len(reached):
        return Row(what, float("inf"), "of SCVI's", "<= 1/3", met=False, note=note)
    share = ours.seconds[reached[0]] / theirs.seconds[best]
    note += f", past it after {reached[0] + 1}"
    return Row(what, share, "of SCVI's", "<= 1/3", share <= SHARE, note)


def _bounds_of_scvi(
    adata: AnnData, parts: tuple[np.ndarray, np.ndarray], n_epochs: int, setting: Setting
) -> _Bound:
    from scvi.model import SCVI

    SCVI.setup_anndata(adata)
    model = SCVI(adata, n_hidden=128, n_latent=32, n_layers=1, gene_likelihood="nb")
    bound = _Bound()
    options: dict[str, Any] = {"datasplitter_kwargs": {"external_indexing": list(parts)}}
    model.train(
        max_epochs=n_epochs,
        check_val_every_n_epoch=1,
        callbacks=[bound],
        **options,
        **quiet(setting),
    )
    return bound


def _bounds_of_ours(
    adata: AnnData, parts: tuple[np.ndarray, np.ndarray], n_epochs: int, setting: Setting
) -> _Bound:
    from scvi_perturb.model import PerturbDiffusion
    from scvi_perturb.model.base.training import CellSplit
    from scvi_perturb.model.latent.fit import TwoStageFit
    from scvi_perturb.train import PlanConfig, TrainConfig

    PerturbDiffusion.setup_anndata(adata, context_keys=["cell_type"])
    model = PerturbDiffusion(adata, n_hidden=128, n_latent=32, n_layers=1, seed=0)
    cells = CellSplit(*parts, np.zeros(0, dtype=np.int64))
    bound = _Bound()
    # With the whole divergence, as SCVI, whose bound it is compared with.
    config = TrainConfig(representation=PlanConfig(max_kl_weight=1.0), early_stopping=False)
    options = quiet(setting) | {"callbacks": [bound]}
    fit = TwoStageFit(model, model._reader(None), cells, config, options, None)
    fit.representation(n_epochs, batch_size=128, seed=0)
    return bound
