"""What predictors are asked for, the cells that they read, and the reference cells of a request."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Protocol, Self, TypeAlias, runtime_checkable

import numpy as np
import pandas as pd
from scipy import sparse

from scvi_perturb._compat import layer_names
from scvi_perturb._core import Column, SchemaError
from scvi_perturb.data.condition import as_labels
from scvi_perturb.data.condition_table import ConditionTable, encode_obs
from scvi_perturb.data.reader import align_genes, check_raw_counts
from scvi_perturb.data.request import Context, RequestRow, parse_conditions, request_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_perturb.data.condition import Condition, ScreenKeys
    from scvi_perturb.data.split.record import Split
    from scvi_perturb.predictors.profiles import TrainingProfiles

Conditions: TypeAlias = "Sequence[str] | pd.DataFrame"


@runtime_checkable
class Predictor(Protocol):
    """Anything that learns from a screen and predicts the mean of conditions."""

    def fit(
        self, adata: AnnData, split: Split | None = None, *, keys: ScreenKeys | None = None
    ) -> Self:
        """Learn from the cells of `split` that may be seen, or from all cells.

        No expression value, cell number or library size of a held-out condition is received:
        with the test cells spoilt or taken away, the predictor that is learned is the same.

        Parameters
        ----------
        adata
            A screen with raw counts, or what the predictor says it learns from.
        split
            Its training cells are seen, and its validation cells by what has nothing to tune.
        keys
            Where conditions, contexts and counts are; None takes what `pp.harmonize` recorded or
            writes.
        """
        ...

    def predict(self, conditions: Conditions, *, reference: AnnData | None = None) -> AnnData:
        """Return one row a condition: `X` its mean, `layers["lfc"]` its change from control.

        Parameters
        ----------
        conditions
            A list of names, or a table with the columns `perturbation`, `dose`, `time` and the
            context's, as far as the screen has them. A context that is not given is the
            reference's; a dose or time that is not given is the only one that the screen has.
        reference
            Control cells (raw counts) from which to predict; None takes the training controls
            of the same context.
        """
        ...


@runtime_checkable
class CellPredictor(Predictor, Protocol):
    """A predictor that also returns populations of cells."""

    def sample(
        self,
        conditions: Conditions,
        *,
        reference: AnnData | None = None,
        n_samples: int | None = None,
        seed: int | None = None,
    ) -> AnnData:
        """Return cells, as :meth:`CellSource.sample` does."""
        ...


_CANONICAL: Final = {
    "perturbation": Column.PERTURBATION,
    "dose": Column.DOSE,
    "time": Column.TIME,
    "kind": Column.KIND,
}


def parse_requests(
    conditions: Conditions, *, keys: ScreenKeys, known: Sequence[Condition] = ()
) -> list[RequestRow]:
    """Return one request a row.

    `conditions`: Names, or a table. The condition's columns may have the names of `keys` or the
    canonical ones (`perturbation`, `dose`, `time`, `perturbation_type`). `keys`: How the screen
    describes conditions and contexts; a context column that is absent or empty stays open (None).
    `known`: Conditions of the screen, from which a dose, time or kind that is left out is taken
    where there is one only; see `parse_conditions`. None known: doses have to be given. Raises
    `SchemaError`: If nothing is asked, a dose, time or kind is left out of which the screen has
    several, or the table has a column that would be ignored in silence.
    """
    table = request_table(conditions, replace(keys, batch=None))  # which changes no mean
    contexts = context_labels(table, keys.context)
    parsed = parse_conditions(table, keys, known)
    return [RequestRow(one, context) for one, context in zip(parsed, contexts, strict=True)]


def context_labels(obs: pd.DataFrame, context_keys: Sequence[str]) -> list[Context]:
    """Return each row's context; None where a column is absent or has no value."""
    labels: list[Sequence[str | None]] = []
    for key in context_keys:
        if key in obs:
            labels.append(as_labels(obs[key]).tolist())
        else:
            labels.append([None] * len(obs))
    return list(zip(*labels, strict=True)) if labels else [()] * len(obs)


