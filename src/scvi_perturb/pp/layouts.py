"""The columns of common layouts of public screens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from scvi_perturb._checks import check_choice
from scvi_perturb._core import SchemaError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["METADATA", "SAMPLE_FIELDS", "TERM_FIELDS", "Schema", "id_field", "source_columns"]

Schema = Literal["auto", "canonical", "scperturb", "gears", "cpa", "pertpy"]

#: Fields that a further component has of its own, in columns such as "perturbation_2".
_COMPONENT_FIELDS = ("perturbation", "dose", "dose_unit", "perturbation_type", "perturbation_id")
_FURTHER = ("_2", "_3", "_4")

#: Fields whose labels are terms of ontologies.
TERM_FIELDS = ("tissue", "cell_type", "cell_line", "disease", "developmental_stage", "ethnicity")
#: Canonical columns of samples and cells, besides those of conditions, contexts and batches.
METADATA = (
    *("age", "sex", "tissue", "cell_line"),
    *("disease", "donor", "developmental_stage", "ethnicity"),
)


def id_field(field: str) -> str:
    """Return the field that holds the identifiers of a field's terms, as CELLxGENE names it."""
    return f"{field}_ontology_term_id"


#: The first column that is there is read. A "tissue_type" tells tissues from cultures: no tissue.
_SAMPLE: dict[str, tuple[str, ...]] = {
    "cell_type": ("cell_type", "celltype", "cell_line"),
    "batch": ("batch", "gem_group", "gemgroup", "replicate"),
    "donor": ("donor", "patient", "donor_id"),
    "library_size": ("library_size", "ncounts", "total_counts", "n_counts", "nCount_RNA"),
    "age": ("age", "Age"),
    "age_unit": ("age_unit", "age_units"),
    "sex": ("sex", "Sex", "gender", "Gender"),
    "tissue": ("tissue", "Tissue", "organ"),
    "cell_line": ("cell_line", "cellline"),
    "disease": ("disease", "Disease"),
    "developmental_stage": ("developmental_stage", "development_stage"),
    "ethnicity": ("ethnicity", "self_reported_ethnicity"),
}
for _field in TERM_FIELDS:
    _SAMPLE[id_field(_field)] = tuple(
        id_field(column) for column in _SAMPLE[_field] if column == _field or column != "cell_line"
    )
SAMPLE_FIELDS = frozenset(_SAMPLE)

_SHARED = _SAMPLE | {
    "perturbation_type": ("perturbation_type",),
    "perturbation_id": ("perturbation_id",),
    "time": ("time", "time_point", "timepoint"),
    "time_unit": ("time_unit",),
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
    schema: Schema | Mapping[str, str], columns: Iterable[str], *, perturbed: bool = True
) -> tuple[str, dict[str, str]]:
    """Return the layout's name and, for each canonical field that is there, its column.

    `schema` is the name of a layout, "auto" to recognise one by the columns of `obs`, or a mapping
    of canonical field to column. If not `perturbed`, only the fields of samples and cells are
    looked for, which all layouts keep in the same columns.

    Raises `ValueError`: If the schema or a field of the mapping is not known. Raises `SchemaError`:
    If a column of the mapping, or any column of perturbations, is absent; or if the mapping has
    fields of perturbations though there are none.
    """
    present = set(map(str, columns))
    if isinstance(schema, Mapping):
        _check_mapping(schema, present, perturbed=perturbed)
        return "mapping", dict(schema)
    check_choice("schema", schema, ("auto", *LAYOUTS))
    name: str = schema
    if schema == "auto":
        name = _recognised(present) if perturbed else "canonical"
    found = {
        field: next(column for column in candidates if column in present)
        for field, candidates in LAYOUTS[name].items()
        if present & set(candidates) and (perturbed or field in SAMPLE_FIELDS)
    }
    if perturbed and "perturbation" not in found:
        expected = LAYOUTS[name]["perturbation"]
        msg = (
            f"Layout {name!r} keeps perturbations in one of {list(expected)}, but obs has "
            f"{sorted(present)}. Name another layout, or map fields: {{'perturbation': column}}; "
            "for samples that were not perturbed: perturbed=False."
        )
        raise SchemaError(msg)
    return name, found


def _check_mapping(schema: Mapping[str, str], present: set[str], *, perturbed: bool) -> None:
    """Raise unless the fields are known, their columns there, and perturbations as announced."""
    for field in schema:
        check_choice("schema field", field, _FIELDS)
    absent = sorted(set(schema.values()) - present)
    if absent or (perturbed and "perturbation" not in schema):
        lack = f"obs has no column {absent[0]!r}" if absent else "'perturbation' is not mapped"
        msg = (
            f"{lack}; obs has {sorted(present)}. Map canonical fields to these columns; for "
            "samples that were not perturbed: perturbed=False."
        )
        raise SchemaError(msg)
    of_conditions = sorted(set(schema) - SAMPLE_FIELDS)
    if of_conditions and not perturbed:
        msg = (
            f"schema maps {of_conditions}, but perturbed=False reads the fields of samples only: "
            f"{sorted(SAMPLE_FIELDS)}. Leave these fields out, or leave perturbed=True."
        )
        raise SchemaError(msg)


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
        "schema={'perturbation': column, ...}; for samples that were not perturbed: "
        "perturbed=False."
    )
    raise SchemaError(msg)
