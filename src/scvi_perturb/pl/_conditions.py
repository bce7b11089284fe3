"""Effects over doses, and conditions that are alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scvi_perturb._checks import checked
from scvi_perturb._core import SchemaError
from scvi_perturb._plotting import COLOURS, axes_of, tidy

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

#: Columns of the table of curves that are figures, and not what the curve is of.
_CURVE: Final = ("ec50", "ec50_lower", "ec50_upper", "emax", "slope", "e0", "range")
_POINT: Final = ("gene", "dose", "lfc", "lower", "upper")


@checked
def dose_response(curves: pd.DataFrame, points: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw effects over doses with their Hill curves, and the intervals of EC50 below.

    Parameters
    ----------
    curves
        Up to six rows of :func:`scvi_perturb.tl.dose_response`. A flat or undetermined one has no
        line.
    points
        The table of the same call with `points=True`; rows of other curves are left out.
    ax
        Where to draw; None makes a figure.

    Returns
    -------
    matplotlib.axes.Axes
        Dose on a logarithmic axis, in the unit of the data, control at its left end; change from
        control, natural logarithm, with intervals. A bar at the foot is the interval of EC50, an
        arrow an end that is open.

    Raises
    ------
    SchemaError
        If columns are missing, or a curve has no points.
    ValueError
        If there are more than six curves.
    """
    for name, table, needed in (("curves", curves, _CURVE), ("points", points, _POINT)):
        if absent := [column for column in needed if column not in table]:
            msg = f"{name} lacks the columns {absent}; pass a table of `tl.dose_response`."
            raise SchemaError(msg)
    if not 1 <= len(curves) <= len(COLOURS):
        msg = f"Found {len(curves)} curves; choose 1 to {len(COLOURS)} rows, one colour each."
        raise ValueError(msg)
    ax = axes_of(ax, (4.6, 3.4))
    shared = [column for column in points if column in curves]
    told = [column for column in shared if points[column].nunique() > 1] or ["gene"]
    doses = points["dose"][points["dose"] > 0]
    low, high = float(doses.min()) / 3, float(doses.max()) * 3
    ax.axhline(0, color="0.88", lw=0.8, zorder=0)
    for i, (colour, (_, curve)) in enumerate(zip(COLOURS, curves.iterrows(), strict=False)):
        own = points[(points[shared] == curve[shared]).all(axis=1)]
        if own.empty:
            msg = f"points has no rows of {curve[shared].to_dict()}; pass those of the same call."
            raise SchemaError(msg)
        at = own["dose"].where(own["dose"] > 0, low)
        error = np.abs(own[["lower", "upper"]].to_numpy().T - own["lfc"].to_numpy())
        label = ", ".join(str(curve[column]) for column in told)
        ax.errorbar(at, own["lfc"], error, fmt="o", ms=4, lw=1, color=colour, label=label)
        if np.isfinite(curve["ec50"]):
            _draw_curve(ax, curve, np.geomspace(low, high, 200), colour)
            _draw_ends(ax, curve, (low, high), 0.03 + 0.03 * i, colour)
    ax.set_xscale("log")
    ax.set(xlim=(low / 1.3, high), xlabel="dose (control at the left)")
    ax.set_ylabel("effect (log change from control)")
    tidy(ax)
    ax.legend(frameon=False, fontsize=8)
    return ax


def _draw_curve(ax: Axes, curve: pd.Series[Any], doses: NDArray[np.float64], colour: str) -> None:
    share = 1 / (1 + (curve["ec50"] / doses) ** curve["slope"])
    ax.plot(doses, curve["e0"] + curve["emax"] * share, color=colour, lw=1.5)


def _draw_ends(
    ax: Axes, curve: pd.Series[Any], limits: tuple[float, float], height: float, colour: str
) -> None:
    """Draw the interval of EC50 as a bar, with arrows where it is open."""
    across = ax.get_xaxis_transform()
    low, high = np.clip([curve["ec50_lower"], curve["ec50_upper"]], *limits)
    ax.plot([low, high], [height, height], color=colour, lw=2, transform=across)
    ax.plot([curve["ec50"]], [height], "|", color=colour, ms=8, transform=across)
    for end, at, marker in (("ec50_lower", low, "<"), ("ec50_upper", high, ">")):
        if curve[end] in {0, np.inf}:
            ax.plot([at], [height], marker, color=colour, ms=5, transform=across)
