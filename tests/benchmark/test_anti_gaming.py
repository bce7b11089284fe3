"""The judge is tested too: what must not help does not help, and what is right scores as right."""

from __future__ import annotations

from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scvi_perturb.benchmark import Method, Study, evaluate, run
from scvi_perturb.data import SplitOptions
from scvi_perturb.metrics import METRICS, CellPopulation, Comparison, log_normalize, score_all
from scvi_perturb.predictors import ContextMean, NoChange
from tests.benchmark._world import (
    N_EACH,
    TASK,
    answer,
    make_trial,
    per_condition,
    request_rows,
    screen,
    totals,
    truth_cells,
    with_genes,
)

#: Metrics that say how well a prediction fits, means first, then cells.
OF_MEANS = ("nmse_vs_no_change", "wmse", "r2_weighted", "cosine_delta", "pearson_delta")
OF_CELLS = ("energy", "crps", "energy_score", "variogram_score", "pit_ece", "variance_ratio")


@pytest.fixture(scope="module")
def trial():
    return make_trial()


@pytest.fixture(scope="module")
def good(trial):
    return truth_cells(trial)


@pytest.fixture(scope="module")
def right(trial, good):
    return totals(evaluate(trial, good))


def loss(scores, name):
    return float(METRICS[name].loss(scores[name]))


def control_counts(trial):
    return trial.visible[(trial.visible.obs["perturbation"] == "control").to_numpy()].X


def test_constant_prediction_cannot_tell_conditions_apart(trial, tmp_path):
    constant = Method(name="constant", make=_mean_of_training)
    trivial = Method(name="no_change", make=_nothing, role="mean")
    study = Study(tasks=(TASK,), methods=(constant, trivial), seeds=(0,), max_folds=1)
    results = run(study, tmp_path)
    frame = results.frame()
    own = frame[(frame["method"] == "constant") & (frame["metric"] == "discrimination")]
    # Exactly, up to rounding of the mean: each condition takes each rank once.
    assert own["value"].mean() == pytest.approx(0.5, abs=1e-12)
    nothing = frame[(frame["method"] == "no_change") & (frame["metric"] == "discrimination")]
    assert (nothing["value"] == 0.5).all()
    summary = results.summary(n_boot=50).set_index(["method", "metric"])
    assert summary.loc[("constant", "discrimination"), "s"] <= 1e-12
    assert summary.loc[("constant", "discrimination_centred"), "u"] == 0.5


def _mean_of_training(setting):
    return ContextMean("perturbations", profile=setting.profile)


def _nothing(setting):
    return NoChange(profile=setting.profile)


def test_real_cells_against_their_other_half_score_about_one(trial, right):
    repeated = totals(score_all([case.replicate for case in trial.conditions]))
    nothing = totals(evaluate(trial, _pasted_controls(trial)))
    for name in ("nmse_vs_no_change", "energy", "wmse", "crps", "pearson_delta", "de_jaccard"):
        room = loss(nothing, name) - loss(repeated, name)
        assert (loss(nothing, name) - loss(right, name)) / room == pytest.approx(1, abs=0.15), name


def test_permuted_labels_score_as_chance(trial, good):
    names = trial.requests["perturbation"].tolist()
    turned = dict(zip(names, [*names[1:], names[0]], strict=True))
    wrong = good.copy()
    wrong.obs["perturbation"] = wrong.obs["perturbation"].map(turned).to_numpy()
    frame = evaluate(trial, wrong)
    found = totals(frame)
    # A derangement of n conditions is never first; by chance the others are ranked evenly.
    values = frame[frame["metric"] == "discrimination"]["value"]
    error = np.sqrt(1 / 12 / len(values))
    assert found["discrimination"] == pytest.approx(0.5, abs=3 * error)
    assert found["cosine_delta"] < 0.3
    assert found["nmse_vs_no_change"] > 1


def _pasted_controls(trial):
    counts = control_counts(trial)
    return with_genes(_concat([answer(counts[:N_EACH], row) for row in request_rows(trial)]), trial)


def _concat(parts):
    return anndata.concat(parts, index_unique="-")


