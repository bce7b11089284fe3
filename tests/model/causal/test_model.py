"""`CausalPerturbVAE`: metadata, counterfactuals, operators, and tables of signatures."""

from __future__ import annotations

import warnings
from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

from scvi_perturb import (
    CausalConfig,
    CausalPerturbVAE,
    NotTrainedError,
    PerturbationFeatures,
    SchemaError,
    UnknownPerturbationError,
)
from scvi_perturb.data import perturbation_features
from scvi_perturb.data import split as data_split
from scvi_perturb.testing import FEATURED, NEW_PAIR, OTHER, SINGLE, controls, dense, make_screen

CONFIG = CausalConfig(n_identity=3, n_state=3, n_technical=2)
SIZE = {"n_hidden": 16, "n_layers": 1, "causal": CONFIG}
TRAIN = {"batch_size": 64, "accelerator": "cpu", "enable_progress_bar": False}
COLUMNS = {"context_keys": "cell_type", "batch_key": "batch"}
SETUP = COLUMNS | {"metadata_keys": {"identity": ["tissue", "age"], "technical": "platform"}}
LATENTS = [*(f"identity_{i}" for i in range(3)), *(f"state_{i}" for i in range(3)), "depth",
           "technical_0", "technical_1"]  # fmt: skip


def screen(**changes):
    """Return a screen with metadata of which a part is missing; `SINGLE` edits the first gene."""
    adata = make_screen(**changes)
    random = np.random.default_rng(0)
    first = (adata.obs["cell_type"] == adata.obs["cell_type"].iloc[0]).to_numpy()
    tissue = pd.Series(np.where(first, "blood", "skin"), index=adata.obs_names)
    adata.obs["tissue"] = pd.Categorical(tissue.mask(random.random(len(tissue)) < 0.2))
    age = np.where(first, 30.0, 60.0) + random.standard_normal(len(first))
    adata.obs["age"] = np.where(random.random(len(age)) < 0.2, np.nan, age)
    adata.obs["platform"] = np.where(np.arange(len(first)) % 2, "10x", "drop")
    adata.var_names = [SINGLE, *adata.var_names[1:]]
    return adata


@pytest.fixture(scope="module")
def simulated():
    return screen()


@pytest.fixture(scope="module")
def trained(simulated):
    features = PerturbationFeatures({"embedding": perturbation_features(simulated)["embedding"]})
    CausalPerturbVAE.setup_anndata(simulated, **SETUP)
    model = CausalPerturbVAE(simulated, features=features, **SIZE)
    model.train(20, **TRAIN)
    with torch.no_grad():  # large enough to be seen
        model.module.representation.on_target.fill_(-1.0)
    return model


def fresh(adata, setup=SETUP, **init):
    CausalPerturbVAE.setup_anndata(adata, **setup)
    return CausalPerturbVAE(adata, **{**SIZE, **init})


def state(adata):
    return adata.obsm["X_latent"][:, 3:6]


# Registration -------------------------------------------------------------------------------


def test_metadata_belong_to_their_group(trained):
    columns = trained.module.representation.columns
    assert columns == {
        "identity": ("cell_type", "tissue", "age"),
        "technical": ("batch", "platform"),
    }


@pytest.mark.parametrize(
    "keys",
    [{"identity": ["cell_type"]}, {"technical": "batch"}, {"identity": "age", "technical": "age"}],
    ids=["context", "batch", "both groups"],
)
def test_a_column_is_registered_once(simulated, keys):
    with pytest.raises(SchemaError, match="are registered twice"):
        CausalPerturbVAE.setup_anndata(simulated.copy(), **COLUMNS, metadata_keys=keys)


def test_metadata_belong_to_no_other_group(simulated):
    with pytest.raises(ValueError, match=r"'state'.*'identity', 'technical'"):
        CausalPerturbVAE.setup_anndata(simulated.copy(), metadata_keys={"state": "age"})
    with pytest.raises(SchemaError, match=r"'height' is not in adata\.obs"):
        CausalPerturbVAE.setup_anndata(simulated.copy(), metadata_keys={"identity": "height"})


