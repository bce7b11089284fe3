"""Names beside points, where there is room for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation
    from numpy.typing import NDArray

__all__ = ["label_points"]

#: Where a label may stand: shift in points, and which of its sides faces the point.
Place: TypeAlias = tuple[
    int, int, Literal["left", "right", "center"], Literal["top", "bottom", "center"]
]
_PLACES: Final[tuple[Place, ...]] = (
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
    ax: Axes, point: NDArray[np.float64], label: str, place: Place, fontsize: float
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