def request_frame(requests: Sequence[RequestRow], keys: ScreenKeys) -> pd.DataFrame:
    """Return requests as the `obs` of an answer, under the names of the screen's columns."""
    table = ConditionTable(control=keys.control, separator=keys.separator)
    text = table.frame([request.condition for request in requests])
    columns: dict[str, Any] = {
        column: text[_CANONICAL[role]] for role, column in keys.columns.items()
    }
    for i, key in enumerate(keys.context):
        columns[key] = pd.Categorical([request.context[i] for request in requests])
    return pd.DataFrame(columns).set_index(text.index.astype(str))


#: Cells that are read at a time.
CHUNK: Final = 16_384


def seen_cells(adata: AnnData, split: Split | None) -> NDArray[np.int64]:
    """Return the cells that may be seen, in the order of the file: training and validation.

    What has nothing to tune needs no validation cells and learns from them too.
    """
    if split is None:
        return np.arange(adata.n_obs)
    split.check(adata)
    return np.sort(np.concatenate([split.train, split.validation])).astype(np.int64)


def read_chunks(
    adata: AnnData,
    layer: str | None,
    cells: NDArray[np.int64],
    *,
    effects: bool = False,
    what: str = "adata",
) -> Iterator[tuple[slice, Any]]:
    """Read some cells in turn, and check them; the values of no other cell are looked at.

    `adata`: A screen; in memory, backed, or a collection of files. `layer`: Where the values are;
    None is `X`. `cells`: Rows to read, sorted. `effects`: Whether the rows are changes from
    control, which need only be finite, and not raw counts. `what`: What `adata` is, for messages.
    Raises `SchemaError`: If there is no such layer, or the rows are not what they should be.

    Yields
    ------
    A slice of `cells` and its rows, `(n, n_genes)`, an array or CSR.
    """
    held = {"X": adata.X} if hasattr(adata, "X") else {}
    held |= {name: adata.layers[name] for name in layer_names(adata)}
    if layer is not None and layer not in held:
        msg = f"{what} has no layer {layer!r}; found {sorted(held.keys() - {'X'})}."
        raise SchemaError(msg)
    values = held.pop(layer or "X", _OfFiles(adata))
    where = f"{what}.X" if layer is None else f"{what}.layers[{layer!r}]"
    if values is None:
        msg = f"{where} is empty (None); put the values there, or pass `layer`."
        raise SchemaError(msg)
    # Rows of column-compressed counts can only be read by scanning all of them.
    if sparse.issparse(values) and values.format != "csr":
        values = values.tocsr()
    for start in range(0, len(cells), CHUNK):
        part = slice(start, start + CHUNK)
        rows = _rows_at(values, cells[part])
        if effects:
            check_effects(rows, where=where, names=adata.obs_names[cells[part]])
        else:
            check_raw_counts(rows, where=where, layers=held)
        yield part, rows


def _rows_at(values: Any, chosen: NDArray[np.int64]) -> Any:  # noqa: ANN401
    """Return some rows, sorted; neighbours in a file are read in one piece."""
    first, stop = int(chosen[0]), int(chosen[-1]) + 1
    if isinstance(values, _OfFiles) or stop - first > 2 * len(chosen):
        return values[chosen]
    rows = values[first:stop]
    return rows if len(chosen) == stop - first else rows[chosen - first]


class _OfFiles:
    """Rows of `X` of a collection of files, which has no `X` of its own."""

    def __init__(self, collection: Any) -> None:  # noqa: ANN401
        self._collection = collection

    def __getitem__(self, rows: NDArray[np.int64]) -> Any:  # noqa: ANN401
        return self._collection[rows].X


def read_counts(
    adata: AnnData, layer: str | None, cells: NDArray[np.int64], *, what: str = "adata"
) -> Any:  # noqa: ANN401
    """Return the raw counts of some cells, `(n_cells, n_genes)`; see `read_chunks`."""
    parts = [rows for _, rows in read_chunks(adata, layer, cells, what=what)]
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return sparse.csr_matrix((0, adata.n_vars))
    stack = sparse.vstack if sparse.issparse(parts[0]) else np.concatenate
    return sparse.csr_matrix(stack(parts)) if sparse.issparse(parts[0]) else stack(parts)


