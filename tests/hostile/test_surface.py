"""Bad inputs are refused by checks of ours: a sample of `python -m benchmarks.hostile`."""

from __future__ import annotations

import inspect
import random
import threading
import warnings

import numpy as np
import pytest
import torch

import scvi_perturb as svp
from benchmarks.hostile.surface import outcome, run_call, run_surface, targets
from benchmarks.hostile.world import QUICK, World
from scvi_perturb.testing import SINGLE


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    models = ("PerturbDiffusion", "CausalPerturbVAE")
    return World(tmp_path_factory.mktemp("hostile"), models=models)


def test_bad_inputs_are_refused_by_checks_of_ours(world):
    report = run_surface(world, n=600, seed=1)
    assert not report.broken
    assert not report.wrong
    assert report.n == 600


def test_an_error_from_within_is_told_from_a_check_of_ours():
    with pytest.raises(AttributeError) as within:
        svp.data.ConditionTable.arrays("no table")
    assert outcome(within.value) == "internal"
    with pytest.raises(ValueError, match="n_evaluations=0") as ours:
        svp.SamplerConfig(n_evaluations=0)
    assert outcome(ours.value) == "refused"


def state():
    return (
        torch.get_rng_state().tolist(),
        [np.asarray(part).tolist() for part in np.random.get_state()[1:3]],  # noqa: NPY002
        random.getstate(),
    )


def test_no_seed_works_everywhere_and_touches_no_global_state(world):
    tried = []
    warnings.simplefilter("ignore")  # pytest restores the filters after the test
    for target in targets(world):
        seeded = "seed" in inspect.signature(target.call).parameters
        records = {"data.Split", "benchmark.Setting", "benchmark.Record", "benchmark.Trial"}
        if not seeded or target.verb in records:  # of a seed that was used
            continue
        if target.verb.startswith("pl."):  # a UMAP compiles for half a minute
            continue
        before = state()
        run_call(target.call, {**target.good(), "seed": None}, limit=60)
        assert state() == before, target.verb
        tried.append(target.verb)
    assert len(tried) > 25
    assert {"PerturbDiffusion.train", "data.split", "metrics.fit_pca"} <= set(tried)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_epoch": 1}, "no argument 'max_epoch'.* max_epochs"),
        ({"n_steps": 0}, "n_steps=0"),
        ({"batch_size": True}, "batch_size=True"),
        ({"checkpoint_dir": ""}, "checkpoint_dir=''"),
    ],
)
def test_wrong_arguments_of_train_are_named(world, arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        world.models["PerturbDiffusion"].train(**arguments)


def test_more_cells_than_fit_into_memory_are_refused_with_an_estimate(world):
    with pytest.raises(ValueError, match=r"n_samples=1000000000000 needs about .* GB of memory"):
        world.models["PerturbDiffusion"].sample([SINGLE], n_samples=10**12)


def test_numbers_of_numpy_are_numbers_and_truth_values_are_not(world):
    model = world.models["PerturbDiffusion"]
    drawn = model.sample([SINGLE], n_samples=np.int64(3), library_size=np.float32(100), seed=0)
    assert drawn.n_obs == 3
    with pytest.raises(TypeError, match="library_size=True"):
        model.sample([SINGLE], n_samples=3, library_size=True)


def test_training_in_two_threads_is_as_one_after_the_other(world):
    def trained(model):
        model.train(**QUICK, n_steps=4, seed=3)

    def weights(model):
        return torch.cat([x.float().flatten() for x in model.module.state_dict().values()])

    alone, one, two = (world.made("PerturbDiffusion") for _ in range(3))
    trained(alone)
    threads = [threading.Thread(target=trained, args=(model,)) for model in (one, two)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.testing.assert_close(weights(one), weights(alone), rtol=1e-3, atol=1e-6, equal_nan=True)
    torch.testing.assert_close(weights(two), weights(alone), rtol=1e-3, atol=1e-6, equal_nan=True)
