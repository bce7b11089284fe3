"""Real and predicted cells in one UMAP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from scvi_perturb._constants import CONTROL
from scvi_perturb._errors import SchemaError
from scvi_perturb._plotting import PALE, grid, palette
from scvi_perturb.data.reader import align_genes
from scvi_perturb.metrics import fit_pca, log_normalize

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from scvi_perturb.metrics import Matrix

_N_COMPONENTS: Final = 30
_OTHER: Final = "other"


def umap_real_and_predicted(
    real: AnnData,
    predicted: AnnData,
    *,
    color: str = "perturbation",
    layer: str | None = None,
    fit_on: AnnData | None = None,
    max_cells: int = 4000,
    seed: int = 0,
    axes: Sequence[Axes] | None = None,
) -> list[Axes]:
    """Draw real and predicted cells in one UMAP, side by side.

    Counts are brought to `log1p` of counts per ten thousand; principal components are fitted on
    real cells alone and both are projected onto them; one UMAP is made of all.

    Parameters
    ----------
    real
        Real cells with raw counts: those that answer the prediction, and others around them.
    predicted
        Cells from :meth:`~scvi_perturb.model.PerturbDiffusion.sample`, with the genes of `real`.
    color
        Column of `obs`, in both. Labels that are predicted are coloured first; control is dark
        grey; labels for which no colour is left, and missing ones, are pale grey.
    layer
        Layer of the counts of `real` and `fit_on`; None is `X`.
    fit_on
        Real cells that the components are fitted on, for example those of training; None takes
        `real`.
    max_cells
        At most this many cells of either kind are drawn, chosen at random.
    seed
        Seed of that choice and of the UMAP.
    axes
        Two Axes to draw on; None makes a figure.

    Returns
    -------
    list of matplotlib.axes.Axes
        Real cells; predicted cells, before the real ones in pale grey.

    Raises
    ------
    SchemaError
        When the column or a gene is missing.
    ValueError
        When the number of `axes` is not two.

    References
    ----------
    McInnes, Healy and Melville, UMAP: Uniform Manifold Approximation and Projection, 2018.
    """
    for name, cells in (("real", real), ("predicted", predicted)):
        if color not in cells.obs:
            msg = f"obs of the {name} cells has no column {color!r}; it has {sorted(cells.obs)}."
            raise SchemaError(msg)
    random = np.random.default_rng(seed)
    shown = [_some(cells, max_cells, random) for cells in (real, predicted)]
    genes = list(map(str, real.var_names))
    pca = fit_pca(
        _normalized(real if fit_on is None else fit_on, layer, genes),
        n_components=_N_COMPONENTS,
        seed=seed,
    )
    projected = [
        pca.transform(_normalized(cells, where, genes))
        for cells, where in zip(shown, (layer, None), strict=True)
    ]
    embedded = np.split(_umap(np.concatenate(projected), seed), [shown[0].n_obs])
    labels = [_labels(cells.obs[color]) for cells in shown]
    if axes is None:
        axes = grid(2, size=(4.4, 4.0))
    if len(axes) != 2:
        msg = f"Found {len(axes)} axes; give two, for real and for predicted cells."
        raise ValueError(msg)
    _draw(axes, embedded, labels)
    return list(axes)


def _some(cells: AnnData, most: int, random: np.random.Generator) -> AnnData:
    if cells.n_obs <= most:
        return cells
    return cells[np.sort(random.choice(cells.n_obs, most, replace=False))]


def _normalized(cells: AnnData, layer: str | None, genes: list[str]) -> Matrix:
    cells = align_genes(cells, genes)
    return log_normalize(cells.X if layer is None else cells.layers[layer])


def _umap(components: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Return the UMAP of cells as points, `(n_cells, 2)`."""
    import scanpy as sc
    from anndata import AnnData

    cells = AnnData(obsm={"X_pca": components.astype(np.float32)}, shape=(len(components), 0))
    sc.pp.neighbors(cells, n_neighbors=min(15, len(components) - 1), use_rep="X_pca")
    sc.tl.umap(cells, random_state=seed)
    made: NDArray[np.float64] = cells.obsm["X_umap"]
    return made


def _labels(column: pd.Series[str]) -> pd.Series[str]:
    return column.astype(object).where(column.notna(), _OTHER).astype(str)


def _draw(
    axes: Sequence[Axes],
    points: Sequence[NDArray[np.float64]],
    labels: Sequence[pd.Series[str]],
) -> None:
    """Draw both panels with the same limits and colours, and one legend of what is coloured."""
    wanted = list(dict.fromkeys([*sorted(set(labels[1])), *labels[0].value_counts().index]))
    colours = palette([label for label in wanted if label != _OTHER]) | {_OTHER: PALE}
    everything = np.concatenate(points)
    margin = 0.04 * np.ptp(everything, axis=0)
    low, high = everything.min(axis=0) - margin, everything.max(axis=0) + margin
    for ax, title in zip(axes, ("real cells", "predicted cells"), strict=True):
        ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xticks=[], yticks=[])
        ax.set(xlabel="UMAP 1", ylabel="UMAP 2", title=title)
    size = float(np.clip(20_000 / len(everything), 2, 14))
    _dots(axes[1], points[0], size, PALE)
    for ax, where, label in zip(axes, points, labels, strict=True):
        tone = label.map(colours).to_numpy()
        pale = tone == PALE
        _dots(ax, where[pale], size, PALE)
        # Controls first, the others in random order, so that no group hides another.
        order = np.random.default_rng(0).permutation(np.flatnonzero(~pale))
        order = order[np.argsort(label.to_numpy()[order] != CONTROL, kind="stable")]
        _dots(ax, where[order], size, list(tone[order]))
    _legend(axes[1], {label: colours[label] for label in wanted})


def _dots(ax: Axes, points: NDArray[np.float64], size: float, colour: str | list[str]) -> None:
    ax.scatter(points[:, 0], points[:, 1], s=size, c=colour, lw=0, rasterized=True)


def _legend(ax: Axes, colours: dict[str, str]) -> None:
    named = {label: colour for label, colour in colours.items() if colour != PALE}
    if len(named) < len(colours):
        named["other real cells"] = PALE
    handles = [
        ax.scatter([], [], s=30, color=colour, lw=0, label=label) for label, colour in named.items()
    ]
    ax.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(1.01, 1),
        frameon=False,
        fontsize=8,
        handletextpad=0.2,
        borderaxespad=0,
    )
