"""Terms are found by identifier and by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from scvi_perturb.pp import OntologyTerm, OntologyTerms
from scvi_perturb.pp._ontology import read_ontologies
from tests.pp._ontologies import OBO


@pytest.fixture
def uberon():
    Path("uberon.obo").write_text(OBO)
    return OntologyTerms.read("uberon.obo")


def test_by_identifier(uberon):
    assert len(uberon) == 4
    assert uberon.get("UBERON:0002107").name == "liver"
    assert uberon.get("uberon_0002107").name == "liver"
    assert uberon.get("UBERON:0000001").obsolete
    assert uberon.get("UBERON:9999999") is None


@pytest.mark.parametrize("label", ["liver", "Liver", " LIVER ", "iecur", 'Hepatic  "organ"'])
def test_by_name_or_exact_synonym(uberon, label):
    assert uberon.match(label).id == "UBERON:0002107"


@pytest.mark.parametrize(
    ("label", "instead"),
    [
        ("livre", ["liver"]),
        ("abdominal gland", []),
        ("obsolete hepar", ["liver (UBERON:0002107)"]),
        ("UBERON:0000001", ["liver (UBERON:0002107)"]),
        ("head thing", ["brain (UBERON:0000955)", "head (UBERON:0000033)"]),
        ("encephalom", ["encephalon"]),
    ],
)
def test_what_matches_nothing_has_suggestions(uberon, label, instead):
    assert uberon.match(label) is None
    assert uberon.instead(label) == instead


def test_a_name_goes_before_a_synonym():
    terms = OntologyTerms(
        [OntologyTerm("CL:0000001", "a", ("b",)), OntologyTerm("CL:0000002", "b")]
    )
    assert terms.match("b").id == "CL:0000002"


def test_paths_and_terms_are_taken(uberon):
    read = read_ontologies({"tissue": Path("uberon.obo"), "disease": uberon})
    assert read["disease"] is uberon
    assert read["tissue"].match("brain") == uberon.match("brain")
    assert read_ontologies(None) == {}
