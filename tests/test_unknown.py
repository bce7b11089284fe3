"""What an unknown perturbation is told."""

from __future__ import annotations

import pytest

from scvi_perturb._core import UnknownPerturbationError

KNOWN = ["ATF2", "BRD4", "CAV1", "IFNGR1", "IFNGR2", "KLF1", "TP53", "drug a", "IFN-beta"]


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("ifngr1", "IFNGR1"),
        ("Ifngr-2", "IFNGR2"),
        ("KLF2", "KLF1"),
        ("Drug_A", "drug a"),
        ("ifnbeta", "IFN-beta"),
        ("klf1 (CRISPRi)", "KLF1"),
        ("tp53 (dose 5), time 6", "TP53"),
    ],
)
def test_names_that_are_spelt_alike_come_first(name, nearest):
    error = UnknownPerturbationError(name, KNOWN)
    assert error.nearest[0] == nearest
    assert f"Nearest known names: {nearest}" in str(error)
    assert not {"ATF2", "BRD4", "CAV1"} & {*error.nearest}


def test_names_that_are_not_alike_are_not_offered():
    error = UnknownPerturbationError("vorinostat", KNOWN)
    assert error.nearest == []
    assert "not spelt like any of the 9 known names." in str(error)
    assert "which are A, B" in str(UnknownPerturbationError("zzz", ["B", "A"]))
    assert "known name" not in str(UnknownPerturbationError("zzz")).split("Ask")[0]


@pytest.mark.parametrize("mark", [";", ",", "|", "_", "/", "&", " ", "-", " + "])
def test_a_combination_is_told_how_it_is_written(mark):
    assert "write 'KLF1+TP53'" in str(UnknownPerturbationError(f"klf1{mark}TP53", KNOWN))
    if mark != ";":
        told = str(UnknownPerturbationError(f"KLF1{mark}TP53", KNOWN, separator=";"))
        assert "write 'KLF1;TP53'" in told


@pytest.mark.parametrize("name", ["ctrl", "NT", "non-targeting", "DMSO"])
def test_a_control_is_told_its_label(name):
    assert "Controls are written 'control' here" in str(UnknownPerturbationError(name, KNOWN))
    assert "written 'wt' here" in str(UnknownPerturbationError(name, KNOWN, control="wt"))


def test_controls_in_a_combination_are_left_out():
    assert "write 'KLF1'" in str(UnknownPerturbationError("KLF1_ctrl", KNOWN))
