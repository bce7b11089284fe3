"""Errors raised for the user. Each message says what was found, what was expected, what to do."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "LeakError",
    "NotTrainedError",
    "SchemaError",
    "UnknownPerturbationError",
    "check_choice",
    "check_type",
]


class SchemaError(ValueError):
    """The data do not have the form that was asked for."""


class LeakError(ValueError):
    """Held-out cells or conditions would be seen in training."""


class NotTrainedError(RuntimeError):
    """A result was asked of a model that has not been trained."""


class UnknownPerturbationError(ValueError):
    """A perturbation was neither trained on nor has features.

    Parameters
    ----------
    name
        The perturbation that was asked for.
    known
        Names that could have been asked for; the nearest ones are put in the message.
    """

    def __init__(self, name: str, known: Iterable[str] = ()) -> None:
        known = sorted(set(known))
        near = get_close_matches(name, known, n=3, cutoff=0.5) or known[:3]
        hint = f" Nearest known names: {', '.join(near)}." if near else ""
        super().__init__(
            f"Perturbation {name!r} was not trained on and has no features, so nothing is known "
            f"about it.{hint} Ask for a known perturbation, or give the model "
            "`features=PerturbationFeatures(...)` that cover this name."
        )
        self.name = name
        self.nearest = near


def check_choice(argument: str, value: object, legal: Iterable[str]) -> None:
    """Raise `ValueError` unless `value` is one of `legal`, naming both."""
    options = sorted(legal)
    if value not in options:
        msg = f"{argument}={value!r} is not known; choose one of {', '.join(map(repr, options))}."
        raise ValueError(msg)


def check_type(argument: str, value: object, expected: type, advice: str) -> None:
    """Raise `TypeError` unless `value` is of the expected type, with advice on what to do."""
    if not isinstance(value, expected):
        msg = f"{argument} is a {type(value).__name__}; expected a {expected.__name__}. {advice}"
        raise TypeError(msg)
