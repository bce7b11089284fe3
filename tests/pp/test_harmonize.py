"""Canonical columns from the layouts of public screens."""

from __future__ import annotations

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from scvi_perturb._core import SchemaError
from scvi_perturb.data.condition import ScreenKeys, default_keys
from scvi_perturb.data.condition_table import encode_obs
from scvi_perturb.data.split.kinds import split
from scvi_perturb.pp import harmonize, validate


def screen(**columns):
    n = len(next(iter(columns.values())))
    obs = pd.DataFrame(columns, index=[f"c{i}" for i in range(n)])
    return AnnData(np.ones((n, 2), np.float32), obs=obs)


@pytest.fixture
def scperturb():
    return screen(
        perturbation=["control", "AHR_KLF1", "KLF1", "HLA_A", "DMSO", "control"],
        nperts=[0, 2, 1, 1, 0, 0],
        perturbation_type=["CRISPR"] * 6,
        celltype=pd.Categorical(["K562", "K562", "A549", "A549", "K562", "A549"]),
        ncounts=[10.0, 20, 30, 40, 50, 60],
        time=["7 days", "168h", "7 days", "168 hours", "7 days", "week 1"],
    )


def test_scperturb(scperturb):
    made = harmonize(scperturb)
    obs = made.obs
    assert obs["perturbation"].tolist() == [
        "control",
        "AHR+KLF1",
        "KLF1",
        "HLA_A",
        "control",
        "control",
    ]
    assert obs["cell_type"].tolist() == ["K562", "K562", "A549", "A549", "K562", "A549"]
    assert obs["library_size"].tolist() == [10, 20, 30, 40, 50, 60]
    assert obs["time"].tolist() == [168.0] * 6
    assert obs["perturbation_type"].tolist() == ["control", *["CRISPR"] * 3, "control", "control"]
    assert "dose" not in obs
    uns = made.uns["scvi_perturb"]
    assert uns["schema"] == "scperturb"
    assert uns["units"] == {"time": "h"}
    assert uns["source"]["cell_type"] == "celltype"
    assert default_keys(made) == ScreenKeys(
        time="time", kind="perturbation_type", context="cell_type"
    )


def test_scperturb_doses_become_one_unit():
    made = harmonize(
        screen(
            perturbation=["control", "drug a", "drug a", "drug b"],
            dose_value=["0", "10", "100", 0.5],
            dose_unit=["nM", "nM", "nM", "micromolar"],
        )
    )
    assert made.obs["dose"].tolist() == ["0", "0.01", "0.1", "0.5"]
    assert made.uns["scvi_perturb"]["units"] == {"dose": "uM"}


def test_further_perturbations_are_components_with_doses_of_their_own():
    made = harmonize(
        screen(
            perturbation=["BMP4", "BMP4", "control", "control"],
            perturbation_2=["drug", "None", "drug", None],
            dose_value=["10", "20", "0", "0"],
            dose_unit=["ng/mL"] * 4,
            dose_value_2=["100", None, "200", None],
            dose_unit_2=["nM"] * 4,
            perturbation_type=["cytokine"] * 4,
            perturbation_type_2=["drug"] * 4,
        )
    )
    assert made.obs["perturbation"].tolist() == ["BMP4+drug", "BMP4", "drug", "control"]
    assert made.obs["dose"].tolist() == ["10+0.1", "20", "0.2", "0"]
    assert made.obs["perturbation_type"].tolist() == [
        "cytokine+drug",
        "cytokine",
        "drug",
        "control",
    ]
    assert made.uns["scvi_perturb"]["units"] == {"dose": "ng/mL, uM"}


@pytest.mark.parametrize("schema", ["auto", "gears", "cpa"])
def test_gears_and_cpa(schema):
    made = harmonize(
        screen(
            condition=["ctrl", "A+ctrl", "ctrl+B", "B+A", "Vehicle"],
            dose_val=["1", "1+1", "1+2", "3+4", "1.0"],
            cell_type=["K562"] * 5,
        ),
        schema,
    )
    assert made.obs["perturbation"].tolist() == ["control", "A", "B", "A+B", "control"]
    assert made.obs["dose"].tolist() == ["0", "1", "2", "4+3", "0"]


