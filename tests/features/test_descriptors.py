"""Physico-chemical descriptors: values in their units, and ranks."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from scvi_perturb._core import SchemaError
from scvi_perturb.features import PerturbationFeatures, molecular_descriptors
from scvi_perturb.similarity.kernels import ModalityKernel

SMILES = {"ethanol": "CCO", "methane": "C", "phenol": "Oc1ccccc1", "glycol": "OCCO"}
NEEDED = "molecules need RDKit, which the extra 'chem' installs"


@pytest.fixture
def rdkit():
    return pytest.importorskip("rdkit", reason=NEEDED)


@pytest.mark.usefixtures("rdkit")
def test_values_are_in_their_units():
    table = molecular_descriptors(SMILES, ranks=False)
    assert table["MolWt"].to_numpy() == pytest.approx([46.07, 16.04, 94.11, 62.07], abs=0.01)
    assert table["TPSA"].to_numpy() == pytest.approx([20.23, 0, 20.23, 40.46])
    assert table["NumHDonors"].tolist() == [1, 0, 1, 2]
    assert table["RingCount"].tolist() == [0, 0, 1, 0]


@pytest.mark.usefixtures("rdkit")
def test_ranks_are_shares_of_molecules_that_have_less():
    values, ranks = (molecular_descriptors(SMILES, ranks=r) for r in (False, True))
    assert list(ranks.index) == list(SMILES)
    assert list(ranks.columns) == list(values.columns)
    assert ranks["MolWt"].tolist() == [0.25, 0, 0.75, 0.5]
    assert ranks["NumHDonors"].tolist() == [0.25, 0, 0.25, 0.75]
    assert ranks["RingCount"].tolist() == [0, 0, 0.75, 0]
    some = values.notna().all()
    less = [(values.loc[:, some] < values.loc[name, some]).mean() for name in values.index]
    np.testing.assert_allclose(ranks.loc[:, some], less)


@pytest.mark.usefixtures("rdkit")
def test_what_cannot_be_computed_is_a_gap_or_the_lowest_rank():
    metal = SMILES | {"zinc": "[Zn+2]"}
    values, ranks = (molecular_descriptors(metal, ranks=r) for r in (False, True))
    gaps = values.isna()
    assert gaps.loc["zinc"].any()
    assert (ranks.to_numpy()[gaps] == 0).all()
    with pytest.raises(SchemaError, match="partly missing"):
        PerturbationFeatures({"chemistry": values})
    assert PerturbationFeatures({"chemistry": ranks}).has("zinc")


@pytest.mark.usefixtures("rdkit")
def test_ranks_are_compared_by_what_both_have():
    ranks = molecular_descriptors(SMILES)
    assert ranks.to_numpy().min() == 0
    assert ranks.to_numpy().max() < 1
    values = ranks.to_numpy(np.float32)
    alike = ModalityKernel.learn(values, values)(values, values)
    assert alike[0].argsort()[::-1].tolist() == [0, 3, 2, 1]  # ethanol: glycol is nearest


@pytest.mark.usefixtures("rdkit")
def test_bad_molecules_are_named(capfd):
    smiles = {"good": "CCO", "ring": "c1cc", "none": None}
    with pytest.raises(SchemaError, match=r"2 of 3 .* 'ring', 'none'\. Mend"):
        molecular_descriptors(smiles)
    with pytest.warns(UserWarning, match=r"Left out 2 of 3.*'ring', 'none'"):
        kept = molecular_descriptors(smiles, invalid="skip")
    assert list(kept.index) == ["good"]
    assert capfd.readouterr().err == ""  # RDKit's own log
    with pytest.raises(ValueError, match="'raise', 'skip'"):
        molecular_descriptors(SMILES, invalid="zero")


def test_without_rdkit_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "rdkit", None)
    with pytest.raises(ImportError, match=r"scvi-perturb\[chem\]"):
        molecular_descriptors(SMILES)