def test_untrained_models_answer_nothing(simulated):
    model = fresh(simulated.copy())
    for ask in (
        model.get_perturbation_effects,
        model.predict_metadata,
        lambda: model.counterfactual(None, [SINGLE]),
        lambda: model.sample(metadata=pd.DataFrame({"age": [1.0]})),
    ):
        with pytest.raises(NotTrainedError):
            ask()


# Draws from metadata ------------------------------------------------------------------------


def test_screen_without_perturbations_draws_cells_of_metadata():
    adata = screen(n_cells=150)
    adata = adata[adata.obs["perturbation"] == "control"].copy()
    del adata.obs["perturbation"]
    model = fresh(adata)
    model.train(2, **TRAIN)
    asked = pd.DataFrame({"cell_type": adata.obs["cell_type"].iloc[:1].tolist(), "age": np.nan})
    cells = model.sample(metadata=asked, n_samples=7)
    assert cells.shape == (7, adata.n_vars)
    assert (cells.X.data == np.rint(cells.X.data)).all()
    assert cells.X.sum() > 0
    assert cells.obs["cell_type"].tolist() == asked["cell_type"].tolist() * 7
    assert cells.obs["draw"].tolist() == list(range(7))
    with pytest.raises(SchemaError, match=r"columns \['perturbation'\]"):
        model.sample(metadata=pd.DataFrame({"perturbation": [SINGLE]}))


def test_metadata_of_each_row_are_those_of_its_cells(trained, simulated):
    types = sorted(simulated.obs["cell_type"].unique())
    asked = pd.DataFrame({"cell_type": [types[0], types[1], None], "perturbation": SINGLE})
    cells = trained.sample(metadata=asked, n_samples=60, library_size=2000.0)
    total = np.asarray(cells.X.sum(1)).ravel()
    # Counts of 30 genes vary by 1 / sqrt(2000) by themselves, more with their dispersion.
    assert np.mean(total) == pytest.approx(2000, rel=0.1)
    cells.obs["cell_type"] = types[0]  # it must be a label; the counts say it
    cells.obs["batch"] = simulated.obs["batch"].iloc[0]
    identity = trained.get_latent_representation(cells, group="identity").reshape(3, 60, -1)
    own = trained.get_latent_representation(group="identity")
    label = simulated.obs["cell_type"].to_numpy()
    centres = [own[label == name].mean(0) for name in types]
    for i in range(2):
        drawn = identity[i].mean(0)
        near = [np.linalg.norm(drawn - centre) for centre in centres]
        assert np.argmin(near) == i


def test_sampling_from_metadata_is_reproducible(trained):
    asked = pd.DataFrame({"tissue": ["skin"], "age": [50.0], "perturbation": [np.nan]})
    one, same, other = (trained.sample(metadata=asked, n_samples=4, seed=s) for s in (1, 1, 2))
    assert (one.X != same.X).nnz == 0
    assert (one.X != other.X).nnz > 0


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ({"height": [1.8]}, r"columns \['height'\].*'age', 'batch'"),
        ({"tissue": ["bone"]}, r"tissue \['bone'\] was never met; .*'blood', 'skin'"),
        ({"batch": ["b9"]}, r"batch \['b9'\] was never met"),
        ({"age": []}, "no row"),
    ],
)
def test_metadata_that_are_not_known_are_named(trained, asked, match):
    with pytest.raises(SchemaError, match=match):
        trained.sample(metadata=pd.DataFrame(asked))


def test_unknown_perturbations_of_metadata_are_named(trained):
    with pytest.raises(UnknownPerturbationError, match="nothing"):
        trained.sample(metadata=pd.DataFrame({"perturbation": ["nothing"]}))


def test_ask_with_one_of_conditions_and_metadata(trained, simulated):
    table = pd.DataFrame({"age": [40.0]})
    for wrong in (
        {},
        {"conditions": [SINGLE], "metadata": table},
        {"metadata": table, "reference": controls(simulated)},
    ):
        with pytest.raises(SchemaError, match="Ask with `conditions`"):
            trained.sample(**wrong)
    for wrong, match in ((0, "above 0"), ("small", "'predicted', 'reference'")):
        with pytest.raises(ValueError, match=match):
            trained.sample(metadata=table, library_size=wrong)


# Conditioning -------------------------------------------------------------------------------


