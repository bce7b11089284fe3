"""Is the effect predicted: every gene, predicted against measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from scvi_perturb.pl._labels import label_points
from scvi_perturb.pl._style import MEASURED, PREDICTED, grid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from scvi_perturb.metrics import Matrix

__all__ = ["effect_scatter"]

_UNITS: Final = "effect (log change from control)"


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
        _draw(ax, predicted[i], true[i])
        if titles is not None:
            ax.set_title(titles[i], fontsize=10)
    if genes is not None:
        for i, ax in enumerate(drawn):
            top = np.argsort(-np.abs(true[i]), kind="stable")[:n_labels]
            ax.scatter(true[i, top], predicted[i, top], s=14, color=PREDICTED, lw=0, zorder=3)
            points = np.column_stack([true[i, top], predicted[i, top]])
            label_points(ax, points, [genes[gene] for gene in top])
    return drawn


def _draw(ax: Axes, predicted: NDArray[np.float64], true: NDArray[np.float64]) -> None:
    limit = 1.08 * max(np.abs(true).max(), np.abs(predicted).max(), 1e-6)
    for line in (ax.axhline, ax.axvline):
        line(0, color="0.88", lw=0.8, zorder=0)
    ax.plot([-limit, limit], [-limit, limit], color="0.6", lw=1, ls="--", zorder=1)
    ax.scatter(true, predicted, s=8, color=MEASURED, alpha=0.6, lw=0, zorder=2, rasterized=True)
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    ax.text(0.04, 0.96, f"r = {_pearson(predicted, true)}", transform=ax.transAxes, va="top")
    ax.locator_params(nbins=5)
    ax.set_xlabel(f"measured {_UNITS}", fontsize=8)
    ax.set_ylabel(f"predicted {_UNITS}", fontsize=8)
    ax.spines[["top", "right"]].set_visible(False)


def _pearson(predicted: NDArray[np.float64], true: NDArray[np.float64]) -> str:
    if min(predicted.std(), true.std()) < 1e-9:
        return "undefined"
    return f"{np.corrcoef(predicted, true)[0, 1]:.2f}"


def _check_length(name: str, given: Sequence[object] | None, expected: int) -> None:
    if given is not None and len(given) != expected:
        msg = f"{name} has {len(given)} entries; expected {expected}."
        raise ValueError(msg)
