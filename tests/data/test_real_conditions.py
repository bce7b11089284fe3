"""Conditions and splits of real screens."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

from scvi_perturb.data._keys import ConditionKeys
from scvi_perturb.data._splits import SplitOptions, split
from scvi_perturb.data._table import encode_obs


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
    keys = ConditionKeys("perturbation", dose="dose", kind="perturbation_type")
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
    made = split(kang, "unseen_context", context_keys=["cell_type"], options=options)
    b_cells = kang.obs["cell_type"] == "B cells"
    treated = kang.obs["perturbation"] == "IFN-beta"
    np.testing.assert_array_equal(made.test, np.flatnonzero(b_cells & treated))
    made.check(kang)


def test_papalexi_by_target(papalexi):
    folds = [split(papalexi, "unseen_perturbation", fold=fold) for fold in range(5)]
    targets = [row["perturbation"] for one in folds for row in one.held_out]
    assert sorted(targets) == sorted(set(papalexi.obs["perturbation"]) - {"control"})
    assert sum(len(one.test) for one in folds) == (papalexi.obs["perturbation"] != "control").sum()
