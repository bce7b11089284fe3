"""Conditions, and the keys that say where a screen holds them."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from decimal import Decimal
from numbers import Real
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self

import numpy as np
import pandas as pd

from scvi_perturb._checks import checked
from scvi_perturb._core import CONTROL, SEPARATOR, UNS_KEY, Column, SchemaError, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

#: Text of a missing value, in small letters.
_MISSING: Final = frozenset(("", "none", "nan", "nat", "na", "n/a", "null", "<na>", "-", "--"))
_NUMBER: Final = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", re.ASCII)
#: Doses and times become float32; what is nearer to zero, or larger, is none of either.
_SMALLEST, _LARGEST = 1e-37, 1e37


@dataclass(frozen=True, slots=True)
class Component:
    """One perturbation of a condition: a gene edit, a drug, a cytokine.

    Parameters
    ----------
    name
        The perturbation's name, without white space around it.
    dose
        From 1e-37 to 1e37, in the unit of the data set; 1 where doses are not recorded. Kept to
        six significant digits, so that 0.1 read from text, float32 or float64 is one dose.
    kind
        How it acts ("CRISPRa", "drug"), or an empty string. The same name with another kind is
        another component.

    Raises
    ------
    SchemaError
        If the name is empty or the dose is not a positive, finite number.
    """

    name: str
    dose: float = 1.0
    kind: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", _text(self.name))
        object.__setattr__(self, "kind", _text(self.kind))
        if not self.name:
            msg = "A perturbation has an empty name; expected names such as 'A' or 'A+B'."
            raise SchemaError(msg)
        object.__setattr__(self, "dose", _dose(self.dose, self.name))


@dataclass(frozen=True, slots=True)
class Condition:
    """A set of components, kept in canonical order, so that "B+A" equals "A+B".

    Parameters
    ----------
    components
        In any order; none means control.
    time
        Time since the perturbation was applied, or None where it is not recorded. A control was
        not perturbed and has none: what is given is dropped, so there is exactly one control.

    Raises
    ------
    SchemaError
        If a component (a name and a kind) comes twice, or the time is negative or infinite.
    """

    components: tuple[Component, ...] = ()
    time: float | None = None

    def __post_init__(self) -> None:
        ordered = tuple(sorted(self.components, key=lambda part: (part.name, part.kind)))
        object.__setattr__(self, "components", ordered)
        seen = [(part.name, part.kind) for part in ordered]
        twice = sorted({name for name, kind in seen if seen.count((name, kind)) > 1})
        if twice:
            msg = (
                f"Component {twice[0]!r} comes twice in one condition; expected each at most once. "
                "Two guides of one target are one component: name the target, not the guide."
            )
            raise SchemaError(msg)
        object.__setattr__(self, "time", _time(self.time) if ordered else None)

    @classmethod
    def parse(
        cls,
        perturbation: object,
        *,
        dose: object = ...,
        time: object = None,
        kind: object = ...,
        control: object = CONTROL,
        separator: str = SEPARATOR,
    ) -> Self:
        """Read a condition from one row of a screen's annotation.

        Parameters
        ----------
        perturbation
            A label such as "A", "B+A", "A+control", "control" or an integer.
        dose
            Number, or text such as "10+5" in the order of `perturbation`; one dose for several
            components holds for each. Left out, doses are not recorded (1 each); None, NaN, "",
            "NA" and "-" are a missing dose.
        time
            Number, or None or NaN where it is not recorded.
        kind
            One kind for all, or one each ("CRISPRa+CRISPRi"); left out, kinds are not recorded.
        control
            The control's label. Controls inside a combination are dropped with their doses.
        separator
            What stands between components: text without digits and points, not "e".

        Raises
        ------
        SchemaError
            If a name is empty or repeated, a perturbed component's dose is missing, not a number
            or not positive, the number of doses or kinds is not that of the components, or the
            separator cannot be told from the digits of a dose.
        """
        check_separator(separator)
        label, unperturbed = _text(perturbation), as_label(control)
        names = [name.strip() for name in label.split(separator)] if label != unperturbed else []
        kept = [i for i, name in enumerate(names) if name != unperturbed]
        if not kept:
            return cls()
        doses = aligned(dose, names, separator, what="dose")
        kinds = aligned(kind, names, separator, what="kind")
        parts = tuple(
            Component(
                names[i],
                1.0 if dose is ... else _dose(doses[i], names[i]),
                "" if kind is ... else _kind(kinds[i], names[i]),
            )
            for i in kept
        )
        return cls(parts, time=_time(time))

    @property
    def is_control(self) -> bool:
        """Whether nothing was perturbed."""
        return not self.components

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the components, in canonical order."""
        return tuple(part.name for part in self.components)

    @property
    def perturbation(self) -> str:
        """The canonical label, "A+B" or "control"."""
        return self.format()

    def format(self, control: object = CONTROL, separator: str = SEPARATOR) -> str:
        """Return the canonical label, which `parse` reads back.

        Raises
        ------
        SchemaError
            If it would be read back as something else: a name holds the separator, or the label is
            that of the control.
        """
        check_separator(separator)
        unperturbed, label = as_label(control), separator.join(self.names)
        read = tuple(part.strip() for part in label.split(separator))
        if self.names and (read != self.names or unperturbed in (label, *read)):
            msg = (
                f"{label!r} cannot be written with separator {separator!r} and control "
                f"{unperturbed!r}: it would be read back differently. Choose other ones."
            )
            raise SchemaError(msg)
        return label or unperturbed

    def format_doses(self, separator: str = SEPARATOR) -> str:
        """Return the doses in the order of `names`; "0" for control."""
        check_separator(separator)
        return separator.join(_number(part.dose) for part in self.components) or "0"

    def format_kinds(self, separator: str = SEPARATOR) -> str:
        """Return the kinds in the order of `names`; one if all are the same, "" for control."""
        check_separator(separator)
        kinds = [part.kind for part in self.components]
        text = kinds[0] if len(set(kinds)) == 1 else separator.join(kinds)
        read = [part.strip() for part in text.split(separator)]
        if kinds and read not in (kinds, kinds[:1]):
            msg = f"Kinds {kinds} cannot be written with separator {separator!r}; choose another."
            raise SchemaError(msg)
        return text

    def __str__(self) -> str:
        """Describe the condition for a message: "A (dose 5) + B, time 6"."""
        parts = [
            part.name + (f" (dose {_number(part.dose)})" if part.dose != 1 else "")
            for part in self.components
        ]
        text = " + ".join(parts) or CONTROL
        return text if self.time is None else f"{text}, time {_number(self.time)}"


