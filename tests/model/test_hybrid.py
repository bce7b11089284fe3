"""The hybrid: populations with the mean of stage one, its intervals, and what it says of itself."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from scvi_perturb import HybridResidualModel
from scvi_perturb.data import Condition
from scvi_perturb.data.request import RequestRow
from scvi_perturb.generative import SamplerConfig
from scvi_perturb.model.base.draw import Drawn, expected_proportions
from scvi_perturb.model.base.training import CellSplit
from scvi_perturb.model.hybrid.recentred import N_PILOT, RecentredModel, RequestGroups
from scvi_perturb.model.hybrid.stack import GeneratorMember
from scvi_perturb.predictors import StackedMean
from scvi_perturb.predictors.stack.scenarios import Fold
from scvi_perturb.testing import NEW_PAIR, SETUP, SINGLE, controls, dense, fit, make_screen
from tests.contract.registry import MODELS

CASE = next(case for case in MODELS if case.model is HybridResidualModel)
TYPES = ["type_01", "type_02"]
#: Cells from which the generator's part of a prediction is taken.
N_PREDICT = 500


@pytest.fixture(scope="module")
def screen():
    """A screen of two contexts in two batches that differ."""
    return make_screen(batch_effect=0.5)


@pytest.fixture(scope="module")
def model(screen):
    """A small model, trained; not to be trained further."""
    HybridResidualModel.setup_anndata(screen, **SETUP)
    return fit(CASE, HybridResidualModel(screen, **CASE.init))


def asked(*names, **columns):
    return pd.DataFrame({"perturbation": list(names), **columns})


def share(profile):
    """Return shares of profiles, as predicted."""
    return np.expm1(np.asarray(profile, dtype=np.float64)) / 1e4


def profile(counts):
    total = dense(counts).sum(axis=0, dtype=np.float64)
    return np.log1p(1e4 * total / total.sum())


def training_controls(model):
    cells = model.adata[np.sort(model.train_indices)]
    return controls(cells)


def by_row(cells, row):
    return dense(cells.X)[[name.startswith(f"row{row}_") for name in cells.obs_names]]


# The mean of populations ----------------------------------------------------------------


def scores(cells, effects, row):
    """Return how far the sampled mean is from the predicted one, in standard errors, by gene.

    The mean of `n` cells errs as they differ from each other. So do the factors, which a pilot of
    `N_PILOT` cells gives. And both means hold, by one half at most, the mean of cells drawn by the
    generator: those of `predict`, and the pilot again. No spread is larger than that of counts.
    """
    counts = by_row(cells, row).astype(np.float64)
    library = counts.sum(axis=1)
    found = counts.sum(axis=0) / library.sum()
    spread = (counts - found * library[:, None]).std(axis=0) / library.mean()
    error = spread * np.sqrt(1 / len(counts) + (1 + 0.25) / N_PILOT + 0.25 / N_PREDICT)
    return np.abs(found - share(effects.X[row])) / error


MIXED = asked(SINGLE, NEW_PAIR, "pert_02", "control", cell_type=[*TYPES, None, TYPES[0]])


def test_sampled_cells_have_the_mean_that_is_predicted(model, monkeypatch):
    effects = model.predict(MIXED, n_samples=N_PREDICT)
    cells = model.sample(MIXED, n_samples=2000)
    found = np.stack([scores(cells, effects, row) for row in range(len(MIXED))])
    assert found.max() < 4.5, "120 genes: 4.5 is passed once in a thousand times"
    # The generator alone has other means: it was hardly trained.
    ones = np.ones(30)
    monkeypatch.setattr(
        RecentredModel, "_factors", lambda *args, **_: ((i, ones) for i in range(len(args[1])))
    )
    alone = model.sample(MIXED, n_samples=2000)
    assert min(scores(alone, effects, row).max() for row in range(len(MIXED))) > 6


@pytest.mark.parametrize("library_size", ["reference", 5000.0])
def test_few_cells_are_moved_as_many_are(model, monkeypatch, library_size):
    # Not each onto the mean, which would leave no difference between cells.
    own, found = RecentredModel._factors, []

    def recorded(*args, **options):
        found.append([])
        for group, factor in own(*args, **options):
            found[-1].append(factor)
            yield group, factor

    monkeypatch.setattr(RecentredModel, "_factors", recorded)
    request = asked(SINGLE, NEW_PAIR, cell_type=TYPES)
    for n_samples in (1, 200, None):
        model.sample(request, n_samples=n_samples, library_size=library_size)
    assert len(found[0]) == 2
    assert np.abs(np.log(found[0])).max() > 0.1
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_control_is_the_control(model):
    request = asked("control", "control", cell_type=TYPES)
    effects = model.predict(request)
    for layer in ("lfc", "std", "lower", "upper"):
        np.testing.assert_allclose(effects.layers[layer], 0, atol=1e-6)
    cells = training_controls(model)
    own = [profile(cells[cells.obs["cell_type"] == name].X) for name in TYPES]
    np.testing.assert_allclose(effects.X, own, rtol=1e-5)
    assert effects.obs["scenario"].tolist() == ["control", "control"]
    drawn = model.sample(request, n_samples=1500)
    assert max(scores(drawn, effects, row).max() for row in range(2)) < 4.5


def test_a_batch_asked_for_has_the_mean_of_its_controls(model):
    batches = ["batch_01", "batch_02"]
    request = asked("control", "control", cell_type=[TYPES[0]] * 2, batch=batches)
    effects = model.predict(request)
    cells = training_controls(model)
    cells = cells[cells.obs["cell_type"] == TYPES[0]]
    own = np.stack([profile(cells[cells.obs["batch"] == name].X) for name in batches])
    assert np.abs(own[0] - own[1]).max() > 0.5
    np.testing.assert_allclose(effects.X, own, rtol=1e-5)
    np.testing.assert_allclose(effects.layers["lfc"], 0, atol=1e-6)
    drawn = model.sample(request, n_samples=1500)
    assert max(scores(drawn, effects, row).max() for row in range(2)) < 4.5


def test_cells_of_two_contexts_are_the_mixture_of_both(model):
    # Of what was measured the generator says nothing: there is no noise of draws.
    mixed = model.predict([SINGLE], n_samples=None)
    parts = model.predict(asked(SINGLE, SINGLE, cell_type=TYPES), n_samples=None)
    cells = training_controls(model)
    size = np.asarray(cells.X.sum(axis=1)).ravel()
    weight = np.array([size[cells.obs["cell_type"] == name].sum() for name in TYPES])
    weight /= weight.sum()
    np.testing.assert_allclose(share(mixed.X[0]), weight @ share(parts.X), rtol=1e-5)
    control = np.log1p(1e4 * weight @ share(parts.X - parts.layers["lfc"]))
    np.testing.assert_allclose(mixed.layers["lfc"][0], mixed.X[0] - control, atol=1e-5)
    assert mixed.obs["scenario"].tolist() == ["seen"]
    assert mixed.obs["n_cells"].tolist() == [len(cells)]
    # The error of the logarithm of a sum, to first order.
    slope = weight[:, None] * np.exp(parts.X) / np.exp(mixed.X)
    np.testing.assert_allclose(slope.sum(axis=0), 1, rtol=1e-5)
    std = (slope * parts.layers["std"]).sum(axis=0)
    np.testing.assert_allclose(mixed.layers["std"][0], std, rtol=1e-4)


def test_shares_sum_to_one(model):
    effects = model.predict(MIXED)
    np.testing.assert_allclose(share(effects.X).sum(axis=1), 1, rtol=1e-5)


# New reference cells --------------------------------------------------------------------


def test_reference_cells_of_an_unknown_context(model):
    reference = training_controls(model)
    reference.obs["cell_type"] = "type_09"
    request = [SINGLE, "control"]
    effects = model.predict(request, reference=reference)
    assert effects.obs["scenario"].tolist() == ["unseen_context", "control"]
    np.testing.assert_allclose(effects.X[1], profile(reference.X), rtol=1e-5)
    np.testing.assert_allclose(effects.X[0] - effects.layers["lfc"][0], effects.X[1], atol=1e-5)
    np.testing.assert_allclose(effects.layers["lfc"][1], 0, atol=1e-6)
    assert (effects.layers["upper"][0] > effects.layers["lower"][0]).all()
    drawn = model.sample(request, reference=reference, n_samples=1500)
    assert max(scores(drawn, effects, row).max() for row in range(2)) < 4.5
    assert "unseen_context" not in model.mean_weights_.index, "it was not asked in training"


def test_reference_cells_that_do_not_say_their_context(model):
    reference = training_controls(model)
    del reference.obs["cell_type"]
    effects = model.predict([SINGLE], reference=reference)
    assert effects.obs["scenario"].tolist() == ["seen"]
    assert effects.X.shape == (1, 30)
    np.testing.assert_allclose(
        np.expm1(effects.X - effects.layers["lfc"])[0], np.expm1(profile(reference.X)), rtol=1e-3
    )
    # Named in the request, an unknown context is one.
    named = model.predict(asked(SINGLE, cell_type=["type_09"]), reference=reference)
    assert named.obs["scenario"].tolist() == ["unseen_context"]


# Likelihood -----------------------------------------------------------------------------


@pytest.mark.parametrize("context", [0, 1, 2])
def test_latents_whose_likelihood_is_asked_have_the_mean_that_is_predicted(model, context):
    # Code 2 is a context that training does not know: then it is that of all controls.
    latents = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    condition = Condition.parse(SINGLE)
    unit = model._unit_parameters(latents, condition, np.array([1, context, 1]))
    drawn = Drawn(np.arange(50), torch.ones(50), unit)
    found = expected_proportions(drawn, "nb").mean(axis=0)
    request = asked(SINGLE, cell_type=[[*TYPES, None][context]], batch=["batch_02"])
    wanted = share(model.predict(request, n_samples=None).X[0])
    np.testing.assert_allclose(found, wanted, rtol=1e-3)


# What it says of itself -----------------------------------------------------------------


def test_tables_of_weights_and_calibration(model):
    weights, calibration = model.mean_weights_, model.calibration_
    assert weights.index.tolist() == ["unseen_combination"]
    assert weights.index.name == "scenario"
    assert {"condition_gp", "no_change", "additive"} <= set(weights)
    assert "generator" not in weights, "it was not tried without refits"
    assert (weights.to_numpy() >= 0).all()
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    assert calibration.index.tolist() == ["unseen_combination"]
    assert calibration.loc["unseen_combination", "n_units"] == 4
    assert {"error", "best_member", "best_member_error", "coverage_90"} <= set(calibration)


def test_tables_and_stage_one_are_saved(model, screen):
    model.save("model")
    loaded = HybridResidualModel.load("model", screen)
    pd.testing.assert_frame_equal(loaded.mean_weights_, model.mean_weights_)
    pd.testing.assert_frame_equal(loaded.calibration_, model.calibration_)
    assert loaded.mean is None
    found, expected = loaded.predict(MIXED), model.predict(MIXED)
    for layer in ("lfc", "lower", "upper", "std"):
        np.testing.assert_allclose(found.layers[layer], expected.layers[layer], atol=1e-5)


def test_without_refits_the_generator_has_one_half(model):
    table = asked(NEW_PAIR, cell_type=TYPES[:1])
    found = model.predict(table)
    stack = model.mean_.predict(table).layers["lfc"]
    groups = RequestGroups.make(model._plan(table, None, 500, 0), model._screen)
    sampler = SamplerConfig.of("heun")
    own = np.stack([*model._own_shares(groups, sampler=sampler, seed=0)])
    control = found.X - found.layers["lfc"]
    generator = np.log1p(1e4 * own) - control
    assert np.abs(generator - stack).max() > 0.1
    wanted = np.expm1(control + (stack + generator) / 2)
    np.testing.assert_allclose(share(found.X), wanted / wanted.sum(), rtol=1e-4)


def test_mean_alone(model):
    made, whole = model.predict_mean(MIXED), model.predict(MIXED)
    assert list(made.layers) == ["lfc"]
    np.testing.assert_array_equal(made.X, whole.X)
    np.testing.assert_array_equal(made.layers["lfc"], whole.layers["lfc"])
    pd.testing.assert_frame_equal(made.obs, whole.obs)


# Intervals ------------------------------------------------------------------------------


def test_confidence_of_effects(model, screen):
    sure = model.predict_with_confidence(MIXED, level=0.8)
    for table in (sure.mean, sure.std, sure.lower, sure.upper):
        assert table.shape == (len(MIXED), screen.n_vars)
        assert table.columns.tolist() == screen.var_names.tolist()
        assert table.index.tolist() == ["row0", "row1", "row2", "row3"]
    effects = model.predict(MIXED, interval=0.8)
    np.testing.assert_array_equal(sure.mean, effects.layers["lfc"])
    np.testing.assert_array_equal(sure.lower, effects.layers["lower"])
    assert sure.level == 0.8
    pd.testing.assert_frame_equal(sure.effects.obs, effects.obs)
    treated = slice("row0", "row2")
    assert (sure.lower < sure.mean).loc[treated].all(axis=None)
    assert (sure.mean < sure.upper).loc[treated].all(axis=None)
    assert (sure.std > 0).loc[treated].all(axis=None)
    wider = model.predict_with_confidence(MIXED, level=0.95)
    assert (wider.upper - wider.lower > sure.upper - sure.lower).loc[treated].all(axis=None)
    assert sure.cells is sure.cell_lower is sure.cell_upper is None


def test_confidence_of_cells(model):
    sure = model.predict_with_confidence(MIXED, level=0.8, n_samples=300)
    assert sure.cells.shape == (1200, 30)
    own = model.sample(MIXED, n_samples=300)
    np.testing.assert_array_equal(dense(sure.cells.X), dense(own.X))
    for row in range(len(MIXED)):
        counts = by_row(own, row)
        values = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
        low, high = np.quantile(values, [0.1, 0.9], axis=0)
        np.testing.assert_allclose(sure.cell_lower.iloc[row], low)
        np.testing.assert_allclose(sure.cell_upper.iloc[row], high)
    # Cells differ more than what is not known of their mean; but of some genes most have none.
    cell = (sure.cell_upper - sure.cell_lower).to_numpy()
    effect = (sure.upper - sure.lower).to_numpy()
    assert (cell.mean(axis=1) > 2 * effect.mean(axis=1)).all()
    common = np.argsort(sure.effects.X, axis=1)[:, -10:]
    assert (np.take_along_axis(cell - effect, common, axis=1) > 0).all()


def test_novelty_is_that_of_the_mean(model):
    names = [SINGLE, NEW_PAIR, "control"]
    request = asked(*names, *names, cell_type=np.repeat(TYPES, 3))
    effects, expected = model.predict(request), model.mean_.predict(request)
    np.testing.assert_allclose(effects.obs["novelty"], expected.obs["novelty"], rtol=1e-6)
    np.testing.assert_allclose(effects.obs["support"], 1 - effects.obs["novelty"])
    # A context that is left open is that of the reference cells: the mean over both.
    both = model.predict(names).obs["novelty"].to_numpy()
    low, high = np.sort(effects.obs["novelty"].to_numpy().reshape(2, 3), axis=0)
    assert ((low - 1e-12 <= both) & (both <= high + 1e-12)).all()


@pytest.mark.parametrize("level", [0, 1, 90])
def test_level_is_checked(model, level):
    with pytest.raises(ValueError, match=rf"level={level} is out of range"):
        model.predict_with_confidence([SINGLE], level=level)


def test_no_warning_inside_what_was_calibrated(model):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model.predict(MIXED)
        model.predict_with_confidence(MIXED)
    assert [str(one.message) for one in told] == []


def test_warning_outside_what_was_calibrated(model, monkeypatch):
    limit = model.mean_.max_novelty("unseen_combination")
    assert 0 < limit < 1
    monkeypatch.setattr(StackedMean, "max_novelty", lambda *_: 0.01)
    told = r"intervals covers: pert_01 \+ pert_03 \(novelty 0\.\d\d, left out at most 0\.01\)\.$"
    with pytest.warns(UserWarning, match=told):  # of two contexts it is said once
        model.predict([NEW_PAIR, SINGLE, "control"])
    pairs = ["01+pert_02", "01+pert_03", "02+pert_05", "03+pert_04", "03+pert_05", "04+pert_05"]
    with pytest.warns(UserWarning, match=r"\), and 1 more\.$"):
        model.predict([f"pert_{pair}" for pair in pairs])


# The generator's part -------------------------------------------------------------------


def test_number_of_refits_is_checked(screen):
    with pytest.raises(ValueError, match=r"n_refits=-1 is out of range"):
        HybridResidualModel(screen, n_refits=-1)


class Refit:
    """Stands for a model without a part of the cells."""

    made: list

    def __init__(self, cells):
        self.cells = cells
        type(self).made.append(self)

    def train(self, **options):
        self.options = options

    def predict(self, frame, *, seed):
        self.frame = frame
        places = frame["perturbation"].str[-1].astype(float) + 100 * len(type(self).made)
        found = np.repeat(places.to_numpy()[:, None], 30, axis=1)
        return type("Made", (), {"layers": {"lfc": found}})


@pytest.mark.parametrize(("n_refits", "joined"), [(1, [[0, 1, 2]]), (2, [[0, 2], [1]]), (9, None)])
def test_refits_see_nothing_of_what_is_left_out(model, n_refits, joined):
    Refit.made = []
    rows = [RequestRow(Condition.parse(f"pert_0{i}"), (name,)) for i in (1, 2, 3) for name in TYPES]
    # The last fold is asked about one of the two rows that it takes away.
    folds = [Fold(np.array(own), np.array(own[:n])) for own, n in (([0, 1], 2), ([2, 3], 2))]
    folds.append(Fold(np.array([4, 5]), np.array([5])))
    everything = np.arange(model.adata.n_obs)
    parts = CellSplit(everything[10:], everything[:5], everything[5:10])
    member = GeneratorMember(Refit, model.adata, parts, model, n_refits, {"n_steps": 7})
    said = member.left_out("unseen_perturbation", rows, folds)
    joined = joined or [[0], [1], [2]]
    assert len(Refit.made) == len(joined)
    seen = model.adata.obs.drop(index=model.adata.obs_names[5:10])
    for refit, own in zip(Refit.made, joined, strict=True):
        assert refit.options == {"n_steps": 7}
        gone = {f"pert_0{k + 1}" for k in own}
        expected = seen[~seen["perturbation"].isin(gone)]
        assert sorted(refit.cells.obs_names) == sorted(expected.index)
    assert [part.shape for part in said] == [(2, 30), (2, 30), (1, 30)]
    number = {k: i for i, own in enumerate(joined, 1) for k in own}
    for k, part in enumerate(said):
        assert (part == 100 * number[k] + k + 1).all()
    last = Refit.made[number[2] - 1].frame.iloc[-1]
    assert last["perturbation"] == "pert_03"
    assert last["cell_type"] == TYPES[1]


def test_without_refits_the_generator_is_not_tried(model):
    member = GeneratorMember(Refit, model.adata, CellSplit(*[np.arange(0)] * 3), model, 0)
    assert member.left_out("seen", [], []) is None
