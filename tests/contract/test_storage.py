"""Where the cells are: in memory, on disk, in several files, in MuData. And the order of genes."""

from __future__ import annotations

from contextlib import nullcontext

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
from anndata.experimental import AnnCollection
from scipy import sparse
from scvi.dataloaders import CollectionAdapter

from scvi_perturb import SchemaError
from scvi_perturb.data import open_shards, write_shards
from scvi_perturb.testing import SETUP, SINGLE, dense, fit, make_model, make_split
from tests.contract.registry import TRAINED

#: In no order, with one cell twice.
INDICES = [290, 7, 3, 5, 151, 149, 7]


#: What the tests here are run on.
CASES = TRAINED


def _plain(simulated):
    """Return the screen as files can hold it, with counts in a layer too."""
    adata = simulated.copy()
    adata.layers["counts"] = adata.X.copy()
    del adata.uns["truth"]
    return adata


def _collection(adata, folder):
    """Return the cells in two files, out of core."""
    parts = []
    for name, cells in (("a", slice(0, 150)), ("b", slice(150, None))):
        adata[cells].copy().write_h5ad(folder / f"{name}.h5ad")
        parts.append(anndata.read_h5ad(folder / f"{name}.h5ad", backed="r"))
    return CollectionAdapter(AnnCollection(parts, join_obs="inner", join_vars="inner"))


def _backed(adata, folder):
    adata.write_h5ad(folder / "screen.h5ad")
    return anndata.read_h5ad(folder / "screen.h5ad", backed="r")


def _csc(adata, folder):
    adata.layers["counts"] = adata.layers["counts"].tocsc()
    return adata


def _dense(adata, folder):
    adata.layers["counts"] = adata.layers["counts"].toarray()
    return adata


def _backed_dense(adata, folder):
    return _backed(_dense(adata, folder), folder)


def _shards(adata, folder):
    write_shards(adata, folder / "screen.zarr", layer="counts", shuffle=False)
    made = open_shards(folder / "screen.zarr")
    made.layers["counts"] = made.X
    return made


STORAGE = {
    "csc": _csc,
    "dense": _dense,
    "backed": _backed,
    "backed dense": _backed_dense,
    "files": _collection,
    "shards": _shards,
}


@pytest.fixture(scope="module")
def in_memory(case, simulated, tmp_path_factory):
    """Results of a model whose cells are in memory."""
    return _results(case, _plain(simulated))


def _results(case, adata):
    model = make_model(case, adata, setup={**SETUP, "layer": "counts"})
    fit(case, model, max_epochs=1)
    return {
        "latent": model.get_latent_representation(),
        "some": model.get_latent_representation(indices=INDICES),
        "cells": model.sample([SINGLE, "control"], n_samples=9),
        "effect": model.predict([SINGLE], n_samples=9),
        "likelihood": getattr(model, case.likelihood)(indices=INDICES, n_samples=4),
    }


@pytest.mark.parametrize("storage", STORAGE)
def test_storage_does_not_matter(case, simulated, in_memory, storage, tmp_path):
    adata = STORAGE[storage](_plain(simulated), tmp_path)
    found = _results(case, adata)
    for key in ("latent", "some", "likelihood"):
        np.testing.assert_allclose(found[key], in_memory[key], rtol=1e-4, atol=1e-4)
    assert found["cells"].obs.equals(in_memory["cells"].obs)
    # A last digit of a latent may turn a count by one.
    moved = dense(found["cells"].X) != dense(in_memory["cells"].X)
    assert moved.mean() < 0.01
    np.testing.assert_allclose(found["effect"].X, in_memory["effect"].X, atol=1e-3)


def test_cells_come_in_the_order_asked_for(in_memory):
    np.testing.assert_allclose(in_memory["some"], in_memory["latent"][INDICES], atol=1e-5)


def test_collection_of_files_has_layers_only(case, simulated, tmp_path):
    with pytest.raises(SchemaError, match=r"layers only \(\['counts'\]\)"):
        case.model.setup_anndata(_collection(_plain(simulated), tmp_path), **SETUP)


def test_split_works_on_files(case, simulated, tmp_path):
    plain = _plain(simulated)
    made = make_split(plain)
    model = make_model(case, _backed(plain, tmp_path))
    fit(case, model, split=made, max_epochs=1)
    np.testing.assert_array_equal(model.test_indices, made.test)


def test_latents_are_returned_and_written(trained, simulated):
    adata = simulated.copy()
    latent = trained.get_latent_representation(adata, key_added="X_model")
    assert latent.shape[0] == adata.n_obs
    assert np.isfinite(latent).all()
    np.testing.assert_array_equal(adata.obsm["X_model"], latent)
    np.testing.assert_allclose(latent, trained.get_latent_representation(), atol=1e-5)
    with pytest.raises(ValueError, match="leave `indices` out"):
        trained.get_latent_representation(adata, indices=[1], key_added="X_model")
    with pytest.raises(SchemaError, match="set up with as perturbation_key"):
        trained.log_likelihood_bound(adata, key_added="perturbation")


