"""Fields that register a screen with scvi-tools: counts, conditions, labels, metadata."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scvi.data.fields import BaseAnnDataField, LayerField, MuDataWrapper

from scvi_perturb._constants import CONDITION_KEY, METADATA_PREFIX, SEPARATOR, X_KEY
from scvi_perturb._errors import SchemaError
from scvi_perturb.data.condition import as_label
from scvi_perturb.data.condition_table import ConditionTable, encode_obs
from scvi_perturb.data.keys import ConditionKeys, as_labels
from scvi_perturb.data.reader import check_raw_counts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import rich.table
    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_perturb.data.condition import Condition

__all__ = [
    "Annotation",
    "CodesField",
    "CountsField",
    "LabelField",
    "LibraryField",
    "MetadataField",
    "MuDataCountsField",
    "MuDataLabelField",
    "MuDataLibraryField",
    "MuDataMetadataField",
    "MuDataPerturbationField",
    "NoPerturbationField",
    "PerturbationField",
    "ValuesField",
    "data_hash",
    "describe",
    "encode_metadata",
    "identity",
    "is_numeric",
    "read_annotation",
]


State = dict[str, Any]


class CountsField(LayerField):
    """Raw counts; anything else raises and says which layer to use. The matrix is not changed."""

    def __init__(self, layer: str | None) -> None:
        super().__init__(X_KEY, layer, is_count_data=False, correct_data_format=False)

    def validate_field(self, adata: AnnData) -> None:
        """Raise `SchemaError` unless the matrix holds non-negative integers."""
        # `keys()`: the layers of a collection of files have no `in` and cannot be iterated.
        layers = list(adata.layers.keys())
        if self.attr_key is not None and self.attr_key not in layers:
            msg = f"Layer {self.attr_key!r} was not found; the layers are {sorted(layers)}."
            raise SchemaError(msg)
        if self.attr_key is None and not hasattr(adata, "X"):
            msg = f"A collection of files has layers only ({sorted(layers)}); pass one as `layer`."
            raise SchemaError(msg)
        super().validate_field(adata)
        where = "adata.X" if self.attr_key is None else f"adata.layers[{self.attr_key!r}]"
        others = {"X": adata.X} if hasattr(adata, "X") else {}
        check_raw_counts(self.get_field_data(adata), where=where, layers={**others, **adata.layers})

    def transfer_field(
        self, state_registry: State, adata_target: AnnData, **kwargs: object
    ) -> State:
        """Raise `SchemaError` unless new data have the genes of training, in their order."""
        # scvi-tools compares their number only; models' verbs reorder before they come here.
        genes = np.asarray(state_registry["column_names"]).astype(str)
        names = adata_target.var_names.astype(str)
        if len(names) != len(genes) or (names != genes).any():
            absent = genes[~np.isin(genes, names)]
            found = f"{len(absent)} of {len(genes)} are missing, e.g. {absent[:5].tolist()}"
            msg = (
                f"The genes are not those of training: {found if len(absent) else 'order differs'}."
                " Bring them into the order of training first: `adata[:, genes].copy()`."
            )
            raise SchemaError(msg)
        return super().transfer_field(state_registry, adata_target, **kwargs)


class ValuesField(CountsField):
    """Real values, such as log-fold changes or scores; what is not finite raises."""

    def validate_field(self, adata: AnnData) -> None:
        """Raise `SchemaError` unless the matrix is finite."""
        if self.attr_key is not None and self.attr_key not in list(adata.layers.keys()):
            msg = f"Layer {self.attr_key!r} was not found; the layers are {sorted(adata.layers)}."
            raise SchemaError(msg)
        LayerField.validate_field(self, adata)
        values = self.get_field_data(adata)
        bad = int((~np.isfinite(values.data if hasattr(values, "tocsr") else values)).sum())
        if bad:
            msg = f"{bad} values are not finite; expected real numbers. Fill or drop them first."
            raise SchemaError(msg)


class CodesField(BaseAnnDataField):
    """One code a cell in `obs["_scvi_<key>"]`."""

    def __init__(self, registry_key: str) -> None:
        super().__init__()
        self._registry_key = registry_key

    @property
    def registry_key(self) -> str:
        """Key under which the codes are found."""
        return self._registry_key

    @property
    def attr_name(self) -> str:
        """Attribute of AnnData: always `obs`."""
        return "obs"

    @property
    def attr_key(self) -> str:
        """Column of `obs`."""
        return f"_scvi_{self._registry_key}"

    @property
    def is_empty(self) -> bool:
        """Never: a screen without labels has the code 0 everywhere."""
        return False

    def view_state_registry(self, state_registry: State) -> rich.table.Table | None:
        """Nothing is drawn beyond the summary."""
        del state_registry
        return None

    def _write(self, adata: AnnData, codes: np.ndarray) -> None:
        adata.obs[self.attr_key] = codes.astype(np.int64)


class PerturbationField(CodesField):
    """The condition of each cell: perturbation, and where named its dose, time and kind.

    The state is the :class:`~scvi_perturb.data.ConditionTable` as plain types; new data extend
    it, so unseen combinations and perturbations need no registration anew.
    """

    def __init__(self, keys: ConditionKeys, *, require_control: bool = True) -> None:
        super().__init__(CONDITION_KEY)
        self.keys = keys
        self.require_control = require_control

    def validate_field(self, adata: AnnData) -> None:
        """Raise `SchemaError` when a named column is missing."""
        named = (self.keys.perturbation, self.keys.dose, self.keys.time, self.keys.kind)
        missing = [c for c in named if c is not None and c not in adata.obs]
        if missing:
            msg = f"Columns {missing} are not in adata.obs, which has {sorted(adata.obs)}."
            raise SchemaError(msg)

    def register_field(self, adata: AnnData) -> State:
        """Encode the conditions of a new screen; a control must be there, unless told otherwise."""
        self.validate_field(adata)
        codes, table = encode_obs(adata.obs, self.keys)
        if self.require_control and not (codes == 0).any():
            seen = pd.unique(adata.obs[self.keys.perturbation].astype(str))[:5]
            msg = (
                f"No control cell: no value of obs[{self.keys.perturbation!r}] is "
                f"{self.keys.control!r} (found {', '.join(map(repr, seen))}, ...). Name the label "
                "of the control cells with `control=`."
            )
            raise SchemaError(msg)
        self._write(adata, codes)
        return {"table": table.to_dict()}

    def transfer_field(self, state_registry: State, adata_target: AnnData, **_: object) -> State:
        """Encode new data with the conditions already known; new ones are appended."""
        self.validate_field(adata_target)
        known = ConditionTable.from_dict(state_registry["table"])
        codes, table = encode_obs(adata_target.obs, self.keys, table=known)
        self._write(adata_target, codes)
        return {"table": table.to_dict()}

    def get_summary_stats(self, state_registry: State) -> dict[str, int]:
        """Return the number of conditions, control included."""
        return {"n_conditions": len(state_registry["table"]["conditions"])}


class NoPerturbationField(PerturbationField):
    """No column says a perturbation: every cell is a control."""

    def validate_field(self, adata: AnnData) -> None:
        """Accept anything."""

    def register_field(self, adata: AnnData) -> State:
        """Write the code of the control for every cell."""
        self._write(adata, np.zeros(adata.n_obs, dtype=np.int64))
        return {"table": ConditionTable().to_dict()}

    def transfer_field(self, state_registry: State, adata_target: AnnData, **_: object) -> State:
        """Do the same to new data."""
        del state_registry
        return self.register_field(adata_target)


class LabelField(CodesField):
    """Labels of one or several columns as one code, e.g. cell type and donor as context."""

    def __init__(self, registry_key: str, columns: tuple[str, ...]) -> None:
        super().__init__(registry_key)
        self.columns = columns

    def validate_field(self, adata: AnnData) -> None:
        """Raise `SchemaError` when a column is missing or a label is."""
        for column in self.columns:
            if column not in adata.obs:
                msg = f"Column {column!r} is not in adata.obs, which has {sorted(adata.obs)}."
                raise SchemaError(msg)
            n_missing = int(adata.obs[column].isna().sum())
            if n_missing:
                msg = f"obs[{column!r}] has {n_missing} missing labels; fill or drop those cells."
                raise SchemaError(msg)

    def register_field(self, adata: AnnData) -> State:
        """Encode the labels of a new screen, sorted."""
        return self._encode(adata, [])

    def transfer_field(self, state_registry: State, adata_target: AnnData, **_: object) -> State:
        """Encode new data; labels not met before get new codes after the old ones."""
        return self._encode(adata_target, [tuple(row) for row in state_registry["levels"]])

    def get_summary_stats(self, state_registry: State) -> dict[str, int]:
        """Return the number of different labels."""
        return {f"n_{self.registry_key}": len(state_registry["levels"])}

    def _encode(self, adata: AnnData, levels: list[tuple[str, ...]]) -> State:
        self.validate_field(adata)
        codes, levels = encode_labels(adata.obs, self.columns, levels)
        self._write(adata, codes)
        return {"columns": list(self.columns), "levels": [list(row) for row in levels]}


def encode_labels(
    obs: pd.DataFrame, columns: tuple[str, ...], levels: list[tuple[str, ...]]
) -> tuple[np.ndarray, list[tuple[str, ...]]]:
    """Return a code per row and the labels the codes stand for; `levels` keep their codes.

    Labels are text: 1, 1.0 and "1" are the same.
    """
    if not columns:
        return np.zeros(len(obs), dtype=np.int64), [()]
    frame = pd.DataFrame({c: as_labels(obs[c], missing="nan") for c in columns})
    group = frame.groupby(list(columns), sort=True, observed=True).ngroup().to_numpy()
    _, first = np.unique(group, return_index=True)
    rows = [tuple(frame.iloc[i]) for i in first]
    extended = levels + [row for row in rows if row not in set(levels)]
    place = {row: i for i, row in enumerate(extended)}
    return np.array([place[row] for row in rows], dtype=np.int64)[group], extended


class LibraryField(BaseAnnDataField):
    """Library size of each cell from a column, for files that hold only some of the genes."""

    def __init__(self, registry_key: str, column: str | None) -> None:
        super().__init__()
        self._registry_key = registry_key
        self._column = column

    @property
    def registry_key(self) -> str:
        """Key under which the sizes are found."""
        return self._registry_key

    @property
    def attr_name(self) -> str:
        """Attribute of AnnData: always `obs`."""
        return "obs"

    @property
    def attr_key(self) -> str | None:
        """Column of `obs`."""
        return self._column

    @property
    def is_empty(self) -> bool:
        """Whether the library size is the sum of the counts instead."""
        return self._column is None

    def validate_field(self, adata: AnnData) -> None:
        """Raise `SchemaError` unless the column is there, positive and finite."""
        if self._column not in adata.obs:
            msg = f"Column {self._column!r} is not in adata.obs, which has {sorted(adata.obs)}."
            raise SchemaError(msg)
        sizes = pd.to_numeric(adata.obs[self._column], errors="coerce").to_numpy(dtype=float)
        bad = int((~(sizes > 0) | ~np.isfinite(sizes)).sum())
        if bad:
            msg = f"obs[{self._column!r}] is not positive in {bad} cells; a library size must be."
            raise SchemaError(msg)

    def register_field(self, adata: AnnData) -> State:
        """Check the column."""
        self.validate_field(adata)
        return {}

    def transfer_field(self, state_registry: State, adata_target: AnnData, **_: object) -> State:
        """Check the column of new data."""
        del state_registry
        return self.register_field(adata_target)

    def get_summary_stats(self, state_registry: State) -> dict[str, int]:
        """Nothing to summarise."""
        del state_registry
        return {}

    def view_state_registry(self, state_registry: State) -> rich.table.Table | None:
        """Nothing to draw."""
        del state_registry
        return None


MuDataCountsField = MuDataWrapper(CountsField)
MuDataPerturbationField = MuDataWrapper(PerturbationField)
MuDataLabelField = MuDataWrapper(LabelField)
MuDataLibraryField = MuDataWrapper(LibraryField)


@dataclass(frozen=True, slots=True)
class Annotation:
    """Cells grouped by condition and context.

    Parameters
    ----------
    group
        Group of each cell, `(n_cells,)`: a row of `groups`.
    groups
        One row a group: `perturbation`, `dose`, `time`, `perturbation_type` (canonical labels),
        `control` (bool), `context` (index into `contexts`).
    conditions
        Condition of each group.
    contexts
        Labels of each context, by context key.
    separator
        What stands between the components of a label.
    """

    group: NDArray[np.int64]
    groups: pd.DataFrame
    conditions: tuple[Condition, ...]
    contexts: tuple[dict[str, str], ...]
    separator: str = SEPARATOR

    @property
    def names(self) -> list[frozenset[str]]:
        """Names of the components of each group's condition."""
        return [frozenset(condition.names) for condition in self.conditions]


