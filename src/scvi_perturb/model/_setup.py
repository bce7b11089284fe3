"""`setup_anndata` and `setup_mudata`: which columns say what, registered with scvi-tools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scvi.data import AnnDataManager
from scvi.model.base import BaseModelClass

from scvi_perturb._constants import (
    BATCH_KEY,
    CONTEXT_KEY,
    CONTROL,
    LIBRARY_KEY,
    PERTURBATION_COLUMN,
    SEPARATOR,
    UNS_KEY,
)
from scvi_perturb.data import ConditionKeys
from scvi_perturb.data._condition import as_label
from scvi_perturb.data._fields import (
    CountsField,
    LabelField,
    LibraryField,
    MuDataCountsField,
    MuDataLabelField,
    MuDataLibraryField,
    MuDataPerturbationField,
    PerturbationField,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from mudata import MuData
    from scvi.data.fields import BaseAnnDataField

__all__ = [
    "SetupMixin",
    "as_columns",
    "completed",
    "condition_keys",
    "harmonised_keys",
    "screen_fields",
]


class SetupMixin(BaseModelClass):
    """Registration of a screen; the same for every model."""

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
        **kwargs: Any,  # noqa: ANN401 - scvi-tools passes `source_registry` here when it loads
    ) -> None:
        """Register the columns of a screen.

        Arguments left out are taken from :func:`scvi_perturb.pp.harmonize` if the data went
        through it, else they mean "not recorded".

        Parameters
        ----------
        adata
            A screen, in memory or backed; raw counts, at least one control cell. `X` is not
            changed; the columns `_scvi_condition`, `_scvi_context` and `_scvi_batch` are added
            to `obs`, and scvi-tools' identifiers to `uns`.
        layer
            Layer with the raw counts; None for `X`.
        perturbation_key
            Column of perturbations: `"A"`, `"A+B"`, or the control's label.
        control
            Label of the control cells.
        dose_key
            Column of doses; for combinations one each, `"10+5"`, in the label's order.
        time_key
            Column of times since the perturbation, in hours.
        perturbation_type_key
            Column of the kind of perturbation, e.g. `"CRISPRi"`, `"drug"`.
        context_keys
            Columns that say in what the perturbation acts, e.g. cell type and donor; one or
            several.
        batch_key
            Column of technical batches.
        library_key
            Column of library sizes, for files that hold only some of the genes; None sums the
            counts.
        separator
            Between the components of a combination.

        Raises
        ------
        SchemaError
            When a column is missing, no cell is a control, or the counts are not raw.
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
        cls._register(adata, arguments, screen_fields(arguments), **kwargs)

    @classmethod
    def _register(
        cls,
        adata: AnnData,
        arguments: dict[str, Any],
        fields: list[BaseAnnDataField],
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Register fields; `arguments` are those of the call, kept for loading."""
        method = cls._get_setup_method_args(cls=cls, adata=adata, **arguments)
        manager = AnnDataManager(fields=fields, setup_method_args=method)
        manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    @classmethod
    def setup_mudata(  # noqa: PLR0913
        cls,
        mdata: MuData,
        *,
        rna_modality: str = "rna",
        layer: str | None = None,
        perturbation_key: str = PERTURBATION_COLUMN,
        control: str = CONTROL,
        dose_key: str | None = None,
        time_key: str | None = None,
        perturbation_type_key: str | None = None,
        context_keys: str | Sequence[str] = (),
        batch_key: str | None = None,
        library_key: str | None = None,
        separator: str = SEPARATOR,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Register a screen kept as MuData; the named modality holds counts and columns.

        What :func:`scvi_perturb.pp.harmonize` recorded is not looked at here: name every column
        that has another name than the default.

        Parameters
        ----------
        mdata
            A screen.
        rna_modality
            Modality with the raw counts and, in its `obs`, the columns.
        layer, perturbation_key, control, dose_key, time_key, perturbation_type_key
            See :meth:`setup_anndata`.
        context_keys, batch_key, library_key, separator
            See :meth:`setup_anndata`.

        Raises
        ------
        SchemaError
            When a column is missing, no cell is a control, or the counts are not raw.
        """
        arguments = {
            "rna_modality": rna_modality,
            "layer": layer,
            "perturbation_key": perturbation_key,
            "control": as_label(control),
            "dose_key": dose_key,
            "time_key": time_key,
            "perturbation_type_key": perturbation_type_key,
            "context_keys": as_columns(context_keys),
            "batch_key": batch_key,
            "library_key": library_key,
            "separator": separator,
        }
        at = {"mod_key": rna_modality, "mod_required": True}
        fields = [
            MuDataCountsField(layer, **at),
            MuDataPerturbationField(condition_keys(arguments), **at),
            MuDataLabelField(CONTEXT_KEY, arguments["context_keys"], **at),
            MuDataLabelField(BATCH_KEY, as_columns(batch_key), **at),
            MuDataLibraryField(LIBRARY_KEY, library_key, **at),
        ]
        method = cls._get_setup_method_args(cls=cls, mdata=mdata, **arguments)
        manager = AnnDataManager(fields=fields, setup_method_args=method)
        manager.register_fields(mdata, **kwargs)
        cls.register_manager(manager)


def completed(adata: AnnData, given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `setup_anndata`, those left out as `harmonize` wrote them down."""
    found = harmonised_keys(adata)
    control, contexts = given["control"], given["context_keys"]
    return {
        "layer": given["layer"],
        "perturbation_key": given["perturbation_key"]
        or found.get("perturbation", PERTURBATION_COLUMN),
        "control": as_label(control) if control is not None else found.get("control", CONTROL),
        "dose_key": given["dose_key"] or found.get("dose"),
        "time_key": given["time_key"] or found.get("time"),
        "perturbation_type_key": given["perturbation_type_key"] or found.get("kind"),
        "context_keys": as_columns(contexts if contexts is not None else found.get("context")),
        "batch_key": given["batch_key"] or found.get("batch"),
        "library_key": given["library_key"] or found.get("library"),
        "separator": given["separator"] or found.get("separator", SEPARATOR),
    }


def screen_fields(arguments: dict[str, Any]) -> list[BaseAnnDataField]:
    """Return the fields of a screen of counts."""
    return [
        CountsField(arguments["layer"]),
        PerturbationField(condition_keys(arguments)),
        LabelField(CONTEXT_KEY, arguments["context_keys"]),
        LabelField(BATCH_KEY, as_columns(arguments["batch_key"])),
        LibraryField(LIBRARY_KEY, arguments["library_key"]),
    ]


def condition_keys(arguments: dict[str, Any]) -> ConditionKeys:
    """Return the columns of conditions among the arguments of `setup_anndata`."""
    return ConditionKeys(
        arguments["perturbation_key"] or PERTURBATION_COLUMN,
        dose=arguments["dose_key"],
        time=arguments["time_key"],
        kind=arguments["perturbation_type_key"],
        control=arguments["control"],
        separator=arguments["separator"],
    )


def as_columns(columns: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return columns as a tuple; one name is one column, not its letters."""
    if columns is None:
        return ()
    return (columns,) if isinstance(columns, str) else tuple(columns)


def harmonised_keys(adata: AnnData) -> dict[str, Any]:
    """Return the columns that `harmonize` wrote down, by what they hold."""
    recorded = adata.uns.get(UNS_KEY, {})
    keys = dict(recorded.get("keys", {})) if hasattr(recorded, "get") else {}
    keys["context"] = tuple(map(str, keys.get("context", ())))
    return {k: v for k, v in keys.items() if v is not None}
