"""The additive start of the displacements: a regression of conditions on their components."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Final, NamedTuple, Self, TypeAlias

import numpy as np
import torch
from scipy import sparse

from scvi_perturb.nn.perturbation import hill_factor

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from scvi_perturb.module.base import ConditionTensors

    Floats: TypeAlias = NDArray[np.float64]

EC50S = (-2.0, -1.0, 0.0, 1.0, 2.0)
SLOPES = (0.5, 1.0, 2.0)
NOISES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
FEATURE_SHARES = (0.0, 0.5, 0.9)
#: Shares of the variance of components' vectors that all have in common.
COMMON_SHARES = (0.0, 0.3, 0.6, 0.9)
#: Conditions on which noise, features and dose curve are chosen: each trial is cubic in them.
MAX_SEARCHED = 400
#: With so few conditions nothing is chosen.
_FEWEST: Final = 3
#: What is left is at most this share of what conditions move.
_CLOSE: Final = 1e-8
_MOST_STEPS: Final = 1_000


class AdditiveFit(NamedTuple):
    """Vectors of components `(n_ids, n_latent)`, and the shared dose curve."""

    vectors: torch.Tensor
    log_ec50: float
    log_slope: float


def fit_additive(
    move: torch.Tensor,
    code: np.ndarray,
    conditions: ConditionTensors,
    reference_dose: torch.Tensor,
    features: dict[str, tuple[torch.Tensor, torch.Tensor]],
) -> AdditiveFit:
    """Fit the vectors of components.

    Noise, the shares of features and of what all have in common, and the dose curve are those with
    the least error when each condition is left out in turn (in closed form).

    `move`: Displacements of treated cells, `(n_cells, n_latent)`. `code`: Condition of each,
    `(n_cells,)`. `conditions`: Conditions by code. `reference_dose`: Dose of each component at
    which the curve is one, `(n_ids,)`. `features`: Modality -> values and mask of each id.
    """
    codes, inverse, size = np.unique(code, return_inverse=True, return_counts=True)
    total = torch.zeros(len(codes), move.shape[1], dtype=torch.float64)
    total.index_add_(0, torch.from_numpy(inverse), move.double())
    mean = (total / torch.from_numpy(size)[:, None]).numpy()
    noise = float(move.double().var(0).mean()) / size
    rows = conditions.rows(torch.from_numpy(codes))
    alike = FeatureKernel.of(features, len(reference_dose))
    prior = _chosen_prior(rows, mean, noise, reference_dose, alike)
    design = _design(rows, reference_dose, prior.log_ec50, prior.log_slope)
    signal = _signal(mean, noise, prior.size)

    def spread(weights: Floats) -> Floats:
        """Return what weights of conditions are as vectors of components."""
        own = design.T @ weights
        alone = (1 - prior.share) * own
        if prior.share:
            alone += prior.share * alike.product(own)
        return signal * (prior.common * own.sum(axis=0) + (1 - prior.common) * alone)

    left = noise + prior.level * signal * prior.size
    weights = _conjugate_gradients(lambda w: design @ spread(w) + left[:, None] * w, mean, left)
    vectors = torch.from_numpy(spread(weights)).float()
    return AdditiveFit(vectors, prior.log_ec50, prior.log_slope)


class _ComponentPrior(NamedTuple):
    """A prior of components, by the error with it; `size` is its mean variance of a condition."""

    error: float
    log_ec50: float
    log_slope: float
    common: float
    share: float
    level: float
    size: float


def _chosen_prior(
    rows: ConditionTensors,
    mean: Floats,
    noise: Floats,
    reference_dose: torch.Tensor,
    alike: FeatureKernel,
) -> _ComponentPrior:
    """Return the prior of least error when each condition is left out in turn."""
    few = len(mean) <= _FEWEST
    shares = (0.0,) if few or not alike.units else FEATURE_SHARES
    commons = (0.0,) if few else COMMON_SHARES
    curves = [(k, h) for k in EC50S for h in SLOPES] if _has_doses(rows) else [(0.0, 1.0)]
    some = np.sort(np.random.default_rng(0).permutation(len(mean))[:MAX_SEARCHED])
    searched = rows.rows(torch.from_numpy(some))
    ids = np.unique(searched.component[searched.mask].numpy())
    among = alike.among(ids)
    tried = []
    for log_ec50, slope in curves:
        log_slope = float(np.log(slope))
        design = _design(searched, reference_dose, log_ec50, log_slope)[:, ids]
        for common, share in product(commons, shares):
            own = (1 - share) * np.eye(len(ids)) + share * among
            prior = design @ (design @ (common + (1 - common) * own)).T
            size = float(np.diag(prior).mean())
            for level in NOISES[:1] if few else NOISES:
                error = _left_out_error(prior, mean[some], noise[some], level)
                # Of equals the first: where each component has one condition, the level does not
                # matter to those left out, and rounding must not choose it.
                error = float(f"{error:.8g}")
                tried.append(
                    _ComponentPrior(error, log_ec50, log_slope, common, share, level, size)
                )
    return min(tried)


def _signal(mean: Floats, noise: Floats, size_of_prior: float) -> float:
    """Return the factor of the prior that explains how much conditions move."""
    return max(float((mean**2).mean() - noise.mean()), 1e-6) / max(size_of_prior, 1e-9)


def _left_out_error(prior: Floats, mean: Floats, noise: Floats, level: float) -> float:
    """Return the error when each condition is left out in turn, at a level of misfit."""
    prior = _signal(mean, noise, float(np.diag(prior).mean())) * prior
    inverse = np.linalg.inv(prior + np.diag(noise + level * np.diag(prior).mean()))
    left_out = inverse @ mean / np.diag(inverse)[:, None]
    return float((left_out**2).mean())


def _conjugate_gradients(
    product: Callable[[Floats], Floats], goal: Floats, scale: Floats
) -> Floats:
    """Solve `product(x) = goal` for each column; `scale` is about the size of a row's diagonal.

    Reference: Hestenes and Stiefel, Methods of conjugate gradients, 1952.
    """
    found = np.zeros_like(goal)
    open_ones = np.flatnonzero(goal.any(axis=0))
    left = goal[:, open_ones]
    direction = left / scale[:, None]
    size = (left * direction).sum(axis=0)
    enough = _CLOSE**2 * size
    for _ in range(_MOST_STEPS):
        if not len(open_ones):
            break
        moved = product(direction)
        step = size / (direction * moved).sum(axis=0)
        found[:, open_ones] += step * direction
        left = left - step * moved
        turned = left / scale[:, None]
        new_size = (left * turned).sum(axis=0)
        going = new_size > enough
        direction = (turned + new_size / size * direction)[:, going]
        left, size, enough = left[:, going], new_size[going], enough[going]
        open_ones = open_ones[going]
    return found


def _design(
    rows: ConditionTensors, reference_dose: torch.Tensor, log_ec50: float, log_slope: float
) -> sparse.csr_matrix:
    """Return the dose factor of each component in each condition, `(n_conditions, n_ids)`."""
    relative = (rows.dose / reference_dose[rows.component]).log()
    factor = hill_factor(relative, torch.tensor(log_ec50), torch.tensor(log_slope)).double()
    row, place = np.nonzero(rows.mask.numpy())
    places = row, rows.component.numpy()[row, place]
    shape = (len(rows.component), len(reference_dose))
    return sparse.csr_matrix((factor.numpy()[row, place], places), shape)


def _has_doses(rows: ConditionTensors) -> bool:
    return len(torch.unique(rows.dose[rows.mask])) > 1


@dataclass(frozen=True, slots=True)
class FeatureKernel:
    """The mean cosine of centred features, over the modalities that both have; one with itself.

    `units`: Centred features of unit length of each modality, zero where there are none, `(n_ids,
    n_features)`. `pattern`: Which modalities each id has, as a row of `patterns`, `(n_ids,)`.
    `patterns`: `(n_patterns, n_modalities)`.
    """

    units: tuple[Floats, ...]
    pattern: np.ndarray
    patterns: np.ndarray

    @classmethod
    def of(cls, features: dict[str, tuple[torch.Tensor, torch.Tensor]], n_ids: int) -> Self:
        """Centre features over the ids that have them."""
        units, has = [], np.zeros((n_ids, len(features)), bool)
        for i, (values, present) in enumerate(features.values()):
            there = has[:, i] = present.numpy().astype(bool)
            own = values.numpy().astype(np.float64)
            centred = (
                np.where(there[:, None], own - own[there].mean(0), 0.0) if there.any() else own
            )
            norm = np.linalg.norm(centred, axis=1, keepdims=True)
            units.append(centred / np.where(norm > 0, norm, 1.0))
        patterns, pattern = np.unique(has, axis=0, return_inverse=True)
        return cls(tuple(units), pattern.reshape(-1), patterns.astype(float))

    @property
    def _share(self) -> Floats:
        """One by the number of modalities that two patterns share."""
        made: Floats = 1 / np.maximum(self.patterns @ self.patterns.T, 1)
        return made

    def among(self, ids: np.ndarray) -> Floats:
        """Return how alike some ids are, `(n, n)`."""
        pattern = self.pattern[ids]
        alike = sum((own[ids] @ own[ids].T for own in self.units), np.zeros((len(ids),) * 2))
        alike *= self._share[np.ix_(pattern, pattern)]
        np.fill_diagonal(alike, 1.0)
        return alike

    def product(self, weights: Floats) -> Floats:
        """Return the kernel of all ids times weights, `(n_ids, k)`, without making it."""
        made, share = np.zeros_like(weights), self._share
        own = np.zeros(len(weights))
        members = [np.flatnonzero(self.pattern == i) for i in range(len(self.patterns))]
        for unit in self.units:
            sums = np.stack([unit[rows].T @ weights[rows] for rows in members])
            for i, rows in enumerate(members):
                made[rows] += unit[rows] @ np.tensordot(share[i], sums, 1)
            own += (unit**2).sum(axis=1)
        own *= np.diag(share)[self.pattern]
        return made + (1 - own)[:, None] * weights
