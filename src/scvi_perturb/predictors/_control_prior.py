"""Control profiles of few cells, drawn to those of other contexts.

A prediction for a context that was never seen perturbed starts from its measured control, and with
it from the sampling noise of that. Training changes of the context itself would share this noise,
and cancel it; those of other contexts do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import numpy as np

from scvi_perturb._normalize import log_normalize_cells
from scvi_perturb.predictors._moments import Moments

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

    from scvi_perturb.predictors._profiles import TrainingProfiles
    from scvi_perturb.predictors._requests import Context

    Floats = NDArray[np.float64]

__all__ = ["ControlPrior"]

#: Contexts that the variance of genes of similar level counts as, in that of each gene.
_PRIOR_CONTEXTS: Final = 3.0
#: Genes of similar level.
_N_SIMILAR: Final = 100


@dataclass(frozen=True, slots=True)
class ControlPrior:
    """Control profiles of training.

    Parameters
    ----------
    contexts
        Contexts with controls.
    profiles, variances
        Their control profiles and the sampling variances of these, `(n_contexts, n_genes)`.
    of_a_cell
        Sampling variance of a profile of one cell, `(n_genes,)`.
    """

    contexts: tuple[Context, ...]
    profiles: Floats
    variances: Floats
    of_a_cell: Floats

    @classmethod
    def of(cls, training: TrainingProfiles) -> Self | None:
        """Gather controls; None where their noise is not known, or contexts are fewer than four."""
        rows = [i for i, condition in enumerate(training.conditions) if condition.is_control]
        if training.variances is None or len(rows) < 4:
            return None
        variances = training.variances[rows]
        return cls(
            tuple(training.contexts[i] for i in rows),
            np.stack([training.profile([i]) for i in rows]),
            variances,
            (variances * training.n_cells[rows, None]).mean(axis=0),
        )

    def variance_of(
        self,
        counts: Any,  # noqa: ANN401
        kind: str,
        library: Floats | None = None,
    ) -> Floats:
        """Return the sampling variance of the profile of cells, given as counts `(n, n_genes)`."""
        n_cells = counts.shape[0]
        if n_cells < 2:
            return self.of_a_cell / n_cells
        moments = Moments.empty((1, counts.shape[1]), per_cell=kind == "cell_mean")
        moments.add(counts, np.zeros(n_cells, np.int64), library)
        values = log_normalize_cells(counts) if kind == "cell_mean" else counts
        sums = np.asarray(values.sum(axis=0), np.float64).reshape(1, -1)
        total = None if library is None else np.array([library.sum()])
        found = moments.variances(sums, np.array([n_cells]), total)
        return self.of_a_cell / n_cells if found is None else found[0]

    def shift(self, context: Context, given: tuple[Floats, Floats] | None = None) -> Floats:
        """Return the expected control less the measured one, `(n_genes,)`.

        `noise / (noise + spread)` of the way to the mean of the other contexts, with the variance
        of each gene over these, drawn to that of genes of similar level (empirical Bayes).

        Parameters
        ----------
        context
            Left out of the mean, where training has it.
        given
            Profile and variance of control cells given; None takes those of training.

        References
        ----------
        Efron and Morris, Stein's estimation rule and its competitors, JASA 1973.
        """
        others = np.array([own != context for own in self.contexts])
        if given is None:
            if others.all():
                return np.zeros(self.profiles.shape[1])
            own = int(np.argmin(others))
            given = self.profiles[own], self.variances[own]
        profile, variance = given
        rest, noise = self.profiles[others], self.variances[others]
        centre = rest.mean(axis=0)
        n = len(rest)
        spread = np.maximum(((rest - centre) ** 2).sum(axis=0) / (n - 1) - noise.mean(axis=0), 0)
        usual = _over_similar(centre, spread)
        spread = (n * spread + _PRIOR_CONTEXTS * usual) / (n + _PRIOR_CONTEXTS)
        made: Floats = variance / np.maximum(variance + spread, 1e-12) * (centre - profile)
        return made


def _over_similar(level: Floats, values: Floats) -> Floats:
    """Return the mean of values over genes of similar level."""
    order = np.argsort(level, kind="stable")
    n = min(_N_SIMILAR, len(level))
    total = np.concatenate([[0.0], np.cumsum(values[order])])
    start = np.clip(np.arange(len(level)) - n // 2, 0, len(level) - n)
    made = np.empty_like(values)
    made[order] = (total[start + n] - total[start]) / n
    return made
