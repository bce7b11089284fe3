"""Read conditions from public screens: controls, components, doses, kinds, identifiers."""

from __future__ import annotations

import ast
import math
from collections import Counter
from dataclasses import dataclass
from itertools import combinations, product
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from scvi_perturb._core import (
    CONTROL,
    SEPARATOR,
    Column,
    SchemaError,
    looks_like_control,
    shown,
)
from scvi_perturb.data.condition import (
    Component,
    Condition,
    aligned,
    as_label,
    as_number,
    is_missing,
    row_codes,
)
from scvi_perturb.pp._metadata import UnknownValues, to_cells
from scvi_perturb.pp._ontology import perturbation_identifier
from scvi_perturb.pp._quantities import to_one_unit

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

__all__ = ["ConditionColumns", "ControlLabels", "condition_columns", "label_problems"]

_ID_COLUMN = "perturbation_id"
_SUFFIXES = ("", "_2", "_3", "_4")
#: What stands between names in some screens; "+" is read without asking.
_MARKS = (";", "|", ",", "_")
#: Beside a "+" that is the strand of a guide, as in "GENE_+_123.23-P1P2", or a part of a name.
_BEFORE_STRAND, _AFTER_STRAND = "_:|(", "_:|)/+"
#: A label of more words is split at all of its marks, or not at all.
_MOST_WORDS = 8


class ControlLabels:
    """Says which labels are controls, the usual ones if none is given; remembers which it met."""

    def __init__(self, given: str | Sequence[str] | None) -> None:
        listed = given if isinstance(given, (list, tuple)) else [given]
        self.given = None if given is None else {as_label(label) for label in listed}
        self.met: set[str] = set()

    def __contains__(self, label: str) -> bool:
        return looks_like_control(label) if self.given is None else label in self.given


class _Names(NamedTuple):
    """The names in one column of a row, what stood between them, and their own doses if any."""

    suffix: str
    names: list[str]
    mark: str = SEPARATOR
    doses: list[tuple[object, object]] | None = None


@dataclass(frozen=True, slots=True)
class _RawComponent:
    """One component as it was read: its dose is not yet a number."""

    name: str
    dose: object
    unit: object
    kind: object


class ConditionColumns(NamedTuple):
    """Columns of conditions, units of doses and times, unknown ids, and labels in doubt.

    `doubts`: For each label that is written, what elsewhere in the file speaks against it.
    """

    columns: dict[str, Any]
    units: dict[str, str]
    unknown: dict[str, UnknownValues]
    doubts: dict[str, str]


def condition_columns(
    obs: pd.DataFrame,
    fields: Mapping[str, str],
    control: ControlLabels,
    separator: str | None = None,
) -> ConditionColumns:
    """Return the columns that describe conditions; `separator`: between names, besides "+"."""
    obs = pd.DataFrame({column: _hashable(obs[column]) for column in fields.values()})
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
    alone = _names_alone(rows)
    read = [_read_row(row, control, alone, separator) for row in rows]
    conditions, dose_unit = _conditions(
        [_raw_components(row, names, control) for row, names in zip(rows, read, strict=True)]
    )
    made: dict[str, Any] = {Column.PERTURBATION: [c.format() for c in conditions]}
    units = {}
    if dose_unit is not None:
        made[Column.DOSE] = [c.format_doses() for c in conditions]
        units["dose"] = dose_unit
    if "perturbation_type" in fields:
        made[Column.KIND] = [c.format_kinds() or CONTROL for c in conditions]
    unknown = {}
    if "perturbation_id" in fields:
        found = [_identifiers(row, names, control) for row, names in zip(rows, read, strict=True)]
        made[_ID_COLUMN] = [text for text, _ in found]
        strange = [text for _, text in found]
        unknown[_ID_COLUMN] = _unknown_identifiers(strange, np.bincount(inverse).tolist())
    written: dict[str, Any] = {column: to_cells(values, inverse) for column, values in made.items()}
    times, unit = to_one_unit(
        [(row.get("time"), row.get("time_unit")) for row in rows], what="time"
    )
    if not all(map(math.isnan, times)):
        written[Column.TIME] = np.array(times)[inverse]
        units["time"] = unit
    doubts = {
        made[Column.PERTURBATION][i]: doubt
        for i, row in enumerate(rows)
        if (doubt := _doubt(row, read[i], control)) is not None
    }
    return ConditionColumns(written, units, unknown, doubts)


