"""A split: its options, its record on disk, and the check for leaks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import numpy as np
import pandas as pd

from scvi_perturb._errors import LeakError, SchemaError, check_choice
from scvi_perturb.data.condition import as_label
from scvi_perturb.data.fields import data_hash, describe, identity, read_annotation
from scvi_perturb.data.keys import ConditionKeys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import TypeAlias

    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_perturb.data.fields import Annotation

    ContextName: TypeAlias = str | Mapping[str, str]

__all__ = ["Held", "Split", "SplitOptions", "containing", "find_leaks", "find_named"]


class Held(NamedTuple):
    """What is held out."""

    groups: NDArray[np.bool_]
    """True for groups whose cells are held out."""
    about: pd.DataFrame
    """Columns of a held-out condition's description, one row a group."""


def containing(held: Iterable[frozenset[str]]) -> Callable[[frozenset[str]], bool]:
    """Return a function that says whether a set of names contains one of the `held` sets."""
    by_member: dict[str, list[frozenset[str]]] = {}
    for names in held:
        by_member.setdefault(min(names), []).append(names)
    return lambda names: any(h <= names for name in names for h in by_member.get(name, ()))


def find_named(
    labels: Iterable[str], known: Iterable[tuple[str, ...]], *, separator: str, what: str
) -> set[tuple[str, ...]]:
    """Return those of the `known` sets of names that `labels` mean, in whatever order they say it.

    Raises
    ------
    SchemaError
        If a label means none of them, with the nearest.
    """
    by_label = {separator.join(sorted(names)): names for names in known}
    found = set()
    for label in labels:
        parts = sorted(part.strip() for part in as_label(label).split(separator))
        wanted = separator.join(parts)
        if wanted not in by_label:
            near = get_close_matches(wanted, by_label, n=3, cutoff=0.5) or sorted(by_label)[:3]
            msg = (
                f"SplitOptions.held_out: {label!r} is not a {what} of this screen. Nearest: "
                f"{', '.join(map(repr, near))}."
            )
            raise SchemaError(msg)
        found.add(by_label[wanted])
    return found


#: For options that name what is held out, the kinds that read them.
_KINDS = {
    "singles_seen": ("unseen_combination",),
    "held_out": ("unseen_combination", "unseen_perturbation"),
}


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
        check_choice("dose", self.dose, ("inner", "top"))
        groups, held = self.groups, self.held_out
        plain = {
            "context": _context(self.context),
            "shown": float(self.shown),
            "groups": None if groups is None else _clusters(groups),
            "singles_seen": None if self.singles_seen is None else int(self.singles_seen),
            "held_out": None if held is None else _labels(held),
        }
        for name, value in plain.items():
            object.__setattr__(self, name, value)
        if self.singles_seen not in (None, 0, 1, 2):
            msg = f"singles_seen={self.singles_seen} is not known; choose one of 0, 1, 2 or None."
            raise ValueError(msg)
        if groups is not None and held is not None:
            msg = "Give `groups` or `held_out`: clusters are drawn whole, names are taken as named."
            raise ValueError(msg)
        if not 0 <= self.shown < 1:
            msg = f"shown={self.shown} is not a share; expected 0 <= shown < 1."
            raise ValueError(msg)

    def check_kind(self, kind: str) -> None:
        """Raise `ValueError` where what is to be held out is named to a kind that ignores it."""
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


def _context(named: Any) -> Any:  # noqa: ANN401
    """Return the name of a context as text or as a mapping of text; several as a tuple."""
    if named is None:
        return None
    if isinstance(named, Mapping):
        return {str(key): as_label(label) for key, label in named.items()}
    if isinstance(named, str | Real):
        return as_label(named)
    if not len(named):
        msg = "context is empty; expected labels such as ['T cells'], or None to draw at random."
        raise ValueError(msg)
    return tuple(map(_context, named))


def _labels(named: Sequence[str]) -> tuple[str, ...]:
    """Return labels as text, at least one."""
    labels = tuple(map(as_label, [named] if isinstance(named, str) else named))
    if not labels:
        msg = "held_out is empty; expected labels such as ['A+B'], or None to draw at random."
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


Rows = list[dict[str, Any]]

#: Fields of a held-out condition that say which cells it means; the others are remarks.
_IDENTITY = ("perturbation", "dose", "context")


def find_leaks(
    annotation: Annotation, n_seen: NDArray[np.int64], *, kind: str, held_out: Sequence[Any]
) -> dict[str, int]:
    """Return the conditions that should not be seen, and how many cells of each are.

    Parameters
    ----------
    annotation
        The cells as they are labelled now.
    n_seen
        Number of training and validation cells of each group, `(n_groups,)`.
    kind
        What is held out; see `split`.
    held_out
        The held-out conditions.
    """
    rows = [dict(row) for row in held_out]
    targets = {name for row in rows for name in row.get("targets", ())}
    found: dict[str, int] = {}
    for names, n in zip(annotation.names, n_seen.tolist(), strict=True):
        for name in sorted(targets & names) if n else ():
            found[name] = found.get(name, 0) + n
    fields = [field for field in _IDENTITY if field in rows[0]]
    shown = {identity(row, fields): row.get("n_shown", 0) for row in rows}
    hidden = _HIDDEN[kind](annotation, rows) if kind in _HIDDEN else np.zeros(len(n_seen), bool)
    seen = annotation.groups[fields].assign(hidden=hidden)
    for row in describe(annotation, seen, n_seen):
        allowed = shown.get(identity(row, fields), 0 if row["hidden"] else np.inf)
        if row["n_cells"] > allowed:
            found.setdefault(", ".join(str(row[field]) for field in fields), row["n_cells"])
    return found


