"""Stage one of the user's: tables of predictions, predictors of the package, and anybody's."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from scvi_perturb import (
    HybridResidualModel,
    PerturbDiffusion,
    SchemaError,
    UnknownPerturbationError,
)
from scvi_perturb.data import ScreenKeys
from scvi_perturb.model.hybrid.stack import likely_scenarios
from scvi_perturb.predictors import Additive, ConditionGP, ExternalMeans, StackedMean
from scvi_perturb.testing import (
    NEW_PAIR,
    SINGLE,
    controls,
    fit,
    make_screen,
    make_split,
    moved_split,
)
from tests.contract.registry import MODELS

CASE = next(case for case in MODELS if case.model is HybridResidualModel)
TYPES = ["type_01", "type_02"]
CONTEXT = ["cell_type"]
OTHER_PAIR = "pert_02+pert_05"
OUTSIDE = pytest.mark.filterwarnings("ignore:Outside what the calibration:UserWarning")


@pytest.fixture(scope="module")
def screen():
    adata = make_screen()
    HybridResidualModel.setup_anndata(adata, context_keys=CONTEXT)
    return adata


@pytest.fixture(scope="module")
def model(screen):
    """A trained model, whose generator serves for all means; to be given them with `with_mean`."""
    return fit(CASE, HybridResidualModel(screen, mean=Additive(), **CASE.init))


def trained(screen, mean, **options):
    made = HybridResidualModel(screen, mean=mean, **CASE.init)
    return fit(CASE, made, max_epochs=1, n_steps=2, **options)


def asked(*names, **columns):
    return pd.DataFrame({"perturbation": list(names), **columns})


def share(profile):
    return np.expm1(np.asarray(profile, dtype=np.float64)) / 1e4


def training_profile(model, name=None):
    """Return the profile of the training controls, all of them or of a context."""
    cells = controls(model.adata[np.sort(model.train_indices)])
    if name is not None:
        cells = cells[cells.obs["cell_type"] == name]
    total = np.asarray(cells.X.sum(axis=0), dtype=np.float64).ravel()
    return np.log1p(1e4 * total / total.sum())


def change_from(control, seed=0):
    """Return a change that leads from one profile to another, both of shares that sum to one."""
    to = share(control) * np.exp(np.random.default_rng(seed).normal(0, 0.5, len(control)))
    return np.log1p(1e4 * to / to.sum()) - control


def table(screen, rows, columns=("perturbation", "cell_type"), *, values=None, lfc=None):
    """Return somebody's predictions, a row for each of `rows`."""
    obs = pd.DataFrame(rows, columns=list(columns), index=[f"p{i}" for i in range(len(rows))])
    var = pd.DataFrame(index=screen.var_names)
    matrix = np.zeros((len(rows), screen.n_vars)) if values is None else np.stack(values)
    return AnnData(matrix, obs=obs, var=var, layers={} if lfc is None else {"lfc": np.stack(lfc)})


# Tables -----------------------------------------------------------------------------------


@OUTSIDE
def test_changes_given_are_what_is_predicted_and_sampled(screen, model):
    # The cells of training are those of the other model: the seed is the same.
    starts = [training_profile(model, name) for name in TYPES]
    changes = [change_from(start, seed) for seed, start in enumerate(starts)]
    model = trained(screen, table(screen, [(NEW_PAIR, name) for name in TYPES], lfc=changes))
    request = asked(NEW_PAIR, NEW_PAIR, "control", cell_type=[*TYPES, TYPES[0]])
    effects = model.predict(request)
    np.testing.assert_allclose(effects.layers["lfc"][:2], changes, atol=1e-5)
    np.testing.assert_allclose(effects.X[:2], np.add(starts, changes), rtol=1e-5)
    # Nothing is known of its errors; of controls there are none.
    assert np.isnan(effects.layers["std"][:2]).all()
    assert np.isnan(effects.layers["lower"][:2]).all()
    assert not effects.layers["std"][2].any()
    assert model.mean_weights_.empty
    assert model.calibration_.empty
    cells = model.sample(request, n_samples=2000)
    for row in range(3):
        counts = cells.X[[name.startswith(f"row{row}_") for name in cells.obs_names]].toarray()
        library = counts.sum(axis=1)
        found = counts.sum(axis=0) / library.sum()
        spread = (counts - found * library[:, None]).std(axis=0) / library.mean()
        # 2000 cells, and factors from a pilot of 1000; the mean itself is given.
        error = spread * np.sqrt(1 / 2000 + 1 / 1000)
        assert (np.abs(found - share(effects.X[row])) / error).max() < 4.5


