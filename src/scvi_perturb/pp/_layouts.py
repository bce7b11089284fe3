"""Where common layouts of public screens keep what the models read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from scvi_perturb._errors import SchemaError, check_choice

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["LAYOUTS", "Schema", "source_columns"]

Schema = Literal["auto", "canonical", "scperturb", "gears", "cpa", "pertpy"]

#: Fields that a further component has of its own, in columns such as "perturbation_2".
_COMPONENT_FIELDS = ("perturbation", "dose", "dose_unit", "perturbation_type")
_FURTHER = ("_2", "_3", "_4")

_SHARED: dict[str, tuple[str, ...]] = {
    "perturbation_type": ("perturbation_type",),
    "time": ("time", "time_point", "timepoint"),
    "time_unit": ("time_unit",),
    "cell_type": ("cell_type", "celltype", "cell_line"),
    "batch": ("batch", "gem_group", "gemgroup", "replicate"),
    "donor": ("donor", "patient", "donor_id"),
    "library_size": ("library_size", "ncounts", "total_counts", "n_counts", "nCount_RNA"),
}
_CONDITION = _SHARED | {
    "perturbation": ("condition",),
    "dose": ("dose_val", "dose"),
    "dose_unit": ("dose_unit",),
}
_SCPERTURB = _SHARED | {
    "perturbation": ("perturbation",),
    "n_perturbations": ("nperts",),
    "dose": ("dose_value",),
    "dose_unit": ("dose_unit",),
}
for _suffix in _FURTHER:
    for _field in _COMPONENT_FIELDS:
        _source = "dose_value" if _field == "dose" else _field
        _SCPERTURB[_field + _suffix] = (_source + _suffix,)

#: For each layout and canonical field, the columns that may hold it, the first that is there.
LAYOUTS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "canonical": _SHARED
    | {"perturbation": ("perturbation",), "dose": ("dose",), "dose_unit": ("dose_unit",)},
    "scperturb": _SCPERTURB,
    "gears": _CONDITION,
    "cpa": _CONDITION,
    "pertpy": _CONDITION
    | {"perturbation": ("gene_target", "perturbation_name", "condition", "label")},
}

_FIELDS = frozenset(_SCPERTURB)


def source_columns(
    schema: Schema | Mapping[str, str], columns: Iterable[str]
) -> tuple[str, dict[str, str]]:
    """Return the layout's name and, for each canonical field that is there, its column.

    Parameters
    ----------
    schema
        Name of a layout, "auto" to recognise one, or a mapping of canonical field to column.
    columns
        Columns of `obs`.

    Raises
    ------
    ValueError
        If the schema or a field of the mapping is not known.
    SchemaError
        If a column of the mapping, or any column of perturbations, is absent.
    """
    present = set(map(str, columns))
    if isinstance(schema, Mapping):
        for field in schema:
            check_choice("schema field", field, _FIELDS)
        absent = sorted(set(schema.values()) - present)
        if absent or "perturbation" not in schema:
            lack = f"obs has no column {absent[0]!r}" if absent else "'perturbation' is not mapped"
            msg = f"{lack}; obs has {sorted(present)}. Map canonical fields to these columns."
            raise SchemaError(msg)
        return "mapping", dict(schema)
    check_choice("schema", schema, ("auto", *LAYOUTS))
    name = _recognised(present) if schema == "auto" else schema
    found = {
        field: next(column for column in candidates if column in present)
        for field, candidates in LAYOUTS[name].items()
        if present & set(candidates)
    }
    if "perturbation" not in found:
        expected = LAYOUTS[name]["perturbation"]
        msg = (
            f"Layout {name!r} keeps perturbations in one of {list(expected)}, but obs has "
            f"{sorted(present)}. Name another layout, or map fields: {{'perturbation': column}}."
        )
        raise SchemaError(msg)
    return name, found


def _recognised(present: set[str]) -> str:
    """Return the layout that the columns speak for."""
    if "perturbation" in present and present & {"nperts", "dose_value", "perturbation_2"}:
        return "scperturb"
    if present & {"gene_target", "perturbation_name"}:
        return "pertpy"
    if "perturbation" in present:
        return "canonical"
    if "condition" in present:
        return "gears"
    msg = (
        f"The layout of obs was not recognised; it has {sorted(present)}. Name the columns: "
        "schema={'perturbation': column, ...}."
    )
    raise SchemaError(msg)
