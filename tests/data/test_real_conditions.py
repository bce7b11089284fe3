"""Conditions and splits of real screens."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

from scvi_perturb._core import SchemaError
from scvi_perturb.data.condition import ScreenKeys
from scvi_perturb.data.condition_table import encode_obs
from scvi_perturb.data.split.kinds import SplitOptions, split


def read(data_dir, name):
    path = data_dir / name
    if not path.exists():
        pytest.skip(f"{name} is not among the real screens")
    return ad.read_h5ad(path)


@pytest.fixture(scope="module")
def norman(data_dir):
    return read(data_dir, "norman2019_subset_k562_crispra.h5ad")


@pytest.fixture(scope="module")
def kang(data_dir):
    return read(data_dir, "kang2018_pbmc_ifnb_merged_counts.h5ad")


@pytest.fixture(scope="module")
def papalexi(data_dir):
    return read(data_dir, "papalexi2021_thp1_eccite_303genes.h5ad")


def test_norman_has_18_singles_and_15_doubles(norman):
    keys = ScreenKeys("perturbation", dose="dose", kind="perturbation_type")
    codes, table = encode_obs(norman.obs, keys, require_control=True)
    sizes = [len(condition.components) for condition in table.conditions]
    assert (sizes.count(0), sizes.count(1), sizes.count(2)) == (1, 18, 15)
    assert {kind for _, kind in table.components} == {"CRISPRa"}
    assert (codes == 0).sum() == (norman.obs["perturbation"] == "control").sum() == 100
    n_perturbed = np.array(sizes)[codes]
    np.testing.assert_array_equal(n_perturbed, norman.obs["n_genes_perturbed"])


def test_norman_has_5_doubles_with_both_singles_seen(norman):
    made = [split(norman, "unseen_combination", fold=fold) for fold in range(5)]
    seen = [row["singles_seen"] for one in made for row in one.held_out]
    assert len(seen) == 15
    assert seen.count(2) == 5


def test_kang_without_one_cell_type(kang):
    options = SplitOptions(context="B cells")
    made = split(kang, "unseen_context", keys=ScreenKeys(context=["cell_type"]), options=options)
    b_cells = kang.obs["cell_type"] == "B cells"
    treated = kang.obs["perturbation"] == "IFN-beta"
    np.testing.assert_array_equal(made.test, np.flatnonzero(b_cells & treated))
    made.check(kang)


def test_papalexi_by_target(papalexi):
    folds = [split(papalexi, "unseen_perturbation", fold=fold) for fold in range(5)]
    targets = [row["perturbation"] for one in folds for row in one.held_out]
    assert sorted(targets) == sorted(set(papalexi.obs["perturbation"]) - {"control"})
    assert sum(len(one.test) for one in folds) == (papalexi.obs["perturbation"] != "control").sum()


@pytest.mark.parametrize("n", [0, 1, 2])
def test_norman_with_as_many_singles_as_asked(norman, n):
    options = SplitOptions(singles_seen=n)
    made = split(norman, "unseen_combination", fraction=0.4, options=options)
    pairs = [row for row in made.held_out if row["stratum"] == "combination"]
    assert {row["singles_seen"] for row in pairs} == {n}
    seen = set(norman.obs["perturbation"].iloc[made.train])
    for row in pairs:
        assert len(seen & set(row["perturbation"].split("+"))) == n


def test_norman_by_name(norman):
    label = next(x for x in sorted(set(norman.obs["perturbation"])) if "+" in x)
    turned = "+".join(reversed(label.split("+")))
    made = split(norman, "unseen_combination", options=SplitOptions(held_out=[turned]))
    assert [row["perturbation"] for row in made.held_out] == [label]


def test_drug_signatures_by_molecule(data_dir):
    adata = read(data_dir, "lincs_l1000_drugbank_consensus_z.h5ad")
    keys = ScreenKeys("perturbation")
    names = adata.obs["perturbation"].astype(str).to_numpy()
    smiles = adata.obs["smiles"].astype(str).to_numpy()
    with pytest.raises(SchemaError, match="no cluster for"):
        SplitOptions(groups=dict(zip(names, smiles, strict=True)))
    # A drug of unknown structure is a class of its own.
    molecule = np.where(smiles == "", names, smiles)
    assert len(set(molecule)) < len(names)
    options = SplitOptions(groups=dict(zip(names, molecule, strict=True)))
    held = []
    for fold in range(5):
        made = split(adata, "unseen_perturbation", keys=keys, fold=fold, options=options)
        assert len(made.validation) == 0  # one row a drug
        assert not set(molecule[made.test]) & set(molecule[made.train])
        made.check(adata)
        held += made.test.tolist()
    assert sorted(held) == list(range(adata.n_obs))


def test_bulk_knock_outs_by_gene(data_dir):
    adata = read(data_dir, "morphic_bulk_ko_log2fc.h5ad")
    keys = ScreenKeys("perturbation")
    genes = adata.obs["perturbation"].astype(str).to_numpy()
    folds = [split(adata, "unseen_perturbation", keys=keys, fold=fold) for fold in range(5)]
    for made in folds:
        assert not set(genes[made.test]) & set(genes[made.train])
        assert 0 < len(made.validation) < len(made.train)
    assert sum(len(made.test) for made in folds) == adata.n_obs
