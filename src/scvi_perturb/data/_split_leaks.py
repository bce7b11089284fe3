"""Which held-out conditions are among the cells that are trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scvi_perturb.data._annotation import describe, identity
from scvi_perturb.data._split_held import containing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from scvi_perturb.data._annotation import Annotation

__all__ = ["find_leaks"]

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