def _split_labels(names: list[str]) -> dict[str, list[str]]:
    """Return, by mark, the names that fall apart there into other names or controls.

    Parts that come back in several names are known too, where the mark is ";" or "|".
    """
    alone = {*names}
    found: dict[str, list[str]] = {}
    for name in names:
        if looks_like_control(name, perhaps=True):
            continue
        for mark in _MARKS:
            parts = [part.strip() for part in name.split(mark)]
            if mark in name and all(parts):
                controls = [part for part in parts if looks_like_control(part)]
                rest = {*parts} - {*controls}
                if rest and (controls or rest <= alone) and not all(map(str.isdigit, rest)):
                    found.setdefault(mark, []).append(name)
                    break
    for mark in (";", "|"):
        halves = [name for name in names if all(part.strip() for part in name.split(mark))]
        n_names = Counter(part for name in halves if mark in name for part in {*name.split(mark)})
        again = [n for n in halves if mark in n and max(n_names[p] for p in n.split(mark)) > 1]
        if again:
            found[mark] = sorted({*found.get(mark, []), *again})
    return found


def label_problems(names: Iterable[str]) -> Iterator[str]:
    """Yield what names of components say that they should not: controls, combinations, halves."""
    names = sorted({*names})
    pass_on = "`harmonize(adata, control=[...])`, with all labels of controls"
    for what, advice in (
        ("look like controls", f"if they are, run {pass_on}"),
        ("may be controls", f"if they are, run {pass_on}; if not, leave them"),
    ):
        doubtful = what == "may be controls"
        found = [
            name
            for name in names
            if looks_like_control(name, perhaps=doubtful)
            and not (doubtful and looks_like_control(name))
        ]
        if found:
            yield f"Perturbations that {what}: {found}; {advice}."
    missing = [name for name in names if is_missing(name)]
    if missing:
        yield f"Perturbations that look like missing labels: {missing}; drop these cells."
    for mark, found in _split_labels(names).items():
        yield (
            f"{len(found)} names fall apart at {mark!r} into names of other cells or of controls: "
            f"{', '.join(map(repr, found[:3]))}. If they are combinations, run "
            f"`harmonize(adata, separator={mark!r})`."
        )
    halves = [name for name in names if name[0] in "_:|" or name[-1] in "_:|"]
    if halves:
        yield (
            f"Names that look like halves of a name with '+': {halves[:5]}; run `harmonize`, which "
            "takes '+' for the strand of a guide there."
        )


def _hashable(column: pd.Series[Any]) -> pd.Series[Any]:
    """Return a column with tuples in place of lists and arrays."""
    if column.dtype != object:
        return column
    kinds = {type(value) for value in column}
    if not kinds & {list, np.ndarray, tuple, set, dict}:
        return column
    return pd.Series([_as_tuple(value) for value in column], index=column.index, dtype=object)


def _as_tuple(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, list | tuple | np.ndarray):
        return tuple(map(_as_tuple, value))
    return str(value) if isinstance(value, set | dict) else value


def _names_alone(rows: Sequence[Mapping[str, object]]) -> set[str]:
    """Return the labels that are one name: the screen says so, or has no number of names."""
    found = set()
    for row in rows:
        n = row.get("n_perturbations")
        labels = [row.get("perturbation" + suffix) for suffix in _SUFFIXES]
        given = [as_label(x) for x in labels if isinstance(x, str | bytes) and not is_missing(x)]
        if is_missing(n) or _number_of(n) == len(given):
            found |= {*given}
    return found


def _number_of(value: object) -> float:
    """Return a number of perturbations."""
    try:
        return as_number(value)
    except ValueError as error:
        msg = f"A number of perturbations is wrong: {error}; expected 0, 1, 2, ... or missing."
        raise SchemaError(msg) from None


def _read_row(
    row: Mapping[str, object], control: ControlLabels, alone: Collection[str], separator: str | None
) -> list[_Names]:
    """Return the names in each column of perturbations that is filled in.

    Where the screen tells their number, the reading that has this number is taken.
    """
    options = []
    for suffix in _SUFFIXES:
        value = row.get("perturbation" + suffix)
        if not is_missing(value) or as_label(value) in control:
            options.append([*_readings(suffix, value, control, alone, separator)])
    plain = [first for first, *_ in options]
    n = row.get("n_perturbations")
    if is_missing(n) or not any(others for _, *others in options):
        return plain
    fitting = [
        [*read]
        for read in (product(*options) if math.prod(map(len, options)) <= 4096 else ())
        if _number_of(n) in _numbers(read, control)
    ]
    n_perturbed = _number_of(n)
    with_control = [
        read
        for read in fitting
        if _numbers(read, control)[0] == n_perturbed and _has_control_beside(read, control)
    ]
    known = [
        read
        for read in fitting
        if all(name in alone or name in control for part in read for name in part.names)
    ]
    for readings in (with_control, [plain] if plain in fitting else [], known):
        if readings:
            return readings[0]
    full = [
        read
        for read in fitting
        if any(
            part == max(o, key=_length) for part, o in zip(read, options, strict=True) if len(o) > 1
        )
    ]
    return full[0] if full else fitting[0] if len(fitting) == 1 else plain


def _length(read: _Names) -> int:
    return len(read.names)


