"""A split: its options, its record on disk, and the check for leaks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

import numpy as np
import pandas as pd

from scvi_perturb._checks import check_fields, check_type, checked
from scvi_perturb._core import LeakError, SchemaError, shown
from scvi_perturb._files import read_json, write_text
from scvi_perturb.data.condition import Component, ScreenKeys, as_label
from scvi_perturb.data.fields import data_hash, read_annotation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_perturb.data.fields import Annotation


ContextName: TypeAlias = "str | Mapping[str, str]"
#: Fields of a held-out condition that say which cells it means; the others are remarks.
_IDENTITY = ("perturbation", "dose", "context")
_PARTS = ("train", "validation", "test")
#: For options that name what is held out, the kinds that read them.
_KINDS = {
    "singles_seen": ("unseen_combination",),
    "held_out": ("unseen_combination", "unseen_perturbation"),
}


@checked
@dataclass(frozen=True, slots=True)
class SplitOptions:
    """What only some kinds of split ask for.

    Parameters
    ----------
    context
        "unseen_context", "context_transfer": the context held out, as its label, or as
        `{context key: label}`, or a list of several; None takes a share of all contexts.
    shown
        "context_transfer": share of the held-out cells that is shown in training, in [0, 1).
    dose
        "dose": "inner" holds out a dose between others, "top" the largest one.
    groups
        "unseen_perturbation": the cluster of each perturbation (a gene set, a scaffold), as a
        mapping or a Series; clusters are then held out whole.
    singles_seen
        "unseen_combination": hold out combinations of two, and as many of their singles that
        exactly so many components stay measured alone: 0, 1 or 2. None keeps every single. A
        component may still be seen in other combinations. With 1, a pair for which this cannot be
        had together with the others stays in training, so that folds need not cover all pairs.
    held_out
        "unseen_combination", "unseen_perturbation": labels of what is held out, such as "A+B" in
        any order, or "A"; `fraction` and `fold` then count for nothing. Combinations that contain
        what is named are held out with it.

    Raises
    ------
    ValueError
        If an option is not as said, or both `groups` and `held_out` are given.
    SchemaError
        If a cluster of `groups` is missing or empty, or a perturbation has two.
    """

    context: ContextName | Sequence[ContextName] | None = None
    shown: float = 0.0
    dose: Literal["inner", "top"] = "inner"
    groups: Mapping[str, str] | pd.Series[Any] | None = None
    singles_seen: Literal[0, 1, 2] | None = None
    held_out: Sequence[str] | None = None

    def __post_init__(self) -> None:
        groups, held_out = self.groups, self.held_out
        plain = {
            "context": _context(self.context),
            "shown": float(self.shown),
            "groups": None if groups is None else _clusters(groups),
            "singles_seen": None if self.singles_seen is None else int(self.singles_seen),
            "held_out": None if held_out is None else _labels(held_out),
        }
        for name, value in plain.items():
            object.__setattr__(self, name, value)
        if groups is not None and held_out is not None:
            msg = "Give `groups` or `held_out`: clusters are drawn whole, names are taken as named."
            raise ValueError(msg)

    def check_kind(self, kind: str) -> None:
        """Raise `ValueError` if an option is given that the kind ignores."""
        for name, kinds in _KINDS.items():
            if getattr(self, name) is not None and kind not in kinds:
                msg = (
                    f"SplitOptions.{name} is not for kind {kind!r} but for {' and '.join(kinds)}; "
                    "a context is named by `SplitOptions.context`."
                )
                raise ValueError(msg)

    def to_dict(self) -> dict[str, Any]:
        """Return the options as plain types; `SplitOptions(**options)` reads them back."""
        listed = None if self.held_out is None else list(self.held_out)
        context = list(self.context) if isinstance(self.context, tuple) else self.context
        return asdict(self) | {"held_out": listed, "context": context}


def held_out_names(split: Split) -> list[str]:
    """Return what a split holds out, in words: the condition, and the context if it names one."""
    names = []
    for row in split.held_out:
        dose = f"dose {row['dose']}" if "dose" in row else ""
        parts = [row.get("perturbation", ""), dose, *row.get("context", {}).values()]
        names.append(" | ".join(part for part in parts if part))
    return list(dict.fromkeys(names))


def _context(named: Any) -> Any:  # noqa: ANN401
    """Return the name of a context as text or as a mapping of text; several as a tuple."""
    if named is None:
        return None
    if isinstance(named, Mapping):
        return {str(key): as_label(label) for key, label in named.items()}
    if isinstance(named, str | Real):
        return as_label(named)
    return tuple(map(_context, _not_empty("context", named)))


def _labels(named: Sequence[str]) -> tuple[str, ...]:
    return tuple(
        map(as_label, [named] if isinstance(named, str) else _not_empty("held_out", named))
    )


def _not_empty(option: str, labels: Sequence[Any]) -> Sequence[Any]:
    if not len(labels):
        msg = f"{option} is empty; expected at least one label, or None to draw at random."
        raise ValueError(msg)
    return labels


def _clusters(groups: Mapping[str, str] | pd.Series[Any]) -> dict[str, str]:
    """Return the cluster of each perturbation as text."""
    clusters: dict[str, str] = {}
    for key, value in groups.items():
        name, label = as_label(key), "" if pd.isna(value) else as_label(value)
        if not label:
            msg = (
                f"SplitOptions.groups has no cluster for {name!r}, though it names it; expected a "
                "label. Give what is not known a label of its own, such as its name."
            )
            raise SchemaError(msg)
        if clusters.setdefault(name, label) != label:
            msg = f"SplitOptions.groups has {name!r} in two clusters; expected one for each name."
            raise SchemaError(msg)
    return clusters


def supersets(held_out: Iterable[frozenset[str]]) -> Callable[[frozenset[str]], bool]:
    """Return a function that says whether a set of names contains one of `held_out`."""
    by_member: dict[str, list[frozenset[str]]] = {}
    for names in held_out:
        by_member.setdefault(min(names), []).append(names)
    return lambda names: any(one <= names for name in names for one in by_member.get(name, ()))


def describe(
    annotation: Annotation, description: pd.DataFrame, n_cells: NDArray[np.int64]
) -> list[dict[str, Any]]:
    """Return one dict of plain types for each distinct row of `description` that has cells."""
    counted = description.assign(n_cells=n_cells)[n_cells > 0]
    sums = counted.groupby(list(description.columns), sort=True)["n_cells"].sum().reset_index()
    rows: list[dict[str, Any]] = sums.to_dict("records")  # type: ignore[assignment]
    for row in rows:
        if "context" in row:
            row["context"] = dict(annotation.contexts[row["context"]])
        if "targets" in row:
            row["targets"] = list(row["targets"])
    return rows


def identity(row: Mapping[str, Any], fields: Sequence[str]) -> str:
    """Return what tells one held-out condition from another."""
    return json.dumps([row[field] for field in fields], sort_keys=True)


Rows = list[dict[str, Any]]


def _find_leaks(
    annotation: Annotation, n_seen: NDArray[np.int64], *, kind: str, held_out: Iterable[Any]
) -> dict[str, int]:
    """Return the number of cells seen of each condition that should not be seen.

    `n_seen` is the number of training and validation cells of each group, `(n_groups,)`.
    """
    rows = [dict(row) for row in held_out]
    targets = {name for row in rows for name in row.get("targets", ())}
    found: dict[str, int] = {}
    for names, n in zip(annotation.names, n_seen.tolist(), strict=True):
        for name in sorted(targets & names) if n else ():
            found[name] = found.get(name, 0) + n
    fields = [field for field in _IDENTITY if field in rows[0]]
    shown = {identity(row, fields): row.get("n_shown", 0) for row in rows}
    hidden = np.array(_HIDDEN[kind](annotation, rows) if kind in _HIDDEN else False, bool)
    seen = annotation.groups[fields].assign(hidden=hidden)
    for row in describe(annotation, seen, n_seen):
        allowed = shown.get(identity(row, fields), 0 if row["hidden"] else np.inf)
        if row["n_cells"] > allowed:
            found.setdefault(", ".join(str(row[field]) for field in fields), row["n_cells"])
    return found


def _hidden_combinations(annotation: Annotation, rows: Rows) -> list[bool]:
    """Return which groups contain a held-out combination."""
    contains = supersets(names for row in rows if len(names := _names(annotation, row)) > 1)
    return [contains(names) for names in annotation.names]


def _hidden_transfers(annotation: Annotation, rows: Rows) -> list[bool]:
    """Return which groups contain what is held out of their context."""
    held_out: dict[str, set[frozenset[str]]] = {}
    for row in rows:
        held_out.setdefault(identity(row, ["context"]), set()).add(_names(annotation, row))
    contains = {context: supersets(sets) for context, sets in held_out.items()}
    return [
        context in contains and contains[context](names)
        for names, context in zip(annotation.names, _contexts(annotation), strict=True)
    ]


def _hidden_contexts(annotation: Annotation, rows: Rows) -> list[bool]:
    """Return which groups are perturbed cells of a held-out context."""
    held_out = {identity(row, ["context"]) for row in rows}
    return [
        context in held_out and not control
        for context, control in zip(
            _contexts(annotation), annotation.groups["control"], strict=True
        )
    ]


def _hidden_doses(annotation: Annotation, rows: Rows) -> list[bool]:
    """Return which groups have a component at a dose that is held out of its singles."""
    inner: dict[str, set[float]] = {}
    top: dict[str, float] = {}
    for row in rows:
        names = _names(annotation, row)
        if len(names) > 1:
            continue
        (name,) = names
        dose = Component(name, row["dose"]).dose
        inner.setdefault(name, set()).add(dose)
        if row.get("stratum") == "top":
            top[name] = min(dose, top.get(name, np.inf))
    return [
        any(
            part.dose in inner.get(part.name, ()) or part.dose > top.get(part.name, np.inf)
            for part in condition.components
        )
        for condition in annotation.conditions
    ]


def _names(annotation: Annotation, row: dict[str, Any]) -> frozenset[str]:
    return frozenset(row["perturbation"].split(annotation.separator))


def _contexts(annotation: Annotation) -> list[str]:
    """Return the context of each group, as `identity` writes it."""
    labels = [identity({"context": context}, ["context"]) for context in annotation.contexts]
    return [labels[i] for i in annotation.groups["context"]]


#: For kinds that hold out more than the conditions that were measured, what else may not be seen.
_HIDDEN: Mapping[str, Callable[[Annotation, Rows], list[bool]]] = {
    "unseen_combination": _hidden_combinations,
    "context_transfer": _hidden_transfers,
    "unseen_context": _hidden_contexts,
    "dose": _hidden_doses,
}


#: Types of what the record of a held-out condition holds, and what each kind reads of it.
_ROW_TYPES: Mapping[str, Any] = {
    **dict.fromkeys(("perturbation", "dose", "stratum"), str),
    **{"context": Mapping, "targets": list | tuple},
    **dict.fromkeys(("n_cells", "n_shown", "singles_seen", "contexts_seen"), Integral),
}
_READ_BY_KIND: Mapping[str, set[str]] = {
    "unseen_combination": {"perturbation"},
    "context_transfer": {"perturbation", "context"},
    "unseen_context": {"context"},
    "dose": {"perturbation", "dose"},
}


def _are_held_out(rows: Sequence[object], kind: str) -> bool:
    """Whether rows describe held-out conditions: all by the same fields, of the right types."""
    fields = set()
    for row in rows:
        if not isinstance(row, Mapping):
            return False
        if not all(isinstance(row[key], own) for key, own in _ROW_TYPES.items() if key in row):
            return False
        texts = [*row.get("targets", ())]
        texts += [text for pair in row.get("context", {}).items() for text in pair]
        if not all(isinstance(text, str) for text in texts):
            return False
        fields.add(frozenset(_IDENTITY) & frozenset(row))
    return len(fields) <= 1 and all(_READ_BY_KIND.get(kind, set()) <= own for own in fields)


def _are_places(values: Sequence[object]) -> bool:
    """Whether values are places of cells: whole numbers, none of them a truth value."""
    kinds: set[type] = {*map(type, values)}
    if bool in kinds or not all(issubclass(kind, Integral) for kind in kinds):
        return False
    array = np.asarray(values)
    return array.ndim == 1 and (array.dtype.kind == "i" or not array.size)


@checked
@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Cells to train on, to stop by and to test on, and the conditions that are held out.

    Parameters
    ----------
    kind
        What is held out; see `split`.
    seed
        Seed it was drawn with.
    train, validation, test
        Indices of cells, sorted; together they are all cells, each once.
    held_out
        One dict a held-out condition: `perturbation`, `n_cells`, and where the kind asks for it
        `dose`, `context`, `targets`, `singles_seen` (components also measured alone),
        `contexts_seen`, `stratum` ("inner", "top"; with `singles_seen`,
        "single", "combination"), `n_shown`. Empty for "cells".
    parameters
        How the split was made: `keys`, `fraction`, `fold`, `options`.
    data_hash
        Fingerprint of the data: counts, cells, genes, and the columns of `keys`.

    Raises
    ------
    LeakError
        If a cell is in two parts.
    SchemaError
        If a cell is in none.
    """

    kind: str
    seed: int
    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]
    held_out: tuple[dict[str, Any], ...]
    parameters: dict[str, Any]
    data_hash: str

    def __post_init__(self) -> None:
        keys = self.parameters.get("keys", {})
        check_type("keys of a split", keys, dict, "Make the split anew.")
        check_fields("keys of a split", keys, (field.name for field in fields(ScreenKeys)))
        for part in _PARTS:
            cells = np.sort(np.asarray(getattr(self, part), dtype=np.int64))
            cells.setflags(write=False)
            object.__setattr__(self, part, cells)
        object.__setattr__(self, "held_out", tuple(self.held_out))
        cells = np.concatenate([self.train, self.validation, self.test])
        distinct = np.unique(cells)
        if len(distinct) < len(cells):
            msg = (
                f"{len(cells) - len(distinct)} cells are in two parts of the split; each belongs "
                "in exactly one of train, validation and test."
            )
            raise LeakError(msg)
        if len(distinct) and (distinct[0] != 0 or distinct[-1] != len(distinct) - 1):
            msg = (
                "Some cells are in no part of the split; expected every index from 0 to "
                f"{distinct[-1]} in train, validation or test."
            )
            raise SchemaError(msg)

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.train) + len(self.validation) + len(self.test)

    @property
    def keys(self) -> ScreenKeys:
        """Where the screen holds the conditions and contexts that were held out."""
        return ScreenKeys(**self.parameters["keys"])

    def labels(self) -> pd.Categorical[str]:
        """Return "train", "validation" or "test" for each cell, to be put into `adata.obs`."""
        labels = np.empty(self.n_cells, object)
        for part in _PARTS:
            labels[getattr(self, part)] = part
        return pd.Categorical(labels, categories=list(_PARTS))

    def check(self, adata: AnnData) -> None:
        """Raise unless the split was made for these data.

        Raises
        ------
        SchemaError
            If counts, cells, genes, their order, conditions, contexts, batches or library sizes
            are not the same.
        """
        if adata.n_obs != self.n_cells:
            msg = f"The split is of {self.n_cells} cells, but these data have {adata.n_obs}."
            raise SchemaError(msg + " Make a new split, or use the data it was made for.")
        if data_hash(adata, self.keys) != self.data_hash:
            msg = (
                "The split was made for other data: counts, cells or genes, their order, or the "
                f"columns {self.keys.obs_columns} differ. Make a new split, or restore the data."
            )
            raise SchemaError(msg)

    def leaks(self, adata: AnnData) -> None:
        """Raise if training or validation cells have a held-out condition.

        Conditions are read anew from `adata`, so a relabelled cell or an edited split is found,
        also where what is held out hides in a condition that is new. The kind "cells" holds out no
        condition, so that nothing of it can leak but a cell that is in two parts.

        Raises
        ------
        LeakError
            Naming the held-out conditions and the number of cells.
        """
        if not self.held_out:
            return
        annotation = self._annotation(adata)
        seen = np.concatenate([self.train, self.validation])
        n_seen = np.bincount(annotation.group[seen], minlength=len(annotation.groups))
        found = _find_leaks(annotation, n_seen, kind=self.kind, held_out=self.held_out)
        if found:
            some = ", ".join(f"{name} ({n} cells)" for name, n in list(found.items())[:5])
            msg = (
                f"Held-out conditions are in the training or validation cells: {some}. Move these "
                "cells to `test`, or make the split anew."
            )
            raise LeakError(msg)

    def to_dict(self) -> dict[str, Any]:
        """Return the split as plain types."""
        names = ("kind", "seed", "data_hash", "parameters")
        plain = {"format": 1, **{name: getattr(self, name) for name in names}}
        parts = {part: getattr(self, part).tolist() for part in _PARTS}
        return plain | {"held_out": list(self.held_out)} | parts

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Self:
        """Rebuild a split from `to_dict`.

        Raises
        ------
        SchemaError
            If it is no such record: of another format, or a value is missing or of another type.
        LeakError
            If a cell is in two parts.
        """
        if not isinstance(state, Mapping) or state.get("format") != 1:
            is_record = isinstance(state, Mapping)
            found = f"format {shown(state.get('format'))}" if is_record else shown(state)
            msg = f"This is not a split of format 1: found {found}."
            raise SchemaError(msg)
        expected = {
            **dict.fromkeys(("kind", "data_hash"), str),
            **{"seed": int, "parameters": Mapping, "held_out": list | tuple, "format": object},
            **dict.fromkeys(_PARTS, list | tuple | np.ndarray),
        }
        wrong = sorted({*map(str, state)} ^ {*expected}) or [
            name for name, kind in expected.items() if not isinstance(state[name], kind)
        ]
        wrong = wrong or [
            *(part for part in _PARTS if not _are_places(state[part])),
            *(() if _are_held_out(state["held_out"], state["kind"]) else ("held_out",)),
        ]
        try:
            ScreenKeys(**dict(state["parameters"])["keys"]) if not wrong else None
        except (KeyError, TypeError):
            wrong = ["parameters['keys']"]
        if wrong:
            msg = (
                f"The record of a split is damaged: {', '.join(wrong)} is missing, of another type "
                "or not known. Make the split anew, or write it with `Split.to_json`."
            )
            raise SchemaError(msg)
        return cls(**{key: value for key, value in state.items() if key != "format"})

    def to_json(self, path: str | Path) -> None:
        """Write the split to a file, whole or not at all."""
        write_text(path, json.dumps(self.to_dict(), separators=(",", ":")))

    @classmethod
    def from_json(cls, path: str | Path) -> Self:
        """Read a split from a file."""
        return cls.from_dict(read_json(path, kind="a split that `to_json` wrote"))

    def __eq__(self, other: object) -> bool:
        """Whether all parts are the same."""
        return isinstance(other, Split) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """Say how many cells are where."""
        sizes = ", ".join(f"{len(getattr(self, part))} {part}" for part in _PARTS)
        n = len(self.held_out)
        return f"Split({self.kind!r}, seed={self.seed}; cells: {sizes}; {n} conditions held out)"

    def _annotation(self, adata: AnnData) -> Annotation:
        return read_annotation(adata, self.keys)
