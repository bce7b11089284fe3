"""Each part is found by its name, and does what it says."""

from __future__ import annotations

import numpy as np
import torch
from grand_mean import GrandMean

from scvi_perturb import PerturbDiffusion, SamplerConfig
from scvi_perturb.cli import main
from scvi_perturb.data import split
from scvi_perturb.generative import SAMPLERS, get_schedule
from scvi_perturb.metrics import METRICS, CellPopulation, Comparison, GroundTruth, score
from scvi_perturb.predictors import PREDICTORS
from scvi_perturb.testing import SINGLE, ModelCase, fit, make_model, make_screen


def test_sampler_draws_a_gaussian_whose_denoiser_is_known():
    schedule, mean, spread = get_schedule("cosine"), torch.tensor([2.0, -1.0]), 0.5

    def predict_x0(x_t: torch.Tensor, t: float) -> torch.Tensor:
        alpha, sigma = (f(torch.tensor(t)) for f in (schedule.alpha, schedule.sigma))
        gain = alpha * spread**2 / (alpha**2 * spread**2 + sigma**2)
        return mean + gain * (x_t - alpha * mean)

    noise = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    drawn = SAMPLERS["even-ddim"](predict_x0, noise, schedule, n_evaluations=200)
    error = 4 * spread / 4000**0.5
    torch.testing.assert_close(drawn.mean(0), mean, rtol=0, atol=error)
    torch.testing.assert_close(drawn.std(0), torch.full((2,), spread), rtol=0.05, atol=0)


def test_a_model_takes_the_sampler_by_name():
    small = {"n_latent": 4, "n_hidden": 16}
    case = ModelCase(PerturbDiffusion, init=small, train={"max_epochs": 2, "n_steps": 10})
    model = fit(case, make_model(case, make_screen()))
    cells = model.sample([SINGLE], n_samples=5, sampler=SamplerConfig("even-ddim", 50))
    assert cells.uns["scvi_perturb"]["sampler"] == "even-ddim"


def test_metric_is_scored_beside_the_others():
    assert "sign_agreement" in METRICS
    real = np.array([3.0, -2.0, 1.0, 0.1])
    truth = GroundTruth(CellPopulation(real), CellPopulation(np.zeros(4)), n_top=3)
    assert score(Comparison(CellPopulation(real / 2), truth))["sign_agreement"] == 1
    assert score(Comparison(CellPopulation(-real), truth))["sign_agreement"] == 0


def test_predictor_says_the_same_of_all_conditions():
    assert PREDICTORS["grand_mean"] is GrandMean
    adata = make_screen()
    fitted = GrandMean().fit(adata, split(adata, "unseen_combination", seed=0))
    one, two = fitted.predict(["pert_01", "pert_02+pert_03"]).layers["lfc"]
    np.testing.assert_array_equal(one, two)


def test_command_counts_cells(tmp_path, capsys):
    adata = make_screen()
    del adata.uns["truth"]
    adata.write_h5ad(tmp_path / "screen.h5ad")
    assert not main(["count", str(tmp_path / "screen.h5ad")])
    assert "control" in capsys.readouterr().out
    assert main(["count", str(tmp_path / "screen.h5ad"), "--column", "guide"]) == 2
    assert "no column 'guide'" in capsys.readouterr().err
