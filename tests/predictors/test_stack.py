"""The stack of predictors: known truth, fallbacks, refusals, and what it says of itself."""

from __future__ import annotations

import itertools
import pickle
from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from scvi_perturb._core import NotTrainedError, SchemaError, UnknownPerturbationError
from scvi_perturb.data import ScreenKeys
from scvi_perturb.features import PerturbationFeatures
from scvi_perturb.predictors import (
    PREDICTORS,
    Additive,
    ConditionGP,
    ContextMean,
    KernelRidge,
    MeanPredictor,
    NoChange,
    StackedMean,
)
from scvi_perturb.predictors.request import parse_requests
from scvi_perturb.predictors.stack import fit as _stack_fit
from scvi_perturb.predictors.stack.fit import _N_PRIOR as N_PRIOR
from scvi_perturb.predictors.stack.intervals import ErrorCovariates
from tests.predictors._effects import FEATURES, build, effects, lfc
from tests.predictors._screen import CONTROL, GENES, make_screen

CONTEXT = ["cell_type"]
NAMES = list("ABCDEFGH")
PAIRS = ["+".join(pair) for pair in itertools.combinations(NAMES, 2)]
N_GENES = 25
LAYERS = ("lfc", "std", "lower", "upper")


def additive_table(noise=0.3, seed=0):
    """Singles and half of all pairs, whose effects add up, but for noise; and the other pairs."""
    rng = np.random.default_rng(seed)
    alone = {name: rng.normal(size=N_GENES) for name in NAMES}
    truth = {name: sum(alone[part] for part in name.split("+")) for name in [*NAMES, *PAIRS]}
    rows = [(name, truth[name] + noise * rng.normal(size=N_GENES)) for name in truth]
    table = effects(rows)
    held = table.obs["perturbation"].isin(PAIRS[1::2]).to_numpy()
    return table[~held].copy(), table[held].copy(), np.array([truth[n] for n in PAIRS[1::2]])


def error(made, truth):
    return ((made - truth) ** 2).sum() / (truth**2).sum()


def assert_stated(made, level=0.9):
    """Assert that the interval is that of a normal law with the stated error."""
    reach = norm.ppf((1 + level) / 2) * made.layers["std"]
    for layer, sign in (("lower", -1), ("upper", 1)):
        expected = made.layers["lfc"] + sign * reach
        np.testing.assert_allclose(made.layers[layer], expected, rtol=1e-5, atol=1e-5)


def assert_same(made, expected, rtol=1e-6, atol=1e-6):
    for layer in LAYERS:
        np.testing.assert_allclose(
            made.layers[layer], expected.layers[layer], rtol=rtol, atol=atol, err_msg=layer
        )
    np.testing.assert_allclose(made.X, expected.X, rtol=rtol, atol=atol)
    assert made.obs["scenario"].astype(str).tolist() == expected.obs["scenario"].tolist()


@pytest.fixture(scope="module")
def additive():
    train, held, truth = additive_table()
    stack = StackedMean(profile="effects", n_folds=5).fit(train)
    return stack, stack.predict(PAIRS[1::2]), held, truth


def test_additive_effects_are_recovered(additive):
    stack, made, _, truth = additive
    assert error(made.X, truth) < 0.05
    assert set(made.obs["scenario"]) == {"unseen_combination"}
    weights = stack.weights_.loc["unseen_combination"]
    wrong = weights[["no_change", "mean_of_training", "matching_mean"]]
    assert wrong.sum() < 0.1


def test_the_stack_is_as_good_as_its_best_member(additive):
    stack, made, _, truth = additive
    members = stack.weigh("unseen_combination").members
    errors = {name: error(lfc(member, PAIRS[1::2]), truth) for name, member in members.items()}
    assert error(made.X, truth) < 1.1 * min(errors.values())
    assert error(made.X, truth) < 0.1 * errors["no_change"]


def test_intervals_cover_what_is_measured_later(additive):
    """14 pairs of 25 genes that share the errors of singles: about 100 that are independent.

    Binomial errors of 0.03 and, of the 14 left out from which is learned, as much again: four.
    """
    _, made, held, _ = additive
    inside = (made.layers["lower"] <= held.X) & (made.layers["upper"] >= held.X)
    assert inside.mean() == pytest.approx(0.9, abs=0.1)
    z = (held.X - made.X) / made.layers["std"]
    assert np.sqrt((z**2).mean()) == pytest.approx(1, abs=0.25)


def test_the_prediction_lies_within_its_interval_that_widens_with_the_level(additive):
    stack, made, _, _ = additive
    wide = stack.predict(PAIRS[1::2], interval=0.99)
    np.testing.assert_array_equal(made.X, wide.X)
    ends = [wide.layers["lower"], made.layers["lower"], made.layers["upper"], wide.layers["upper"]]
    assert (np.diff(ends, axis=0) > 0).all()
    assert ((made.layers["lower"] < made.X) & (made.layers["upper"] > made.X)).all()


