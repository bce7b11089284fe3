"""Canonical columns of samples and cells: ages, sexes, and terms of ontologies."""

from __future__ import annotations

import logging
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from scvi_perturb._core import SchemaError
from scvi_perturb.data.condition import default_keys
from scvi_perturb.pp import OntologyTerm, OntologyTerms, harmonize
from scvi_perturb.pp._metadata import canonical_sex, resolve
from tests.pp._ontologies import CELLOSAURUS_TEXT, OBO

LIVER, BRAIN = "UBERON:0002107", "UBERON:0000955"
CL = OntologyTerms(
    [
        OntologyTerm("CL:0000236", "B cell", ("B lymphocyte", "B-cell")),
        OntologyTerm("CL:0000623", "natural killer cell", ("NK cell",)),
        OntologyTerm("CL:0000624", "CD4-positive, alpha-beta T cell"),
    ]
)


def screen(**columns):
    n = len(next(iter(columns.values())))
    obs = pd.DataFrame(columns, index=[f"c{i}" for i in range(n)])
    return AnnData(np.ones((n, 2), np.float32), obs=obs)


def listed(values):
    """Values with None for the missing ones."""
    return [None if pd.isna(value) else value for value in values]


@pytest.fixture
def atlas():
    """Samples as of an atlas, that were not perturbed."""
    return screen(
        tissue=["Liver", "LIVER", "livre", None, "brain"],
        gender=["M", "F", "2", "unknown", "female"],
        age=["60-69", "18 months", "fetal", None, "30"],
        self_reported_ethnicity=["Finnish", "unknown", "Finnish", "na", "Finnish"],
        development_stage=["adult", "infant", "fetal", "adult", "adult"],
        disease=["normal", "MONDO_0005148", "normal", "normal", "MONDO:0005148"],
        donor_id=[1, 2, 3, 4, 5],
        tissue_type=["tissue"] * 5,
    )


def test_samples_that_were_not_perturbed(atlas):
    made = harmonize(atlas, perturbed=False)
    obs = made.obs
    assert listed(obs["age"]) == [64.5, 1.5, None, None, 30.0]
    assert obs["age"].dtype == np.float64
    assert listed(obs["sex"]) == ["male", "female", None, None, "female"]
    assert listed(obs["tissue"]) == ["Liver", "LIVER", "livre", None, "brain"]
    assert listed(obs["ethnicity"]) == ["Finnish", None, "Finnish", None, "Finnish"]
    assert listed(obs["disease"])[:2] == ["normal", "MONDO:0005148"]
    assert listed(obs["disease_ontology_term_id"]) == [
        *(None, "MONDO:0005148", None, None, "MONDO:0005148")
    ]
    assert "tissue_ontology_term_id" not in obs
    uns = made.uns["scvi_perturb"]
    assert uns["keys"] == {
        "metadata": [
            *("age", "sex", "tissue", "disease", "donor", "developmental_stage", "ethnicity")
        ]
    }
    assert uns["units"] == {"age": "years"}
    assert uns["unknown_terms"] == {"age": ["fetal"], "sex": ["2"]}
    with pytest.raises(SchemaError, match="no column 'perturbation'"):
        default_keys(made)


def test_perturbations_are_asked_for_unless_told_otherwise(atlas):
    with pytest.raises(SchemaError, match="perturbed=False"):
        harmonize(atlas)
    with pytest.raises(SchemaError, match="perturbed=False"):
        harmonize(atlas, "gears")
    mapped = harmonize(atlas, {"tissue": "tissue"}, perturbed=False)
    assert mapped.uns["scvi_perturb"]["keys"] == {"metadata": ["tissue"]}
    with pytest.raises(SchemaError, match=r"maps \['dose'\], but perturbed=False"):
        harmonize(atlas, {"dose": "age"}, perturbed=False)