def check_separator(separator: object) -> None:
    """Raise `SchemaError` unless text can stand between names and, told from digits, doses."""
    if (
        not isinstance(separator, str)
        or not separator
        or re.search(r"[\d.]", separator)
        or (re.fullmatch(r"[eE+-]+", separator) and not re.fullmatch(r"[+-]+", separator))
    ):
        msg = (
            f"separator={shown(separator)} cannot stand between components; expected text without "
            "digits and points that is not the 'e' of a number, such as '+' or ';'."
        )
        raise SchemaError(msg)


def as_label(value: object) -> str:
    """Return a label as text: 3, 3.0, " 3 " and b"3" are the same.

    Raises `SchemaError`: If bytes are not UTF-8, or a number has too many digits to be written.
    """
    try:
        if isinstance(value, bytes):
            return value.decode().strip()
        number = not isinstance(value, bool) and isinstance(value, Real)
        if number and float(value).is_integer():  # type: ignore[arg-type]
            return str(int(value))  # type: ignore[call-overload]
        return str(value).strip()
    except (OverflowError, ValueError):
        msg = f"Label {shown(value)} cannot be read as text; expected UTF-8, or a smaller number."
        raise SchemaError(msg) from None


def _text(value: object) -> str:
    """Return a label, empty where it is missing; the text "NA" may be a name."""
    return "" if not isinstance(value, str) and is_missing(value) else as_label(value)


def is_missing(value: Any) -> bool:  # noqa: ANN401
    """Whether a value is missing: None, NaN, NA, or text such as "", "-" or "None"."""
    if isinstance(value, str | bytes):
        return as_label(value).casefold() in _MISSING
    return bool(pd.api.types.is_scalar(value) and pd.isna(value))


def as_number(value: object) -> float:
    """Return a number, NaN where it is missing.

    Raises `ValueError`: If it is no number, such as "1_000", "10-20" and True, or is infinite.
    """
    if is_missing(value):
        return math.nan
    text = as_label(value) if isinstance(value, str | bytes) else None
    is_number = isinstance(value, Real | Decimal) and not isinstance(value, bool)
    if not is_number and (text is None or _NUMBER.fullmatch(text) is None):
        msg = f"{shown(value)} is not a number"
        raise ValueError(msg)
    try:
        number = float(value if text is None else text)  # type: ignore[arg-type]
    except OverflowError:
        number = math.inf
    if math.isinf(number):
        msg = f"{shown(value)} is too large"
        raise ValueError(msg)
    return number


def aligned(value: object, names: Sequence[str], separator: str, *, what: str) -> list[object]:
    """Return one value a name, from one for all or one each.

    Raises `SchemaError`: If the number of values is neither one nor that of the names.
    """
    if isinstance(value, bytes):
        value = as_label(value)
    if not isinstance(value, str):
        return [value] * len(names)
    # the "+" of a dose of "1e+3" belongs to the number
    exponent = r"(?<![\d.][eE])" if what == "dose" else ""
    parts = re.split(exponent + re.escape(separator), value)
    if len(parts) not in (1, len(names)):
        msg = (
            f"{what} {shown(value)} has {len(parts)} parts for the {len(names)} components of "
            f"{shown(separator.join(names))}; expected one for all or one for each."
        )
        raise SchemaError(msg)
    return [part.strip() for part in (parts if len(parts) == len(names) else parts * len(names))]