def read_annotation(
    adata: AnnData, keys: ConditionKeys, context_keys: Sequence[str] = ()
) -> Annotation:
    """Group the cells of a screen by condition and context.

    Raises
    ------
    SchemaError
        If a column is absent, or a perturbation or context label is missing.
    """
    codes, table = encode_obs(adata.obs, keys)
    context, contexts = _contexts(adata.obs, context_keys)
    pairs = codes * len(contexts) + context
    distinct, group = np.unique(pairs, return_inverse=True)
    code = distinct // len(contexts)
    conditions = tuple(table.conditions[c] for c in code)
    groups = table.frame(conditions)
    groups["control"] = code == 0
    groups["context"] = distinct % len(contexts)
    return Annotation(group.astype(np.int64), groups, conditions, contexts, keys.separator)


def data_hash(adata: AnnData, annotation: Annotation) -> str:
    """Return a fingerprint of the cells, the genes and the annotation, as 64 hex digits.

    It depends on names, order, shape, conditions and contexts; not on counts, nor on whether a
    column is text, categorical or integer, nor on the order of components in a label.
    """
    digest = hashlib.sha256(repr(adata.shape).encode())
    for names in (adata.obs_names, adata.var_names):
        digest.update("\x1f".join(map(str, names)).encode())
        digest.update(b"\x1e")
    for condition, context in zip(annotation.conditions, annotation.groups["context"], strict=True):
        parts = [(part.name, part.dose, part.kind) for part in condition.components]
        labels = sorted(annotation.contexts[context].items())
        digest.update(repr((parts, condition.time, labels)).encode())
    digest.update(annotation.group.astype("<i8").tobytes())
    return digest.hexdigest()


