"""How far a request is from what was trained on: the posterior variance of a Gaussian process.

Conditions are compared by kernels that state what one condition tells about another: all share
something, more where they share components, near doses, features or a context, most where the
whole combination is the same. Novelty is posterior over prior variance (Rasmussen and Williams
2006, chapter 2): 0 where the same was measured, 1 where nothing measured says anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scvi_perturb.similarity.kernels import CosineKernel, compare_names, near, weighted_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scvi_perturb.data.condition import Component
    from scvi_perturb.data.request import RequestRow
    from scvi_perturb.features.store import PerturbationFeatures


SHARED, ADDITIVE, EXACT = 0.1, 0.6, 0.3
#: Label of a context that is not known; it is like no other.
UNKNOWN = "(unknown)"
#: Trained rows that are looked at, those that share a component with a request first.
MAX_TRAINED = 1500
NOISE = 1e-3
#: Width of the kernels of log doses and log times: a factor of three is half as informative.
LOG_WIDTH = float(np.log(3.0) / np.sqrt(2 * np.log(2.0)))


def novelty(
    asked: Sequence[RequestRow],
    trained: Sequence[RequestRow],
    features: PerturbationFeatures | None,
) -> np.ndarray:
    """Return posterior over prior variance of each row asked for, `(n,)`.

    `asked`: What is requested. `trained`: Conditions and contexts with training cells, controls
    left out. `features`: What is known of components, to compare them where they are not the same.
    """
    controls = np.array([row.condition.is_control for row in asked])
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


def _nearest(asked: Sequence[RequestRow], trained: Sequence[RequestRow]) -> list[RequestRow]:
    """Return at most `MAX_TRAINED` trained rows: the cost is cubic in their number."""
    names = {part.name for row in asked for part in row.condition.components}
    shares = [any(p.name in names for p in row.condition.components) for row in trained]
    order = np.argsort(~np.array(shares), kind="stable")[:MAX_TRAINED]
    return [trained[i] for i in order]


def _kernel(rows: list[RequestRow], features: PerturbationFeatures | None) -> np.ndarray:
    """Return the prior covariance of the rows, `(n, n)`."""
    parts = sorted({p for row in rows for p in row.condition.components}, key=_order)
    number = {part: i for i, part in enumerate(parts)}
    holds = np.zeros((len(rows), max(len(parts), 1)))
    for i, row in enumerate(rows):
        for part in row.condition.components:
            holds[i, number[part]] = 1.0
    size = np.sqrt(np.maximum(holds.sum(axis=1), 1.0))
    additive = (holds @ _part_similarity(parts, features) @ holds.T) / np.outer(size, size)
    additive = additive * _time_similarity(rows)
    codes = {row.condition: i for i, row in enumerate(rows)}
    code = np.array([codes[row.condition] for row in rows])
    effect = SHARED + ADDITIVE * additive + EXACT * (code[:, None] == code[None])
    return effect * (0.5 + 0.5 * _context_agreement(rows))


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
    return alike * near(dose, dose, LOG_WIDTH)


def _feature_similarity(names: list[str], features: PerturbationFeatures) -> np.ndarray:
    """Return the mean cosine of the centred features of names, negative ones as 0."""
    table = features.table(names)
    centres = {m: v[has].mean(axis=0) if has.any() else v[0] for m, (v, has) in table.items()}
    kernels = {modality: CosineKernel(centre) for modality, centre in centres.items()}
    alike = weighted_mean(compare_names(table, table, kernels), dict.fromkeys(kernels, 1.0))
    return np.clip(alike, 0.0, 1.0)


def _time_similarity(rows: list[RequestRow]) -> np.ndarray:
    """Return how alike times are; a time that is not recorded is like any."""
    given = [row.condition.time for row in rows]
    hours = np.log1p(np.array([np.nan if time is None else time for time in given]))
    return np.nan_to_num(near(hours, hours, LOG_WIDTH), nan=1.0)


def _context_agreement(rows: list[RequestRow]) -> np.ndarray:
    """Return the share of context columns that agree; an empty label agrees with all."""
    n_columns = len(rows[0].context)
    if n_columns == 0:
        return np.ones((len(rows),) * 2)
    agree = np.zeros((len(rows),) * 2)
    for labels in np.array([[label or "" for label in row.context] for row in rows]).T:
        empty = labels == ""
        same = (labels[:, None] == labels[None]) & (labels != UNKNOWN)
        agree += same | empty[:, None] | empty[None]
    return agree / n_columns


def _order(part: Component) -> tuple[str, str, float]:
    return part.name, part.kind, part.dose
