"""Register metadata for `CausalPerturbVAE`, and read metadata rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
from scvi.data import AnnDataManager

from scvi_perturb._compat import SETUP_METHOD_NAME
from scvi_perturb._constants import BATCH_KEY, CONTEXT_KEY, PERTURBATION_COLUMN
from scvi_perturb._errors import SchemaError, check_choice
from scvi_perturb.data.condition import Condition
from scvi_perturb.data.fields import (
    LabelField,
    MetadataField,
    NoPerturbationField,
    PerturbationField,
    ValuesField,
)
from scvi_perturb.data.keys import as_labels
from scvi_perturb.model.base.model import PerturbationModel
from scvi_perturb.model.base.request import parse_request
from scvi_perturb.model.base.setup import (
    SIGNATURES,
    as_columns,
    completed,
    condition_keys,
    harmonised_keys,
    screen_fields,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData

    from scvi_perturb.model.base.setup import Screen

__all__ = ["CausalSetup", "MetadataRows", "parse_rows"]


#: Groups of latents that metadata can belong to.
GROUPS: Final = ("identity", "technical")


class CausalSetup(PerturbationModel):
    """`setup_anndata` with metadata, and `setup_signatures`."""

    @classmethod
    def setup_anndata(  # noqa: PLR0913 - one argument a column, as in every scvi-tools model
        cls,
        adata: AnnData,
        *,
        layer: str | None = None,
        perturbation_key: str | None = None,
        control: str | None = None,
        dose_key: str | None = None,
        time_key: str | None = None,
        perturbation_type_key: str | None = None,
        context_keys: str | Sequence[str] | None = None,
        batch_key: str | None = None,
        library_key: str | None = None,
        separator: str | None = None,
        metadata_keys: Mapping[str, str | Sequence[str]] | None = None,
        **kwargs: Any,  # noqa: ANN401 - scvi-tools passes `source_registry` here when it loads
    ) -> None:
        """Register the columns of a screen, or of an atlas or bulk samples without perturbations.

        Where there is no column of perturbations (none is named, and `obs` has no
        `perturbation`), the model is that of cells or samples given their metadata.

        Parameters
        ----------
        adata
            Raw counts, in memory or backed.
        layer, perturbation_key, control, dose_key, time_key, perturbation_type_key
            See :meth:`PerturbDiffusion.setup_anndata`.
        context_keys, batch_key, library_key, separator
            See :meth:`PerturbDiffusion.setup_anndata`. Contexts are metadata of identity, the batch
            is metadata of the technical group.
        metadata_keys
            Further metadata by group, e.g. `{"identity": ["tissue", "age", "sex"],
            "technical": ["platform"]}`; None takes what :func:`scvi_perturb.pp.harmonize` found for
            identity. Columns of numbers are numbers, all others labels; missing values may
            occur, are marked, and are never filled in.

        Raises
        ------
        SchemaError
            When a column is missing, no cell is a control though perturbations are registered, or
            the counts are not raw.
        ValueError
            For a group that metadata cannot belong to.
        """
        given = {
            "layer": layer,
            "perturbation_key": perturbation_key,
            "control": control,
            "dose_key": dose_key,
            "time_key": time_key,
            "perturbation_type_key": perturbation_type_key,
            "context_keys": context_keys,
            "batch_key": batch_key,
            "library_key": library_key,
            "separator": separator,
        }
        arguments = completed(adata, given)
        key = arguments["perturbation_key"]
        if perturbation_key is None and ("source_registry" in kwargs or key not in adata.obs):
            key = None
        if metadata_keys is None:
            metadata_keys = _harmonised_metadata(adata, arguments)
        arguments |= {"perturbation_key": key, "metadata_keys": _by_group(metadata_keys)}
        fields = screen_fields(arguments)
        if key is None:
            fields[1] = NoPerturbationField(condition_keys(arguments))
        fields += _metadata_fields(arguments)
        cls._register(adata, arguments, fields, **kwargs)

    @classmethod
    def setup_signatures(  # noqa: PLR0913
        cls,
        adata: AnnData,
        *,
        layer: str | None = None,
        perturbation_key: str = PERTURBATION_COLUMN,
        control: str = "control",
        dose_key: str | None = None,
        time_key: str | None = None,
        perturbation_type_key: str | None = None,
        context_keys: str | Sequence[str] = (),
        batch_key: str | None = None,
        separator: str = "+",
        metadata_keys: Mapping[str, str | Sequence[str]] | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Register a table of signatures: real values, such as log-fold changes or z, a row each.

        Values stay as they are; the model has a Normal likelihood. No row need be a control.

        Parameters
        ----------
        adata
            Signatures, `(n_signatures, n_genes)`.
        layer
            Layer with the values; None for `X`.
        perturbation_key, control, dose_key, time_key, perturbation_type_key
            See :meth:`setup_anndata`.
        context_keys, batch_key, separator, metadata_keys
            See :meth:`setup_anndata`.

        Raises
        ------
        SchemaError
            When a column is missing or values are not finite.
        """
        arguments = {
            "layer": layer,
            "perturbation_key": perturbation_key,
            "control": control,
            "dose_key": dose_key,
            "time_key": time_key,
            "perturbation_type_key": perturbation_type_key,
            "context_keys": as_columns(context_keys),
            "batch_key": batch_key,
            "separator": separator,
            "metadata_keys": _by_group(metadata_keys),
        }
        fields = [
            ValuesField(layer),
            PerturbationField(condition_keys(arguments), require_control=False),
            LabelField(CONTEXT_KEY, as_columns(context_keys)),
            LabelField(BATCH_KEY, as_columns(batch_key)),
            *_metadata_fields(arguments),
        ]
        method = cls._get_setup_method_args(cls=cls, adata=adata, **arguments)
        method[SETUP_METHOD_NAME] = SIGNATURES
        manager = AnnDataManager(fields=fields, setup_method_args=method)
        manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)


