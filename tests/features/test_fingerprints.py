"""Which parts molecules have, of several kinds."""

from __future__ import annotations

import sys
from typing import get_args

import numpy as np
import pytest

from scvi_perturb._core import SchemaError
from scvi_perturb.features import (
    PerturbationFeatures,
    molecular_fingerprints,
)
from scvi_perturb.features.molecules import FingerprintKind

KINDS = get_args(FingerprintKind)
SMILES = {"ethanol": "CCO", "ether": "COC", "benzene": "c1ccccc1", "phenol": "Oc1ccccc1"}
NEEDED = "molecules need RDKit, which the extra 'chem' installs"


@pytest.fixture
def rdkit():
    return pytest.importorskip("rdkit", reason=NEEDED)


def number_of_parts(smiles, kind):
    """Return how many parts there are, of how many sorts."""
    row = molecular_fingerprints({"it": smiles}, kind, counts=True).loc["it"]
    return int(row.sum()), int((row > 0).sum())


@pytest.mark.usefixtures("rdkit")
def test_parts_that_can_be_counted_by_hand():
    # n-butane: 6 pairs of its 4 atoms; CH3-CH2 and CH3..CH2 twice each, CH3...CH3, CH2-CH2 once
    assert number_of_parts("CCCC", "atom_pairs") == (6, 4)
    # one row of four atoms in it, none in propane; in benzene six alike
    assert number_of_parts("CCCC", "torsions") == (1, 1)
    assert number_of_parts("CCC", "torsions") == (0, 0)
    assert number_of_parts("c1ccccc1", "torsions") == (6, 1)
    # chains of one, two and three bonds: 3, 2 and 1, each of which sets two bits
    assert number_of_parts("CCCC", "paths") == (12, 6)


@pytest.mark.usefixtures("rdkit")
def test_feature_morgan_tells_atoms_apart_by_role_alone():
    halogens = {"chlorine": "Clc1ccccc1", "bromine": "Brc1ccccc1"}
    plain, roles = (molecular_fingerprints(halogens, k) for k in ("morgan", "feature_morgan"))
    assert not plain.loc["chlorine"].equals(plain.loc["bromine"].rename("chlorine"))
    np.testing.assert_array_equal(roles.loc["chlorine"], roles.loc["bromine"])


@pytest.mark.usefixtures("rdkit")
def test_maccs_keys_are_where_their_numbers_say():
    table = molecular_fingerprints(SMILES, "maccs")
    assert list(table.columns[[0, -1]]) == ["maccs_1", "maccs_166"]
    oxygen, ring, aromatic = table["maccs_164"], table["maccs_165"], table["maccs_162"]
    assert oxygen.tolist() == [1, 1, 0, 1]
    assert ring.tolist() == aromatic.tolist() == [0, 0, 1, 1]


@pytest.mark.usefixtures("rdkit")
@pytest.mark.parametrize("kind", KINDS)
def test_counts_are_of_the_bits_that_are_set(kind):
    bits = molecular_fingerprints(SMILES, kind)
    assert list(bits.index) == list(SMILES)
    assert bits.columns[-1].startswith(f"{kind}_")
    assert set(np.unique(bits)) == {0, 1}
    if kind == "maccs":
        assert bits.shape == (4, 166)
        return
    assert bits.shape == (4, 2048)
    counts = molecular_fingerprints(SMILES, kind, counts=True)
    assert counts.to_numpy().max() > 1
    short = molecular_fingerprints(SMILES, kind, counts=True, n_bits=64)
    np.testing.assert_array_equal(short.sum(axis=1), counts.sum(axis=1))
    np.testing.assert_array_equal(bits > 0, counts > 0)


@pytest.mark.usefixtures("rdkit")
@pytest.mark.parametrize("kind", KINDS)
def test_a_molecule_is_the_same_however_it_is_written(kind):
    smiles = {"a": "C[C@H](N)C(=O)O", "b": " OC(=O)[C@@H](C)N ", "c": "CC(N)C(O)=O"}
    table = molecular_fingerprints(smiles, kind)
    assert (table.loc["a"] == table.loc["b"]).all()
    assert (table.loc["a"] == table.loc["c"]).all()


@pytest.mark.usefixtures("rdkit")
def test_the_radius_is_that_of_the_circular_kinds():
    first = molecular_fingerprints(SMILES, radius=1, n_bits=512, counts=True)
    assert first.shape == (len(SMILES), 512)
    assert first.to_numpy().sum() < molecular_fingerprints(SMILES, counts=True).to_numpy().sum()


@pytest.mark.usefixtures("rdkit")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "ecfp"}, "'atom_pairs', 'feature_morgan', 'maccs'"),
        ({"kind": "paths", "radius": 2}, "radius=2 is for morgan and feature_morgan"),
        ({"kind": "maccs", "counts": True}, "166 keys"),
        ({"kind": "maccs", "n_bits": 166}, "166 keys"),
        ({"kind": "torsions", "n_bits": 0}, "n_bits=0"),
        ({"radius": -1}, "radius=-1"),
        ({"invalid": "zero"}, "'raise', 'skip'"),
    ],
)
def test_messages(arguments, message):
    with pytest.raises(ValueError, match=message):
        molecular_fingerprints(SMILES, **arguments)


@pytest.mark.usefixtures("rdkit")
@pytest.mark.parametrize("kind", KINDS)
def test_bad_molecules_are_named(kind):
    smiles = {"good": "CCO", "ring": "c1cc", "none": None}
    with pytest.raises(SchemaError, match=r"2 of 3 .* 'ring', 'none'\. Mend"):
        molecular_fingerprints(smiles, kind)
    with pytest.warns(UserWarning, match=r"Left out 2 of 3.*'ring', 'none'"):
        kept = molecular_fingerprints(smiles, kind, invalid="skip")
    assert list(kept.index) == ["good"]


@pytest.mark.usefixtures("rdkit")
def test_several_kinds_are_several_modalities():
    tables = {kind: molecular_fingerprints(SMILES, kind) for kind in KINDS}
    store = PerturbationFeatures(tables)
    assert store.modalities == KINDS
    assert store.dims == dict.fromkeys(KINDS, 2048) | {"maccs": 166}


def test_without_rdkit_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "rdkit", None)
    with pytest.raises(ImportError, match=r"scvi-perturb\[chem\]"):
        molecular_fingerprints(SMILES, "maccs")
