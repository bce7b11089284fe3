"""Fingerprints and scaffolds of molecules that are known."""

from __future__ import annotations

import sys
import warnings

import numpy as np
import pandas as pd
import pytest

from scvi_perturb._core import SchemaError
from scvi_perturb.features import PerturbationFeatures, molecular_fingerprints, murcko_scaffolds

NEEDED = "molecules need RDKit, which the extra 'chem' installs"
ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"
IMATINIB = "Cc1ccc(NC(=O)c2ccc(CN3CCN(C)CC3)cc2)cc1Nc1nccc(-c2cccnc2)n1"
SMILES = {"benzene": "c1ccccc1", "toluene": "Cc1ccccc1", "ethanol": "CCO", "aspirin": ASPIRIN}


@pytest.fixture
def rdkit():
    return pytest.importorskip("rdkit", reason=NEEDED)


def tanimoto(table, first, second):
    a, b = table.loc[first].to_numpy(float), table.loc[second].to_numpy(float)
    return np.minimum(a, b).sum() / np.maximum(a, b).sum()


@pytest.mark.usefixtures("rdkit")
def test_the_neighbourhoods_of_benzene_and_toluene():
    bits = molecular_fingerprints(SMILES)
    assert bits.shape == (4, 2048)
    assert list(bits.index) == list(SMILES)
    assert set(np.unique(bits)) == {0, 1}
    # Benzene: an aromatic carbon, with its neighbours, with theirs. Toluene has these three too;
    # its own: the methyl (1), the carbon it sits on (1), and rings around both (6).
    assert bits.loc["benzene"].sum() == 3
    assert bits.loc["toluene"].sum() == 11
    assert tanimoto(bits, "benzene", "toluene") == pytest.approx(3 / 11)
    assert tanimoto(bits, "benzene", "ethanol") == 0
    assert tanimoto(bits, "benzene", "aspirin") < tanimoto(bits, "benzene", "toluene")


@pytest.mark.usefixtures("rdkit")
def test_counts_say_how_often():
    counts = molecular_fingerprints({"benzene": "c1ccccc1"}, counts=True).loc["benzene"]
    assert sorted(counts[counts > 0]) == [6, 6, 6]
    alone = molecular_fingerprints({"benzene": "c1ccccc1"}, counts=True, radius=0).loc["benzene"]
    assert sorted(alone[alone > 0]) == [6]


@pytest.mark.usefixtures("rdkit")
def test_similarities_are_those_of_rdkit():
    from rdkit import DataStructs
    from rdkit.Chem import MolFromSmiles
    from rdkit.Chem.rdFingerprintGenerator import GetMorganGenerator

    generator = GetMorganGenerator(radius=3, fpSize=512)
    first, second = (
        generator.GetFingerprint(MolFromSmiles(SMILES[n])) for n in ("toluene", "aspirin")
    )
    table = molecular_fingerprints(SMILES, radius=3, n_bits=512)
    expected = DataStructs.TanimotoSimilarity(first, second)
    assert tanimoto(table, "toluene", "aspirin") == pytest.approx(expected)


@pytest.mark.usefixtures("rdkit")
def test_a_molecule_is_the_same_however_it_is_written():
    smiles = pd.Series(
        {"a": "OCC", "b": " C(C)O ", "c": "CCO.Cl", "d": "C[C@H](N)F", "e": "CC(N)F"}
    )
    table = molecular_fingerprints(smiles)
    assert table.loc["a"].equals(table.loc["b"].rename("a"))
    assert (table.loc["c"] >= table.loc["a"]).all()  # a salt keeps its parts
    assert table.loc["c"].sum() > table.loc["a"].sum()
    np.testing.assert_array_equal(table.loc["d"], table.loc["e"])


@pytest.mark.usefixtures("rdkit")
@pytest.mark.parametrize("make", [molecular_fingerprints, murcko_scaffolds])
def test_bad_molecules_are_named_in_one_error(make, capfd):
    smiles = {"good": "CCO", "ring": "c1cc", "empty": "", "none": None, "nan": float("nan")}
    with pytest.raises(SchemaError, match=r"4 of 5 .* 'ring', 'empty', 'none', 'nan'\. Mend"):
        make(smiles)
    with pytest.warns(UserWarning, match=r"Left out 4 of 5.*'ring', 'empty', 'none', 'nan'"):
        kept = make(smiles, invalid="skip")
    assert list(kept.index) == ["good"]
    assert capfd.readouterr().err == ""  # RDKit's own log
    many = {f"bad{i:02d}": "?" for i in range(13)}
    with pytest.raises(SchemaError, match=r"13 of 13.*'bad09' and 3 others"):
        make(many, invalid="skip")


