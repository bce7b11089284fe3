"""What scvi-tools, Lightning and AnnData do that a plugin must know of.

Each test holds a fact that code of ours is written around. Where one fails, upstream has changed:
the code named in its comment may be simpler from then on, or wrong.
"""

from __future__ import annotations

import inspect
import sys

import anndata
import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from anndata.experimental import AnnCollection
from lightning.pytorch.callbacks import Callback
from scipy import sparse
from scvi.data import AnnDataManager
from scvi.data.fields import CategoricalObsField, LayerField, NumericalObsField, ObsmField
from scvi.dataloaders import AnnTorchDataset, CollectionAdapter, DataSplitter
from scvi.model import SCVI
from scvi.model.base import BaseModelClass
from scvi.module.base import LossOutput
from scvi.nn import FCLayers
from scvi.train import Trainer, TrainingPlan

CPU = {"accelerator": "cpu", "enable_progress_bar": False}


def cells(n=40, n_genes=6, seed=0):
    counts = np.random.default_rng(seed).poisson(2.0, (n, n_genes)).astype(np.float32)
    obs = pd.DataFrame({"batch": ["a", "b"] * (n // 2)}, index=[f"c{i}" for i in range(n)])
    var = pd.DataFrame(index=[f"g{i}" for i in range(n_genes)])
    return anndata.AnnData(sparse.csr_matrix(counts), obs=obs, var=var)


def managed(adata, *fields):
    manager = AnnDataManager(fields=[LayerField("X", None), *fields])
    manager.register_fields(adata)
    return manager


@pytest.fixture(scope="module")
def vae():
    """A trained scVI model."""
    adata = cells()
    SCVI.setup_anndata(adata, batch_key="batch")
    model = SCVI(adata, n_hidden=8, n_latent=2)
    model.train(max_epochs=1, **CPU)
    return model


# Training ---------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Found .* in eval mode")
def test_second_training_runs_in_evaluation_mode(vae):
    # `train._runner.StageRunner` puts the module into training mode.
    modes = []

    class Spy(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            modes.append(pl_module.module.training)

    assert not vae.module.training
    vae.train(max_epochs=1, callbacks=[Spy()], **CPU)
    assert modes == [False]


def test_default_optimizer_has_a_large_epsilon():
    # `train._plan.StagePlan` makes an AdamW of its own.
    assert inspect.signature(TrainingPlan.__init__).parameters["eps"].default == 0.01


def test_divergence_warms_up_over_400_epochs_and_epochs_win_over_steps(vae):
    # `train._plan.StagePlan` passes `n_epochs_kl_warmup=None`.
    defaults = inspect.signature(TrainingPlan.__init__).parameters
    assert defaults["n_epochs_kl_warmup"].default == 400
    plan = TrainingPlan(vae.module, n_epochs_kl_warmup=400, n_steps_kl_warmup=1)
    assert plan.kl_weight < 1
    assert TrainingPlan(vae.module, n_epochs_kl_warmup=None, n_steps_kl_warmup=10).kl_weight == 0


def test_validation_is_off_unless_asked_for():
    # `train._runner.StageRunner` asks for it in every epoch.
    trainer = Trainer(accelerator="cpu", devices=1, logger=False)
    assert trainer.check_val_every_n_epoch == sys.maxsize


def test_indices_of_a_split_must_cover_every_cell():
    # `data.Split` covers them, with a part for tests.
    manager = managed(cells())
    with pytest.raises(Warning, match=r"(?i)indices"):
        DataSplitter(manager, external_indexing=[np.arange(10), np.arange(10, 20)]).setup()


def test_batch_norm_fails_on_one_cell():
    # `nn` uses layer norms.
    layers = FCLayers(4, 3, use_batch_norm=True, use_layer_norm=False)
    with pytest.raises(ValueError, match="more than 1 value"):
        layers(torch.zeros(1, 4))
    FCLayers(4, 3, use_batch_norm=False, use_layer_norm=True)(torch.zeros(1, 4))


def test_metrics_are_computed_under_inference_mode():
    # `StagePlan` logs itself: in place synchronisation of two processes on CPUs fails under it.
    assert hasattr(TrainingPlan.compute_and_log_metrics, "__wrapped__")


def test_batch_size_is_read_off_the_reconstruction_loss():
    # Losses of modules are one number a cell.
    output = LossOutput(loss=torch.tensor(1.0), reconstruction_loss=torch.ones(7))
    assert output.n_obs_minibatch == 7


def test_splits_are_not_seeded():
    # `train` splits by its own seed.
    assert scvi.settings.seed is None


def test_compilation_hides_errors_everywhere(vae, monkeypatch):
    # No plan of ours compiles.
    import torch._dynamo

    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    # torch's own way to change a setting for a while: others hide it when they put it back.
    with torch._dynamo.config.patch(suppress_errors=False):
        TrainingPlan(vae.module, compile=True)
        assert torch._dynamo.config.suppress_errors


# Registration and data --------------------------------------------------------------------


def test_categories_are_refused_unless_they_are_the_integer_0():
    # `data._fields` casts labels to text.
    adata, new = cells(), cells()
    adata.obs["batch"] = adata.obs["batch"].map({"a": 1, "b": 2})
    manager = managed(adata, CategoricalObsField("batch", "batch"))
    new.obs["batch"] = 3
    with pytest.raises(ValueError, match="Category 3 not found"):
        manager.transfer_fields(new)
    new.obs["batch"] = 0
    codes = manager.transfer_fields(new).get_from_registry("batch")
    assert set(codes.ravel().tolist()) == {2}, "accepted in silence, under a code of no category"


def test_new_categories_can_be_appended():
    # As `data._fields.LabelField` does.
    manager = managed(cells(), CategoricalObsField("batch", "batch"))
    new = cells()
    new.obs["batch"] = ["aa"] * 20 + ["b"] * 20
    extended = manager.transfer_fields(new, extend_categories=True)
    assert extended.get_state_registry("batch").categorical_mapping.tolist() == ["a", "b", "aa"]


def collection(folder):
    parts = []
    for seed in (0, 1):
        part = cells(seed=seed)
        part.layers["counts"] = part.X.copy()
        part.obsm["known"] = np.zeros((part.n_obs, 2), np.float32)
        part.obs_names = [f"{seed}_{name}" for name in part.obs_names]
        part.write_h5ad(folder / f"{seed}.h5ad")
        parts.append(anndata.read_h5ad(folder / f"{seed}.h5ad", backed="r"))
    return CollectionAdapter(AnnCollection(parts, join_obs="inner", join_vars="inner"))


def test_arrays_of_cells_cannot_be_registered_on_files(tmp_path):
    # `data._fields` keeps one integer a cell, and tables elsewhere.
    with pytest.raises(TypeError, match="'NoneType' is not iterable"):
        AnnDataManager(fields=[ObsmField("known", "known")]).register_fields(collection(tmp_path))


def test_layers_of_files_have_no_shape_and_cannot_be_looked_up(tmp_path):
    # `data._reader` and `data._fields` do without.
    layers = collection(tmp_path).layers
    # anndata 0.13 counts X among them, as None.
    assert {*layers.keys()} - {None} == {"counts"}
    with pytest.raises(KeyError):
        "counts" in layers  # noqa: B015
    with pytest.raises(AttributeError):
        _ = layers["counts"].shape


def test_backed_cells_come_sorted(tmp_path):
    # `data._reader.read_rows` restores the order.
    adata = cells()
    manager = managed(adata)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    on_file = AnnTorchDataset(manager.transfer_fields(backed))[[7, 3, 5]]["X"]
    np.testing.assert_array_equal(on_file, adata.X[[3, 5, 7]].toarray())
    in_memory = AnnTorchDataset(manager)[[7, 3, 5]]["X"]
    np.testing.assert_array_equal(in_memory, adata.X[[7, 3, 5]].toarray())


def test_order_of_genes_is_not_checked(vae):
    # `data.align_genes` reorders, `data._fields.CountsField` refuses.
    latent = vae.get_latent_representation(cells()[:, ::-1].copy())
    assert not np.allclose(latent, vae.get_latent_representation(cells()))


def test_numbers_of_cells_come_as_float32():
    # `data.ScreenReader` reads them itself.
    adata = cells()
    adata.obs["code"] = np.arange(len(adata)) + 2**24
    manager = managed(adata, NumericalObsField("code", "code"))
    batch = AnnTorchDataset(manager)[[1]]
    assert batch["code"].dtype == np.float32
    assert int(batch["code"].item()) != 2**24 + 1


def test_registering_again_passes_the_source(monkeypatch):
    # `setup_anndata` takes `**kwargs`.
    assert "source_registry" in inspect.signature(AnnDataManager.register_fields).parameters
    assert "source_registry" in inspect.getsource(BaseModelClass.load.__func__)


def test_views_are_refused():
    # As `setup_anndata` documents.
    with pytest.raises(ValueError, match=r"copy\(\)"):
        SCVI.setup_anndata(cells()[:5])


# Saving -----------------------------------------------------------------------------------


def test_arguments_behind_kwargs_are_lost_on_saving():
    # Models repeat their full signature.
    class Loose(SCVI):
        def __init__(self, adata, **kwargs):
            super().__init__(adata, **kwargs)

    adata = cells()
    Loose.setup_anndata(adata)
    model = Loose(adata, n_hidden=8, n_latent=3)
    model.save("model")
    with pytest.raises(RuntimeError, match="size mismatch"):
        Loose.load("model", adata)


def test_saving_evaluates_every_property_and_keeps_names_that_end_in_an_underscore():
    # Properties of models are cheap and never raise.
    asked = []

    class Watched(SCVI):
        @property
        def looked_at(self):
            asked.append(None)

    adata = cells()
    Watched.setup_anndata(adata)
    model = Watched(adata, n_hidden=8)
    model.kept_, model.lost = 1, 2
    asked.clear()
    model.save("model")
    assert asked
    attributes = torch.load("model/model.pt", weights_only=False)["attr_dict"]
    assert attributes["kept_"] == 1
    assert "lost" not in attributes


def test_class_is_known_by_its_name(vae):
    # A renamed class reads old files by `allowed_classes_names_list`.
    vae.save("model")
    renamed = type("Renamed", (SCVI,), {})
    with pytest.raises(ValueError, match="different class"):
        renamed.load("model", cells())
