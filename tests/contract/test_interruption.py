"""Ctrl-C in training leaves the model as it was; a model lets go of its data."""

from __future__ import annotations

import gc
import os
import signal
import threading
import weakref

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from scvi_perturb import NotTrainedError, SchemaError
from scvi_perturb.testing import SINGLE, controls, dense, fit, make_model
from tests.contract.registry import MODELS

#: All models share the code; one has a single stage, another a stage that is fitted at the end.
SOME = [case for case in MODELS if case.name in ("CausalPerturbVAE", "HybridResidualModel")]


class Press(Callback):
    """Press Ctrl-C in the `stage`-th training."""

    def __init__(self, stage=0):
        self.stage, self.now = stage, -1

    def on_train_start(self, trainer, pl_module):
        self.now += 1

    def on_train_batch_end(self, trainer, pl_module, *_):
        if self.now == self.stage:
            os.kill(os.getpid(), signal.SIGINT)


def state_of(model):
    weights = {key: value.clone() for key, value in model.module.state_dict().items()}
    modes = {name: part.training for name, part in model.module.named_modules()}
    return weights, modes, {key: value for key, value in vars(model).items() if key != "module"}


def assert_unchanged(model, before):
    weights, modes, attributes = state_of(model)
    assert weights.keys() == before[0].keys()
    assert all(torch.equal(value, weights[key]) for key, value in before[0].items())
    assert modes == before[1]
    assert attributes.keys() == before[2].keys()
    changed = [key for key, value in before[2].items() if attributes[key] is not value]
    assert not changed


def interrupt(case, model, **options):
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(case, model, **options)
    assert signal.getsignal(signal.SIGINT) is handler, "the next Ctrl-C counts, too"


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("case", MODELS, ids=lambda c: c.name, indirect=True)
def test_interrupted_training_leaves_the_model_as_it_was(case, untrained, stage):
    if stage >= len(case.stages):
        pytest.skip("no such stage")
    before = state_of(untrained)
    interrupt(case, untrained, callbacks=[Press(stage)])
    assert_unchanged(untrained, before)
    assert untrained.history_ is None
    with pytest.raises(NotTrainedError):
        untrained.sample([SINGLE])


@pytest.mark.parametrize("case", SOME, ids=lambda c: c.name, indirect=True)
def test_interrupted_further_training_leaves_what_was_trained(case, untrained):
    fit(case, untrained)
    cells = untrained.sample([SINGLE], n_samples=5)
    history = {name: frame.copy() for name, frame in untrained.history_.items()}
    before = state_of(untrained)
    interrupt(case, untrained, callbacks=[Press(len(case.stages) - 1)])
    assert_unchanged(untrained, before)
    for name, frame in untrained.history_.items():
        pd.testing.assert_frame_equal(frame, history[name])
    np.testing.assert_array_equal(dense(untrained.sample([SINGLE], n_samples=5).X), dense(cells.X))


@pytest.mark.parametrize("case", SOME, ids=lambda c: c.name, indirect=True)
def test_interrupted_run_goes_on_to_the_same_weights(case, screen):
    whole = fit(case, make_model(case, screen.copy()), max_epochs=3)
    model = make_model(case, screen.copy())
    interrupt(
        case, model, max_epochs=3, checkpoint_dir="run", callbacks=[Press(len(case.stages) - 1)]
    )
    fit(case, model, max_epochs=3, checkpoint_dir="run")
    weights = model.module.state_dict()
    assert all(torch.equal(weights[k], v) for k, v in whole.module.state_dict().items())


@pytest.mark.parametrize("case", SOME[:1], ids=lambda c: c.name, indirect=True)
def test_two_threads_train_one_after_the_other(case, screen):
    others = []
    thread = threading.Thread(
        target=lambda: others.append(fit(case, make_model(case, screen.copy())))
    )

    class Other(Callback):
        def on_train_start(self, trainer, pl_module):
            if not thread.ident:
                thread.start()

    model = fit(case, make_model(case, screen.copy()), callbacks=[Other()])
    thread.join()
    # Sums of threads differ in the last digits.
    torch.testing.assert_close(model.module.state_dict(), others[0].module.state_dict())


@pytest.mark.parametrize("case", SOME, ids=lambda c: c.name, indirect=True)
def test_released_data_are_freed(case, simulated):
    adata = simulated.copy()
    seen = weakref.ref(adata)
    with fit(case, make_model(case, adata)) as model:
        expected = dense(model.sample([SINGLE], reference=controls(simulated), n_samples=5).X)
        other = simulated.copy()
        passed = weakref.ref(other)
        latent = model.get_latent_representation(other)
        del adata, other
        gc.collect()
        assert seen() is not None
        assert passed() is not None, "scvi-tools keeps what a verb was given"
    gc.collect()
    assert seen() is None
    assert passed() is None
    assert model.adata is None
    assert model.sample([SINGLE], n_samples=5).n_obs == 5
    with pytest.raises(SchemaError, match="without data"):
        model.get_latent_representation()
    again = model.sample([SINGLE], reference=controls(simulated), n_samples=5)
    np.testing.assert_array_equal(dense(again.X), expected)
    np.testing.assert_array_equal(model.get_latent_representation(simulated.copy()), latent)
    model.release()
    model.save("model")
    case.model.load("model", adata=False)


@pytest.mark.parametrize("case", SOME[:1], ids=lambda c: c.name, indirect=True)
def test_release_leaves_other_models_of_the_data(case, untrained, screen):
    other = case.model(untrained.adata, **case.init)
    untrained.release()
    assert fit(case, other).is_trained_
    assert other.get_latent_representation().shape[0] == screen.n_obs
