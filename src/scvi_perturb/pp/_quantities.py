"""Convert written doses, times and ages to numbers in one unit, and detect missing values."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Literal

from scvi_perturb._core import SchemaError, shown
from scvi_perturb.data.condition import as_label, is_missing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["age_in_years", "is_unknown", "to_one_unit"]


def _aliases(*factors: tuple[float, str]) -> dict[str, float]:
    """Return the factor of each of the names, which a space separates."""
    return {alias: factor for factor, aliases in factors for alias in aliases.split()}


_MOLAR = _aliases(
    (1e6, "m molar mol/l"),
    (1e3, "mm millimolar mmol/l"),
    (1.0, "um micromolar umol/l"),
    (1e-3, "nm nanomolar nmol/l"),
    (1e-6, "pm picomolar pmol/l"),
    (1e-9, "fm femtomolar fmol/l"),
)
_MASS = _aliases(
    (1e-3, "pg/ml ng/l"),
    (1.0, "ng/ml ug/l mcg/l"),
    (1e3, "ug/ml mcg/ml mg/l ng/ul"),
    (1e6, "mg/ml g/l ug/ul"),
)
_TIME = _aliases(
    (1 / 3600, "s sec secs second seconds"),
    (1 / 60, "min mins minute minutes"),
    (1.0, "h hr hrs hour hours hpi"),
    (24.0, "d day days"),
    (168.0, "w wk wks week weeks"),
)
#: Units of age in years of 365.25 days.
_AGES = _aliases(
    (1 / 365.25, "d day days"),
    (7 / 365.25, "w wk wks week weeks"),
    (1 / 12, "m mo mos mth mths month months"),
    (1.0, "y yr yrs year years yo y.o y/o"),
)

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
#: The comma of "1,000" separates thousands; a text with any other is not understood. A unit is
#: letters, %, µ and /: what else stands there, as in "10-20 uM" or "24 h 30 min", is not dropped.
_UNIT = r"[a-zA-Z%/\u00b5\u03bc]*"
_SINCE = r"[\s-]+(?:post|after)\b[a-zA-Z\s-]*"  # "24 hours post infection"
_QUANTITY = {
    "dose": re.compile(rf"({_NUMBER})(?![\d.,])\s*({_UNIT})", re.ASCII),
    "time": re.compile(rf"({_NUMBER})(?![\d.,])\s*({_UNIT})(?:{_SINCE})?", re.ASCII),
}
_UNIT_FIRST = re.compile(r"([a-zA-Z]+)\s*(\d+\.?\d*)", re.ASCII)  # "day 7", "h24"

#: Nobody is older: the unit is another one.
_OLDEST = 130.0
_AGE_NUMBER = r"(\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+)"
_AGE = re.compile(
    # \u2013 is the dash of printed ranges
    rf"\s*{_AGE_NUMBER}(?:\s*(?:-|\u2013|to)\s*{_AGE_NUMBER})?"
    r"(?:\s*-?\s*([a-z./]+?))?(?:[\s-]+(?:old|of age))?\s*"
)

#: Words by which public metadata say that they do not know.
_UNKNOWN = frozenset(
    (
        *("unknown", "missing", "unspecified", "not available", "not applicable"),
        *("not collected", "not provided", "not reported", "not recorded"),
    )
)


def is_unknown(value: object) -> bool:
    """Whether a value is missing, or says in words that nothing is known."""
    return is_missing(value) or as_label(value).casefold() in _UNKNOWN


def to_one_unit(
    quantities: Sequence[tuple[object, object]], *, what: Literal["dose", "time"]
) -> tuple[list[float], str]:
    """Return doses or times as numbers of one unit, and the unit; "" if none is given.

    Quantities are pairs of a number or text ("10", "10 uM", "24h") and a unit for those without
    one; missing ones become NaN. Molar units become uM, mass concentrations ng/mL, times hours.
    Doses of several kinds (drugs in uM, cytokines in ng/mL) keep one unit a kind, joined by ", ".
    An unknown unit is kept where it is the only one. "1,000" is a thousand, "24 hours post
    infection" is 24 hours.
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


def age_in_years(value: object, unit: object = None) -> float | None:
    """Return an age in years; NaN if it is missing, None if it is not understood.

    A unit in the text wins over `unit`; without either it is years. A range, "40-49 years", is
    its midpoint, 44.5. A year has 12 months and 365.25 days. Words ("fetal", "adult"), open ranges
    ("90+"), negative ages, unknown units and ages over 130 years are not understood.
    """
    if is_unknown(value):
        return math.nan
    match = _AGE.fullmatch(as_label(value).casefold())
    if match is None:
        return None
    own = match[3] or ("years" if is_unknown(unit) else as_label(unit).casefold())
    own = own.rstrip(".")
    low = float(match[1])
    high = low if match[2] is None else float(match[2])
    if own not in _AGES or high < low:
        return None
    years = (low + high) / 2 * _AGES[own]
    return years if years <= _OLDEST else None


def _read(value: object, unit: object, what: str) -> tuple[float, str]:
    """Return a number and the unit as it is written, in small letters if known."""
    text = as_label(value)
    given = "" if is_missing(unit) else as_label(unit)
    if match := _QUANTITY[what].fullmatch(text):
        number, own = match[1].replace(",", ""), match[2]
    elif what == "time" and (match := _UNIT_FIRST.fullmatch(text)):
        number, own = match[2], match[1]
    else:
        number, own = "inf", ""
    if math.isinf(float(number)):
        msg = (
            f"{what} {shown(value)} is not a quantity; expected one number, or one with a unit: "
            "'10 uM'. A range or a sum is not read: write the number that is meant."
        )
        raise SchemaError(msg)
    named = own or (re.sub(rf"{_SINCE}$", "", given) if what == "time" else given)
    if re.search(r"\d", named):
        msg = f"{what} {shown(value)} has the unit {shown(named)}; expected a unit without numbers."
        raise SchemaError(msg)
    plain = named.replace("\u00b5", "u").replace("\u03bc", "u").casefold()
    return float(number), plain if _converted(plain, what) else named


def _converted(unit: str, what: str) -> tuple[str, float] | None:
    """Return the unit that is written and the factor to it, or None if it is not known."""
    for name, factors in _UNITS[what].items():
        if unit in factors:
            return name, factors[unit]
    return None