def library_sizes(adata: AnnData, column: str) -> NDArray[np.float64]:
    """Return the library sizes that a screen states, `(n_cells,)`.

    Raises `SchemaError`: If the column is absent, or holds anything but numbers above 0.
    """
    if column not in adata.obs:
        msg = f"obs has no column {column!r}; it has {sorted(map(str, adata.obs))}."
        raise SchemaError(msg)
    stated = pd.to_numeric(adata.obs[column].astype(object), errors="coerce")
    sizes = stated.to_numpy(np.float64, na_value=np.nan)
    wrong = ~(np.isfinite(sizes) & (sizes > 0))
    if wrong.any():
        msg = (
            f"obs[{column!r}] is no library size for {int(wrong.sum())} of {len(sizes)} cells, "
            f"such as {adata.obs[column].iloc[int(np.argmax(wrong))]}; expected numbers above 0. "
            "Drop these cells, or leave `library` out to sum the counts."
        )
        raise SchemaError(msg)
    return sizes


def check_effects(rows: Any, *, where: str, names: pd.Index) -> None:  # noqa: ANN401
    """Raise unless all values are finite numbers.

    `rows`: Changes from control, `(n, n_genes)`, an array or CSR. `where`: What they are, for the
    message. `names`: Of the rows. Raises `SchemaError`: Naming the first row that has NaN or an
    infinite value.
    """
    data = rows.data if sparse.issparse(rows) else np.asarray(rows)
    if data.dtype.kind not in "buif":
        msg = f"{where} has values of type {data.dtype}, which are not numbers."
        raise SchemaError(msg)
    wrong = ~np.isfinite(data)
    if not wrong.any():
        return
    if sparse.issparse(rows):
        bad = np.unique(np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))[wrong])
    else:
        bad = np.flatnonzero(wrong.any(axis=1))
    msg = (
        f"{where} has NaN or infinite values in {len(bad)} rows, the first {names[bad[0]]!r}; "
        "expected finite changes from control. Drop these rows or the genes that were not "
        "measured, or fill the gaps in."
    )
    raise SchemaError(msg)


def aligned_counts(adata: AnnData, layer: str | None, genes: pd.Index) -> Any:  # noqa: ANN401
    """Return the counts of reference cells, with the genes in the order of training.

    Raises `SchemaError`: If a gene of training is absent, a name comes twice, or counts are not
    raw.
    """
    aligned = align_genes(adata, list(genes))
    return read_counts(aligned, layer, np.arange(adata.n_obs), what="reference")


def read_request(
    conditions: Conditions, reference: AnnData | None, profiles: TrainingProfiles
) -> tuple[list[RequestRow], ControlCells | None]:
    """Return what is asked, one request a row, and the control cells given, if any.

    A context that a request leaves open is the reference's, where that has one.

    Raises `SchemaError`: If either does not fit what was learned.
    """
    if reference is not None and profiles.kind == "effects":
        msg = (
            'With profile="effects" predictions are changes, to which control cells add '
            "nothing. Leave `reference` out and name the context in the request."
        )
        raise SchemaError(msg)
    requests = parse_requests(conditions, keys=profiles.keys, known=profiles.known)
    if reference is None:
        return requests, None
    given = ControlCells.read(reference, profiles)
    return [replace(r, context=given.completed(r.context)) for r in requests], given


@dataclass(frozen=True, slots=True)
class ControlCells:
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

        Raises `SchemaError`: If genes are missing, counts are not raw, cells are none, or some are
        perturbed.
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
        counts = aligned_counts(adata, profiles.keys.layer, profiles.var_names)
        contexts = context_labels(adata.obs, profiles.keys.context)
        return cls(counts, contexts, adata.obs_names)

    def rows(self, context: Context) -> NDArray[np.intp]:
        """Return the cells that do not contradict `context`.

        Raises `SchemaError`: If all do.
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
