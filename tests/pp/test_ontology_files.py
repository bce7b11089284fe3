"""Terms from the files of ontologies."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import pytest

from scvi_perturb._errors import SchemaError
from scvi_perturb.pp import OntologyTerm, OntologyTerms
from scvi_perturb.pp._ontology_files import read_terms
from tests.pp._ontologies import CELLOSAURUS_OBO, CELLOSAURUS_TEXT, OBO, OWL

LIVER = OntologyTerm("UBERON:0002107", "liver", ("iecur", 'hepatic "organ"'))
K562 = OntologyTerm("CVCL_0004", "K-562", ("K562", "K.562", "GM05372"))


def file(name, text):
    Path(name).write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    return Path(name)


@pytest.mark.parametrize("name", ["uberon.obo", "uberon.obo.gz"])
def test_obo(name):
    terms = read_terms(file(name, OBO))
    assert [term.id for term in terms] == [
        *("UBERON:0002107", "UBERON:0000955", "UBERON:0000033", "UBERON:0000001")
    ]
    assert terms[0] == LIVER
    assert terms[3] == OntologyTerm(
        "UBERON:0000001", "obsolete hepar", obsolete=True, replaced_by="UBERON:0002107"
    )


@pytest.mark.parametrize("name", ["cellosaurus.txt", "cellosaurus.txt.gz"])
def test_the_text_of_cellosaurus(name):
    assert read_terms(file(name, CELLOSAURUS_TEXT)) == [K562, OntologyTerm("CVCL_0006", "THP-1")]


def test_other_names_of_cell_lines_are_names_in_obo_too():
    assert read_terms(file("cells.obo", CELLOSAURUS_OBO)) == [
        OntologyTerm("CVCL_0004", "K-562", ("K562",))
    ]


def test_owl():
    pytest.importorskip("pronto", reason="ontologies in OWL need pronto")
    terms = OntologyTerms.read(file("uberon.owl", OWL))
    assert len(terms) == 2
    assert terms.get("UBERON:0002107") == OntologyTerm("UBERON:0002107", "liver", ("iecur",))
    assert terms.instead("obsolete hepar") == ["liver (UBERON:0002107)"]


@pytest.mark.skipif(importlib.util.find_spec("pronto") is not None, reason="pronto is installed")
def test_owl_without_pronto():
    with pytest.raises(ImportError, match=r"scvi-perturb\[ontology\]"):
        OntologyTerms.read(file("uberon.owl", "<rdf/>"))


@pytest.mark.parametrize(
    ("name", "text", "error", "message"),
    [
        ("uberon.json", "{}", SchemaError, r"expected '.obo', '.obo.gz'"),
        ("uberon.obo", "<html>", SchemaError, r"holds no terms; expected stanzas '\[Term\]'"),
        ("cells.txt", "K562\n", SchemaError, "holds no terms"),
        (None, "", FileNotFoundError, "no ontology at 'absent.obo'"),
    ],
)
def test_messages(name, text, error, message):
    path = "absent.obo" if name is None else file(name, text)
    with pytest.raises(error, match=message):
        OntologyTerms.read(path)
