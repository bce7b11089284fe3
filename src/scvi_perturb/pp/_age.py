"""Ages as people write them, in years."""

from __future__ import annotations

import math
import re

from scvi_perturb.data.condition import as_label
from scvi_perturb.pp._missing import says_nothing

__all__ = ["age_in_years"]

#: Days of a year, and units of age in years.
_YEAR = 365.25
_UNITS = {
    alias: factor
    for factor, aliases in (
        (1 / _YEAR, "d day days"),
        (7 / _YEAR, "w wk wks week weeks"),
        (1 / 12, "m mo mos mth mths month months"),
        (1.0, "y yr yrs year years yo y.o y/o"),
    )
    for alias in aliases.split()
}
#: Nobody is older: the unit is another one.
_OLDEST = 130.0
_NUMBER = r"(\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+)"
_AGE = re.compile(
    rf"\s*{_NUMBER}(?:\s*(?:-|\u2013|to)\s*{_NUMBER})?"  # \u2013 is the dash of printed ranges
    r"(?:\s*-?\s*([a-z./]+?))?(?:[\s-]+(?:old|of age))?\s*"
)


def age_in_years(value: object, unit: object = None) -> float | None:
    """Return an age in years; NaN if it is missing, None if it is not understood.

    A unit in the text wins over `unit`; without either it is years. A range, "40-49 years", is
    its midpoint, 44.5. A year has 12 months and 365.25 days. Words ("fetal", "adult"), open ranges
    ("90+"), negative ages, unknown units and ages over 130 years are not understood.

    Parameters
    ----------
    value
        A number or text such as "45", "45 years", "45y", "6 months", "8-10 weeks".
    unit
        Unit of values without one.
    """
    if says_nothing(value):
        return math.nan
    match = _AGE.fullmatch(as_label(value).casefold())
    if match is None:
        return None
    own = match[3] or ("years" if says_nothing(unit) else as_label(unit).casefold())
    own = own.rstrip(".")
    low = float(match[1])
    high = low if match[2] is None else float(match[2])
    if own not in _UNITS or high < low:
        return None
    years = (low + high) / 2 * _UNITS[own]
    return years if years <= _OLDEST else None
