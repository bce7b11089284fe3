"""How far a request is from what was trained on: the posterior variance of a Gaussian process.

Conditions are compared by kernels that state what one condition tells about another: all share
something, more where they share components, near doses, features or a context, most where the
whole combination is the same. Novelty is posterior over prior variance (Rasmussen and Williams
2006, chapter 2): 0 where the same was measured, 1 where nothing measured says anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scvi_perturb.data import Component, Condition
    from scvi_perturb.features import PerturbationFeatures

__all__ = ["Place", "novelty"]

SHARED, ADDITIVE, EXACT = 0.1, 0.6, 0.3
NOISE = 1e-3
#: Doses that differ by this factor are half as informative.
DOSE_SCALE = np.log(3.0)


@dataclass(frozen=True, slots=True)
class Place:
    """A condition in a context (empty labels: any)."""

    condition: Condition
    context: tuple[str, ...]


def novelty(
    asked: Sequence[Place], trained: Sequence[Place], features: PerturbationFeatures | None
) -> np.ndarray:
    """Return posterior over prior variance of each place asked for, `(n,)`.

    Parameters
    ----------
    asked
        What is requested.
    trained
        Conditions and contexts with training cells, controls left out.
    features
        What is known of components, to compare them where they are not the same.
    """
    controls = np.array([place.condition.is_control for place in asked])
    if not trained:
        return np.where(controls, 0.0, 1.0)
    similarity = _component_similarity([*asked, *trained], features)
    joint = _kernel([*asked, *trained], similarity)
    n = len(asked)
    known = joint[n:, n:] + NOISE * np.eye(len(trained))
    cross = joint[:n, n:]
    gain = np.einsum("ij,ij->i", cross, np.linalg.solve(known, cross.T).T)
    prior = np.diag(joint)[:n]
    left = np.clip(1.0 - gain / np.maximum(prior, 1e-12), 0.0, 1.0)
    return np.where(controls, 0.0, left)


def _kernel(places: list[Place], similarity: dict[tuple[str, str], float]) -> np.ndarray:
    n = len(places)
    kernel = np.zeros((n, n))
    for i, one in enumerate(places):
        for j in range(i, n):
            kernel[i, j] = kernel[j, i] = _pair(one, places[j], similarity)
    return kernel


def _pair(one: Place, two: Place, similarity: dict[tuple[str, str], float]) -> float:
    a, b = one.condition.components, two.condition.components
    additive = sum(_alike(p, q, similarity) for p in a for q in b) / max(len(a) * len(b), 1) ** 0.5
    same = one.condition == two.condition
    columns = [x == y or not x or not y for x, y in zip(one.context, two.context, strict=True)]
    context = 0.5 + 0.5 * (float(np.mean(columns)) if columns else 1.0)
    return (SHARED + ADDITIVE * additive + EXACT * same) * context


def _alike(p: Component, q: Component, similarity: dict[tuple[str, str], float]) -> float:
    same = (p.name, p.kind) == (q.name, q.kind)
    alike = 1.0 if same else similarity.get((p.name, q.name), 0.0)
    return alike * float(np.exp2(-((np.log(p.dose / q.dose) / DOSE_SCALE) ** 2)))


def _component_similarity(
    places: list[Place], features: PerturbationFeatures | None
) -> dict[tuple[str, str], float]:
    """Return the mean cosine of features between names, negative ones as 0."""
    if features is None:
        return {}
    names = sorted({p.name for place in places for p in place.condition.components})
    total, shared = np.zeros((len(names), len(names))), np.zeros((len(names), len(names)))
    for values, present in features.table(names).values():
        norm = np.linalg.norm(values, axis=1, keepdims=True)
        unit = values / np.where(norm > 0, norm, 1.0)
        both = np.outer(present, present)
        total += np.where(both, unit @ unit.T, 0.0)
        shared += both
    mean = np.clip(total / np.maximum(shared, 1), 0.0, 1.0)
    return {(a, b): float(mean[i, j]) for i, a in enumerate(names) for j, b in enumerate(names)}
