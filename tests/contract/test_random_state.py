"""Seeds: the caller's random numbers are left as they were, and do not matter."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from scvi_perturb.testing import SINGLE, fit, make_model


def state():
    return (
        torch.get_rng_state().tolist(),
        [np.asarray(part).tolist() for part in np.random.get_state()[1:3]],  # noqa: NPY002
        random.getstate(),
    )


VERBS = {
    "init": lambda case, model: make_model(case, model.adata.copy()),
    "sample": lambda case, model: model.sample([SINGLE], n_samples=5),
    "sample unseeded": lambda case, model: model.sample([SINGLE], n_samples=5, seed=None),
    "predict": lambda case, model: model.predict([SINGLE], n_samples=5),
    "latent": lambda case, model: model.get_latent_representation(),
    "likelihood": lambda case, model: getattr(model, case.likelihood)(indices=[0], n_samples=2),
    "posterior": lambda case, model: model.posterior_predictive_sample(indices=[0, 1]),
}


@pytest.mark.parametrize("verb", VERBS)
def test_verbs_leave_global_random_numbers_alone(case, trained, verb):
    before = state()
    VERBS[verb](case, trained)
    assert state() == before


def test_training_leaves_global_random_numbers_alone(case, untrained):
    before = state()
    fit(case, untrained)
    assert state() == before


def test_failed_training_leaves_global_random_numbers_alone(case, untrained):
    class Failure(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            msg = "out of power"
            raise OSError(msg)

    before = state()
    with pytest.raises(OSError, match="out of power"):
        fit(case, untrained, callbacks=[Failure()])
    assert state() == before


def test_draws_do_not_depend_on_global_random_numbers(trained):
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    one = trained.sample([SINGLE], n_samples=5)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    two = trained.sample([SINGLE], n_samples=5)
    assert (one.X != two.X).nnz == 0
