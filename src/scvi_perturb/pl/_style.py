"""Colours that everyone can tell apart, and figures of several panels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from scvi_perturb._constants import CONTROL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

__all__ = ["BACKGROUND", "MEASURED", "PREDICTED", "grid", "palette"]

#: Colours of Okabe and Ito without yellow and black, strongest first.
_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_CONTROL: Final = "#4D4D4D"
BACKGROUND: Final = "#D3D3D3"
MEASURED, PREDICTED = _COLOURS[:2]


def palette(labels: Sequence[str]) -> dict[str, str]:
    """Return a colour for each label: dark grey for control, pale grey for those past the last."""
    others = [label for label in labels if label != CONTROL]
    colours = [*_COLOURS, *[BACKGROUND] * max(0, len(others) - len(_COLOURS))]
    chosen = dict(zip(others, colours, strict=False))
    return chosen | {label: _CONTROL for label in labels if label == CONTROL}


def grid(
    n_panels: int, *, n_columns: int = 3, size: tuple[float, float] = (3.4, 3.4)
) -> list[Axes]:
    """Return `n_panels` Axes of a new figure, row by row; `size` of a panel is in inches."""
    import matplotlib.pyplot as plt

    columns = min(n_panels, n_columns)
    rows = -(-n_panels // columns)
    _, axes = plt.subplots(
        rows,
        columns,
        figsize=(size[0] * columns, size[1] * rows),
        squeeze=False,
        layout="constrained",
    )
    flat: list[Axes] = list(axes.flat)
    for unused in flat[n_panels:]:
        unused.remove()
    return flat[:n_panels]