def test_pertpy():
    made = harmonize(
        screen(
            perturbation=["Perturbed", "NT", "Perturbed"],
            gene_target=["STAT1", "NT", "JAK2"],
            replicate=["rep1", "rep2", "rep1"],
        )
    )
    assert made.obs["perturbation"].tolist() == ["STAT1", "control", "JAK2"]
    assert made.obs["batch"].tolist() == ["rep1", "rep2", "rep1"]
    stimulated = harmonize(screen(label=["ctrl", "stim"]), "pertpy")
    assert stimulated.obs["perturbation"].tolist() == ["control", "stim"]


def test_a_mapping_with_units_in_the_values():
    made = harmonize(
        screen(gene=["NT", "A+B", "B"], conc=[None, "10 µM + 5 nM", "1e-6 M"], day=[3, 3, 4]),
        {"perturbation": "gene", "dose": "conc", "time": "day", "cell_type": "day"},
    )
    assert made.obs["perturbation"].tolist() == ["control", "A+B", "B"]
    assert made.obs["dose"].tolist() == ["0", "10+0.005", "1"]
    assert made.obs["time"].tolist() == [3.0, 3.0, 4.0]
    assert made.obs["cell_type"].tolist() == ["3", "3", "4"]
    assert made.uns["scvi_perturb"]["units"] == {"dose": "uM", "time": ""}


@pytest.mark.parametrize(
    "label",
    ["control", "ctrl", "non-targeting", "Non_Targeting", "NT", "vehicle", "DMSO", "Unperturbed"],
)
def test_usual_controls_are_recognised_and_reported(label, caplog):
    with caplog.at_level(logging.INFO, logger="scvi_perturb"):
        made = harmonize(screen(perturbation=[label, "A", f"A+{label}"]))
    assert made.obs["perturbation"].tolist() == ["control", "A", "A"]
    assert (f"taken for 'control': ['{label}']" in caplog.text) == (label != "control")


def test_given_controls_are_the_only_ones(caplog):
    adata = screen(perturbation=["DMSO", "PBS", "wt", 0])
    assert harmonize(adata, control="wt").obs["perturbation"].tolist() == [
        "DMSO",
        "PBS",
        "control",
        "0",
    ]
    assert harmonize(adata, control=["DMSO", "PBS"]).obs["perturbation"].tolist() == [
        "control",
        "control",
        "wt",
        "0",
    ]
    with caplog.at_level(logging.WARNING, logger="scvi_perturb"):
        harmonize(adata, control="none of these")
    assert "No control cell" in caplog.text


def test_missing_labels_may_be_named_as_controls():
    made = harmonize(screen(perturbation=["None", "A", "B+None"]), control="None")
    assert made.obs["perturbation"].tolist() == ["control", "A", "B"]


def test_the_plus_of_a_chemical_name_is_not_a_separator():
    made = harmonize(screen(perturbation=["control", "(+)-JQ1", "A+(+/-)-JQ1"]))
    assert made.obs["perturbation"].tolist() == ["control", "(plus)-JQ1", "(plus/-)-JQ1+A"]


def test_copy_leaves_the_source_alone(scperturb):
    before = scperturb.obs.copy()
    made = harmonize(scperturb)
    pd.testing.assert_frame_equal(scperturb.obs, before)
    assert "scvi_perturb" not in scperturb.uns
    assert made is not scperturb
    assert harmonize(scperturb, copy=False) is scperturb
    pd.testing.assert_frame_equal(scperturb.obs, made.obs)


def test_a_view_is_copied(scperturb):
    made = harmonize(scperturb[:3], copy=False)
    assert not made.is_view
    assert scperturb.n_obs == 6