def test_labels_become_terms_and_unknown_ones_are_told(atlas, caplog):
    Path("uberon.obo").write_text(OBO)
    before = atlas.obs.copy()
    with caplog.at_level(logging.WARNING, logger="scvi_perturb"):
        made = harmonize(atlas, perturbed=False, ontologies={"tissue": "uberon.obo"})
    assert listed(made.obs["tissue"]) == ["liver", "liver", "livre", None, "brain"]
    assert listed(made.obs["tissue_ontology_term_id"]) == [LIVER, LIVER, None, None, BRAIN]
    assert made.uns["scvi_perturb"]["unknown_terms"]["tissue"] == ["livre"]
    (said,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("tissue")]
    assert "tissue is not understood in 1 of 5 cells: 'livre' (1; nearest: liver). Expected" in said
    pd.testing.assert_frame_equal(atlas.obs, before)
    given = harmonize(
        atlas, perturbed=False, ontologies={"tissue": OntologyTerms.read("uberon.obo")}
    )
    pd.testing.assert_frame_equal(given.obs, made.obs)


def test_identifiers_beside_labels():
    made = harmonize(
        screen(
            perturbation=["control", "A", "A"],
            tissue=["Leber", "brain", "liver"],
            tissue_ontology_term_id=["UBERON_0002107", "unknown", "UBERON:0002107 (organoid)"],
            cell_type_ontology_term_id=["CL_0000236", None, "CL:0000623"],
        ),
        ontologies={"cell_type": CL},
    )
    assert listed(made.obs["tissue"]) == ["Leber", "brain", "liver"]
    assert listed(made.obs["tissue_ontology_term_id"]) == [
        *(LIVER, None, "UBERON:0002107 (organoid)")
    ]
    assert listed(made.obs["cell_type"]) == ["B cell", None, "natural killer cell"]
    assert made.uns["scvi_perturb"]["unknown_terms"] == {"tissue": ["UBERON:0002107 (organoid)"]}
    assert made.uns["scvi_perturb"]["keys"]["context"] == ["cell_type"]
    assert made.uns["scvi_perturb"]["keys"]["metadata"] == ["tissue"]


def test_cell_lines():
    Path("cellosaurus.txt").write_text(CELLOSAURUS_TEXT)
    source = screen(perturbation=["control", "A", "A"], cell_line=["k562", "THP-1", "CVCL_0004"])
    made = harmonize(source, ontologies={"cell_line": Path("cellosaurus.txt")})
    assert listed(made.obs["cell_line"]) == ["K-562", "THP-1", "K-562"]
    assert listed(made.obs["cell_line_ontology_term_id"]) == ["CVCL_0004", "CVCL_0006", "CVCL_0004"]
    # There is no column of types: the line stands for it, as it was written.
    assert listed(made.obs["cell_type"]) == ["k562", "THP-1", "CVCL_0004"]
    assert "cell_type_ontology_term_id" not in made.obs
    with_type = source.copy()
    with_type.obs["celltype"] = "T"
    assert set(harmonize(with_type).obs["cell_type"]) == {"T"}


def test_an_ontology_without_a_column_is_told(caplog):
    harmonize(screen(perturbation=["control"], cell_line=["K562"]), ontologies={"cell_type": CL})
    assert "No column of cell_type was found" in caplog.text


def test_an_ontology_of_something_else():
    with pytest.raises(ValueError, match="ontologies field='age'"):
        harmonize(screen(perturbation=["control"]), ontologies={"age": CL})


def test_ages_by_a_column_of_units():
    made = harmonize(
        screen(
            perturbation=["control", "A", "B", "A"],
            age=[8.0, 2.0, np.nan, 8.0],
            age_unit=["weeks", "years", "weeks", "passages"],
        )
    )
    assert listed(made.obs["age"]) == [pytest.approx(56 / 365.25), 2.0, None, None]
    assert made.uns["scvi_perturb"]["unknown_terms"] == {"age": ["8 passages"]}


