"""Control cells that the user gives, to predict from them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from scvi_perturb._errors import SchemaError
from scvi_perturb.data._table import encode_obs
from scvi_perturb.predictors._cells import aligned_counts
from scvi_perturb.predictors._requests import context_labels, parse_requests

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_perturb.predictors._profiles import TrainingProfiles
    from scvi_perturb.predictors._protocol import Conditions
    from scvi_perturb.predictors._requests import Context, Request

__all__ = ["Reference", "read_request"]


def read_request(
    conditions: Conditions, reference: AnnData | None, profiles: TrainingProfiles
) -> tuple[list[Request], Reference | None]:
    """Return what is asked, one request a row, and the control cells given, if any.

    A context that a request leaves open is the reference's, where that has one.

    Raises
    ------
    SchemaError
        If either does not fit what was learned.
    """
    if reference is not None and profiles.kind == "effects":
        msg = (
            'With profile="effects" predictions are changes, to which control cells add '
            "nothing. Leave `reference` out and name the context in the request."
        )
        raise SchemaError(msg)
    requests = parse_requests(conditions, keys=profiles.keys, context_keys=profiles.context_keys)
    if reference is None:
        return requests, None
    given = Reference.read(reference, profiles)
    return [replace(r, context=given.completed(r.context)) for r in requests], given


@dataclass(frozen=True, slots=True)
class Reference:
    """Control cells given by the user: counts in the order of training's genes, and contexts.

    `libraries` are their library sizes, where these are more than the sums of counts.
    """

    counts: Any
    contexts: list[Context]
    names: pd.Index
    libraries: NDArray[np.float64] | None = None

    @classmethod
    def read(cls, adata: AnnData, profiles: TrainingProfiles) -> Self:
        """Check the reference against training.

        Raises
        ------
        SchemaError
            If genes are missing, counts are not raw, cells are none, or some are perturbed.
        """
        if not adata.n_obs:
            msg = "The reference has no cells; give at least one control cell."
            raise SchemaError(msg)
        if profiles.keys.perturbation in adata.obs:
            keys = replace(profiles.keys, dose=None, time=None, kind=None)
            n_treated = int((encode_obs(adata.obs, keys)[0] != 0).sum())
            if n_treated:
                msg = (
                    f"{n_treated} of {adata.n_obs} reference cells are perturbed; a reference is "
                    f"of control cells: obs[{keys.perturbation!r}] == {keys.control!r}."
                )
                raise SchemaError(msg)
        counts = aligned_counts(adata, profiles.layer, profiles.var_names)
        contexts = context_labels(adata.obs, profiles.context_keys)
        return cls(counts, contexts, adata.obs_names)

    def rows(self, context: Context) -> NDArray[np.intp]:
        """Return the cells that do not contradict `context`.

        Raises
        ------
        SchemaError
            If all do.
        """
        found = [
            i
            for i, own in enumerate(self.contexts)
            if all(a is None or b is None or a == b for a, b in zip(context, own, strict=True))
        ]
        if not found:
            msg = (
                f"No reference cell has context {context}; there are "
                f"{sorted(set(self.contexts), key=str)}. Ask for one of these, or give others."
            )
            raise SchemaError(msg)
        return np.array(found)

    def control(
        self, context: Context, profiles: TrainingProfiles
    ) -> tuple[Any, NDArray[np.float64] | None, NDArray[np.float64]]:
        """Return counts, libraries and profile of the cells that do not contradict `context`."""
        rows = self.rows(context)
        library = None if self.libraries is None else self.libraries[rows]
        counts = self.counts[rows]
        return counts, library, profiles.profile_of(counts, library)

    def completed(self, context: Context) -> Context:
        """Return `context` with what it leaves open taken from the reference, where that agrees."""
        own_contexts = [self.contexts[i] for i in self.rows(context)]
        seen = [set(labels) for labels in zip(*own_contexts, strict=True)]
        return tuple(
            next(iter(own)) if asked is None and len(own) == 1 else asked
            for asked, own in zip(context, seen, strict=True)
        )
