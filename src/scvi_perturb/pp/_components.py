"""The components of conditions, from labels, doses and kinds as public screens write them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scvi_perturb._constants import SEPARATOR
from scvi_perturb.data.condition import Component, Condition, aligned, as_label
from scvi_perturb.pp._identifiers import perturbation_identifier
from scvi_perturb.pp._units import is_missing, to_one_unit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from scvi_perturb.pp._controls import ControlLabels

__all__ = ["Part", "conditions_of", "identifiers_of", "parts_of"]

_SUFFIXES = ("", "_2", "_3", "_4")


@dataclass(frozen=True, slots=True)
class Part:
    """One component as it was read: its dose is not yet a number."""

    name: str
    dose: object
    unit: object
    kind: object


def parts_of(row: Mapping[str, object], control: ControlLabels) -> list[Part]:
    """Return the components of one row, of all columns of perturbations; controls left out."""
    parts = []
    for suffix, names in _names_of(row, control):
        dose, unit, kind = (
            aligned(row.get(field + suffix), names, SEPARATOR, what=field)
            for field in ("dose", "dose_unit", "perturbation_type")
        )
        parts += [
            Part(name, *values)
            for name, *values in zip(names, dose, unit, kind, strict=True)
            if name not in control
        ]
    return parts


def identifiers_of(
    row: Mapping[str, object], control: ControlLabels
) -> tuple[str | None, list[str]]:
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


def conditions_of(parts: Sequence[Sequence[Part]]) -> tuple[list[Condition], str | None]:
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