def test_identifiers_of_perturbations_follow_their_components(caplog):
    made = harmonize(
        screen(
            perturbation=["control", "B+A", "A+ctrl", "ctrl+C", "B+C", "D", "A+B"],
            perturbation_id=[
                *("none", "ENSG00000000002.3+ENSG00000000001", "ensg00000000001", "NA+chebi_15365"),
                *("ENSG00000000002+NA", "my drug", "ENSG00000000001"),
            ],
        )
    )
    assert made.obs["perturbation"].tolist()[1] == "A+B"
    assert listed(made.obs["perturbation_id"]) == [
        *(None, "ENSG00000000001+ENSG00000000002", "ENSG00000000001", "CHEBI:15365"),
        *("ENSG00000000002+NA", "my drug", "ENSG00000000001"),
    ]
    unknown = made.uns["scvi_perturb"]["unknown_terms"]
    assert unknown == {"perturbation_id": ["ENSG00000000001", "my drug"]}  # one id for two
    assert "perturbation_id is not understood in 2 of 7 cells: " in caplog.text
    twice = harmonize(made)
    pd.testing.assert_frame_equal(twice.obs, made.obs)


def test_twice_is_as_once(atlas):
    ontologies = {"tissue": OntologyTerms([OntologyTerm(LIVER, "liver")])}
    source = atlas.copy()
    source.obs["age_unit"] = ["years", "years", "weeks", "years", "weeks"]
    once = harmonize(source, perturbed=False, ontologies=ontologies)
    twice = harmonize(once, perturbed=False)
    pd.testing.assert_frame_equal(once.obs, twice.obs)
    first, second = once.uns["scvi_perturb"], twice.uns["scvi_perturb"]
    assert first["unknown_terms"] == second["unknown_terms"]
    assert first["unknown_terms"]["age"] == ["fetal weeks"]
    assert first["keys"] == second["keys"]


def test_perturbations_may_be_read_after_metadata(atlas):
    source = atlas.copy()
    source.obs["age_unit"] = "weeks"
    source.obs["condition"] = ["ctrl", "A", "A", "B", "B"]
    samples = harmonize(source, perturbed=False)
    for schema in ("auto", {"perturbation": "condition"}):
        made = harmonize(samples, schema)
        assert listed(made.obs["age"]) == listed(samples.obs["age"])
        uns = made.uns["scvi_perturb"]
        assert uns["keys"]["metadata"] == samples.uns["scvi_perturb"]["keys"]["metadata"]
        assert uns["keys"]["perturbation"] == "perturbation"
        assert uns["units"]["age"] == "years"
        assert uns["unknown_terms"]["sex"] == ["2"]


def test_a_term_that_is_known_by_now_is_no_longer_listed(atlas):
    small = OntologyTerms([OntologyTerm(LIVER, "liver", ("livre",))])
    large = OntologyTerms([OntologyTerm(LIVER, "liver", ("livre",)), OntologyTerm(BRAIN, "brain")])
    first = harmonize(atlas, perturbed=False, ontologies={"tissue": small})
    assert first.uns["scvi_perturb"]["unknown_terms"]["tissue"] == ["brain"]
    second = harmonize(first, perturbed=False, ontologies={"tissue": large})
    assert "tissue" not in second.uns["scvi_perturb"]["unknown_terms"]
    assert listed(second.obs["tissue_ontology_term_id"]) == [LIVER, LIVER, LIVER, None, BRAIN]


def test_written_and_read(atlas, tmp_path):
    atlas.obs["Disease"] = atlas.obs.pop("disease")
    made = harmonize(atlas, perturbed=False, ontologies={"disease": CL})
    made.write_h5ad(tmp_path / "atlas.h5ad")
    read = ad.read_h5ad(tmp_path / "atlas.h5ad")
    before, after = made.uns["scvi_perturb"], read.uns["scvi_perturb"]
    assert list(after["keys"]["metadata"]) == before["keys"]["metadata"]
    assert {field: [*x] for field, x in after["unknown_terms"].items()} == before["unknown_terms"]
    again = harmonize(read, perturbed=False)
    assert again.uns["scvi_perturb"]["unknown_terms"] == before["unknown_terms"]
    assert again.uns["scvi_perturb"]["keys"] == before["keys"]
    for column in ("age", "sex", "tissue", "disease", "disease_ontology_term_id"):
        assert listed(read.obs[column]) == listed(made.obs[column])
        assert listed(again.obs[column]) == listed(made.obs[column])


