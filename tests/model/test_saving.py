"""Folders of models: whole or not at all, verified, and without code."""

from __future__ import annotations

import contextlib
import pickle
import shutil
from pathlib import Path

import anndata
import numpy as np
import pytest
import torch
from scvi.model import SCVI

from benchmarks.hostile.model_files import CASES, Saved, attack, flip, reseal
from scvi_perturb import HybridResidualModel, PerturbDiffusion, SchemaError
from scvi_perturb._compat import setup_method_name
from scvi_perturb._state import read_sealed, sealed
from scvi_perturb.predictors import FeatureForest
from scvi_perturb.testing import SETUP, SINGLE, dense, fit, make_features, make_model, make_screen

DIFFUSION = next(case for case in CASES if case.model is PerturbDiffusion)
HYBRID = next(case for case in CASES if case.model is HybridResidualModel)


@pytest.fixture(scope="module", params=(DIFFUSION, HYBRID), ids=lambda case: case.name)
def saved(request, tmp_path_factory):
    """A small model, saved with its data, and two folders of its run."""
    folder = tmp_path_factory.mktemp("saved")
    with contextlib.chdir(folder):
        return Saved.make(request.param, folder)


@pytest.fixture
def model():
    """A trained diffusion."""
    adata = make_screen(n_cells=120, n_genes=12)
    return fit(DIFFUSION, make_model(DIFFUSION, adata))


# Strangers --------------------------------------------------------------------------------


def test_no_file_that_was_made_up_runs_code(saved, tmp_path):
    found = attack(saved, tmp_path / "mark")
    assert len(found) > 25
    assert set(found) == {"told"}


def test_every_flipped_bit_is_told(saved):
    assert set(flip(saved, 20, np.random.default_rng(0))) == {"told"}


def test_a_missing_file_and_one_too_many_are_told(saved, tmp_path):
    for name in sorted(path.name for path in saved.model.iterdir()):
        folder = tmp_path / name
        shutil.copytree(saved.model, folder)
        (folder / name).unlink()
        with pytest.raises(SchemaError, match=name):
            saved.load(folder)
    (tmp_path / "manifest.json").mkdir(exist_ok=True)
    shutil.copytree(saved.model, tmp_path / "more")
    (tmp_path / "more" / "notes.txt").write_text("x")  # which is no file of a model
    saved.load(tmp_path / "more")
    (tmp_path / "more" / "model.pt").write_text("x")
    with pytest.raises(SchemaError, match=r"model\.pt is too much"):
        saved.load(tmp_path / "more")
    with pytest.raises(FileNotFoundError, match="no folder"):
        saved.load(tmp_path / "none")


def test_a_later_format_is_told(saved, tmp_path):
    folder = tmp_path / "later"
    shutil.copytree(saved.model, folder)
    path = folder / "manifest.json"
    manifest = read_sealed(path.read_text(), where=path) | {"format": 2, "version": "9.1"}
    path.write_text(sealed(manifest))
    with pytest.raises(SchemaError, match=r"scvi-perturb 9\.1 in format 2.*later version"):
        saved.load(folder)


def test_what_an_argument_does_not_fit_is_told(saved, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(saved.model, folder)
    text = (folder / "state.json").read_text()
    assert '"n_hidden":8' in text
    (folder / "state.json").write_text(text.replace('"n_hidden":8', '"n_hidden":9'))
    reseal(folder)
    with pytest.raises(SchemaError, match="cannot be built from what was saved"):
        saved.load(folder)


# Pickles of scvi-tools --------------------------------------------------------------------


def write_pickle(model, folder):
    """Write what scvi-tools writes."""
    Path(folder).mkdir()
    attributes = {k: v for k, v in vars(model).items() if k.endswith("_") and k[0] != "_"}
    weights = {**model.module.state_dict(), "pyro_param_store": {}}
    genes = model.adata.var_names.to_numpy()
    torch.save(
        {"model_state_dict": weights, "var_names": genes, "attr_dict": attributes},
        Path(folder) / "model.pt",
    )


def test_a_pickle_is_read_only_if_it_is_trusted(model):
    write_pickle(model, "old")
    with pytest.raises(ValueError, match=r"model\.pt is a pickle.*trust=True"):
        PerturbDiffusion.load("old", model.adata)
    loaded = PerturbDiffusion.load("old", model.adata, trust=True)
    cells = [m.sample([SINGLE], n_samples=5) for m in (loaded, model)]
    np.testing.assert_array_equal(*(dense(c.X) for c in cells))
    loaded.save("old", overwrite=True)
    again = PerturbDiffusion.load("old", model.adata)
    np.testing.assert_array_equal(dense(again.sample([SINGLE], n_samples=5).X), dense(cells[0].X))
    with pytest.raises(pickle.UnpicklingError):
        pickle.loads(Path("old/state.json").read_bytes())


def test_a_representation_of_scvi_comes_back():
    adata = make_screen(n_cells=120, n_genes=12)
    SCVI.setup_anndata(adata, batch_key="batch")
    vae = SCVI(adata, n_latent=3, n_hidden=8)
    vae.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
    PerturbDiffusion.setup_anndata(adata, **SETUP)
    options = {"diffusion": DIFFUSION.init["diffusion"]}
    model = fit(DIFFUSION, PerturbDiffusion.from_scvi_model(vae, **options))
    model.save("model")
    other = adata.copy()
    other.obs["batch"] = other.obs["batch"].astype(str).replace({"batch_2": "tomorrow's"})
    for data in (adata, other):
        loaded = PerturbDiffusion.load("model", data)
        latents = loaded.get_latent_representation(), model.get_latent_representation(data.copy())
        np.testing.assert_allclose(*latents, atol=1e-5)


# Whole or not at all ----------------------------------------------------------------------


class Strange:
    """A predictor of nobody's."""

    def fit(self, adata, split=None, *, keys=None):
        return self

    def predict(self, conditions, *, reference=None):
        raise NotImplementedError


def test_what_cannot_be_stored_is_named_and_nothing_is_written(model):
    model.strange_ = Strange()
    with pytest.raises(TypeError, match=r"strange_ holds a .*Strange.* without pickle"):
        model.save("model")
    assert list(Path().iterdir()) == []


def test_a_model_with_a_mean_of_nobody_s_is_not_saved():
    adata = make_screen(n_cells=120, n_genes=12)
    untrained = make_model(HYBRID, adata, mean=Strange())
    with pytest.raises(TypeError, match=r"mean holds a .*Strange"):
        untrained.save("model")


def test_the_old_model_survives_a_save_that_fails(model, monkeypatch):
    model.save("model")
    before = {path.name: path.read_bytes() for path in Path("model").iterdir()}

    def full(self, content):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="disk is full"):
            model.save("model", overwrite=True)
    assert {path.name: path.read_bytes() for path in Path("model").iterdir()} == before
    assert list(Path().iterdir()) == [Path("model")]


