"""Predicted against measured effects of genes, with the names of the largest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import numpy as np

from scvi_perturb._plotting import COLOURS, grid, scatter_effects

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.text import Annotation
    from numpy.typing import NDArray

    from scvi_perturb.metrics import Matrix

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


def effect_scatter(
    predicted_lfc: Matrix,
    true_lfc: Matrix,
    *,
    genes: Sequence[str] | None = None,
    titles: Sequence[str] | None = None,
    n_labels: int = 8,
    axes: Sequence[Axes] | None = None,
) -> list[Axes]:
    """Draw predicted against measured effects of genes, one panel a condition.

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

    Parameters
    ----------
    ax
        Axes whose limits are final.
    points
        Positions, `(n, 2)`, most important first.
    labels
        Names, `(n,)`.
    fontsize
        Size of the letters.

    Returns
    -------
    list of matplotlib.text.Annotation
        The labels that were written.
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
