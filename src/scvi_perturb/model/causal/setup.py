"""Metadata of `CausalPerturbVAE`: registration, the design of the module, requests."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
import torch

from scvi_perturb._checks import check_choice
from scvi_perturb._core import SchemaError
from scvi_perturb.data.condition import Condition, as_columns, as_labels, harmonised_keys
from scvi_perturb.data.fields import MetadataField
from scvi_perturb.data.request import parse_request
from scvi_perturb.model.base.reference import to_tensors
from scvi_perturb.module.causal import CausalDesign
from scvi_perturb.nn.metadata import MetadataSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData

    from scvi_perturb.data.screen import Screen
    from scvi_perturb.model.base.reference import Vocabulary


#: Groups of latents that metadata can belong to.
METADATA_GROUPS: Final = ("identity", "technical")


def harmonised_metadata(adata: AnnData, arguments: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the metadata that `harmonize` found, without contexts and batch."""
    found = harmonised_keys(adata).get("metadata", ())
    taken = {*arguments["context_keys"], arguments["batch_key"]}
    columns = [str(c) for c in found if c not in taken and adata.obs[c].notna().any()]
    return {"identity": columns} if columns else {}


def columns_by_group(
    keys: Mapping[str, str | Sequence[str]] | None,
) -> dict[str, tuple[str, ...]]:
    """Return columns of metadata by group; raise `ValueError` for another group."""
    for group in keys or {}:
        check_choice("group of metadata", group, METADATA_GROUPS)
    return {group: as_columns(columns) for group, columns in (keys or {}).items()}


def metadata_fields(arguments: Mapping[str, Any]) -> list[MetadataField]:
    """Return one field a column; raise `SchemaError` if a column is registered twice."""
    taken = [*arguments["context_keys"], *as_columns(arguments["batch_key"])]
    columns = [c for group in arguments["metadata_keys"].values() for c in group]
    twice = sorted({c for c in columns if (taken + columns).count(c) > 1})
    if twice:
        msg = (
            f"Columns {twice} are registered twice; contexts are metadata of identity already, "
            "the batch of the technical group."
        )
        raise SchemaError(msg)
    return [MetadataField(column) for column in columns]


def label_levels(screen: Screen) -> dict[str, tuple[str, ...] | None]:
    """Return the labels of each column of metadata, sorted as the module counts them.

    Contexts come first, then the batch and all others; None for a column of numbers.
    """
    levels: dict[str, tuple[str, ...] | None] = {
        column: tuple(sorted({row[i] for row in screen.contexts}))
        for i, column in enumerate(screen.keys.context)
    }
    if screen.keys.batch is not None:
        levels[screen.keys.batch] = tuple(sorted({row[0] for row in screen.batches}))
    return levels | {column.name: column.levels for column in screen.metadata}


def make_design(screen: Screen, vocabulary: Vocabulary) -> CausalDesign:
    """Return the design of a screen."""
    table, levels = screen.table, label_levels(screen)
    specs = {name: MetadataSpec(name, len(own or ())) for name, own in levels.items()}
    batch_columns = as_columns(screen.keys.batch)
    columns = {"identity": [*screen.keys.context], "technical": [*batch_columns]}
    for column in screen.metadata:
        columns[column.group].append(column.name)
    genes = {gene: i for i, gene in enumerate(screen.genes)}
    kinds = {kind: i for i, kind in enumerate(sorted({kind for _, kind in table.components}))}
    pairs = {
        pair
        for condition in table.conditions
        for pair in combinations(
            sorted(table.component_index(p.name, p.kind) for p in condition.components), 2
        )
    }
    labels, label = perturbation_labels(screen)
    return CausalDesign(
        n_genes=len(screen.genes),
        conditions=to_tensors(table.arrays()),
        identity=tuple(specs[name] for name in columns["identity"]),
        technical=tuple(specs[name] for name in columns["technical"]),
        context_levels=_level_codes(screen.keys.context, screen.contexts, levels),
        batch_levels=_level_codes(batch_columns, screen.batches, levels),
        n_components=len(vocabulary.names),
        pairs=tuple(sorted(pairs)),
        label=torch.from_numpy(label),
        n_labels=len(labels),
        target=torch.tensor([genes.get(name, -1) for name in vocabulary.names], dtype=torch.long),
        kind=torch.tensor([kinds[kind] for _, kind in table.components], dtype=torch.long),
        partial_panel=screen.keys.library is not None,
        is_continuous=screen.is_continuous,
    )


