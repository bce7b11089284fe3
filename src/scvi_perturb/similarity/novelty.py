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

    from scvi_perturb.data.condition import Component, Condition
    from scvi_perturb.features.store import PerturbationFeatures

__all__ = ["UNKNOWN", "Place", "novelty"]


SHARED, ADDITIVE, EXACT = 0.1, 0.6, 0.3
#: Label of a context that is not known; it is like no other.
UNKNOWN = "(unknown)"
#: Trained places that are looked at, those that share a component with a request first.
MAX_TRAINED = 1500
NOISE = 1e-3
#: Doses, and times plus an hour, that differ by this factor are half as informative.
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
    trained = _nearest(asked, trained)
    joint = _kernel([*asked, *trained], features)
    n = len(asked)
    known = joint[n:, n:] + NOISE * np.eye(len(trained))
    cross = joint[:n, n:]
    gain = np.einsum("ij,ij->i", cross, np.linalg.solve(known, cross.T).T)
    prior = np.diag(joint)[:n]
    left = np.clip(1.0 - gain / np.maximum(prior, 1e-12), 0.0, 1.0)
    return np.where(controls, 0.0, left)


def _nearest(asked: Sequence[Place], trained: Sequence[Place]) -> list[Place]:
    """Return at most `MAX_TRAINED` trained places: the cost is cubic in their number."""
    names = {part.name for place in asked for part in place.condition.components}
    shares = [any(p.name in names for p in place.condition.components) for place in trained]
    order = np.argsort(~np.array(shares), kind="stable")[:MAX_TRAINED]
    return [trained[i] for i in order]


def _kernel(places: list[Place], features: PerturbationFeatures | None) -> np.ndarray:
    """Return the prior covariance of the places, `(n, n)`."""
    parts = sorted({p for place in places for p in place.condition.components}, key=_order)
    number = {part: i for i, part in enumerate(parts)}
    holds = np.zeros((len(places), max(len(parts), 1)))
    for i, place in enumerate(places):
        for part in place.condition.components:
            holds[i, number[part]] = 1.0
    size = np.sqrt(np.maximum(holds.sum(axis=1), 1.0))
    additive = (holds @ _part_similarity(parts, features) @ holds.T) / np.outer(size, size)
    additive = additive * _time_similarity(places)
    codes = {place.condition: i for i, place in enumerate(places)}
    code = np.array([codes[place.condition] for place in places])
    effect = SHARED + ADDITIVE * additive + EXACT * (code[:, None] == code[None])
    return effect * (0.5 + 0.5 * _context_agreement(places))


def _part_similarity(parts: list[Component], features: PerturbationFeatures | None) -> np.ndarray:
    """Return how alike components at doses are, `(n_parts, n_parts)`."""
    if not parts:
        return np.zeros((1, 1))
    names, kinds = [p.name for p in parts], [p.kind for p in parts]
    labels = np.array([f"{name}\0{kind}" for name, kind in zip(names, kinds, strict=True)])
    same = (labels[:, None] == labels[None]).astype(float)
    alike = same
    if features is not None:
        kind = np.array(kinds)
        related = _feature_similarity(names, features) * (kind[:, None] == kind[None])
        alike = np.maximum(same, related)
    dose = np.log([p.dose for p in parts])
    return alike * np.exp2(-(((dose[:, None] - dose[None]) / DOSE_SCALE) ** 2))


def _feature_similarity(names: list[str], features: PerturbationFeatures) -> np.ndarray:
    """Return the mean cosine of the centred features of names, negative ones as 0."""
    total, shared = np.zeros((len(names),) * 2), np.zeros((len(names),) * 2)
    for raw, present in features.table(names).values():
        values = raw - raw[present].mean(axis=0) if present.any() else raw
        norm = np.linalg.norm(values, axis=1, keepdims=True)
        unit = values / np.where(norm > 0, norm, 1.0)
        both = np.outer(present, present)
        total += np.where(both, unit @ unit.T, 0.0)
        shared += both
    return np.clip(total / np.maximum(shared, 1), 0.0, 1.0)


def _time_similarity(places: list[Place]) -> np.ndarray:
    """Return how alike times are; a time that is not recorded is like any."""
    given = [place.condition.time for place in places]
    hours = np.log1p(np.array([np.nan if time is None else time for time in given]))
    apart = np.nan_to_num(hours[:, None] - hours[None])
    return np.exp2(-((apart / DOSE_SCALE) ** 2))


def _context_agreement(places: list[Place]) -> np.ndarray:
    """Return the share of context columns that agree; an empty label agrees with all."""
    n_columns = len(places[0].context)
    if n_columns == 0:
        return np.ones((len(places),) * 2)
    agree = np.zeros((len(places),) * 2)
    for labels in np.array([place.context for place in places], dtype=str).T:
        empty = labels == ""
        same = (labels[:, None] == labels[None]) & (labels != UNKNOWN)
        agree += same | empty[:, None] | empty[None]
    return agree / n_columns


def _order(part: Component) -> tuple[str, str, float]:
    return part.name, part.kind, part.dose
