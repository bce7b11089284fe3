"""Fields that register a screen with scvi-tools: counts, conditions, labels, metadata."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
from scipy import sparse
from scvi.data.fields import LayerField, MuDataWrapper, NumericalObsField

from scvi_perturb._compat import layer_names
from scvi_perturb._core import METADATA_PREFIX, SEPARATOR, Key, SchemaError
from scvi_perturb.data.condition import Condition, as_labels, row_codes
from scvi_perturb.data.condition_table import ConditionTable, encode_obs
from scvi_perturb.data.reader import check_raw_counts, other_matrices

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_perturb.data.condition import ScreenKeys

logger = logging.getLogger(__name__)

State = dict[str, Any]


class CountsField(LayerField):
    """Raw counts; anything else raises and says which layer to use. The matrix is not changed."""

    def __init__(self, layer: str | None) -> None:
        super().__init__(Key.X, layer, is_count_data=False, correct_data_format=False)

    def validate_field(self, adata: AnnData) -> None:
        """Raise `SchemaError` unless the matrix is there and holds what it should."""
        layers = layer_names(adata)
        if self.attr_key is not None and self.attr_key not in layers:
            msg = f"Layer {self.attr_key!r} was not found; the layers are {layers}."
            raise SchemaError(msg)
        if self.attr_key is None and not hasattr(adata, "X"):
            msg = f"A collection of files has layers only ({layers}); pass one as `layer`."
            raise SchemaError(msg)
        super().validate_field(adata)
        names = pd.Index(adata.var_names.astype(str))
        if not names.is_unique:
            twice = names[names.duplicated()].unique()[:3].tolist()
            msg = (
                f"Gene names are not unique (such as {twice}), so a gene cannot be found by its "
                "name; call `adata.var_names_make_unique()`."
            )
            raise SchemaError(msg)
        self._check_values(adata)

    def _check_values(self, adata: AnnData) -> None:
        where = "adata.X" if self.attr_key is None else f"adata.layers[{self.attr_key!r}]"
        check_raw_counts(self.get_field_data(adata), where=where, layers=other_matrices(adata))

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

    def _check_values(self, adata: AnnData) -> None:
        values = self.get_field_data(adata)
        bad = int((~np.isfinite(values.data if hasattr(values, "tocsr") else values)).sum())
        if bad:
            msg = f"{bad} values are not finite; expected real numbers. Fill or drop them first."
            raise SchemaError(msg)


class PerturbationField(NumericalObsField):
    """The condition of each cell: perturbation, and where named its dose, time and kind.

    The state is the :class:`~scvi_perturb.data.ConditionTable` as plain types; new data extend
    it, so unseen combinations and perturbations need no registration anew.
    """

    def __init__(self, keys: ScreenKeys, *, require_control: bool = True) -> None:
        super().__init__(Key.CONDITION, f"_scvi_{Key.CONDITION}")
        self.keys = keys
        self.require_control = require_control

    def validate_field(self, adata: AnnData) -> None:
        """Raise `SchemaError` when a named column is missing."""
        _check_columns(adata.obs, self.keys.columns.values())

    def register_field(self, adata: AnnData) -> State:
        """Encode the conditions of a new screen; a control must be there, unless told otherwise."""
        return self._encode(adata, None, require_control=self.require_control)

    def transfer_field(self, state_registry: State, adata_target: AnnData, **_: object) -> State:
        """Encode new data with the conditions already known; new ones are appended."""
        known = ConditionTable.from_dict(state_registry["table"])
        return self._encode(adata_target, known, require_control=False)

    def get_summary_stats(self, state_registry: State) -> dict[str, int]:
        """Return the number of conditions, control included."""
        return {"n_conditions": len(state_registry["table"]["conditions"])}

    def _encode(
        self, adata: AnnData, known: ConditionTable | None, *, require_control: bool
    ) -> State:
        self.validate_field(adata)
        codes, table = encode_obs(adata.obs, self.keys, known, require_control=require_control)
        adata.obs[self.attr_key] = codes
        return {"table": table.to_dict()}


class NoPerturbationField(PerturbationField):
    """No column says a perturbation: every cell is a control."""

    def validate_field(self, adata: AnnData) -> None:
        """Accept anything."""

    def _encode(
        self, adata: AnnData, known: ConditionTable | None, *, require_control: bool
    ) -> State:
        del known, require_control
        adata.obs[self.attr_key] = np.zeros(adata.n_obs, dtype=np.int64)
        return {"table": ConditionTable().to_dict()}


class LabelField(NumericalObsField):
    """Labels of one or several columns as one code, e.g. cell type and donor as context."""

    def __init__(self, registry_key: str, columns: tuple[str, ...]) -> None:
        super().__init__(registry_key, f"_scvi_{registry_key}")
        self.columns = columns

    def validate_field(self, adata: AnnData) -> None:
        """Raise `SchemaError` when a column is missing or a label is."""
        _check_labels(adata.obs, self.columns)

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
        adata.obs[self.attr_key] = codes
        return {"columns": list(self.columns), "levels": [list(row) for row in levels]}


def encode_labels(
    obs: pd.DataFrame, columns: tuple[str, ...], levels: list[tuple[str, ...]]
) -> tuple[NDArray[np.int64], list[tuple[str, ...]]]:
    """Return a code per row and the labels the codes stand for; `levels` keep their codes.

    Labels are text: 1, 1.0 and "1" are the same.
    """
    if not columns:
        return np.zeros(len(obs), dtype=np.int64), [()]
    frame = pd.DataFrame({c: as_labels(obs[c], missing="nan") for c in columns})
    first, inverse = row_codes(frame, columns)
    rows = list(frame.iloc[first].itertuples(index=False, name=None))
    extended = [*levels, *sorted(set(rows) - set(levels))]
    place = {row: i for i, row in enumerate(extended)}
    return np.array([place[row] for row in rows], dtype=np.int64)[inverse], extended


class LibraryField(NumericalObsField):
    """Library size of each cell from a column, for files that hold only some of the genes."""

    def __init__(self, registry_key: str, column: str | None) -> None:
        super().__init__(registry_key, column, required=False)

    def validate_field(self, adata: AnnData) -> None:
        """Raise `SchemaError` unless the column is there, positive and finite."""
        _check_columns(adata.obs, [self.attr_key])
        sizes = pd.to_numeric(adata.obs[self.attr_key], errors="coerce").to_numpy(dtype=float)
        bad = int((~(sizes > 0) | ~np.isfinite(sizes)).sum())
        if bad:
            msg = f"obs[{self.attr_key!r}] is not positive in {bad} cells; a library size must be."
            raise SchemaError(msg)


class MetadataField(NumericalObsField):
    """One column of labels or numbers; missing values are marked, never filled in.

    Labels become the place of the label, -1 where missing; numbers stay, NaN where missing.
    """

    def __init__(self, column: str) -> None:
        super().__init__(METADATA_PREFIX + column, f"_scvi_{METADATA_PREFIX}{column}")
        self.column = column

    def validate_field(self, adata: AnnData) -> None:
        """Raise `SchemaError` when the column is absent."""
        _check_columns(adata.obs, [self.column])

    def register_field(self, adata: AnnData) -> State:
        """Encode a new screen; labels are sorted."""
        self.validate_field(adata)
        column = adata.obs[self.column]
        levels = None if is_numeric(column) else sorted({*as_labels(column)} - {None})
        if levels == []:
            msg = f"obs[{self.column!r}] has no label at all; leave it out of the metadata."
            raise SchemaError(msg)
        adata.obs[self.attr_key] = encode_metadata(column, levels)
        return {"column": self.column, "levels": levels}

    def transfer_field(self, state_registry: State, adata_target: AnnData, **_: object) -> State:
        """Encode new data; a column that is absent, or a label never registered, is missing."""
        obs = adata_target.obs
        if self.column in obs:
            column = obs[self.column]
        else:
            logger.warning("obs has no column %r: it counts as missing.", self.column)
            column = pd.Series(np.nan, index=obs.index)
        obs[self.attr_key] = encode_metadata(column, state_registry["levels"])
        return state_registry


MuDataCountsField = MuDataWrapper(CountsField)
MuDataPerturbationField = MuDataWrapper(PerturbationField)
MuDataLabelField = MuDataWrapper(LabelField)
MuDataLibraryField = MuDataWrapper(LibraryField)


def is_numeric(column: pd.Series[Any]) -> bool:
    """Whether a column holds numbers by its type; truth values are labels."""
    kind = column.dtype
    return pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_bool_dtype(kind)


def encode_metadata(column: pd.Series[Any], levels: list[str] | None) -> np.ndarray:
    """Return numbers, or the place of each label among `levels`, `(n_cells,)`.

    Numbers (`levels` None) are float64 with NaN where missing; places are int64 with -1 where
    missing or not among the levels.

    Raises `SchemaError`: When numbers are expected and text is found.
    """
    if levels is None:
        try:
            return np.asarray(pd.to_numeric(column), dtype=np.float64)
        except (ValueError, TypeError) as error:
            msg = f"obs[{column.name!r}] held numbers in training, but now: {error}."
            raise SchemaError(msg) from error
    labels = as_labels(column)
    new = sorted({*labels} - {*levels, None})
    if new:
        logger.warning(
            "obs[%r] has labels that were not registered, which count as missing: %s.",
            column.name,
            ", ".join(new[:10]),
        )
    return (
        pd.Index(levels, dtype=object).get_indexer(pd.Index(labels, dtype=object)).astype(np.int64)
    )


def _check_columns(obs: pd.DataFrame, columns: Iterable[str]) -> None:
    """Raise unless all columns are there."""
    absent = [column for column in columns if column not in obs]
    if absent:
        what = f"Columns {absent} are" if absent[1:] else f"Column {absent[0]!r} is"
        msg = f"{what} not in adata.obs, which has {sorted(map(str, obs.columns))}."
        raise SchemaError(msg)


def _check_labels(obs: pd.DataFrame, columns: Sequence[str]) -> None:
    """Raise unless all columns are there and have no missing label."""
    _check_columns(obs, columns)
    for column in columns:
        n_missing = int(obs[column].isna().sum())
        if n_missing:
            msg = f"obs[{column!r}] has {n_missing} missing labels; fill or drop those cells."
            raise SchemaError(msg)


@dataclass(frozen=True, slots=True)
class Annotation:
    """Cells grouped by condition and context.

    `group`: Group of each cell, `(n_cells,)`: a row of `groups`. `groups`: One row a group:
    `perturbation`, `dose`, `time`, `perturbation_type` (canonical labels), `control` (bool),
    `context` (index into `contexts`). `conditions`: Condition of each group. `contexts`: Labels of
    each context, by context key. `separator`: What stands between the components of a label.
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


