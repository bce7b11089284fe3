"""Configurations of generators: each names its generator, and each model takes its own kind."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scvi.module.base import LossOutput

from scvi_perturb import (
    DiffusionConfig,
    FlowConfig,
    HybridResidualModel,
    PerturbDiffusion,
    PerturbFlow,
)
from scvi_perturb.model.latent.model import LatentModel
from scvi_perturb.module import (
    AutoencoderConfig,
    CountDiffusion,
    GeneratorConfig,
    LatentDiffusion,
    LatentFlow,
    LatentGenerator,
    LatentSplines,
)
from scvi_perturb.testing import NEW_PAIR, SETUP, make_screen

SMALL = {"n_latent": 4, "n_hidden": 16, "n_layers": 1}
TRAIN = {
    "max_epochs": 1,
    "n_steps": 5,
    "batch_size": 64,
    "accelerator": "cpu",
    "enable_progress_bar": False,
}


class MeanGenerator(LatentGenerator):
    """Every cell of a condition is at the mean that the network tells."""

    def loss(self, tensors):
        target, reference, _, condition = self.examples(tensors)
        found = self._told(self.networks, reference, condition)
        loss = (found - target).square().mean(dim=1)
        return LossOutput(loss=loss.mean(), reconstruction_loss=loss)

    @torch.no_grad()
    def sample_latent(self, batch, *, sampler, generator):
        del sampler, generator
        embedded, _, row = self.embed(batch)
        found = self._told(self.average, batch.reference, embedded[row])
        effect = self.additive_effect(batch.conditions)[batch.which]
        return batch.reference + found * self.target_scale + effect

    def _told(self, networks, reference, condition):
        network = networks.network
        modulation = network.modulation(torch.zeros(len(reference)), condition)
        return network(torch.zeros_like(reference), self.standardise(reference), modulation)


@dataclass(frozen=True, slots=True)
class MeanConfig(GeneratorConfig):
    """The configuration of `MeanGenerator`."""

    @property
    def generator_class(self):
        return MeanGenerator

    @property
    def reference(self):
        return "cell"


@dataclass(frozen=True, slots=True)
class Nameless(GeneratorConfig):
    """A configuration that forgot its generator."""

    @property
    def reference(self):
        return "cell"


NETWORK = {"width": 16, "n_blocks": 1, "n_condition": 8, "n_neighbours": 5}


class MeanModel(LatentModel):
    """The model that the page on extending describes: an `__init__` that calls `_build`."""

    def __init__(self, adata=None, *, generator, seed=0, registry=None):
        super().__init__(adata, registry, None)
        self._build(AutoencoderConfig(**SMALL), generator, seed=seed)
        self.init_params_ = self._get_init_params(locals())


@pytest.fixture
def screen():
    return make_screen()


def made(model, adata, **given):
    model.setup_anndata(adata, **SETUP)
    return model(adata, **given)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (DiffusionConfig(), LatentDiffusion),
        (FlowConfig(), LatentFlow),
        (FlowConfig(source="noise"), LatentFlow),
        (FlowConfig(source="noise", kind="coupling"), LatentSplines),
        (MeanConfig(), MeanGenerator),
    ],
)
def test_a_configuration_names_its_generator(screen, config, expected):
    assert config.generator_class is expected
    model = made(HybridResidualModel, screen, generator=config, **SMALL)
    assert type(model.module.generator) is expected
    assert model.module.generator.config is config
    assert model._samplers == model.module.generator.samplers


def test_a_configuration_without_a_generator_says_what_to_define(screen):
    with pytest.raises(NotImplementedError, match=r"Nameless names no generator.*generator_class"):
        made(HybridResidualModel, screen, generator=Nameless())


@pytest.mark.parametrize(
    ("model", "given", "match"),
    [
        (
            PerturbDiffusion,
            {"diffusion": FlowConfig()},
            r"diffusion is a FlowConfig; expected a DiffusionConfig.*PerturbFlow\(flow=",
        ),
        (
            PerturbFlow,
            {"flow": DiffusionConfig()},
            r"flow is a DiffusionConfig; expected a FlowConfig.*PerturbDiffusion\(diffusion=",
        ),
        (PerturbDiffusion, {"diffusion": MeanConfig()}, r"HybridResidualModel\(generator="),
        (
            HybridResidualModel,
            {"generator": AutoencoderConfig()},
            r"generator is a AutoencoderConfig; expected a GeneratorConfig.*DiffusionConfig\(",
        ),
    ],
)
def test_each_model_takes_its_own_kind_of_configuration(screen, model, given, match):
    with pytest.raises(TypeError, match=match):
        made(model, screen, **given)


def test_counts_are_drawn_by_the_diffusion_of_counts_alone(screen):
    @dataclass(frozen=True, slots=True)
    class Own(DiffusionConfig):
        @property
        def generator_class(self):
            return MeanGenerator

    model = made(PerturbDiffusion, screen, space="counts", diffusion=DiffusionConfig(**NETWORK))
    assert type(model.module.generator) is CountDiffusion
    with pytest.raises(TypeError, match=r"CountDiffusion, and Own is .* of a MeanGenerator"):
        made(PerturbDiffusion, screen, space="counts", diffusion=Own())
    latent = made(PerturbDiffusion, screen, diffusion=Own(**NETWORK), **SMALL)
    assert type(latent.module.generator) is MeanGenerator


def test_a_generator_of_ones_own_is_trained_and_drawn_from(screen, tmp_path):
    model = made(MeanModel, screen, generator=MeanConfig(**NETWORK))
    model.train(**TRAIN)
    cells = model.sample([NEW_PAIR], n_samples=20, seed=0)
    model.save(tmp_path / "model", save_anndata=False)
    again = MeanModel.load(tmp_path / "model", adata=screen)
    assert type(again.module.generator) is MeanGenerator
    assert (again.sample([NEW_PAIR], n_samples=20, seed=0).X != cells.X).nnz == 0


def test_refits_of_the_hybrid_have_its_generator(screen, monkeypatch):
    drawn = []
    own = MeanGenerator.sample_latent
    monkeypatch.setattr(
        MeanGenerator,
        "sample_latent",
        lambda self, *args, **options: drawn.append(self) or own(self, *args, **options),
    )
    model = made(HybridResidualModel, screen, generator=MeanConfig(**NETWORK), n_refits=1, **SMALL)
    model.train(**TRAIN)
    assert len({id(one) for one in drawn}) == 1, "the refit, while training"
    assert drawn[0] is not model.module.generator
    assert "generator" in model.mean_weights_
    effects = model.predict([NEW_PAIR], n_samples=20)
    assert drawn[-1] is model.module.generator
    assert np.isfinite(effects.X).all()
