"""Kernel ridge regression with its penalty chosen by leaving out groups of rows, in closed form."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from scvi_perturb._errors import SchemaError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from scvi_perturb.data._condition import Condition
    from scvi_perturb.predictors._lookup import Deltas

__all__ = ["PENALTIES", "GroupedRidge", "Responses", "check_penalties"]

#: Penalties to choose from, in units of the kernel's diagonal.
PENALTIES: Final = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


@dataclass(frozen=True, slots=True)
class Responses:
    """All changes of training, one row a condition in a context.

    Parameters
    ----------
    conditions
        Of each row.
    changes
        Changes from control, `(n_rows, n_genes)`.
    """

    conditions: tuple[Condition, ...]
    changes: NDArray[np.float64]

    @classmethod
    def gather(cls, deltas: Deltas, usable: Callable[[Condition], bool], *, who: str) -> Responses:
        """Return the rows of the conditions that `usable` accepts.

        The others are left out, of which a warning tells the number.

        Raises
        ------
        SchemaError
            If none can be used.
        """
        left_out = sorted(str(condition) for condition in deltas if not usable(condition))
        kept = [condition for condition in deltas if usable(condition)]
        if not deltas:
            msg = f"{who} found no training condition that it can learn from; see what it needs."
            raise SchemaError(msg)
        if not kept:
            msg = (
                f"{who} can learn from none of the {len(deltas)} training conditions, such as "
                f"{left_out[:3]}: it knows nothing of what was perturbed in them. Check that names "
                "are written alike in the features (or genes) and in the screen."
            )
            raise SchemaError(msg)
        if left_out:
            warnings.warn(
                f"{who} leaves out {len(left_out)} of {len(deltas)} training conditions of whose "
                f"components it knows no features, such as {left_out[:3]}.",
                UserWarning,
                stacklevel=4,
            )
        rows = [(condition, delta) for condition in kept for delta in deltas[condition].values()]
        return cls(tuple(condition for condition, _ in rows), np.stack([row for _, row in rows]))

    def groups(self) -> NDArray[np.int64]:
        """Return a number for each row that rows of the same perturbation share, `(n_rows,)`.

        The same perturbation is the same set of names, whatever the context, dose, kind or time.
        """
        sets = [tuple(sorted({part.name for part in c.components})) for c in self.conditions]
        place = {names: i for i, names in enumerate(sorted(set(sets)))}
        return np.array([place[names] for names in sets], np.int64)


@dataclass(frozen=True, slots=True)
class GroupedRidge:
    """`weights` such that `kernel_to_training @ weights` is the prediction.

    Parameters
    ----------
    weights
        `(n_rows, n_outputs)`.
    penalty
        The penalty that was chosen.
    errors
        Mean squared error of each penalty when each group was left out, `(n_penalties,)`.
    """

    weights: NDArray[np.float64]
    penalty: float
    errors: NDArray[np.float64]

    @classmethod
    def fit(
        cls,
        kernel: NDArray[np.float64],
        targets: NDArray[np.float64],
        *,
        groups: NDArray[np.int64],
        penalties: Sequence[float],
    ) -> GroupedRidge:
        """Fit `targets` and choose the penalty of the least left-out error.

        With `Q = (kernel + penalty I)^-1`, the residual of a group `g` that is left out is
        `Q[g, g]^-1 (Q targets)[g]`, so nothing is fitted twice.

        Parameters
        ----------
        kernel
            Positive semidefinite, `(n_rows, n_rows)`; averaging over modalities that two names
            share may break this a little, so negative eigenvalues are set to 0.
        targets
            Centred, `(n_rows, n_outputs)`. Centring is not repeated without the group.
        groups
            Number of the group of each row, `(n_rows,)`.
        penalties
            To choose from; the first of the best is taken.
        """
        values, vectors = np.linalg.eigh((kernel + kernel.T) / 2)
        values = np.maximum(values, 0.0)
        rotated = vectors.T @ targets
        members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
        # Errors are sums of squares: rotating the outputs to fewer columns keeps them.
        narrow = rotated if targets.shape[1] <= len(targets) else np.linalg.qr(rotated.T)[1].T
        errors = np.array(
            [_left_out(vectors, 1 / (values + penalty), narrow, members) for penalty in penalties]
        )
        best = int(np.argmin(errors))
        shrunken = rotated / (values + penalties[best])[:, None]
        return cls(vectors @ shrunken, float(penalties[best]), errors / targets.size)


def check_penalties(penalties: Sequence[float]) -> tuple[float, ...]:
    """Return the penalties.

    Raises
    ------
    ValueError
        Unless there is one and all are positive and finite.
    """
    made = tuple(float(penalty) for penalty in penalties)
    if not made or not all(np.isfinite(p) and p > 0 for p in made):
        msg = f"penalties={made}; expected at least one number, all above 0 and finite."
        raise ValueError(msg)
    return made


def _left_out(
    vectors: NDArray[np.float64],
    inverse: NDArray[np.float64],
    rotated: NDArray[np.float64],
    members: list[NDArray[np.intp]],
) -> float:
    """Return the squared error over all groups, each left out in turn."""
    solved = vectors @ (inverse[:, None] * rotated)
    error = 0.0
    for rows in members:
        own = vectors[rows]
        block = (own * inverse) @ own.T
        error += float((np.linalg.solve(block, solved[rows]) ** 2).sum())
    return error