def test_the_tables_say_who_is_asked_and_how_well_it_went(additive):
    stack, _, _, _ = additive
    weights = stack.weights_
    assert weights.index.tolist() == ["unseen_combination"]
    assert weights.index.name == "scenario"
    assert set(weights.columns) == {
        "condition_gp",
        "no_change",
        "mean_of_training",
        "additive",
        "matching_mean",
        "latent_additive",
    }
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    assert (weights.to_numpy() >= 0).all()
    report = stack.calibration_
    row = report.loc["unseen_combination"]
    levels = ["coverage_50", "coverage_80", "coverage_90", "coverage_95"]
    assert report.columns.tolist() == [
        "n_units",
        "error",
        "best_member",
        "best_member_error",
        *levels,
    ]
    assert row["n_units"] == 14
    assert row["best_member"] in weights.columns
    assert 0 < row["error"] < 1.1 * row["best_member_error"]
    assert report.dtypes.drop("best_member").map(pd.api.types.is_numeric_dtype).all()
    # Coverage of 14 * 25 values, as above.
    np.testing.assert_allclose(row[levels].astype(float), [0.5, 0.8, 0.9, 0.95], atol=0.1)


def test_the_reported_errors_are_those_of_refits(additive):
    """Of a member that is not tuned, left out by hand."""
    stack, _, _, _ = additive
    tried = stack.weigh("unseen_combination").left_out
    train, _, _ = additive_table()
    measured = {str(name): train.X[i] for i, name in enumerate(train.obs["perturbation"])}
    for i, row in enumerate(tried.rows):
        name = row.condition.perturbation
        np.testing.assert_allclose(tried.truth[i], measured[name])
        summed = sum(measured[part] for part in name.split("+"))
        np.testing.assert_allclose(tried.predicted["additive"][i], summed)
    expected = error(tried.predicted["additive"], tried.truth)
    own = stack.calibration_.loc["unseen_combination"]
    assert own["best_member_error"] <= expected + 1e-9
    assert not tried.noise.any()


def test_nothing_to_say_before_anything_is_asked():
    train, _, _ = additive_table()
    stack = StackedMean(profile="effects").fit(train)
    assert stack.weights_.empty
    assert stack.calibration_.empty
    with pytest.raises(NotTrainedError, match="StackedMean has not seen data"):
        StackedMean().predict(["A"])


def test_questions_can_be_weighed_in_fit():
    train, _, _ = additive_table()
    stack = StackedMean(profile="effects", scenarios=["unseen_combination"], n_folds=3).fit(train)
    assert stack.weights_.index.tolist() == ["unseen_combination"]
    stack.fit(train[train.obs["perturbation"].isin(NAMES)].copy())
    assert stack.weights_.empty


def test_what_was_seen_is_the_regression(additive):
    stack, _, _, _ = additive
    made = stack.predict(["A", "A+B"])
    expected = ConditionGP(profile="effects").fit(additive_table()[0]).predict(["A", "A+B"])
    np.testing.assert_allclose(made.X, expected.X, rtol=1e-5)
    np.testing.assert_allclose(made.layers["std"], expected.layers["std"], rtol=1e-5)
    np.testing.assert_allclose(made.obs["novelty"], expected.obs["novelty"], rtol=1e-5)
    assert set(made.obs["scenario"]) == {"seen"}
    assert_stated(made)
    assert_stated(stack.predict(["A", "A+B"], interval=0.5), 0.5)


