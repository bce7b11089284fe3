"""Losses of both stages of training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from scvi_perturb._errors import NotTrainedError
from scvi_perturb._plotting import COLOURS, grid, tidy

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from matplotlib.axes import Axes

    from scvi_perturb.model.diffusion import PerturbDiffusion

_STAGES: Final = {"representation": "Stage one: cells", "generator": "Stage two: responses"}
_LINES: Final = {"train": COLOURS[0], "validation": COLOURS[1]}


def training_history(model: PerturbDiffusion, *, axes: Sequence[Axes] | None = None) -> list[Axes]:
    """Draw the losses of every stage of training.

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
    history: dict[str, pd.DataFrame] = dict(model.history_ or {})
    stages = [stage for stage in _STAGES if f"{stage}_train_loss" in history]
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
    for ax, stage in zip(axes, stages, strict=True):
        losses = {
            part: history[f"{stage}_{part}_loss"].iloc[:, 0].dropna()
            for part in _LINES
            if f"{stage}_{part}_loss" in history
        }
        _draw(ax, losses)
        ax.set_title(_STAGES[stage])
    return list(axes)


def _draw(ax: Axes, losses: dict[str, pd.Series[float]]) -> None:
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