def test_what_is_kept_from_the_reference_is_kept(trained, simulated):
    reference = controls(simulated)
    groups = ("identity", "state", "technical")
    own = {g: trained.get_latent_representation(reference, group=g) for g in groups}
    place = pd.Series(np.arange(reference.n_obs), index=reference.obs_names)

    def kept(group, conditioning):
        cells = trained.sample(
            ["control"], reference=reference, n_samples=400, library_size=4000.0,
            conditioning=conditioning,
        )  # fmt: skip
        cells.obs["platform"] = "10x"
        again = trained.get_latent_representation(cells, group=group)
        rows = place[cells.obs["reference_cell"]].to_numpy()
        dimensions = range(int(group == "technical"), own[group].shape[1])
        return np.mean([np.corrcoef(again[:, j], own[group][rows, j])[0, 1] for j in dimensions])

    # A correlation of 400 cells without relation has a standard error of 0.05.
    for group in groups:
        others = tuple(g for g in groups if g != group)
        assert kept(group, groups) > kept(group, others) + 4 * 0.05


def test_groups_that_are_not_there_are_named(trained):
    with pytest.raises(ValueError, match=r"\['depth'\]; choose among 'identity', 'state'"):
        trained.sample([SINGLE], conditioning=("depth", "state"))
    with pytest.raises(ValueError, match="choose among"):
        trained.predict([SINGLE], conditioning="none")


# Verbs on given cells -----------------------------------------------------------------------


def test_control_stays_what_it_is(trained, simulated):
    cells = controls(simulated)
    result = trained.counterfactual(cells, ["control"], output="mean")
    latent = torch.from_numpy(trained.get_latent_representation(cells))
    np.testing.assert_allclose(result.obsm["X_latent"], latent, rtol=1e-5, atol=1e-5)
    library = torch.from_numpy(np.asarray(cells.X.sum(1)).ravel())
    with torch.inference_mode():
        mean = trained.module.representation.decode(latent, library).mean
    np.testing.assert_allclose(dense(result.X), mean.numpy(), rtol=1e-4, atol=1e-5)
    assert result.obs["reference_cell"].tolist() == cells.obs_names.tolist()


def test_treated_cells_become_like_controls(trained, simulated):
    own = trained.get_latent_representation(group="state")
    label = simulated.obs["perturbation"].to_numpy()
    centre = own[label == "control"].mean(0)
    for name in (SINGLE, OTHER):
        rows = np.flatnonzero(label == name)
        freed = trained.counterfactual(None, ["control"], indices=rows, output="mean")
        before, after = (np.linalg.norm(x.mean(0) - centre) for x in (own[rows], state(freed)))
        assert after < before
        assert freed.n_obs == len(rows)
        assert freed.obs["reference_cell"].tolist() == simulated.obs_names[rows].tolist()


def test_counts_are_drawn_around_the_mean(trained, simulated):
    cells = controls(simulated)
    mean = trained.counterfactual(cells, [SINGLE, NEW_PAIR], output="mean")
    counts = trained.counterfactual(cells, [SINGLE, NEW_PAIR], seed=3)
    assert counts.obs["perturbation"].tolist() == [SINGLE] * len(cells) + [NEW_PAIR] * len(cells)
    assert (counts.X.data == np.rint(counts.X.data)).all()
    total, expected = counts.X.sum(), dense(mean.X).sum()
    dispersion = 10 * trained.module.representation.decoder.log_dispersion[0].detach().numpy()
    variance = (dense(mean.X) + dense(mean.X) ** 2 / np.exp(dispersion)).sum()
    assert abs(total - expected) < 5 * variance**0.5
    assert mean.uns["scvi_perturb"]["units"] == "expected counts"


