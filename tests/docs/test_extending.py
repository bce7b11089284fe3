"""The page on extending, walked through: its code is run, and what it adds is used."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import sparse

from scvi_perturb import UnknownPerturbationError
from scvi_perturb.benchmark import Study, run
from scvi_perturb.data import split
from scvi_perturb.generative import SAMPLERS
from scvi_perturb.metrics import METRICS, Comparison, Population, Truth, _registry, score
from scvi_perturb.predictors import Predictor, ShiftedControl
from scvi_perturb.testing import NEW_PAIR, controls, fit, make_features, make_model, make_screen
from tests.docs._blocks import python_blocks


@pytest.fixture(scope="module")
def page(root):
    """The names that the page's code makes."""
    before = dict(SAMPLERS)
    made = {}
    for block in python_blocks(root / "docs" / "extending.md"):
        exec(compile(block, "extending.md", "exec"), made)
    yield made
    SAMPLERS.clear()
    SAMPLERS.update(before)


@pytest.mark.parametrize("spread", [0.3, 1.0])
def test_sampler_draws_a_gaussian_whose_denoiser_is_known(page, spread):
    schedule = page["LogLinearSchedule"]()
    mean = torch.tensor([2.0, -1.0])
    calls = []

    def predict_x0(x_t, t):
        calls.append(t)
        alpha, sigma = (float(f(torch.tensor(t))) for f in (schedule.alpha, schedule.sigma))
        gain = alpha * spread**2 / (alpha**2 * spread**2 + sigma**2)
        return mean + gain * (x_t - alpha * mean)

    sampler = page["sampler"]
    noise = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    drawn = SAMPLERS[sampler.method](predict_x0, noise, schedule, n_evaluations=200)
    assert len(calls) == 200
    error = 4 * spread / math.sqrt(len(drawn))
    torch.testing.assert_close(drawn.mean(0), mean, rtol=0, atol=error)
    torch.testing.assert_close(drawn.std(0), torch.full((2,), spread), rtol=0.05, atol=0)


def test_schedule_is_one(page):
    schedule = page["LogLinearSchedule"]()
    t = torch.linspace(0.05, 0.95, 7, dtype=torch.float64, requires_grad=True)
    for name in ("alpha", "sigma"):
        value = getattr(schedule, name)(t)
        (slope,) = torch.autograd.grad(value.sum(), t)
        torch.testing.assert_close(getattr(schedule, f"d_{name}")(t), slope)
    torch.testing.assert_close(schedule.time_of_log_snr(schedule.log_snr(t)), t)
    ratio = (schedule.alpha(t) / schedule.sigma(t)) ** 2
    torch.testing.assert_close(ratio.log(), schedule.log_snr(t))


def test_metric_is_computed_beside_the_others(page, monkeypatch):
    metric = page["metric"]
    monkeypatch.setattr(_registry, "METRICS", {**METRICS, metric.name: metric})
    real = np.array([3.0, -2.0, 1.0, 0.1])
    truth = Truth(Population(real), Population(np.zeros(4)), n_top=3)
    assert score(Comparison(Population(-real), truth))[metric.name] == 0
    right = Comparison(Population(real / 2), truth)
    assert score(right, [metric.name]) == {metric.name: metric.best}
    own = replace(truth, own_genes=(0,))
    assert score(Comparison(Population(real * [-1, 1, 1, 1]), own))[metric.name] == 1


def test_predictor_sees_training_cells_only(page):
    adata = make_screen()
    parts = split(adata, "unseen_combination", seed=0)
    grand = page["GrandMean"]().fit(adata, parts)
    assert isinstance(grand, Predictor)
    one, two = grand.predict(["pert_01", "pert_02+pert_03"]).layers["lfc"]
    np.testing.assert_array_equal(one, two)
    spoilt = adata.copy()
    counts = adata.X.toarray()
    counts[parts.test] = 9
    spoilt.X = sparse.csr_matrix(counts)
    again = page["GrandMean"]().fit(spoilt, parts).predict(["pert_01"])
    np.testing.assert_array_equal(again.layers["lfc"][0], one)
    cells = ShiftedControl(page["GrandMean"](profile="cell_mean")).fit(adata, parts)
    assert cells.sample(["pert_01"], n_samples=5, seed=0).n_obs == 5


def test_method_is_judged_on_the_task(page, tmp_path):
    study = Study(tasks=(page["task"],), methods=(page["method"],), seeds=(0,), max_folds=1)
    results = run(study, tmp_path)
    assert results.status().set_index("method")["status"].to_dict() == {
        "grand_mean": "ok",
        "replicate": "ok",
    }
    assert np.isfinite(results.summary().set_index("method").loc["grand_mean", "u"]).any()


def test_features_mark_what_is_missing(page):
    features = page["features"]
    assert features.has("STAT2", "sequence")
    assert not features.has("STAT2", "pathways")


def test_model_keeps_what_every_model_promises(page):
    case, adata = page["case"], make_screen()
    model = fit(case, make_model(case, adata, features=make_features(adata)))
    assert all(f"{stage}_train_loss" in model.history_ for stage in case.stages)
    one, two = (model.sample([NEW_PAIR, "control"], n_samples=40, seed=1) for _ in range(2))
    assert (one.X != two.X).nnz == 0
    assert (one.X.data == np.rint(one.X.data)).all()
    assert one.uns["scvi_perturb"]["model"] == "PerturbShift"
    with pytest.raises(UnknownPerturbationError, match="nobody"):
        model.sample(["nobody"])


def test_model_leaves_out_the_spread_of_responses(page):
    case, adata = page["case"], make_screen()
    model = fit(case, make_model(case, adata))
    one_cell = controls(adata)[:1].copy()
    spread = []
    for verbs in (model, super(type(model), model)):
        request, cells = model._ask(["pert_01"], one_cell)
        tensors = model._vocabulary.tensors(request.conditions, model._seen())
        latents = verbs._draw_latents(
            tensors,
            torch.zeros(50, dtype=torch.long),
            torch.zeros(50, 4),
            torch.from_numpy(cells.context).expand(50),
            sampler=page["SamplerConfig"](),
            random=torch.Generator().manual_seed(0),
        )
        spread.append(float(latents.std(0).mean()))
    assert spread[0] < 0.3 * spread[1]