def _combinations(annotation: Annotation, rows: Rows) -> NDArray[np.bool_]:
    """Return which groups contain a held-out combination."""
    held = containing(names for row in rows if len(names := _names(annotation, row)) > 1)
    return np.array([held(names) for names in annotation.names], bool)


def _transfers(annotation: Annotation, rows: Rows) -> NDArray[np.bool_]:
    """Return which groups contain what is held out of their context."""
    held: dict[str, set[frozenset[str]]] = {}
    for row in rows:
        held.setdefault(identity(row, ["context"]), set()).add(_names(annotation, row))
    within = {where: containing(sets) for where, sets in held.items()}
    return np.array(
        [
            where in within and within[where](names)
            for names, where in zip(annotation.names, _contexts(annotation), strict=True)
        ],
        bool,
    )


def _whole_contexts(annotation: Annotation, rows: Rows) -> NDArray[np.bool_]:
    """Return which groups are perturbed cells of a held-out context."""
    held = {identity(row, ["context"]) for row in rows}
    inside = np.array([where in held for where in _contexts(annotation)], bool)
    return inside & ~annotation.groups["control"].to_numpy(bool)


def _doses(annotation: Annotation, rows: Rows) -> NDArray[np.bool_]:
    """Return which groups have a component at a dose that is held out of its singles."""
    inner: dict[str, set[float]] = {}
    top: dict[str, float] = {}
    for row in rows:
        names = _names(annotation, row)
        if len(names) > 1:
            continue
        (name,), dose = names, float(row["dose"])
        inner.setdefault(name, set()).add(dose)
        if row.get("stratum") == "top":
            top[name] = min(dose, top.get(name, np.inf))
    return np.array(
        [
            any(
                part.dose in inner.get(part.name, ()) or part.dose > top.get(part.name, np.inf)
                for part in condition.components
            )
            for condition in annotation.conditions
        ],
        bool,
    )


def _names(annotation: Annotation, row: dict[str, Any]) -> frozenset[str]:
    return frozenset(row["perturbation"].split(annotation.separator))


def _contexts(annotation: Annotation) -> list[str]:
    """Return the context of each group, as `identity` writes it."""
    labels = [identity({"context": context}, ["context"]) for context in annotation.contexts]
    return [labels[i] for i in annotation.groups["context"]]


#: For kinds that hold out more than the conditions that were measured, what else may not be seen.
_HIDDEN: Mapping[str, Callable[[Annotation, Rows], NDArray[np.bool_]]] = {
    "unseen_combination": _combinations,
    "context_transfer": _transfers,
    "unseen_context": _whole_contexts,
    "dose": _doses,
}


_PARTS = ("train", "validation", "test")


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
        How the split was made: `keys`, `context_keys`, `fraction`, `fold`, `options`.
    data_hash
        Fingerprint of the data: names, shape, conditions, contexts.

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
            If cells, genes, their order, conditions or contexts are not the same.
        """
        if adata.n_obs != self.n_cells:
            msg = f"The split is of {self.n_cells} cells, but these data have {adata.n_obs}."
            raise SchemaError(msg + " Make a new split, or use the data it was made for.")
        if data_hash(adata, self._annotation(adata)) != self.data_hash:
            msg = (
                "The split was made for other data: the names or order of cells or genes, or the "
                f"columns {self._columns()} differ. Make a new split, or restore the data."
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
        found = find_leaks(annotation, n_seen, kind=self.kind, held_out=self.held_out)
        if found:
            some = ", ".join(f"{name} ({n} cells)" for name, n in list(found.items())[:5])
            msg = (
                f"Held-out conditions are in the training or validation cells: {some}. Move these "
                "cells to `test`, or make the split anew."
            )
            raise LeakError(msg)

    def to_dict(self) -> dict[str, Any]:
        """Return the split as plain types."""
        parts = {part: getattr(self, part).tolist() for part in _PARTS}
        return {
            "format": 1,
            "kind": self.kind,
            "seed": self.seed,
            "data_hash": self.data_hash,
            "parameters": self.parameters,
            "held_out": list(self.held_out),
            **parts,
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Self:
        """Rebuild a split from `to_dict`."""
        if state.get("format") != 1:
            msg = f"This is not a split of format 1: found format {state.get('format')!r}."
            raise SchemaError(msg)
        return cls(**{key: value for key, value in state.items() if key != "format"})

    def to_json(self, path: str | Path) -> None:
        """Write the split to a file."""
        Path(path).write_text(json.dumps(self.to_dict(), separators=(",", ":")), encoding="utf-8")

    @classmethod
    def from_json(cls, path: str | Path) -> Self:
        """Read a split from a file."""
        return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))

    def __eq__(self, other: object) -> bool:
        """Whether all parts are the same."""
        return isinstance(other, Split) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """Say how many cells are where."""
        sizes = ", ".join(f"{len(getattr(self, part))} {part}" for part in _PARTS)
        held = f"{len(self.held_out)} conditions held out"
        return f"Split({self.kind!r}, seed={self.seed}; cells: {sizes}; {held})"

    def _annotation(self, adata: AnnData) -> Annotation:
        keys = ConditionKeys(**self.parameters["keys"])
        return read_annotation(adata, keys, self.parameters["context_keys"])

    def _columns(self) -> list[str]:
        keys = ConditionKeys(**self.parameters["keys"])
        return [*keys.columns.values(), *self.parameters["context_keys"]]
