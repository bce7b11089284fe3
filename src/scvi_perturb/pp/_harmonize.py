"""Bring the annotation of a public screen into canonical columns."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pandas as pd

from scvi_perturb._checks import check_choice, checked
from scvi_perturb._core import CONTROL, SEPARATOR, UNS_KEY, Column
from scvi_perturb.data.condition import check_separator
from scvi_perturb.pp._conditions import ControlLabels, condition_columns, label_problems
from scvi_perturb.pp._metadata import UnknownValues, metadata_columns
from scvi_perturb.pp._ontology import OntologyTerms
from scvi_perturb.pp.layouts import METADATA, SAMPLE_FIELDS, TERM_FIELDS, Schema, source_columns

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from anndata import AnnData

__all__ = ["harmonize"]

logger = logging.getLogger(__name__)

_LIBRARY_COLUMN = "library_size"
#: Columns of conditions by what a model calls them.
_ROLES = {
    "perturbation": Column.PERTURBATION,
    "dose": Column.DOSE,
    "time": Column.TIME,
    "kind": Column.KIND,
}


@checked
def harmonize(
    adata: AnnData,
    schema: Schema | Mapping[str, str] = "auto",
    *,
    control: str | Sequence[str] | None = None,
    separator: str | None = None,
    perturbed: bool = True,
    ontologies: Mapping[str, str | Path | OntologyTerms] | None = None,
    copy: bool = True,
) -> AnnData:
    """Write canonical columns from the layout of a public screen.

    Columns written, where the screen has them: of conditions `perturbation` ("A+B", "control"),
    `dose` ("5+10", in one unit), `time` (hours), `perturbation_type` (as the screen calls it),
    `perturbation_id` (Ensembl, ChEBI, ChEMBL or NCBI taxon); of samples and cells `cell_type`,
    `batch`, `donor`, `age` (years), `sex` ("female", "male"), `tissue`, `cell_line`, `disease`,
    `developmental_stage`, `ethnicity`, and `tissue_ontology_term_id` and its like for identifiers
    of terms; and `library_size`. Other columns and the counts stay as they are.

    "+" stands between components; a "+" that does not, as the strand of a guide in "GENE_+_123" and
    in "(+)-JQ1", is written "plus". Names between other marks, such as "A_B", are told by the
    number of perturbations where the screen has one (`nperts`), counted over all columns, or by
    `separator`. A label may hold bytes, or names with dose and unit: "[('A', 0.5, 'uM')]".
    Labels with which the rest of the file disagrees are logged, kept in
    `uns["scvi_perturb"]["doubtful_labels"]` and listed by :func:`validate`.

    Nothing is imputed: what is missing, or says "unknown", is missing afterwards. What is not
    understood is listed under `uns["scvi_perturb"]["unknown_terms"]`, by field, and a warning is
    logged. Such a label stays as it is; such an age or sex is missing. What was read from where,
    the keys and the units are put into `uns["scvi_perturb"]` too; translations are logged.

    Parameters
    ----------
    adata
        A screen, or samples that were not perturbed.
    schema
        "scperturb", "gears", "cpa", "pertpy", "canonical", or "auto" to recognise one of them by
        its columns; or a mapping of canonical field to column, such as
        `{"perturbation": "gene", "dose": "concentration", "dose_unit": "unit"}`.
    control
        Label or labels of control cells. None recognises the usual ones, such as "ctrl",
        "non-targeting_00012", "NTg1", "DMSO", "vehicle", "unperturbed".
    separator
        What stands between names in the labels of this screen, besides "+": ";", "_". A number
        after "_" belongs to the name before it, as in "GENE_1".
    perturbed
        Whether there are perturbations. If not, as in an atlas, only the columns of samples and
        cells are written, and a column of perturbations is not looked for.
    ontologies
        For a field (`tissue`, `cell_type`, `cell_line`, `disease`, `developmental_stage`,
        `ethnicity`) the ontology to check it against: a file as :meth:`OntologyTerms.read` takes
        it, or the terms. A label that is the name or an exact synonym of a term, whatever its
        case, becomes the term's name and gets its identifier; an identifier gets the name.
    copy
        Whether to leave `adata` as it is. A copy of a backed AnnData is read into memory; a view
        is always copied.

    Returns
    -------
    The screen with canonical columns.

    Raises
    ------
    ValueError
        If the schema, or a field of `ontologies`, is not known.
    SchemaError
        If a column is absent, a perturbation is missing, a perturbed cell has no dose though others
        have, units cannot be brought to one, a quantity is no single number, or a file holds no
        ontology.
    TypeError
        If `adata` is no AnnData.
    FileNotFoundError
        If a file of an ontology is absent.
    ImportError
        If an ontology is in OWL and pronto is not installed.

    References
    ----------
    Peidli et al., scPerturb, Nature Methods 2024, for its layout. CELLxGENE's schema for the names
    of columns of identifiers.
    """
    if separator is not None:
        check_separator(separator)
    for field in ontologies or ():
        check_choice("ontologies field", field, TERM_FIELDS)
    before = adata.uns.get(UNS_KEY, {})
    name, columns = _sources(adata, schema, perturbed=perturbed)
    terms = {
        field: given if isinstance(given, OntologyTerms) else OntologyTerms.read(given)
        for field, given in (ontologies or {}).items()
    }
    if copy or adata.is_view:
        adata = adata.to_memory() if adata.isbacked else adata.copy()
    labels = ControlLabels(control)
    metadata, unknown = metadata_columns(adata.obs, columns, terms)
    made, units = metadata | _library_size(adata.obs, columns), dict[str, str]()
    if perturbed:
        fields = {field: column for field, column in columns.items() if field not in SAMPLE_FIELDS}
        found = condition_columns(adata.obs, fields, labels, separator)
        made, units, unknown = found.columns | made, found.units, unknown | found.unknown
        if found.doubts or name != "canonical":
            before = {**before, "doubtful_labels": _doubtful(found.doubts)}
    if "age" in made:
        units["age"] = "years"
    for column, values in made.items():
        adata.obs[column] = values
    _report(adata, name, columns, labels if perturbed else None)
    for field, values in unknown.items():
        values.warn(field, adata.n_obs)
    for field in sorted(terms.keys() - unknown.keys()):
        logger.warning("No column of %s was found to check against its ontology.", field)
    adata.uns[UNS_KEY] = {
        **before,
        "schema": name,
        "source": columns,
        "units": _units(before, units),
        "keys": _keys(adata, before, made),
        "unknown_terms": _unknown_terms(before, unknown, terms),
    }
    return adata


def _doubtful(doubts: Mapping[str, str]) -> dict[str, list[str]]:
    """Return labels and what speaks against each, as lists that a file can hold; log them."""
    for reason in sorted(set(doubts.values())):
        labels = sorted(label for label, why in doubts.items() if why == reason)
        logger.warning(
            "%d labels disagree with the rest of the file, such as %s: %s.",
            *(len(labels), ", ".join(map(repr, labels[:3])), reason),
        )
    return {"label": [*doubts], "reason": [*doubts.values()]} if doubts else {}


def _sources(
    adata: AnnData, schema: Schema | Mapping[str, str], *, perturbed: bool
) -> tuple[str, dict[str, str]]:
    """Return the layout and the column of each field, without what was converted before."""
    before = adata.uns.get(UNS_KEY, {})
    if schema == "auto" and Column.PERTURBATION in before.get("keys", {}):
        schema = "canonical"
    name, columns = source_columns(schema, adata.obs.columns, perturbed=perturbed)
    past = set()  # units of the source, which no longer hold
    if name == "canonical" and "units" in before:
        past |= {"dose_unit", "time_unit"}
    if "age" in before.get("units", {}) and columns.get("age") == "age":
        past.add("age_unit")
    return name, {field: column for field, column in columns.items() if field not in past}


def _library_size(obs: pd.DataFrame, columns: Mapping[str, str]) -> dict[str, Any]:
    """Return the column of library sizes, if there is one and it holds some."""
    if _LIBRARY_COLUMN not in columns:
        return {}
    sizes = pd.to_numeric(obs[columns[_LIBRARY_COLUMN]], errors="coerce")
    if (sizes > 0).all():
        return {_LIBRARY_COLUMN: sizes.to_numpy(float)}
    logger.warning("Column %r is not a library size.", columns[_LIBRARY_COLUMN])
    return {}


def _units(before: Mapping[str, Any], units: Mapping[str, str]) -> dict[str, str]:
    """Return the units of what was read now, and of ages that were converted before."""
    known = before.get("units", {})
    kept = {what: str(unit) for what, unit in known.items() if what == "age"}
    return kept | {what: unit or known.get(what, "") for what, unit in units.items()}


def _keys(adata: AnnData, before: Mapping[str, Any], made: Mapping[str, Any]) -> dict[str, Any]:
    """Return which columns hold what; those of metadata found before stay."""
    found = {*made, *map(str, before.get("keys", {}).get("metadata", ()))}
    keys: dict[str, Any] = {role: column for role, column in _ROLES.items() if column in made}
    if Column.PERTURBATION in made:
        keys |= {"control": CONTROL, "separator": SEPARATOR}
    if "batch" in made:
        keys["batch"] = "batch"
    if "cell_type" in made:
        keys["context"] = ["cell_type"]
    return keys | {"metadata": [field for field in METADATA if field in found & {*adata.obs}]}


def _unknown_terms(
    before: Mapping[str, Any],
    unknown: Mapping[str, UnknownValues],
    terms: Mapping[str, OntologyTerms],
) -> dict[str, list[str]]:
    """Return the values that were not understood, by field; those of before, unless checked anew.

    An age or a sex that was not understood is missing the second time, hence known from before.
    """
    kept = {
        field: [*map(str, labels)]
        for field, labels in before.get("unknown_terms", {}).items()
        if field not in terms
    }
    found = {field: sorted(values.n_cells) for field, values in unknown.items() if values.n_cells}
    return kept | found


def _report(
    adata: AnnData, name: str, columns: Mapping[str, str], control: ControlLabels | None
) -> None:
    """Log what was read from where, and what was taken for control."""
    renamed = {field: column for field, column in columns.items() if field != column}
    logger.info("Layout %r; columns read under other names: %s.", name, renamed or "none")
    if control is None:  # nothing was perturbed
        return
    unmet = sorted((control.given or set()) - control.met)
    if unmet:
        logger.warning("No cell has the label of controls %s.", ", ".join(map(repr, unmet)))
    labels = adata.obs[Column.PERTURBATION].unique()
    names = {name for label in labels for name in label.split(SEPARATOR)} - {CONTROL}
    for problem in label_problems(names):
        logger.warning("%s", problem)
    translated = sorted(control.met - {CONTROL})
    if translated:
        logger.info("Labels taken for %r: %s.", CONTROL, translated)
    if not (adata.obs[Column.PERTURBATION] == CONTROL).any():
        logger.warning("No control cell was found; name its label with `control=...`.")