def changes_of(screen, given, request):
    """Return the changes that a table's predictor predicts on the whole screen."""
    predictor = ExternalMeans(given).fit(screen, keys=ScreenKeys(context=CONTEXT))
    return predictor.predict(request).layers["lfc"]


def test_a_row_without_a_context_holds_for_all(screen):
    change = np.random.default_rng(0).normal(size=30)
    open_one = table(screen, [("pert_05+pert_03",)], ["perturbation"], lfc=[change])
    request = asked("pert_03+pert_05", "control", cell_type=TYPES)
    found = changes_of(screen, open_one, request)
    np.testing.assert_allclose(found, [change, np.zeros(30)], rtol=1e-6)
    # What is left open in the request is the mean of what was given.
    both = table(screen, [(NEW_PAIR, name) for name in TYPES], lfc=[change, 3 * change])
    np.testing.assert_allclose(changes_of(screen, both, [NEW_PAIR]), [2 * change], rtol=1e-6)


def profiles(seed=0, n=3):
    random = np.random.default_rng(seed)
    return np.log1p(1e4 * random.dirichlet(np.full(30, 3.0), n))


def test_profiles_are_changes_from_the_control_row(screen):
    control, one, other = profiles()
    given = table(
        screen, [("control", "type_01"), (NEW_PAIR, "type_01"), ("control", "type_02")],
        values=[control, one, other],
    )  # fmt: skip
    request = asked(NEW_PAIR, cell_type=["type_01"])
    np.testing.assert_allclose(changes_of(screen, given, request)[0], one - control, rtol=1e-5)
    everywhere = table(screen, [("control",), (NEW_PAIR,)], ["perturbation"], values=[control, one])
    np.testing.assert_allclose(changes_of(screen, everywhere, request)[0], one - control, rtol=1e-5)


def test_of_changes_and_profiles_the_changes_count(screen):
    _, one, change = profiles()
    given = table(screen, [(NEW_PAIR, "type_01")], values=[one], lfc=[change])
    request = asked(NEW_PAIR, cell_type=["type_01"])
    np.testing.assert_allclose(changes_of(screen, given, request)[0], change, rtol=1e-6)


def test_counts_are_brought_to_ten_thousand(screen):
    random = np.random.default_rng(0)
    counts = random.poisson(300, (2, 30)).astype(float)
    expected = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
    rows = [("control", "type_01"), (NEW_PAIR, "type_01")]
    request = asked(NEW_PAIR, cell_type=["type_01"])
    found = changes_of(screen, table(screen, rows, values=counts), request)
    np.testing.assert_allclose(found[0], expected[1] - expected[0], rtol=1e-5)
    found = changes_of(screen, table(screen, rows, values=expected), request)
    np.testing.assert_allclose(found[0], expected[1] - expected[0], rtol=1e-5)


def test_control_of_another_context_is_none_of_this(screen):
    two = make_screen()
    two.obs["donor"] = "d1"
    control, one, _ = profiles()
    # The control's donor is not said, but its cell type is another.
    given = table(
        two, [("control", "type_02", None), (NEW_PAIR, "type_01", "d1")],
        ["perturbation", "cell_type", "donor"], values=[control, one],
    )  # fmt: skip
    with pytest.raises(SchemaError, match=r"no control row for pert_01 \+ pert_03 in context"):
        ExternalMeans(given).fit(two, keys=ScreenKeys(context=["cell_type", "donor"]))