def describe(
    annotation: Annotation, about: pd.DataFrame, n_cells: NDArray[np.int64]
) -> list[dict[str, Any]]:
    """Return one dict for each distinct row of `about` that has cells, of plain types."""
    columns = list(about.columns)
    counted = about.assign(n_cells=n_cells)[n_cells > 0].groupby(columns, sort=True)["n_cells"]
    rows = counted.sum().reset_index().to_dict("records")
    for row in rows:
        if "context" in row:
            row["context"] = dict(annotation.contexts[row["context"]])
        if "targets" in row:
            row["targets"] = list(row["targets"])
    return [{str(key): value for key, value in row.items()} for row in rows]


def identity(row: Mapping[str, Any], fields: Sequence[str]) -> str:
    """Return what tells one held-out condition from another."""
    return json.dumps([row[field] for field in fields], sort_keys=True)


def _contexts(
    obs: pd.DataFrame, keys: Sequence[str]
) -> tuple[NDArray[np.int64], tuple[dict[str, str], ...]]:
    """Return the context of each cell and the labels of each context."""
    for key in keys:
        if key not in obs:
            msg = f"obs has no context column {key!r}; it has {sorted(map(str, obs.columns))}."
            raise SchemaError(msg)
        missing = int(obs[key].isna().sum())
        if missing:
            msg = f"obs[{key!r}] is missing for {missing} cells; fill it in or drop these cells."
            raise SchemaError(msg)
    codes, levels = encode_labels(obs, tuple(keys), [])
    return codes, tuple(dict(zip(keys, labels, strict=True)) for labels in levels)


