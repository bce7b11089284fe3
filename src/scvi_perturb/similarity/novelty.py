"""How far a request is from what was trained on: the posterior variance of a Gaussian process.

Conditions are compared by kernels that state what one condition tells about another: all share
something, more where they share components, near doses, features or a context, most where the
whole combination is the same. Novelty is posterior over prior variance (Rasmussen and Williams
2006, chapter 2): 0 where the same was measured, 1 where nothing measured says anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import numpy as np
from scipy import sparse

from scvi_perturb.similarity.kernels import CosineKernel, compare_names, near, weighted_mean

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence

    from scvi_perturb.data.condition import Component
    from scvi_perturb.data.request import RequestRow
    from scvi_perturb.features.store import PerturbationFeatures

    Floats = np.ndarray


SHARED, ADDITIVE, EXACT = 0.1, 0.6, 0.3
#: Label of a context that is not known; it is like no other.
UNKNOWN = "(unknown)"
#: Trained rows that are looked at, those that share a component with what is asked first.
MAX_TRAINED = 1500
#: Rows that are asked together.
_TOGETHER: Final = 256
NOISE = 1e-3
#: Width of the kernels of log doses and log times: a factor of three is half as informative.
LOG_WIDTH = float(np.log(3.0) / np.sqrt(2 * np.log(2.0)))


def novelty(
    asked: Sequence[RequestRow],
    trained: Sequence[RequestRow],
    features: PerturbationFeatures | None,
) -> np.ndarray:
    """Return posterior over prior variance of each row asked for, `(n,)`.

    Of more than 1,500 trained rows, those are looked at that share a component with the row, or
    with one of the 255 rows that are asked with it, and then others.

    `asked`: What is requested. `trained`: Conditions and contexts with training cells, controls
    left out. `features`: What is known of components, to compare them where they are not the same.
    """
    controls = np.array([row.condition.is_control for row in asked])
    left = np.where(controls, 0.0, 1.0)
    if not trained:
        return left
    prior, nearest = _Prior.of([*asked, *trained], features), _Nearest.of(trained)
    for start in range(0, len(asked), _TOGETHER):
        rows = asked[start : start + _TOGETHER]
        near_by = nearest.rows(rows)
        known = prior.between(near_by, near_by) + NOISE * np.eye(len(near_by))
        cross = prior.between(rows, near_by)
        gain = np.einsum("ij,ij->i", cross, np.linalg.solve(known, cross.T).T)
        own = np.diag(prior.between(rows, rows))
        left[start : start + len(rows)] = np.clip(1.0 - gain / np.maximum(own, 1e-12), 0.0, 1.0)
    return np.where(controls, 0.0, left)


@dataclass(frozen=True, slots=True)
class _Nearest:
    """Trained rows, and those of each name: the cost of what is known is cubic in their number."""

    trained: Sequence[RequestRow]
    places: dict[str, list[int]]

    @classmethod
    def of(cls, trained: Sequence[RequestRow]) -> Self:
        places: dict[str, list[int]] = {}
        for i, row in enumerate(trained):
            for part in row.condition.components:
                places.setdefault(part.name, []).append(i)
        return cls(trained, places)

    def rows(self, asked: Iterable[RequestRow]) -> list[RequestRow]:
        """Return at most `MAX_TRAINED` rows, those first that share a name with one asked for."""
        names = {part.name for row in asked for part in row.condition.components}
        shared = {place for name in names for place in self.places.get(name, ())}
        others = (i for i in range(min(len(self.trained), MAX_TRAINED)) if i not in shared)
        return [self.trained[i] for i in [*sorted(shared), *others][:MAX_TRAINED]]


@dataclass(frozen=True, slots=True)
class _Prior:
    """The prior covariance of rows; `kernels` compare the features of their components."""

    features: PerturbationFeatures | None
    kernels: dict[str, CosineKernel]

    @classmethod
    def of(cls, rows: Sequence[RequestRow], features: PerturbationFeatures | None) -> Self:
        """Centre the features over the components of all rows."""
        if features is None:
            return cls(None, {})
        table = features.table([part.name for part in _parts(rows)])
        centres = {
            name: (values[has] if has.any() else values[:1]).mean(axis=0)
            for name, (values, has) in table.items()
            if len(values)
        }
        return cls(features, {name: CosineKernel(centre) for name, centre in centres.items()})

    def between(self, rows: Sequence[RequestRow], others: Sequence[RequestRow]) -> Floats:
        """Return the covariance of rows with others, `(n_rows, n_others)`."""
        parts, other_parts = _parts(rows), _parts(others)
        additive = _held(rows, parts) @ self._similarity(parts, other_parts)
        additive = additive @ _held(others, other_parts).T
        hours = _hours(rows), _hours(others)
        if not np.isnan(hours[0]).all() and not np.isnan(hours[1]).all():
            additive *= np.nan_to_num(near(*hours, LOG_WIDTH), nan=1.0)
        same = _equal(*([row.condition for row in x] for x in (rows, others)))
        effect = SHARED + ADDITIVE * additive + EXACT * same
        made: Floats = effect * (0.5 + 0.5 * _context_agreement(rows, others))
        return made

    def _similarity(self, parts: list[Component], others: list[Component]) -> Floats:
        """Return how alike components at doses are, `(n_parts, n_others)`."""
        names = [part.name for part in parts], [part.name for part in others]
        same_kind = _equal(*([part.kind for part in x] for x in (parts, others)))
        alike = (_equal(*names) & same_kind).astype(float)
        if self.kernels and self.features is not None:
            table, other_table = map(self.features.table, names)
            found = weighted_mean(
                compare_names(table, other_table, self.kernels), dict.fromkeys(self.kernels, 1.0)
            )
            alike = np.maximum(alike, np.clip(found, 0.0, 1.0) * same_kind)
        dose, other_dose = (np.log([part.dose for part in x]) for x in (parts, others))
        return alike * near(dose, other_dose, LOG_WIDTH)


def _equal(one: Sequence[Hashable], other: Sequence[Hashable]) -> np.ndarray:
    """Return where two lists hold the same, `(n_one, n_other)`."""
    code: dict[Hashable, int] = {}
    codes = [np.array([code.setdefault(x, len(code)) for x in own], int) for own in (one, other)]
    return np.equal.outer(*codes)


def _parts(rows: Iterable[RequestRow]) -> list[Component]:
    parts = {part for row in rows for part in row.condition.components}
    return sorted(parts, key=lambda part: (part.name, part.kind, part.dose))


def _held(rows: Sequence[RequestRow], parts: Sequence[Component]) -> sparse.csr_matrix:
    """Return which parts each row holds, as rows of unit length, `(n_rows, n_parts)`."""
    number = {part: i for i, part in enumerate(parts)}
    own = [[number[part] for part in row.condition.components] for row in rows]
    sizes = np.array([len(one) for one in own], int)
    values = np.repeat(1 / np.sqrt(np.maximum(sizes, 1)), sizes)
    places = np.array([place for one in own for place in one], int)
    ends = np.concatenate([[0], np.cumsum(sizes)])
    return sparse.csr_matrix((values, places, ends), (len(rows), len(parts)))


def _hours(rows: Iterable[RequestRow]) -> Floats:
    """Return the logarithm of times; NaN where none is recorded, which is like any."""
    given = [row.condition.time for row in rows]
    return np.log1p(np.array([np.nan if time is None else time for time in given]))


def _context_agreement(rows: Sequence[RequestRow], others: Sequence[RequestRow]) -> Floats:
    """Return the share of context columns that agree; an empty label agrees with all."""
    n_columns = len(rows[0].context)
    if n_columns == 0:
        return np.ones((len(rows), len(others)))
    agree = np.zeros((len(rows), len(others)))
    for i in range(n_columns):
        own, other = ([row.context[i] or "" for row in x] for x in (rows, others))
        known = np.array([label != UNKNOWN for label in own])
        empty, other_empty = (np.array([label == "" for label in x]) for x in (own, other))
        same = _equal(own, other) & known[:, None]
        agree += same | empty[:, None] | other_empty[None]
    return agree / n_columns
