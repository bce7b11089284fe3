"""What a model remembers of the screen that it was set up with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from scvi_perturb._compat import SETUP_METHOD_NAME
from scvi_perturb._constants import (
    BATCH_KEY,
    CONDITION_KEY,
    CONTEXT_KEY,
    METADATA_PREFIX,
    X_KEY,
)
from scvi_perturb.data import ConditionKeys, ConditionTable
from scvi_perturb.model._setup import condition_keys

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

__all__ = ["SIGNATURES", "MetadataColumn", "Screen"]

#: Name of the method that registers real values in place of counts.
SIGNATURES: Final = "setup_signatures"


class MetadataColumn(NamedTuple):
    """A column of metadata: its group of latents, and its labels, None for a number."""

    name: str
    group: str
    levels: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Screen:
    """Columns, labels and conditions of a registered screen.

    Attributes
    ----------
    keys
        Columns that say the condition.
    layer, library_key, rna_modality
        Where counts and library sizes are.
    context_columns, batch_column
        Columns that say context and batch.
    table
        Conditions by code.
    contexts, batches
        Labels by code, as tuples of one label a column.
    genes
        Names, in the order of training.
    metadata
        Further columns of metadata.
    is_perturbed
        Whether a column says perturbations.
    real_values
        Whether the data are real values and not counts.
    """

    keys: ConditionKeys
    layer: str | None
    library_key: str | None
    rna_modality: str | None
    context_columns: tuple[str, ...]
    batch_column: str | None
    table: ConditionTable
    contexts: tuple[tuple[str, ...], ...]
    batches: tuple[tuple[str, ...], ...]
    genes: tuple[str, ...]
    metadata: tuple[MetadataColumn, ...] = ()
    is_perturbed: bool = True
    real_values: bool = False

    @classmethod
    def from_registry(cls, registry: Mapping[str, Any]) -> Screen:
        """Read a registry of scvi-tools."""
        arguments = registry["setup_args"]
        states = {k: v["state_registry"] for k, v in registry["field_registries"].items()}
        genes: np.ndarray = states[X_KEY]["column_names"]
        return cls(
            keys=condition_keys(arguments),
            layer=arguments["layer"],
            library_key=arguments.get("library_key"),
            rna_modality=arguments.get("rna_modality"),
            context_columns=tuple(arguments["context_keys"]),
            batch_column=arguments["batch_key"],
            table=ConditionTable.from_dict(states[CONDITION_KEY]["table"]),
            contexts=_levels(states[CONTEXT_KEY]),
            batches=_levels(states[BATCH_KEY]),
            genes=tuple(map(str, genes)),
            metadata=_metadata(arguments.get("metadata_keys") or {}, states),
            is_perturbed=arguments["perturbation_key"] is not None,
            real_values=registry.get(SETUP_METHOD_NAME) == SIGNATURES,
        )


def _levels(state: Mapping[str, Any]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(row) for row in state["levels"])


def _metadata(
    keys: Mapping[str, Sequence[str]], states: Mapping[str, Any]
) -> tuple[MetadataColumn, ...]:
    found = []
    for group, columns in keys.items():
        for column in columns:
            levels = states[METADATA_PREFIX + column]["levels"]
            found.append(MetadataColumn(column, group, None if levels is None else tuple(levels)))
    return tuple(found)
