"""Labels of perturbations against what the rest of the file says."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st

from scvi_perturb._core import SchemaError, looks_like_control
from scvi_perturb.data.condition import default_keys
from scvi_perturb.pp import harmonize, validate


def screen(**columns):
    n = len(next(iter(columns.values())))
    obs = pd.DataFrame({name: pd.Series(list(v), dtype=object) for name, v in columns.items()})
    obs.index = [f"c{i}" for i in range(n)]
    counts = np.random.default_rng(0).poisson(2, (n, 5)) + 1
    return AnnData(counts.astype(np.float32), obs=obs)


def read(*labels, control=None, separator=None, **columns):
    made = harmonize(
        screen(perturbation=labels, **columns), "scperturb", control=control, separator=separator
    )
    return made.obs["perturbation"].tolist()


def problems(*labels, min_cells=1, **columns):
    made = harmonize(screen(perturbation=labels, **columns), "scperturb")
    return " ".join(validate(made, min_cells=min_cells).problems)


@pytest.mark.parametrize("control", [0, 1])
def test_the_number_of_perturbations_counts_all_columns(control):
    found = read(
        *("ZAP70_1", "ZAP70_2", "LAT_1", "control"),
        perturbation_2=["stimulated"] * 4,
        nperts=[2, 2, 2, 1 + control],
    )
    assert found == ["ZAP70_1+stimulated", "ZAP70_2+stimulated", "LAT_1+stimulated", "stimulated"]


def test_names_of_controls_count_or_not():
    labels = ("A", "NegCtrl0_KLF1", "KLF1_NegCtrl0", "NegCtrl0_NegCtrl0", "KLF1_A")
    expected = ["A", "KLF1", "KLF1", "control", "A+KLF1"]
    assert read(*labels, nperts=[1, 1, 1, 0, 2]) == expected
    assert read(*labels, nperts=[1, 2, 2, 2, 2]) == expected


def test_a_name_that_stands_alone_is_one_name():
    labels = ("HLA_A", "KLF1", "HLA_A_KLF1", "KLF1_HLA_A", "control")
    expected = ["HLA_A", "KLF1", "HLA_A+KLF1", "HLA_A+KLF1", "control"]
    assert read(*labels, nperts=[1, 1, 2, 2, 0]) == expected


def test_numbers_of_guides_belong_to_the_name_before():
    assert read("ZAP70_1_LAT_2", "ZAP70_1", nperts=[2, 1]) == ["LAT_2+ZAP70_1", "ZAP70_1"]
    assert read("A_1", "A_1_B_2", "A_B", separator="_") == ["A_1", "A_1+B_2", "A+B"]


@pytest.mark.parametrize("mark", [";", ",", "|", "_", " ; "])
def test_the_number_of_perturbations_tells_the_separator(mark):
    assert read("A", "B", f"A{mark}B", nperts=[1, 1, 2]) == ["A", "B", "A+B"]


def test_a_number_that_fits_no_reading_is_a_problem():
    assert "disagree with the rest of the file, such as 'A_1'" in problems(
        "control", "A_1", nperts=[0, 3]
    )
    assert "says 1, and 2 are read" in problems("control", "A+B", nperts=[0, 1])
    assert problems("control", "A", "B", "A_B", nperts=[0, 1, 1, 2]) == ""
    with pytest.raises(SchemaError, match="number of perturbations"):
        read("A", nperts=["two"])


def test_what_disagrees_survives_a_file_and_goes_with_the_cells(tmp_path):
    adata = screen(perturbation=["control", "A_1", "B"], nperts=[0, 3, 1])
    adata.obs["nperts"] = adata.obs["nperts"].astype(int)
    made = harmonize(adata)
    made.write_h5ad(tmp_path / "a.h5ad")
    again = harmonize(ad.read_h5ad(tmp_path / "a.h5ad"))
    assert "'A_1'" in " ".join(validate(again, min_cells=1).problems)
    assert validate(again[again.obs["perturbation"] != "A_1"].copy(), min_cells=1).ok


def test_the_strand_of_a_guide_is_no_separator():
    guides = ("FAM83A_+_124194986.23-P1P2", "FAM83A_-_124194996.23-P1P2", "chr1:5-9:+", "G(+)")
    assert read(*guides) == [
        *("FAM83A_plus_124194986.23-P1P2", "FAM83A_-_124194996.23-P1P2", "chr1:5-9:plus"),
        "G(plus)",
    ]
    assert read("A", "B", "A_+_B", "A + B") == ["A", "B", "A+B", "A+B"]
    assert read("NAD+", "Ca2+ + B") == ["NADplus", "B+Ca2plus"]


def test_halves_of_a_guide_are_a_problem():
    adata = screen(perturbation=["control", "FAM83A_+_124.23-P1P2"])
    assert "strand of a guide" in " ".join(validate(adata, min_cells=1).problems)


CONTROLS = [
    *("non-targeting_00012", "NTg1", "NegCtrl0", "safe-targeting_7", "NEG1_NEG2", "scramble_3"),
    *("NonTargetingControlGuideForHuman_0012", "sgNTC-2", "lacZ", "luciferase", "Non Targeting"),
    *("NT_1", "sgLacZ_4", "CTRL-2", "negative control", "siControl", "neg_ctrl_12", "DMSO_TF"),
    *("Non-Targeting Human 0003", "mock_1", "NO-TARGET", "non targeting control 5", "Vehicle 2"),
    *("DMSO 0.1%", "sg-NT", "Scrambled_sgRNA1", "NTC1|NTC2", "control (DMSO)", "NT_3"),
    *("non-targeting_+_123", "mock-infected", "cutting control 2"),
]
PERTURBATIONS = [
    *("NT5E", "NTN1", "NTS", "LUC7L", "SAFB", "CTLA4", "KLF1", "MOCOS", "NEGR1", "SI", "HSPA5"),
    *("positive control", "NTRK1", "IFN-beta", "CD4", "PBS2P", "stim", "GFPT1", "SCRIB", "GUCY2C"),
]
PERHAPS = ["AAVS1_1", "GFP", "sgROSA26-2", "WT", "ONE_INTERGENIC_SITE_123", "NT-3", "NT4", "Empty"]


def test_controls_named_by_guide_are_controls():
    assert {label for label in CONTROLS if not looks_like_control(label)} == set()
    assert {label for label in PERTURBATIONS if looks_like_control(label, perhaps=True)} == set()
    assert {label for label in PERHAPS if looks_like_control(label)} == set()
    assert set(read(*CONTROLS)) == {"control"}


@pytest.mark.parametrize("label", PERHAPS)
def test_what_may_be_a_control_is_a_problem_that_names_it(label):
    found = problems("control", label, "KLF1")
    assert f"may be controls: ['{label}']" in found
    assert "control=[" in found
    assert read("ctrl", label, control=[label, "ctrl"]) == ["control", "control"]


def test_controls_left_out_of_those_named_are_a_problem(caplog):
    made = harmonize(screen(perturbation=["NTC", "NTC-2", "A"]), control=["NTC", "scramble"])
    assert "look like controls: ['NTC-2']" in " ".join(validate(made, min_cells=1).problems)
    assert "No cell has the label of controls 'scramble'" in caplog.text


@given(st.text(max_size=300))
def test_any_text_is_a_control_or_not(label):
    assert looks_like_control(label) in (True, False)


def test_long_names_do_not_take_long():
    assert not looks_like_control("nt" + "sg1" * 60 + "x")
    assert not looks_like_control("sg" * 90 + "x")


@pytest.mark.parametrize("mark", [";", ",", "|", "_"])
def test_the_separator_is_offered_where_labels_fall_apart(mark):
    labels = ("control", "KLF1", "TP53", f"KLF1{mark}TP53")
    found = problems(*labels)
    assert f"'KLF1{mark}TP53'" in found
    assert f"separator={mark!r}" in found
    assert read(*labels, separator=mark) == ["control", "KLF1", "TP53", "KLF1+TP53"]


def test_combinations_without_singles_are_offered_too():
    assert "separator=';'" in problems("control", "A;B", "B;C", "A;C")
    assert "separator='_'" in problems("control", "KLF1_NegCtrl0", "TP53")


@pytest.mark.parametrize(
    "labels", [("HLA_A", "HLA_B"), ("A_1", "A_2", "B_1"), ("1,2-diol", "2-diol"), ("A_1", "A")]
)
def test_other_marks_in_names_are_no_problem(labels):
    assert problems("control", *labels) == ""


@pytest.mark.parametrize("separator", ["", 5, "1"])
def test_a_separator_must_be_one(separator):
    with pytest.raises((TypeError, ValueError), match="separator="):
        read("A", separator=separator)


def test_doses_go_with_the_separator():
    made = harmonize(
        screen(perturbation=["control", "B;A", "A"], dose=["0", "5 nM;1 uM", "2 uM"]),
        {"perturbation": "perturbation", "dose": "dose"},
        separator=";",
    )
    assert made.obs["perturbation"].tolist() == ["control", "A+B", "A"]
    assert made.obs["dose"].tolist() == ["0", "1+0.005", "2"]


def test_labels_of_bytes():
    assert read(b"A", np.bytes_("control"), "b'B+A'") == ["A", "control", "A+B"]
    with pytest.raises(SchemaError, match="UTF-8"):
        read(b"\xff")


@pytest.mark.parametrize("as_text", [True, False])
def test_tuples_with_dose_and_unit(as_text):
    labels = [
        [("8-Hydroxyquinoline", 0.5, "uM")],
        [("DMSO_TF", 0.0, "uM")],
        [("B", 5, "nM"), ("A (+)", 1.0, "uM")],
        ("C", 2, "uM"),
        ("A (+)", "B"),
    ]
    labels = list(map(str, labels)) if as_text else labels
    made = harmonize(screen(drug=labels[:4]), {"perturbation": "drug"})
    assert made.obs["perturbation"].tolist() == [
        *("8-Hydroxyquinoline", "control", "A (plus)+B", "C"),
    ]
    assert made.obs["dose"].tolist() == ["0.5", "0", "1+0.005", "2"]
    assert made.uns["scvi_perturb"]["units"] == {"dose": "uM"}
    assert read(*labels[4:]) == ["A (plus)+B"]


def test_the_dose_in_a_label_is_compared_with_the_column():
    columns = {"drug": ["[('A', 0.5, 'uM')]", "[('A', 1, 'uM')]", "control"]}
    schema = {"perturbation": "drug", "dose": "dose", "dose_unit": "unit"}
    same = screen(**columns, dose=[500, 1000, 0], unit=["nM"] * 3)
    assert harmonize(same, schema).obs["dose"].tolist() == ["0.5", "1", "0"]
    assert validate(harmonize(same, schema), min_cells=1).ok
    other = harmonize(screen(**columns, dose=[500, 7, 0], unit=["nM"] * 3), schema)
    assert "dose in the label is not that" in " ".join(validate(other, min_cells=1).problems)


@pytest.mark.parametrize("label", [[1, 2], [], [("A", "x", "uM", 3)], [["A", ["B"]]], {"A": 1}])
def test_other_objects_are_refused_or_text(label):
    adata = screen(perturbation=["control", "A"])
    adata.obs["perturbation"] = pd.Series(["control", label], index=adata.obs_names, dtype=object)
    if isinstance(label, dict):
        assert harmonize(adata).obs["perturbation"].tolist() == ["control", "{'A': 1}"]
        return
    with pytest.raises(SchemaError, match="is not understood"):
        harmonize(adata)


@pytest.mark.parametrize("mark", ["+", ";", "_"])
@given(data=st.data())
def test_combinations_are_read_as_they_were_made(mark, data):
    names = st.sampled_from(["KLF1", "TP53", "IL-2", "drug a", "x9"])
    made = data.draw(st.lists(st.lists(names, min_size=1, max_size=3, unique=True), min_size=1))
    found = read(*(mark.join(one) for one in made), nperts=list(map(len, made)))
    assert found == ["+".join(sorted(one)) for one in made]


def test_real_labels(data_dir):
    """Every real screen: what is read is what stands there, and nothing is in doubt."""
    for path in sorted(data_dir.glob("*.h5ad")):
        adata = ad.read_h5ad(path)
        if "perturbation" not in adata.obs:
            continue
        made = harmonize(adata)
        keys = default_keys(made)
        labels = {keys.parse(perturbation=x).names for x in made.obs["perturbation"].unique()}
        before = {*adata.obs["perturbation"].astype(str)}
        assert len(labels) == len(before), path.name
        found = [text for text in validate(made, min_cells=1).problems if "raw counts" not in text]
        assert not [p for p in found if "disagree" in p or "fall apart" in p], path.name
