"""Identifiers of terms and of perturbations, in the form that their sources write."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["perturbation_identifier", "term_identifier"]

#: For each prefix, how the identifier is written and the pattern of what follows the prefix.
_TERMS: Mapping[str, tuple[str, str]] = {
    "UBERON": ("UBERON:{}", r"\d{7}"),
    "CL": ("CL:{}", r"\d{7}"),
    "CVCL": ("CVCL_{}", r"[A-Z0-9]{4}"),
    "MONDO": ("MONDO:{}", r"\d{7}"),
    "DOID": ("DOID:{}", r"\d+"),
    "EFO": ("EFO:{}", r"\d{7}"),
    "NCIT": ("NCIT:{}", r"C\d+"),
    "BTO": ("BTO:{}", r"\d{7}"),
    "PATO": ("PATO:{}", r"\d{7}"),
    "HANCESTRO": ("HANCESTRO:{}", r"\d{4,7}"),
    "HsapDv": ("HsapDv:{}", r"\d{7}"),
    "MmusDv": ("MmusDv:{}", r"\d{7}"),
    "FBbt": ("FBbt:{}", r"\d{8}"),
    "FBdv": ("FBdv:{}", r"\d{8}"),
    "WBbt": ("WBbt:{}", r"\d{7}"),
    "WBls": ("WBls:{}", r"\d{7}"),
    "ZFA": ("ZFA:{}", r"\d{7}"),
    "ZFS": ("ZFS:{}", r"\d{7}"),
}
#: A CURIE, the same with "_", or the end of "http://.../obo/CL_0000236" or "RRID:CVCL_0004".
_TERM_PATTERNS = [
    (re.compile(rf"(?:.*[/#]|RRID:\s*|cellosaurus:)?{prefix}[:_]({rest})", re.IGNORECASE), form)
    for prefix, (form, rest) in _TERMS.items()
]
#: Genes of Ensembl without their version, compounds of ChEBI and ChEMBL, taxa of NCBI.
_PERTURBATION_PATTERNS = [
    (re.compile(pattern, re.IGNORECASE), form)
    for pattern, form in (
        (r"(ENS(?:[A-Z]{3,4})?G\d{11})(?:\.\d+)?", "{}"),
        (r"(?:.*/)?CHEBI[:_](\d+)", "CHEBI:{}"),
        (r"CHEMBL:?(\d+)", "CHEMBL{}"),
        (r"(?:.*/)?(?:NCBITaxon|taxid|txid)[:_]?(\d+)", "NCBITaxon:{}"),
    )
]


def term_identifier(text: str) -> str | None:
    """Return an ontology's identifier as a CURIE, "CL:0000236"; None if the text is none.

    Those of Cellosaurus keep the form that Cellosaurus gives them, "CVCL_0004".
    """
    return _first(_TERM_PATTERNS, text)


def perturbation_identifier(text: str) -> str | None:
    """Return an identifier of a gene, compound or taxon in its source's form; None if it is none.

    "ENSG00000141510.5" becomes "ENSG00000141510", "chebi_15365" "CHEBI:15365", "chembl25"
    "CHEMBL25", "taxid:10090" "NCBITaxon:10090".
    """
    return _first(_PERTURBATION_PATTERNS, text)


def _first(patterns: list[tuple[re.Pattern[str], str]], text: str) -> str | None:
    """Return the form of the first pattern that the whole text has."""
    for pattern, form in patterns:
        if match := pattern.fullmatch(text.strip()):
            return form.format(match[1].upper())
    return None
