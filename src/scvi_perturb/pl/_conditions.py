"""Effects over doses, conditions that are alike, pairs that interact, how many cells respond."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scvi_perturb._checks import checked
from scvi_perturb._core import SchemaError
from scvi_perturb._plotting import COLOURS, DARK, PALE, axes_of, tidy

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

#: Columns of the table of curves that are figures, and not what the curve is of.
_CURVE: Final = ("ec50", "ec50_lower", "ec50_upper", "emax", "slope", "e0", "range")
_POINT: Final = ("gene", "dose", "lfc", "lower", "upper")
#: Letters of the kinds of interactions.
_KINDS: Final = {
    "synergy": "S",
    "additive": "=",
    "buffering": "B",
    "suppression": "X",
    "neomorphic": "N",
    "unclear": "?",
}


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
    records: list[dict[Any, Any]] = curves.to_dict("records")
    for i, (colour, curve) in enumerate(zip(COLOURS, records, strict=False)):
        named = {column: curve[column] for column in shared}
        own = points[np.all([points[column] == named[column] for column in shared], axis=0)]
        if own.empty:
            msg = f"points has no rows of {named}; pass those of the same call."
            raise SchemaError(msg)
        at = own["dose"].where(own["dose"] > 0, low)
        error = np.abs(own[["lower", "upper"]].to_numpy().T - own["lfc"].to_numpy())
        label = ", ".join(str(curve[column]) for column in told)
        ax.errorbar(at, own["lfc"], error, fmt="o", ms=4, lw=1, color=colour, label=label)
        if np.isfinite(curve["ec50"]):
            _draw_curve(ax, curve, np.geomspace(low, high, 200), colour)
            _draw_ends(ax, curve, (low, high), 0.03 + 0.03 * i, colour)
    ax.margins(y=0.05 + 0.03 * len(curves))
    ax.set_xscale("log")
    ax.set(xlim=(low / 1.3, high), xlabel="dose (control at the left)")
    ax.set_ylabel("effect (log change from control)")
    tidy(ax)
    ax.legend(frameon=False, fontsize=8)
    return ax


def _draw_curve(ax: Axes, curve: dict[Any, Any], doses: NDArray[np.float64], colour: str) -> None:
    share = 1 / (1 + (curve["ec50"] / doses) ** curve["slope"])
    ax.plot(doses, curve["e0"] + curve["emax"] * share, color=colour, lw=1.5)


def _draw_ends(
    ax: Axes, curve: dict[Any, Any], limits: tuple[float, float], height: float, colour: str
) -> None:
    """Draw the interval of EC50 as a bar, with arrows where it is open."""
    across = ax.get_xaxis_transform()
    low, high = np.clip([curve["ec50_lower"], curve["ec50_upper"]], *limits)
    ax.plot([low, high], [height, height], color=colour, lw=2, transform=across)
    ax.plot([curve["ec50"]], [height], "|", color=colour, ms=8, transform=across)
    for end, at, marker in (("ec50_lower", low, "<"), ("ec50_upper", high, ">")):
        if curve[end] in {0, np.inf}:
            ax.plot([at], [height], marker, color=colour, ms=5, transform=across)


@checked
def similarity_map(
    similarity: pd.DataFrame, clusters: pd.DataFrame | None = None, *, ax: Axes | None = None
) -> Axes:
    """Draw how alike perturbations are, those of a cluster side by side.

    Parameters
    ----------
    similarity
        From :func:`scvi_perturb.tl.perturbation_similarity`.
    clusters
        From :func:`scvi_perturb.tl.cluster_perturbations`: its order, with a frame around each
        cluster of two and more. None keeps the order of `similarity`.
    ax
        Where to draw; None makes a figure.

    Returns
    -------
    matplotlib.axes.Axes
        A square for each two conditions, -1 orange, 1 blue; grey where nothing is known.

    Raises
    ------
    SchemaError
        If columns are missing, or clusters are of other conditions.
    """
    needed = ("first", "second", "similarity")
    if absent := [column for column in needed if column not in similarity]:
        msg = f"similarity lacks the columns {absent}; pass that of `tl.perturbation_similarity`."
        raise SchemaError(msg)
    labels = list(dict.fromkeys([*similarity["first"], *similarity["second"]]))
    if clusters is not None:
        if not {"label", "cluster"} <= {*clusters} or {*clusters["label"]} != {*labels}:
            msg = "clusters are not those of the same conditions; make both from the same data."
            raise SchemaError(msg)
        labels = list(clusters["label"])
    place = {label: i for i, label in enumerate(labels)}
    values = np.eye(len(labels))
    rows, columns = (similarity[side].map(place).to_numpy() for side in ("first", "second"))
    values[rows, columns] = values[columns, rows] = similarity["similarity"]
    ax = axes_of(ax, (1.8 + 0.22 * len(labels), 1.4 + 0.22 * len(labels)))
    _draw_map(ax, values, labels, what="similarity of effects")
    if clusters is not None:
        for _, own in clusters.groupby("cluster"):
            _frame(ax, sorted(place[label] for label in own["label"]))
    return ax


@checked
def interaction_map(pairs: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw which pairs of perturbations do more, or less, than the sum of the two.

    Parameters
    ----------
    pairs
        From :func:`scvi_perturb.tl.interactions`, a row a pair; of several contexts, those of one.
    ax
        Where to draw; None makes a figure.

    Returns
    -------
    matplotlib.axes.Axes
        A square for each pair, by `along`, the share of the sum of its singles that it reaches:
        white at 1, blue to 2 and more, orange to 0 and less; grey where the pair was not asked. The
        letter is its kind: S synergy, B buffering, X suppression, N neomorphic, = additive,
        ? unclear.

    Raises
    ------
    SchemaError
        If columns are missing, or a pair has several rows.
    """
    needed = ("first", "second", "along", "kind")
    if absent := [column for column in needed if column not in pairs]:
        msg = f"pairs lacks the columns {absent}; pass the table of `tl.interactions`."
        raise SchemaError(msg)
    ends = [tuple(sorted(map(str, two))) for two in pairs[["first", "second"]].to_numpy()]
    if len(set(ends)) < len(ends):
        twice = next(two for two in ends if ends.count(two) > 1)
        msg = (
            f"pairs has {ends.count(twice)} rows of {'+'.join(twice)}; expected one. Keep those of "
            "one context, dose and time."
        )
        raise SchemaError(msg)
    labels = sorted({name for two in ends for name in two})
    values = np.full((len(labels), len(labels)), np.nan)
    ax = axes_of(ax, (1.8 + 0.22 * len(labels), 1.4 + 0.22 * len(labels)))
    for two, along, kind in zip(ends, pairs["along"], pairs["kind"], strict=True):
        row, column = map(labels.index, two)
        values[row, column] = values[column, row] = np.clip(along - 1, -1, 1)
        for x, y in ((row, column), (column, row)):
            text = _KINDS.get(str(kind), "")
            ax.text(x, y, text, ha="center", va="center", fontsize=7, color=DARK)
    _draw_map(ax, values, labels, what="share of the sum, less 1")
    return ax


