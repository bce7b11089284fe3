"""Identifiers in the form of their sources."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scvi_perturb.pp._identifiers import perturbation_identifier, term_identifier


@pytest.mark.parametrize(
    ("text", "identifier"),
    [
        ("CL:0000236", "CL:0000236"),
        ("CL_0000236", "CL:0000236"),
        ("cl:0000236 ", "CL:0000236"),
        ("http://purl.obolibrary.org/obo/UBERON_0002107", "UBERON:0002107"),
        ("MONDO_0005148", "MONDO:0005148"),
        ("hsapdv:0000087", "HsapDv:0000087"),
        ("CVCL_0004", "CVCL_0004"),
        ("cvcl:b0z9", "CVCL_B0Z9"),
        ("RRID: CVCL_0004", "CVCL_0004"),
        ("cellosaurus:CVCL_0004", "CVCL_0004"),
        ("HANCESTRO:0005", "HANCESTRO:0005"),
        ("NCIT_c3224", "NCIT:C3224"),
    ],
)
def test_terms(text, identifier):
    assert term_identifier(text) == identifier
    assert term_identifier(identifier) == identifier


@pytest.mark.parametrize(
    "text", ["liver", "CL_1", "CL:00002361", "batch:0000236", "UBERON:0002107 (organoid)", ""]
)
def test_labels_are_no_terms(text):
    assert term_identifier(text) is None


@given(st.integers(0, 10**7 - 1), st.sampled_from(["UBERON", "CL", "MONDO", "HsapDv", "EFO"]))
def test_separator_and_case_do_not_matter(number, prefix):
    curie = f"{prefix}:{number:07d}"
    for text in (curie, curie.replace(":", "_"), curie.lower(), f"https://a.org/{curie.upper()}"):
        assert term_identifier(text) == curie


@pytest.mark.parametrize(
    ("text", "identifier"),
    [
        ("ENSG00000141510", "ENSG00000141510"),
        ("ensg00000141510.18", "ENSG00000141510"),
        ("ENSMUSG00000059552", "ENSMUSG00000059552"),
        ("chebi_15365", "CHEBI:15365"),
        ("ChEBI:15365", "CHEBI:15365"),
        ("chembl25", "CHEMBL25"),
        ("CHEMBL:25", "CHEMBL25"),
        ("NCBITaxon:10090", "NCBITaxon:10090"),
        ("taxid:10090", "NCBITaxon:10090"),
    ],
)
def test_perturbations(text, identifier):
    assert perturbation_identifier(text) == identifier
    assert perturbation_identifier(identifier) == identifier


@pytest.mark.parametrize("text", ["TP53", "ENSG0000014151", "ENST00000269305", "15365", "CHEBI"])
def test_names_are_no_identifiers_of_perturbations(text):
    assert perturbation_identifier(text) is None