logger = logging.getLogger(__name__)


class MetadataField(CodesField):
    """One column of labels or numbers; missing values are marked, never filled in.

    Labels become the place of the label, -1 where missing; numbers stay, NaN where missing.
    """

    def __init__(self, column: str) -> None:
        super().__init__(METADATA_PREFIX + column)
        self.column = column

    def validate_field(self, adata: AnnData) -> None:
        """Raise `SchemaError` when the column is absent."""
        if self.column not in adata.obs:
            msg = f"Column {self.column!r} is not in adata.obs, which has {sorted(adata.obs)}."
            raise SchemaError(msg)

    def register_field(self, adata: AnnData) -> State:
        """Encode a new screen; labels are sorted."""
        self.validate_field(adata)
        column = adata.obs[self.column]
        state: State = {"column": self.column, "levels": None}
        if not is_numeric(column):
            state["levels"] = sorted({as_label(value) for value in pd.factorize(column)[1]})
            if not state["levels"]:
                msg = f"obs[{self.column!r}] has no label at all; leave it out of the metadata."
                raise SchemaError(msg)
        self._write_values(adata, state)
        return state

    def transfer_field(self, state_registry: State, adata_target: AnnData, **_: object) -> State:
        """Encode new data; a column that is absent, or a label never registered, is missing."""
        if self.column not in adata_target.obs:
            logger.warning("obs has no column %r: it counts as missing.", self.column)
            adata_target.obs[self.attr_key] = _missing(adata_target.n_obs, state_registry)
            return state_registry
        self._write_values(adata_target, state_registry)
        return state_registry

    def get_summary_stats(self, state_registry: State) -> dict[str, int]:
        """Return nothing: metadata have no size that scvi-tools asks for."""
        del state_registry
        return {}

    def _write_values(self, adata: AnnData, state: State) -> None:
        values = encode_metadata(adata.obs[self.column], state["levels"])
        adata.obs[self.attr_key] = values


