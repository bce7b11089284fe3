"""The operators of Papalexi 2021 beside differences of means: which knock-outs are alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

__all__ = ["draw"]


def draw(
    operators: pd.DataFrame, effects: pd.DataFrame, pathway: tuple[str, ...], path: Path
) -> None:
    """Draw the cosines of vectors of perturbations, both in the order of the operators' tree."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "scvi-perturb"
    cosines = [_cosines(vectors) for vectors in (operators, effects)]
    away = np.clip(1 - cosines[0], 0, None)
    np.fill_diagonal(away, 0)
    order = leaves_list(linkage(squareform(away, checks=False), "average"))
    names = operators.index.to_numpy()[order]
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.6), sharey=True, layout="constrained")
    for axis, cosine, title in zip(
        axes,
        cosines,
        ("operators of the model", "differences of means, 50 components"),
        strict=True,
    ):
        image = axis.imshow(cosine[np.ix_(order, order)], cmap="RdBu_r", vmin=-1, vmax=1)
        axis.set_title(title, fontsize=9)
        axis.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
        axis.set_yticks(range(len(names)), names, fontsize=6)
        for label in [*axis.get_xticklabels(), *axis.get_yticklabels()]:
            if label.get_text() in pathway:
                label.set_fontweight("bold")
    figure.colorbar(image, ax=axes, shrink=0.7, label="cosine")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _cosines(vectors: pd.DataFrame) -> np.ndarray:
    values = vectors.to_numpy()
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    cosines: np.ndarray = unit @ unit.T
    return cosines
