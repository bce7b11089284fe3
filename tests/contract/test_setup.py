"""Registration: what is read, what is refused, what is left as it was."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from scvi_perturb import SchemaError, UnknownPerturbationError
from scvi_perturb._compat import layer_names
from scvi_perturb.pp import harmonize
from scvi_perturb.testing import PAIR, SETUP, SINGLE, dense, fit, make_model
from tests.contract.registry import TRAINED

#: What the tests here are run on.
CASES = TRAINED

ADDED = {"_scvi_condition", "_scvi_context", "_scvi_batch"}
ADDED_UNS = {"_scvi_uuid", "_scvi_manager_uuid"}


def same(one, two):
    """Whether two matrices hold the same values, of the same kind."""
    kinds = type(one) is type(two) and one.dtype == two.dtype
    return kinds and np.array_equal(dense(one), dense(two))


def test_only_documented_keys_are_added(case, simulated):
    adata = simulated.copy()
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X.log1p()
    before = adata.copy()
    model = fit(case, make_model(case, adata, setup={**SETUP, "layer": "counts"}))
    model.sample([SINGLE], n_samples=5)
    model.predict([SINGLE], n_samples=5)
    model.get_latent_representation()
    getattr(model, case.likelihood)(indices=[0, 1], n_samples=4)
    assert same(adata.X, before.X)
    assert same(adata.layers["counts"], before.layers["counts"])
    assert set(adata.obs) - set(before.obs) == ADDED
    assert adata.obs[before.obs.columns].equals(before.obs)
    assert set(adata.uns) - set(before.uns) == ADDED_UNS
    assert adata.var.equals(before.var)
    assert set(adata.obsm) == set(before.obsm)
    assert layer_names(adata) == ["counts"]


def test_codes_are_whole_numbers(case, untrained):
    # scvi-tools' own batches turn codes into float32, exact only to 2^24.
    batch = untrained._reader(None)[[3, 1]]
    for key in ("condition", "context", "batch"):
        assert batch[key].dtype.is_signed
        assert not batch[key].dtype.is_floating_point
        assert batch[key].shape == (2,)
    assert all(untrained.adata.obs[column].dtype == np.int64 for column in ADDED)


def _relabelled(simulated, kind):
    """Return the screen with numbers for names: "0" is the control."""
    adata = simulated.copy()
    names = adata.obs["perturbation"].astype(str)
    adata = adata[~names.str.contains(r"\+", regex=True)].copy()
    names = adata.obs["perturbation"].astype(str)
    numbers = names.map({name: i for i, name in enumerate(sorted(set(names)))})
    kinds = {
        "int": numbers.astype(int),
        "str": numbers.astype(str).astype(object),
        "categorical": numbers.astype(str).astype("category"),
        "categorical of int": numbers.astype(int).astype("category"),
    }
    adata.obs["perturbation"] = kinds[kind]
    return adata


def test_numbers_text_and_categories_give_equal_results(case, simulated):
    made = []
    for kind in ("int", "str", "categorical", "categorical of int"):
        setup = {**SETUP, "control": 0 if kind == "int" else "0"}
        model = make_model(case, _relabelled(simulated, kind), setup=setup)
        fit(case, model, max_epochs=1)
        made.append((model, model.sample(["3", "0"], n_samples=6)))
    for model, cells in made[1:]:
        assert model._screen.table == made[0][0]._screen.table
        assert cells.obs.equals(made[0][1].obs)
        np.testing.assert_array_equal(dense(cells.X), dense(made[0][1].X))


def test_number_never_trained_on_is_unknown(case, simulated):
    # A categorical field of scvi-tools takes an unseen integer 0 for the first category.
    adata = _relabelled(simulated, "int")
    adata.obs["perturbation"] += 1
    model = fit(case, make_model(case, adata, setup={**SETUP, "control": "1"}), max_epochs=1)
    with pytest.raises(UnknownPerturbationError, match="'0'"):
        model.sample(["0"])
    new = adata[:5].copy()
    new.obs["perturbation"] = 0
    with pytest.raises(UnknownPerturbationError, match="'0'"):
        getattr(model, case.likelihood)(new)


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda x: x.log1p(), "log-normalised"),
        (lambda x: x - sparse.csr_matrix(x.mean(0)[np.zeros(x.shape[0], int)]), "negative"),
        (lambda x: x.toarray() + 0.5, "not whole"),
        (lambda x: x * np.nan, "NaN"),
    ],
    ids=["log", "scaled", "half", "nan"],
)
def test_other_values_than_counts_are_refused_and_the_counts_pointed_at(case, screen, spoil, found):
    counts = screen.X.copy()
    screen.X = spoil(counts)
    with pytest.raises(SchemaError, match=rf"adata\.X has .*{found}"):
        case.model.setup_anndata(screen, **SETUP)
    screen.layers["raw"] = counts
    with pytest.raises(SchemaError, match=r"pass layer='raw'"):
        case.model.setup_anndata(screen, **SETUP)
    case.model.setup_anndata(screen, layer="raw", **SETUP)


def test_missing_columns_and_layers_are_named(case, screen):
    with pytest.raises(SchemaError, match=r"Layer 'spliced' was not found"):
        case.model.setup_anndata(screen, layer="spliced")
    with pytest.raises(SchemaError, match=r"'guide' is not in adata.obs.*'perturbation'"):
        case.model.setup_anndata(screen, perturbation_key="guide")
    with pytest.raises(SchemaError, match=r"'donor' is not in adata.obs"):
        case.model.setup_anndata(screen, context_keys=["cell_type", "donor"])
    with pytest.raises(SchemaError, match=r"'n_counts' is not in adata.obs"):
        case.model.setup_anndata(screen, library_key="n_counts")
    with pytest.raises(SchemaError, match=r"No control cell.*'non-targeting'.*control="):
        case.model.setup_anndata(screen, control="non-targeting")


def test_missing_labels_are_counted(case, screen):
    screen.obs.loc[screen.obs_names[:3], "cell_type"] = np.nan
    with pytest.raises(SchemaError, match=r"obs\['cell_type'\] has 3 missing labels"):
        case.model.setup_anndata(screen, **SETUP)
    screen.obs.loc[screen.obs_names[:4], "perturbation"] = np.nan
    with pytest.raises(SchemaError, match=r"perturbation.*4"):
        case.model.setup_anndata(screen, batch_key="batch")


def test_views_are_not_registered(case, simulated):
    with pytest.raises(ValueError, match=r"copy\(\)"):
        case.model.setup_anndata(simulated[:200], **SETUP)


def test_registration_can_be_pickled(case, untrained):
    registry = pickle.loads(pickle.dumps(untrained.adata_manager.registry))
    again = case.model(untrained.adata, **case.init)
    assert registry["setup_args"] == untrained.adata_manager.registry["setup_args"]
    assert type(again._screen).from_registry(registry) == untrained._screen


def test_models_on_one_screen_do_not_disturb_each_other(case, screen):
    first = make_model(case, screen)
    second = make_model(case, screen, setup={"batch_key": "cell_type"})
    fit(case, first, max_epochs=1)
    fit(case, second, max_epochs=1)
    assert first._screen.keys.context == ("cell_type",)
    assert second._screen.keys.context == ()
    assert set(first.sample([SINGLE], n_samples=3).obs) >= {"cell_type", "batch"}
    batches = first._reader(None).codes["batch"]
    np.testing.assert_array_equal(batches, screen.obs["batch"].astype(str).factorize(sort=True)[0])


def test_screen_that_was_harmonised_needs_no_arguments(case, simulated):
    raw = AnnData(simulated.X.copy(), obs=simulated.obs[["cell_type", "batch"]].copy())
    raw.var_names = simulated.var_names
    raw.obs["gene"] = simulated.obs["perturbation"].astype(str).replace("control", "NT")
    adata = harmonize(raw, {"perturbation": "gene", "cell_type": "cell_type"}, control="NT")
    model = fit(case, make_model(case, adata, setup={}), max_epochs=1)
    cells = model.sample([PAIR, "control"], n_samples=3)
    assert set(cells.obs["perturbation"]) == {PAIR, "control"}
    assert "cell_type" in cells.obs


def test_library_sizes_can_be_registered(case, screen):
    # A file that holds some of the genes: its rows do not sum to the library size.
    screen.obs["n_counts"] = 4.0 * screen.obs["library_size"].to_numpy(float)
    model = make_model(case, screen, setup={**SETUP, "library_key": "n_counts"})
    fit(case, model, max_epochs=20)
    cells = model.sample(["control"], n_samples=300)
    wanted = screen.obs["library_size"].loc[cells.obs["reference_cell"]].to_numpy(float)
    drawn = np.asarray(cells.X.sum(axis=1)).ravel()
    assert abs(drawn.mean() / wanted.mean() - 1) < 0.1
    screen.obs["n_counts"] = 0.0
    with pytest.raises(SchemaError, match=rf"not positive in {screen.n_obs} cells"):
        case.model.setup_anndata(screen, library_key="n_counts")


@pytest.mark.parametrize("column", ["batch", "cell_type"])
def test_boolean_and_number_labels_work(case, screen, column):
    screen.obs[column] = pd.factorize(screen.obs[column])[0] == 1
    model = fit(case, make_model(case, screen), max_epochs=1)
    asked = pd.DataFrame({"perturbation": [SINGLE], column: [True]})
    assert set(model.sample(asked, n_samples=3).obs[column]) == {"True"}


def test_numbers_may_be_read_as_floats_later(case, screen):
    numbers = pd.factorize(screen.obs["cell_type"])[0] + 1
    screen.obs["cell_type"] = numbers
    names = screen.obs["perturbation"].astype(str)
    screen.obs["perturbation"] = pd.factorize(names.where(names != "control", ""), sort=True)[0]
    model = make_model(case, screen, setup={**SETUP, "context_keys": "cell_type", "control": 0.0})
    assert model._screen.keys.context == ("cell_type",)
    fit(case, model, max_epochs=1)
    wanted = model.sample(pd.DataFrame({"perturbation": [1], "cell_type": [2]}), n_samples=9)
    asked = pd.DataFrame({"perturbation": [1.0], "cell_type": [2.0]})
    again = model.sample(asked, n_samples=9)
    assert again.obs.equals(wanted.obs)
    reference = screen[screen.obs["perturbation"] == 0].copy()
    reference.obs[["cell_type", "perturbation"]] = reference.obs[
        ["cell_type", "perturbation"]
    ].astype(float)
    cells = model.sample(asked, reference=reference, n_samples=9)
    assert set(cells.obs["cell_type"]) == {"2"}
    np.testing.assert_array_equal(dense(again.X), dense(wanted.X))
