"""Save and load: the same model, with data or without, and what is in the file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import scvi_perturb
from scvi_perturb import SchemaError, UnknownPerturbationError
from scvi_perturb.testing import (
    FEATURED,
    HELD_OUT,
    NEW_PAIR,
    SINGLE,
    controls,
    dense,
    fit,
    make_model,
    make_split,
)

ASKED = [SINGLE, NEW_PAIR, FEATURED, "control"]


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    """The trained model, saved."""
    made = tmp_path_factory.mktemp("saved") / "model"
    trained.save(made)
    return made


def assert_same_results(one, two, **options):
    cells = [model.sample(ASKED, n_samples=12, **options) for model in (one, two)]
    np.testing.assert_array_equal(*(dense(c.X) for c in cells))
    assert cells[0].obs.equals(cells[1].obs)
    assert cells[0].uns == cells[1].uns
    effects = [model.predict(ASKED, n_samples=12, **options) for model in (one, two)]
    for key in ("lfc", "lower", "upper", "std"):
        np.testing.assert_allclose(*(e.layers[key] for e in effects), atol=1e-5)
    np.testing.assert_allclose(*(e.obs["novelty"] for e in effects), atol=1e-5)


def test_loaded_model_gives_equal_results(case, trained, folder):
    loaded = case.model.load(folder, trained.adata)
    assert repr(loaded.module) == repr(trained.module), "the architecture is the same"
    state = loaded.module.state_dict()
    assert state.keys() == trained.module.state_dict().keys()
    assert all(torch.equal(state[k], v) for k, v in trained.module.state_dict().items())
    assert_same_results(loaded, trained)
    latents = (m.get_latent_representation() for m in (loaded, trained))
    np.testing.assert_allclose(*latents, atol=1e-5)
    known = ~trained.adata.obs["perturbation"].str.contains(HELD_OUT)
    some = np.flatnonzero(known)[:9]
    bounds = (getattr(m, case.likelihood)(indices=some, n_samples=8) for m in (loaded, trained))
    np.testing.assert_allclose(*bounds, atol=1e-4)
    assert loaded.is_trained_
    assert loaded.trained_on_ == trained.trained_on_
    assert loaded.history_.keys() == trained.history_.keys()
    np.testing.assert_array_equal(loaded.train_indices, trained.train_indices)


def test_loading_without_data_then_with_data(case, trained, folder, simulated):
    loaded = case.model.load(folder, adata=False)
    assert loaded.adata is None
    assert_same_results(loaded, trained)
    for verb in (loaded.get_latent_representation, getattr(loaded, case.likelihood), loaded.train):
        with pytest.raises(SchemaError, match="loaded without data"):
            verb()
    assert_same_results(loaded, trained, reference=controls(simulated))
    with pytest.raises(UnknownPerturbationError, match=HELD_OUT):
        loaded.sample([HELD_OUT], reference=controls(simulated))
    adata = simulated.copy()
    np.testing.assert_allclose(
        loaded.get_latent_representation(adata), trained.get_latent_representation(), atol=1e-5
    )
    again = case.model.load(folder, adata)
    assert_same_results(again, trained)


def test_genes_in_another_order_are_brought_into_theirs(case, trained, folder, simulated):
    loaded = case.model.load(folder, simulated[:, ::-1].copy())
    latents = (m.get_latent_representation() for m in (loaded, trained))
    np.testing.assert_allclose(*latents, atol=1e-5)
    assert_same_results(loaded, trained)


def test_what_the_data_lack_is_named(case, folder, simulated):
    with pytest.raises(SchemaError, match=rf"1 of the 30 genes.*{simulated.var_names[-1]}"):
        case.model.load(folder, simulated[:, :-1].copy())
    for column in ("perturbation", "cell_type", "batch"):
        adata = simulated.copy()
        del adata.obs[column]
        with pytest.raises(SchemaError, match=rf"'{column}' is not in adata.obs"):
            case.model.load(folder, adata)


#: Labels that training had not: column, label, and what the model can be asked of them.
NEW_LABELS = [
    ("batch", "tomorrow's"),
    ("cell_type", "NK"),
    ("perturbation", "NEW"),
    ("perturbation", NEW_PAIR),
]


@pytest.mark.parametrize(("column", "label"), NEW_LABELS)
def test_new_labels_are_taken_as_a_live_model_takes_them(
    case, trained, folder, simulated, column, label
):
    adata = simulated.copy()
    relabelled = adata.obs[column].astype(str).to_numpy(dtype=object)
    relabelled[relabelled == relabelled[simulated.obs["perturbation"] != "control"][0]] = label
    adata.obs[column] = relabelled
    loaded = case.model.load(folder, adata)
    latents = loaded.get_latent_representation(), trained.get_latent_representation(adata.copy())
    assert len(latents[0]) == adata.n_obs
    np.testing.assert_allclose(*latents, atol=1e-5)
    reference = adata[adata.obs["perturbation"] == "control"].copy()
    assert_same_results(loaded, trained, reference=reference)
    assert_same_results(loaded, trained)
    with pytest.raises(SchemaError, match=rf"{column}.*{label.replace('+', '[+]')}"):
        loaded.train()
    cells = np.flatnonzero(adata.obs["perturbation"] == "NEW")[:3]
    if label == "NEW":
        for verb in (loaded.sample, loaded.predict):
            with pytest.raises(UnknownPerturbationError, match="NEW"):
                verb(["NEW"], reference=reference)
        with pytest.raises((SchemaError, UnknownPerturbationError), match="NEW"):
            getattr(loaded, case.likelihood)(indices=cells)


def doubled(adata):
    adata.X = adata.X * 2


def shuffled(adata):
    order = np.random.default_rng(0).permutation(adata.n_obs)
    adata.obs["perturbation"] = adata.obs["perturbation"].to_numpy()[order]


@pytest.mark.parametrize("change", [doubled, shuffled])
def test_other_data_under_the_same_names_are_not_those_of_training(
    case, trained, folder, simulated, change
):
    adata = simulated.copy()
    change(adata)
    loaded = case.model.load(folder, adata)
    assert_same_results(loaded, trained)  # the controls of training are kept
    split = make_split(simulated)
    with pytest.raises(SchemaError, match="split was made for other data"):
        loaded.train(split=split)


def test_data_can_be_saved_with_the_model(case, trained):
    trained.save("model", save_anndata=True)
    loaded = case.model.load("model")
    assert_same_results(loaded, trained)


@pytest.mark.parametrize("trained_first", [True, False])
def test_every_argument_comes_back(case, screen, trained_first):
    for name, init in case.variants.items():
        model = make_model(case, screen, **init)
        if trained_first and name == next(iter(case.variants)):
            fit(case, model, max_epochs=1)
        model.save(name)
        loaded = case.model.load(name, screen)
        assert repr(loaded.module) == repr(model.module)
        assert loaded.is_trained_ == model.is_trained_
        state = loaded.module.state_dict()
        assert all(torch.equal(state[k], v) for k, v in model.module.state_dict().items())
        saved = {k: v for part in loaded.init_params_.values() for k, v in part.items()}
        assert {k: saved[k] for k in {**case.init, **init}} == {**case.init, **init}


def test_loaded_model_can_be_saved_again(case, trained, folder, simulated):
    case.model.load(folder, adata=False).save("again")
    assert_same_results(case.model.load("again", simulated.copy()), trained)


def test_tables_are_in_the_file_once(folder, simulated):
    names = list(load_file(folder / "weights.safetensors"))
    assert not [name for name in names if "features_" in name or "table_" in name]
    largest = max(array.numel() for array in load_file(folder / "arrays.safetensors").values())
    assert largest < simulated.X.nnz, "the data are not in it"


def test_files_are_json_and_safetensors(case, folder):
    names = ["arrays.safetensors", "manifest.json", "state.json", "weights.safetensors"]
    assert sorted(path.name for path in Path(folder).iterdir()) == names
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["model"] == case.name
    assert manifest["version"] == scvi_perturb.__version__
    assert sorted(manifest["files"]) == [name for name in names if name != "manifest.json"]


def test_file_of_another_class_is_refused(case, folder, simulated):
    renamed = type("Renamed", (case.model,), {})
    with pytest.raises(ValueError, match=r"(?i)class"):
        renamed.load(folder, simulated.copy())