def _numbers(read: Sequence[_Names], control: ControlLabels) -> tuple[int, int]:
    """Return the number of names without and with those of controls."""
    names = [name for part in read for name in part.names]
    return sum(name not in control for name in names), len(names)


def _has_control_beside(read: Sequence[_Names], control: ControlLabels) -> bool:
    """Whether a label is of controls and others, such as "NegCtrl0_KLF1"."""
    return any(
        len({name in control for name in part.names}) > 1 and part.mark != SEPARATOR
        for part in read
    )


def _readings(
    suffix: str,
    value: object,
    control: ControlLabels,
    alone: Collection[str],
    separator: str | None,
) -> Iterator[_Names]:
    """Yield how a label may be read, first as it is without a number of perturbations."""
    dosed = _dosed_names(value)
    if dosed is not None:
        yield _Names(
            suffix, [name for name, *_ in dosed], doses=[(dose, unit) for _, dose, unit in dosed]
        )
        return
    label = _unquoted(as_label(value))
    if label in control:
        yield _Names(suffix, [label])
        return
    parts = _split_plus(label, alone)
    if separator is not None and separator in label:
        yield _Names(suffix, _split_at(label, separator, alone), separator)
        return
    yield _Names(suffix, parts)
    if parts[1:]:
        return
    for mark in _MARKS:
        words = [word.strip() for word in label.split(mark)]
        if mark in label:
            given = [word for word in words if not is_missing(word)]
            if all(words):
                yield _Names(suffix, given, mark)
            elif mark == "_":
                continue
            if mark == "_" and len(words) <= _MOST_WORDS:
                yield from (_Names(suffix, names, mark) for names in _groups(words, alone))


def _unquoted(label: str) -> str:
    """Return a label without the quotes of bytes that were written as text: "b'A'"."""
    is_bytes = len(label) > 3 and label[:2] in ("b'", 'b"') and label[-1] == label[1]
    return label[2:-1].strip() if is_bytes else label


def _split_plus(label: str, alone: Collection[str]) -> list[str]:
    """Return the names between the "+" that are no strand of a guide and no part of a name."""
    cuts = [-1]
    for i, character in enumerate(label):
        before, after = label[:i].rstrip()[-1:], label[i + 1 :].lstrip()[:1]
        sides = label[cuts[-1] + 1 : i].strip(" _"), label[i + 1 :].strip(" _")
        if character == SEPARATOR and before and after:
            strand = before in _BEFORE_STRAND or after in _AFTER_STRAND
            if not strand or all(side in alone for side in sides):
                cuts.append(i)
    names = [label[a + 1 : b].strip() for a, b in zip(cuts, [*cuts[1:], len(label)], strict=True)]
    return [name.strip("_") if name.strip("_") in alone else name for name in names]


def _split_at(label: str, separator: str, alone: Collection[str]) -> list[str]:
    """Return the names between separators; a number belongs to the name before it at "_"."""
    words = [word.strip() for word in label.split(separator)]
    if separator != "_":
        return words
    names: list[str] = []
    for word in words:
        if names and (is_missing(word) or (word.isdigit() and word not in alone)):
            names[-1] += f"_{word}"
        else:
            names.append(word)
    known = (
        [groups for groups in _groups(names, alone) if alone.issuperset(groups)]
        if (len(names) <= _MOST_WORDS and isinstance(alone, set))
        else []
    )
    return known[0] if known else names


def _groups(words: list[str], alone: Collection[str]) -> Iterator[list[str]]:
    """Yield two and more names of neighbouring words, none of which begins with a number."""
    for n_cuts in range(1, len(words)):
        for cuts in combinations(range(1, len(words)), n_cuts):
            ends = zip((0, *cuts), (*cuts, len(words)), strict=True)
            names = ["_".join(words[a:b]) for a, b in ends]
            if all(name in alone or not name.split("_")[0].isdigit() for name in names):
                yield names


def _dosed_names(value: object) -> list[tuple[str, object, object]] | None:
    """Return name, dose and unit of each part of a tuple or list, or of text that shows one.

    None is a label of another form.
    """
    if isinstance(value, str | bytes):
        text = as_label(value)
        if text[:1] not in ("[", "(") or len(text) > 2000:
            return None
        try:
            value = _as_tuple(ast.literal_eval(text))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return None
        if not isinstance(value, tuple):
            return None
        written = True
    elif isinstance(value, tuple):
        written = False
    else:
        return None
    parts = [value] if len(value) > 1 and not isinstance(value[1], str | bytes | tuple) else value
    found = []
    for part in parts:
        name, *rest = part if isinstance(part, tuple) and part else (part,)
        if (
            not isinstance(name, str | bytes)
            or len(rest) > 2
            or any(isinstance(one, tuple) for one in rest)
        ):
            break
        found.append((as_label(name), *rest, *[None] * (2 - len(rest))))
    else:
        if found:
            return found
    if written:
        return None
    msg = (
        f"Label {shown(value)} is not understood; expected a name, or names with dose and unit: "
        "[('A', 0.5, 'uM'), ('B', 1, 'uM')]."
    )
    raise SchemaError(msg)


