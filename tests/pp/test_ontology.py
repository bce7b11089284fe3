"""Identifiers of terms, the files of ontologies, and what labels mean."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scvi_perturb._core import SchemaError
from scvi_perturb.pp import OntologyTerm, OntologyTerms
from scvi_perturb.pp._ontology import _read_terms, perturbation_identifier, term_identifier
from tests.pp._ontologies import CELLOSAURUS_OBO, CELLOSAURUS_TEXT, OBO, OWL


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
    assert uberon.suggest(label) == instead


def test_a_name_goes_before_a_synonym():
    terms = OntologyTerms(
        [OntologyTerm("CL:0000001", "a", ("b",)), OntologyTerm("CL:0000002", "b")]
    )
    assert terms.match("b").id == "CL:0000002"


LIVER = OntologyTerm("UBERON:0002107", "liver", ("iecur", 'hepatic "organ"'))
K562 = OntologyTerm("CVCL_0004", "K-562", ("K562", "K.562", "GM05372"))


def file(name, text):
    Path(name).write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    return Path(name)


@pytest.mark.parametrize("name", ["uberon.obo", "uberon.obo.gz"])
def test_obo(name):
    terms = _read_terms(file(name, OBO))
    assert [term.id for term in terms] == [
        *("UBERON:0002107", "UBERON:0000955", "UBERON:0000033", "UBERON:0000001")
    ]
    assert terms[0] == LIVER
    assert terms[3] == OntologyTerm(
        "UBERON:0000001", "obsolete hepar", obsolete=True, replaced_by="UBERON:0002107"
    )


@pytest.mark.parametrize("name", ["cellosaurus.txt", "cellosaurus.txt.gz"])
def test_the_text_of_cellosaurus(name):
    assert _read_terms(file(name, CELLOSAURUS_TEXT)) == [K562, OntologyTerm("CVCL_0006", "THP-1")]


def test_other_names_of_cell_lines_are_names_in_obo_too():
    assert _read_terms(file("cells.obo", CELLOSAURUS_OBO)) == [
        OntologyTerm("CVCL_0004", "K-562", ("K562",))
    ]


def test_owl():
    pytest.importorskip("pronto", reason="ontologies in OWL need pronto")
    terms = OntologyTerms.read(file("uberon.owl", OWL))
    assert len(terms) == 2
    assert terms.get("UBERON:0002107") == OntologyTerm("UBERON:0002107", "liver", ("iecur",))
    assert terms.suggest("obsolete hepar") == ["liver (UBERON:0002107)"]


@pytest.mark.skipif(importlib.util.find_spec("pronto") is not None, reason="pronto is installed")
def test_owl_without_pronto():
    with pytest.raises(ImportError, match=r"scvi-perturb\[ontology\]"):
        OntologyTerms.read(file("uberon.owl", "<rdf/>"))


@pytest.mark.parametrize(
    ("name", "text", "error", "message"),
    [
        ("uberon.json", "{}", SchemaError, r"expected '.obo', '.obo.gz'"),
        ("uberon.obo", "", SchemaError, r"holds no terms; expected stanzas '\[Term\]'"),
        ("uberon.obo", "<html>", SchemaError, "'uberon.obo' is not in OBO.*in line 1. Mend"),
        ("uberon.obo", OBO.replace("EXACT SHORT", "SAME"), SchemaError, "in line 9"),
        ("cells.txt", "K562\n", SchemaError, "holds no terms"),
        (None, "", FileNotFoundError, "no ontology at 'absent.obo'"),
    ],
)
def test_messages(name, text, error, message):
    path = "absent.obo" if name is None else file(name, text)
    with pytest.raises(error, match=message):
        OntologyTerms.read(path)


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