def test_where_nothing_can_be_tried_the_regression_and_one_other_share():
    """There is no combination to leave out."""
    train, _, _ = additive_table()
    singles = train[train.obs["perturbation"].isin(NAMES)].copy()
    stack = StackedMean(profile="effects").fit(singles)
    made = stack.predict(["A+B", "C+H"])
    gp = ConditionGP(profile="effects", leave_out="condition").fit(singles).predict(["A+B", "C+H"])
    summed = lfc(Additive(profile="effects").fit(singles), ["A+B", "C+H"])
    np.testing.assert_allclose(made.X, (gp.X + summed) / 2, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(made.layers["std"], gp.layers["std"], rtol=1e-5)
    assert_stated(made)
    assert stack.weights_.empty
    assert stack.calibration_.empty
    assert stack.max_novelty("unseen_combination") is None


def test_without_a_regression_an_untried_answer_has_no_error():
    train, _, _ = additive_table()
    members = {name: cls(profile="effects") for name, cls in
               (("sum", Additive), ("none", NoChange))}  # fmt: skip
    stack = StackedMean(members=members, profile="effects").fit(train)
    made = stack.predict(["A"])
    np.testing.assert_allclose(made.X[0], train.X[0] / 2, rtol=1e-5)
    assert np.isnan([made.layers[layer] for layer in ("std", "lower", "upper")]).all()
    assert made.obs[["novelty", "support"]].isna().all(axis=None)


def test_controls_do_not_change_surely(additive):
    stack, _, _, _ = additive
    made = stack.predict(["control", "A+C"])
    for layer in LAYERS:
        assert not made.layers[layer][0].any()
        assert made.layers[layer][1].all()
    assert made.obs["scenario"].tolist() == ["control", "unseen_combination"]
    assert made.obs["novelty"].iloc[0] == 0
    assert made.obs["support"].iloc[0] == 1


def test_what_nothing_is_known_of_is_refused(additive):
    stack, _, _, _ = additive
    for asked in (["Zz"], ["A+Zz"], ["A+C", "Zz", "control"]):
        with pytest.raises(UnknownPerturbationError, match="'Zz' was not trained on"):
            stack.predict(asked)
    refusing = StackedMean(members={"sum": Additive(profile="effects")}, profile="effects")
    refusing.fit(additive_table()[0])
    with pytest.raises(UnknownPerturbationError, match="'Zz' was not trained on"):
        refusing.predict(["Zz"])


def test_requests_of_several_questions_are_answered_as_each_alone(additive):
    stack, _, _, _ = additive
    asked = ["A+C", "B", "control", "A+B+C", "A+D", "A+E", "H"]
    made = stack.predict(asked)
    assert made.obs["perturbation"].tolist() == asked
    assert made.obs["scenario"].tolist() == [
        "unseen_combination",
        "seen",
        "control",
        *["seen" if f"A+{x}" in PAIRS[::2] else "unseen_combination" for x in ("B+C", "D", "E")],
        "seen",
    ]
    for i, name in enumerate(asked):
        one = stack.predict([name])
        assert_same(made[i].copy(), one, rtol=1e-4, atol=1e-5)


def test_requests_that_a_member_refuses_are_answered_by_the_others():
    """D and E were never measured alone, so their sum with others is not known."""
    rows = ["A", "B", "C", "F", "A+B", "A+F", "B+C", "B+F", "C+F", "D+E"]
    rng = np.random.default_rng(0)
    train = effects([(name, rng.normal(size=5)) for name in rows])
    members = {"sum": Additive(profile="effects"), "none": NoChange(profile="effects")}
    stack = StackedMean(members=members, profile="effects", n_folds=5).fit(train)
    weight = stack.weigh("unseen_combination").solve(["sum", "none"])[0]["sum"]
    assert weight > 0.01
    made = stack.predict(["A+C", "A+D", "A+B+C"])
    summed = lfc(Additive(profile="effects").fit(train), ["A+C", "A+B+C"])
    np.testing.assert_allclose(made.X[[0, 2]], weight * summed, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(made.X[1], np.zeros(5))
    assert np.isfinite(made.layers["lower"]).all()
    for i, name in enumerate(["A+C", "A+D", "A+B+C"]):
        assert_same(made[i].copy(), stack.predict([name]))
    requests = parse_requests(["A+C", "A+D", "A+B+C"], keys=stack.profiles.keys)
    elsewhere = rng.normal(size=(3, 5))
    found = stack.predict_changes(requests, external={"elsewhere": elsewhere}).mean
    np.testing.assert_allclose(found, (made.X + elsewhere) / 2, atol=1e-6)


def test_weights_favour_no_member_that_was_not_always_asked():
    """The sum is refused for C+D, whose D was never measured alone: it does not take part."""
    rng = np.random.default_rng(0)
    rows = ["A", "B", "C", "A+B", "A+C", "B+C", "C+D", "B+D"]
    train = effects([(name, rng.normal(size=5)) for name in rows])
    members = {"sum": Additive(profile="effects"), "none": NoChange(profile="effects")}
    stack = StackedMean(members=members, profile="effects", n_folds=5).fit(train)
    np.testing.assert_array_equal(stack.predict(["A+D", "A+B+C"]).X, np.zeros((2, 5)))
    assert stack.weights_.columns.tolist() == ["none"]


def test_the_seed_decides_folds_and_weights():
    train, _, _ = additive_table(noise=1.0)
    made = [
        StackedMean(profile="effects", n_folds=3, seed=seed).fit(train).predict(PAIRS[1::2])
        for seed in (0, 0, 1)
    ]
    assert_same(made[0], made[1], rtol=0, atol=0)
    assert not np.allclose(made[0].X, made[2].X, rtol=1e-4)
    np.testing.assert_allclose(made[0].X, made[2].X, atol=0.5)


def test_a_stack_is_the_same_after_a_round_trip_through_pickle(additive):
    stack, made, _, _ = additive
    loaded = pickle.loads(pickle.dumps(stack))
    assert_same(loaded.predict(PAIRS[1::2]), made, rtol=0, atol=0)
    pd.testing.assert_frame_equal(loaded.weights_, stack.weights_)
    pd.testing.assert_frame_equal(loaded.calibration_, stack.calibration_)
    fresh = pickle.loads(pickle.dumps(StackedMean(profile="effects", n_folds=5).fit(
        additive_table()[0])))  # fmt: skip
    assert_same(fresh.predict(PAIRS[1::2]), made, rtol=0, atol=0)


def test_members_of_ones_own_are_copied_and_left_alone():
    train, _, _ = additive_table()
    members = {"sum": Additive(profile="effects"), "none": NoChange(profile="effects")}
    stack = StackedMean(members=members, profile="effects", n_folds=4).fit(train)
    members["late"] = NoChange(profile="effects")
    stack.predict(["A+C"])
    assert stack.weights_.columns.tolist() == ["sum", "none"]
    for member in members.values():
        with pytest.raises(NotTrainedError, match="has not seen data"):
            _ = member.profiles


def test_features_are_not_copied_for_every_fold():
    rows = [(name, np.eye(5)[i]) for i, name in enumerate("ACDEF")]
    stack = StackedMean(FEATURES, profile="effects", n_folds=3).fit(effects(rows))
    made = stack.weigh("unseen_perturbation")
    assert len(made.refits) == 3
    for members in (made.members, *made.refits):
        assert {id(m.features) for m in members.values() if hasattr(m, "features")} == {
            id(FEATURES)
        }


def test_what_a_member_cannot_use_is_told_once_if_it_is_ones_own():
    """Not for each fold, and not of the usual members, which are many."""
    names = [*"ACDEF", *(f"x{i}" for i in range(6))]
    table = effects([(name, np.arange(4.0) + i) for i, name in enumerate(names)])
    usual = StackedMean(FEATURES, profile="effects", n_folds=3).fit(table)
    usual.weigh("unseen_perturbation")  # warnings are errors here
    members = {"ridge": KernelRidge(FEATURES, profile="effects")}
    stack = StackedMean(members=members, profile="effects", n_folds=3).fit(table)
    with pytest.warns(UserWarning, match="6 of 11 training conditions") as seen:
        stack.weigh("unseen_perturbation")
    assert len(seen) == 1


def test_wrong_arguments_are_named():
    for options, message in (
        ({"n_folds": 1}, r"n_folds=1 "),
        ({"scenarios": ["pairs"]}, r"scenarios='pairs' is not known; choose one of 'context_tr"),
        ({"profile": "median"}, r"profile='median' is not known"),
        ({"members": {}}, r"members is empty; name one at least"),
    ):
        with pytest.raises(ValueError, match=message):
            StackedMean(**options)
    with pytest.raises(SchemaError, match=r"Members \['other'\] have another profile than 'effec"):
        StackedMean(
            members={"other": NoChange(), "same": NoChange(profile="effects")}, profile="effects"
        )
    with pytest.raises(SchemaError, match="no training condition that has a control"):
        StackedMean(profile="effects").fit(effects([("control", [1.0, 2.0])]))


@pytest.mark.parametrize("interval", [0, 1, -0.5, 90])
def test_an_interval_is_a_share(additive, interval):
    stack, _, _, _ = additive
    with pytest.raises(ValueError, match=rf"interval={interval} is out of range"):
        stack.predict(["A+C"], interval=interval)


def test_a_member_of_ones_own_that_cannot_learn_says_so():
    train, _, _ = additive_table()
    members = {"ridge": KernelRidge(profile="effects"), "none": NoChange(profile="effects")}
    stack = StackedMean(members=members, profile="effects").fit(train)
    with pytest.raises(SchemaError, match="features"):
        stack.predict(["A"])


def test_members_that_no_fold_leaves_anything_to_learn_from():
    """Whatever is left out, nobody is left who can be fitted or asked: no error is known."""
    store = PerturbationFeatures({"x": pd.DataFrame([[1.0], [2.0]], index=["A", "Z"])})
    with pytest.warns(UserWarning, match="leaves out 1 of 2"):
        stack = StackedMean(
            members={"ridge": KernelRidge(store, profile="effects")},
            profile="effects",
            scenarios=["unseen_perturbation"],
        ).fit(effects([("A", [1.0, 2.0]), ("Y", [3.0, 4.0])]))
    made = stack.predict(["Z"])
    np.testing.assert_allclose(made.X, [[1, 2]], atol=1e-6)
    assert np.isnan([made.layers[layer][0] for layer in LAYERS[1:]]).all()


KEYS = ScreenKeys("perturbation", dose="dose")
COLUMNS = ["perturbation", "dose", "cell_type"]
SETS = np.random.default_rng(7).integers(0, 2, (16, 3)).astype(float)
STORE = PerturbationFeatures({"sets": pd.DataFrame(SETS, index=list("ABCDEFGHIJKLMNOP"))})


def crossed(names, doses, contexts):
    """Return all names at all doses in all contexts."""
    return [(n, str(d), c) for n, d, c in itertools.product(names, doses, contexts)]


#: What is asked of each scenario, and what training has besides that.
ASKED = {
    "unseen_context": [(name, "1.0", "Q") for name in "ABC"],
    "context_transfer": [("B", "1.0", "T"), ("C", "1.0", "M")],
    "unseen_combination": [("A+B", "1+1", "T"), ("C+D", "1+1", "T")],
    "dose": [("C", "1.0", "T"), ("D", "3.0", "T")],
    "dose_beyond": [("D", "10.0", "T"), ("A", "10.0", "T")],
    "unseen_perturbation": [("O", "1.0", "T"), ("P", "1.0", "T")],
}
OTHERS = {
    "unseen_context": crossed("ABCDE", [1.0], "TBMN"),
    "context_transfer": crossed("ABCDE", [1.0], "TBMN"),
    "unseen_combination": crossed("ABCDEF", [1.0], "T")
    + crossed([pair for pair in PAIRS if "G" not in pair and "H" not in pair], ["1+1"], "T"),
    "dose": crossed("ABCDEF", [0.1, 1.0, 3.0, 10.0], "T"),
    "dose_beyond": crossed("ABCDEF", [0.1, 1.0, 3.0, 10.0], "T"),
    "unseen_perturbation": crossed("ABCDEFGHIJKLMN", [1.0], "T"),
}


def world(scenario):
    """Return a screen for a scenario, what is asked, and its truth.

    Effects add up, follow a Hill curve of the dose, are linear in features, and differ a little
    between contexts.
    """
    rng = np.random.default_rng(0)
    vectors = dict(zip(STORE.names, SETS @ rng.normal(size=(3, N_GENES)), strict=True))
    shape = {context: 1 + 0.2 * rng.normal(size=N_GENES) for context in "TBMNQ"}

    def truth(names, doses, context):
        parts = zip(names.split("+"), map(float, doses.split("+")), strict=True)
        return shape[context] * sum(vectors[name] * dose / (dose + 1) for name, dose in parts)

    asked = ASKED[scenario]
    elsewhere = scenario in ("unseen_context", "context_transfer")
    away = set() if elsewhere else {row[:2] for row in asked}
    rows = [row for row in OTHERS[scenario] if row not in asked and row[:2] not in away]
    seen = [(row[0], truth(*row) + 0.05 * rng.normal(size=N_GENES)) for row in rows]
    table = effects(seen, dose=[row[1] for row in rows], cell_type=[row[2] for row in rows])
    return table, pd.DataFrame(asked, columns=COLUMNS), np.array([truth(*row) for row in asked])


@pytest.mark.parametrize("scenario", list(ASKED))
def test_each_question_is_tried_on_training_and_answered(scenario):
    table, asked, truth = world(scenario)
    features = STORE if scenario == "unseen_perturbation" else None
    stack = StackedMean(features, profile="effects", n_folds=3)
    made = stack.fit(table, keys=replace(KEYS, context=CONTEXT)).predict(asked)
    assert set(made.obs["scenario"]) == {scenario}
    assert error(made.X, truth) < 0.15
    assert (made.layers["lower"] < made.layers["upper"]).all()
    np.testing.assert_allclose(stack.weights_.loc[scenario].sum(), 1)
    report = stack.calibration_.loc[scenario]
    assert report["error"] < 0.3
    assert report["n_units"] > 1
    assert report["error"] < 1.2 * report["best_member_error"]


def test_all_questions_together_are_answered_as_each_alone():
    table = anndata.concat([world(scenario)[0] for scenario in ASKED], index_unique="-")
    asked = pd.DataFrame([row for rows in ASKED.values() for row in rows], columns=COLUMNS)
    kept = [tuple(row) not in set(asked.itertuples(index=False, name=None))
            for row in table.obs[COLUMNS].itertuples(index=False, name=None)]  # fmt: skip
    members = {
        "none": NoChange(profile="effects"),
        "mean": ContextMean("all", profile="effects"),
        "here": ContextMean("perturbations", profile="effects"),
    }
    stack = StackedMean(STORE, members=members, profile="effects", n_folds=3)
    stack.fit(table[kept].copy(), keys=replace(KEYS, context=CONTEXT))
    asked = asked.sample(frac=1, random_state=0, ignore_index=True)
    made = stack.predict(asked)
    assert made.obs["scenario"].nunique() > 4
    assert made.obs["perturbation"].tolist() == asked["perturbation"].tolist()
    for i in range(len(asked)):
        assert_same(made[i].copy(), stack.predict(asked.iloc[[i]]))
    # Nothing was measured in a context that is left out: its mean is unknown, and has no weight.
    assert stack.weights_["here"].isna()["unseen_context"]
    np.testing.assert_allclose(stack.weights_.sum(axis=1), 1)


def test_where_nothing_can_be_said_effects_shrink():
    """Features that have nothing to do with the effects, which are drawn at random."""
    rng = np.random.default_rng(0)
    names = [f"p{i:02d}" for i in range(50)]
    store = PerturbationFeatures({"text": pd.DataFrame(rng.normal(size=(50, 4)), index=names)})
    table = effects(list(zip(names[:40], rng.normal(size=(40, 30)), strict=True)))
    stack = StackedMean(store, profile="effects", n_folds=4).fit(table)
    made = stack.predict(names[40:])
    assert (made.X**2).mean() < 0.1
    assert np.sqrt((made.layers["std"] ** 2).mean()) == pytest.approx(1, abs=0.1)
    assert stack.calibration_.loc["unseen_perturbation", "error"] == pytest.approx(1, abs=0.1)


def test_no_effects_at_all_are_no_failure():
    names = ["A", "B", "C", "A+B", "A+C"]
    table = effects([(name, np.zeros(4)) for name in names])
    stack = StackedMean(profile="effects").fit(table)
    made = stack.predict(["B+C", "A"])
    for layer in LAYERS:
        np.testing.assert_allclose(made.layers[layer], 0, atol=1e-6)
    report = stack.calibration_.loc["unseen_combination"]
    assert np.isnan(report["error"])
    assert report["coverage_90"] == 1


def test_one_condition_is_enough():
    stack = StackedMean(profile="effects").fit(effects([("A", [1.0, -2.0])]))
    made = stack.predict(["A"])
    np.testing.assert_allclose(made.X, [[1.0, -2.0]], rtol=0.1)
    assert np.isfinite([made.layers[layer] for layer in LAYERS]).all()


def test_without_refits_intervals_are_about_the_final_prediction(monkeypatch):
    """Which are kept of small screens alone."""
    train, _, _ = additive_table()
    monkeypatch.setattr(_stack_fit, "MOST_KEPT", 10)
    stack = StackedMean(profile="effects", n_folds=5).fit(train)
    made = stack.predict(["A+C", "A+E"])
    above = made.layers["upper"] - made.layers["lfc"]
    np.testing.assert_allclose(above, made.layers["lfc"] - made.layers["lower"], rtol=1e-4)
    monkeypatch.undo()
    whole = StackedMean(profile="effects", n_folds=5).fit(train).predict(["A+C", "A+E"])
    np.testing.assert_array_equal(made.X, whole.X)
    np.testing.assert_array_equal(made.layers["std"], whole.layers["std"])
    width = whole.layers["upper"] - whole.layers["lower"]
    assert width.mean() == pytest.approx(2 * above.mean(), rel=0.2)


def test_intervals_are_about_what_each_fold_predicts():
    """CV+: of a mean over training, the mean over what the fold keeps."""
    train, _, _ = additive_table()
    members = {"mean": ContextMean("all", profile="effects"), "none": NoChange(profile="effects")}
    stack = StackedMean(members=members, profile="effects", n_folds=4).fit(train)
    made = stack.predict(["new"])
    weighed = stack.weigh("unseen_perturbation")
    weights, spread = weighed.solve(["mean", "none"])
    weight = weights["mean"]
    assert 0.05 < weight < 1
    rows = [row.condition.perturbation for row in weighed.left_out.rows]
    centres = []
    for k in range(4):
        gone = {row for row, fold in zip(rows, weighed.left_out.fold, strict=True) if fold == k}
        kept = ~train.obs["perturbation"].isin(gone).to_numpy()
        centres.append(weight * train.X[kept].mean(axis=0, keepdims=True))
    mean = weight * train.X.mean(axis=0, keepdims=True)
    np.testing.assert_allclose(made.X, mean, rtol=1e-5, atol=1e-6)
    away = weight * (mean / weight - mean) ** 2 + (1 - weight) * mean**2
    covariates = ErrorCovariates(mean, away, np.zeros_like(mean))
    lower, upper = spread.interval(covariates, np.stack(centres), 0.9)
    np.testing.assert_allclose(made.layers["lower"], lower, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(made.layers["upper"], upper, rtol=1e-4, atol=1e-5)


class Sealed(Additive):
    """A predictor that comes from elsewhere and is not fitted again."""

    can_refit = False


def test_what_cannot_be_fitted_again_has_unknown_errors():
    train, _, _ = additive_table()
    members = {"sealed": Sealed(profile="effects"), "none": NoChange(profile="effects")}
    stack = StackedMean(members=members, profile="effects").fit(train)
    made = stack.predict(["A+C"])
    np.testing.assert_allclose(
        made.X, lfc(Additive(profile="effects").fit(train), ["A+C"]) / 2, rtol=1e-6
    )
    assert np.isnan(made.layers["std"]).all()
    assert stack.weights_.empty


class Oracle:
    """A member that is trained elsewhere, and knows what is measured; or says nothing."""

    def __init__(self, measured, scenarios=("unseen_combination",)):
        self.measured, self.scenarios = measured, scenarios
        self.heard = []

    def left_out(self, scenario, rows, folds):
        self.heard.append((scenario, len(rows), [len(fold.asked) for fold in folds]))
        if scenario not in self.scenarios:
            return None
        return [np.stack([self.of(rows[i]) for i in fold.asked]) for fold in folds]

    def of(self, row):
        return self.measured[row.condition.perturbation]


def test_members_that_are_trained_elsewhere_take_part():
    train, held, _ = additive_table(noise=1.0)
    both = anndata.concat([train, held], index_unique="-")
    oracle = Oracle(dict(zip(both.obs["perturbation"], both.X, strict=True)))
    stack = StackedMean(profile="effects", n_folds=4, external={"oracle": oracle}).fit(train)
    requests = parse_requests(PAIRS[1::2], keys=stack.profiles.keys)
    known = np.stack([oracle.of(row) for row in requests])
    made = stack.predict_changes(requests, external={"oracle": known})
    without = stack.predict_changes(requests)
    # 14 units say that it is always right, and those of the prior that the regression is as good.
    weights = stack.weights_.loc["unseen_combination"]
    assert weights["oracle"] == pytest.approx((14 + N_PRIOR / 2) / (14 + N_PRIOR), abs=0.01)
    assert error(made.mean, held.X) < 0.5 * error(without.mean, held.X)
    ((scenario, n_rows, sizes),) = oracle.heard
    assert (scenario, n_rows, sum(sizes)) == ("unseen_combination", 22, 14)
    alone = StackedMean(profile="effects", n_folds=4).fit(train).predict_changes(requests)
    np.testing.assert_allclose(without.mean, alone.mean, atol=1e-3)
    assert np.isnan(stack.predict_changes(requests, interval=None).lower).all()


def test_members_from_elsewhere_that_were_not_tried_have_an_equal_part():
    """With all the others together; but what was measured is nobody else's affair."""
    train, _, _ = additive_table()
    oracle = Oracle({}, scenarios=())
    stack = StackedMean(profile="effects", n_folds=4, external={"oracle": oracle}).fit(train)
    requests = parse_requests(["A+C", "A"], keys=stack.profiles.keys)
    alone = stack.predict_changes(requests).mean
    made = stack.predict_changes(requests, external={"oracle": np.full((2, N_GENES), 7.0)}).mean
    np.testing.assert_allclose(made[0], (alone[0] + 7) / 2)
    np.testing.assert_array_equal(made[1], alone[1])
    assert "oracle" not in stack.weights_.columns


def screened(n_contexts=6, n=30, seed=0):
    """Return a screen of contexts that differ a little; effects are those of `make_screen`."""
    rng = np.random.default_rng(seed)
    parts = []
    for i in range(n_contexts):
        part = make_screen([(p, "TB"[i % 2]) for p in ("control", "A", "C")], n=n)
        depth = np.tile(np.arange(1, n + 1), 3)[:, None]
        counts = part.X.toarray() / depth * rng.gamma(50, 1 / 50, 6)
        part.X = rng.poisson(counts).astype(np.float32)
        part.obs["cell_type"] = f"t{i}"
        parts.append(part)
    return anndata.concat(parts, index_unique="-")


def controls(screen, label):
    own = (screen.obs["perturbation"] == "control") & (screen.obs["cell_type"] == label)
    return screen[own].copy()


@pytest.fixture(scope="module", params=["pseudobulk", "cell_mean"])
def contexts(request):
    """A stack that has seen of the last context controls alone."""
    screen = screened()
    new = screen.obs["cell_type"] == "t5"
    seen = screen[~new | (screen.obs["perturbation"] == "control")].copy()
    stack = StackedMean(profile=request.param).fit(seen, keys=ScreenKeys(context=CONTEXT))
    asked = pd.DataFrame({"perturbation": ["A", "C", "control"], "cell_type": "t5"})
    return stack, seen, asked, stack.predict(asked)


def test_a_context_of_which_controls_alone_were_seen(contexts):
    stack, _, _, made = contexts
    assert made.obs["scenario"].tolist() == ["unseen_context", "unseen_context", "control"]
    factors = np.log([[3, 1, 1, 1, 2, 1], [1, 1, 2, 1, 1, 4]])
    base = np.array(CONTROL["B"])
    truth = factors - np.log((base * np.exp(factors)).sum(axis=1) / base.sum())[:, None]
    assert error(made.layers["lfc"][:2], truth) < 0.1
    assert stack.calibration_.loc["unseen_context", "n_units"] == 5
    np.testing.assert_allclose(made.X[:2], made.X[2] + made.layers["lfc"][:2], atol=1e-5)


def test_the_same_cells_as_reference_are_the_same_context(contexts):
    stack, seen, asked, made = contexts
    again = stack.predict(asked, reference=controls(seen, "t5"))
    assert_same(again, made, rtol=1e-4, atol=1e-5)
    renamed = controls(seen, "t5")
    renamed.obs["cell_type"] = "unheard of"
    renamed.var["extra"] = 1
    other = stack.predict(["A", "C", "control"], reference=renamed[:, ::-1].copy())
    assert other.var_names.tolist() == GENES
    assert other.obs["scenario"].tolist() == made.obs["scenario"].tolist()
    # The other contexts, of which the mean is taken, are now all six, of which this is one.
    np.testing.assert_allclose(other.X, made.X, atol=0.05)


def test_one_reference_cell_is_drawn_to_the_other_contexts(contexts):
    stack, seen, asked, _ = contexts
    cells = controls(seen, "t5")
    few, many = (stack.predict(asked, reference=cells[:n].copy()) for n in (1, 30))
    assert np.isfinite(few.X).all()
    assert np.isfinite(few.layers["upper"][:2]).all()
    np.testing.assert_array_equal(few.layers["lfc"][2], 0)
    start = few.X[2] - many.X[2]
    away = few.X[:2] - many.X[:2]
    assert np.linalg.norm(start) > 0.3
    assert (np.linalg.norm(away, axis=1) < 0.7 * np.linalg.norm(start)).all()


def test_a_reference_of_a_context_seen_asks_nothing_new(contexts):
    stack, seen, _, _ = contexts
    asked = pd.DataFrame({"perturbation": ["A"], "cell_type": "t0"})
    made = stack.predict(asked, reference=controls(seen, "t0"))
    assert made.obs["scenario"].tolist() == ["seen"]
    assert_same(made, stack.predict(asked), rtol=1e-4, atol=1e-5)


def test_an_open_context_is_seen(contexts):
    stack, _, _, _ = contexts
    made = stack.predict(["A", "C"])
    assert made.obs["scenario"].tolist() == ["seen", "seen"]
    assert made.obs["cell_type"].isna().all()


def test_a_context_without_controls_is_asked_for_in_vain(contexts):
    stack, _, _, _ = contexts
    asked = pd.DataFrame({"perturbation": ["A"], "cell_type": "t9"})
    with pytest.raises(SchemaError, match=r"No training control has context \('t9',\)"):
        stack.predict(asked)


def test_contexts_without_controls_are_told_of_once():
    screen = screened(4)
    lonely = screen[(screen.obs["cell_type"] != "t3") | (screen.obs["perturbation"] != "control")]
    stack = StackedMean(scenarios=["unseen_context"])
    with pytest.warns(UserWarning, match="no control cell in training") as seen:
        stack.fit(lonely.copy(), keys=ScreenKeys(context=CONTEXT))
    assert len(seen) == 1
    assert stack.calibration_.loc["unseen_context", "n_units"] == 3


def test_answers_can_be_written_and_are_those_of_predict(contexts, tmp_path):
    stack, _, asked, made = contexts
    made.write_h5ad(tmp_path / "made.h5ad")
    read = anndata.read_h5ad(tmp_path / "made.h5ad")
    assert_same(read, made, rtol=0, atol=0)
    requests = parse_requests(asked, keys=replace(stack.profiles.keys, context=CONTEXT))
    np.testing.assert_allclose(stack.changes(requests), made.layers["lfc"], rtol=1e-5, atol=1e-6)


MEANS = [cls for cls in PREDICTORS.values() if issubclass(cls, MeanPredictor)]


@pytest.mark.parametrize("cls", MEANS)
def test_changes_are_those_of_predict(cls, screen):
    predictor = build(cls).fit(screen, keys=ScreenKeys(context=CONTEXT))
    asked = pd.DataFrame({"perturbation": ["A", "control", "C"], "cell_type": ["T", "B", "B"]})
    requests = parse_requests(asked, keys=replace(predictor.profiles.keys, context=CONTEXT))
    made = predictor.changes(requests)
    assert made.dtype == np.float64
    expected = predictor.predict(asked).layers["lfc"]
    np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-6)
    assert not made[1].any()


@pytest.mark.parametrize("cls", MEANS)
def test_what_is_learned_from_profiles_is_what_is_learned_from_cells(cls, screen):
    first = build(cls).fit(screen, keys=ScreenKeys(context=CONTEXT))
    second = build(cls).fit_profiles(first.profiles)
    asked = pd.DataFrame({"perturbation": ["A", "C"], "cell_type": ["T", "B"]})
    np.testing.assert_array_equal(first.predict(asked).X, second.predict(asked).X)
