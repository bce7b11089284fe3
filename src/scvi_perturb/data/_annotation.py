"""The condition and the context of every cell, summarised by group, and its fingerprint."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scvi_perturb._constants import SEPARATOR
from scvi_perturb._errors import SchemaError
from scvi_perturb.data._fields import encode_labels
from scvi_perturb.data._table import encode_obs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_perturb.data._condition import Condition
    from scvi_perturb.data._keys import ConditionKeys

__all__ = ["Annotation", "data_hash", "describe", "identity", "read_annotation"]


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
