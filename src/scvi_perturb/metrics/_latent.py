"""Is a representation the true one, up to what cannot be known: only where the truth is known.

For simulated screens. On real data nothing is called identified: report how stable a
representation is from seed to seed instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment

from scvi_perturb._errors import check_choice

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from sklearn.base import RegressorMixin

    from scvi_perturb.metrics._profiles import Floats

__all__ = ["Dci", "block_r2", "dci", "mask_auroc", "mean_correlation"]

#: How one block is predicted from another.
Regression = Literal["ridge", "kernel"]
#: What tells how much a latent matters to a factor.
Importance = Literal["lasso", "boosting"]

_N_FOLDS = 5
_PENALTIES = np.logspace(-3, 4, 8)
#: Random features that stand for the kernel.
_N_KERNEL_FEATURES = 300


@dataclass(frozen=True, slots=True)
class Dci:
    """Disentanglement, completeness and informativeness of a representation.

    Parameters
    ----------
    disentanglement
        In [0, 1]; 1 if each latent matters to one factor only. NaN with a single factor.
    completeness
        In [0, 1]; 1 if each factor depends on one latent only. NaN with a single latent.
    informativeness
        Share of the variance of held-out factors that is predicted, mean over factors; 1 is best,
        0 or below knows nothing. (The paper gives the error; this is 1 minus the squared one.)
    importance
        How much each latent matters to each factor, `(n_latents, n_factors)`, at least 0. Factors
        that do not vary have 0.
    """

    disentanglement: float
    completeness: float
    informativeness: float
    importance: Floats


def mean_correlation(estimated: Floats, truth: Floats) -> float:
    """Return the mean absolute correlation of true latents with the estimated ones that match.

    Each true latent is matched with one estimated latent at most, so that the sum of absolute
    Pearson correlations is the largest: order, sign and scale of latents do not matter.

    Parameters
    ----------
    estimated, truth
        Latents of the same cells, `(n, k)` and `(n, k_true)`.

    Returns
    -------
    A correlation in [0, 1]; 1 is right. True latents without a match (if `k < k_true`) and latents
    that do not vary count 0. Chance is not 0: the more latents and the fewer cells, the higher.

    Raises
    ------
    ValueError
        If the cells differ in number, there are fewer than two, or a value is not finite.

    References
    ----------
    Hyvarinen and Morioka, Unsupervised feature extraction by time-contrastive learning and
    nonlinear ICA, NeurIPS 2016.
    """
    estimated, truth = _same_cells(estimated, truth, at_least=2)
    made, true = (_standardized(x) for x in (estimated, truth))
    strength = np.abs(made.T @ true) / len(true)
    rows, columns = linear_sum_assignment(strength, maximize=True)
    return float(min(1.0, strength[rows, columns].sum() / true.shape[1]))


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


def dci(
    estimated: Floats,
    truth: Floats,
    *,
    importance: Importance = "boosting",
    seed: int | None = 0,
) -> Dci:
    """Return disentanglement, completeness and informativeness of a representation.

    Each true factor is predicted from all latents; how much each latent matters to it says
    whether latents serve one factor (disentanglement, weighted by how much a latent matters) and
    factors need one latent (completeness, mean over factors).

    Parameters
    ----------
    estimated
        Latents, `(n, k)`.
    truth
        True factors of the same cells, `(n, n_factors)`.
    importance
        "boosting": gradient-boosted trees and the error that splits on a latent remove, which see
        nonlinear relations. "lasso": absolute coefficients of a linear model.
    seed
        Seed of the folds and of the trees.

    Raises
    ------
    ValueError
        If the importance is not known, cells differ in number, there are fewer than ten or a value
        is not finite.

    References
    ----------
    Eastwood and Williams, A framework for the quantitative evaluation of disentangled
    representations, ICLR 2018.
    """
    check_choice("importance", importance, get_args(Importance))
    estimated, truth = _same_cells(estimated, truth, at_least=2 * _N_FOLDS)
    made, true = _standardized(estimated), _standardized(truth)
    varies = _varies(truth)
    strength = np.zeros((made.shape[1], true.shape[1]))
    informative = []
    for factor in np.flatnonzero(varies):
        values, model = true[:, factor], _importance_model(importance, seed)
        strength[:, factor] = _importances(model.fit(made, values))
        informative.append(_held_out_r2(model, made, values[:, None], seed=seed))
    by_latent, by_factor = _concentration(strength), _concentration(strength.T)
    weights = strength.sum(axis=1)
    matters = weights.sum() > 0
    return Dci(
        float(np.average(by_latent, weights=weights)) if matters else float("nan"),
        float(by_factor[varies].mean()) if matters else float("nan"),
        float(np.mean(informative)) if informative else float("nan"),
        strength,
    )


def mask_auroc(scores: Floats, mask: NDArray[np.bool_]) -> float:
    """Return how well scores tell the true targets of interventions from the rest.

    Parameters
    ----------
    scores
        The higher, the more likely a target: for example absolute shifts of latents,
        `(n_perturbations, n_latents)`, any shape.
    mask
        True where a perturbation acts, of the same shape. Match estimated to true latents first.

    Returns
    -------
    Area under the receiver operating characteristic of all entries: the probability that a target
    scores higher than another entry. 1 is right, 0.5 is chance. NaN if all entries are targets, or
    none is.

    Raises
    ------
    ValueError
        If the shapes differ or a score is not finite.
    """
    scores, mask = np.asarray(scores, dtype=np.float64), np.asarray(mask, dtype=bool)
    if scores.shape != mask.shape or not np.isfinite(scores).all():
        n_wrong = int((~np.isfinite(scores)).sum())
        msg = (
            f"Found scores of shape {scores.shape}, {n_wrong} of them not finite, and a mask of "
            f"shape {mask.shape}; give finite scores, one for each entry of the mask."
        )
        raise ValueError(msg)
    if mask.all() or not mask.any():
        return float("nan")
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(mask.ravel(), scores.ravel()))


def _regressor(kind: Regression, shape: tuple[int, ...], seed: int | None) -> RegressorMixin:
    from sklearn.kernel_approximation import Nystroem
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline, make_union
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    n_cells, n_latents = shape
    if kind == "ridge":
        return make_pipeline(StandardScaler(), RidgeCV(_PENALTIES))
    # Each fold is fitted on the cells of the other folds.
    n_features = min(_N_KERNEL_FEATURES, n_cells - -(-n_cells // _N_FOLDS))
    kernel = Nystroem(gamma=0.5 / n_latents, n_components=n_features, random_state=seed)
    features = make_union(FunctionTransformer(), kernel)
    return make_pipeline(StandardScaler(), features, RidgeCV(_PENALTIES))


def _importance_model(kind: Importance, seed: int | None) -> RegressorMixin:
    if kind == "lasso":
        from sklearn.linear_model import LassoCV

        return LassoCV(cv=_N_FOLDS, eps=1e-2, alphas=30, max_iter=10_000)
    from sklearn.ensemble import GradientBoostingRegressor

    # Half of the cells a tree: faster, and no worse.
    return GradientBoostingRegressor(n_estimators=60, max_depth=3, subsample=0.5, random_state=seed)


def _importances(model: RegressorMixin) -> Floats:
    if hasattr(model, "feature_importances_"):
        return np.asarray(model.feature_importances_, dtype=np.float64)
    return np.abs(np.asarray(model.coef_, dtype=np.float64))


def _held_out_r2(model: RegressorMixin, made: Floats, true: Floats, *, seed: int | None) -> float:
    if true.shape[1] == 0:
        return float("nan")
    from sklearn.model_selection import KFold, cross_val_predict

    true = _standardized(true)
    folds = KFold(_N_FOLDS, shuffle=True, random_state=seed)
    target = true[:, 0] if true.shape[1] == 1 else true
    shown = cross_val_predict(model, made, target, cv=folds).reshape(true.shape)
    # The variance of each standardised latent is 1.
    return 1.0 - float(((true - shown) ** 2).mean())


def _concentration(strength: Floats) -> Floats:
    """Return 1 minus the entropy of each row's shares: 1 if one entry holds all, `(n_rows,)`."""
    n_columns = strength.shape[1]
    if n_columns < 2:
        return np.full(len(strength), np.nan)
    total = strength.sum(axis=1, keepdims=True)
    shares = np.divide(strength, total, out=np.full(strength.shape, 1 / n_columns), where=total > 0)
    logs = np.log(np.where(shares > 0, shares, 1.0))
    return 1.0 + (shares * logs).sum(axis=1) / np.log(n_columns)


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
