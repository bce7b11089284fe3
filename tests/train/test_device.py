"""What a device needs of training: no waiting in a step, half precision, clear errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scvi.module.base import LossOutput
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks._simulated import simulate
from scvi_perturb.data.reader import CompressedCells, ResidentCells
from scvi_perturb.model import PerturbDiffusion
from scvi_perturb.train import PlanConfig, StagePlan, TrainConfig
from scvi_perturb.train.plan import LossSums, compiled
from tests.train._toy import QUIET, ToyModel, ToyModule, fit

CPU = torch.device("cpu")


class Waits(TorchDispatchMode):
    """Count the calls after which a GPU's host waits for a result."""

    WAITING = ("_local_scalar_dense", "nonzero", "_unique", "masked_select", "is_nonzero")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(name in func.name() for name in self.WAITING):
            self.found.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def model():
    adata = simulate(120, 30, density=0.3)
    PerturbDiffusion.setup_anndata(adata, control="control", context_keys=["cell_type"])
    return PerturbDiffusion(adata, n_hidden=8, n_layers=1, n_latent=4, seed=0)


def batch_of_latents(n=16):
    random = torch.Generator().manual_seed(0)
    names = ("target_mean", "target_log_variance", "reference_mean", "reference_log_variance")
    batch = {name: torch.randn(n, 4, generator=random) for name in names}
    return batch | {"condition": torch.arange(n) % 3, "context": torch.arange(n) % 2}


@pytest.mark.parametrize("stage", ["representation", "generator"])
def test_nothing_in_a_step_waits_for_the_device(model, stage):
    module = getattr(model.module, stage).train()
    source = ResidentCells(model._reader(None), CPU)
    batch = source[np.arange(16)] if stage == "representation" else batch_of_latents()
    plan = StagePlan(module, PlanConfig())
    before = getattr(module, "before_steps", lambda: None)
    after = getattr(module, "after_step", lambda: None)
    before()
    with Waits() as waits:
        output = plan.forward(batch, {"kl_weight": 0.5})
        output.loss.backward()
        plan.sums["train"].add(output)
        after()
    assert waits.found == []


@pytest.mark.parametrize("asked", [np.array([5, 3, 119, 3]), np.arange(50)], ids=len)
def test_batches_put_together_on_the_device_are_those_of_the_reader(model, asked):
    reader = model._reader(None)
    there, here = ResidentCells(reader, CPU)[asked], CompressedCells(reader)[asked]
    for name, tensor in there.items():
        assert torch.equal(tensor, here[name].to(tensor.dtype)), name
    assert len(ResidentCells(reader, CPU)) == len(reader)


def test_compressed_cells_are_those_of_the_reader(model):
    reader, module = model._reader(None), model.module.representation.eval()
    asked = np.array([5, 3, 119, 3])
    found = []
    for batch in (reader[asked], CompressedCells(reader)[asked]):
        batch.pop("X") if "values" in batch else None
        torch.manual_seed(0)
        found.append(module(batch, loss_kwargs={"kl_weight": 1.0})[-1].loss)
    torch.testing.assert_close(*found)


def test_mixed_precision_trains_both_stages_to_about_the_same_loss():
    losses = []
    for precision in ("32-true", "bf16-mixed"):
        adata = simulate(120, 30, density=0.3)
        PerturbDiffusion.setup_anndata(adata, control="control", context_keys=["cell_type"])
        trained = PerturbDiffusion(adata, n_hidden=8, n_layers=1, n_latent=4, seed=0)
        trained.train(3, n_steps=4, batch_size=32, precision=precision, **QUIET)
        losses.append(trained.history_["representation_elbo_train"].to_numpy())
        assert np.isfinite(trained.history_["generator_train_loss"].to_numpy()).all()
    # Half precision rounds to 0.4 %.
    np.testing.assert_allclose(*losses, rtol=0.01)
    assert not np.array_equal(*losses)


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-true", "64-true", 16])
def test_precision_that_would_not_hold_is_refused(model, precision):
    with pytest.raises(ValueError, match="is not supported; expected '32-true' or 'bf16-mixed'"):
        model.train(1, n_steps=1, precision=precision)


def test_lack_of_memory_says_what_to_lower(monkeypatch):
    def full(*args, **kwargs):
        msg = "CUDA out of memory."
        raise torch.OutOfMemoryError(msg)

    monkeypatch.setattr(ToyModule, "loss", full)
    with pytest.raises(torch.OutOfMemoryError, match=r"in batches of .* Lower batch_size"):
        fit(ToyModel(), max_epochs=1)


def test_what_cannot_be_compiled_runs_as_it_is(monkeypatch):
    def broken(function):
        def call(*args, **kwargs):
            msg = "no compiler"
            raise RuntimeError(msg)

        return call

    monkeypatch.setattr(torch, "compile", broken)
    double = compiled(lambda x: 2 * x)
    with pytest.warns(UserWarning, match="could not be compiled and runs as it is: no compiler"):
        assert double(3) == 6
    assert double(4) == 8
    assert not TrainConfig().compile


def test_sums_are_means_over_cells_however_many_batches_there_are():
    sums, values = LossSums(), torch.arange(600.0)
    for one in values.split(2):
        sums.add(LossOutput(loss=one.mean(), reconstruction_loss=one, kl_local=0 * one))
    means = sums.take()
    assert sums.n_cells == 600
    assert means["loss"].item() == means["elbo"].item() == values.mean().item()
    assert sums.take() == {}