def _harmonised_metadata(adata: AnnData, arguments: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the metadata that `harmonize` found, save contexts and batch."""
    found = harmonised_keys(adata).get("metadata", ())
    taken = {*arguments["context_keys"], arguments["batch_key"]}
    columns = [str(c) for c in found if c not in taken and adata.obs[c].notna().any()]
    return {"identity": columns} if columns else {}


def _by_group(
    keys: Mapping[str, str | Sequence[str]] | None,
) -> dict[str, tuple[str, ...]]:
    """Return columns by group, checked."""
    found = {}
    for group, columns in (keys or {}).items():
        check_choice("group of metadata", group, GROUPS)
        found[group] = as_columns(columns)
    return found


def _metadata_fields(arguments: Mapping[str, Any]) -> list[MetadataField]:
    """Return one field a column; a column is registered once."""
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


@dataclass(frozen=True, slots=True)
class MetadataRows:
    """Metadata asked for, one row a population.

    Attributes
    ----------
    conditions
        Condition of each row, control where none is asked.
    fields
        Column of metadata -> codes of labels, -1 where missing, or numbers with NaN, `(n,)`.
    batch
        Code of the batch, -1 where missing, `(n,)`.
    frame
        The rows under the names they were registered with.
    """

    conditions: tuple[Condition, ...]
    fields: dict[str, np.ndarray]
    batch: np.ndarray
    frame: pd.DataFrame

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.conditions)


def parse_rows(table: pd.DataFrame, screen: Screen) -> MetadataRows:
    """Read rows of metadata; what is missing is marked as such.

    Raises
    ------
    SchemaError
        For no row, a column that the model does not know, or a label that it never met.
    """
    levels: dict[str, tuple[str, ...] | None] = {
        column: tuple(sorted({row[i] for row in screen.contexts}))
        for i, column in enumerate(screen.context_columns)
    }
    if screen.batch_column is not None:
        levels[screen.batch_column] = tuple(sorted({row[0] for row in screen.batches}))
    levels |= {column.name: column.levels for column in screen.metadata}
    of_conditions = {*screen.keys.columns.values(), "perturbation", "dose", "time"}
    of_conditions = of_conditions if screen.is_perturbed else set()
    known = {*levels, *of_conditions}
    wrong = sorted(set(map(str, table.columns)) - known)
    if wrong or len(table) == 0:
        found = f"columns {wrong}" if wrong else "no row"
        msg = f"The metadata have {found}; expected rows with columns among {sorted(known)}."
        raise SchemaError(msg)
    frame = table.reset_index(drop=True)
    fields = {name: _values(frame, name, own) for name, own in levels.items()}
    batch = np.full(len(frame), -1, dtype=np.int64)
    if screen.batch_column is not None:
        codes = {row[0]: code for code, row in enumerate(screen.batches)}
        own = levels[screen.batch_column] or ()
        place = fields[screen.batch_column]
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
    key = screen.keys.perturbation
    own = frame[[c for c in frame.columns if c in columns]]
    named = key if key in own else "perturbation"
    if named not in own:
        return tuple(Condition() for _ in range(len(frame)))
    own = own.assign(**{named: own[named].fillna(screen.table.control)})
    return parse_request(own, screen).conditions
