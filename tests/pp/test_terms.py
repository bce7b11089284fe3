"""What is written for labels and identifiers of terms."""

from __future__ import annotations

import pytest

from scvi_perturb.pp import OntologyTerm, OntologyTerms
from scvi_perturb.pp._terms import resolve

LIVER, BRAIN, OLD = "UBERON:0002107", "UBERON:0000955", "UBERON:0000001"
UBERON = OntologyTerms(
    [
        OntologyTerm(LIVER, "liver", ("iecur",)),
        OntologyTerm(BRAIN, "brain"),
        OntologyTerm(OLD, "obsolete hepar", obsolete=True, replaced_by=LIVER),
    ]
)


@pytest.mark.parametrize(
    ("label", "identifier", "written"),
    [
        (None, None, (None, None, None)),
        ("Liver", None, ("Liver", None, None)),
        ("UBERON_0002107", None, (LIVER, LIVER, None)),
        ("Liver", "uberon_0002107", ("Liver", LIVER, None)),
        (None, "UBERON_0002107", (LIVER, LIVER, None)),
        ("Liver", "liver", ("Liver", "liver", "liver")),
    ],
)
def test_without_an_ontology_only_the_form_is_checked(label, identifier, written):
    assert resolve(label, identifier, None) == written


@pytest.mark.parametrize(
    ("label", "identifier", "written"),
    [
        (None, None, (None, None, None)),
        ("LIVER", None, ("liver", LIVER, None)),
        ("iecur", None, ("liver", LIVER, None)),
        ("livre", None, ("livre", None, "livre")),
        ("UBERON_0002107", None, ("liver", LIVER, None)),
        (None, "uberon:0002107", ("liver", LIVER, None)),
        ("iecur", LIVER, ("liver", LIVER, None)),
        ("left lobe", LIVER, ("left lobe", LIVER, None)),  # finer than the term: kept
        ("brain", LIVER, ("brain", LIVER, f"brain ({LIVER})")),  # contradicts
        ("obsolete hepar", None, ("obsolete hepar", None, "obsolete hepar")),
        ("hepar", OLD, ("hepar", OLD, OLD)),
        (OLD, None, (OLD, OLD, OLD)),
        ("liver", "UBERON:9999999", ("liver", "UBERON:9999999", "UBERON:9999999")),
        ("liver", "organ 7", ("liver", "organ 7", "organ 7")),
    ],
)
def test_with_an_ontology_terms_are_named_and_the_rest_stays(label, identifier, written):
    assert resolve(label, identifier, UBERON) == written


def test_identifiers_of_any_prefix_are_those_of_the_ontology():
    terms = OntologyTerms([OntologyTerm("XAO:0000133", "liver")])
    assert resolve("XAO:0000133", None, terms) == ("liver", "XAO:0000133", None)
