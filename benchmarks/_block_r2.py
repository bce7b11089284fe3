"""Is a representation the true one, up to what cannot be known: only where the truth is known.

For simulated screens. On real data nothing is called identified: report how stable a
representation is from seed to seed instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import pandas as pd
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from scvi_perturb._checks import check_choice

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from sklearn.base import RegressorMixin

    Floats = NDArray[np.floating]

__all__ = ["block_r2"]

#: How one block is predicted from another.
Regression = Literal["ridge", "kernel"]

_N_FOLDS = 5
_PENALTIES = np.logspace(-3, 4, 8)
#: Random features that stand for the kernel.
_N_KERNEL_FEATURES = 300


def block_r2(
    estimated_blocks: Mapping[str, Floats],
    true_blocks: Mapping[str, Floats],
    *,
    regression: Regression = "ridge",
    seed: int | None = 0,
) -> pd.DataFrame:
    """Return how much of each true block of latents each estimated block knows.

    A block is identified if its true block is predicted from it, and from no other.

    Parameters
    ----------
    estimated_blocks, true_blocks
        Latents of the same cells by name of the block, `(n, k)` or `(n,)`.
    regression
        "ridge": linear. "kernel": linear and random features of a Gaussian kernel, for truth that
        is a nonlinear function of the estimate.
    seed
        Seed of the folds and of the random features.

    Returns
    -------
    Table of R2, a row a true block, a column an estimated block: the share of the variance of
    held-out cells that is predicted (five folds), mean over the latents of the true block. 1 is
    everything; 0, or slightly below, nothing. Latents that do not vary are left out; NaN if none
    does.

    Raises
    ------
    ValueError
        If there are no blocks, the regression is not known, cells differ in number, there are
        fewer than ten or a value is not finite.

    References
    ----------
    von Kuegelgen et al., Self-supervised learning with data augmentations provably isolates
    content from style, NeurIPS 2021.
    """
    check_choice("regression", regression, get_args(Regression))
    if not estimated_blocks or not true_blocks:
        msg = f"Found {len(estimated_blocks)} estimated and {len(true_blocks)} true blocks; give 1."
        raise ValueError(msg)
    table = pd.DataFrame(index=list(true_blocks), columns=list(estimated_blocks), dtype=float)
    for column, estimated in estimated_blocks.items():
        for row, truth in true_blocks.items():
            made, true = _same_cells(estimated, truth, at_least=2 * _N_FOLDS)
            true = true[:, _varies(true)]
            model = _regressor(regression, made.shape, seed)
            table.loc[row, column] = _held_out_r2(model, made, true, seed=seed)
    return table


def _regressor(kind: Regression, shape: tuple[int, ...], seed: int | None) -> RegressorMixin:
    n_cells, n_latents = shape
    if kind == "ridge":
        return make_pipeline(StandardScaler(), RidgeCV(_PENALTIES))
    # Each fold is fitted on the cells of the other folds.
    n_features = min(_N_KERNEL_FEATURES, n_cells - -(-n_cells // _N_FOLDS))
    kernel = Nystroem(gamma=0.5 / n_latents, n_components=n_features, random_state=seed)
    features = make_union(FunctionTransformer(), kernel)
    return make_pipeline(StandardScaler(), features, RidgeCV(_PENALTIES))


def _held_out_r2(model: RegressorMixin, made: Floats, true: Floats, *, seed: int | None) -> float:
    if true.shape[1] == 0:
        return float("nan")
    true = _standardized(true)
    folds = KFold(_N_FOLDS, shuffle=True, random_state=seed)
    target = true[:, 0] if true.shape[1] == 1 else true
    shown = cross_val_predict(model, made, target, cv=folds).reshape(true.shape)
    # The variance of each standardised latent is 1.
    return 1.0 - float(((true - shown) ** 2).mean())


def _varies(values: Floats) -> NDArray[np.bool_]:
    return values.std(axis=0) > 1e-9 * np.abs(values).max(axis=0)


def _standardized(values: Floats) -> Floats:
    """Return columns with mean 0 and variance 1; those that do not vary are 0."""
    varies = _varies(values)
    spread = np.where(varies, values.std(axis=0), 1.0)
    return np.where(varies, (values - values.mean(axis=0)) / spread, 0.0)


def _same_cells(estimated: Floats, truth: Floats, *, at_least: int) -> tuple[Floats, Floats]:
    made, true = (np.asarray(x, dtype=np.float64) for x in (estimated, truth))
    made, true = (x[:, None] if x.ndim == 1 else x for x in (made, true))
    shapes = made.shape, true.shape
    if any(len(shape) != 2 or shape[1] < 1 for shape in shapes) or shapes[0][0] != shapes[1][0]:
        msg = (
            f"Found estimated latents of shape {shapes[0]} and true ones of {shapes[1]}; give "
            "(n, k) and (n, k_true) of the same cells in the same order."
        )
        raise ValueError(msg)
    wrong = int((~np.isfinite(np.hstack([made, true])).all(axis=1)).sum())
    if len(true) < at_least or wrong:
        msg = (
            f"Found {len(true)} cells, {wrong} of them with latents that are not finite; "
            f"give at least {at_least} cells and finite latents."
        )
        raise ValueError(msg)
    return made, true
