"""What all figures share: colours that everyone can tell apart, panels, scatters of effects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from scvi_perturb._core import CONTROL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

__all__ = ["COLOURS", "DARK", "PALE", "axes_of", "grid", "palette", "scatter_effects", "tidy"]

#: Colours of Okabe and Ito without yellow and black, strongest first.
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DARK: Final = "#4D4D4D"
PALE: Final = "#D3D3D3"
#: Rounding of profiles in 32 bits, as a share of the largest effect.
_ROUNDING: Final = 1e-5


def palette(labels: Sequence[str]) -> dict[str, str]:
    """Return a colour for each label: dark grey for control, pale grey for those past the last."""
    others = [label for label in labels if label != CONTROL]
    colours = [*COLOURS, *[PALE] * max(0, len(others) - len(COLOURS))]
    chosen = dict(zip(others, colours, strict=False))
    return chosen | {label: DARK for label in labels if label == CONTROL}


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


def axes_of(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """Return the Axes given, or those of a new figure; `size` is in inches."""
    return grid(1, size=size)[0] if ax is None else ax


def tidy(ax: Axes) -> None:
    """Remove the upper and the right spine, and make the labels of ticks small."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8)


def scatter_effects(
    ax: Axes,
    measured: NDArray[np.float64],
    predicted: NDArray[np.float64],
    *,
    what: str,
    color: str,
    alpha: float = 0.6,
) -> None:
    """Draw predicted against measured effects with the line of equality and the correlation."""
    largest = max(float(np.abs([measured, predicted]).max()), 1e-6)
    limit = 1.08 * largest
    for line in (ax.axhline, ax.axvline):
        line(0, color="0.88", lw=0.8, zorder=0)
    ax.plot([-limit, limit], [-limit, limit], color="0.6", lw=1, ls="--", zorder=1)
    ax.scatter(measured, predicted, s=8, color=color, alpha=alpha, lw=0, zorder=2, rasterized=True)
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    constant = min(measured.std(), predicted.std()) <= _ROUNDING * largest
    r = "undefined" if constant else f"{np.corrcoef(measured, predicted)[0, 1]:.2f}"
    ax.text(0.04, 0.96, f"r = {r}", transform=ax.transAxes, va="top")
    ax.locator_params(nbins=5)
    ax.set_xlabel(f"measured {what}", fontsize=8)
    ax.set_ylabel(f"predicted {what}", fontsize=8)
    tidy(ax)
