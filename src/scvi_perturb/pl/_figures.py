"""Effects, training curves, and real and predicted cells in a UMAP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import numpy as np

from scvi_perturb._checks import checked
from scvi_perturb._core import CONTROL, NotTrainedError, SchemaError, drawn_seed
from scvi_perturb._plotting import COLOURS, PALE, grid, palette, scatter_effects
from scvi_perturb.benchmark.report import trained_stages, training_curves
from scvi_perturb.data.reader import align_genes
from scvi_perturb.metrics import fit_pca, log_normalize

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation
    from numpy.typing import NDArray

    from scvi_perturb.metrics import Matrix
    from scvi_perturb.model.diffusion import PerturbDiffusion


#: Where a label may stand: shift in points, and which of its sides faces the point.
_Place: TypeAlias = tuple[
    int, int, Literal["left", "right", "center"], Literal["top", "bottom", "center"]
]
_PLACES: Final[tuple[_Place, ...]] = (
    (5, 0, "left", "center"),
    (-5, 0, "right", "center"),
    (0, 5, "center", "bottom"),
    (0, -5, "center", "top"),
    (12, 10, "left", "bottom"),
    (12, -10, "left", "top"),
    (-12, 10, "right", "bottom"),
    (-12, -10, "right", "top"),
    (24, 0, "left", "center"),
    (-24, 0, "right", "center"),
)


@checked
def effect_scatter(
    predicted_lfc: Matrix,
    true_lfc: Matrix,
    *,
    genes: Sequence[str] | None = None,
    titles: Sequence[str] | None = None,
    n_labels: int = 8,
    axes: Sequence[Axes] | None = None,
) -> list[Axes]:
    """Plot predicted against measured effects of genes, one panel per condition.

    Each panel has the line of equality and the Pearson correlation over all genes.

    Parameters
    ----------
    predicted_lfc, true_lfc
        Effects in the same units, `(n_conditions, n_genes)`, or `(n_genes,)` for one; for example
        the layer `lfc` of :meth:`~scvi_perturb.model.PerturbDiffusion.predict`, natural log.
    genes
        Names, `(n_genes,)`; None labels no point.
    titles
        Name of each condition.
    n_labels
        Genes to label, those with the largest measured effect; one without room gets none.
    axes
        Where to draw, one a condition; None makes a figure.

    Returns
    -------
    list of matplotlib.axes.Axes
        One a condition.

    Raises
    ------
    ValueError
        When shapes do not match.
    """
    predicted, true = (np.atleast_2d(np.asarray(x, np.float64)) for x in (predicted_lfc, true_lfc))
    if predicted.shape != true.shape:
        msg = (
            f"Found predicted effects {predicted.shape} and measured ones {true.shape}; both must "
            "hold the same conditions and genes, in the same order."
        )
        raise ValueError(msg)
    n_conditions, n_genes = true.shape
    _check_length("genes", genes, n_genes)
    _check_length("titles", titles, n_conditions)
    _check_length("axes", axes, n_conditions)
    drawn = grid(n_conditions) if axes is None else list(axes)
    for i, ax in enumerate(drawn):
        what = "effect (log change from control)"
        scatter_effects(ax, true[i], predicted[i], what=what, color=COLOURS[0])
        if titles is not None:
            ax.set_title(titles[i], fontsize=10)
    if genes is not None:
        for i, ax in enumerate(drawn):
            top = np.argsort(-np.abs(true[i]), kind="stable")[:n_labels]
            ax.scatter(true[i, top], predicted[i, top], s=14, color=COLOURS[1], lw=0, zorder=3)
            points = np.column_stack([true[i, top], predicted[i, top]])
            label_points(ax, points, [genes[gene] for gene in top])
    return drawn


def _check_length(name: str, given: Sequence[object] | None, expected: int) -> None:
    if given is not None and len(given) != expected:
        msg = f"{name} has {len(given)} entries; expected {expected}."
        raise ValueError(msg)


def label_points(
    ax: Axes, points: NDArray[np.float64], labels: Sequence[str], *, fontsize: float = 7
) -> list[Annotation]:
    """Write labels beside points so that none covers another; those without room are left out.

    `ax`: Axes whose limits are final. `points`: Positions, `(n, 2)`, most important first.
    `labels`: Names, `(n,)`. `fontsize`: Size of the letters. Returns the labels that were written.
    """
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    figure = ax.get_figure(root=True)
    if figure is None:
        return []
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    inside = ax.get_window_extent(renderer)
    marks = [Bbox.from_bounds(x - 3, y - 3, 6, 6) for x, y in ax.transData.transform(points)]
    taken = [*marks, *(text.get_window_extent(renderer) for text in ax.texts)]
    written = []
    for point, label in zip(points, labels, strict=True):
        for place in _PLACES:
            text = _write(ax, point, label, place, fontsize)
            text.update_positions(renderer)
            box = Text.get_window_extent(text, renderer)  # of the words, without the line
            box = box.padded(1, 0)
            fits = inside.contains(*box.min) and inside.contains(*box.max)
            if fits and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                written.append(text)
                break
            text.remove()
    return written


def _write(
    ax: Axes, point: NDArray[np.float64], label: str, place: _Place, fontsize: float
) -> Annotation:
    """Write a label at a place; one that stands apart gets a line to its point."""
    from matplotlib.patheffects import withStroke

    dx, dy, horizontal, vertical = place
    text = ax.annotate(
        label,
        (float(point[0]), float(point[1])),
        xytext=(dx, dy),
        textcoords="offset points",
        ha=horizontal,
        va=vertical,
        fontsize=fontsize,
        arrowprops={"arrowstyle": "-", "lw": 0.4, "color": "0.5"} if abs(dx) > 5 else None,
        zorder=4,
        path_effects=[withStroke(linewidth=1.5, foreground="white")],
    )
    text.set_in_layout(False)
    return text


@checked
def training_history(model: PerturbDiffusion, *, axes: Sequence[Axes] | None = None) -> list[Axes]:
    """Plot the losses of every stage of training.

    Parameters
    ----------
    model
        A trained model; its `history_` is read.
    axes
        Where to draw, one a stage; None makes a figure.

    Returns
    -------
    list of matplotlib.axes.Axes
        One for each stage that was trained. The scale leaves out what is far above the rest, such
        as the first epochs.

    Raises
    ------
    NotTrainedError
        When there is no history.
    ValueError
        When the number of `axes` is not that of stages.
    """
    stages = trained_stages(model)
    if not stages:
        msg = f"This {type(model).__name__} has no history of training; call `.train()` first."
        raise NotTrainedError(msg)
    if axes is None:
        axes = grid(len(stages), size=(4.2, 3.0))
    if len(axes) != len(stages):
        msg = (
            f"Found {len(axes)} axes for {len(stages)} stages ({', '.join(stages)}); give one each."
        )
        raise ValueError(msg)
    return [
        training_curves(model, stage=stage, ax=ax) for ax, stage in zip(axes, stages, strict=True)
    ]


_N_COMPONENTS: Final = 30
_OTHER: Final = "other"


@checked
def umap_real_and_predicted(
    real: AnnData,
    predicted: AnnData,
    *,
    color: str = "perturbation",
    layer: str | None = None,
    fit_on: AnnData | None = None,
    max_cells: int = 4000,
    seed: int | None = 0,
    axes: Sequence[Axes] | None = None,
) -> list[Axes]:
    """Plot real and predicted cells in one UMAP, side by side.

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
    _draw_cells(axes, embedded, labels)
    return list(axes)


def _some(cells: AnnData, most: int, random: np.random.Generator) -> AnnData:
    if cells.n_obs <= most:
        return cells
    return cells[np.sort(random.choice(cells.n_obs, most, replace=False))]


def _normalized(cells: AnnData, layer: str | None, genes: list[str]) -> Matrix:
    cells = align_genes(cells, genes)
    return log_normalize(cells.X if layer is None else cells.layers[layer])


def _umap(components: NDArray[np.float64], seed: int | None) -> NDArray[np.float64]:
    """Return the UMAP of cells as points, `(n_cells, 2)`."""
    import scanpy as sc
    from anndata import AnnData

    cells = AnnData(obsm={"X_pca": components.astype(np.float32)}, shape=(len(components), 0))
    sc.pp.neighbors(cells, n_neighbors=min(15, len(components) - 1), use_rep="X_pca")
    sc.tl.umap(cells, random_state=drawn_seed(seed))
    made: NDArray[np.float64] = cells.obsm["X_umap"]
    return made


def _labels(column: pd.Series[str]) -> pd.Series[str]:
    return column.astype(object).where(column.notna(), _OTHER).astype(str)


def _draw_cells(
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