def test_pasted_controls_have_an_error_of_one(trial):
    """Exactly 1 where the very control cells are pasted; the noise of both sides is taken out."""
    same = [
        Comparison(
            CellPopulation(case.truth.control.mean, case.truth.control.mean_variance), case.truth
        )
        for case in trial.conditions
    ]
    found = totals(score_all(same, ["nmse_vs_no_change", "nmse_vs_no_change"]))
    assert found["nmse_vs_no_change"] == pytest.approx(1, abs=1e-9)
    assert found["nmse_vs_no_change"] == pytest.approx(1, abs=1e-9)
    some = totals(evaluate(trial, _pasted_controls(trial)))
    assert some["nmse_vs_no_change"] == pytest.approx(1, abs=0.05)


def tripled(trial, good):
    """Cells whose genes moved by the third power of their true factors."""
    base = np.asarray(control_counts(trial).sum(0)).ravel() + 1.0
    base /= base.sum()
    rng = np.random.default_rng(0)

    def change(values, name):
        share = (values.sum(0) + 1.0) / (values.sum() + len(base))
        rates = values / np.maximum(values.sum(1, keepdims=True), 1) * (share / base) ** 2
        rates = rates / rates.sum(1, keepdims=True) * values.sum(1, keepdims=True)
        return rng.poisson(rates)

    return per_condition(good, change)


def test_exaggerated_changes_score_worse(trial, good, right):
    wrong = totals(evaluate(trial, tripled(trial, good)))
    for name in ("nmse_vs_no_change", "wmse", "r2_weighted", "de_lfc_nmae", *OF_CELLS):
        assert loss(wrong, name) > loss(right, name), name


def test_twice_logged_values_score_worse(trial, good, right):
    logged = good.copy()
    counts = good.X.toarray()
    once = np.log1p(1e4 * counts / counts.sum(1, keepdims=True))
    logged.X = np.log1p(once)
    logged.uns["scvi_perturb"] = {"units": "log1p(counts per 10,000)"}
    wrong = totals(evaluate(trial, logged))
    for name in (*OF_MEANS, *OF_CELLS, "de_jaccard"):
        assert loss(wrong, name) > loss(right, name), name


def test_flooding_of_significant_genes_lowers_jaccard(trial, good, right):
    rng = np.random.default_rng(0)
    shares = np.where(rng.random(good.n_vars) < 0.5, 0.6, 1.0)
    flooded = per_condition(good, lambda values, _: rng.binomial(values.astype(int), shares))
    found = totals(evaluate(trial, flooded))
    assert found["de_jaccard"] < right["de_jaccard"] - 0.1
    assert found["de_direction_yield"] < right["de_direction_yield"]


def test_raising_the_targets_of_others_gains_nothing(trial):
    """A list of the targets is no knowledge: with them raised, controls stay at chance."""
    pasted = _pasted_controls(trial)
    targets = trial.requests["perturbation"].tolist()
    places = [list(trial.visible.var_names).index(name) for name in targets]

    def spike(values, name):
        values = values.copy()
        others = [place for target, place in zip(targets, places, strict=True) if target != name]
        values[:, others] += 50
        return values

    spiked = per_condition(pasted, spike)
    before, after = (evaluate(trial, cells) for cells in (pasted, spiked))
    for name in ("discrimination", "discrimination_centred"):
        chance = np.sqrt(1 / 12 / len(targets))
        assert totals(after)[name] == pytest.approx(0.5, abs=3 * chance)
    for name in ("cosine_delta", "nmse_vs_no_change", "r2_weighted"):
        assert loss(totals(after), name) >= loss(totals(before), name) - 1e-6, name


def _shifted_controls(trial, good):
    control = log_normalize(control_counts(trial)).toarray()
    parts = []
    for row in request_rows(trial):
        cells = good[(good.obs["perturbation"] == row["perturbation"]).to_numpy()].X
        change = log_normalize(cells).toarray().mean(0) - control.mean(0)
        parts.append(answer(np.maximum(control[:N_EACH] + change, 0), row))
    made = with_genes(_concat(parts), trial)
    made.uns["scvi_perturb"] = {"units": "log1p(counts per 10,000)"}
    return made


