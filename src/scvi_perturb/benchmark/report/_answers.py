"""Figures of a trained model and of what it predicts: effects, support, losses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from scvi_perturb._checks import checked
from scvi_perturb._core import NotTrainedError, SchemaError
from scvi_perturb._plotting import COLOURS, DARK, axes_of, tidy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from scvi_perturb.model.base.model import PerturbationModel

#: A stage of training that has losses.
TrainingStage = Literal["representation", "generator"]

#: Titles of stages, and the colour of each loss.
STAGES: Final[Mapping[TrainingStage, str]] = {
    "representation": "Stage one: cells",
    "generator": "Stage two: responses",
}
_LINES: Final = {"train": COLOURS[0], "validation": COLOURS[1]}
#: Marker, face and colour of what stands beside a prediction.
_BESIDE: Final = (
    ("D", "none", DARK, 6.0),
    ("|", DARK, DARK, 9.0),
    ("s", "none", COLOURS[1], 5.0),
    ("^", "none", COLOURS[2], 5.0),
)


@checked
def effect_intervals(
    predicted: AnnData,
    *,
    row: int = 0,
    others: Mapping[str, NDArray[np.float64]] | None = None,
    n_genes: int = 12,
    ax: Axes | None = None,
) -> Axes:
    """Draw the predicted effect on the genes that change most, with its interval.

    Parameters
    ----------
    predicted
        What `predict` of a model returns.
    row
        Which condition of it is drawn.
    others
        Changes from elsewhere, by name: as measured, of a simple predictor. `(n_genes,)`, or
        `(k, n_genes)` for several marks of one name, such as two halves of the cells; at most four
        names.
    n_genes
        Genes to draw: those with the largest absolute change, predicted or in others of one mark.
    ax
        Where to draw; None makes a figure.

    Returns
    -------
    matplotlib.axes.Axes
        One line a gene, the largest change first; change from control, natural logarithm.

    Raises
    ------
    SchemaError
        If layers are missing or not finite, or others are not of the same genes.
    ValueError
        If there is no such row, or there are too many others.
    """
    beside = {name: np.atleast_2d(np.asarray(v, np.float64)) for name, v in (others or {}).items()}
    _check_effects(predicted, row, beside)
    lfc, lower, upper = (_row(predicted.layers[x], row) for x in ("lfc", "lower", "upper"))
    if not np.isfinite(lfc).all():
        msg = f"Row {row} holds changes that are not finite; pass what `predict` returns."
        raise SchemaError(msg)
    single = [np.nan_to_num(values) for values in beside.values() if len(values) == 1]
    largest = np.abs(np.vstack([lfc, *single])).max(axis=0)
    top = np.argsort(-largest, kind="stable")[:n_genes]
    place = np.arange(len(top))
    ax = axes_of(ax, effect_size(len(top), len(beside)))
    ax.axvline(0, color="0.75", lw=1, zorder=0)
    ax.grid(axis="y", color="0.93", lw=0.6)
    ax.set_axisbelow(True)
    error = np.abs(np.vstack([lower, upper])[:, top] - lfc[top])
    label, colour = "predicted, with interval", COLOURS[0]
    ax.errorbar(lfc[top], place, xerr=error, fmt="o", ms=5, lw=2, color=colour, label=label)
    for (marker, face, edge, size), (name, values) in zip(_BESIDE, beside.items(), strict=False):
        for i, own in enumerate(values):
            told = name if i == 0 else None
            ax.plot(own[top], place, marker, mfc=face, mec=edge, ms=size, label=told, zorder=3)
    ax.set_yticks(place, predicted.var_names[top].astype(str), fontsize=8)
    ax.set_ylim(len(top) - 0.4, -0.6)
    ax.set_xlabel("change from control (natural log)", fontsize=8)
    # Above the axes, so that it covers no gene.
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, fontsize=8, borderaxespad=0.2)
    tidy(ax)
    return ax


def _row(values: Any, row: int) -> NDArray[np.float64]:  # noqa: ANN401
    """Return a row of an array or a sparse matrix."""
    own = values[[row]]
    return np.asarray(own.toarray() if hasattr(own, "toarray") else own, np.float64).ravel()


def effect_size(n_genes: int, n_others: int) -> tuple[float, float]:
    """Return the size in inches of a figure of effects."""
    return 3.8, 0.9 + 0.19 * n_genes + 0.17 * (n_others + 1)


def _check_effects(predicted: AnnData, row: int, beside: Mapping[str, NDArray[np.float64]]) -> None:
    if absent := [x for x in ("lfc", "lower", "upper") if x not in predicted.layers]:
        msg = f"Layers {absent} are missing; pass what `predict` of a model returns."
        raise SchemaError(msg)
    if row >= predicted.n_obs:
        msg = f"row={row}, but there are {predicted.n_obs} conditions, counted from 0."
        raise ValueError(msg)
    if len(beside) > len(_BESIDE):
        msg = f"Found {len(beside)} others; expected at most {len(_BESIDE)}, one marker each."
        raise ValueError(msg)
    for name, values in beside.items():
        if values.ndim != 2 or values.shape[1] != predicted.n_vars:
            msg = f"others[{name!r}] has shape {values.shape}; expected {predicted.n_vars} genes."
            raise SchemaError(msg)


@checked
def condition_support(
    names: Sequence[str], support: Sequence[float], *, ax: Axes | None = None
) -> Axes:
    """Draw how much training says about each condition.

    Parameters
    ----------
    names
        The conditions.
    support
        The column `support` of `predict`, from 0, nothing is known, to 1, the same was measured.
    ax
        Where to draw; None makes a figure.

    Returns
    -------
    matplotlib.axes.Axes
        One line a condition, the best supported first.

    Raises
    ------
    ValueError
        If the numbers of names and of values differ, there are none, or a value is not from 0 to 1.
    """
    names, values = list(names), np.asarray(support, np.float64)
    if len(names) != len(values) or not names:
        msg = f"Found {len(names)} names and {len(values)} values; expected one each, at least one."
        raise ValueError(msg)
    if not ((values >= 0) & (values <= 1)).all():
        msg = f"support lies from {values.min():g} to {values.max():g}; expected 0 to 1."
        raise ValueError(msg)
    order = np.argsort(-values, kind="stable")
    ax = axes_of(ax, support_size(len(names)))
    ax.hlines(range(len(order)), 0, values[order], color="0.85", lw=2, zorder=1)
    ax.plot(values[order], range(len(order)), "o", color=COLOURS[0], ms=6, zorder=2)
    ax.set_yticks(range(len(order)), [names[i] for i in order], fontsize=8)
    ax.set(xlim=(0, 1.02), ylim=(len(order) - 0.4, -0.6))
    ax.set_xlabel("support by training: 0 nothing is known, 1 as trained", fontsize=8)
    tidy(ax)
    return ax


def support_size(n_names: int) -> tuple[float, float]:
    """Return the size in inches of a figure of support."""
    return 4.4, 0.8 + 0.22 * n_names


@checked
def training_curves(
    model: PerturbationModel, *, stage: TrainingStage | None = None, ax: Axes | None = None
) -> Axes:
    """Draw the losses of a stage of training over its epochs.

    Parameters
    ----------
    model
        A trained model; its `history_` is read.
    stage
        "representation": of cells; "generator": of responses. None takes the last that was trained.
    ax
        Where to draw; None makes a figure.

    Returns
    -------
    matplotlib.axes.Axes
        Loss of training and of validation cells. The scale leaves out what is far above the rest,
        such as the first epochs.

    Raises
    ------
    NotTrainedError
        If there is no history of the stage.
    """
    stages = trained_stages(model)
    if not stages or (stage is not None and stage not in stages):
        there = f"; it has {', '.join(stages)}" if stages else "; call `.train()` first"
        msg = f"This {type(model).__name__} has no history of {stage or 'training'}{there}."
        raise NotTrainedError(msg)
    stage = stages[-1] if stage is None else stage
    history: dict[str, pd.DataFrame] = dict(model.history_ or {})
    losses = {
        part: history[f"{stage}_{part}_loss"].iloc[:, 0].dropna()
        for part in _LINES
        if f"{stage}_{part}_loss" in history
    }
    ax = axes_of(ax, (4.2, 3.0))
    _draw_losses(ax, losses)
    ax.set_title(STAGES[stage], fontsize=10)
    return ax


def trained_stages(model: PerturbationModel) -> list[TrainingStage]:
    """Return the stages of which there are losses."""
    history = getattr(model, "history_", None) or {}
    return [stage for stage in STAGES if f"{stage}_train_loss" in history]


def _draw_losses(ax: Axes, losses: dict[str, pd.Series[float]]) -> None:
    from matplotlib.ticker import MaxNLocator

    for part, loss in losses.items():
        marker = "o" if len(loss) < 3 else ""
        ax.plot(loss.index, loss, color=_LINES[part], label=part, lw=1.5, marker=marker, ms=3)
    lowest = min(float(loss.min()) for loss in losses.values())
    usual = max(float(loss.quantile(0.95)) for loss in losses.values())
    highest = max(float(loss.max()) for loss in losses.values())
    if highest - lowest > 1.5 * (usual - lowest) > 0:
        ax.set_ylim(lowest - 0.05 * (usual - lowest), usual + 0.3 * (usual - lowest))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("epoch")
    ax.set_ylabel("loss")
    tidy(ax)
    ax.legend(frameon=False)
