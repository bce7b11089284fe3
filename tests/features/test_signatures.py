"""Responses in other screens as features, and what a screen lacks."""

from __future__ import annotations

import copy
import pickle
import warnings

import anndata
import numpy as np
import pandas as pd
import pytest

from scvi_perturb import _state
from scvi_perturb._core import SchemaError
from scvi_perturb.data import ScreenKeys, SimulatorConfig, simulate_screen
from scvi_perturb.features import PerturbationFeatures, from_signatures, rename_genes

CONFIG = SimulatorConfig(n_perturbations=6, n_combinations=2, n_contexts=2, control_fraction=0.3)


@pytest.fixture(scope="module")
def screen():
    return simulate_screen(n_cells=1500, n_genes=40, seed=0, config=CONFIG)


@pytest.fixture(scope="module")
def signatures(screen):
    return from_signatures(screen, keys=ScreenKeys(context=("cell_type",)), n_components=4)


def effects_of(table):
    """Return changes as a screen of effects."""
    return labelled(table.to_numpy(), table.index)


def labelled(values, labels):
    cells = [f"cell_{i}" for i in range(len(labels))]
    return anndata.AnnData(values, obs=pd.DataFrame({"perturbation": list(labels)}, index=cells))


def test_responses_are_mean_changes_on_their_leading_components(screen):
    keys = ScreenKeys(context=("cell_type",))
    singles = {name for name in screen.obs["perturbation"].astype(str) if "+" not in name}
    table = from_signatures(screen, keys=keys, n_components=50)
    assert set(table.index) == singles - {"control"}
    obs, counts = screen.obs, np.asarray(screen.to_df(), float)

    def profile(rows):
        return np.log1p(1e4 * counts[rows].sum(axis=0) / counts[rows].sum())

    expected = []
    for name in table.index:
        weighted = np.zeros(screen.n_vars)
        own = (obs["perturbation"] == name).to_numpy()
        for context in obs["cell_type"].unique():
            there = (obs["cell_type"] == context).to_numpy()
            control = there & (obs["perturbation"] == "control").to_numpy()
            if (own & there).any():
                weighted += (own & there).sum() * (profile(own & there) - profile(control))
        expected.append(weighted / own.sum())
    centred = np.array(expected) - np.mean(expected, axis=0)
    # all components: products of vectors are those of the changes
    np.testing.assert_allclose(table @ table.T, centred @ centred.T, atol=1e-6)


def test_changes_are_taken_as_they_are():
    changes = pd.DataFrame(np.random.default_rng(0).normal(size=(4, 7)), index=list("ABBC"))
    changes.loc["D"] = 0.0
    table = from_signatures(effects_of(changes), values="effects")
    mean = changes.groupby(level=0).mean()
    centred = mean - mean.mean()
    np.testing.assert_allclose(table @ table.T, centred @ centred.T, atol=1e-9)
    assert table.shape == (4, 3)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        (pd.DataFrame(np.eye(2), index=["A", "B"]), {"values": "effects"}, "2 perturbations have"),
        (pd.DataFrame(np.ones((3, 2)), index=list("ABC")), {"values": "effects"}, "same response"),
        (pd.DataFrame([[np.nan]] * 3, index=list("ABC")), {"values": "effects"}, "not finite"),
        (pd.DataFrame(np.eye(3) / 2, index=list("ABC")), {}, 'raw.*pass values="effects"'),
    ],
)
def test_screens_without_responses_are_refused(changes, options, message):
    with pytest.raises(SchemaError, match=message):
        from_signatures(effects_of(changes), **options)


# The report ------------------------------------------------------------------------------------


def test_responses_of_the_same_cells_are_transductive(screen, signatures):
    features = PerturbationFeatures({"elsewhere": signatures})
    some = screen[::5].copy()
    some = some[~some.obs["perturbation"].isin(["pert_01"])].copy()
    with pytest.warns(UserWarning, match="holds responses measured in cells of this screen"):
        table = features.report(some).set_index("perturbation")
    assert set(table["elsewhere"]) == {"transductive"}
    assert table["n_cells"].sum() == (some.obs["perturbation"] != "control").sum()

    other = simulate_screen(n_cells=600, n_genes=20, seed=1, config=CONFIG)
    other.obs_names = [f"other_{name}" for name in other.obs_names]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(features.report(other)["elsewhere"]) == {"present"}


