"""The real cells of the nearest training condition."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from scvi_perturb._constants import UNS_KEY
from scvi_perturb._errors import NotTrainedError
from scvi_perturb.data._keys import default_keys
from scvi_perturb.data._table import encode_obs
from scvi_perturb.predictors._cell_source import CellSource, Population
from scvi_perturb.predictors._cells import read_counts, seen_cells
from scvi_perturb.predictors._mean import UNITS
from scvi_perturb.predictors._nearest_condition import NearestCondition, nearest_contexts
from scvi_perturb.predictors._negative_binomial_mean import COUNT_UNITS
from scvi_perturb.predictors._profiles import TrainingProfiles
from scvi_perturb.predictors._reference import Reference, read_request
from scvi_perturb.predictors._requests import (
    Request,
    context_labels,
    request_frame,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scvi_perturb.data._condition import Condition
    from scvi_perturb.data._keys import ConditionKeys
    from scvi_perturb.data._splits import Split
    from scvi_perturb.features import PerturbationFeatures
    from scvi_perturb.predictors._profiles import Profile
    from scvi_perturb.predictors._protocol import Conditions
    from scvi_perturb.predictors._requests import Context

__all__ = ["NearestCells"]


class NearestCells(CellSource):
    """Predict cells: the real training cells of the nearest condition, resampled as they are.

    What stands in for a condition is found in this order.

    1. Controls are the control cells of the context.
    2. Of the training conditions that share a component (a name with its kind), that which lacks
       the fewest of the components asked for; then with the fewest that were not asked for; then
       of the nearest doses of the shared components (least sum of distances in the logarithm);
       then of the nearest time; then the first by name. So a condition that was trained on is
       itself, an unseen dose is the nearest dose, and an unseen combination is one that shares
       most of it.
    3. If none shares a component, the condition with the most similar features, as `KernelRidge`
       compares them, of the fewest components; then of the nearest mean dose, and so on.

    Its cells are taken in the context asked for; or, if it was not measured there, in that of its
    contexts whose training control profile is nearest, in Euclidean distance, to the control
    profile of the context asked for (the training controls, or `reference`). Cells are integer
    counts, CSR, and nothing is changed about them: effects of another depth or context come along.
    The counts of all training cells are held in memory.

    Parameters
    ----------
    features
        What is known about perturbations; None finds conditions that share a component only.
    """

    name: ClassVar[str] = "nearest_cells"

    def __init__(self, features: PerturbationFeatures | None = None) -> None:
        self.features = features
        self._profiles: TrainingProfiles | None = None

    def fit(
        self,
        adata: AnnData,
        split: Split | None = None,
        *,
        keys: ConditionKeys | None = None,
        context_keys: Sequence[str] = (),
        layer: str | None = None,
    ) -> Self:
        """Keep the training cells and the profiles of their groups.

        Parameters and errors are those of `MeanPredictor.fit`.
        """
        self._profiles = TrainingProfiles.from_screen(
            adata,
            split,
            keys=keys or default_keys(adata),
            context_keys=[context_keys] if isinstance(context_keys, str) else context_keys,
            layer=layer,
            kind="pseudobulk",
        )
        seen = seen_cells(adata, split)
        obs = adata.obs.iloc[seen]
        codes, table = encode_obs(obs, self._profiles.keys)
        contexts = context_labels(obs, self._profiles.context_keys)
        self._cells_of: dict[Condition, dict[Context, list[int]]] = {}
        for i, (code, own) in enumerate(zip(codes.tolist(), contexts, strict=True)):
            by_context = self._cells_of.setdefault(table.conditions[code], {})
            by_context.setdefault(own, []).append(i)
        self._counts, self._names = read_counts(adata, layer, seen), obs.index
        treated = [condition for condition in self._cells_of if not condition.is_control]
        self._nearest = NearestCondition(treated, self.features)
        return self

    def predict(self, conditions: Conditions, *, reference: AnnData | None = None) -> AnnData:
        """Return the profile of the cells that stand in for each condition.

        Parameters, result and errors are those of `MeanPredictor.predict`; `X` is the pseudobulk
        of these cells, and `layers["lfc"]` its difference from the control profile of the context
        asked for.
        """
        answer, populations = self._populations(conditions, reference)
        mean = np.stack([population.mean for population in populations])
        change = np.stack([population.change for population in populations])
        made = AnnData(X=mean, obs=answer.obs, var=answer.var, layers={"lfc": change})
        made.uns[UNS_KEY] = self._provenance() | {"units": UNITS}
        return made

    @property
    def _about(self) -> tuple[str, str, Profile]:
        return self.name, COUNT_UNITS, "pseudobulk"

    def _populations(
        self, conditions: Conditions, reference: AnnData | None
    ) -> tuple[AnnData, list[Population]]:
        profiles = self._profiles
        if profiles is None:
            msg = f"{type(self).__name__} has not seen data; call `fit(adata, split)` first."
            raise NotTrainedError(msg)
        requests, given = read_request(conditions, reference, profiles)
        frame = request_frame(requests, profiles.keys, profiles.context_keys)
        var = pd.DataFrame(index=profiles.var_names)
        populations = [self._population(request, given, profiles) for request in requests]
        return AnnData(obs=frame, var=var), populations

    def _population(
        self, request: Request, given: Reference | None, profiles: TrainingProfiles
    ) -> Population:
        if given is None:
            control = profiles.control_profile(request.context)
            groups = profiles.controls(request.context)
            n_controls = int(profiles.n_cells[groups].sum())
        else:
            own = given.rows(request.context)
            control, n_controls = profiles.profile_of(given.counts[own]), len(own)
        if request.condition.is_control and given is not None:
            counts, names = given.counts[own], given.names[own]
        else:
            rows = self._rows(request, control, profiles)
            counts, names = self._counts[rows], self._names[rows]
        mean = profiles.profile_of(counts)
        return Population(
            counts,
            names,
            n_controls=n_controls,
            mean=mean.astype(np.float32),
            change=(mean - control).astype(np.float32),
        )

    def _rows(
        self, request: Request, control: NDArray[np.float64], profiles: TrainingProfiles
    ) -> NDArray[np.int64]:
        """Return the places of the training cells that stand in, in the order of the file."""
        condition = request.condition
        found = self._cells_of[condition if condition.is_control else self._nearest.of(condition)]
        contexts = nearest_contexts(profiles, list(found), request.context, control)
        return np.sort(np.concatenate([found[own] for own in contexts])).astype(np.int64)

    def _cells(
        self,
        population: Population,
        drawn: NDArray[np.intp],
        rng: np.random.Generator,
    ) -> Any:  # noqa: ANN401
        return sparse.csr_matrix(population.counts[drawn], dtype=np.float32)
