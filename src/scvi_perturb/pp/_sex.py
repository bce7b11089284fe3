"""Sexes as people write them, as "female" or "male"."""

from __future__ import annotations

from scvi_perturb.data.condition import as_label

__all__ = ["canonical_sex"]

#: In small letters; the identifiers are those of PATO.
_SEXES = {
    **dict.fromkeys(("female", "f", "woman", "girl", "xx", "pato:0000383"), "female"),
    **dict.fromkeys(("male", "m", "man", "boy", "xy", "pato:0000384"), "male"),
}


def canonical_sex(value: object) -> str | None:
    """Return "female" or "male", or None if the value is not one of the words for them.

    Numbers are not read: studies differ in which of them means what.
    """
    return _SEXES.get(as_label(value).casefold())