def test_sums_of_operators(trained, simulated):
    cells = controls(simulated)[:8].copy()
    sums = {
        "nothing": {SINGLE: 0.0},
        "twice": {SINGLE: 2.0},
        "both": {SINGLE: 1.0, OTHER: 1.0},
        "less": {OTHER: 1.0, SINGLE: -1.0},
    }
    made = trained.counterfactual(cells, sums, output="mean")
    asked = trained.counterfactual(cells, ["control", SINGLE, NEW_PAIR, OTHER], output="mean")
    assert made.obs["perturbation"].unique().tolist() == list(sums)
    nothing, twice, both, less = dense(made.X).reshape(4, 8, -1)
    control, _, pair, _ = dense(asked.X).reshape(4, 8, -1)
    np.testing.assert_allclose(nothing, control, rtol=1e-5)
    np.testing.assert_allclose(both, pair, rtol=1e-5)
    moved, known = (state(x).reshape(4, 8, -1) for x in (made, asked))
    one, other = known[1] - known[0], known[3] - known[0]
    np.testing.assert_allclose(moved[1] - known[0], 2 * one, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(moved[3] - known[0], other - one, rtol=1e-3, atol=1e-5)
    # The edited gene follows: its share of the other genes, beside what the state does.
    assert (twice[:, 0] < control[:, 0]).all()
    for wrong in ({"x": {}}, {"x": {SINGLE: np.inf}}):
        with pytest.raises(SchemaError, match="expected finite weights"):
            trained.counterfactual(cells, wrong)
    with pytest.raises(UnknownPerturbationError, match="nothing"):
        trained.counterfactual(cells, {"x": {"nothing": 1.0}})
    assert np.isfinite(less).all()


def test_counterfactuals_are_of_conditions_alone(trained, simulated):
    asked = pd.DataFrame(
        {"perturbation": [SINGLE], "cell_type": simulated.obs["cell_type"].iloc[0]}
    )
    with pytest.raises(SchemaError, match="ask with conditions alone"):
        trained.counterfactual(None, asked)
    with pytest.raises(ValueError, match="'counts', 'mean'"):
        trained.counterfactual(None, [SINGLE], output="median")
    with pytest.raises(SchemaError, match="No cells were given"):
        trained.counterfactual(None, [SINGLE], indices=[])


def test_a_line_ends_where_the_conditions_are(trained, simulated):
    cells = controls(simulated)
    line = trained.interpolate(OTHER, SINGLE, n_steps=3, reference=cells, n_samples=None)
    n = cells.n_obs
    assert line.obs["fraction"].tolist() == [0.0] * n + [0.5] * n + [1.0] * n
    order = line.obs["reference_cell"].iloc[:n].tolist()
    assert sorted(order) == sorted(cells.obs_names)
    ends = trained.counterfactual(cells[order].copy(), [OTHER, SINGLE], output="mean")
    first, middle, last = dense(line.X).reshape(3, n, -1)
    np.testing.assert_allclose(np.concatenate([first, last]), dense(ends.X), rtol=1e-4, atol=1e-5)
    assert not np.allclose(first, middle, rtol=1e-2)
    points = state(line).reshape(3, n, -1)
    np.testing.assert_allclose(points[1], (points[0] + points[2]) / 2, atol=1e-5)


def test_a_line_has_two_ends(trained):
    with pytest.raises(ValueError, match="n_steps=1; expected at least 2"):
        trained.interpolate("control", SINGLE, n_steps=1)
    with pytest.raises(ValueError, match="'counts', 'mean'"):
        trained.interpolate("control", SINGLE, output="both")


def test_population_of_few_cells_is_drawn_towards_the_centre(trained, simulated):
    spread, n = trained.identity_spread_, 400
    one = controls(simulated)[:1].copy()
    many = anndata.concat([one] * 50, index_unique="-")
    own = trained.get_latent_representation(one, group="identity")[0]
    within, between, centre = (spread[k] for k in ("within", "between", "centre"))
    length = []
    for cells, size in ((one, 1), (many, 50)):
        drawn = trained.transfer(cells, [SINGLE], n_samples=n, output="mean")
        identity = drawn.obsm["X_latent"][:, :3]
        expected = centre + between @ np.linalg.solve(between + within / size, own - centre)
        error = np.sqrt(np.diag(within) / n)
        assert (np.abs(identity.mean(0) - expected) < 4 * error + 1e-4).all()
        # The standard error of a variance of n normal values is sqrt(2 / n) of it.
        ratio = identity.var(0, ddof=1) / np.diag(within)
        assert (np.abs(ratio - 1) < 4 * np.sqrt(2 / n)).all()
        away = expected - centre
        length.append(away @ np.linalg.solve(between, away))
    assert length[0] < length[1]


def test_transferred_cells_are_counts_of_the_conditions(trained, simulated):
    cells = trained.transfer(controls(simulated)[:1].copy(), [SINGLE, NEW_PAIR], n_samples=5)
    assert (cells.X.data == np.rint(cells.X.data)).all()
    assert cells.obs["perturbation"].tolist() == [SINGLE] * 5 + [NEW_PAIR] * 5
    with pytest.raises(ValueError, match="'counts', 'mean'"):
        trained.transfer(controls(simulated), [SINGLE], output="both")


def test_labels_without_training_cells_are_warned_of(simulated):
    adata = simulated.copy()
    made = data_split(adata, "cells", seed=0)
    first = adata.obs["cell_type"].iloc[0]
    held = np.flatnonzero(adata.obs["cell_type"] == first)
    made = replace(
        made,
        train=np.setdiff1d(made.train, held),
        validation=np.setdiff1d(made.validation, held),
        test=np.union1d(made.test, held),
    )
    model = fresh(adata, COLUMNS)
    model.train(2, split=made, **TRAIN)
    others = sorted(set(adata.obs["cell_type"]) - {first})
    with pytest.warns(UserWarning, match=f"No training cell has cell_type \\['{first}'\\]"):
        model.sample(metadata=pd.DataFrame({"cell_type": [first, others[0]]}), n_samples=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.sample(metadata=pd.DataFrame({"cell_type": [others[0], None]}), n_samples=2)


@pytest.mark.parametrize("verb", ["anomaly_scores", "log_likelihood_bound"])
def test_number_of_latents_is_checked(trained, verb):
    with pytest.raises(ValueError, match="n_samples=0 is out of range"):
        getattr(trained, verb)(indices=[0], n_samples=0)


# Operators as tables ------------------------------------------------------------------------


def test_effects_of_all_known_perturbations(trained, simulated):
    effects = trained.get_perturbation_effects()
    names = trained.get_perturbation_representation().index.tolist()
    assert effects.obs["perturbation"].tolist() == names
    assert effects.shape == (len(names), simulated.n_vars)
    np.testing.assert_allclose(
        effects.obs["norm"], np.linalg.norm(effects.obsm["operator"], axis=1), rtol=1e-5
    )
    assert effects.obs["responders"].between(0, 1).all()
    known = (effects.obs["perturbation"] != FEATURED).to_numpy()
    lower, upper, std = (effects.layers[k] for k in ("lower", "upper", "std"))
    assert (lower[known] <= effects.X[known]).all()
    assert (effects.X[known] <= upper[known]).all()
    assert (std[known] > 0).all()
    assert np.isnan(lower[~known]).all()
    assert np.isnan(effects.obs["norm_error"].to_numpy()[~known]).all()
    assert np.isfinite(effects.X).all()


def test_operator_is_the_vector_bent_by_the_mean_identity(trained, simulated):
    effects = trained.get_perturbation_effects([SINGLE, OTHER])
    rows = np.intersect1d(
        trained.train_indices, np.flatnonzero(simulated.obs["perturbation"] == "control")
    )
    identity = trained.get_latent_representation(group="identity")[rows].mean(0)
    vectors = trained.get_perturbation_representation([SINGLE, OTHER]).to_numpy()
    operators = trained.module.representation.operators
    spread = operators.cosines.numpy()
    bend = spread @ np.diag(1 + operators.bend.weight.detach().numpy() @ identity) @ spread.T
    expected = vectors @ bend
    np.testing.assert_allclose(effects.obsm["operator"], expected, rtol=1e-4, atol=1e-5)


def test_wider_intervals_cover_more(trained):
    narrow, wide = (trained.get_perturbation_effects([SINGLE], interval=q) for q in (0.5, 0.99))
    ratio = (wide.layers["upper"] - wide.X) / (narrow.layers["upper"] - narrow.X)
    # Quantiles of the normal distribution: 2.576 and 0.674.
    np.testing.assert_allclose(ratio, 2.5758 / 0.6745, rtol=1e-3)
    np.testing.assert_allclose(wide.X, narrow.X)


def test_effects_of_each_context(trained, simulated):
    types = sorted(simulated.obs["cell_type"].unique())
    effects = trained.get_perturbation_effects([SINGLE, OTHER], by_context=True)
    pairs = list(zip(effects.obs["cell_type"], effects.obs["perturbation"], strict=True))
    assert pairs == [(c, p) for c in types for p in (SINGLE, OTHER)]
    reference = controls(simulated)
    reference = reference[reference.obs["cell_type"] == types[1]].copy()
    own = trained.get_perturbation_effects([SINGLE], reference=reference)
    again = trained.get_perturbation_effects([SINGLE], reference=reference, by_context=True)
    np.testing.assert_allclose(own.X, again.X)


def test_effects_of_sums(trained):
    sums = {"both": {SINGLE: 1.0, OTHER: 1.0}, "none": {SINGLE: 0.0}}
    made = trained.get_perturbation_effects(sums)
    asked = trained.get_perturbation_effects([NEW_PAIR])
    np.testing.assert_allclose(made.X[0], asked.X[0], rtol=1e-3, atol=1e-5)
    assert np.abs(made.X[1]).max() < 1e-5
    assert made.obs["norm"].iloc[1] == 0
    np.testing.assert_allclose(made.obs["norm_error"].iloc[1], 0)


def test_operators_are_those_of_the_network(trained):
    table = trained.get_perturbation_representation()
    assert FEATURED in table.index
    assert table.columns.tolist() == ["state_0", "state_1", "state_2"]
    one = trained.get_perturbation_representation([OTHER, FEATURED])
    pd.testing.assert_frame_equal(one, table.loc[[OTHER, FEATURED]])
    assert (np.linalg.norm(table, axis=1) > 0).all()
    with pytest.raises(UnknownPerturbationError, match="nothing"):
        trained.get_perturbation_representation(["nothing"])


# Metadata, likelihood, latents --------------------------------------------------------------


def test_metadata_are_predicted_from_cells(trained, simulated):
    adata = simulated.copy()
    found = trained.predict_metadata(adata, key_added="told")
    fields = {"cell_type", "tissue", "age", "batch", "platform", "perturbation"}
    assert set(found) == fields
    for field in fields - {"age"}:
        table = found[field]
        np.testing.assert_allclose(table.sum(axis=1), 1.0, rtol=1e-5)
        assert table.index.tolist() == adata.obs_names.tolist()
        assert (adata.obs[f"told_{field}"].astype(str) == table.idxmax(axis=1)).all()
        np.testing.assert_allclose(adata.obs[f"told_{field}_probability"], table.max(axis=1))
    assert found["age"].columns.tolist() == ["mean", "std"]
    assert (found["age"]["std"] > 0).all()
    np.testing.assert_array_equal(adata.obs["told_age"], found["age"]["mean"])
    # Two types alike often: right by chance in half of the cells, give or take 3 %.
    right = (adata.obs["told_cell_type"].astype(str) == adata.obs["cell_type"].astype(str)).mean()
    assert right > 0.5 + 5 * 0.5 / adata.n_obs**0.5
    there = adata.obs["age"].notna()
    assert np.corrcoef(adata.obs["age"][there], adata.obs["told_age"][there])[0, 1] > 0.5


def test_metadata_that_cannot_be_predicted_are_named(trained):
    chosen = trained.predict_metadata(fields=["age"], indices=[4, 2])
    assert list(chosen) == ["age"]
    assert len(chosen["age"]) == 2
    with pytest.raises(SchemaError, match=r"\['height'\] cannot be predicted.*'age'"):
        trained.predict_metadata(fields=["height", "age"])
    with pytest.raises(ValueError, match="leave `indices` out"):
        trained.predict_metadata(indices=[0], key_added="told")


def test_bound_rises_with_the_number_of_latents(trained, simulated):
    adata = simulated.copy()
    few, some, many = (trained.log_likelihood_bound(adata, n_samples=k) for k in (1, 8, 64))
    assert few.mean() < some.mean() < many.mean()
    trained.log_likelihood_bound(adata, n_samples=8, key_added="bound")
    np.testing.assert_array_equal(adata.obs["bound"], some)
    with pytest.raises(ValueError, match="n_samples=0 is out of range"):
        trained.log_likelihood_bound(n_samples=0)


def test_bound_of_a_cell_does_not_depend_on_the_others(trained):
    every = trained.log_likelihood_bound(n_samples=4)
    rows = [30, 2, 7]
    some = trained.log_likelihood_bound(indices=rows, n_samples=4)
    np.testing.assert_allclose(some, every[rows], rtol=1e-5)


def test_anomalies(trained, simulated):
    adata = simulated.copy()
    table = trained.anomaly_scores(adata, n_samples=8, key_added="odd")
    assert table.columns.tolist() == ["surprise", "control_ratio"]
    assert np.isfinite(table).all(axis=None)
    control = (adata.obs["perturbation"] == "control").to_numpy()
    assert (table["control_ratio"][control] == 0).all()
    assert (table["control_ratio"][~control] != 0).any()
    np.testing.assert_array_equal(adata.obs["odd_surprise"], table["surprise"])
    # Cells that did not respond are the ones that controls explain better.
    treated = adata.obs[~control]
    ratio = treated.groupby("truth_responder", observed=True)["odd_control_ratio"].median()
    assert ratio[False] > ratio[True]


def test_latents_by_group(trained, simulated):
    adata = simulated.copy()
    every = trained.get_latent_representation(adata, key_added="all")
    assert every.shape == (adata.n_obs, len(LATENTS))
    parts = [
        trained.get_latent_representation(adata, group=g, key_added=g)
        for g in ("identity", "state", "technical")
    ]
    np.testing.assert_array_equal(np.hstack(parts), every)
    np.testing.assert_array_equal(adata.obsm["technical"], parts[2])
    np.testing.assert_array_equal(adata.obsm["all"], every)
    depth = np.log(np.asarray(adata.X.sum(1)).ravel())
    assert np.corrcoef(parts[2][:, 0], depth)[0, 1] > 0.9999
    with pytest.raises(ValueError, match="'identity', 'state', 'technical'"):
        trained.get_latent_representation(group="depth")
    with pytest.raises(ValueError, match="leave `indices` out"):
        trained.get_latent_representation(indices=[1], key_added="all")


def test_active_units(trained):
    table = trained.active_units_
    assert table.index.tolist() == LATENTS
    assert table["group"].tolist() == ["identity"] * 3 + ["state"] * 3 + ["technical"] * 3
    spread = trained.get_latent_representation(indices=trained.train_indices).var(0, ddof=1)
    assert (table["active"].to_numpy() == (spread > 0.01)).all()
    assert table.loc["depth", "active"]


def test_a_saved_model_answers_the_same(trained, simulated, tmp_path):
    trained.save(tmp_path / "model")
    again = CausalPerturbVAE.load(tmp_path / "model", adata=simulated.copy(), accelerator="cpu")
    pd.testing.assert_frame_equal(again.active_units_, trained.active_units_)
    for name, table in trained.predict_metadata().items():
        pd.testing.assert_frame_equal(again.predict_metadata()[name], table)
    one, two = (m.get_perturbation_effects([SINGLE, FEATURED]) for m in (trained, again))
    np.testing.assert_array_equal(one.X, two.X)
    np.testing.assert_array_equal(one.layers["lower"], two.layers["lower"])
    asked = pd.DataFrame({"tissue": ["skin"], "platform": ["10x"], "age": [40.0]})
    one, two = (m.sample(metadata=asked, n_samples=5) for m in (trained, again))
    assert (one.X != two.X).nnz == 0
    one, two = (m.transfer(controls(simulated), [SINGLE], n_samples=5) for m in (trained, again))
    assert (one.X != two.X).nnz == 0


def test_loadings_are_those_of_the_linear_decoder(trained, simulated):
    with pytest.raises(ValueError, match="decoder='linear' only"):
        trained.get_loadings()
    adata = simulated.copy()
    model = fresh(adata, decoder="linear")
    model.train(1, **TRAIN)
    table = model.get_loadings()
    assert table.index.tolist() == adata.var_names.tolist()
    assert table.columns.tolist() == LATENTS
    assert (table["depth"] == 0).all()
    np.testing.assert_allclose(table.mean(), 0, atol=1e-6)
    latent = torch.zeros(2, len(LATENTS))
    latent[1, LATENTS.index("state_1")] = 1.0
    with torch.inference_mode():
        share = model.module.representation.decode(latent, torch.ones(2)).mean.log()
    change = (share[1] - share[0]).numpy()
    np.testing.assert_allclose(change - change.mean(), table["state_1"], rtol=1e-3, atol=1e-5)


# Signatures ---------------------------------------------------------------------------------

N_GENES = 20


def signatures(*, n_controls):
    """Return log-fold changes of six perturbations in two cell lines, and their truth."""
    random = np.random.default_rng(0)
    names = [f"drug_{i}" for i in range(6)]
    truth = pd.DataFrame(random.standard_normal((6, N_GENES)), index=names)
    rows = [(p, c) for p in names for c in ("A549", "MCF7") for _ in range(8)]
    rows += [("control", c) for c in ("A549", "MCF7") for _ in range(n_controls)]
    obs = pd.DataFrame(rows, columns=["perturbation", "line"])
    obs.index = [f"s{i}" for i in range(len(obs))]
    effect = truth.reindex(obs["perturbation"]).fillna(0.0).to_numpy()
    values = effect + 0.3 * random.standard_normal(effect.shape)
    genes = pd.DataFrame(index=[f"g{i}" for i in range(N_GENES)])
    return AnnData(values.astype(np.float32), obs=obs, var=genes), truth


@pytest.fixture(scope="module", params=[0, 8], ids=["no controls", "controls"])
def of_signatures(request):
    adata, truth = signatures(n_controls=request.param)
    CausalPerturbVAE.setup_signatures(adata, context_keys="line")
    config = CausalConfig(n_identity=2, n_state=6, n_technical=1)
    model = CausalPerturbVAE(adata, n_hidden=16, n_layers=1, causal=config)
    model.train(60, **TRAIN)
    return model, adata, truth


def test_mean_signatures_are_predicted_as_given(of_signatures):
    model, _, truth = of_signatures
    result = model.predict(list(truth.index))
    assert result.uns["scvi_perturb"]["units"] == "as given"
    assert result.obs["perturbation"].tolist() == list(truth.index)
    # A mean of 16 rows of which each value has a standard error of 0.3 / sqrt(16).
    bar = 1 / np.sqrt(1 + 0.3**2 / 16)
    cosine = [np.corrcoef(x, t)[0, 1] for x, t in zip(result.X, truth.to_numpy(), strict=True)]
    assert np.mean(cosine) > 0.9 * bar
    assert (result.layers["lower"] <= result.layers["upper"]).all()


def test_effects_of_signatures_are_in_their_units(of_signatures):
    model, _, truth = of_signatures
    effects = model.get_perturbation_effects()
    assert effects.obs["perturbation"].tolist() == list(truth.index)
    assert effects.uns["scvi_perturb"]["units"] == "change of values as given"
    assert (effects.obs["responders"] == 1).all()


def test_signatures_are_asked_by_context(of_signatures):
    model, _, _ = of_signatures
    asked = pd.DataFrame({"perturbation": "drug_0+drug_1", "line": ["A549", "MCF7"]})
    result = model.predict(asked)
    assert result.n_obs == 2
    assert np.isfinite(result.X).all()
    cells = model.sample(metadata=asked, n_samples=3)
    assert cells.shape == (6, N_GENES)
    assert (dense(cells.X) < 0).any()
    with pytest.raises(SchemaError, match="was never met"):
        model.predict(asked.assign(line="K562"))


def test_saved_models_of_signatures_answer_the_same(of_signatures, tmp_path):
    model, adata, _ = of_signatures
    model.save(tmp_path / "model")
    again = CausalPerturbVAE.load(tmp_path / "model", adata=adata.copy(), accelerator="cpu")
    one, two = (m.predict(["drug_2"], seed=1).X for m in (model, again))
    np.testing.assert_array_equal(one, two)


def test_likelihoods_of_counts_are_not_of_signatures():
    adata, _ = signatures(n_controls=0)
    CausalPerturbVAE.setup_signatures(adata)
    with pytest.raises(ValueError, match=r"likelihood='nb' is one of counts"):
        CausalPerturbVAE(adata, likelihood="nb")
    adata.X[0, 0] = np.nan
    with pytest.raises(SchemaError, match="1 values are not finite"):
        CausalPerturbVAE.setup_signatures(adata)


def test_signatures_start_from_no_control_cells(of_signatures):
    model, adata, _ = of_signatures
    with pytest.raises(SchemaError, match="no control cells to start from"):
        model.sample(["drug_0"])
    with pytest.raises(SchemaError, match="leave `reference` out"):
        model.predict(["drug_0"], reference=adata)
