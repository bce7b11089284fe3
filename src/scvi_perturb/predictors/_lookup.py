"""Changes that were measured: of one component alone, in a context, over all perturbations."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from scvi_perturb._errors import SchemaError
from scvi_perturb.data._condition import Condition
from scvi_perturb.predictors._profiles import agrees

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from scvi_perturb.data._condition import Component
    from scvi_perturb.predictors._requests import Context

    #: Changes from control, `(n_genes,)`, by context.
    ByContext: TypeAlias = Mapping[Context, NDArray[np.float64]]
    #: Changes by condition, then context.
    Deltas: TypeAlias = Mapping[Condition, ByContext]

__all__ = [
    "here_or_mean",
    "mean_of_context",
    "measured_alone",
    "measured_here",
    "names_of_singles",
]


def measured_alone(deltas: Deltas, component: Component, time: float | None) -> ByContext:
    """Return the changes of a component alone at this dose and time; empty if never measured."""
    return deltas.get(Condition((component,), time=time), {})


def measured_here(seen: ByContext, context: Context) -> list[NDArray[np.float64]]:
    """Return the changes whose context is what was asked for, where something was said."""
    return [delta for own, delta in seen.items() if agrees(context, own)]


def here_or_mean(seen: ByContext, context: Context) -> NDArray[np.float64]:
    """Return the change in the context; where it was not measured there, the mean over others."""
    return np.mean(measured_here(seen, context) or list(seen.values()), axis=0)


def mean_of_context(deltas: Deltas, context: Context) -> NDArray[np.float64]:
    """Return the mean change of all training conditions in a context, each counted once.

    Raises
    ------
    SchemaError
        If no perturbation was measured there.
    """
    here = [delta for seen in deltas.values() for delta in measured_here(seen, context)]
    if not here:
        msg = (
            f"No perturbation was measured in context {context}; use "
            "`ContextMean('contexts')` for contexts of which only controls were seen."
        )
        raise SchemaError(msg)
    return np.mean(here, axis=0)


def names_of_singles(deltas: Deltas) -> list[str]:
    """Return the labels of the conditions of one component."""
    return [str(condition) for condition in deltas if len(condition.components) == 1]