@pytest.mark.parametrize("schema", ["auto", "canonical"])
def test_twice_is_as_once(schema):
    once = harmonize(
        screen(
            perturbation=["control", "a", "b", "control"],
            perturbation_2=["c", "c", None, None],
            dose_value=["10", "10", "20", "0"],
            dose_value_2=["1", "1", "0", "0"],
            dose_unit=["nM"] * 4,
            dose_unit_2=["uM"] * 4,
            time=["24h"] * 4,
        )
    )
    twice = harmonize(once, schema)
    pd.testing.assert_frame_equal(once.obs, twice.obs)
    assert twice.uns["scvi_perturb"]["units"] == {"dose": "uM", "time": "h"}


def test_written_and_read(scperturb, tmp_path):
    made = harmonize(scperturb)
    made.write_h5ad(tmp_path / "screen.h5ad")
    read = ad.read_h5ad(tmp_path / "screen.h5ad")
    assert default_keys(read) == default_keys(made)
    backed = ad.read_h5ad(tmp_path / "screen.h5ad", backed="r")
    again = harmonize(backed)
    assert not again.isbacked
    assert again.obs["perturbation"].tolist() == made.obs["perturbation"].tolist()
    backed.file.close()


def test_missing_context_labels_stay_missing():
    made = harmonize(screen(perturbation=["control", "A"], celltype=["T", None], nperts=[0, 1]))
    assert made.obs["cell_type"].isna().tolist() == [False, True]


def test_a_wrong_library_size_is_left_out(caplog):
    made = harmonize(screen(perturbation=["control", "A"], total_counts=[0.0, 5.0]))
    assert "library_size" not in made.obs
    assert "not a library size" in caplog.text


@pytest.mark.parametrize(
    ("columns", "schema", "error", "message"),
    [
        ({"gene": ["A"]}, "auto", SchemaError, r"not recognised; it has \['gene'\]"),
        ({"gene": ["A"]}, "gears", SchemaError, r"one of \['condition'\]"),
        ({"gene": ["A"]}, "anndata", ValueError, "'auto', 'canonical'"),
        ({"gene": ["A"]}, {"gene": "gene"}, ValueError, "schema field='gene'"),
        ({"gene": ["A"]}, {"perturbation": "g"}, SchemaError, "no column 'g'"),
        ({"gene": ["A"]}, {"batch": "gene"}, SchemaError, "'perturbation' is not mapped"),
        ({"perturbation": ["A", None, "nan"]}, "auto", SchemaError, "missing for 2 of 3"),
        ({"perturbation": ["A", "B"], "dose": [1.0, None]}, "auto", SchemaError, "dose of 'B'"),
        ({"perturbation": ["A"], "dose": ["1+2"]}, "auto", SchemaError, "2 parts for the 1"),
        ({"perturbation": ["A"], "dose": ["low"]}, "auto", SchemaError, "not a quantity"),
    ],
)
def test_messages(columns, schema, error, message):
    with pytest.raises(error, match=message):
        harmonize(screen(**columns), schema)


@pytest.mark.parametrize(
    ("name", "n_conditions"),
    [
        ("kang2018_pbmc_ifnb_merged_counts.h5ad", 1),
        ("norman2019_subset_k562_crispra.h5ad", 33),
        ("papalexi2021_thp1_eccite_303genes.h5ad", 25),
    ],
)
def test_real_screens_are_ready_after_harmonize(data_dir, name, n_conditions):
    if not (data_dir / name).exists():
        pytest.skip(f"{name} is not among the real screens")
    adata = ad.read_h5ad(data_dir / name)
    made = harmonize(adata)
    assert (made.obs["perturbation"] == "control").sum() == (
        adata.obs["perturbation"] == "control"
    ).sum()
    report = validate(made, min_cells=9)
    assert report.ok, str(report)
    assert report.raw_counts
    assert report.n_conditions == n_conditions
    _, table = encode_obs(made.obs, default_keys(made), require_control=True)
    assert len(table) == n_conditions + 1
    split(made, "cells").check(made)