def _draw_map(ax: Axes, values: NDArray[np.float64], labels: list[str], *, what: str) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    scale = LinearSegmentedColormap.from_list("alike", [COLOURS[1], "white", COLOURS[0]])
    colours = scale.with_extremes(bad=PALE)
    image = ax.imshow(np.ma.masked_invalid(values), cmap=colours, vmin=-1, vmax=1)
    size = float(np.clip(260 / len(labels), 3, 8))
    ax.set_xticks(range(len(labels)), labels, rotation=90, fontsize=size)
    ax.set_yticks(range(len(labels)), labels, fontsize=size)
    figure = ax.get_figure()
    if figure is not None:
        bar = figure.colorbar(image, ax=ax, shrink=0.6)
        bar.set_label(what, fontsize=8)
        bar.ax.tick_params(labelsize=7)


def _frame(ax: Axes, places: list[int]) -> None:
    """Draw a frame around conditions that stand side by side."""
    from matplotlib.patches import Rectangle

    if len(places) > 1:
        corner = (places[0] - 0.5, places[0] - 0.5)
        ax.add_patch(Rectangle(corner, len(places), len(places), fill=False, lw=1.2, ec=DARK))


@checked
def responders(adata: AnnData, *, key: str = "responded", ax: Axes | None = None) -> Axes:
    """Draw how likely the cells of each condition responded, and the share that did.

    Parameters
    ----------
    adata
        Cells after :func:`scvi_perturb.tl.escapers`.
    key
        Its `key_added`.
    ax
        Where to draw; None makes a figure.

    Returns
    -------
    matplotlib.axes.Axes
        One row a condition, the largest share on top. Shades are shares of its cells by their
        probability; the dot is the share of responders with its interval.

    Raises
    ------
    SchemaError
        If `obs` or `uns` has no such results.
    """
    table = adata.uns.get(key)
    if not {key, f"{key}_row"} <= {*adata.obs} or "n_responders" not in getattr(
        table, "columns", ()
    ):
        msg = f"obs and uns have no {key!r}; call `tl.escapers(adata, key_added={key!r})` first."
        raise SchemaError(msg)
    table = table.reset_index(drop=True).sort_values("share", kind="stable")
    first, *others = table.columns[: list(table.columns).index("n_responders") - 1]
    named = [first, *(name for name in others if table[name].nunique() > 1)]
    rows = table[named].astype(str).agg(", ".join, axis=1).tolist()
    edges = np.linspace(0, 1, 21)
    own_row = adata.obs[f"{key}_row"].to_numpy(np.float64)
    values = adata.obs[key].to_numpy(np.float64)
    counts = [np.histogram(values[own_row == row], edges)[0] for row in table.index]
    shade = np.array([own / max(own.sum(), 1) for own in counts])
    ax = axes_of(ax, (4.6, 0.8 + 0.25 * len(rows)))
    ax.pcolormesh(edges, np.arange(len(rows) + 1) - 0.5, shade, cmap="Greys", vmin=0, vmax=0.6)
    share = table["share"].to_numpy()
    error = np.abs(table[["lower", "upper"]].to_numpy().T - share)
    ax.errorbar(share, range(len(rows)), xerr=error, fmt="o", ms=4, lw=1.2, color=COLOURS[1])
    ax.set_yticks(range(len(rows)), rows)
    ax.set(xlim=(0, 1), xlabel="probability to have responded (shades); share (dot)")
    tidy(ax)
    return ax