@pytest.mark.usefixtures("rdkit")
def test_rdkit_logs_again_after_the_call(capfd):
    from rdkit.Chem import MolFromSmiles

    with pytest.raises(SchemaError):
        molecular_fingerprints({"bad": "c1cc"})
    assert MolFromSmiles("c1cc") is None
    assert "SMILES Parse Error" in capfd.readouterr().err


@pytest.mark.usefixtures("rdkit")
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"smiles": {}}, SchemaError, "No molecules"),
        ({"smiles": pd.Series(["C", "CC"], index=["a", "a"])}, SchemaError, "come twice: 'a'"),
        ({"smiles": SMILES, "radius": -1}, ValueError, "radius=-1"),
        ({"smiles": SMILES, "n_bits": 0}, ValueError, "n_bits=0"),
        ({"smiles": SMILES, "invalid": "zero"}, ValueError, "'raise', 'skip'"),
    ],
)
def test_messages(arguments, error, message):
    with pytest.raises(error, match=message):
        molecular_fingerprints(**arguments)


@pytest.mark.usefixtures("rdkit")
def test_scaffolds():
    made = murcko_scaffolds({"imatinib": IMATINIB, **SMILES, "methanol": "CO", "also": "OCC"})
    from rdkit.Chem import CanonSmiles

    rings = "c1ccc(NC(=O)c2ccc(CN3CCNCC3)cc2)cc1Nc1nccc(-c2cccnc2)n1"
    assert made["imatinib"] == CanonSmiles(rings)
    assert made["benzene"] == made["toluene"] == made["aspirin"] == "c1ccccc1"
    assert made["ethanol"] == made["also"] == "acyclic:CCO"
    assert made["methanol"] == "acyclic:CO"


@pytest.mark.usefixtures("rdkit")
def test_generic_scaffolds_are_shapes():
    smiles = {
        "pyridine": "c1ccncc1",
        "cyclohexanone": "O=C1CCCCC1",
        "left": "C[C@H]1CCCCO1",
        "salt": "c1ccccc1.Cl",
        "phosphorane": "C1CCP2(C1)(CCC2)c1ccccc1",
    }
    plain, generic = murcko_scaffolds(smiles), murcko_scaffolds(smiles, generic=True)
    assert plain[["pyridine", "cyclohexanone", "left"]].tolist() == [
        "c1ccncc1",
        "O=C1CCCCC1",
        "C1CCOCC1",
    ]
    assert set(generic.drop("phosphorane")) == {"C1CCCCC1"}
    assert generic["phosphorane"] == plain["phosphorane"]


@pytest.mark.usefixtures("rdkit")
def test_fingerprints_are_a_modality():
    features = PerturbationFeatures({"fingerprint": molecular_fingerprints(SMILES, n_bits=64)})
    assert features.dims == {"fingerprint": 64}
    assert not features.has("unknown")
    assert features.nearest("benzene", SMILES)[0][0] == "toluene"


@pytest.mark.parametrize("make", [molecular_fingerprints, murcko_scaffolds])
def test_without_rdkit_the_extra_is_named(make, monkeypatch):
    monkeypatch.setitem(sys.modules, "rdkit", None)
    with pytest.raises(ImportError, match=r"scvi-perturb\[chem\]"):
        make(SMILES)


@pytest.mark.usefixtures("rdkit")
def test_real_drugs(data_dir):
    path = data_dir / "features" / "sciplex3_drugs_smiles_targets.csv"
    if not path.exists():
        pytest.skip(f"{path.name} is not among the real data")
    smiles = pd.read_csv(path).set_index("name")["SMILES"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = molecular_fingerprints(smiles, counts=True)
        scaffolds = murcko_scaffolds(smiles)
    assert table.shape == (188, 2048)
    assert (table.to_numpy().sum(axis=1) > 0).all()
    assert 100 < scaffolds.nunique() < 188