def _dose(value: object, name: str) -> float:
    """Return the dose of a component; a missing one is an error, never 1."""
    try:
        dose = _rounded(as_number(value))
    except ValueError:
        msg = (
            f"The dose of {name!r} is {shown(value)}; expected a number. Doses with units are "
            "turned into numbers of one unit by `scvi_perturb.pp.harmonize`."
        )
        raise SchemaError(msg) from None
    if not _SMALLEST <= dose <= _LARGEST:
        msg = (
            f"The dose of {name!r} is {dose:g}; expected a positive, finite number from "
            f"{_SMALLEST:g} to {_LARGEST:g}. Fill it in, drop these cells, or label undosed cells "
            "as control."
        )
        raise SchemaError(msg)
    return dose


def _kind(value: object, name: str) -> str:
    """Return the kind of a component; a missing one is an error."""
    if not isinstance(value, str | bytes):
        msg = (
            f"The kind of {name!r} is {shown(value)}; expected text such as 'CRISPRa' or 'drug'. "
            "Fill it in, or leave the kinds out."
        )
        raise SchemaError(msg)
    return as_label(value)


def _time(value: object) -> float | None:
    """Return a time as a number, or None where it is missing."""
    try:
        time = as_number(value)
    except ValueError:
        msg = (
            f"Time {shown(value)} is not a finite number >= 0. Times with units are turned into "
            "hours by `scvi_perturb.pp.harmonize`."
        )
        raise SchemaError(msg) from None
    if math.isnan(time):
        return None
    if not 0 <= time <= _LARGEST:
        msg = f"Time {time:g} is not a time since perturbation; expected a finite number >= 0."
        raise SchemaError(msg)
    return _rounded(time)


def _rounded(value: float) -> float:
    """Return a number to six significant digits."""
    return float(f"{value:.6g}")


def _number(value: float) -> str:
    """Return the shortest text that reads back as the same number: 10, not 10.0."""
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)


#: Columns that results write beside those of the screen.
_OF_RESULTS: Final = frozenset(
    {"draw", "n_cells", "novelty", "reference_cell", "regime", "scenario", "support"}
)


@checked
@dataclass(frozen=True, slots=True)
class ScreenKeys:
    """Where a screen holds its conditions, contexts and counts.

    Parameters
    ----------
    perturbation
        Column of labels: "A", "A+B", the control's label.
    dose, time, kind
        Columns of doses, times and kinds, or None where they are not recorded.
    control
        The control's label; numbers are read as text.
    separator
        What stands between the components of a combination.
    context
        Columns that say in what the perturbation acts, such as cell type and donor: one name, or
        several.
    batch
        Column of technical batches, which only models use.
    layer
        Layer of the raw counts; None is `X`.
    library
        Column of library sizes, which only models use; None sums the counts.
    """

    perturbation: str = Column.PERTURBATION
    dose: str | None = None
    time: str | None = None
    kind: str | None = None
    control: str = CONTROL
    separator: str = SEPARATOR
    context: tuple[str, ...] = ()
    batch: str | None = None
    layer: str | None = None
    library: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "control", as_label(self.control))
        object.__setattr__(self, "context", as_columns(self.context))
        check_separator(self.separator)
        named = (self.dose, self.time, self.kind, self.batch, self.layer, self.library)
        texts = (self.perturbation, *self.context, *(one for one in named if one is not None))
        wrong = [one for one in texts if not isinstance(one, str)]
        if wrong:
            msg = f"ScreenKeys names columns by text; found {shown(wrong[0])}."
            raise SchemaError(msg)
        taken = sorted(_OF_RESULTS.intersection(self.obs_columns))
        if taken:
            msg = f"obs[{taken[0]!r}] is a column that results write; rename that of the screen."
            raise SchemaError(msg)

    @property
    def columns(self) -> dict[str, str]:
        """The columns of the condition, by the argument of `Condition.parse` that they fill."""
        named = {
            "perturbation": self.perturbation,
            "dose": self.dose,
            "time": self.time,
            "kind": self.kind,
        }
        return {role: column for role, column in named.items() if column is not None}

    @property
    def obs_columns(self) -> list[str]:
        """The columns of the condition and the context."""
        return [*self.columns.values(), *self.context]

    def to_dict(self) -> dict[str, Any]:
        """Return the keys as plain types, fit for JSON; `ScreenKeys(**state)` reads them."""
        return asdict(self) | {"context": list(self.context)}

    def parse(
        self,
        *,
        perturbation: object,
        dose: object = ...,
        time: object = None,
        kind: object = ...,
    ) -> Condition:
        """Parse one row; see `Condition.parse`."""
        return Condition.parse(
            perturbation,
            dose=dose,
            time=time,
            kind=kind,
            control=self.control,
            separator=self.separator,
        )