def test_genes_may_be_in_another_order(screen):
    change = np.arange(30.0)
    given = table(screen, [(NEW_PAIR, "type_01")], lfc=[change])[:, ::-1].copy()
    found = changes_of(screen, given, asked(NEW_PAIR, cell_type=["type_01"]))
    np.testing.assert_allclose(found[0], change)


def without_gene(given):
    return given[:, 1:].copy()


def without_column(given):
    given.obs = given.obs.rename(columns={"perturbation": "drug"})
    return given


def with_nothing(given):
    given.layers["lfc"][0, :2] = [np.nan, np.inf]
    return given


def without_control(given):
    del given.layers["lfc"]
    return given


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (without_gene, r"1 of the 30 genes of training are missing, e\.g\. \['gene_00'\]"),
        (without_column, r"no column 'perturbation'; they have \['cell_type', 'drug'\]"),
        (with_nothing, "hold 2 values that are not finite"),
        (without_control, r"no control row for pert_01 \+ pert_03 in context \('type_01',\)"),
    ],
)
def test_tables_that_do_not_fit_are_refused_before_the_training(screen, spoil, match):
    given = spoil(table(screen, [(NEW_PAIR, "type_01")], lfc=np.zeros((1, 30))))
    model = HybridResidualModel(screen, mean=given, **CASE.init)
    with pytest.raises(SchemaError, match=match):
        fit(CASE, model)
    assert not model.is_trained_


@OUTSIDE
def test_what_is_not_given_is_refused(screen):
    model = trained(screen, table(screen, [(NEW_PAIR, "type_01")], lfc=np.zeros((1, 30))))
    request = asked(NEW_PAIR, cell_type=["type_01"])
    model.predict(request)
    for name in (SINGLE, OTHER_PAIR):
        told = name.replace("+", r" \+ ")
        for verb in (model.predict, model.sample):
            with pytest.raises(UnknownPerturbationError, match=rf"'{told}' was not trained on"):
                verb(asked(name, cell_type=["type_01"]))
    with pytest.raises(SchemaError, match=r"were given for \[\('type_01',\)\], not for"):
        model.predict(asked(NEW_PAIR, cell_type=["type_02"]))


def test_predictions_of_what_was_trained_on_calibrate_nothing(screen):
    # Who made them may have seen it: then errors there are none of what is new.
    names = [name for name in screen.obs["perturbation"].unique() if name != "control"]
    given = table(
        screen, [(name,) for name in names], ["perturbation"], lfc=np.ones((len(names), 30))
    )
    model = trained(screen, given)
    assert model.calibration_.empty
    assert np.isnan(model.predict([SINGLE]).layers["std"]).all()


@OUTSIDE
def test_a_table_is_saved_with_the_model(screen):
    control = profiles()[0]
    model = trained(screen, table(screen, [(NEW_PAIR, "type_01")], lfc=[control]))
    model.save("model")
    loaded = HybridResidualModel.load("model", screen)
    request = asked(NEW_PAIR, cell_type=["type_01"])
    one, two = (m.predict(request) for m in (model, loaded))
    np.testing.assert_array_equal(one.X, two.X)
    fit(CASE, loaded, max_epochs=1, n_steps=2)
    again = loaded.predict(request)
    np.testing.assert_array_equal(again.X, one.X, "the table is stage one of the next training too")


# Predictors -------------------------------------------------------------------------------


def test_a_predictor_is_used_as_it_is(model, screen):
    # No generator in the mean: but for shares that sum to one, it is that of the predictor alone.
    request = asked(NEW_PAIR, SINGLE, "control", cell_type=[*TYPES, TYPES[0]])
    own = Additive().fit(screen, keys=ScreenKeys(context=CONTEXT)).predict(request)
    effects = model.predict(request)
    start = np.stack([training_profile(model, name) for name in [*TYPES, TYPES[0]]])
    wanted = np.maximum(np.expm1(start + own.layers["lfc"]), 0)
    wanted /= wanted.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(share(effects.X), wanted, rtol=1e-4, atol=1e-8)
    assert isinstance(model.mean, Additive)
    with pytest.raises(RuntimeError, match="has not seen data"):
        model.mean.profiles  # noqa: B018 - it raises: the user's object is left as it was


