"""What a model remembers of the screen that it was set up with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from scvi_perturb._compat import setup_method_name
from scvi_perturb._core import METADATA_PREFIX, Column, Key
from scvi_perturb.data.condition import ScreenKeys
from scvi_perturb.data.condition_table import ConditionTable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

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

    `keys`: Where conditions, contexts, batches, counts and library sizes are. `rna_modality`:
    Modality of MuData that holds them. `table`: Conditions by code. `contexts`, `batches`: Labels
    by code, as tuples of one label a column. `genes`: Names, in the order of training. `metadata`:
    Further columns of metadata. `is_perturbed`: Whether a column says perturbations.
    `is_continuous`: Whether the data are real values and not counts.
    """

    keys: ScreenKeys
    rna_modality: str | None
    table: ConditionTable
    contexts: tuple[tuple[str, ...], ...]
    batches: tuple[tuple[str, ...], ...]
    genes: tuple[str, ...]
    metadata: tuple[MetadataColumn, ...] = ()
    is_perturbed: bool = True
    is_continuous: bool = False

    @classmethod
    def from_registry(cls, registry: Mapping[str, Any]) -> Screen:
        """Read a registry of scvi-tools."""
        arguments = registry["setup_args"]
        states = {k: v["state_registry"] for k, v in registry["field_registries"].items()}
        genes: np.ndarray = states[Key.X]["column_names"]
        return cls(
            keys=screen_keys(arguments),
            rna_modality=arguments.get("rna_modality"),
            table=ConditionTable.from_dict(states[Key.CONDITION]["table"]),
            contexts=_levels(states[Key.CONTEXT]),
            batches=_levels(states[Key.BATCH]),
            genes=tuple(map(str, genes)),
            metadata=_metadata(arguments.get("metadata_keys") or {}, states),
            is_perturbed=arguments["perturbation_key"] is not None,
            is_continuous=registry.get(setup_method_name()) == SIGNATURES,
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


def screen_keys(arguments: dict[str, Any]) -> ScreenKeys:
    """Return the keys among the arguments of `setup_anndata`."""
    return ScreenKeys(
        arguments["perturbation_key"] or Column.PERTURBATION,
        dose=arguments["dose_key"],
        time=arguments["time_key"],
        kind=arguments["perturbation_type_key"],
        control=arguments["control"],
        separator=arguments["separator"],
        context=arguments["context_keys"],
        batch=arguments["batch_key"],
        layer=arguments["layer"],
        library=arguments.get("library_key"),
    )