def test_one_cell_is_enough(trained, simulated):
    one = trained.get_latent_representation(simulated[5].copy())
    np.testing.assert_allclose(one, trained.get_latent_representation()[[5]], atol=1e-5)


def test_genes_in_another_order_are_reordered(trained, simulated):
    swapped = simulated[:, ::-1].copy()
    before = swapped.copy()
    latent = trained.get_latent_representation(swapped)
    np.testing.assert_allclose(latent, trained.get_latent_representation(), atol=1e-5)
    assert swapped.var_names.tolist() == before.var_names.tolist()
    assert (swapped.X != before.X).nnz == 0
    wide = sparse.hstack([swapped.X, swapped.X[:, :1]], format="csr")
    genes = pd.DataFrame(index=[*swapped.var_names, "another_gene"])
    more = anndata.AnnData(wide, obs=swapped.obs, var=genes)
    latent = trained.get_latent_representation(more)
    np.testing.assert_allclose(latent, trained.get_latent_representation(), atol=1e-5)


def test_missing_and_repeated_genes_are_named(trained, simulated):
    with pytest.raises(SchemaError, match=rf"missing, e.g. \['{simulated.var_names[0]}'"):
        trained.get_latent_representation(simulated[:, 1:].copy())
    twice = simulated.copy()
    twice.var_names = [twice.var_names[1], *twice.var_names[1:]]
    with pytest.raises(SchemaError, match="not unique"):
        trained.get_latent_representation(twice)


def test_new_labels_do_not_change_old_codes(trained, simulated):
    new = simulated[:40].copy()
    new.obs["cell_type"] = ["type_00"] * 20 + ["type_02"] * 20
    new.obs["perturbation"] = ["a_new_one"] * 20 + [SINGLE] * 20
    new.obs["batch"] = "batch_00"
    latent = trained.get_latent_representation(new)
    assert np.isfinite(latent).all()
    codes = trained._reader(new).codes
    old = trained._reader(None).codes
    asked = (simulated.obs["cell_type"] == "type_02").to_numpy()
    assert set(codes["context"][20:]) == set(old["context"][asked])
    assert set(codes["context"][:20]) == {2}
    asked = (simulated.obs["perturbation"] == SINGLE).to_numpy()
    assert set(codes["condition"][20:]) == set(old["condition"][asked])


def without_pulling():
    """Leave the columns of modalities where they are, as mudata 0.4 does anyway."""
    options = getattr(mudata, "set_options", None)
    return nullcontext() if options is None else options(pull_on_update=False)


@pytest.mark.filterwarnings("ignore:The method mod_names is deprecated:FutureWarning")
def test_mudata_gives_the_results_of_its_modality(case, simulated, in_memory):
    rna = _plain(simulated)
    protein = anndata.AnnData(sparse.random(rna.n_obs, 3, 0.5, format="csr", random_state=0))
    protein.obs_names = rna.obs_names
    with without_pulling():
        mdata = mudata.MuData({"rna": rna, "protein": protein})
    case.model.setup_mudata(mdata, rna_modality="rna", layer="counts", **SETUP)
    model = fit(case, case.model(mdata, **case.init), max_epochs=1)
    latent = model.get_latent_representation()
    np.testing.assert_allclose(latent, in_memory["latent"], atol=1e-5)
    cells = model.sample([SINGLE, "control"], n_samples=9)
    np.testing.assert_array_equal(dense(cells.X), dense(in_memory["cells"].X))
    assert cells.var_names.tolist() == rna.var_names.tolist()
    model.save("model")
    again = case.model.load("model", mdata)
    np.testing.assert_allclose(again.get_latent_representation(), latent, atol=1e-5)
    with without_pulling():
        reference = mdata[(rna.obs["perturbation"] == "control").to_numpy()].copy()
    for given in (reference, reference.mod["rna"]):
        assert model.sample([SINGLE], reference=given, n_samples=4).n_obs == 4


def test_data_of_another_kind_than_at_setup_are_refused_with_what_to_pass(case, trained):
    options = getattr(mudata, "set_options", None)
    with nullcontext() if options is None else options(pull_on_update=False):
        mdata = mudata.MuData({"rna": trained.adata.copy()})
    for verb in (
        trained.get_latent_representation,
        lambda data: trained.sample([SINGLE], reference=data, n_samples=4),
    ):
        with pytest.raises(TypeError, match=r"mdata.mod\['rna'\]"):
            verb(mdata)
        with pytest.raises(TypeError, match=r"read_h5ad\(\"new.h5ad\"\)"):
            verb("new.h5ad")
