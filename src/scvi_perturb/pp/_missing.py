"""Words by which public metadata say that they do not know."""

from __future__ import annotations

from scvi_perturb.data.condition import as_label
from scvi_perturb.pp._units import is_missing

__all__ = ["says_nothing"]

_WORDS = frozenset(
    (
        *("unknown", "missing", "unspecified", "not available", "not applicable"),
        *("not collected", "not provided", "not reported", "not recorded"),
    )
)


def says_nothing(value: object) -> bool:
    """Whether a value is missing, or says in words that nothing is known."""
    return is_missing(value) or as_label(value).casefold() in _WORDS
