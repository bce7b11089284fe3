"""What is held out, and how it is found by name."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, NamedTuple

from scvi_perturb._errors import SchemaError
from scvi_perturb.data._condition import as_label

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

__all__ = ["Held", "containing", "find_named"]


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
