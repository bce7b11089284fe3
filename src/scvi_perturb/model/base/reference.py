"""What a request is answered with: ids of its components, reference cells, cells to draw."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Self

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from scvi_perturb._compat import layer_names
from scvi_perturb._core import Key, SchemaError, UnknownPerturbationError, add_by_group
from scvi_perturb.data.condition import Component, Condition, as_labels, distinct_rows
from scvi_perturb.data.condition_table import ConditionArrays, ConditionTable
from scvi_perturb.data.fields import encode_labels
from scvi_perturb.data.matching import tell_batch_effects
from scvi_perturb.data.reader import (
    ScreenReader,
    align_genes,
    check_adata,
    check_mudata,
    check_raw_counts,
    other_matrices,
    read_rows,
    row_sums,
)
from scvi_perturb.data.request import Request, RequestRow
from scvi_perturb.module.base import ConditionTensors
from scvi_perturb.similarity.novelty import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Iterable

    from anndata import AnnData
    from mudata import MuData

    from scvi_perturb._core import Batch
    from scvi_perturb.data.screen import Screen
    from scvi_perturb.features.store import PerturbationFeatures

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Reference:
    """Control cells to start from.

    `counts`: Raw counts, `(n_cells, n_genes)`, any row-readable storage. `library`: Library sizes,
    `(n_cells,)`. `context`, `batch`: Codes of training, `(n_cells,)`; labels never trained on have
    later codes. `labels`: Context columns and batch as text, one row a cell; index = names of the
    cells. `is_given`: Whether they are the user's, and not the training controls. `sums`: Of
    training controls that are a sample, summed counts and library sizes of all by context and
    batch.
    """

    counts: object
    library: np.ndarray
    context: np.ndarray
    batch: np.ndarray
    labels: pd.DataFrame
    is_given: bool = False
    sums: ControlSums | None = None

    def __len__(self) -> int:
        """Return the number of cells."""
        return len(self.library)

    def read(self, rows: np.ndarray) -> Batch:
        """Return the cells at `rows` as a batch."""
        counts = read_rows(self.counts, rows)
        dense = counts.toarray() if sparse.issparse(counts) else np.asarray(counts)
        return {
            Key.X: torch.from_numpy(np.ascontiguousarray(dense, dtype=np.float32)),
            Key.LIBRARY: torch.from_numpy(self.library[rows].astype(np.float32)),
            Key.CONTEXT: torch.from_numpy(self.context[rows]),
            Key.BATCH: torch.from_numpy(self.batch[rows]),
            Key.CONDITION: torch.zeros(len(rows), dtype=torch.long),
        }

    def profile(self, rows: np.ndarray) -> np.ndarray:
        """Return the proportions of the summed counts of `rows`, `(n_genes,)`.

        Where these are all that a sample holds of some contexts and batches, those of all training
        controls there.
        """
        if self.sums is not None:
            found = self.sums.shares(self, rows)
            if found is not None:
                return found
        counts = read_rows(self.counts, rows)
        total = np.asarray(counts.sum(axis=0), dtype=np.float64).ravel()
        return total / self.library[rows].sum()

    def rows_for(self, request: Request, row: int) -> np.ndarray:
        """Return the cells that answer a row of a request.

        Raises `SchemaError`: When no control cell is in the context asked for.
        """
        keep = np.ones(len(self), dtype=bool)
        for column, label in request.where(row).items():
            if column in self.labels:
                keep &= self.labels[column].to_numpy() == label
        if not keep.any():
            found = self.labels.drop_duplicates().head(5).to_dict(orient="records")
            msg = (
                f"No control cell is in the context {request.where(row)}; there are controls in "
                f"{found}, ... Pass control cells of that context as `reference=`."
            )
            raise SchemaError(msg)
        return np.flatnonzero(keep)


@dataclass(frozen=True, slots=True)
class Plan:
    """The cells to draw for a request: one entry a cell, grouped by row of the request.

    `request`, `cells`: What is asked, and the reference cells. `row`: Row of the request of each
    entry, `(n_cells,)`. `reference`: Reference cell that it starts from, `(n_cells,)`. `draw`:
    Number of the draw within its row, `(n_cells,)`.
    """

    request: Request
    cells: Reference
    row: np.ndarray
    reference: np.ndarray
    draw: np.ndarray

    def __len__(self) -> int:
        """Return the number of cells."""
        return len(self.row)

    @property
    def library(self) -> np.ndarray:
        """Library size of the reference cell of each entry, `(n_cells,)`."""
        return self.cells.library[self.reference]

    @classmethod
    def make(
        cls,
        request: Request,
        cells: Reference,
        n_samples: int | Sequence[int] | None,
        seed: int | None,
    ) -> Self:
        """Choose reference cells for every row.

        Each row draws `n_samples` of the control cells in its context: all of them, as often
        as whole rounds fit, and a random choice of them for the rest, so that cells are as
        evenly used as can be. Several numbers are those of each row. None takes every control
        cell once.
        """
        if isinstance(n_samples, int) and n_samples < 1:
            msg = (
                f"n_samples={n_samples} must be at least 1, or None for one cell a reference cell."
            )
            raise ValueError(msg)
        random = np.random.default_rng(seed)
        entries = []
        pools: dict[tuple[tuple[str, str], ...], np.ndarray] = {}
        for i in range(len(request)):
            where = tuple(request.where(i).items())
            if where not in pools:
                pools[where] = cells.rows_for(request, i)
            pool = pools[where]
            given = n_samples[i] if isinstance(n_samples, Sequence) else n_samples
            n = len(pool) if given is None else given
            rounds = [random.permutation(pool) for _ in range(-(-n // len(pool)))]
            chosen = np.concatenate([np.sort(pool)] if n_samples is None else rounds)[:n]
            entries.append((np.full(n, i), chosen, np.arange(n)))
        row, reference, draw = (np.concatenate(part) for part in zip(*entries, strict=True))
        return cls(request, cells, row, reference, draw)

    def places(self, columns: Sequence[str]) -> tuple[list[RequestRow], np.ndarray]:
        """Return each condition in each context of its reference cells, and its row.

        `columns`: The context columns.
        """
        labels = (
            self.cells.labels.reindex(columns=list(columns)).fillna(UNKNOWN).to_numpy(dtype=object)
        )
        asked, row = [], []
        ends = np.searchsorted(self.row, np.arange(len(self.request) + 1))
        for i, condition in enumerate(self.request.conditions):
            used = labels[np.unique(self.reference[ends[i] : ends[i + 1]])]
            for column, label in self.request.where(i).items():
                used[:, list(columns).index(column)] = label
            contexts = sorted({tuple(map(str, context)) for context in used})
            asked += [RequestRow(condition, context) for context in contexts]
            row += [i] * len(contexts)
        return asked, np.array(row)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Ids of components: those of the screen first, then those known by features alone.

    `table`: Conditions of the screen. `features`: What is known of perturbations beyond the screen,
    or None.
    """

    table: ConditionTable
    features: PerturbationFeatures | None

    @property
    def names(self) -> tuple[str, ...]:
        """Name of every id."""
        featured = () if self.features is None else tuple(self.features.names)
        return (*(name for name, _ in self.table.components), *featured)

    def feature_tensors(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Return values and mask of each modality, one row an id."""
        if self.features is None:
            return {}
        table = self.features.table(self.names)
        return {k: (torch.from_numpy(v), torch.from_numpy(m)) for k, (v, m) in table.items()}

    def tensors(self, conditions: Sequence[Condition], seen: np.ndarray) -> ConditionTensors:
        """Return conditions as tensors.

        `conditions`: What is asked for. `seen`: Whether each id was trained on, `(n_ids,)`. Raises
        `UnknownPerturbationError`: When a component was neither trained on nor has features.
        """
        n, m = len(conditions), max([len(c.components) for c in conditions] + [1])
        component, dose = np.zeros((n, m), dtype=np.int64), np.ones((n, m), dtype=np.float32)
        mask, time = np.zeros((n, m), dtype=bool), np.full(n, np.nan, dtype=np.float32)
        for i, condition in enumerate(conditions):
            for j, part in enumerate(condition.components):
                component[i, j] = self._id(part, seen)
                dose[i, j], mask[i, j] = part.dose, True
            if condition.time is not None:
                time[i] = condition.time
        return to_tensors(ConditionArrays(component, dose, mask, time))

    def known(self, seen: np.ndarray) -> list[str]:
        """Return the names that can be asked for."""
        trained = [name for (name, _), s in zip(self.table.components, seen, strict=False) if s]
        return sorted({*trained, *(() if self.features is None else self.features.names)})

    def id_of(self, name: str, seen: np.ndarray) -> int:
        """Return the id of a name, of its first kind where it has several."""
        kinds = [kind for known, kind in self.table.components if known == name]
        return self._id(Component(name, kind=kinds[0] if kinds else ""), seen)

    def _id(self, part: Component, seen: np.ndarray) -> int:
        place = self.table.find_component(part.name, part.kind)
        featured = self.features is not None and part.name in self.features
        if place is not None and (seen[place] or featured):
            return place
        if featured:
            return self.table.n_components + self.features.place(part.name)  # type: ignore[union-attr]
        raise UnknownPerturbationError(
            part.name,
            self.known(seen),
            control=self.table.control,
            separator=self.table.separator,
        )


def warn_of_batches(
    screen: Screen, pairs: Sequence[tuple[int, int]], asked: Sequence[Condition] | None = None
) -> None:
    """Log which effects cannot be told from their batches.

    `pairs`: Codes of their condition and context. `asked`: Conditions of which one must hold a name
    of theirs; None takes all.
    """
    names = None if asked is None else {name for condition in asked for name in condition.names}
    named = [
        " in ".join(filter(None, (str(condition), " / ".join(screen.contexts[context]))))
        for condition, context in ((screen.table.conditions[c], x) for c, x in pairs)
        if names is None or not names.isdisjoint(condition.names)
    ]
    if named:
        logger.warning("%s", tell_batch_effects(named))


def to_tensors(arrays: ConditionArrays) -> ConditionTensors:
    """Return the conditions of a table as tensors; where there is no component, dose one."""
    dose = np.where(arrays.mask, arrays.dose, 1.0).astype(np.float32)
    return ConditionTensors(
        torch.from_numpy(arrays.component),
        torch.from_numpy(dose),
        torch.from_numpy(arrays.mask),
        torch.from_numpy(arrays.time),
    )


def reference_doses(table: ConditionTable, codes: Iterable[int], n_ids: int) -> torch.Tensor:
    """Return the median dose of each component over `codes`; the overall median for others."""
    doses: dict[tuple[str, str], list[float]] = {}
    for code in codes:
        for part in table.conditions[code].components:
            doses.setdefault((part.name, part.kind), []).append(part.dose)
    every = [d for own in doses.values() for d in own] or [1.0]
    result = np.full(n_ids, np.median(every), dtype=np.float32)
    for i, pair in enumerate(table.components):
        if pair in doses:
            result[i] = np.median(doses[pair])
    return torch.from_numpy(result)


#: Training controls that are kept with a model: of each context, and in all.
KEPT_OF_CONTEXT: Final = 8_192
KEPT: Final = 65_536


@dataclass(frozen=True, slots=True)
class ControlSums:
    """Sums over all training controls of each context and batch.

    `context`, `batch`: Codes, `(n,)`. `counts`: `(n, n_genes)`. `library`: `(n,)`.
    """

    context: np.ndarray
    batch: np.ndarray
    counts: np.ndarray
    library: np.ndarray

    @classmethod
    def of(cls, reader: ScreenReader, rows: np.ndarray) -> Self:
        """Add up control cells, block by block."""
        codes = np.stack([reader.codes[key][rows] for key in (Key.CONTEXT, Key.BATCH)], axis=1)
        pairs, group = np.unique(codes, axis=0, return_inverse=True)
        group = group.reshape(-1)
        counts, library = np.zeros((len(pairs), reader.counts.shape[1])), np.zeros(len(pairs))
        for part in np.array_split(np.arange(len(rows)), -(-len(rows) // KEPT_OF_CONTEXT)):
            cells = read_rows(reader.counts, rows[part])
            add_by_group(counts, group[part], cells)
            given = reader.library
            size = row_sums(cells, len(part)) if given is None else given[rows[part]]
            library += np.bincount(group[part], size, minlength=len(pairs))
        return cls(pairs[:, 0], pairs[:, 1], counts, library)

    def shares(self, cells: Reference, rows: np.ndarray) -> np.ndarray | None:
        """Return the shares of summed counts where `rows` are whole contexts and batches."""
        chosen = np.zeros(len(cells), bool)
        chosen[rows] = True
        total, library = np.zeros(self.counts.shape[1]), 0.0
        for i in range(len(self.library)):
            here = (cells.context == self.context[i]) & (cells.batch == self.batch[i])
            if chosen[here].any():
                if not chosen[here].all():
                    return None
                total, library = total + self.counts[i], library + self.library[i]
        return total / library


def kept_controls(
    reader: ScreenReader, train: np.ndarray, screen: Screen, names: pd.Index
) -> Reference:
    """Return the training controls that requests start from when none are given.

    All of them, unless a context has more than 8,192, or all have more than 65,536: then as many of
    each such context, drawn evenly from its batches by a fixed seed, and the sums over all.

    `train`: Training cells. `names`: Of all cells.
    """
    allowed = np.sort(train)
    rows = allowed[reader.codes[Key.CONDITION][allowed] == 0]
    context, batch = reader.codes[Key.CONTEXT][rows], reader.codes[Key.BATCH][rows]
    distinct = np.unique(context)
    most = min(KEPT_OF_CONTEXT, KEPT // max(len(distinct), 1))
    random = np.random.default_rng(0).random(len(rows))
    chosen = []
    for one in distinct:
        own = np.flatnonzero(context == one)
        own = own[np.lexsort((random[own], batch[own]))]
        if len(own) > most:
            first = np.flatnonzero(np.diff(batch[own], prepend=-1))
            even = np.linspace(0, len(own) - 1, most).astype(int)
            own = own[np.union1d(even, first)]
        chosen.append(own)
    kept = np.sort(np.concatenate(chosen)) if chosen else np.arange(0)
    made = reference_from_screen(reader, rows[kept], screen, names)
    if len(kept) < len(rows):
        made.sums = ControlSums.of(reader, rows)
    return made


def reference_from_screen(
    reader: ScreenReader, rows: np.ndarray, screen: Screen, names: pd.Index
) -> Reference:
    """Return control cells `rows` of the registered screen."""
    context, batch = reader.codes[Key.CONTEXT][rows], reader.codes[Key.BATCH][rows]
    labels = pd.DataFrame(index=names[rows])
    for i, column in enumerate(screen.keys.context):
        labels[column] = [screen.contexts[code][i] for code in context]
    if screen.keys.batch is not None:
        labels[screen.keys.batch] = [screen.batches[code][0] for code in batch]
    counts = read_rows(reader.counts, rows)
    library = row_sums(counts, len(rows)) if reader.library is None else reader.library[rows]
    return Reference(counts, library, context, batch, labels)


def reference_from_adata(adata: AnnData | MuData, screen: Screen) -> Reference:
    """Return the cells of new data, which need not be registered.

    Raises `SchemaError`: When genes are missing, counts are not raw, cells are not all controls, or
    there is no library size where the model needs one.
    """
    if screen.rna_modality is not None and hasattr(adata, "mod"):
        check_mudata(adata, screen.rna_modality)
        adata = adata.mod[screen.rna_modality]
    check_adata(adata, "reference")
    adata = align_genes(adata, screen.genes)
    if adata.n_obs == 0:
        msg = "The reference has no cells; pass at least one control cell."
        raise SchemaError(msg)
    if screen.keys.layer is not None and screen.keys.layer not in adata.layers:
        msg = f"The reference has no layer {screen.keys.layer!r}; it has {layer_names(adata)}."
        raise SchemaError(msg)
    counts = adata.X if screen.keys.layer is None else adata.layers[screen.keys.layer]
    check_raw_counts(counts, where="the reference", layers=other_matrices(adata))
    _check_controls(adata.obs, screen)
    columns = [c for c in (*screen.keys.context, screen.keys.batch) if c in adata.obs]
    labels = pd.DataFrame(
        {c: as_labels(adata.obs[c], missing="nan") for c in columns}, index=adata.obs_names
    )
    return Reference(
        counts,
        _library(adata, counts, screen),
        _codes(labels, screen.keys.context, screen.contexts),
        _codes(labels, () if screen.keys.batch is None else (screen.keys.batch,), screen.batches),
        labels,
        is_given=True,
    )


def _check_controls(obs: pd.DataFrame, screen: Screen) -> None:
    column = screen.keys.perturbation
    if column not in obs:
        return
    keys = replace(screen.keys, dose=None, time=None, kind=None)
    rows, inverse = distinct_rows(obs, keys)
    treated = np.array([not keys.parse(**row).is_control for row in rows])[inverse]
    if treated.any():
        msg = (
            f"The reference must be control cells, but {int(treated.sum())} of {len(obs)} have a "
            f"{column!r} other than {screen.keys.control!r}, e.g. "
            f"{str(obs[column].iloc[np.argmax(treated)])!r}. Pass the controls alone."
        )
        raise SchemaError(msg)


def _library(adata: AnnData, counts: object, screen: Screen) -> np.ndarray:
    if screen.keys.library is None:
        library = row_sums(counts, adata.n_obs)
    elif screen.keys.library in adata.obs:
        library = adata.obs[screen.keys.library].to_numpy(dtype=np.float64)
    else:
        msg = f"The reference needs the library sizes of training, obs[{screen.keys.library!r}]."
        raise SchemaError(msg)
    if not (library > 0).all():
        n = int((~(library > 0)).sum())
        msg = f"{n} reference cells have no counts; drop them."
        raise SchemaError(msg)
    return library


def _codes(
    labels: pd.DataFrame, columns: tuple[str, ...], levels: tuple[tuple[str, ...], ...]
) -> np.ndarray:
    """Return the codes of training; cells without the columns count as unknown."""
    if not columns:
        return np.zeros(len(labels), dtype=np.int64)
    if any(column not in labels for column in columns):
        return np.full(len(labels), len(levels), dtype=np.int64)
    return encode_labels(labels, columns, list(levels))[0]