def test_renamed_responses_know_their_cells_again(screen, signatures):
    symbols = {name: name.upper() for name in signatures.index}
    features = PerturbationFeatures({"elsewhere": rename_genes(signatures, symbols)})
    renamed = screen.copy()
    renamed.obs["perturbation"] = renamed.obs["perturbation"].astype(str).replace(symbols)
    with pytest.warns(UserWarning, match="measured in cells of this screen"):
        table = features.report(renamed).set_index("perturbation")
    assert (table.loc[list(symbols.values()), "elsewhere"] == "transductive").all()


def test_the_report_says_what_is_missing_and_what_is_spelt_alike():
    labels = ["control", "MYC", "JAK2", "STAT-1", "MYC+JAK2", "MYC+STAT-1", "MYC"]
    adata = labelled(np.ones((7, 1)), labels)
    features = PerturbationFeatures(
        {
            "sets": {"MYC": [1.0], "STAT1": [0.0]},
            "text": {"MYC": [1.0], "JAK2": [2.0]},
        }
    )
    table = features.report(adata).set_index("perturbation")
    assert table["sets"].to_dict() == {
        "JAK2": "missing", "MYC": "present", "STAT-1": "missing",
        "JAK2+MYC": "partly", "MYC+STAT-1": "partly",
    }  # fmt: skip
    assert table.loc["JAK2+MYC", "text"] == "present"
    assert table.loc["MYC", "n_cells"] == 2
    assert table.loc["MYC+STAT-1", ["unknown", "near"]].tolist() == ["STAT-1", "STAT1"]
    with pytest.raises(SchemaError, match="None of the 3 perturbations of the screen has features"):
        PerturbationFeatures({"sets": {"ENSG1": [1.0]}}).report(adata)


def test_reports_without_an_answer_are_refused():
    adata = labelled(np.ones((2, 1)), ["control", "MYC"])
    with pytest.raises(SchemaError, match=r"\['n_cells'\] have names of columns of the report"):
        PerturbationFeatures({"n_cells": {"MYC": [1.0]}}).report(adata)
    with pytest.raises(SchemaError, match="control cells only"):
        PerturbationFeatures({"sets": {"MYC": [1.0]}}).report(adata[:1])


# Provenance ------------------------------------------------------------------------------------


def test_provenance_is_kept_by_files_copies_subsets_and_unions(screen, signatures):
    features = PerturbationFeatures({"elsewhere": signatures, "own": {"pert_01": [1.0]}})
    made = features.provenance
    assert made["elsewhere"]["made_by"] == "from_signatures"
    assert made["own"] == {"made_by": "table", "source": "vectors by name"}
    text, arrays = _state.pack(features)
    others = PerturbationFeatures({"more": {"pert_02": [1.0]}})
    for again in (
        _state.unpack(text, arrays, where="here"),
        copy.deepcopy(features),
        pickle.loads(pickle.dumps(features)),
        features.subset(["pert_01", "pert_02"]),
        others.merge(features),
    ):
        assert again.provenance["elsewhere"] == made["elsewhere"]
        with pytest.warns(UserWarning, match="measured in cells of this screen"):
            table = again.report(screen).set_index("perturbation")
        assert table.loc["pert_01", "elsewhere"] == "transductive"
    assert others.merge(features).provenance["more"]["source"] == "vectors by name"


def test_tables_of_two_screens_can_be_put_together(signatures):
    both = pd.concat([signatures, signatures.add_prefix("other_")], axis=1)
    assert PerturbationFeatures({"both": both}).dims == {"both": 8}


def test_a_union_of_one_modality_knows_the_cells_of_both(screen, signatures):
    first = PerturbationFeatures({"elsewhere": signatures.iloc[:3]})
    second = PerturbationFeatures({"elsewhere": signatures.iloc[3:]})
    with pytest.warns(UserWarning, match="for 8 perturbations"):
        first.merge(second).report(screen)


def test_stores_of_older_files_have_no_provenance(signatures):
    features = PerturbationFeatures({"elsewhere": signatures})
    old = object.__new__(PerturbationFeatures)
    for name in ("_columns", "_names", "_present", "_row", "_values"):
        setattr(old, name, getattr(features, name))
    assert old.provenance == {"elsewhere": {}}
    assert old == features
    assert old.subset(["pert_01"]).names == ("pert_01",)
