"""Both stages as one module."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from torch import nn

from scvi_perturb.module import (
    AutoencoderConfig,
    CountAutoencoder,
    ScviRepresentation,
    TwoStageModule,
)
from tests.module._small import N_BATCH, N_GENES, N_LATENT


@pytest.fixture
def module():
    config = AutoencoderConfig(n_latent=N_LATENT, n_hidden=7)
    return TwoStageModule(CountAutoencoder(N_GENES, N_BATCH, config), nn.Linear(2, 2))


def test_trained_scvi_is_put_back_before_weights_are_loaded(module):
    own = module.representation
    module.on_load(SimpleNamespace(scvi_settings_=None))
    assert module.representation is own
    settings = {"n_input": N_GENES, "n_latent": N_LATENT, "n_batch": N_BATCH}
    module.on_load(SimpleNamespace(scvi_settings_=settings))
    assert isinstance(module.representation, ScviRepresentation)
    assert module.representation.vae.n_input == N_GENES
