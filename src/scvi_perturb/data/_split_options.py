"""What only some kinds of split ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from scvi_perturb._errors import SchemaError, check_choice
from scvi_perturb.data._condition import as_label

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias

    #: A label, or a label for each context key.
    ContextName: TypeAlias = str | Mapping[str, str]

__all__ = ["SplitOptions"]

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