def test_only_the_folder_of_a_model_is_replaced(model):
    model.save("model")
    with pytest.raises(ValueError, match=r"overwrite=True"):
        model.save("model")
    model.save("model", overwrite=True)
    Path("model/thesis.txt").write_text("x")
    with pytest.raises(ValueError, match=r"thesis\.txt"):
        model.save("model", overwrite=True)
    assert Path("model/thesis.txt").read_text() == "x"
    Path("file").write_text("x")
    Path("link").symlink_to("model")
    for name in ("file", "link"):
        with pytest.raises(NotADirectoryError, match="expected a folder"):
            model.save(name, overwrite=True)


def test_data_that_are_read_from_the_folder_stay(model):
    model.save("model", save_anndata=True)
    backed = anndata.read_h5ad("model/adata.h5ad", backed="r")
    loaded = PerturbDiffusion.load("model", backed)
    with pytest.raises(ValueError, match=r"read from .*adata\.h5ad"):
        loaded.save("model", overwrite=True)


def test_options_of_the_data_are_for_the_data(model):
    with pytest.raises(TypeError, match=r"compression.*save_anndata=True"):
        model.save("model", compression="gzip")
    model.save("model")
    with pytest.warns(UserWarning, match="holds no data"):
        loaded = PerturbDiffusion.load("model")
    assert loaded.adata is None


# Parts ------------------------------------------------------------------------------------


def test_a_registry_can_be_looked_at(model):
    model.save("model")
    registry = PerturbDiffusion.load_registry("model")
    assert registry["setup_args"] == model.registry["setup_args"]
    assert registry[setup_method_name()] == "setup_anndata"


@pytest.mark.filterwarnings("ignore:FeatureForest leaves out:UserWarning")
def test_a_forest_predicts_alike_without_scikit_learn():
    adata = make_screen(n_cells=120, n_genes=12)
    model = make_model(HYBRID, adata, mean=FeatureForest(make_features(adata), n_trees=5))
    fit(HYBRID, model).save("model")
    loaded = HybridResidualModel.load("model", adata)
    one, two = (m.predict([SINGLE]) for m in (model, loaded))
    np.testing.assert_array_equal(one.X, two.X)


def test_a_state_without_its_run_is_refused(saved, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(saved.finished, folder)
    (folder / "run.json").unlink()
    with pytest.raises(SchemaError, match=r"no run\.json"):
        saved.train(folder)


def test_the_state_of_a_run_with_other_data_is_refused(saved):
    adata = saved.adata.copy()
    adata.X = adata.X * 2
    other = make_model(saved.case, adata, features=make_features(adata))
    with pytest.raises(SchemaError, match="another run, with other data"):
        fit(saved.case, other, checkpoint_dir=saved.finished)


def test_the_state_of_a_run_with_other_features_is_refused(saved):
    adata = saved.adata.copy()
    features = make_features(adata)
    name = features.modalities[0]
    features = type(features)({name: features.frame(name) + 1})
    other = make_model(saved.case, adata, features=features)
    with pytest.raises(SchemaError, match="another run, with other model"):
        fit(saved.case, other, checkpoint_dir=saved.finished)
