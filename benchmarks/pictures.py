"""The pictures of the README: `python -m benchmarks.pictures`.

One shows cells and effects of a cell type that was never seen stimulated (Kang 2018); the other
draws the tables of `python -m benchmarks.kang`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter
from scanpy.pp import neighbors
from scanpy.tl import umap

import scvi_perturb as svp
from benchmarks._kang_frame import CONTEXT_KEYS, CONTROL, STIMULATED, hold_out, load_kang
from scvi_perturb.metrics import log_normalize

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from benchmarks._kang_frame import Case
    from scvi_perturb.metrics import Matrix

FOLDER: Final = Path(__file__).resolve().parents[1] / "docs" / "_static"
RESULTS: Final = Path(__file__).resolve().parent / "results"
CELL_TYPE: Final = "CD4 T cells"
GREY, BLUE, ORANGE = "#9A9A9A", "#0072B2", "#D55E00"
#: Rows of the table that are drawn: its file, its name there and the name in the picture.
METHODS: Final = (
    ("hybrid", "no change", "no change"),
    ("hybrid", "shifted control", "shifted control"),
    ("causal", "causal, 1,000 cells", "CausalPerturbVAE"),
    ("flow", "flow, 1,000 cells", "PerturbFlow"),
    ("diffusion", "diffusion, 1,000 cells", "PerturbDiffusion"),
    ("hybrid", "hybrid, 1,000 cells", "HybridResidualModel"),
    ("hybrid", "replicate", "replicate of the experiment"),
)


def main() -> None:
    """Draw both pictures."""
    mpl.use("Agg")
    FOLDER.mkdir(exist_ok=True)
    for name, figure in (("unseen_cell_type", draw_cells()), ("kang_scores", draw_scores())):
        figure.savefig(FOLDER / f"{name}.png", dpi=150)
        plt.close(figure)


def draw_cells() -> Figure:
    """Draw control, measured and predicted cells of one type, and effects of all genes."""
    case = hold_out(load_kang(), CELL_TYPE)
    keys = {"perturbation_key": "perturbation", "control": CONTROL}
    svp.HybridResidualModel.setup_anndata(case.screen, context_keys=[*CONTEXT_KEYS], **keys)
    model = svp.HybridResidualModel(case.screen)
    model.train(split=case.split, seed=0, accelerator="cpu")
    request = pd.DataFrame({"perturbation": [STIMULATED], "cell_type": [CELL_TYPE]})
    n_cells = len(case.split.test)
    cells = model.sample(request, n_samples=n_cells, library_size="predicted", seed=0)
    effect = model.predict(request, seed=0)
    figure, axes = plt.subplots(1, 4, figsize=(11, 2.9), layout="constrained")
    _draw_umap(axes[:3], case, cells)
    svp.pl.effect_scatter(
        effect.layers["lfc"],
        (_profile(case.screen.X[case.split.test]) - _profile(case.reference.X))[None],
        genes=case.screen.var_names,
        titles=["effect of each gene"],
        axes=[axes[3]],
    )
    axes[3].set(xlabel="measured log change", ylabel="predicted log change")
    return figure


def _profile(counts: Matrix) -> np.ndarray:
    """Return the logarithm of summed counts per ten thousand, as `predict` does."""
    total = np.asarray(counts.sum(axis=0), dtype=float).ravel()
    return np.log1p(1e4 * total / total.sum())


def _draw_umap(axes: list[Axes], case: Case, cells: AnnData) -> None:
    """Draw the three populations in one UMAP, on components that were fitted without the test."""
    parts = {
        "control cells": (log_normalize(case.reference.X), GREY),
        "stimulated, measured": (log_normalize(case.screen.X[case.split.test]), BLUE),
        "stimulated, predicted": (log_normalize(cells.X), ORANGE),
    }
    points = np.concatenate([case.space.pca.transform(values) for values, _ in parts.values()])
    owner = np.repeat(np.arange(len(parts)), [values.shape[0] for values, _ in parts.values()])
    both = AnnData(obsm={"X_pca": points.astype(np.float32)}, shape=(len(points), 0))
    neighbors(both, use_rep="X_pca")
    umap(both, random_state=0)
    place = both.obsm["X_umap"]
    for i, (ax, (title, (values, colour))) in enumerate(zip(axes, parts.items(), strict=True)):
        ax.scatter(*place.T, s=3, color="#E8E8E8", lw=0, rasterized=True)
        ax.scatter(*place[owner == i].T, s=5, color=colour, lw=0, rasterized=True)
        ax.set(xticks=[], yticks=[], title=f"{title} ({values.shape[0]})")
        ax.title.set_fontsize(9)
        ax.spines[:].set_visible(False)


def draw_scores() -> Figure:
    """Draw the error of the mean and the energy distance of each method, one dot a seed."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 2.6), sharey=True, layout="constrained")
    ticks = {"nmse": (0.1, 0.2, 0.5, 1), "energy": (0, 1, 3, 10)}
    titles = {
        "nmse": "error of the mean effect (no change: 1)",
        "energy": "energy distance of the cells (replicate: 0)",
    }
    for ax, metric in zip(axes, ticks, strict=True):
        for place, (file, method, _) in enumerate(METHODS[::-1]):
            frame = pd.read_csv(RESULTS / f"kang_{file}.csv")
            rows = frame[frame["method"] == method]
            seeds = rows.groupby("seed")[metric].mean().to_numpy()
            colour = BLUE if method.startswith(file) else GREY
            dots = {"s": 28, "color": colour, "alpha": 0.7, "lw": 0, "zorder": 3}
            ax.scatter(seeds, np.full(len(seeds), place), **dots)
        scale = {"value": "symlog", "linthresh": 1} if metric == "energy" else {"value": "log"}
        ax.set_xscale(**scale)
        ax.xaxis.set_major_locator(FixedLocator(ticks[metric]))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.set_title(titles[metric], fontsize=9)
        ax.set_xlim(left=0.1 if metric == "nmse" else -0.3)
        ax.grid(axis="y", color="#E8E8E8", lw=0.8)
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.tick_params(length=0, labelsize=9)
    axes[0].set_yticks(range(len(METHODS)), [name for *_, name in METHODS[::-1]])
    return figure


if __name__ == "__main__":
    main()