@OUTSIDE
def test_a_mean_without_a_regression_states_no_novelty(model):
    request = asked("control", SINGLE, NEW_PAIR, cell_type=TYPES[0])
    assert model.mean_.predict(request).obs["novelty"].isna().tolist() == [False, True, True]
    novelty = model.predict(request).obs["novelty"].to_numpy()
    assert novelty[0] == 0
    assert novelty[1] < 0.1 < novelty[2] < 1


def test_a_predictor_is_calibrated_on_what_it_was_refitted_without(model):
    assert model.mean_weights_.to_dict() == {"additive": {"unseen_combination": 1.0}}
    assert model.calibration_.loc["unseen_combination", "best_member"] == "additive"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        effects = model.predict(asked(NEW_PAIR, cell_type=["type_01"]), interval=0.5)
    low, middle, high = (effects.layers[name] for name in ("lower", "lfc", "upper"))
    assert (low <= middle).all()
    assert (middle <= high).all()
    assert (high > low).all()
    # By chance 60 left-out changes, not independent, are inside: half of them within 4 errors.
    assert abs(model.calibration_.loc["unseen_combination", "coverage_50"] - 0.5) < 0.26


def test_a_predictor_is_saved_with_the_model(model, screen):
    model.save("model")
    loaded = HybridResidualModel.load("model", screen)
    assert isinstance(loaded.mean, Additive)
    pd.testing.assert_frame_equal(loaded.mean_weights_, model.mean_weights_)
    request = asked(NEW_PAIR, cell_type=["type_01"])
    one, two = (m.predict(request) for m in (model, loaded))
    for layer in ("lfc", "lower", "upper", "std"):
        np.testing.assert_array_equal(one.layers[layer], two.layers[layer])


def test_a_stack_is_used_as_it_is_and_left_as_it_was(screen):
    stack = StackedMean(members={"sum": Additive(), "process": ConditionGP()}, n_folds=3)
    model = trained(screen, stack)
    assert sorted(model.mean_weights_) == ["process", "sum"]
    assert stack.weights_.empty
    request = asked(NEW_PAIR, cell_type=["type_01"])
    alone = StackedMean(members=stack.members, n_folds=3).fit(
        screen, keys=ScreenKeys(context=CONTEXT)
    )
    wanted = training_profile(model, "type_01") + alone.predict(request).layers["lfc"][0]
    wanted = np.expm1(wanted) / np.expm1(wanted).sum()
    np.testing.assert_allclose(share(model.predict(request).X[0]), wanted, rtol=1e-4)


@pytest.mark.parametrize(
    "mean",
    [Additive(profile="cell_mean"), StackedMean(profile="cell_mean")],
    ids=lambda one: one.name,
)
def test_profiles_of_another_kind_are_refused(screen, mean):
    model = HybridResidualModel(screen, mean=mean, **CASE.init)
    with pytest.raises(SchemaError, match="predicts 'cell_mean' profiles; the model needs 'pseudo"):
        fit(CASE, model)
    assert not model.is_trained_


def test_only_cells_that_may_be_seen_are_learned_from():
    found = []
    for factor in (1, 7):
        adata = make_screen()
        made = make_split(adata)
        adata.X[made.test] = adata.X[made.test] * factor
        HybridResidualModel.setup_anndata(adata, context_keys=CONTEXT)
        model = trained(adata, Additive(), split=moved_split(made, adata))
        assert not np.isin(made.test, model.train_indices).any()
        found.append(model.mean_.predict(asked("pert_01+pert_02", cell_type=TYPES[:1])).X)
    np.testing.assert_array_equal(*found)


class Constant:
    """A predictor of the protocol, and nothing more: every gene by its place."""

    def __init__(self):
        self.fitted = []

    def fit(self, adata, split=None, *, keys=None):
        self.fitted.append((adata.n_obs, split, keys.control, keys.context, keys.layer))
        self.var_names = adata.var_names
        return self

    def predict(self, conditions, *, reference=None):
        self.last = conditions
        change = np.linspace(-1, 1, len(self.var_names)) * len(conditions.columns)
        found = np.repeat(change[None], len(conditions), axis=0)
        made = AnnData(found, var=pd.DataFrame(index=self.var_names), layers={"lfc": found})
        return made[:, ::-1].copy()  # in an order of its own


