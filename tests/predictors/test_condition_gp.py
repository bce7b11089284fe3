"""The Gaussian process over conditions: special cases, known truth, refusals."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

from scvi_perturb._core import NotTrainedError, SchemaError, UnknownPerturbationError
from scvi_perturb.data import Condition, ScreenKeys
from scvi_perturb.data.request import RequestRow
from scvi_perturb.features import PerturbationFeatures
from scvi_perturb.predictors import Additive, ConditionGP, ContextMean, KernelRidge
from tests.predictors._effects import FEATURES, effects, lfc, pairs
from tests.predictors._screen import GENES, make_screen

CONTEXT = ["cell_type"]
NAMES = list("ABCDEFGH")


def additive_table(noise, seed=0, n_genes=30):
    """Singles and pairs whose effects add up, but for noise; and the truth of all pairs."""
    rng = np.random.default_rng(seed)
    alone = {name: rng.normal(size=n_genes) for name in NAMES}
    combined = ["+".join(pair) for pair in itertools.combinations(NAMES, 2)]
    truth = {name: sum(alone[part] for part in name.split("+")) for name in [*NAMES, *combined]}
    trained = [*NAMES, *combined[::2]]
    rows = [(name, truth[name] + noise * rng.normal(size=n_genes)) for name in trained]
    return effects(rows), {name: truth[name] for name in combined[1::2]}


def error(made, truth):
    truth = np.array(list(truth))
    return ((made - truth) ** 2).sum() / (truth**2).sum()


@pytest.mark.parametrize("tune", ["loo", "marginal"])
def test_additive_effects_are_recovered_and_pairs_make_them_better(tune):
    table, truth = additive_table(noise=0.7)
    predictor = ConditionGP(profile="effects", tune=tune).fit(table)
    summed = Additive(profile="effects").fit(table)
    own, other = (error(lfc(p, list(truth)), truth.values()) for p in (predictor, summed))
    assert own < 0.25
    assert own < 0.6 * other


def test_pairs_below_the_sum_of_their_parts_are_learned():
    table, truth = additive_table(noise=0.1)
    sizes = table.obs["perturbation"].str.count("\\+").to_numpy() + 1
    table.X /= np.sqrt(sizes)[:, None]
    predictor = ConditionGP(profile="effects").fit(table)
    shrunken = [change / np.sqrt(2) for change in truth.values()]
    assert error(lfc(predictor, list(truth)), shrunken) < 0.05
    summed = Additive(profile="effects").fit(table)
    assert error(lfc(summed, list(truth)), shrunken) > 0.1


def test_without_noise_what_was_measured_is_returned():
    screen = make_screen([(p, t) for t in ("T", "B") for p in ("control", "A", "C")])
    made = ConditionGP().fit(screen, keys=ScreenKeys(context=CONTEXT))
    for condition, seen in made.deltas.items():
        for context, change in seen.items():
            asked = pd.DataFrame({"perturbation": [str(condition)], "cell_type": [context[0]]})
            answer = made.predict(asked)
            np.testing.assert_allclose(answer.layers["lfc"][0], change, atol=1e-3)
            assert answer.obs["novelty"].iloc[0] < 1e-4
            assert answer.obs["support"].iloc[0] > 1 - 1e-4


def test_contexts_that_tell_nothing_leave_their_mean():
    """One perturbation, whose effects do not go with the control profiles."""
    rng = np.random.default_rng(0)
    effect = rng.normal(size=200)
    labels = [f"t{i}" for i in range(12)]
    rows = [("A", effect + 0.5 * rng.normal(size=200)) for _ in labels]
    table = effects(rows, cell_type=labels)
    asked = pd.DataFrame({"perturbation": ["A"], "cell_type": ["new"]})
    predictor = ConditionGP(profile="effects").fit(table, keys=ScreenKeys(context=CONTEXT))
    mean = ContextMean(profile="effects").fit(table, keys=ScreenKeys(context=CONTEXT))
    assert predictor.leave_out_ == "context"
    np.testing.assert_allclose(lfc(predictor, asked), lfc(mean, asked), rtol=0.1, atol=0.03)


def test_noise_alone_is_no_change():
    rng = np.random.default_rng(1)
    names = [f"p{i}" for i in range(60)]
    store = PerturbationFeatures({"text": pd.DataFrame(rng.normal(size=(60, 4)), index=names)})
    table = effects(pairs(names[:50], rng.normal(size=(50, 40))))
    predictor = ConditionGP(store, profile="effects").fit(table)
    assert (lfc(predictor, names[50:]) ** 2).mean() < 0.05


def test_features_reach_perturbations_never_seen_at_least_as_well_as_kernel_ridge():
    rng = np.random.default_rng(0)
    names = [f"p{i:02d}" for i in range(70)]
    good = pd.DataFrame(rng.integers(0, 2, (70, 12)).astype(float), index=names)
    useless = pd.DataFrame(rng.normal(size=(70, 5)), index=names)
    truth = good.to_numpy() @ rng.normal(size=(12, 20)) + 0.5 * rng.normal(size=(70, 20))
    store = PerturbationFeatures({"useless": useless, "sets": good})
    table = effects(pairs(names[:55], truth))
    gp, ridge = (cls(store, profile="effects").fit(table) for cls in (ConditionGP, KernelRidge))
    asked = names[55:]
    assert error(lfc(gp, asked), truth[55:]) < 0.95 * error(lfc(ridge, asked), truth[55:])
    chosen = gp.hyperparameters_
    assert chosen["features:useless"] < 0.2 * chosen["features:sets"]
    novelty = gp.predict([*names[:5], *asked]).obs["novelty"].to_numpy()
    assert ((novelty >= 0) & (novelty <= 1)).all()
    assert novelty[:5].mean() < novelty[5:].mean()


def test_effects_linear_in_few_measured_features_are_recovered():
    """Of 30 perturbations, with no more noise than a tenth of the effect; no shift is shared."""
    rng = np.random.default_rng(0)
    names = [f"p{i:02d}" for i in range(50)]
    table = pd.DataFrame(rng.normal(size=(50, 8)), index=names)
    truth = table.to_numpy() @ rng.normal(size=(8, 40))
    seen = truth + 0.3 * np.sqrt(8) * rng.normal(size=truth.shape)
    store = PerturbationFeatures({"text": table})
    gp = ConditionGP(store, profile="effects").fit(effects(pairs(names[:30], seen)))
    found = error(lfc(gp, names[30:]), truth[30:])
    # Least squares on 30 rows has an error of noise times d / (n - d - 1) = 0.09 * 8 / 21.
    assert found < 1.5 * 0.09 * 8 / 21
    assert gp.hyperparameters_["linear:text"] > gp.hyperparameters_["features:text"]


def test_a_dose_between_others_and_one_beyond():
    rng = np.random.default_rng(2)
    doses = np.array([0.1, 0.3, 1.0, 3.0, 10.0])
    curve = doses / (doses + 1.0)
    vectors = {name: rng.normal(size=25) for name in NAMES}
    rows = [(n, c * vectors[n]) for n in NAMES for c in curve]
    table = effects(rows, dose=np.tile(doses, len(NAMES)))
    table.X += 0.02 * rng.normal(size=table.shape)
    keys = ScreenKeys("perturbation", dose="dose")
    held = ((table.obs["dose"] == 1.0) & table.obs["perturbation"].isin(["A", "B"])) | (
        (table.obs["dose"] == 10.0) & table.obs["perturbation"].isin(["C", "D"])
    )
    predictor = ConditionGP(profile="effects").fit(table[~held].copy(), keys=keys)
    asked = table.obs.loc[held, ["perturbation", "dose"]].reset_index(drop=True)
    assert predictor.leave_out_ == "condition"
    assert error(lfc(predictor, asked), table.X[held.to_numpy()]) < 0.02


def test_times_near_each_other_are_alike():
    rng = np.random.default_rng(3)
    times = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    vectors = {name: rng.normal(size=(2, 25)) for name in NAMES}
    rows = [(n, vectors[n][0] + np.log(t) * vectors[n][1]) for n in NAMES for t in times]
    table = effects(rows, time=np.tile(times, len(NAMES)))
    keys = ScreenKeys("perturbation", time="time")
    held = ((table.obs["time"] == 4.0) & table.obs["perturbation"].isin(["A", "B"])).to_numpy()
    predictor = ConditionGP(profile="effects").fit(table[~held].copy(), keys=keys)
    asked = table.obs.loc[held, ["perturbation", "time"]].reset_index(drop=True)
    assert error(lfc(predictor, asked), table.X[held]) < 0.1


def test_a_reference_is_compared_by_its_profile():
    """A context near one of training has its effect, whatever it is called."""
    rng = np.random.default_rng(0)
    screen = make_screen([(p, t) for t in ("T", "B") for p in ("control", "A")], n=8)
    screen.X = rng.poisson(screen.X.toarray()).astype(np.float32)
    predictor = ConditionGP(leave_out="context").fit(screen, keys=ScreenKeys(context=CONTEXT))
    near = screen[(screen.obs["perturbation"] == "control") & (screen.obs["cell_type"] == "T")]
    near = near.copy()
    near.obs["cell_type"] = "new"
    asked = pd.DataFrame({"perturbation": ["A"], "cell_type": ["new"]})
    made = predictor.predict(asked, reference=near)
    same = predictor.predict(asked.assign(cell_type="T"))
    np.testing.assert_allclose(made.layers["lfc"], same.layers["lfc"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(made.X, same.X, rtol=1e-4, atol=1e-5)
    assert made.obs["novelty"].iloc[0] == pytest.approx(same.obs["novelty"].iloc[0], abs=1e-6)


def test_controls_do_not_change_and_are_nothing_new(screen):
    made = ConditionGP().fit(screen, keys=ScreenKeys(context=CONTEXT)).predict(["control", "A"])
    assert not made.layers["lfc"][0].any()
    assert not made.layers["std"][0].any()
    assert made.obs["novelty"].iloc[0] == 0
    assert made.layers["std"].shape == (2, len(GENES))


def test_an_open_context_is_the_mean_over_contexts(screen):
    predictor = ConditionGP().fit(screen, keys=ScreenKeys(context=CONTEXT))
    asked = [RequestRow(Condition.parse("A"), (own,)) for own in ("T", "B", None)]
    made = predictor.predict_changes(asked).mean
    np.testing.assert_allclose(made[2], made[:2].mean(axis=0), rtol=1e-4)


def test_the_joint_covariance_agrees_with_novelty():
    table, _ = additive_table(noise=0.3)
    predictor = ConditionGP(profile="effects").fit(table)
    found = predictor.covariance(["A+B", "A+C", "A", "G+H"])
    assert found.shared.shape == (4, 4)
    assert found.gene_scale.shape == (30,)
    np.testing.assert_allclose(found.shared, found.shared.T, atol=1e-10)
    assert np.linalg.eigvalsh(found.shared).min() > -1e-8
    share = np.diagonal(found.shared) / np.diagonal(found.prior)
    assert ((share > 0) & (share < 1)).all()
    with pytest.raises(SchemaError, match="A control does not change"):
        predictor.covariance(["control", "A"])


def test_what_nothing_is_known_of_is_refused():
    rows = [("A", [1.0, 2.0]), ("C", [0.0, 1.0]), ("A+C", [1.0, 2.5]), ("Z", [2.0, 1.0])]
    predictor = ConditionGP(profile="effects").fit(effects(rows))
    with pytest.raises(UnknownPerturbationError, match=r"'Zz' was not trained on.*names: Z"):
        predictor.predict(["Zz"])
    with pytest.raises(UnknownPerturbationError, match="'Y'"):
        predictor.predict(["A+Y"])
    with_features = ConditionGP(FEATURES, profile="effects").fit(effects(rows))
    assert np.isfinite(lfc(with_features, ["D", "A+D", "Z"])).all()
    with pytest.raises(UnknownPerturbationError, match="'Y'"):
        with_features.predict(["D+Y"])


def test_features_of_nothing_in_training_are_no_features():
    predictor = ConditionGP(FEATURES, profile="effects").fit(effects([("Z", [1.0]), ("Y", [2.0])]))
    with pytest.raises(UnknownPerturbationError, match="'A'"):
        predictor.predict(["A"])


def test_wrong_choices_are_named():
    for options, message in (
        ({"tune": "best"}, r"tune='best' is not known; choose one of 'loo', 'marginal'"),
        ({"leave_out": "cell"}, r"leave_out='cell' is not known"),
        ({"n_components": 0}, r"n_components=0"),
        ({"n_tuning": 0}, r"n_tuning=0"),
    ):
        with pytest.raises(ValueError, match=message):
            ConditionGP(**options)
    with pytest.raises(NotTrainedError, match="has not seen data"):
        _ = ConditionGP().hyperparameters_


def test_one_row_is_enough():
    made = ConditionGP(profile="effects").fit(effects([("A", [1.0, -2.0])])).predict(["A"])
    np.testing.assert_allclose(made.layers["lfc"], [[1.0, -2.0]], rtol=0.1)
    assert np.isfinite(made.layers["std"]).all()


@pytest.mark.parametrize("n_components", [None, 3])
def test_tuning_on_a_part_predicts_from_all(n_components):
    table, truth = additive_table(noise=0.3)
    predictor = ConditionGP(profile="effects", n_tuning=12, n_components=n_components).fit(table)
    whole = ConditionGP(profile="effects", n_components=n_components).fit(table)
    first, second = (error(lfc(p, list(truth)), truth.values()) for p in (predictor, whole))
    assert first < 1.5 * second + 0.05