def test_nothing_found_is_written_too(tmp_path):
    made = harmonize(screen(perturbation=["control", "A"], sex=[None, None], tissue=[None, None]))
    made.write_h5ad(tmp_path / "screen.h5ad")
    read = ad.read_h5ad(tmp_path / "screen.h5ad")
    assert read.obs["sex"].isna().all()
    assert read.obs["tissue"].isna().all()
    assert dict(read.uns["scvi_perturb"]["unknown_terms"]) == {}
    plain = harmonize(screen(perturbation=["control", "A"]))
    plain.write_h5ad(tmp_path / "plain.h5ad")
    assert [*ad.read_h5ad(tmp_path / "plain.h5ad").uns["scvi_perturb"]["keys"]["metadata"]] == []


def test_kinds_of_perturbations_stay_as_the_screen_calls_them():
    made = harmonize(
        screen(perturbation=["control", "A", "A"], perturbation_type=["CRISPRi", "CRISPRi", "KO"])
    )
    assert made.obs["perturbation_type"].tolist() == ["control", "CRISPRi", "KO"]


def real(data_dir, name):
    """The annotation of a real screen, without its counts."""
    if not (data_dir / name).exists():
        pytest.skip(f"{name} is not among the real screens")
    backed = ad.read_h5ad(data_dir / name, backed="r")
    obs = backed.obs.copy()
    backed.file.close()
    return AnnData(obs=obs)


def test_cell_types_of_a_real_screen(data_dir, caplog):
    source = real(data_dir, "kang2018_pbmc_ifnb_merged_counts.h5ad")
    made = harmonize(source, ontologies={"cell_type": CL})
    uns = made.uns["scvi_perturb"]
    assert uns["keys"]["metadata"] == ["donor"]
    assert "unknown" in set(made.obs["donor"])  # a label of the screen, as before
    assert "B cells" in uns["unknown_terms"]["cell_type"]
    assert "nearest: B cell" in caplog.text
    assert made.obs["cell_type"].tolist() == source.obs["cell_type"].astype(str).tolist()
    source.obs["cell_type"] = source.obs["cell_type"].cat.rename_categories({"B cells": "b-CELL"})
    renamed = harmonize(source, ontologies={"cell_type": CL}).obs
    is_b = (renamed["cell_type"] == "B cell").to_numpy()
    assert is_b.sum() == (source.obs["cell_type"] == "b-CELL").sum() > 100
    assert set(renamed["cell_type_ontology_term_id"][is_b]) == {"CL:0000236"}


@pytest.mark.parametrize(
    "name",
    ["norman2019_subset_k562_crispra.h5ad", "papalexi2021_thp1_eccite_303genes.h5ad"],
)
def test_screens_without_metadata_are_as_before(data_dir, name, caplog):
    source = real(data_dir, name)
    made = harmonize(source)
    assert made.uns["scvi_perturb"]["keys"]["metadata"] == []
    assert made.uns["scvi_perturb"]["unknown_terms"] == {}
    assert made.obs["cell_type"].tolist() == source.obs["cell_type"].astype(str).tolist()
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_bulk_profiles_of_a_real_study_without_perturbations(data_dir):
    source = real(data_dir, "morphic_bulk_ko_log2fc.h5ad")
    made = harmonize(source, {"tissue": "model_system", "batch": "dataset"}, perturbed=False)
    assert made.obs["tissue"].tolist() == source.obs["model_system"].astype(str).tolist()
    assert made.uns["scvi_perturb"]["keys"] == {"batch": "batch", "metadata": ["tissue"]}
    assert made.obs["perturbation"].equals(source.obs["perturbation"])


@pytest.mark.parametrize(
    ("sex", "words"),
    [
        ("female", ["female", "Female", " F ", "f", "woman", "XX", "PATO:0000383"]),
        ("male", ["male", "MALE", "M", "man", "xy", "PATO:0000384"]),
    ],
)
def test_words(sex, words):
    assert {canonical_sex(word) for word in words} == {sex}


@pytest.mark.parametrize("value", [1, 2, "1", "mixed", "femal", "pooled male and female", "", None])
def test_anything_else_is_neither(value):
    assert canonical_sex(value) is None


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