def test_any_predictor_of_the_protocol_serves(screen):
    mean = Constant()
    model = trained(screen, mean)
    assert mean.fitted == [(screen.n_obs, None, "control", ("cell_type",), None)]
    assert model.mean_weights_.empty
    request = asked(NEW_PAIR, NEW_PAIR, "control", cell_type=[*TYPES, TYPES[0]])
    told = r"pert_01 \+ pert_03 \(unseen_combination: nothing like it could be left out of training"
    with pytest.warns(UserWarning, match=told):
        effects = model.predict(request)
    start = np.stack([training_profile(model, name) for name in TYPES])
    wanted = np.expm1(start + 2 * np.linspace(-1, 1, 30)).clip(0)
    wanted /= wanted.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(share(effects.X[:2]), wanted, rtol=1e-4, atol=1e-8)
    assert np.isnan(effects.layers["upper"][:2]).all()
    # Where no context is said, by the request or by the reference, it is not asked for one.
    reference = controls(screen)
    del reference.obs["cell_type"]
    asked_for = model.mean_.members["external"].predictor
    with pytest.warns(UserWarning, match=told):
        model.predict([NEW_PAIR], reference=reference)
    stack = model.mean_.weigh("unseen_combination")
    last = stack.members["external"].predictor.last
    assert list(last.columns) == ["perturbation"]
    assert asked_for is mean


@OUTSIDE
def test_confidence_without_calibration(screen):
    model = trained(screen, Constant())
    sure = model.predict_with_confidence([NEW_PAIR], n_samples=50)
    assert np.isfinite(sure.mean).all(axis=None)
    assert sure.lower.isna().all(axis=None)
    assert np.isfinite(sure.cell_upper).all(axis=None)


# The generator's weight -------------------------------------------------------------------


def test_with_refits_the_generator_has_a_weight(screen):
    model = fit(CASE, HybridResidualModel(screen, n_refits=1, **CASE.init))
    weights = model.mean_weights_.loc["unseen_combination"]
    assert 0 <= weights["generator"] <= 1
    assert weights.sum() == pytest.approx(1)
    said = model.mean_.weigh("unseen_combination").left_out.predicted
    assert np.abs(said["generator"]).max() > 0.1
    assert model.mean_.external == {}, "what trains is not saved"
    model.save("model")
    loaded = HybridResidualModel.load("model", screen)
    pd.testing.assert_frame_equal(loaded.mean_weights_, model.mean_weights_)
    # Other scenarios are answered too: there it was not tried.
    model.predict(asked(SINGLE), reference=named(screen, "type_09"))
    assert "generator" not in model.mean_.weights_.loc["unseen_context"].dropna()


def named(screen, label):
    reference = controls(screen)
    reference.obs["cell_type"] = label
    return reference


def test_what_will_be_asked_is_what_the_split_holds_out(screen):
    stack = StackedMean(n_folds=3).fit(screen, keys=ScreenKeys(context=CONTEXT))
    assert likely_scenarios(stack, None) == ("unseen_combination",)
    assert likely_scenarios(stack, make_split(screen)) == ("unseen_perturbation",)
    one = screen[screen.obs["perturbation"].isin(["control", SINGLE])].copy()
    assert likely_scenarios(StackedMean(n_folds=3).fit(one), None) == ()


def test_refits_leave_the_registration_of_the_screen_alone():
    adata = make_screen()
    for cls in (PerturbDiffusion, HybridResidualModel):
        cls.setup_anndata(adata, context_keys=CONTEXT)
    fit(CASE, HybridResidualModel(adata, n_refits=1, **CASE.init), max_epochs=1, n_steps=2)
    again = PerturbDiffusion(adata, n_latent=4)  # would raise that the data are not those set up
    assert again.adata is adata
    assert again.registry["model_name"] == "PerturbDiffusion"
