"""Conditions in contexts, taken apart into what a kernel compares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse
from scipy.spatial.distance import cdist

from scvi_perturb.predictors._profiles import agrees

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from scvi_perturb.data._condition import Component
    from scvi_perturb.predictors._requests import Context, Request

__all__ = ["Contexts", "Points"]


@dataclass(frozen=True, slots=True)
class Contexts:
    """Contexts and the profiles of their control cells.

    Parameters
    ----------
    labels
        Of each context.
    profiles
        `(n_contexts, n_genes)`, or None where data have no controls; then contexts are the same
        or they are not.
    """

    labels: tuple[Context, ...]
    profiles: NDArray[np.float64] | None

    def squared_distances(self, other: Contexts) -> NDArray[np.float64]:
        """Return squared distances of control profiles, `(n_contexts, n_others)`.

        Without profiles 0 between the same contexts and infinite between others.
        """
        if self.profiles is None or other.profiles is None:
            same = np.array([[a == b for b in other.labels] for a in self.labels])
            return np.where(same, 0.0, np.inf)
        return cdist(self.profiles, other.profiles, "sqeuclidean")

    def weights(self, asked: Sequence[Context]) -> sparse.csr_matrix:
        """Return the weight of each context in what is asked, `(n_asked, n_contexts)`.

        What is left open is the mean over all contexts that agree with what was said.
        """
        rows = []
        for context in asked:
            agreeing = np.array([agrees(context, own) for own in self.labels], float)
            rows.append(agreeing / max(agreeing.sum(), 1.0))
        return sparse.csr_matrix(np.array(rows))

    def with_unknown(self, asked: Iterable[Context]) -> Contexts:
        """Return these and the contexts asked for that no known one agrees with.

        Only for contexts without profiles.
        """
        new = [c for c in asked if not any(agrees(c, own) for own in self.labels)]
        return Contexts((*self.labels, *dict.fromkeys(new)), None)


@dataclass(frozen=True, slots=True)
class Points:
    """Conditions in contexts.

    Parameters
    ----------
    parts
        Distinct components: a name with its kind and dose.
    holds
        Which parts each condition has, 0 or 1, `(n, n_parts)`.
    times
        Of each condition; NaN where it is not recorded.
    contexts
        Distinct contexts.
    weights
        Weight of each context in each point, `(n, n_contexts)`.
    """

    parts: tuple[Component, ...]
    holds: sparse.csr_matrix
    times: NDArray[np.float64]
    contexts: Contexts
    weights: sparse.csr_matrix

    @classmethod
    def of(cls, requests: Sequence[Request], contexts: Contexts) -> Points:
        """Take requests apart; none of them is of control."""
        conditions = [request.condition for request in requests]
        parts = tuple(dict.fromkeys(part for c in conditions for part in c.components))
        place = {part: i for i, part in enumerate(parts)}
        row = [i for i, c in enumerate(conditions) for _ in c.components]
        column = [place[part] for c in conditions for part in c.components]
        return cls(
            parts,
            sparse.csr_matrix((np.ones(len(row)), (row, column)), (len(conditions), len(parts))),
            np.array([np.nan if c.time is None else c.time for c in conditions], float),
            contexts,
            contexts.weights([request.context for request in requests]),
        )

    @property
    def sizes(self) -> NDArray[np.float64]:
        """Number of components of each condition, `(n,)`."""
        return np.asarray(self.holds.sum(axis=1), float).ravel()

    @property
    def doses(self) -> NDArray[np.float64]:
        """Dose of each part, `(n_parts,)`."""
        return np.array([part.dose for part in self.parts])
