"""The figures of the demo."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from scvi_perturb._constants import CONTROL
from scvi_perturb.pl import effect_scatter, training_history, umap_real_and_predicted

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from scvi_perturb.cli._cases import Case
    from scvi_perturb.cli._screen import Screen
    from scvi_perturb.data.split.record import Split
    from scvi_perturb.model.diffusion import PerturbDiffusion

__all__ = ["FIGURES", "draw"]

#: Names of files, and what they show.
FIGURES: Final = {
    "umap_real_and_predicted.png": "real and predicted cells in one UMAP",
    "effects.png": "predicted against measured effect of every gene",
    "training.png": "losses of both stages",
}
_MOST, _MOST_COLOURS = 6, 3
_CELLS_A_CASE, _BACKGROUND_CELLS = 250, 2000


def draw(
    folder: Path,
    *,
    screen: Screen,
    split: Split,
    model: PerturbDiffusion,
    asked: Sequence[Case],
    sampled: AnnData,
    effects: AnnData,
    agreement: NDArray[np.float64],
) -> None:
    """Write all figures, of the conditions with large effects on which two halves agree."""
    size = np.linalg.norm(effects.layers["measured_lfc"], axis=1)
    order = np.argsort(-size * agreement.clip(min=0), kind="stable")
    umap, scatter, training = (folder / name for name in FIGURES)
    _save(_umap(screen, split, asked, sampled, order), umap)
    shown = np.sort(order[:_MOST])
    _save(
        effect_scatter(
            effects.layers["lfc"][shown],
            effects.layers["measured_lfc"][shown],
            genes=list(effects.var_names),
            titles=[asked[i].title for i in shown],
        ),
        scatter,
    )
    _save(training_history(model), training)


def _umap(
    screen: Screen,
    split: Split,
    asked: Sequence[Case],
    sampled: AnnData,
    order: NDArray[np.intp],
) -> list[Axes]:
    """Draw held-out and predicted cells by perturbation, their controls, and other real cells."""
    labels = [str(case.request.iloc[0, 0]) for case in asked]
    coloured = list(dict.fromkeys(labels[i] for i in order))[:_MOST_COLOURS]
    random = np.random.default_rng(0)
    label = np.full(screen.adata.n_obs, None, object)
    rows = [_some(split.train, _BACKGROUND_CELLS, random)]
    drawn, names = [], []
    blocks = np.split(np.arange(sampled.n_obs), len(asked))
    for i in order:
        name = labels[i]
        if name not in coloured:
            continue
        control, observed, predicted = (
            _some(part, _CELLS_A_CASE, random)
            for part in (asked[i].control, asked[i].observed, blocks[i])
        )
        label[control], label[observed] = CONTROL, name
        rows += [control, observed]
        drawn.append(predicted)
        names += [name] * len(predicted)
    chosen = np.unique(np.concatenate(rows))
    real = screen.adata[chosen].copy()
    real.obs["cells"] = pd.Series(label[chosen], index=real.obs_names, dtype=object)
    predicted_cells = sampled[np.concatenate(drawn)].copy()
    predicted_cells.obs["cells"] = names
    train = screen.adata[split.train]
    axes = umap_real_and_predicted(real, predicted_cells, color="cells", fit_on=train)
    axes[0].set_title("real: held-out and control cells")
    return axes


def _some(cells: NDArray[np.int64], most: int, random: np.random.Generator) -> NDArray[np.int64]:
    if len(cells) <= most:
        return cells
    return np.sort(random.choice(cells, most, replace=False))


def _save(axes: Sequence[Axes], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure = axes[0].get_figure(root=True)
    if figure is not None:
        figure.savefig(path, dpi=150, bbox_inches="tight")
        plt.close(figure)