def read_annotation(adata: AnnData, keys: ScreenKeys) -> Annotation:
    """Group the cells of a screen by condition and context.

    Raises `SchemaError`: If a column is absent, or a perturbation or context label is missing.
    """
    codes, table = encode_obs(adata.obs, keys)
    _check_labels(adata.obs, keys.context)
    context, labels = encode_labels(adata.obs, keys.context, [])
    contexts = tuple(dict(zip(keys.context, row, strict=True)) for row in labels)
    distinct, group = np.unique(codes * len(contexts) + context, return_inverse=True)
    code = distinct // len(contexts)
    conditions = tuple(table.conditions[c] for c in code)
    groups = table.frame(conditions)
    groups["control"] = code == 0
    groups["context"] = distinct % len(contexts)
    return Annotation(group.astype(np.int64), groups, conditions, contexts, keys.separator)


#: Of data of which no column says a condition.
WITHOUT_CONDITIONS: Final = Annotation(
    np.zeros(0, np.int64), pd.DataFrame({"context": [0]}), (Condition(),), ({},)
)
#: Values that are hashed at a time, those that are zero counted.
_BLOCK: Final = 1 << 22


def data_hash(
    adata: AnnData,
    keys: ScreenKeys,
    *,
    annotation: Annotation | None = None,
    columns: Iterable[str] = (),
    counts: object = None,
) -> str:
    """Return a fingerprint of the content of a screen, as 64 hex digits.

    It depends on counts, genes, cells and their order, on conditions, contexts, batches and library
    sizes, and on further `columns`; not on whether counts are sparse, dense or on disk, whether a
    column is text, categorical or integer, nor on the order of components in a label. Values are
    compared in single precision, as models read them. Memory does not grow with the number of
    cells. `annotation` and `counts` are those of the data by these keys, if they were read before.

    Raises `SchemaError`: If a column of the keys is absent, or a label is missing.
    """
    digest = hashlib.sha256(repr(adata.shape).encode())
    for names in (adata.obs_names, adata.var_names):
        digest.update("\x1f".join(map(str, names)).encode() + b"\x1e")
    found = read_annotation(adata, keys) if annotation is None else annotation
    for condition, context in zip(found.conditions, found.groups["context"], strict=True):
        parts = [(part.name, part.dose, part.kind) for part in condition.components]
        labels = sorted(found.contexts[context].items())
        digest.update(repr((parts, condition.time, labels)).encode())
    digest.update(found.group.astype("<i8").tobytes())
    for column in (keys.batch, keys.library, *columns):
        if column is not None and column in adata.obs:
            for part in _column(adata, column):
                digest.update(part)
    if counts is None:
        if keys.layer is not None and keys.layer not in (layers := layer_names(adata)):
            msg = f"Layer {keys.layer!r} was not found; the layers are {layers}."
            raise SchemaError(msg)
        counts = adata.X if keys.layer is None else adata.layers[keys.layer]
    for part in _counts(counts, adata.shape):
        digest.update(part)
    return digest.hexdigest()


