"""Bring a screen into canonical form, and check it."""

from __future__ import annotations

from scvi_perturb.pp._harmonize import harmonize
from scvi_perturb.pp._ontology import OntologyTerm, OntologyTerms
from scvi_perturb.pp._validate import ScreenReport, validate

__all__ = ["OntologyTerm", "OntologyTerms", "ScreenReport", "harmonize", "validate"]