def _raw_components(
    row: Mapping[str, object], read: Sequence[_Names], control: ControlLabels
) -> list[_RawComponent]:
    """Return the components of one row, of all columns of perturbations; controls left out."""
    parts = []
    for suffix, names, mark, doses in read:
        dose, unit, kind = (
            _aligned(row.get(field + suffix), names, mark, what=field)
            for field in ("dose", "dose_unit", "perturbation_type")
        )
        if doses is not None:
            dose = [b if is_missing(a) else a for (a, _), b in zip(doses, dose, strict=True)]
            unit = [b if is_missing(u) else u for (_, u), b in zip(doses, unit, strict=True)]
        control.met |= {name for name in names if name in control}
        parts += [
            _RawComponent(name.replace(SEPARATOR, "plus"), *values)
            for name, *values in zip(names, dose, unit, kind, strict=True)
            if name not in control
        ]
    return parts


def _aligned(value: object, names: Sequence[str], mark: str, *, what: str) -> list[object]:
    """Return one value a name, which the mark of the names separates, or "+"."""
    text = as_label(value) if isinstance(value, str | bytes) else ""
    return aligned(value, names, mark if mark in text else SEPARATOR, what=what)


def _doubt(row: Mapping[str, object], read: Sequence[_Names], control: ControlLabels) -> str | None:
    """Return what speaks against the names that were read in a row, or None."""
    for suffix, names, mark, doses in read:
        beside = (
            _aligned(row.get(field + suffix), names, mark, what=field)
            for field in ("dose", "dose_unit")
        )
        for name, own, *other in zip(names, doses or (), *beside, strict=False):
            if name not in control and not (is_missing(own[0]) or is_missing(other[0])):
                second = other[0], own[1] if is_missing(other[1]) else other[1]
                (in_label, in_column), _ = to_one_unit([own, second], what="dose")
                if not math.isclose(in_label, in_column, rel_tol=1e-5):
                    return "the dose in the label is not that of the column of doses"
    n = row.get("n_perturbations")
    if is_missing(n):
        return None
    without, together = _numbers(read, control)
    n_words = sum(len(name.split("_")) for part in read for name in part.names)
    if _number_of(n) in (without, together) or (not without and _number_of(n) <= n_words):
        return None
    return f"the column of numbers says {_number_of(n):g}, and {without} are read"


def _unknown_identifiers(found: Sequence[list[str]], n_cells: Sequence[int]) -> UnknownValues:
    """Return the identifiers of no known form, with the number of cells of each row."""
    ids = UnknownValues(
        "identifiers of Ensembl (ENSG...), ChEBI, ChEMBL or NCBITaxon, one for each perturbation"
    )
    for strange, n in zip(found, n_cells, strict=True):
        for text in strange:
            ids.n_cells[text] += n
    return ids


def _identifiers(
    row: Mapping[str, object], read: Sequence[_Names], control: ControlLabels
) -> tuple[str | None, list[str]]:
    """Return the identifiers of a row's components in their order, and those of no known form.

    "NA" stands for a component without one. Where the identifiers cannot be told to belong to the
    components, the text stays as it is. None is without identifiers, as the control is.
    """
    found: list[tuple[str, str]] = []
    whole, fits = [], True
    for suffix, names, mark, _ in read:
        perturbed = [name for name in names if name not in control]
        text = row.get("perturbation_id" + suffix)
        if is_missing(text) or not perturbed:
            found += [(name, "NA") for name in perturbed]
            continue
        whole.append(as_label(text))
        listed = whole[-1].split(mark if mark in ";,|" and mark in whole[-1] else SEPARATOR)
        listed = [part.strip() for part in listed]
        owners = names if len(listed) == len(names) else perturbed
        fits = fits and len(listed) == len(owners)
        found += [pair for pair in zip(owners, listed, strict=False) if pair[0] not in control]
    if not whole:
        return None, []
    if not fits:
        return SEPARATOR.join(whole), whole
    ordered = [text for _, text in sorted(found, key=lambda pair: pair[0].replace("+", "plus"))]
    terms = {text: perturbation_identifier(text) for text in ordered if not is_missing(text)}
    unknown = [text for text, known in terms.items() if known is None]
    return SEPARATOR.join(terms.get(text) or text for text in ordered), unknown


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
            kind = "" if is_missing(part.kind) else as_label(part.kind)
            made.append(Component(part.name, dose if recorded else 1.0, kind))
        conditions.append(Condition(tuple(made)))
    return conditions, unit if recorded else None
