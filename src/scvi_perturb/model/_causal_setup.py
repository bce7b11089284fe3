"""Registration of screens, atlases and tables of signatures with metadata by group."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from scvi.data import AnnDataManager

from scvi_perturb._compat import SETUP_METHOD_NAME
from scvi_perturb._constants import BATCH_KEY, CONTEXT_KEY, PERTURBATION_COLUMN
from scvi_perturb._errors import SchemaError, check_choice
from scvi_perturb.data._fields import (
    LabelField,
    NoPerturbationField,
    PerturbationField,
    ValuesField,
)
from scvi_perturb.data._metadata_fields import MetadataField
from scvi_perturb.model._base import PerturbationModel
from scvi_perturb.model._screen import SIGNATURES
from scvi_perturb.model._setup import (
    as_columns,
    completed,
    condition_keys,
    harmonised_keys,
    screen_fields,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData

__all__ = ["CausalSetup"]

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
