"""Conditions as public screens write them: controls, components, doses, kinds, identifiers."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scvi_perturb._core import (
    CONTROL,
    DOSE_COLUMN,
    KIND_COLUMN,
    PERTURBATION_COLUMN,
    SEPARATOR,
    TIME_COLUMN,
    SchemaError,
)
from scvi_perturb.data.condition import Component, Condition, aligned, as_label, row_codes
from scvi_perturb.pp._metadata import UnknownValues, to_cells
from scvi_perturb.pp._ontology import perturbation_identifier
from scvi_perturb.pp._quantities import is_missing, to_one_unit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import pandas as pd

__all__ = ["ControlLabels", "condition_columns", "looks_like_control"]

#: In small letters, without spaces, hyphens and underscores.
_LABELS = frozenset(
    (
        *("control", "controls", "ctrl", "ctl", "negctrl", "negativecontrol", "mock"),
        *("nontargeting", "nontargetingcontrol", "nt", "ntc", "safetargeting", "scrambled"),
        *("scramble", "vehicle", "dmso", "pbs"),
        *("untreated", "nottreated", "unperturbed", "unstimulated", "unstim"),
    )
)
_ID_COLUMN = "perturbation_id"
_SUFFIXES = ("", "_2", "_3", "_4")


def looks_like_control(label: object) -> bool:
    """Whether a label is a usual name of controls, whatever its case, spaces and hyphens."""
    return re.sub(r"[-_\s]", "", as_label(label)).casefold() in _LABELS


class ControlLabels:
    """Says which labels are controls, the usual ones if none is given; remembers which it met."""

    def __init__(self, given: str | Sequence[str] | None) -> None:
        listed = given if isinstance(given, (list, tuple)) else [given]
        self._given = None if given is None else {as_label(label) for label in listed}
        self.met: set[str] = set()

    def __contains__(self, label: str) -> bool:
        control = looks_like_control(label) if self._given is None else label in self._given
        if control:
            self.met.add(label)
        return control


@dataclass(frozen=True, slots=True)
class _RawComponent:
    """One component as it was read: its dose is not yet a number."""

    name: str
    dose: object
    unit: object
    kind: object


def condition_columns(
    obs: pd.DataFrame, fields: Mapping[str, str], control: ControlLabels
) -> tuple[dict[str, Any], dict[str, str], dict[str, UnknownValues]]:
    """Return the columns that describe conditions, units of doses and times, and unknown ids."""
    first, inverse = row_codes(obs, list(fields.values()))
    picked = {field: obs[column].iloc[first].tolist() for field, column in fields.items()}
    rows = [{field: values[i] for field, values in picked.items()} for i in range(len(first))]
    labels = [row["perturbation"] for row in rows]
    missing = np.array([is_missing(x) and as_label(x) not in control for x in labels])[inverse]
    if missing.any():
        msg = (
            f"obs[{fields['perturbation']!r}] is missing for {missing.sum()} of {len(obs)} cells; "
            "drop these cells, or label them as control."
        )
        raise SchemaError(msg)
    conditions, dose_unit = _conditions([_raw_components(row, control) for row in rows])
    made: dict[str, Any] = {PERTURBATION_COLUMN: [c.format() for c in conditions]}
    units = {}
    if dose_unit is not None:
        made[DOSE_COLUMN] = [c.format_doses() for c in conditions]
        units["dose"] = dose_unit
    if "perturbation_type" in fields:
        made[KIND_COLUMN] = [c.format_kinds() or CONTROL for c in conditions]
    unknown = {}
    if "perturbation_id" in fields:
        read = [_identifiers(row, control) for row in rows]
        made[_ID_COLUMN] = [text for text, _ in read]
        ids = UnknownValues(
            "identifiers of Ensembl (ENSG...), ChEBI, ChEMBL or NCBITaxon, one for each "
            "perturbation"
        )
        for (_, strange), n in zip(read, np.bincount(inverse).tolist(), strict=True):
            for text in strange:
                ids.n_cells[text] += n
        unknown[_ID_COLUMN] = ids
    written: dict[str, Any] = {column: to_cells(values, inverse) for column, values in made.items()}
    times, unit = to_one_unit(
        [(row.get("time"), row.get("time_unit")) for row in rows], what="time"
    )
    if not all(map(math.isnan, times)):
        written[TIME_COLUMN] = np.array(times)[inverse]
        units["time"] = unit
    return written, units, unknown


def _raw_components(row: Mapping[str, object], control: ControlLabels) -> list[_RawComponent]:
    """Return the components of one row, of all columns of perturbations; controls left out."""
    parts = []
    for suffix, names in _names_of(row, control):
        dose, unit, kind = (
            aligned(row.get(field + suffix), names, SEPARATOR, what=field)
            for field in ("dose", "dose_unit", "perturbation_type")
        )
        parts += [
            _RawComponent(name, *values)
            for name, *values in zip(names, dose, unit, kind, strict=True)
            if name not in control
        ]
    return parts


def _identifiers(row: Mapping[str, object], control: ControlLabels) -> tuple[str | None, list[str]]:
    """Return the identifiers of a row's components in their order, and those of no known form.

    "NA" stands for a component without one. Where the identifiers cannot be told to belong to the
    components, the text stays as it is. None is without identifiers, as the control is.
    """
    found: list[tuple[str, str]] = []
    whole, fits = [], True
    for suffix, names in _names_of(row, control):
        perturbed = [name for name in names if name not in control]
        text = row.get("perturbation_id" + suffix)
        if is_missing(text) or not perturbed:
            found += [(name, "NA") for name in perturbed]
            continue
        whole.append(as_label(text))
        listed = [part.strip() for part in whole[-1].split(SEPARATOR)]
        owners = names if len(listed) == len(names) else perturbed
        fits = fits and len(listed) == len(owners)
        found += [pair for pair in zip(owners, listed, strict=False) if pair[0] not in control]
    if not whole:
        return None, []
    if not fits:
        return SEPARATOR.join(whole), whole
    ordered = [text for _, text in sorted(found, key=lambda pair: pair[0])]
    read = {text: perturbation_identifier(text) for text in ordered if not is_missing(text)}
    unknown = [text for text, known in read.items() if known is None]
    return SEPARATOR.join(read.get(text) or text for text in ordered), unknown


def _names_of(row: Mapping[str, object], control: ControlLabels) -> Iterator[tuple[str, list[str]]]:
    """Yield the suffix of each column of perturbations that is filled in, and the names in it."""
    for suffix in _SUFFIXES:
        label = row.get("perturbation" + suffix)
        if not is_missing(label) or as_label(label) in control:
            yield suffix, _names(as_label(label), row.get("n_perturbations"), control)


def _names(label: str, n_perturbations: object, control: ControlLabels) -> list[str]:
    """Return the names in a label; "A_B" is two names where the screen says that it has two."""
    label = re.sub(r"\(\+(/-)?\)", r"(plus\1)", label)  # of a chemical name, not a separator
    if label in control:
        return [label]
    if not is_missing(n_perturbations) and "_" in label:
        names = label.split("_")
        n_perturbed = sum(name not in control and not is_missing(name) for name in names)
        if n_perturbed == float(str(n_perturbations)):
            return [name for name in names if not is_missing(name)]
    return [name.strip() for name in label.split(SEPARATOR)]


def _conditions(parts: Sequence[Sequence[_RawComponent]]) -> tuple[list[Condition], str | None]:
    """Return conditions with doses of one unit, and the unit; None if no dose is recorded."""
    flat = [(part.dose, part.unit) for row in parts for part in row]
    doses, unit = to_one_unit(flat, what="dose")
    recorded = not all(map(math.isnan, doses))
    numbers = iter(doses)
    conditions = []
    for row in parts:
        made = []
        for part in row:
            dose = next(numbers)
            kind = "" if is_missing(part.kind) else str(part.kind)
            made.append(Component(part.name, dose if recorded else 1.0, kind))
        conditions.append(Condition(tuple(made)))
    return conditions, unit if recorded else None