def _column(adata: AnnData, column: str) -> Iterator[Any]:
    values = adata.obs[column]
    yield f"\x1e{column}".encode()
    if is_numeric(values) and values.dtype.kind == "f":
        yield values.to_numpy("<f8")
        return
    codes, levels = encode_labels(adata.obs, (column,), [])
    yield repr(levels).encode()
    yield codes.astype("<i8")


def _counts(matrix: Any, shape: tuple[int, int]) -> Iterator[Any]:  # noqa: ANN401
    """Yield lengths, places and values of the rows of the counts, block by block."""
    if matrix is None:
        return
    if sparse.issparse(matrix) and getattr(matrix, "format", "csr") != "csr":
        matrix = matrix.tocsr()
    n_rows = max(1, _BLOCK // max(1, shape[1]))
    for start in range(0, shape[0], n_rows):
        rows = _block(matrix[start : start + n_rows])
        yield np.diff(rows.indptr).astype("<i4")
        yield rows.indices.astype("<i4", copy=False)
        yield rows.data.astype("<f4", copy=False)


def _block(block: Any) -> sparse.csr_matrix:  # noqa: ANN401 - any storage
    """Return rows as CSR in one form; those of the data themselves are not touched."""
    if hasattr(block, "compute"):  # dask arrays are read block by block
        block = block.compute()
    rows = sparse.csr_matrix(block)
    if not rows.has_canonical_format or not rows.data.all():
        rows = rows.copy()
        rows.sum_duplicates()
        rows.eliminate_zeros()
    return rows
