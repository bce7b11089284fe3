"""Small ontologies in the forms that are read."""

from __future__ import annotations

OBO = r"""format-version: 1.2
ontology: small

[Term]
id: UBERON:0002107
name: liver
def: "An organ: \"the liver\"." []
synonym: "iecur" EXACT [] {comment="Latin"}
synonym: "hepatic \"organ\"" EXACT SHORT [X:1]
synonym: "abdominal gland" BROAD []
is_a: UBERON:0000062 ! organ

[Term]
id: UBERON:0000955
name: brain
synonym: "encephalon" EXACT []
synonym: "head thing" EXACT []

[Term]
id: UBERON:0000033
name: head
synonym: "head thing" EXACT []

[Term]
id: UBERON:0000001
name: obsolete hepar
is_obsolete: true
replaced_by: UBERON:0002107 ! liver

[Term]
id: UBERON:0000002
synonym: "without a name" EXACT []

[Typedef]
id: part_of
name: part of
"""

CELLOSAURUS_TEXT = """----------------
        CELLOSAURUS
----------------
ID   K-562
AC   CVCL_0004
SY   K562; K.562; GM05372
DR   BTO; BTO_0000664
CC   Population: Caucasian.
CC   Doubling time: 47 hours.
SX   Female
//
ID   THP-1
AC   CVCL_0006
SX   Male
//
"""

CELLOSAURUS_OBO = """[Term]
id: CVCL_0004
name: K-562
synonym: "K562" RELATED []
subset: Female
"""

OWL = """<?xml version="1.0"?>
<rdf:RDF xmlns="http://purl.obolibrary.org/obo/small.owl#"
     xml:base="http://purl.obolibrary.org/obo/small.owl"
     xmlns:owl="http://www.w3.org/2002/07/owl#"
     xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"
     xmlns:rdfs="http://www.w3.org/2000/01/rdf-schema#"
     xmlns:obo="http://purl.obolibrary.org/obo/"
     xmlns:oboInOwl="http://www.geneontology.org/formats/oboInOwl#">
  <owl:Ontology rdf:about="http://purl.obolibrary.org/obo/small.owl"/>
  <owl:Class rdf:about="http://purl.obolibrary.org/obo/UBERON_0002107">
    <rdfs:label>liver</rdfs:label>
    <oboInOwl:id>UBERON:0002107</oboInOwl:id>
    <oboInOwl:hasExactSynonym>iecur</oboInOwl:hasExactSynonym>
    <oboInOwl:hasBroadSynonym>abdominal gland</oboInOwl:hasBroadSynonym>
  </owl:Class>
  <owl:Class rdf:about="http://purl.obolibrary.org/obo/UBERON_0000001">
    <rdfs:label>obsolete hepar</rdfs:label>
    <oboInOwl:id>UBERON:0000001</oboInOwl:id>
    <owl:deprecated rdf:datatype="http://www.w3.org/2001/XMLSchema#boolean">true</owl:deprecated>
    <obo:IAO_0100001 rdf:resource="http://purl.obolibrary.org/obo/UBERON_0002107"/>
  </owl:Class>
</rdf:RDF>
"""