def perturbation_labels(screen: Screen) -> tuple[list[str], np.ndarray]:
    """Return the perturbations of a screen, at any dose and time, and the place of each code's."""
    names = screen.table.frame()["perturbation"].astype(str)
    labels, label = np.unique(names.to_numpy(), return_inverse=True)
    return labels.tolist(), label.astype(np.int64)


def _level_codes(
    columns: Sequence[str],
    rows: tuple[tuple[str, ...], ...],
    levels: Mapping[str, tuple[str, ...] | None],
) -> torch.Tensor:
    """Return the level of each code of a context or batch, `(n_codes, n_columns)`."""
    places = [[(levels[c] or ()).index(row[i]) for i, c in enumerate(columns)] for row in rows]
    return torch.tensor(places, dtype=torch.long).reshape(len(rows), len(columns))


@dataclass(frozen=True, slots=True)
class MetadataRows:
    """A request of metadata, one row a population.

    `conditions`: Condition of each row, control where none is asked. `fields`: Column of metadata
    -> codes of labels, -1 where missing, or numbers with NaN, `(n,)`. `batch`: Code of the batch,
    -1 where missing, `(n,)`. `frame`: The rows under the names they were registered with.
    """

    conditions: tuple[Condition, ...]
    fields: dict[str, np.ndarray]
    batch: np.ndarray
    frame: pd.DataFrame

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.conditions)


def parse_metadata(table: pd.DataFrame, screen: Screen) -> MetadataRows:
    """Read rows of metadata; missing values stay missing.

    Raises `SchemaError`: For no row, an unknown column, or a label that is not in the training
    data.
    """
    levels = label_levels(screen)
    of_conditions: set[str] = set()
    if screen.is_perturbed:
        of_conditions = {*screen.keys.columns.values(), "perturbation", "dose", "time"}
    known = {*levels, *of_conditions}
    wrong = sorted(set(map(str, table.columns)) - known)
    if wrong or len(table) == 0:
        found = f"columns {wrong}" if wrong else "no row"
        msg = f"The metadata have {found}; expected rows with columns among {sorted(known)}."
        raise SchemaError(msg)
    frame = table.reset_index(drop=True)
    fields = {name: _values(frame, name, own) for name, own in levels.items()}
    batch = np.full(len(frame), -1, dtype=np.int64)
    if screen.keys.batch is not None:
        codes = {row[0]: code for code, row in enumerate(screen.batches)}
        own = levels[screen.keys.batch] or ()
        place = fields[screen.keys.batch]
        batch = np.array([codes[own[p]] if p >= 0 else -1 for p in place], dtype=np.int64)
    return MetadataRows(_conditions(frame, of_conditions, screen), fields, batch, frame)


def _values(frame: pd.DataFrame, name: str, levels: tuple[str, ...] | None) -> np.ndarray:
    """Return codes or numbers of a column, all missing where it is not there."""
    if levels is None:
        if name not in frame:
            return np.full(len(frame), np.nan, dtype=np.float32)
        return np.asarray(pd.to_numeric(frame[name]), dtype=np.float32)
    if name not in frame:
        return np.full(len(frame), -1, dtype=np.int64)
    labels = as_labels(frame[name], missing="")
    place = {level: i for i, level in enumerate(levels)} | {"": -1}
    unknown = sorted(set(labels) - set(place))
    if unknown:
        msg = f"{name} {unknown} was never met; the model knows {list(levels)[:20]}."
        raise SchemaError(msg)
    return np.array([place[label] for label in labels], dtype=np.int64)


def _conditions(frame: pd.DataFrame, columns: set[str], screen: Screen) -> tuple[Condition, ...]:
    """Return the condition of each row, control where none is asked."""
    key = screen.keys.perturbation
    own = frame[[c for c in frame.columns if c in columns]]
    named = key if key in own else "perturbation"
    if named not in own:
        return (Condition(),) * len(frame)
    own = own.assign(**{named: own[named].fillna(screen.table.control)})
    return parse_request(own, screen).conditions
