"""Doses and times with units as numbers of one unit."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Literal

from scvi_perturb._errors import SchemaError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["is_missing", "to_one_unit"]

_MOLAR = {
    alias: factor
    for factor, aliases in (
        (1e6, "m molar mol/l"),
        (1e3, "mm millimolar mmol/l"),
        (1.0, "um micromolar umol/l"),
        (1e-3, "nm nanomolar nmol/l"),
        (1e-6, "pm picomolar pmol/l"),
        (1e-9, "fm femtomolar fmol/l"),
    )
    for alias in aliases.split()
}
_MASS = {
    alias: factor
    for factor, aliases in (
        (1e-3, "pg/ml ng/l"),
        (1.0, "ng/ml ug/l mcg/l"),
        (1e3, "ug/ml mcg/ml mg/l ng/ul"),
        (1e6, "mg/ml g/l ug/ul"),
    )
    for alias in aliases.split()
}
_TIME = {
    alias: factor
    for factor, aliases in (
        (1 / 3600, "s sec secs second seconds"),
        (1 / 60, "min mins minute minutes"),
        (1.0, "h hr hrs hour hours hpi"),
        (24.0, "d day days"),
        (168.0, "w wk wks week weeks"),
    )
    for alias in aliases.split()
}
#: For doses and for times: the unit that is written, and the factors of those that are read.
_UNITS: Mapping[str, Mapping[str, Mapping[str, float]]] = {
    "dose": {
        "uM": _MOLAR,
        "ng/mL": _MASS,
        "U/mL": dict.fromkeys(("u/ml", "iu/ml", "unit/ml", "units/ml"), 1.0),
        "Gy": {"gy": 1.0, "cgy": 0.01, "mgy": 0.001},
        "%": {"%": 1.0, "percent": 1.0},
    },
    "time": {"h": _TIME},
}
_NUMBER = r"[-+]?(?:\d{1,3}(?:,\d{3})+(?:\.\d*)?|\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
#: The comma of "1,000" separates thousands; a text with any other is not understood.
_QUANTITY = re.compile(rf"\s*({_NUMBER})(?![\d.,])\s*(.*?)\s*")
_SINCE = re.compile(r"[\s-]+(?:post|after)\b.*")  # "24 hours post infection"
_UNIT_FIRST = re.compile(r"\s*([a-zA-Z]+)\s*(\d+\.?\d*)\s*")  # "day 7", "h24"
_MISSING = frozenset({"", "none", "nan", "na", "n/a", "null", "<na>"})


def is_missing(value: object) -> bool:
    """Whether a value is missing: None, NaN, NA, or text such as "" or "None"."""
    return str(value).strip().casefold() in _MISSING


def to_one_unit(
    quantities: Sequence[tuple[object, object]], *, what: Literal["dose", "time"]
) -> tuple[list[float], str]:
    """Return quantities as numbers of one unit.

    Molar units become uM, mass concentrations ng/mL, times hours. Doses of several kinds (drugs in
    uM, cytokines in ng/mL) keep one unit a kind. A unit that is not known is kept where it is the
    only one. "1,000" is a thousand, "24 hours post infection" is 24 hours.

    Parameters
    ----------
    quantities
        Pairs of a number or text ("10", "10 uM", "24h") and a unit for those without one. Missing
        ones become NaN.
    what
        Whether they are doses or times.

    Returns
    -------
    The numbers and the unit, "" if none is given; several are joined by ", ".

    Raises
    ------
    SchemaError
        If something is not a quantity, units are given for some only, or an unknown unit stands
        beside others.
    """
    read = [None if is_missing(value) else _read(value, unit, what) for value, unit in quantities]
    units = {unit for _, unit in filter(None, read)}
    converted = {unit: _converted(unit, what) for unit in units}
    unknown = sorted(unit for unit, known in converted.items() if known is None and unit)
    if len(units) > 1 and (unknown or "" in units):
        lack = f"unit {unknown[0]!r} is not known" if unknown else "some have no unit"
        known = sorted({alias for family in _UNITS[what].values() for alias in family})
        msg = (
            f"The {what}s have several units ({sorted(units)}), but {lack}; expected one unit, or "
            f"units that can be converted: {', '.join(known)}."
        )
        raise SchemaError(msg)
    numbers, names = [], set()
    for item in read:
        if item is None:
            numbers.append(math.nan)
            continue
        number, unit = item
        name, factor = converted[unit] or (unit, 1.0)
        numbers.append(number * factor)
        names.add(name)
    return numbers, ", ".join(sorted(names))


def _read(value: object, unit: object, what: str) -> tuple[float, str]:
    """Return a number and the unit as it is written, in small letters if known."""
    text = str(value)
    given = "" if is_missing(unit) else str(unit)
    if match := _QUANTITY.fullmatch(text):
        number, own = match[1].replace(",", ""), match[2]
    elif what == "time" and (match := _UNIT_FIRST.fullmatch(text)):
        number, own = match[2], match[1]
    else:
        msg = f"{what} {text!r} is not a quantity; expected a number, or one with a unit: '10 uM'."
        raise SchemaError(msg)
    named = (own or given).strip()
    if what == "time":
        named = _SINCE.sub("", named)
    plain = named.replace("µ", "u").replace("μ", "u").casefold()
    return float(number), plain if _converted(plain, what) else named


def _converted(unit: str, what: str) -> tuple[str, float] | None:
    """Return the unit that is written and the factor to it, or None if it is not known."""
    for name, factors in _UNITS[what].items():
        if unit in factors:
            return name, factors[unit]
    return None