def test_cells_without_variance_fail(trial, good, right):
    alike = per_condition(good, lambda v, _: np.repeat(np.rint(v.mean(0))[None], len(v), axis=0))
    wrong = totals(evaluate(trial, alike))
    assert wrong["variance_ratio"] < 0.01
    assert wrong["correlation_agreement"] < 0.5 * right["correlation_agreement"]
    assert wrong["pit_ece"] > 5 * right["pit_ece"]
    assert wrong["cell_coverage_90"] < 0.6
    assert wrong["crps"] > 1.1 * right["crps"]
    # Their mean is right, and still they are worse than control cells moved by that mean.
    floor = totals(score_all([case.replicate for case in trial.conditions]))["energy"]
    shifted = totals(evaluate(trial, _shifted_controls(trial, good)))["energy"]
    assert (wrong["energy"] - floor) / (shifted - floor) > 1
    assert (right["energy"] - floor) / (shifted - floor) < 0.5


def test_twisted_predicted_controls_change_nothing(trial, good):
    """Changes are taken from real controls: a prediction's own controls are not read."""
    twisted = _concat([good, with_genes(answer(control_counts(trial)[:50] * 7, _control()), trial)])
    twisted.var_names = good.var_names
    with pytest.raises(ValueError, match="were not asked for"):
        evaluate(trial, twisted)
    kept = twisted[(twisted.obs["perturbation"] != "control").to_numpy()].copy()
    pd.testing.assert_frame_equal(evaluate(trial, kept), evaluate(trial, good))


def _control():
    return {"perturbation": "control", "cell_type": "type_01"}


def test_order_of_conditions_cells_and_genes_changes_nothing(trial, good):
    rng = np.random.default_rng(3)
    shuffled = good[rng.permutation(good.n_obs)][:, rng.permutation(good.n_vars)].copy()
    shuffled.obs_names = [f"other_{i}" for i in range(good.n_obs)]
    first, second = (evaluate(trial, cells) for cells in (good, shuffled))
    exact = {*OF_MEANS, "nmse", "discrimination", "de_jaccard", "de_lfc_nmae", "energy"}
    for name in sorted(exact | {"variance_ratio", "zero_fraction_error", "crps"}):
        values = [frame[frame["metric"] == name]["value"].to_numpy() for frame in (first, second)]
        np.testing.assert_allclose(*values, rtol=1e-6, err_msg=name)


def test_renamed_conditions_score_the_same(trial, good):
    """Names are labels: with all of them changed alike, nothing changes."""

    def renamed():
        adata = screen()
        adata.var_names = [_other(name) for name in adata.var_names]
        adata.obs["perturbation"] = adata.obs["perturbation"].astype(str).map(_other).to_numpy()
        return adata

    names = trial.requests["perturbation"].tolist()
    # The same conditions are held out, whatever order new names have.
    task = replace(
        TASK, load=renamed, fold_options=(SplitOptions(held_out=[_other(n) for n in names]),)
    )
    other = make_trial(task)
    assert set(other.requests["perturbation"]) == {_other(name) for name in names}
    cells = good.copy()
    cells.obs["perturbation"] = cells.obs["perturbation"].map(_other).to_numpy()
    cells.var_names = other.visible.var_names
    first, second = evaluate(trial, good), evaluate(other, cells)
    second["condition"] = second["condition"].str.replace("zz_", "pert_")
    for name in ("nmse_vs_no_change", "cosine_delta", "discrimination", "de_jaccard", "wmse"):
        one, two = (
            frame[frame["metric"] == name].set_index("condition")["value"].sort_index()
            for frame in (first, second)
        )
        pd.testing.assert_series_equal(one, two, rtol=1e-6)


def _other(name):
    return name.replace("pert_", "zz_") if name.startswith("pert_") else name


def test_scatter_cannot_buy_score(trial, good):
    """The prediction's noise is taken out of its error only up to that of the real cells."""
    rng = np.random.default_rng(0)

    def scatter(values, name):
        del name
        made = np.zeros_like(values)
        made[rng.permutation(len(values))[:20]] = values.sum(0) / 20  # all counts in a few cells
        made[made.sum(1) == 0, 0] = 1
        return np.rint(made)

    few = per_condition(_pasted_controls(trial), scatter)
    assert sparse.issparse(few.X)
    assert totals(evaluate(trial, few))["nmse_vs_no_change"] > 0.9