def default_keys(adata: AnnData) -> ScreenKeys:
    """Return the keys that `scvi_perturb.pp.harmonize` recorded, or else the columns it writes.

    Raises `SchemaError`: If nothing is recorded and there is no column "perturbation".
    """
    recorded = harmonised_keys(adata)
    if "perturbation" in recorded:  # not of samples that were not perturbed
        roles = {*ScreenKeys.__dataclass_fields__} & {*recorded} - {"context"}
        named = {role: str(recorded[role]) for role in roles}
        return ScreenKeys(**named, context=recorded["context"])
    if Column.PERTURBATION not in adata.obs:
        _refuse_absent(Column.PERTURBATION, adata.obs)
    return ScreenKeys(
        dose=Column.DOSE if Column.DOSE in adata.obs else None,
        time=Column.TIME if Column.TIME in adata.obs else None,
        kind=Column.KIND if Column.KIND in adata.obs else None,
    )


def harmonised_keys(adata: AnnData) -> dict[str, Any]:
    """Return the columns that `harmonize` wrote down, by what they hold."""
    recorded = adata.uns.get(UNS_KEY, {})
    keys = dict(recorded.get("keys", {})) if hasattr(recorded, "get") else {}
    keys["context"] = tuple(map(str, keys.get("context", ())))
    return {role: column for role, column in keys.items() if column is not None}


def as_columns(columns: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return columns as a tuple; one name is one column, not its letters."""
    if columns is None:
        return ()
    listed = (columns,) if isinstance(columns, str) else tuple(columns)
    if len(set(listed)) < len(listed):
        msg = f"Columns {list(listed)} name one of them several times; name each once."
        raise SchemaError(msg)
    return listed


def distinct_rows(
    obs: pd.DataFrame, keys: ScreenKeys
) -> tuple[list[dict[str, object]], NDArray[np.int64]]:
    """Return the distinct rows of the condition's columns, and which of them each cell has.

    Raises `SchemaError`: If a column is absent or a perturbation is missing.
    """
    columns = keys.columns
    absent = sorted(set(columns.values()) - set(map(str, obs.columns)))
    if absent:
        _refuse_absent(absent[0], obs)
    missing = int(obs[columns["perturbation"]].isna().sum())
    if missing:
        msg = (
            f"obs[{columns['perturbation']!r}] is missing for {missing} of {len(obs)} cells; "
            "expected a label each. Drop these cells or label them as control."
        )
        raise SchemaError(msg)
    first, inverse = row_codes(obs, list(columns.values()))
    picked = {role: obs[column].iloc[first].tolist() for role, column in columns.items()}
    rows = [{role: values[i] for role, values in picked.items()} for i in range(len(first))]
    return rows, inverse


def _refuse_absent(column: str, obs: pd.DataFrame) -> NoReturn:
    msg = (
        f"obs has no column {column!r}; it has {sorted(map(str, obs.columns))}. Use "
        "`scvi_perturb.pp.harmonize`, or name the columns with `keys=ScreenKeys(...)`."
    )
    raise SchemaError(msg)


def as_labels(values: pd.Series[Any], missing: str | None = None) -> NDArray[np.object_]:
    """Return `as_label` of each value; only the distinct ones are turned into text."""
    codes, distinct = _factorized(values)
    labels = np.empty(len(distinct) + 1, dtype=object)
    labels[:] = [*map(as_label, distinct), missing]  # missing values have code -1, the last place
    found: NDArray[np.object_] = labels[codes]
    return found


def _factorized(values: pd.Series[Any]) -> tuple[NDArray[np.intp], Any]:
    """Return codes and distinct values of a column.

    Raises `SchemaError`: If it holds lists or arrays.
    """
    try:
        return pd.factorize(values)
    except (TypeError, OverflowError):
        msg = (
            f"obs[{values.name!r}] holds lists or the like, or a number that is too large; "
            "expected one label or number a cell."
        )
        raise SchemaError(msg) from None


def row_codes(
    obs: pd.DataFrame, columns: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the places of the first of each distinct row, and the number of each cell's row."""
    inverse = np.zeros(len(obs), np.int64)
    for column in columns:
        codes, values = _factorized(obs[column])
        inverse = pd.factorize(inverse * (len(values) + 1) + codes + 1)[0].astype(np.int64)
    _, first = np.unique(inverse, return_index=True)
    return first.astype(np.int64), inverse