def is_numeric(column: pd.Series[Any]) -> bool:
    """Whether a column holds numbers by its type; truth values are labels."""
    kind = column.dtype
    return pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_bool_dtype(kind)


def encode_metadata(column: pd.Series[Any], levels: list[str] | None) -> np.ndarray:
    """Return numbers, or the place of each label among `levels`.

    Parameters
    ----------
    column
        Values of cells.
    levels
        Labels; None for numbers.

    Returns
    -------
    `(n_cells,)`: float64 with NaN, or int64 with -1, where missing or not among the levels.

    Raises
    ------
    SchemaError
        When numbers are expected and text is found.
    """
    if levels is None:
        try:
            return np.asarray(pd.to_numeric(column), dtype=np.float64)
        except (ValueError, TypeError) as error:
            msg = f"obs[{column.name!r}] held numbers in training, but now: {error}."
            raise SchemaError(msg) from error
    codes, distinct = pd.factorize(column)
    labels = [as_label(value) for value in distinct]
    place = {level: i for i, level in enumerate(levels)}
    new = sorted(set(labels) - set(place))
    if new:
        logger.warning(
            "obs[%r] has labels that were not registered, which count as missing: %s.",
            column.name,
            ", ".join(new[:10]),
        )
    places = np.array([*(place.get(label, -1) for label in labels), -1], dtype=np.int64)
    return places[codes]


def _missing(n_cells: int, state: State) -> np.ndarray:
    if state["levels"] is None:
        return np.full(n_cells, np.nan)
    return np.full(n_cells, -1, dtype=np.int64)


MuDataMetadataField = MuDataWrapper(MetadataField)
