"""Predictors from elsewhere: given means, other packages' predictors, fallbacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from scipy import sparse

from scvi_perturb._checks import checked
from scvi_perturb._core import TARGET_SUM, SchemaError, UnknownPerturbationError
from scvi_perturb.data.reader import align_genes
from scvi_perturb.data.request import RequestRow
from scvi_perturb.predictors.base import MeanPredictor
from scvi_perturb.predictors.request import context_labels, request_frame

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_perturb.data.condition import Condition
    from scvi_perturb.data.request import Context
    from scvi_perturb.predictors.profiles import Profile
    from scvi_perturb.predictors.request import ControlCells, Predictor

    Floats = NDArray[np.float64]


@checked
class ExternalMeans(MeanPredictor):
    """Repeat predictions that come from elsewhere, e.g. exported from a service.

    Whether they were made without what they predict is not known, so nothing is known of their
    errors.

    Parameters
    ----------
    table
        One row a condition, with the screen's genes and the columns of `obs` that the screen was
        set up with (context columns may be left out: a row then holds for all). `layers["lfc"]` is
        the change from control, in natural logarithms of `log1p` of counts per ten thousand; where
        there is none, `X` holds profiles, and one row is the control (in each context, if these
        are told apart): integers are counts, anything else `log1p` of counts per ten thousand.
    profile
        What the mean of a population is; see `MeanPredictor`.

    Raises
    ------
    SchemaError
        In `fit`: if genes or columns are missing, values are not finite, or there is no control to
        take profiles from.
    """

    name: ClassVar[str] = "given"
    can_refit: ClassVar[bool] = False

    def __init__(self, table: AnnData, *, profile: Profile = "pseudobulk") -> None:
        super().__init__(profile=profile)
        self.table = table

    def _learn(self) -> None:
        super()._learn()
        keys = self.profiles.keys
        table = align_genes(self.table, tuple(map(str, self.profiles.var_names)))
        obs = table.obs
        absent = sorted(set(keys.columns.values()) - set(obs.columns))
        if absent:
            msg = (
                f"The given means have no column {absent[0]!r}; they have "
                f"{sorted(map(str, obs.columns))}. Name what each row is of as the screen does."
            )
            raise SchemaError(msg)
        described = obs[list(keys.columns.values())].to_dict("records")
        roles = {column: role for role, column in keys.columns.items()}
        conditions = [keys.parse(**{roles[c]: v for c, v in row.items()}) for row in described]
        contexts = context_labels(obs, self.profiles.keys.context)
        rows = [RequestRow(what, own) for what, own in zip(conditions, contexts, strict=True)]
        self._places: dict[Condition, list[tuple[Context, int]]] = {}
        for i, row in enumerate(row for row in rows if not row.condition.is_control):
            self._places.setdefault(row.condition, []).append((row.context, i))
        self._given = self._changes_of(table, rows)

    def _changes_of(self, table: AnnData, rows: list[RequestRow]) -> Floats:
        treated = np.array([not row.condition.is_control for row in rows])
        if "lfc" in table.layers:
            return _finite(_dense(table.layers["lfc"]))[treated]
        values = _finite(_dense(table.X))
        if (values == np.round(values)).all() and values.max(initial=0) > np.log1p(TARGET_SUM):
            total = np.maximum(values.sum(axis=1, keepdims=True), 1.0)
            values = np.log1p(TARGET_SUM * values / total)
        changes = []
        for i in np.flatnonzero(treated):
            own = [
                j
                for j in np.flatnonzero(~treated)
                if _no_contradiction(rows[i].context, rows[j].context)
            ]
            if not own:
                msg = (
                    f"The given means hold profiles, but no control row for {rows[i].condition} in "
                    f"context {rows[i].context}. Add the control, or give changes as layers['lfc']."
                )
                raise SchemaError(msg)
            changes.append(values[i] - values[own].mean(axis=0))
        return np.stack(changes) if changes else np.zeros((0, values.shape[1]))

    def _change(self, request: RequestRow) -> Floats:
        places = self._places.get(request.condition)
        if places is None:
            raise UnknownPerturbationError(str(request.condition), sorted(map(str, self._places)))
        found = [i for own, i in places if _no_contradiction(request.context, own)]
        if not found:
            own = sorted({own for own, _ in places}, key=str)
            msg = f"Means of {request.condition} were given for {own}, not for {request.context}."
            raise SchemaError(msg)
        made: Floats = self._given[found].mean(axis=0)
        return made


def _no_contradiction(one: Context, other: Context) -> bool:
    return all(a is None or b is None or a == b for a, b in zip(one, other, strict=True))


def _dense(values: Any) -> Floats:  # noqa: ANN401
    return np.asarray(values.toarray() if sparse.issparse(values) else values, np.float64)


def _finite(values: Floats) -> Floats:
    if not np.isfinite(values).all():
        n = int((~np.isfinite(values)).sum())
        msg = f"The given means hold {n} values that are not finite; fill in or drop these rows."
        raise SchemaError(msg)
    return values


@checked
class FirstKnown(MeanPredictor):
    """Predict by the first of several predictors that does not refuse a condition.

    So that a table has an answer everywhere: the sum of singles where all were measured, else
    the mean of those that were.

    Parameters
    ----------
    predictors
        Predictors of means, the best first; all with the same `profile`.

    Raises
    ------
    SchemaError
        If there are none, or they differ in `profile`.
    """

    name: ClassVar[str] = "first_known"

    def __init__(self, *predictors: MeanPredictor) -> None:
        kinds = {predictor.profile for predictor in predictors}
        if len(kinds) != 1:
            msg = f"Found profiles {sorted(kinds)}; give predictors, all with the same profile."
            raise SchemaError(msg)
        super().__init__(profile=kinds.pop())
        self.predictors = predictors
        self.needs_variances = any(one.needs_variances for one in predictors)

    def _learn(self) -> None:
        super()._learn()
        for predictor in self.predictors:
            predictor.fit_profiles(self.profiles)

    def _change(self, request: RequestRow) -> NDArray[np.float64]:
        *better, last = self.predictors
        for predictor in better:
            try:
                return predictor._changes([request], None)[0]
            except (UnknownPerturbationError, SchemaError):
                continue
        return last._changes([request], None)[0]


class ExternalPredictor(MeanPredictor):
    """Ask a predictor that was fitted elsewhere for `layers["lfc"]` of its `predict`.

    It is not fitted again, so nothing is known of its errors. User's reference cells do not reach
    it: it answers from the training controls.

    `predictor`: Fitted to the same screen; changes of pseudobulk profiles.
    """

    name: ClassVar[str] = "external"
    can_refit: ClassVar[bool] = False

    def __init__(self, predictor: Predictor) -> None:
        super().__init__(profile="pseudobulk")
        self.predictor = predictor

    def _changes(
        self, requests: Sequence[RequestRow], given: ControlCells | None
    ) -> NDArray[np.float64]:
        del given
        frame = request_frame(requests, self.profiles.keys)
        open_ones = [key for key in self.profiles.keys.context if frame[key].isna().all()]
        found = self.predictor.predict(frame.drop(columns=open_ones).reset_index(drop=True))
        found = align_genes(found, tuple(self.profiles.var_names))
        return np.asarray(found.layers["lfc"], np.float64)
